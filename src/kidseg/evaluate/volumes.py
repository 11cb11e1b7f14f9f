"""Read the label volumes of a case: known labels, prediction and reference on one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from kidseg.cases.segments import read_label_file, uncropped
from kidseg.errors import Finding, InputError
from kidseg.evaluate.pairs import Pair
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions
from kidseg.io.structures import Annotation
from kidseg.labels import LabelSchema, Meaning

__all__ = ["KnownLabels", "LabelPair", "read_pair"]

# Grids that differ by more are different grids.
_SAME_GRID_MM = 1e-3
# Findings that matter for images and for training only.
_HARMLESS = {"float-labels", "anisotropic-voxels", "thick-slices"}


@dataclass(frozen=True, kw_only=True)
class KnownLabels:
    """The labels that may occur.

    Attributes:
        names: {number: name}, without background.
        meanings: {number: what it means}.
        ignore_label: of the reference only.
        by_number: the references belong to a data set, which defines their numbers.
        stated: {file: the labels that the description of its folder states}.
    """

    names: Mapping[int, str]
    meanings: Mapping[int, Meaning | None]
    ignore_label: int | None = None
    by_number: bool = False
    stated: Mapping[Path, LabelSchema] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LabelPair:
    """The labels of a case: (slices, rows, columns) uint8 in canonical order, on one grid.

    `predicted` is None if there is no prediction.
    """

    reference: np.ndarray
    predicted: np.ndarray | None
    grid: Grid
    findings: tuple[Finding, ...]


@dataclass(frozen=True, kw_only=True)
class _Labels:
    path: Path
    data: np.ndarray
    grid: Grid
    is_segmentation: bool
    findings: tuple[Finding, ...]


def read_pair(case: Pair, known: KnownLabels) -> LabelPair:
    """Read the labels of a case.

    A segmentation of 3D Slicer may be cropped to its segments; the rest of the scan is background.

    Raises:
        InputError: "grid-mismatch"; "duplicate-case": several files of the case differ; those of
            `read_label_file`.
    """
    reference = _read((case.reference, *case.reference_copies), known, case.annotations)
    if case.predicted is None:
        return LabelPair(
            reference=reference.data,
            predicted=None,
            grid=reference.grid,
            findings=reference.findings,
        )
    of_prediction = replace(known, ignore_label=None, by_number=False)
    predicted = _read((case.predicted, *case.copies), of_prediction, case.annotations)
    findings = reference.findings + predicted.findings
    predicted, reference = _within(predicted, reference), _within(reference, predicted)
    _check_same_grid(predicted, reference)
    return LabelPair(
        reference=reference.data,
        predicted=predicted.data,
        grid=reference.grid,
        findings=findings,
    )


def _read(
    paths: Sequence[Path], known: KnownLabels, annotations: Mapping[Path, Annotation]
) -> _Labels:
    """Read a label volume, of which the further files are copies in other formats."""
    first, *others = (_read_file(path, known, annotations.get(path)) for path in paths)
    for other in others:
        if not (
            other.grid.same_as(first.grid, _SAME_GRID_MM) and np.array_equal(other.data, first.data)
        ):
            raise InputError(
                f"its labels differ from those of {first.path}, which belong to the same case",
                path=other.path,
                code="duplicate-case",
                next_step="Remove or rename one.",
            )
    return first


def _read_file(path: Path, known: KnownLabels, annotation: Annotation | None) -> _Labels:
    files = None if annotation is None else annotation.images
    file = read_label_file(
        path,
        known.names,
        known.meanings,
        ignore_label=known.ignore_label,
        by_number=known.by_number,
        stated=known.stated.get(path),
        options=ReadOptions(files=files, annotation=annotation),
    )
    volume = file.labels.volume
    return _Labels(
        path=path,
        data=volume.data[0].numpy(),
        grid=volume.grid,
        is_segmentation=file.is_segmentation,
        findings=tuple(f for f in file.findings if f.code not in _HARMLESS),
    )


def _within(labels: _Labels, whole: _Labels) -> _Labels:
    """A cropped segmentation on the grid of the other labels; any other labels unchanged."""
    if not labels.is_segmentation or labels.grid.same_as(whole.grid, _SAME_GRID_MM):
        return labels
    small = Volume(torch.from_numpy(labels.data)[None], labels.grid)
    if (placed := uncropped(small, whole.grid, _SAME_GRID_MM)) is None:
        return labels
    return replace(labels, data=placed.data[0].numpy(), grid=whole.grid)


def _check_same_grid(predicted: _Labels, reference: _Labels) -> None:
    found, wanted = predicted.grid, reference.grid
    if found.same_as(wanted, _SAME_GRID_MM):
        return
    raise InputError(
        f"its grid is not that of the reference {reference.path}: {found.difference(wanted)}",
        path=predicted.path,
        code="grid-mismatch",
        next_step="Save the prediction on the grid of its scan.",
    )
