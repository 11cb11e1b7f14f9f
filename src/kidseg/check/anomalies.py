"""Rare kidneys to flag: truncated by the field of view, missing, single or fused."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kidseg.errors import Finding
from kidseg.geometry import Volume
from kidseg.labels import LabelSchema

__all__ = ["body_midline", "kidney_findings", "kidney_labels", "kidney_slices"]

# A component smaller than this fraction of the largest is a fragment, not a second kidney. Even a
# compressed or dysplastic kidney is larger.
_FRAGMENT = 0.05
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
    "no-kidney", "one-kidney", "horseshoe-kidney" (both kidneys form one component).

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
    found: list[tuple[str, str]] = []
    box = _box(np.isin(data, (*kidney, *mass)))
    if box is not None:
        found += _cut(box, tuple(data.shape))
        cropped = data[box]
        components = _components(np.isin(cropped, kidney), np.isin(cropped, (*kidney, *mass)))
    else:
        components = []
    if not components:
        found.append(("no-kidney", "no kidney is labelled"))
    elif len(components) == 1:
        assert box is not None
        if _spans(components[0], midline - box[2].start):
            cause = "both kidneys form one component: a horseshoe kidney, or connected by a mass"
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
    faces_named = " and the ".join(faces)
    cause = f"a kidney touches the {faces_named} border of the image: its volume is partial"
    return [("kidney-cut", cause)]


def _components(kidney: np.ndarray, with_mass: np.ndarray) -> list[np.ndarray]:
    """Column profiles of the parenchyma in each connected component, without fragments."""
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
    return bool(_EACH_SIDE <= right <= 1 - _EACH_SIDE)


def _box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Bounding box of the true voxels of (slices, rows, columns); None if there are none."""
    extents = []
    for axes in ((1, 2), (0, 2), (0, 1)):
        hit = np.flatnonzero(mask.any(axis=axes))
        if not len(hit):
            return None
        extents.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return extents[0], extents[1], extents[2]
