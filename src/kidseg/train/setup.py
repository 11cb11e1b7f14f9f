"""The setup of a training run or a store: method, settings, start model and cases."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from kidseg.cases.roi_rules import RoiRules
from kidseg.checkpoint import Model, load_model
from kidseg.config import METHODS, load, passed_on, preset
from kidseg.device import as_fast
from kidseg.errors import KidsegWarning, ModelError, UsageError
from kidseg.members import CALIBRATED, members_of
from kidseg.methods import Method, method_named
from kidseg.model_file import find_model
from kidseg.plan import Plan

__all__ = [
    "ResolvedSetup",
    "Setup",
    "check_start",
    "overrides_of",
    "plan_from_model",
    "resolve",
    "settings_from",
]

_DEPTH = ("size", "bottleneck", "supervised_to")
"""Settings of a U-Net that determine its levels and outputs."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The setup as requested.

    Attributes:
        method: one of `kidseg.registry.METHODS`; None: that of `start`, else the first.
        preset: named settings of the package.
        config_file: TOML file; overrides the preset.
        overrides: "key=value"; override both.
        start: a model file or run folder to fine-tune: provides the weights, the plan and the
            default settings but the length of its training. The starter's is
            `find_model("starter")`.
        tune: parameters to train: "all", "decoder", "ends" (the first two blocks of the encoder and
            the last two of the decoder), or comma-separated glob patterns of parameter names
            ("segment.decode.*"); None: "all".
        reference: id of the training case to whose pose and size the others are brought, for
            methods with a reference; None: that of the settings.
        cases: ids of the only cases to train and validate on; None: all labelled cases, or the
            store's.
        validation: ids of the validation cases; None: a stratified share of the patients, or the
            store's.
        seed: of all random numbers, including the split; None: 0, or that of the run to resume.
        jobs: processes that read the data set.
        rules: for the structures of DICOM annotations; None: the data set's, or the usual ones.
    """

    method: str | None = None
    preset: str | None = None
    config_file: Path | None = None
    overrides: Sequence[str] = ()
    start: Path | None = None
    tune: str | None = None
    reference: str | None = None
    cases: Sequence[str] | None = None
    validation: Sequence[str] | None = None
    seed: int | None = None
    jobs: int = 1
    rules: RoiRules | None = None

    def __post_init__(self) -> None:
        if self.start is not None:
            object.__setattr__(self, "start", find_model(self.start))


@dataclass(frozen=True, kw_only=True)
class ResolvedSetup:
    """A setup with its settings resolved.

    Attributes:
        method: to train.
        config: its settings.
        start: the model to fine-tune.
        plan: of that model.
        left_out: what is calibrated in its file, which holds for its own weights alone.
    """

    method: type[Method]
    config: Any
    start: Model | None = None
    plan: Plan | None = None
    left_out: tuple[str, ...] = ()


def resolve(setup: Setup, *, resumed: bool = False) -> ResolvedSetup:
    """Resolve the settings of a setup and load its start model.

    Args:
        setup: to resolve.
        resumed: it is that of a run to resume, perhaps of an earlier version.

    Raises:
        UsageError: "other-method": the model has another method; "tune-without-model";
            "reference-of-model": the model keeps its reference; "bad-setting": the U-Net's size is
            not that of its input; see `overrides_of`, `method_named`, `preset` and `load`.
        InputError: see `load`.
        ModelError: see `load_model`; "damaged-model".
    """
    if setup.start is None:
        if setup.tune is not None:
            raise UsageError(
                "tune requires a model to fine-tune",
                code="tune-without-model",
                next_step="Name a model with --from.",
            )
        name = setup.method or next(iter(METHODS))
        base = None if setup.preset is None else preset(setup.preset, name)
        config = _load_config(name, setup, base, stored=resumed)
        if not resumed:
            _check_size(config)
        return ResolvedSetup(method=method_named(name), config=config)
    file = load_model(setup.start)
    model = _one_model(file, setup)
    name = str(model.header.get("method"))
    try:
        plan = Plan.from_dict(model.header["plan"], setup.start)
        base = _pinned(name, dict(model.header["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the header is invalid: {error}",
            path=setup.start,
            code="damaged-model",
            next_step="Copy the file again, or train the model again.",
        ) from error
    config = settings_from(base, setup, name, stored=resumed)
    return ResolvedSetup(
        method=method_named(name),
        config=config,
        start=model,
        plan=plan,
        left_out=tuple(entry for entry in CALIBRATED if file.header.get(entry)),
    )


def settings_from(
    base: Mapping[str, Any], setup: Setup, method: str, *, stored: bool = False
) -> Any:
    """The settings with which a model is fine-tuned: its own, with those of a setup over them.

    How long the model's own training was and on what machine it ran does not count: see
    `kidseg.config.passed_on`. The precision is the device's best, unless the model has fp32.

    Args:
        base: settings of the model, as plain data.
        setup: preset, file and overrides.
        method: of both.
        stored: the setup's file was written by kidseg; see `load`.

    Raises:
        UsageError: "reference-of-model": the model keeps its reference; see `overrides_of`,
            `preset` and `load`.
    """
    here = {"precision": as_fast(base.get("precision", "auto"))}
    pinned = _pinned(method, {**passed_on(base, method), **here})
    own: Any = load(METHODS[method], base=pinned)
    if setup.preset is not None:
        unet = {key: pinned["unet"][key] for key in _DEPTH} if hasattr(own, "network") else None
        pinned = _merge(pinned, preset(setup.preset, method))
        pinned = pinned if unet is None else _merge(pinned, {"unet": unet})
    config = _load_config(method, setup, pinned, stored=stored)
    if hasattr(config, "pose"):
        was, now = (_reference_settings(each.pose) for each in (own, config))
        if changed := [name for name in was if was[name] != now[name]]:
            raise UsageError(
                "the model keeps its reference patient, on which its networks are trained, and"
                f" {', '.join(changed)} would need another one",
                path=setup.start,
                code="reference-of-model",
                next_step="Leave out the reference and these settings, or train without --from.",
            )
    return config


def _reference_settings(pose: Any) -> dict[str, Any]:
    """What determines the reference patient, and which of its slices and masks are kept."""
    names = ("reference", "reference_mode", "reference_slices", "target")
    return {
        **{f"pose.{name}": getattr(pose, name) for name in names},
        "pose.localizer.size": pose.localizer.size,
    }


def _one_model(model: Model, setup: Setup) -> Model:
    """The model itself; of an ensemble the first member of the method, or the first of all.

    Raises:
        UsageError: "other-method".
    """
    members = members_of(model)
    known = [str(member.header.get("method")) for member in members]
    method = setup.method or known[0]
    if method not in known:
        raise UsageError(
            f"the model has method {' and '.join(map(repr, known))}, not '{method}'",
            path=setup.start,
            code="other-method",
            next_step="Leave out --method, or start from another model.",
        )
    number = known.index(method)
    if len(members) > 1 and (setup.method is None or known.count(method) > 1):
        others = "Choose another with --method"
        if len(set(known)) < len(known):
            others = "Take another one out with kidseg ensemble --member"
        warnings.warn(
            f"the model is an ensemble ({', '.join(known)}); training starts from member {number},"
            f" '{method}'. {others}",
            KidsegWarning,
            stacklevel=3,
        )
    return members[number]


def overrides_of(setup: Setup, method: str) -> tuple[str, ...]:
    """The overrides of a setup, with its reference.

    Raises:
        UsageError: "no-reference": the method has none.
    """
    if setup.reference is None:
        return tuple(setup.overrides)
    if all(field.name != "pose" for field in fields(METHODS[method])):
        raise UsageError(
            f"method '{method}' has no reference patient",
            code="no-reference",
            next_step="Leave out the reference, or train with method 'homogenized'.",
        )
    name = json.dumps(setup.reference, ensure_ascii=False)
    return (*setup.overrides, f"pose.reference={name}")


def plan_from_model(
    start: Plan, channels: Sequence[str], training: Sequence[str], labels: dict[int, str]
) -> Plan:
    """The plan of the model to fine-tune, for other cases; independent of their voxels.

    Args:
        start: plan of the model.
        channels: channel names of the data set.
        training: ids of the training cases.
        labels: {number: name} of their labels.

    Raises:
        UsageError: see `check_start`.
    """
    check_start(start, channels, labels)
    return replace(start, training=tuple(training), labels=labels)


def check_start(start: Plan, channels: Sequence[str], labels: Mapping[int, str]) -> None:
    """Check channels and labels against the model to fine-tune; warn if only names differ.

    Args:
        start: plan of the model.
        channels: channel names of the data set.
        labels: {number: name} of its labels.

    Raises:
        UsageError: "other-channels": the number of channels differs.
    """
    known = [channel.channel for channel in start.channels]
    if len(known) != len(channels):
        raise UsageError(
            f"the model requires {len(known)} channel(s), the data set has {len(channels)}",
            code="other-channels",
            next_step="Start from a model with the same channels.",
        )
    if known != list(channels):
        warnings.warn(
            f"the model was trained on channels named {known}; these are {list(channels)}",
            KidsegWarning,
            stacklevel=2,
        )
    if len(start.labels) == len(labels) and start.labels != labels:
        warnings.warn(
            f"the model was trained on labels named {list(start.labels.values())}; these are"
            f" {list(labels.values())}; its outputs are loaded in this order where they fit",
            KidsegWarning,
            stacklevel=2,
        )


def _load_config(
    name: str, setup: Setup, base: dict[str, Any] | None, *, stored: bool = False
) -> Any:
    if name not in METHODS:
        method_named(name)
    overrides = overrides_of(setup, name)
    file = setup.config_file
    return load(METHODS[name], base=base, file=file, overrides=overrides, stored=stored)


def _check_size(config: Any) -> None:
    """Refuse a new training whose U-Net has the depth for images of another size than its input."""
    if not hasattr(config, "network") or config.network.size == config.input_size:
        return
    network = config.network
    raise UsageError(
        f"unet.size is {network.size}, but the network's input has {config.input_size} pixels along"
        " each side",
        code="bad-setting",
        next_step="Leave unet.size out, and the depth follows the input"
        + (
            "."
            if network.architecture == "plan"
            else f"; or, for the depth of {network.size} pixels, set"
            f" unet.bottleneck={config.input_size // network.multiple}."
        ),
    )


def _pinned(name: str, base: dict[str, Any]) -> dict[str, Any]:
    """A model's settings with those of its U-Net's depth, so that no other setting changes it."""
    network = getattr(load(METHODS[name], base=base), "network", None)
    if network is None:
        return base
    return _merge(base, {"unet": {key: getattr(network, key) for key in _DEPTH}})


def _merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Merge nested tables key by key; values of `overrides` win."""
    out = dict(base)
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out
