"""The nested surfaces of the trunk, as implicit functions: skin, fascia, cavity, diaphragm, spine.

Each surface is a superellipse with different half-axes to the front and to the back, so that the
layers between the surfaces vary in thickness.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kidseg.phantom.anatomy import Body

__all__ = [
    "below_diaphragm",
    "cavity",
    "dome_mm",
    "fascia",
    "paraspinal",
    "skin",
    "spine_clearance",
    "wall_mm",
]


def skin(body: Body, x: Tensor, y: Tensor) -> Tensor:
    """Radius relative to the skin: 1 on the skin, less inside."""
    b = body.half_depth_mm
    return _radius(body, x, y, body.half_lateral_mm, b, b, groove=1.0)


def fascia(body: Body, x: Tensor, y: Tensor) -> Tensor:
    """Radius relative to the surface between fat and muscle."""
    skin_mm = body.skin_mm
    return _radius(
        body,
        x,
        y,
        body.half_lateral_mm - body.fat_lateral_mm - skin_mm,
        body.half_depth_mm - body.fat_front_mm - skin_mm,
        body.half_depth_mm - body.fat_back_mm - skin_mm,
        groove=1.0,
    )


def cavity(body: Body, x: Tensor, y: Tensor, grow_mm: float = 0.0) -> Tensor:
    """Radius relative to the inner surface of the wall, moved outwards by `grow_mm`."""
    skin_mm = body.skin_mm
    return _radius(
        body,
        x,
        y,
        body.half_lateral_mm - body.fat_lateral_mm - body.wall_lateral_mm - skin_mm + grow_mm,
        body.half_depth_mm - body.fat_front_mm - body.wall_front_mm - skin_mm + grow_mm,
        body.half_depth_mm - body.fat_back_mm - body.wall_back_mm - skin_mm + grow_mm,
        groove=0.0,
    )


def dome_mm(body: Body, x: Tensor, y: Tensor) -> Tensor:
    """z of the upper side of the diaphragm: two domes that slope to the wall, most at the back."""
    a, b, segment = body.organ_lateral_mm, body.organ_depth_mm, body.segment_mm
    domes = []
    for sign, top in ((1.0, body.dome_right_mm), (-1.0, body.dome_left_mm)):
        across, along = (x - sign * 0.40 * a) / (0.55 * a), (y - 0.12 * b) / (0.80 * b)
        fall = across * across * 1.6 + along * along * 1.6
        domes.append(top - segment * (fall - (0.5 * along).clamp(max=0.0)))
    return torch.maximum(domes[0], domes[1])


def below_diaphragm(body: Body, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """Implicit function of the abdominal cavity inside the wall, below the diaphragm; about mm."""
    wall = (cavity(body, x, y) - 1.0) * 0.8 * body.half_depth_mm
    under = (z - dome_mm(body, x, y)) * 0.6 + 0.3 + 0.006 * body.half_lateral_mm
    return torch.maximum(wall, under)


def spine_clearance(body: Body, x: Tensor, y: Tensor) -> Tensor:
    """Distance in mm to the spine with psoas and the muscles behind it; negative inside."""
    vertebra = body.vertebra_mm
    column = torch.hypot(x / 1.45, y - body.spine_y_mm + 0.15 * vertebra) - 0.55 * vertebra
    return torch.minimum(column, paraspinal(body, x, y))


def paraspinal(body: Body, x: Tensor, y: Tensor) -> Tensor:
    """Approximate signed distance in mm to the muscles behind the transverse processes."""
    vertebra = body.vertebra_mm
    middle = 1.0 * vertebra
    top = body.spine_y_mm - 0.42 * vertebra
    bottom = -body.half_depth_mm + body.fat_back_mm + body.skin_mm
    centre, half = (top + bottom) / 2, (top - bottom) / 2
    across = (x.abs() - middle * 0.95) / (1.02 * middle)
    return (torch.sqrt(across**2 + ((y - centre) / half) ** 2) - 1.0) * half


def _radius(
    body: Body, x: Tensor, y: Tensor, lateral: float, front: float, back: float, groove: float
) -> Tensor:
    if groove:
        dent = torch.exp(-((x / (0.55 * body.vertebra_mm)) ** 2)) * (groove * body.groove_mm)
        y = torch.where(y < 0, y + dent * (y / back).clamp(-1.0, 0.0), y)
    behind = y < 0
    across = (x / lateral) ** 2
    along = (y * torch.where(behind, 1.0 / back, 1.0 / front)) ** 2
    roundness = torch.where(behind, body.back_roundness, body.front_roundness)
    return torch.sqrt(torch.sqrt(across**2 + roundness * across * along + along**2))


def wall_mm(body: Body, y_mm: float) -> float:
    """Distance of the inner side of the wall from the mid-line at this depth."""
    x = torch.linspace(0.0, body.half_lateral_mm, 200)
    inside = cavity(body, x, torch.full_like(x, y_mm)) < 1.0
    return float(x[inside].max()) if bool(inside.any()) else 0.0
