"""What nnU-Net's plans say of one configuration, as a plan and settings of kidseg.

Two formats are read: since nnU-Net 2.3 the plans name the network and its arguments; before, they
gave the numbers of its usual U-Net.

Source: nnU-Net v2.8.1, `PlansManager` and `ConfigurationManager`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from kidseg.cases.nnunet import Description
from kidseg.errors import InputError
from kidseg.import_nnunet.architecture import topology_of, unsupported
from kidseg.intensity import Normalisation, Scheme, Statistics
from kidseg.plan import Configuration, Plan

__all__ = ["Planned", "planned_of"]

_CHECKED = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)
_SCHEMES: Mapping[str, Scheme] = {
    "CTNormalization": "ct",
    "ZScoreNormalization": "zscore",
    "NoNormalization": "nonorm",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}
_RESIZING = "resample_data_or_seg_to_shape"
# Values of its arguments that kidseg has; the first is nnU-Net's default.
# Source: nnU-Net v2.8.1, default_resampling, and ANISO_THRESHOLD.
_ARGUMENTS: Mapping[str, tuple[Any, ...]] = {
    "is_seg": (False,),
    "order": (3, 1),
    "order_z": (0,),
    "force_separate_z": (False, None, True),
    "separate_z_anisotropy_threshold": (3, 3.0),
}
# Beyond these, a file names voxels, patches or batches that no scan and no machine has.
_LEAST_MM, _MOST_MM = 1e-3, 1e3
_MOST_SIDE, _MOST_VOXELS, _MOST_BATCH = 2**16, 2**30, 2**16
_MOST_INTENSITY = 1e12
# Of the range of the intensities: what rounding may put their mean beyond it.
_ROUNDING = 1e-3
# nnU-Net's classes that read images; those with "Reorient" bring them to an order of axes first.
_READERS = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient")


@checked_dataclass(frozen=True, config=_CHECKED)
class _Statistics:
    """nnU-Net's field names."""

    mean: float
    std: float
    median: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@checked_dataclass(frozen=True, config=_CHECKED)
class _Plans:
    """plans.json; its intensities are {channel number: statistics}."""

    plans_name: str
    dataset_name: str
    original_median_spacing_after_transp: list[float]
    transpose_forward: list[int]
    transpose_backward: list[int]
    configurations: dict[str, dict[str, Any]]
    intensities: dict[str, _Statistics]
    image_reader_writer: str
    label_manager: str = "LabelManager"


@checked_dataclass(frozen=True, config=_CHECKED)
class _Configuration:
    """A configuration, complete with what it inherits."""

    patch_size: list[int]
    batch_size: int
    spacing: list[float]
    median_image_size_in_voxels: list[float]
    normalization_schemes: list[str]
    use_mask_for_norm: list[bool]
    architecture: dict[str, Any]
    resampling_fn_data: str
    resampling_fn_data_kwargs: dict[str, Any]
    resampling_fn_probabilities: str
    resampling_fn_probabilities_kwargs: dict[str, Any]
    preprocessor_name: str = "DefaultPreprocessor"
    previous_stage: str | None = None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A configuration of nnU-Net's plans.

    Attributes:
        name: of the configuration.
        plan: with this configuration alone; its axes are the network's.
        resizing: settings of `ResizingConfig`.
        transpose: axis of the stored image for each axis of the network.
        reader: nnU-Net's class that reads images.
        source: data set and plans, as nnU-Net names them.
    """

    name: str
    plan: Plan
    resizing: Mapping[str, Any]
    transpose: tuple[int, ...]
    reader: str
    source: str


def planned_of(content: Any, name: str, described: Description, path: Path) -> Planned:
    """A configuration of plans.

    Args:
        content: of the plans.
        name: of the configuration.
        described: the data set.
        path: of the file, for messages.

    Raises:
        InputError: "bad-plans": a field is missing or invalid; the message names it.
        ModelError: "unsupported-model": the configuration needs what kidseg does not have.
    """
    if not isinstance(content, Mapping):
        raise _bad("it contains no table", path)
    by_channel = content.get("foreground_intensity_properties_per_channel")
    if by_channel is None:  # before nnU-Net 2.0 was released
        by_channel = content.get("foreground_intensity_properties_by_modality", {})
    plans = _parsed(_Plans, {**content, "intensities": by_channel}, "", path)
    if plans.label_manager != "LabelManager":
        unsupported(f"label_manager {plans.label_manager}", "LabelManager", path)
    if plans.image_reader_writer not in _READERS:
        unsupported(f"images read by {plans.image_reader_writer}", ", ".join(_READERS), path)
    _check_axes(plans, path)
    entry = _inherited(plans.configurations, name, path)
    if "architecture" not in entry:
        entry = {**entry, "architecture": _architecture_of_old(entry, name, path)}
    chosen = _parsed(_Configuration, entry, f"configurations.{name}.", path)
    _check_supported(chosen, path)
    plan = Plan(
        channels=_channels(chosen, plans, described, path),
        labels=described.schema.names,
        cyst=None,
        median_spacing_mm=tuple(plans.original_median_spacing_after_transp),
        configurations={name: _configuration(chosen, name, path)},
        training=(),
    )
    return Planned(
        name=name,
        plan=plan,
        resizing=_resizing(chosen, path),
        transpose=tuple(plans.transpose_forward),
        reader=plans.image_reader_writer,
        source=f"{plans.dataset_name}, {plans.plans_name}",
    )


def _configuration(chosen: _Configuration, name: str, path: Path) -> Configuration:
    try:
        topology = topology_of(chosen.architecture, path)
        found = Configuration(
            spacing_mm=tuple(chosen.spacing),
            median_shape=tuple(chosen.median_image_size_in_voxels),
            patch_size=tuple(chosen.patch_size),
            batch_size=chosen.batch_size,
            topology=topology,
        )
        _check_sizes(found)
    except ValueError as error:
        raise _bad(f"'configurations.{name}': {error}", path) from error
    return found


def _check_sizes(found: Configuration) -> None:
    """Raises ValueError: voxels, patches or batches that do not fit the network, or cannot be."""
    divisors = found.topology.divisors
    if not all(_LEAST_MM <= mm <= _MOST_MM for mm in found.spacing_mm):
        raise ValueError(
            f"spacing {list(found.spacing_mm)} is not between {_LEAST_MM:g} and {_MOST_MM:g} mm"
        )
    if not all(1 <= n <= _MOST_SIDE for n in (*found.patch_size, *found.median_shape)):
        raise ValueError(
            f"patches of {list(found.patch_size)} voxels and images of {list(found.median_shape)}"
            f" are not between 1 and {_MOST_SIDE}"
        )
    if prod(found.patch_size) > _MOST_VOXELS or not 1 <= found.batch_size <= _MOST_BATCH:
        raise ValueError(
            f"batches of {found.batch_size} patches of {list(found.patch_size)} voxels are not"
            " possible"
        )
    if any(n % d for n, d in zip(found.patch_size, divisors, strict=True)):
        raise ValueError(
            f"patches of {list(found.patch_size)} voxels do not fit strides whose product is"
            f" {list(divisors)}"
        )


def _check_axes(plans: _Plans, path: Path) -> None:
    forward, backward = plans.transpose_forward, plans.transpose_backward
    if sorted(forward) != [0, 1, 2]:
        raise _bad(f"transpose_forward is {forward}, no order of three axes", path)
    if sorted(backward) != [0, 1, 2] or [forward[k] for k in backward] != [0, 1, 2]:
        raise _bad(
            f"transpose_backward is {backward}, which does not undo transpose_forward {forward}",
            path,
        )
    median_mm = plans.original_median_spacing_after_transp
    if len(median_mm) != 3 or not all(_LEAST_MM <= mm <= _MOST_MM for mm in median_mm):
        raise _bad(
            f"original_median_spacing_after_transp is {median_mm}, and not three numbers between"
            f" {_LEAST_MM:g} and {_MOST_MM:g} mm",
            path,
        )


def _check_intensities(known: _Statistics, name: str, scheme: Scheme, path: Path) -> None:
    """Refuse what no images have; CT is divided by the standard deviation."""
    ordered = (known.min, known.percentile_00_5, known.median, known.percentile_99_5, known.max)
    width = known.max - known.min
    slack = _ROUNDING * width
    is_between = known.min - slack <= known.mean <= known.max + slack
    is_spread = 0 <= known.std <= width + slack and (known.std > 0 or scheme != "ct")
    is_possible = max(map(abs, ordered)) <= _MOST_INTENSITY
    if list(ordered) != sorted(ordered) or not (is_between and is_spread and is_possible):
        raise _bad(
            f"no images have the intensities of channel '{name}': minimum, 0.5 %, median, 99.5 %"
            f" and maximum {list(ordered)}, mean {known.mean:g}, standard deviation {known.std:g}",
            path,
        )


def _channels(
    chosen: _Configuration, plans: _Plans, described: Description, path: Path
) -> tuple[Normalisation, ...]:
    names = described.channels
    counts = {len(chosen.normalization_schemes), len(chosen.use_mask_for_norm), len(names)}
    if len(counts) != 1 or set(plans.intensities) != {str(k) for k in range(len(names))}:
        raise _bad(
            f"its normalization is for {len(chosen.normalization_schemes)} channel(s), and"
            f" dataset.json names {len(names)}",
            path,
        )
    found = []
    for k, name in enumerate(names):
        scheme = _SCHEMES.get(chosen.normalization_schemes[k])
        if scheme is None:
            unsupported(
                f"normalization {chosen.normalization_schemes[k]}", ", ".join(_SCHEMES), path
            )
        known = plans.intensities[str(k)]
        _check_intensities(known, name, scheme, path)
        found.append(
            Normalisation(
                channel=name,
                scheme=scheme,
                statistics=Statistics(
                    mean=known.mean,
                    sd=known.std,
                    median=known.median,
                    min=known.min,
                    max=known.max,
                    percentile_00_5=known.percentile_00_5,
                    percentile_99_5=known.percentile_99_5,
                ),
                inside_only=chosen.use_mask_for_norm[k] and scheme == "zscore",
            )
        )
    return tuple(found)


def _check_supported(chosen: _Configuration, path: Path) -> None:
    if chosen.previous_stage is not None:
        unsupported(
            f"a cascade after {chosen.previous_stage}", "configurations of a single stage", path
        )
    if chosen.preprocessor_name != "DefaultPreprocessor":
        unsupported(f"preprocessor {chosen.preprocessor_name}", "DefaultPreprocessor", path)
    for function in (chosen.resampling_fn_data, chosen.resampling_fn_probabilities):
        if function != _RESIZING:
            unsupported(f"resampling {function}", _RESIZING, path)


def _resizing(chosen: _Configuration, path: Path) -> dict[str, Any]:
    """The settings of `ResizingConfig`."""
    image = _arguments(chosen.resampling_fn_data_kwargs, path)
    logits = _arguments(chosen.resampling_fn_probabilities_kwargs, path)
    by_slice = [each["force_separate_z"] for each in (image, logits)]
    if by_slice[0] is not by_slice[1]:
        unsupported(f"force_separate_z {by_slice}", "one value for image and logits", path)
    return {
        "image_order": image["order"],
        "logits_order": logits["order"],
        "by_slice": by_slice[0],
    }


def _arguments(given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """All arguments of the resampling of images or logits."""
    for name, value in given.items():
        known = _ARGUMENTS.get(name, ())
        if not any(type(value) is type(one) and value == one for one in known):
            supported = " or ".join(map(str, known))
            unsupported(
                f"resampling with {name} {value!r}",
                f"{name} {supported}" if known else ", ".join(_ARGUMENTS),
                path,
            )
    return {**{name: known[0] for name, known in _ARGUMENTS.items()}, **given}


def _inherited(
    configurations: Mapping[str, Mapping[str, Any]], name: str, path: Path
) -> dict[str, Any]:
    """A configuration with what it inherits from others."""
    chain: list[str] = []
    while True:
        if name in chain:
            raise _bad(f"configuration '{name}' inherits from itself", path)
        if name not in configurations:
            raise _bad(
                f"there is no configuration '{name}'; there are {', '.join(configurations)}", path
            )
        chain.append(name)
        parent = configurations[name].get("inherits_from")
        if parent is None:
            break
        name = str(parent)
    merged: dict[str, Any] = {}
    for each in reversed(chain):
        merged.update(configurations[each])
    return merged


def _architecture_of_old(entry: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """The architecture of plans from before nnU-Net 2.3, which gave only its numbers."""
    try:
        stages = len(entry["n_conv_per_stage_encoder"])
        first, most = int(entry["UNet_base_num_features"]), int(entry["unet_max_num_features"])
        residual = entry["UNet_class_name"] == "ResidualEncoderUNet"
        dims = len(entry["patch_size"])
        return {
            "network_class_name": entry["UNet_class_name"],
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": [min(first << k, most) for k in range(stages)],
                "kernel_sizes": entry["conv_kernel_sizes"],
                "strides": entry["pool_op_kernel_sizes"],
                "n_blocks_per_stage" if residual else "n_conv_per_stage": entry[
                    "n_conv_per_stage_encoder"
                ],
                "n_conv_per_stage_decoder": entry["n_conv_per_stage_decoder"],
                "conv_op": f"Conv{dims}d",
                "conv_bias": True,
                "norm_op": f"InstanceNorm{dims}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "nonlin": "torch.nn.LeakyReLU",
            },
        }
    except (KeyError, TypeError, ValueError) as error:
        raise _bad(f"'configurations.{name}' has no architecture ({error!r})", path) from error


def _parsed(kind: Any, content: Any, where: str, path: Path) -> Any:
    try:
        # Via JSON: strict validation of Python objects requires tuples, not lists.
        return TypeAdapter(kind).validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        field = where + ".".join(str(part) for part in first["loc"])
        raise _bad(f"'{field}': {first['msg'].lower()}", path) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise _bad(f"its content is invalid ({error})", path) from error


def _bad(cause: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code="bad-plans",
        next_step="Restore the file that nnU-Net wrote beside the trained folds.",
    )
