"""Devices left by surgery, as solid pieces of a material, and how they are painted.

A piece covers what was painted before: a catheter is plastic, and then a thinner tube of water in
it. Metal and plastic change HU only: a voxel keeps the organ, and the label, of the place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from kidseg.phantom.canvas import Canvas
from kidseg.phantom.shapes import tube

__all__ = ["MATERIALS_HU", "Implant", "ImplantKind", "Piece", "paint_pieces"]

ImplantKind = Literal[
    "cholecystectomy clips",
    "nephrectomy clips",
    "ureteral stent",
    "nephrostomy",
    "port catheter",
    "hip prosthesis",
    "stent graft",
]

MATERIALS_HU: Mapping[str, float] = {
    # Titanium and steel attenuate like some 11,000 and 33,000 HU at 70 keV (NIST XCOM: titanium
    # 0.77 and 0.41, iron 1.21 and 0.60 cm2/g at 60 and 80 keV). Chosen lower: scanners clip their
    # detectors and their HU, and kernels would ring beyond what real scans show.
    "titanium": 2800.0,
    "cobalt chrome": 8000.0,
    "nitinol": 8000.0,
    "polyethylene": -90.0,  # Source: inserts of low-density polyethylene, nominally -100 HU.
    # Plastic with a fifth of barium sulphate, of which little is left in a pixel; chosen.
    "catheter": 2000.0,
    "water": 0.0,
    "thrombus": 38.0,  # in an aneurysm, never enhancing; chosen
}

# Tissue that comes with a device never replaces kidney, its pelvis and sinus, tumour, or cyst.
_KEPT_ORGANS = (22, 23, 24, 25, 26, 27)


@dataclass(frozen=True, kw_only=True)
class Implant:
    """A device: what it is, on which side, and its size.

    size_mm is the outer diameter: of a catheter, of the cup of a hip, of a stent graft's trunk; of
    clips, their length.
    """

    kind: ImplantKind
    size_mm: float
    side: Literal["right", "left"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """A solid tube, or, with two equal points, a ball.

    Attributes:
        points, radii: (n, 3) and (n,), mm, n at least 2.
        material: a name of `MATERIALS_HU`, or a tissue.
        facing: (3,) unit vector; the part beyond the first point in this direction is cut off.
        organ: its number if the piece is tissue; devices have none.
    """

    points: np.ndarray
    radii: np.ndarray
    material: str
    facing: np.ndarray | None = None
    organ: int | None = None


def paint_pieces(canvas: Canvas, pieces: Sequence[Piece], hu: Mapping[str, float]) -> None:
    """Paint pieces in their order; `hu` is that of the tissues."""
    for piece in pieces:
        reach = float(piece.radii.max()) + 1.0
        patch = canvas.patch((piece.points.min(0) - reach, piece.points.max(0) + reach))
        if patch is None:
            continue
        f = tube(patch.place, piece.points, piece.radii)
        if piece.facing is not None:
            off = zip(patch.place, piece.points[0], piece.facing, strict=True)
            beyond = torch.stack([(p - float(c)) * float(n) for p, c, n in off]).sum(0)
            f = torch.maximum(f, beyond)
        cover = patch.cover(f, 2.0 * float(piece.radii.mean()))
        if piece.organ is not None:
            kept = torch.tensor(_KEPT_ORGANS, dtype=patch.organs.dtype)
            cover = cover * ~torch.isin(patch.organs, kept)
        value = hu[piece.material] if piece.material in hu else MATERIALS_HU[piece.material]
        patch.paint(cover, value, piece.organ)
