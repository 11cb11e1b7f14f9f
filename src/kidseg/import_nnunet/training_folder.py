"""The folder of a training of nnU-Net: its files, its folds, and how its images were stored.

plans.json  dataset.json  fold_0/checkpoint_final.pth  fold_0/validation/<case><ending>  ...
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kidseg.errors import InputError, KidsegWarning
from kidseg.io import read_grid
from kidseg.io.orientation import axes_of
from kidseg.records import parsed

__all__ = [
    "CHECKPOINT",
    "Checkpoint",
    "axes_of_image",
    "axes_of_reader",
    "checkpoints_in",
    "read_json",
    "stored_axes",
    "warn_of_postprocessing",
]

CHECKPOINT = "checkpoint_final.pth"
"""What nnU-Net calls the weights at the end of a training."""

PLANS, DATASET = "plans.json", "dataset.json"
_ALL = "all"
_NAMED = 5
# What nnU-Net writes when it has found a postprocessing, and files of nnU-Net v1.
_POSTPROCESSING = ("postprocessing.pkl", "*/postprocessing.pkl")
_FILES_OF_V1 = ("plans.pkl", "*/plans.pkl", "*.model.pkl")
# nnU-Net's classes that bring images to RAS, as nibabel and ITK name it.
_READERS_THAT_REORIENT = ("NibabelIOWithReorient", "SimpleITKIOWithReorient")
_REORIENTED = "SAR"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The checkpoint of a fold."""

    fold: str
    path: Path


def checkpoints_in(
    folder: Path, folds: Sequence[int | str] | None, name: str
) -> tuple[Checkpoint, ...]:
    """The checkpoints of the folds of a training, in the order of the folds.

    Args:
        folder: of the training.
        folds: numbers, or "all" for the fold of all cases; None: every number that has a
            checkpoint, or else "all".
        name: of the file.

    Raises:
        InputError: "no-training": this is not such a folder; "no-fold": a fold is missing, or has
            no such checkpoint.

    Warns of numbered folds that have no such checkpoint, if none were chosen.
    """
    _check_folder(folder)
    present = sorted(
        path.name.removeprefix("fold_") for path in folder.glob("fold_*") if (path / name).is_file()
    )
    numbered = sorted((fold for fold in present if fold.isdecimal()), key=int)
    wanted = list(dict.fromkeys(str(fold) for fold in folds or numbered or [_ALL]))
    missing = [fold for fold in wanted if fold not in present]
    if missing:
        raise InputError(
            f"fold {', '.join(missing)} has no {name}" if folds else f"no fold has a {name}",
            path=folder,
            code="no-fold",
            next_step=f"Folds with one: {', '.join(present)}."
            if present
            else "Train it to the end, or import another: --checkpoint checkpoint_best.pth.",
        )
    if not folds:
        _warn_of_left_out(folder, wanted, name)
    return tuple(Checkpoint(fold=f, path=folder / f"fold_{f}" / name) for f in wanted)


def _warn_of_left_out(folder: Path, wanted: Sequence[str], name: str) -> None:
    """nnUNetv2_predict expects five folds, and stops where one has no such checkpoint."""
    every = (path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir())
    left_out = sorted((f for f in every if f.isdecimal() and f not in wanted), key=int)
    if left_out:
        warnings.warn(
            f"fold {', '.join(left_out)} has no {name} and is left out of the model; used:"
            f" {', '.join(wanted)}",
            KidsegWarning,
            stacklevel=4,
        )


def warn_of_postprocessing(folder: Path) -> None:
    """Say that a postprocessing that nnU-Net has chosen is not applied; it is not read."""
    for pattern in _POSTPROCESSING:
        if found := sorted(folder.glob(pattern)):
            warnings.warn(
                f"{found[0]} is not applied, nor is it by nnUNetv2_predict; kidseg segment gives"
                " the labels before nnUNetv2_apply_postprocessing",
                KidsegWarning,
                stacklevel=3,
            )
            return


def _check_folder(folder: Path) -> None:
    if folder.is_dir() and (folder / PLANS).is_file() and (folder / DATASET).is_file():
        return
    if folder.is_file():
        cause, step = "a file, not a folder", "If it is an exported model, unpack it."
    elif not folder.is_dir():
        cause, step = "there is no such folder", "Check the path."
    elif any(any(folder.glob(name)) for name in _FILES_OF_V1):
        cause, step = "a training of nnU-Net v1", "Only those of nnU-Net v2 can be imported."
    else:
        lacks = [name for name in (PLANS, DATASET) if not (folder / name).is_file()]
        cause = f"no folder of a training of nnU-Net: {' and '.join(lacks)} missing"
        near = [
            folder.parent,
            *sorted(p.parent for d in ("*", "*/*") for p in folder.glob(f"{d}/{PLANS}")),
        ]
        near = [each for each in near if (each / PLANS).is_file()]
        step = (
            f"Choose {' or '.join(map(str, near[:_NAMED]))}."
            if near
            else "Give the folder TRAINER__PLANS__CONFIGURATION in nnUNet_results."
        )
    raise InputError(cause, path=folder, code="no-training", next_step=step)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: "unreadable"; "not-json".
    """
    try:
        return parsed(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}",
            path=path,
            code="unreadable",
            next_step="Check its name and permissions.",
        ) from error
    except ValueError as error:
        raise InputError(
            str(error), path=path, code="not-json", next_step="Restore the file."
        ) from error


def axes_of_reader(reader: str) -> str | None:
    """The order of axes, as `axes_of`, to which a reader of nnU-Net brings images; None: theirs."""
    return _REORIENTED if reader in _READERS_THAT_REORIENT else None


def stored_axes(checkpoints: Sequence[Checkpoint]) -> str | None:
    """How the axes of the training images run, by nnU-Net's validation results of the folds.

    nnU-Net's networks see the voxels in the order of the file. Its validation writes labels like
    the images; they stay in the folder unless they were removed.

    Args:
        checkpoints: of the folds.

    Returns:
        As `axes_of`; None if there is no image to tell.

    Raises:
        InputError: "axes-differ": the images are stored in several orders.
    """
    found: dict[str, Path] = {}
    for checkpoint in checkpoints:
        for file in sorted((checkpoint.path.parent / "validation").glob("*")):
            if file.name.endswith((".nii.gz", ".nii", ".nrrd", ".mha")):
                found.setdefault(axes_of_image(file), file)
    if len(found) > 1:
        (one, first), (other, second), *_ = found.items()
        raise InputError(
            f"the training images were stored in several orders of axes: {first.name} {one},"
            f" {second.name} {other}; nnU-Net has seen patients turned or mirrored",
            path=first.parent,
            code="axes-differ",
            next_step="Give the order in which the network is to see scans, as in --stored LPS.",
        )
    return next(iter(found), None)


def axes_of_image(path: Path) -> str:
    """How the axes of an image file run; see `axes_of`.

    Raises:
        InputError: see `read_grid`.
    """
    return axes_of(read_grid(path))
