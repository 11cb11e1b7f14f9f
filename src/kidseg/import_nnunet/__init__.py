"""Import a model that nnU-Net v2 has trained: `kidseg segment` then gives nnU-Net's labels.

The plans and data set description beside the checkpoints become a plan, settings and labels of the
method `nnunet`; the weights get kidseg's names. Several folds become members of one file.
"""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kidseg.cases.nnunet import Description, describe_nnunet
from kidseg.checkpoint import joined, save_model
from kidseg.config import (
    BodyConfig,
    NnUnetConfig,
    PostprocessConfig,
    ResizingConfig,
    StageConfig,
    load,
)
from kidseg.errors import InputError, KidsegWarning, ModelError, UsageError
from kidseg.header import MEMBERS
from kidseg.import_nnunet.architecture import renamed
from kidseg.import_nnunet.plans_file import Planned, planned_of
from kidseg.import_nnunet.torch_file import read_torch_file
from kidseg.import_nnunet.training_folder import (
    CHECKPOINT,
    DATASET,
    PLANS,
    Checkpoint,
    axes_of_image,
    axes_of_reader,
    checkpoints_in,
    read_json,
    stored_axes,
    warn_of_postprocessing,
)
from kidseg.io.atomic import check_writable
from kidseg.io.orientation import CANONICAL, facing
from kidseg.labels import Target

__all__ = ["CHECKPOINT", "import_nnunet"]


def import_nnunet(
    folder: str | Path,
    out: str | Path,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = CHECKPOINT,
    mirror: bool | None = None,
    stored: str | Path | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a model file from a folder of nnU-Net's results.

    No pickle is executed: see `read_torch_file`. Warns of folds without a checkpoint, of a
    postprocessing, which is not applied, and of axes that are assumed.

    Args:
        folder: TRAINER__PLANS__CONFIGURATION, with plans.json, dataset.json and the folds.
        out: file to write, .safetensors.
        folds: see `checkpoints_in`; the logits of several are averaged, as nnU-Net does.
        checkpoint: name of the file in each fold.
        mirror: average over mirrored images; None: as nnUNetv2_predict does, if the training
            mirrored them.
        stored: how the training images were stored: one of them, or letters as nibabel and ITK
            name the axes of a file, such as LPS or RAS; None: as the validation results of the
            folds are, or else LPS, with a warning. Irrelevant if nnU-Net's reader brought them to
            an order of its own.
        overrides: settings of the model, "key=value", in place of nnU-Net's; see
            `NnUnetConfig`.
        overwrite: replace an existing file.

    Returns:
        {"path", "sha256", "megabytes", "folds", "configuration", "axes", "axes_known",
        "mirror_axes", "labels", "source"}.

    Raises:
        InputError: "no-training"; "no-fold"; "bad-plans"; "bad-dataset-json"; "axes-differ";
            "bad-axes".
        ModelError: "unsafe-checkpoint"; "damaged-checkpoint"; "unsupported-model"; "other-plans":
            a checkpoint was trained with other plans or labels; "other-network".
        UsageError: "output-exists"; "bad-setting": also mirroring that the training did not do.
    """
    folder, out = Path(folder), Path(out)
    check_writable(out, overwrite=overwrite)
    files = checkpoints_in(folder, folds, checkpoint)
    described = _described(folder / DATASET, read_json(folder / DATASET))
    plans = read_json(folder / PLANS)
    found = [_fold(file, plans, described, folder) for file in files]
    planned, mirrors = _common(found, folder)
    directions, known = _axes(stored, files, planned)
    config = load(
        NnUnetConfig,
        base=asdict(_config(planned, mirrors, mirror, directions)),
        overrides=overrides,
    )
    _check_settings(config, planned, mirrors)
    parts, header = _content(found, [_header(config, described, each) for each in found])
    warn_of_postprocessing(folder)
    sha256 = save_model(out, parts, header, overwrite=overwrite)
    return {
        "path": str(out),
        "sha256": sha256,
        "megabytes": round(out.stat().st_size / 1e6, 2),
        "folds": [file.fold for file in files],
        "configuration": planned.name,
        "axes": config.axes,
        "axes_known": known,
        "mirror_axes": list(config.mirror_axes or mirrors) if config.test_time_flip else [],
        "labels": {str(number): name for number, name in described.schema.names.items()},
        "source": planned.source,
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fold:
    """What the checkpoint of a fold contains."""

    checkpoint: Checkpoint
    trainer: str
    planned: Planned
    mirror_axes: tuple[int, ...]
    weights: Mapping[str, Tensor]


def _common(found: Sequence[_Fold], folder: Path) -> tuple[Planned, tuple[int, ...]]:
    """The configuration and the mirrored axes of the training of all folds."""
    planned, mirrors = found[0].planned, found[0].mirror_axes
    if any(each.planned != planned or each.mirror_axes != mirrors for each in found):
        raise ModelError(
            "the folds were trained with different configurations or mirroring",
            path=folder,
            code="other-plans",
            next_step="Import the folds one by one (--fold).",
        )
    return planned, mirrors


def _content(
    found: Sequence[_Fold], headers: Sequence[dict[str, Any]]
) -> tuple[Mapping[str, Mapping[str, Tensor]], dict[str, Any]]:
    """Tensors and header of the model file: of one fold, or of an ensemble of several."""
    if len(found) == 1:
        return {"segment": found[0].weights}, headers[0]
    parts = {str(k): joined({"segment": each.weights}) for k, each in enumerate(found)}
    return parts, {**headers[0], MEMBERS: headers}


def _fold(file: Checkpoint, plans: Any, described: Description, folder: Path) -> _Fold:
    content = read_torch_file(file.path)
    start = _entry(content, "init_args", Mapping, file.path)
    name = _entry(start, "configuration", str, file.path)
    weights = _entry(content, "network_weights", Mapping, file.path)
    trainer = content.get("trainer_name")
    planned = planned_of(plans, name, described, folder / PLANS)
    trained = _described(file.path, start.get("dataset_json"))
    if trained != described or planned_of(start.get("plans"), name, trained, file.path) != planned:
        raise ModelError(
            f"it was trained with other plans, or for other labels, than {PLANS} and {DATASET} in"
            " the folder say",
            path=file.path,
            code="other-plans",
            next_step="Restore the files that nnU-Net wrote beside this fold.",
        )
    (configuration,) = planned.plan.configurations.values()
    outputs = _target(described).outputs
    return _Fold(
        checkpoint=file,
        trainer=trainer if isinstance(trainer, str) else "unknown",
        planned=planned,
        mirror_axes=_mirror_axes(
            content.get("inference_allowed_mirroring_axes"), configuration.dimensions, file.path
        ),
        weights=renamed(
            weights, configuration.topology, len(planned.plan.channels), outputs, file.path
        ),
    )


def _entry(content: Any, name: str, kind: type[Any], path: Path) -> Any:
    """An entry of a checkpoint, which must be of this type."""
    found = content.get(name) if isinstance(content, Mapping) else None
    if isinstance(found, kind):
        return found
    raise ModelError(
        f"not a checkpoint of nnU-Net v2: '{name}' is missing or wrong",
        path=path,
        code="damaged-checkpoint",
        next_step="Give a folder that nnUNetv2_train wrote.",
    )


def _mirror_axes(stated: Any, dimensions: int, path: Path) -> tuple[int, ...]:
    """Axes along which the training mirrored images; none if there is no entry."""
    axes = [] if stated is None else stated
    known = isinstance(axes, list | tuple) and all(type(axis) is int for axis in axes)
    if not known or len(set(axes)) != len(axes) or not set(axes) <= set(range(dimensions)):
        raise ModelError(
            f"inference_allowed_mirroring_axes is {reprlib.repr(axes)}, and the network has"
            f" {dimensions} axes, counted from 0",
            path=path,
            code="damaged-checkpoint",
            next_step="Give a folder that nnUNetv2_train wrote.",
        )
    return tuple(axes)


def _described(path: Path, content: Any) -> Description:
    """Channels and labels, which nnU-Net numbers by the outputs of the network."""
    if isinstance(content, Mapping) and "channel_names" not in content and "modality" in content:
        content = {**content, "channel_names": content["modality"]}
    found = describe_nnunet(content, path)
    numbers = list(found.schema.ids)
    if not found.region_order and numbers != list(range(1, len(numbers) + 1)):
        raise InputError(
            f"its labels are {numbers}, and nnU-Net's are 1, 2, 3, ...",
            path=path,
            code="bad-dataset-json",
            next_step="Restore the file that nnU-Net wrote beside the trained folds.",
        )
    return found


def _target(described: Description) -> Target:
    if described.region_order:
        return Target.of_regions(described.schema, described.region_order)
    return Target.of_labels(described.schema)


def _axes(
    asked: str | Path | None, files: Sequence[Checkpoint], planned: Planned
) -> tuple[str, bool]:
    """Directions of the network's axes: those of the stored images, transposed as planned.

    And whether they are known. A reader that brings images to an order of its own makes theirs
    irrelevant.
    """
    reordered = axes_of_reader(planned.reader)
    found: str | None
    if asked is None:
        found = reordered or stored_axes(files)
    elif isinstance(asked, Path) or Path(asked).exists():
        found = axes_of_image(Path(asked))
    else:
        found = _checked_letters(asked)
    found = reordered or found
    if found is None:
        warnings.warn(
            "how the training images were stored is not known, because the folder has no"
            f" validation results; {CANONICAL[::-1]} is assumed. If the labels differ from"
            " nnU-Net's, give one of these images (--stored FILE)",
            KidsegWarning,
            stacklevel=3,
        )
    letters = found or CANONICAL
    return "".join(letters[axis] for axis in planned.transpose), found is not None


def _checked_letters(letters: str) -> str:
    """Letters of a file, its first axis first, as those of its slices, rows and columns."""
    try:
        facing(letters.upper()[::-1])
    except ValueError as error:
        raise InputError(
            f"neither a file nor an order of axes: '{letters}'",
            code="bad-axes",
            next_step="Give a training image, or three letters such as LPS or RAS.",
        ) from error
    return letters.upper()[::-1]


def _config(
    planned: Planned, mirror_axes: tuple[int, ...], mirror: bool | None, axes: str
) -> NnUnetConfig:
    (configuration,) = planned.plan.configurations.values()
    return NnUnetConfig(
        configuration=planned.name,
        axes=axes,
        mirror_axes=mirror_axes or None,
        test_time_flip=bool(mirror_axes) if mirror is None else mirror,
        resizing=ResizingConfig(**planned.resizing),
        postprocess=PostprocessConfig(min_volume_ml=0.0),
        precision="fp32",
        segment=StageConfig(
            epochs=1000, min_epochs=0, batch_size=configuration.batch_size, steps=250
        ),
    )


def _check_settings(config: NnUnetConfig, planned: Planned, mirrors: Sequence[int]) -> None:
    """Raises UsageError: "bad-setting": they contradict what was trained."""
    axes = set(config.mirror_axes or mirrors)
    if config.configuration != planned.name:
        cause = f"the folder contains configuration '{planned.name}', not '{config.configuration}'"
    elif config.test_time_flip and not (axes and axes <= set(mirrors)):
        known = f"only along axes {list(mirrors)}" if mirrors else "along no axis"
        cause = f"the training mirrored images {known}, so that the network knows no others"
    elif config.body != BodyConfig() and any(c.scheme != "ct" for c in planned.plan.channels):
        cause = "bodies are found in CT, and the data set is not CT"
    else:
        return
    raise UsageError(cause, code="bad-setting", next_step="Leave out this setting.")


def _header(config: NnUnetConfig, described: Description, fold: _Fold) -> dict[str, Any]:
    planned, checkpoint = fold.planned, fold.checkpoint
    channels = planned.plan.channels
    return {
        "method": "nnunet",
        "config": asdict(config),
        "plan": planned.plan.as_dict(),
        "labels": {**described.schema.as_dict(), "target": _target(described).as_dict()},
        "input": {
            "channels": [channel.channel for channel in channels],
            "unit": "HU"
            if all(channel.scheme == "ct" for channel in channels)
            else "as in the data set",
            "orientation": "any; brought to canonical order",
        },
        "imported": {
            "from": "nnU-Net v2",
            "source": planned.source,
            "configuration": planned.name,
            "fold": checkpoint.fold,
            "checkpoint": checkpoint.path.name,
            "trainer": fold.trainer,
        },
        "licence": "as the training data allow",
    }
