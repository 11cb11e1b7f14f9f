"""Volumes of the right and the left kidney and of their tumours.

A kidney is a connected component of renal parenchyma and mass. It lies on the side of the body's
midline on which its parenchyma lies: a tumour may reach far across the midline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from kidseg.body import Moments
from kidseg.check.anomalies import (
    FRAGMENT,
    border_faces,
    findings_on,
    is_fused,
    kidney_labels,
    numbered_components,
)
from kidseg.errors import Finding
from kidseg.geometry import Grid, Volume
from kidseg.io.orientation import canonical
from kidseg.labels import LabelSchema
from kidseg.meaning import Meaning

__all__ = ["Midline", "Side", "Sides", "measure_sides"]

_RENAL: tuple[Meaning, ...] = ("kidney", "tumour", "cyst")


@dataclass(frozen=True, eq=False)
class Midline:
    """Where the middle of the body is, from right to left, along the patient.

    Attributes:
        z_mm: (n,) ascending positions towards the head, RAS+.
        x_mm: (n,) position of the middle there; the patient's right is at greater x.
        is_body: measured from the body; otherwise it is the middle of the image.
    """

    z_mm: np.ndarray
    x_mm: np.ndarray
    is_body: bool

    @classmethod
    def of(cls, grid: Grid, body: Moments | None = None) -> Midline:
        """The centre of the body in each slice; that of the image without any body.

        Args:
            grid: volumetric, canonical.
            body: moments of its slices; see `kidseg.body.moments`.
        """
        slices, rows, columns = grid.shape
        index = torch.tensor([[float(k), (rows - 1) / 2, (columns - 1) / 2] for k in range(slices)])
        is_body = body is not None and bool(body.radii_mm.isfinite().all(-1).any())
        if is_body:
            assert body is not None
            known = body.radii_mm.isfinite().all(-1)
            shift = body.centre_mm.flip(-1).to(index) / grid.spacing_mm[1:].to(index)
            index[:, 1:] += shift
            index = index[known.cpu()]
        mm = grid.mm(index.double()).numpy()
        order = np.argsort(mm[:, 2], kind="stable")
        return cls(mm[order, 2], mm[order, 0], is_body)

    def right_of(self, mm: np.ndarray) -> np.ndarray:
        """(...) distances in mm of positions (..., 3) from the midline, positive to the right."""
        return np.asarray(mm[..., 0] - np.interp(mm[..., 2], self.z_mm, self.x_mm))


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
            "kidneys-on-one-side"; "kidneys-in-pieces"; "side-by-image": no body was found.
    """

    right: Side
    left: Side
    findings: tuple[Finding, ...]


def measure_sides(
    labels: Volume, schema: LabelSchema, midline: Midline, path: str | Path = "labels"
) -> Sides | None:
    """Volumes of kidneys and renal masses by side.

    A component with parenchyma on both sides (a horseshoe or crossed kidney, or two that a mass
    connects) is divided at the midline.

    Args:
        labels: (1, slices, rows, columns) uint8, volumetric, in any voxel order.
        schema: of the labels.
        midline: of the body, in the same patient space.
        path: of the labels or the scan, for findings.

    Returns:
        None if the schema has no kidney.
    """
    kidney, mass = kidney_labels(schema)
    if not kidney:
        return None
    labels = canonical(labels)
    values = labels.data[0].numpy()
    renal = np.zeros(256, dtype=bool)
    renal[[*kidney, *mass]] = True
    index = np.argwhere(renal[values])
    if not len(index):
        sides = (_side(schema, values[:0], index, labels.grid),) * 2
        return Sides(right=sides[0], left=sides[1], findings=findings_on([], (), path))
    low, high = index.min(0), index.max(0) + 1
    box = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    numbered, _ = numbered_components(renal[values[box]])
    component = numbered[tuple((index - low).T)]
    found = values[tuple(index.T)]
    to_right = midline.right_of(labels.grid.mm(index.astype(np.float64)).numpy())
    is_right, shares = _assigned(component, np.isin(found, kidney), to_right)
    right, left = (
        _side(schema, found[chosen], index[chosen], labels.grid) for chosen in (is_right, ~is_right)
    )
    findings = [
        replace(finding, next_step="Their volumes are divided at the midline; check the labels.")
        if finding.code == "horseshoe-kidney"
        else finding
        for finding in findings_on(shares, border_faces(box, values.shape), path)
    ]
    if len(shares) > 1:
        findings += _unusual(shares, path)
    if not midline.is_body:
        findings.append(_by_image(path))
    return Sides(right=right, left=left, findings=tuple(findings))


def _assigned(
    component: np.ndarray, is_kidney: np.ndarray, to_right: np.ndarray
) -> tuple[np.ndarray, list[float]]:
    """Assign voxels to sides.

    Args:
        component: (voxels,) number of the component, from 1.
        is_kidney: (voxels,) parenchyma, not mass.
        to_right: (voxels,) distance to the right of the midline.

    Returns:
        (voxels,) bool, True for the right side; and, of each kidney without fragments, the fraction
        of the parenchyma that is right of the midline.
    """
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
    is_right = np.where(fused[component], to_right > 0, right[component])
    return is_right, [float(share) for share in shares[is_main]]


def _side(schema: LabelSchema, values: np.ndarray, index: np.ndarray, grid: Grid) -> Side:
    """One side, of the labels and (voxels, 3) indices of its voxels."""
    voxel_ml = float(grid.voxel_ml)
    volumes: dict[str, float] = {
        meaning: round(int(np.isin(values, ids).sum()) * voxel_ml, 4)
        for meaning in _RENAL
        if (ids := schema.ids_of(meaning))
    }
    if not len(index):
        return Side(volumes_ml=volumes, borders=())
    extent = [slice(int(a), int(b) + 1) for a, b in zip(index.min(0), index.max(0), strict=True)]
    return Side(volumes_ml=volumes, borders=border_faces(extent, grid.shape))


def _unusual(shares: Sequence[float], path: str | Path) -> list[Finding]:
    """Findings about several kidneys that are not one on each side."""
    if not any(map(is_fused, shares)) and len({share > 0.5 for share in shares}) == 1:
        side = "right" if shares[0] > 0.5 else "left"
        code = "kidneys-on-one-side"
        cause = f"{len(shares)} separate kidneys lie on the {side} side: crossed, or in pieces"
    elif len(shares) > 2:
        code, cause = "kidneys-in-pieces", f"the kidneys form {len(shares)} separate pieces"
    else:
        return []
    step = "Check the labels, and the position of the patient."
    return [Finding(code=code, path=str(path), cause=cause, next_step=step)]


def _by_image(path: str | Path) -> Finding:
    return Finding(
        code="side-by-image",
        path=str(path),
        cause="right and left were told apart by the middle of the image, not of the body",
        next_step="Check the sides.",
    )
