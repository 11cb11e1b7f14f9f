"""Kidneys that are cut by the field of view, missing, single or joined: rare, but flagged."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kidseg.errors import Finding
from kidseg.geometry import Volume
from kidseg.labels import LabelSchema

__all__ = ["body_midline", "kidney_findings", "kidney_labels", "kidney_slices"]

# A piece of kidney smaller than this part of the largest is a fragment of it, not a second kidney:
# even a kidney that a tumour has compressed, or a small dysplastic one, keeps more.
_FRAGMENT = 0.05
# A joined kidney has at least this part of its parenchyma on either side of the body's midline; a
# single one that a tumour pushes over the midline has less.
_EITHER_SIDE = 0.2
_BODY_HU = -300.0
# Canonical order: slices go up, rows to the back, columns to the patient's left.
_FACES = (("lower", "upper"), ("front", "back"), ("right", "left"))


def kidney_labels(schema: LabelSchema) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the labels that are renal parenchyma, and of those that are renal masses.

    As `LabelSchema.meaning` understands them. Without a kidney there is no renal mass either.
    """
    kidney = schema.ids_of("kidney")
    return kidney, schema.ids_of("tumour", "cyst") if kidney else ()


def body_midline(image: Volume, slices: tuple[int, int]) -> float:
    """Column (fractional) of the middle of the body in some slices of a canonical CT.

    The middle of the grid where there is no body (nothing above -300 HU).
    """
    per_column = np.zeros(image.grid.shape[2], dtype=np.int64)
    for part in image.data[0, slices[0] : slices[1]]:
        per_column += np.count_nonzero(part.numpy() > _BODY_HU, axis=0)
    columns = np.arange(len(per_column))
    total = int(per_column.sum())
    return float(per_column @ columns) / total if total else (len(columns) - 1) / 2


def kidney_slices(labels: Volume, schema: LabelSchema) -> tuple[int, int] | None:
    """The first slice with kidney or its mass and the one after the last; None if there is none."""
    kidney, mass = kidney_labels(schema)
    box = _box(np.isin(labels.data[0].numpy(), (*kidney, *mass))) if kidney else None
    return None if box is None else (box[0].start, box[0].stop)


def kidney_findings(
    labels: Volume, schema: LabelSchema, path: Path, midline: float
) -> tuple[Finding, ...]:
    """Findings on the kidneys of one case; none if the schema has no kidney.

    "kidney-cut": a kidney or its mass reaches the border of the image, so its volume is partial.
    "no-kidney", "one-kidney", "horseshoe-kidney" (both kidneys in one piece).

    Args:
        labels: (1, slices, rows, columns), uint8, canonical.
        schema: of the labels.
        path: of the label file.
        midline: column of the body's middle, in the slices with kidney.
    """
    kidney, mass = kidney_labels(schema)
    if not kidney:
        return ()
    data = labels.data[0].numpy()
    found: list[tuple[str, str]] = []
    box = _box(np.isin(data, (*kidney, *mass)))
    if box is not None:
        found += _cut(box, tuple(data.shape))
        cropped = data[box]
        pieces = _pieces(np.isin(cropped, kidney), np.isin(cropped, (*kidney, *mass)))
    else:
        pieces = []
    if not pieces:
        found.append(("no-kidney", "no kidney is labelled"))
    elif len(pieces) == 1:
        assert box is not None
        if _spans(pieces[0], midline - box[2].start):
            cause = "both kidneys are in one piece: a horseshoe kidney, or a mass joins them"
            found.append(("horseshoe-kidney", cause))
        else:
            found.append(("one-kidney", "only one kidney is labelled"))
    return tuple(Finding(code=code, path=str(path), cause=cause) for code, cause in found)


def _cut(box: tuple[slice, slice, slice], shape: tuple[int, ...]) -> list[tuple[str, str]]:
    faces = [
        name
        for extent, count, names in zip(box, shape, _FACES, strict=True)
        for name, touched in zip(names, (extent.start == 0, extent.stop == count), strict=True)
        if touched
    ]
    if not faces:
        return []
    cause = f"a kidney reaches the {' and the '.join(faces)} border of the image: its volume is "
    return [("kidney-cut", cause + "partial")]


def _pieces(kidney: np.ndarray, with_mass: np.ndarray) -> list[np.ndarray]:
    """Column profiles of the parenchyma in each connected piece, without fragments."""
    from scipy import ndimage

    numbered, count = ndimage.label(with_mass, structure=np.ones((3, 3, 3)))
    columns = kidney.shape[2]
    _, _, column = np.nonzero(kidney)
    keys = numbered[kidney].astype(np.int64) * columns + column
    profiles = np.bincount(keys, minlength=(count + 1) * columns).reshape(count + 1, columns)
    sizes = profiles.sum(1)
    return [p for p, size in zip(profiles, sizes, strict=True) if size > _FRAGMENT * sizes.max()]


def _spans(profile: np.ndarray, middle: float) -> bool:
    right = profile[np.arange(len(profile)) < middle].sum() / profile.sum()
    return bool(_EITHER_SIDE <= right <= 1 - _EITHER_SIDE)


def _box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The box around the true voxels of (slices, rows, columns); None if there are none."""
    extents = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        hit = np.flatnonzero(mask.any(axis=axes))
        if not len(hit):
            return None
        extents.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return extents[0], extents[1], extents[2]
