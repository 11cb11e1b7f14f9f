"""Volumes of the right and the left kidney and of their tumours.

A kidney is a connected component of renal parenchyma and mass. It lies on the side of the body's
midline on which its parenchyma lies: a tumour may reach far across the midline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kidseg.check.anomalies import (
    FRAGMENT,
    border_faces,
    findings_on,
    is_fused,
    numbered_components,
)
from kidseg.errors import Finding
from kidseg.geometry import Grid, Volume
from kidseg.io.orientation import canonical
from kidseg.labels import LabelSchema
from kidseg.meaning import RENAL, side_of
from kidseg.measure.midline import Basis, Midline

__all__ = [
    "Side",
    "SidedVoxels",
    "Sides",
    "assign_sides",
    "measure_sides",
]


_INCIDENTAL = 0.1
"""Share of a mass's contact that the kidney of the other side may have."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of the patient.

    Attributes:
        volumes_ml: of the parenchyma ("kidney") and of masses ("tumour", "cyst") on this side; only
            the structures that the labels distinguish. 0.0 if there is nothing.
        borders: of the image that they touch ("lower", "left", ...), so that volumes are partial.
    """

    volumes_ml: Mapping[str, float]
    borders: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Both sides of the patient.

    Attributes:
        right: the patient's right side.
        left: the patient's left side.
        findings: "kidney-cut", "no-kidney", "one-kidney", "horseshoe-kidney" as in `kidseg check`;
            "kidneys-on-one-side"; "kidneys-in-pieces"; "side-by-image", "side-by-kidneys",
            "side-by-origin": no body was found; "side-contradicted", "mass-on-both-sides".
    """

    right: Side
    left: Side
    findings: tuple[Finding, ...]


@dataclass(frozen=True, eq=False)
class SidedVoxels:
    """The voxels of kidneys and renal masses, and the side of each.

    Attributes:
        grid: of the indices; canonical.
        index: (voxels, 3) slice, row, column.
        label: (voxels,) uint8.
        is_right: (voxels,) bool.
        shares: of each kidney without fragments, the fraction of the parenchyma on the right of the
            midline.
        findings: "side-contradicted": the name of a label states the other side;
            "mass-on-both-sides".
    """

    grid: Grid
    index: np.ndarray
    label: np.ndarray
    is_right: np.ndarray
    shares: tuple[float, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Bounding box of at least one voxel."""
        low, high = self.index.min(0), self.index.max(0) + 1
        return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])


def measure_sides(
    labels: Volume, schema: LabelSchema, midline: Midline, path: str | Path = "labels"
) -> Sides | None:
    """Volumes of kidneys and renal masses by side; see `assign_sides`.

    Args:
        labels: (1, slices, rows, columns) uint8, volumetric, in any voxel order.
        schema: of the labels.
        midline: of the body, in the same patient space.
        path: of the labels or the scan, for findings.

    Returns:
        None if the schema has no kidney.
    """
    if not schema.ids_of("kidney"):
        return None
    sided = assign_sides(labels, schema, midline, path)
    right, left = (
        _side(schema, sided.label[chosen], sided.index[chosen], sided.grid)
        for chosen in (sided.is_right, ~sided.is_right)
    )
    if not len(sided.index):
        return Sides(right=right, left=left, findings=findings_on([], (), path))
    return Sides(right=right, left=left, findings=side_findings(sided, midline, path))


def side_findings(sided: SidedVoxels, midline: Midline, path: str | Path) -> tuple[Finding, ...]:
    """The findings of `Sides` about at least one voxel."""
    findings = [
        replace(finding, next_step="Their volumes are divided at the midline; check the labels.")
        if finding.code == "horseshoe-kidney"
        else finding
        for finding in findings_on(sided.shares, border_faces(sided.box, sided.grid.shape), path)
    ]
    if len(sided.shares) > 1:
        findings += _unusual(sided.shares, path)
    if not midline.is_body:
        findings.append(_estimated(midline.basis, path))
    return (*findings, *sided.findings)


def assign_sides(
    labels: Volume, schema: LabelSchema, midline: Midline, path: str | Path = "labels"
) -> SidedVoxels:
    """Assign each voxel of a kidney or a renal mass to a side.

    A component with parenchyma on both sides is divided: two kidneys that a mass connects into
    both, with the mass on the side that it touches most; a horseshoe or crossed kidney by the names
    of its labels, if they state a side, or else at the midline. If they all state the same side, it
    is one kidney, and lies there. Where the midline is not that of
    the body, names that state a side take precedence, too.

    Args:
        labels: (1, slices, rows, columns) uint8, volumetric, in any voxel order.
        schema: of the labels.
        midline: of the body, in the same patient space.
        path: of the labels, for findings.
    """
    kidney = schema.ids_of("kidney")
    labels = canonical(labels)
    values = labels.data[0].numpy()
    renal = np.zeros(256, dtype=bool)
    renal[list(schema.ids_of(*RENAL))] = True
    index = np.argwhere(renal[values])
    found = values[tuple(index.T)]
    if not len(index):
        return SidedVoxels(labels.grid, index, found, np.zeros(0, dtype=bool))
    low, high = index.min(0), index.max(0) + 1
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    component = numbered_components(renal[values[box]])[0]
    to_right = midline.right_of(labels.grid.mm(index.astype(np.float64)).numpy())
    stated = _stated_sides(schema)[found]
    # Names decide where the midline is a guess, and where it would cut through a kidney.
    by_name = np.where(stated != 0, stated.astype(np.float64), to_right)
    voxels = _Voxels(
        where=tuple((index - low).T),
        shape=component.shape,
        component=component[tuple((index - low).T)],
        is_kidney=np.isin(found, kidney),
        to_right=to_right if midline.is_body else by_name,
    )
    is_right, shares, fused = _assigned(voxels)
    findings: tuple[Finding, ...] = ()
    if fused.any():
        voxels = replace(voxels, to_right=np.where(fused, by_name, voxels.to_right))
        is_right, shares, fused = _assigned(voxels)
    if fused.any():
        divided, touching = _divided(voxels, fused)
        is_right = np.where(fused, divided, is_right)
        findings = _of_both(touching, path)
    findings = (*findings, *_contradicted(schema, found, is_right, path))
    return SidedVoxels(labels.grid, index, found, is_right, tuple(shares), findings)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Voxels:
    """Voxels of kidneys and masses.

    Attributes:
        where: index of each in the box around all.
        shape: of the box.
        component: (voxels,) number of the component, from 1.
        is_kidney: (voxels,) parenchyma, not mass.
        to_right: (voxels,) positive on the right.
    """

    where: tuple[np.ndarray, ...]
    shape: tuple[int, ...]
    component: np.ndarray
    is_kidney: np.ndarray
    to_right: np.ndarray

    def boxed(self, values: np.ndarray) -> np.ndarray:
        """Values of the voxels in the box, 0 elsewhere."""
        out = np.zeros(self.shape, dtype=values.dtype)
        out[self.where] = values
        return out


def _assigned(voxels: _Voxels) -> tuple[np.ndarray, list[float], np.ndarray]:
    """Assign voxels to sides, component by component.

    Returns:
        (voxels,) bool, True for the right side; of each kidney without fragments, the fraction of
        the parenchyma that is on the right; and (voxels,) bool, of components on both sides.
    """
    component, is_kidney, to_right = voxels.component, voxels.is_kidney, voxels.to_right
    count = int(component.max()) + 1
    sizes = np.bincount(component[is_kidney], minlength=count)
    on_right = np.bincount(component[is_kidney & (to_right > 0)], minlength=count)
    shares = on_right / np.maximum(sizes, 1)
    # A mass apart from any parenchyma lies on the side of its own centre.
    middle = np.bincount(component, weights=to_right, minlength=count)
    parenchyma = np.bincount(component[is_kidney], weights=to_right[is_kidney], minlength=count)
    right = np.where(sizes > 0, parenchyma, middle) > 0
    is_main = sizes > FRAGMENT * max(1, sizes.max())
    fused = np.array([main and is_fused(s) for main, s in zip(is_main, shares, strict=True)])
    right = np.where(is_main & ~fused, shares > 0.5, right)
    return right[component], [float(share) for share in shares[is_main]], fused[component]


def _divided(voxels: _Voxels, fused: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Divide components on both sides.

    Pieces of parenchyma that a mass connects have a side each; a horseshoe kidney is divided. A
    mass belongs to the side whose parenchyma it touches most, or else to that of its own centre.

    Args:
        voxels: of all components.
        fused: (voxels,) bool, to divide.

    Returns:
        (voxels,) bool: is a voxel on the right? And of each mass that touches parenchyma of both
        sides, the share of that on the right, the largest mass first.
    """
    to_right = voxels.boxed(voxels.to_right)
    parenchyma = voxels.boxed(fused & voxels.is_kidney)
    pieces, count = numbered_components(parenchyma)
    is_right = to_right > 0
    sizes = np.maximum(np.bincount(pieces.ravel(), minlength=count + 1), 1)
    share = np.bincount(pieces[is_right], minlength=count + 1) / sizes
    whole = np.array([not is_fused(s) for s in share])
    is_right = np.where(whole[pieces], share[pieces] > 0.5, is_right)
    masses, count = numbered_components(voxels.boxed(fused & ~voxels.is_kidney))
    side = np.where(parenchyma, np.where(is_right, 1.0, -1.0), 0.0)
    on_right, on_left = np.zeros(count + 1), np.zeros(count + 1)
    for axis in range(3):
        for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            of, at = [slice(None)] * 3, [slice(None)] * 3
            of[axis], at[axis] = here, there
            of_mass, beside = masses[tuple(of)].ravel(), side[tuple(at)].ravel()
            on_right += np.bincount(of_mass[beside > 0], minlength=count + 1)
            on_left += np.bincount(of_mass[beside < 0], minlength=count + 1)
    touched = on_right - on_left
    own = np.bincount(masses.ravel(), weights=to_right.ravel(), minlength=count + 1)
    is_right = np.where(masses > 0, np.where(touched != 0, touched, own)[masses] > 0, is_right)
    sizes = np.bincount(masses.ravel(), minlength=count + 1)
    both = [
        float(on_right[k] / (on_right[k] + on_left[k]))
        for k in np.argsort(-sizes[1:], kind="stable") + 1
        if min(on_right[k], on_left[k]) > _INCIDENTAL * (on_right[k] + on_left[k])
    ]
    return np.asarray(is_right[voxels.where]), both


def _of_both(on_right: Sequence[float], path: str | Path) -> tuple[Finding, ...]:
    """A finding if masses touch both kidneys, the largest first."""
    if not on_right:
        return ()
    side, share = ("right", on_right[0]) if on_right[0] > 0.5 else ("left", 1.0 - on_right[0])
    what = "a mass touches" if len(on_right) == 1 else f"{len(on_right)} masses touch"
    largest = "" if len(on_right) == 1 else " of the largest"
    counted = f"it was counted on the {side}" if len(on_right) == 1 else "each was counted on one"
    cause = f"{what} the kidneys of both sides, {share:.0%} of the contact{largest} on the {side};"
    return (
        Finding(
            code="mass-on-both-sides",
            path=str(path),
            cause=f"{cause} {counted} alone",
            next_step="Check in the images from which kidney it grows: numbers by side, and"
            " criteria of unilateral tumours, follow from it.",
        ),
    )


def _stated_sides(schema: LabelSchema) -> np.ndarray:
    """(256,) int8: the side in the name of each label: 1 right, -1 left, 0 none."""
    stated = np.zeros(256, dtype=np.int8)
    for number, name in schema.names.items():
        stated[number] = {"right": 1, "left": -1, None: 0}[side_of(name)]
    return stated


def _contradicted(
    schema: LabelSchema, found: np.ndarray, is_right: np.ndarray, path: str | Path
) -> tuple[Finding, ...]:
    """Labels whose names state another side than that of most of their voxels."""
    wrong = []
    for number, name in schema.names.items():
        side, own = side_of(name), is_right[found == number]
        if side is not None and len(own) and (own.mean() > 0.5) != (side == "right"):
            wrong.append(f"'{name}' lies on the {'left' if side == 'right' else 'right'}")
    if not wrong:
        return ()
    return (
        Finding(
            code="side-contradicted",
            path=str(path),
            cause=f"names of labels and positions disagree: {', '.join(wrong)}",
            next_step="Check whether the image is flipped, or the labels are exchanged.",
        ),
    )


def _side(schema: LabelSchema, values: np.ndarray, index: np.ndarray, grid: Grid) -> Side:
    """One side, of the labels and (voxels, 3) indices of its voxels."""
    voxel_ml = float(grid.voxel_ml)
    volumes: dict[str, float] = {
        meaning: round(int(np.isin(values, ids).sum()) * voxel_ml, 4)
        for meaning in RENAL
        if (ids := schema.ids_of(meaning))
    }
    if not len(index):
        return Side(volumes_ml=volumes, borders=())
    extent = [slice(int(a), int(b) + 1) for a, b in zip(index.min(0), index.max(0), strict=True)]
    return Side(volumes_ml=volumes, borders=border_faces(extent, grid.shape))


def _unusual(shares: Sequence[float], path: str | Path) -> list[Finding]:
    """Findings about several kidneys that are not one on each side."""
    step = "Check the labels, and the position of the patient."
    if not any(map(is_fused, shares)) and len({share > 0.5 for share in shares}) == 1:
        side = "right" if shares[0] > 0.5 else "left"
        cause = f"{len(shares)} separate kidneys lie on the {side} side: crossed, or in pieces"
        code = "kidneys-on-one-side"
        return [Finding(code=code, path=str(path), cause=cause, next_step=step)]
    if len(shares) > 2:
        cause = f"the kidneys form {len(shares)} separate pieces"
        return [Finding(code="kidneys-in-pieces", path=str(path), cause=cause, next_step=step)]
    return []


def _estimated(basis: Basis, path: str | Path) -> Finding:
    """The finding that the midline is not that of the body."""
    codes = {"kidneys": "side-by-kidneys", "image": "side-by-image", "origin": "side-by-origin"}
    how = {
        "kidneys": "the middle between the kidneys, as the body is not known",
        "image": "the middle of the image, not of the body",
        "origin": "the origin of patient space, not the middle of the body",
    }
    cause = f"right and left were told apart by {how[basis]}"
    return Finding(code=codes[basis], path=str(path), cause=cause, next_step="Check the sides.")
