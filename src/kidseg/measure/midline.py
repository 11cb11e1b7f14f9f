"""The middle of the body from right to left: of its outline, or an estimate without a scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from kidseg.body import Moments
from kidseg.check.anomalies import FRAGMENT, numbered_components
from kidseg.geometry import Grid, Volume
from kidseg.io.orientation import canonical
from kidseg.labels import LabelSchema
from kidseg.meaning import RENAL

__all__ = ["Basis", "Midline", "estimated_midline", "midline_of", "side_of_component"]

Basis = Literal["body", "kidneys", "image", "origin"]
"""By what right and left are told apart: the middle of the body, the point between two kidneys, the
middle of the image, or the origin of patient space."""


# A component lies on a side if this share of it does; otherwise on both, as a horseshoe kidney or
# kidneys that a tumour connects. A convention.
_SIDE_SHARE = 0.8


def side_of_component(is_right: np.ndarray) -> Literal["right", "left", "both sides"]:
    """The side of a component, from those of its voxels, (voxels,) bool, at least one."""
    right = float(is_right.mean())
    if right >= _SIDE_SHARE:
        return "right"
    return "left" if 1 - right >= _SIDE_SHARE else "both sides"


@dataclass(frozen=True, eq=False)
class Midline:
    """Where the middle of the body is, from right to left, along the patient.

    Attributes:
        z_mm: (n,) ascending positions towards the head, RAS+.
        x_mm: (n,) position of the middle there; the patient's right is at greater x.
        basis: what it was found from; all but "body" are estimates.
    """

    z_mm: np.ndarray
    x_mm: np.ndarray
    basis: Basis

    @property
    def is_body(self) -> bool:
        """Whether it was measured from the body."""
        return self.basis == "body"

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
        return cls(mm[order, 2], mm[order, 0], "body" if is_body else "image")

    @classmethod
    def at(cls, x_mm: float, basis: Basis) -> Midline:
        """The same position along the whole patient."""
        return cls(np.zeros(1), np.array([x_mm]), basis)

    def right_of(self, mm: np.ndarray) -> np.ndarray:
        """(...) distances in mm of positions (..., 3) from the midline, positive to the right."""
        return np.asarray(mm[..., 0] - np.interp(mm[..., 2], self.z_mm, self.x_mm))


def midline_of(grid: Grid, body: Moments | None, labels: Volume, schema: LabelSchema) -> Midline:
    """The midline of the body in a scan; an estimate from the labels if no body is known.

    Args:
        grid: volumetric, canonical.
        body: moments of its slices; None: not measured, as in MR.
        labels: (1, slices, rows, columns) uint8 of the whole scan, in any voxel order.
        schema: of the labels.
    """
    found = Midline.of(grid, body)
    return found if found.is_body else estimated_midline(labels, schema, is_cropped=False)


def estimated_midline(labels: Volume, schema: LabelSchema, *, is_cropped: bool) -> Midline:
    """The midline without a scan.

    Between the two largest kidneys, if they lie beside one another. Else the middle of the image;
    or the origin of patient space, where scanners centre the patient, if the labels are cropped.

    Args:
        labels: (1, slices, rows, columns) uint8, volumetric.
        schema: of the labels.
        is_cropped: whether the volume may be cropped to its labels.
    """
    labels = canonical(labels)
    between = _between_kidneys(labels, schema)
    if between is not None:
        return Midline.at(between, "kidneys")
    return Midline.at(0.0, "origin") if is_cropped else Midline.of(labels.grid)


def _between_kidneys(labels: Volume, schema: LabelSchema) -> float | None:
    """The x in mm between the two largest kidneys; None if they are not beside one another.

    A kidney is a component of parenchyma and masses: one in pieces around a tumour is one kidney.
    """
    values = labels.data[0].numpy()
    kidney = np.isin(values, schema.ids_of("kidney"))
    numbered, count = numbered_components(np.isin(values, schema.ids_of(*RENAL)))
    sizes = np.bincount(numbered[kidney], minlength=count + 1)[1:]
    order = np.argsort(sizes)[::-1]
    if len(order) < 2 or sizes[order[1]] <= FRAGMENT * sizes[order[0]]:
        return None
    ranges = []
    for number in order[:2] + 1:
        index = np.argwhere((numbered == number) & kidney).astype(np.float64)
        ranges.append(np.percentile(labels.grid.mm(index).numpy()[:, 0], [5, 95]))
    left, right = sorted(ranges, key=lambda ends: float(ends.sum()))
    return float(left[1] + right[0]) / 2 if left[1] < right[0] else None
