"""Rare kidneys to flag: truncated by the field of view, missing, single or fused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kidseg.errors import Finding
from kidseg.geometry import Volume
from kidseg.labels import LabelSchema

__all__ = [
    "FRAGMENT",
    "body_midline",
    "border_faces",
    "findings_on",
    "is_fused",
    "kidney_findings",
    "kidney_labels",
    "kidney_slices",
    "numbered_components",
]

FRAGMENT = 0.05
"""A component with less than this fraction of the largest one's parenchyma is a fragment, not a
second kidney. Even a compressed or dysplastic kidney is larger."""

# Fused kidneys have at least this fraction of the parenchyma on each side of the body's midline. A
# single kidney that a tumour displaces across the midline has less.
_EACH_SIDE = 0.2
_BODY_HU = -300.0
# Canonical order: slices ascend, rows run to posterior, columns to the patient's left.
_FACES = (("lower", "upper"), ("front", "back"), ("right", "left"))


def kidney_labels(schema: LabelSchema) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The labels of renal parenchyma and those of renal masses, by `LabelSchema.meaning`.

    A schema without a kidney has no renal mass either.
    """
    kidney = schema.ids_of("kidney")
    return kidney, schema.ids_of("tumour", "cyst") if kidney else ()


def body_midline(image: Volume, slices: tuple[int, int]) -> float:
    """Column (fractional) of the body's centre in a range of slices of a canonical CT.

    The centre of the grid if there is no body (no voxel above -300 HU).
    """
    per_column = np.zeros(image.grid.shape[2], dtype=np.int64)
    for part in image.data[0, slices[0] : slices[1]]:
        per_column += np.count_nonzero(part.numpy() > _BODY_HU, axis=0)
    columns = np.arange(len(per_column))
    total = int(per_column.sum())
    return float(per_column @ columns) / total if total else (len(columns) - 1) / 2


def kidney_slices(labels: Volume, schema: LabelSchema) -> tuple[int, int] | None:
    """First and end (exclusive) slice with kidney or renal mass; None if there is none."""
    kidney, mass = kidney_labels(schema)
    box = _box(np.isin(labels.data[0].numpy(), (*kidney, *mass))) if kidney else None
    return None if box is None else (box[0].start, box[0].stop)


def kidney_findings(
    labels: Volume, schema: LabelSchema, path: Path, midline: float
) -> tuple[Finding, ...]:
    """Findings about the kidneys of one case; none if the schema has no kidney.

    "kidney-cut": a kidney or renal mass touches the border of the image, so its volume is partial.
    "no-kidney", "one-kidney", "horseshoe-kidney" (both kidneys form one component), "tumour-apart".

    Args:
        labels: (1, slices, rows, columns), uint8, canonical.
        schema: of the labels.
        path: of the label file.
        midline: column of the body's centre in the slices with kidney.
    """
    kidney, mass = kidney_labels(schema)
    if not kidney:
        return ()
    data = labels.data[0].numpy()
    box = _box(np.isin(data, (*kidney, *mass)))
    if box is None:
        return findings_on([], (), path)
    cropped = data[box]
    is_kidney, is_mass = np.isin(cropped, kidney), np.isin(cropped, mass)
    numbered, count = numbered_components(is_kidney | is_mass)
    profiles = _profiles(is_kidney, numbered, count)
    columns = np.arange(cropped.shape[2]) + box[2].start
    shares = [float(p[columns < midline].sum() / p.sum()) for p in profiles]
    found = findings_on(shares, border_faces(box, data.shape), path)
    if shares and (apart := _apart(is_kidney, is_mass, numbered, count)):
        voxel_ml = float(labels.grid.voxel_ml)
        cause = f"a tumour or cyst of {apart * voxel_ml:.3g} ml touches no kidney"
        step = "Check that the numbers of kidney and tumour are not exchanged."
        found += (Finding(code="tumour-apart", path=str(path), cause=cause, next_step=step),)
    return found


def findings_on(
    shares: Sequence[float], faces: Sequence[str], path: str | Path
) -> tuple[Finding, ...]:
    """The findings of `kidney_findings`.

    Args:
        shares: of each kidney, the fraction of the parenchyma that is right of the midline.
        faces: of the image that kidneys or renal masses touch.
        path: of the labels or the scan.
    """
    found: list[Finding] = []

    def note(code: str, cause: str) -> None:
        found.append(Finding(code=code, path=str(path), cause=cause))

    if faces:
        *first, last = faces
        named = f"{', '.join(first)} and {last} borders" if first else f"{last} border"
        note(
            "kidney-cut",
            f"a kidney or mass touches the {named} of the image: its volume is partial",
        )
    if not shares:
        note("no-kidney", "no kidney is labelled")
    elif len(shares) == 1 and is_fused(shares[0]):
        cause = "both kidneys form one component: a horseshoe kidney, or connected by a mass"
        note("horseshoe-kidney", cause)
    elif len(shares) == 1:
        note("one-kidney", "only one kidney is labelled")
    return tuple(found)


def is_fused(right: float) -> bool:
    """Is a component both kidneys? By the fraction of parenchyma that is right of the midline."""
    return _EACH_SIDE <= right <= 1 - _EACH_SIDE


def border_faces(box: Sequence[slice], shape: Sequence[int]) -> tuple[str, ...]:
    """The faces of a canonical image that a bounding box touches: "lower", "upper", "front", ..."""
    return tuple(
        name
        for extent, count, names in zip(box, shape, _FACES, strict=True)
        for name, touched in zip(names, (extent.start == 0, extent.stop == count), strict=True)
        if touched
    )


def numbered_components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Components of (slices, rows, columns) bool, numbered from 1; 0 is outside. And their number.

    Voxels that share a corner are connected.
    """
    from scipy import ndimage

    numbered, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    return numbered, int(count)


def _apart(kidney: np.ndarray, mass: np.ndarray, numbered: np.ndarray, count: int) -> int:
    """Voxels of the largest component without kidney, if it is no fragment of all masses."""
    masses = np.bincount(numbered[mass], minlength=count + 1)
    masses[np.unique(numbered[kidney])] = 0
    largest = int(masses.max())
    return largest if largest > FRAGMENT * int(mass.sum()) else 0


def _profiles(kidney: np.ndarray, numbered: np.ndarray, count: int) -> list[np.ndarray]:
    """Column profiles of the parenchyma in each connected component, without fragments."""
    columns = kidney.shape[2]
    _, _, column = np.nonzero(kidney)
    keys = numbered[kidney].astype(np.int64) * columns + column
    profiles = np.bincount(keys, minlength=(count + 1) * columns).reshape(count + 1, columns)
    sizes = profiles.sum(1)
    return [p for p, size in zip(profiles, sizes, strict=True) if size > FRAGMENT * sizes.max()]


def _box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Bounding box of the true voxels of (slices, rows, columns); None if there are none."""
    extents = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        hit = np.flatnonzero(mask.any(axis=axes))
        if not len(hit):
            return None
        extents.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return extents[0], extents[1], extents[2]
