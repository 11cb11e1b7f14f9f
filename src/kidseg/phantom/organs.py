"""Paint liver, gallbladder, spleen, pancreas, stomach and adrenals."""

from __future__ import annotations

import numpy as np
import torch

from kidseg.phantom.adjacent import Neighbours
from kidseg.phantom.anatomy import Anatomy
from kidseg.phantom.canvas import Canvas
from kidseg.phantom.shapes import ellipsoid, smooth_max, smooth_min, tube

__all__ = [
    "paint_adrenals",
    "paint_liver",
    "paint_pancreas",
    "paint_spleen",
    "paint_stomach",
]

FAT, LIVER, GALLBLADDER, SPLEEN, PANCREAS, STOMACH, ADRENAL = 2, 10, 11, 12, 13, 14, 21


def paint_liver(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint the right and left lobe below the diaphragm, the fissure and the gallbladder."""
    body, viscera = anatomy.body, anatomy.viscera
    neighbours = anatomy.neighbours or Neighbours()
    a, b, segment = body.organ_lateral_mm, body.organ_depth_mm, body.segment_mm
    top = body.dome_right_mm
    low = top - viscera.liver_mm
    patch = canvas.patch(((-0.75 * a, -b, low - segment), (a, b, top + segment)))
    if patch is None:
        return
    right = ellipsoid(
        patch.place,
        (0.52 * a, -0.05 * b, top - 0.48 * viscera.liver_mm),
        (0.56 * a, 0.88 * b, 0.62 * viscera.liver_mm),
    )
    # The right lobe's inner face runs from the front mid-line to the outer back, more so below.
    down = ((top - patch.z) / viscera.liver_mm).clamp(0.0, 1.2)
    face = (0.02 + 0.62 * (down - 0.30).clamp(min=0.0)) * a - patch.x
    face = face + 0.22 * patch.y * (down - 0.2).clamp(min=0.0) - 0.004 / b * patch.y * patch.y
    right = smooth_max(right, face * 0.85, 0.10 * a)
    left = ellipsoid(
        patch.place,
        (-0.02 * a, 0.50 * b, top - 0.30 * viscera.liver_mm),
        (0.62 * a * viscera.left_lobe, 0.36 * b, 0.42 * viscera.liver_mm),
    )
    liver = smooth_min(right, left, 0.10 * a)
    bed = ellipsoid(
        patch.place,
        (0.46 * a, body.spine_y_mm - 0.05 * b, 0.3 * segment),
        np.array((0.27 * a, 0.30 * b, 2.4 * segment)) * neighbours.bed,
    )
    liver = smooth_max(liver, -bed, 0.06 * a)
    spine = torch.hypot(patch.x / 1.25, patch.y - body.spine_y_mm) - 0.72 * body.vertebra_mm
    liver = smooth_max(liver, -spine, 0.05 * a)
    liver = smooth_max(liver, patch.abdomen + 0.3, 0.02 * a)
    fine, middle = patch.noise("fine"), patch.noise("middle")
    value = hu["liver"] + 3.5 * fine + 1.5 * middle
    cover = patch.cover(liver)
    patch.paint(cover, value, LIVER)
    cleft = (patch.x - 0.10 * a - 0.12 * (patch.y - 0.4 * b)).abs() - 0.012 * a
    cleft = torch.maximum(
        cleft, 0.22 * b - patch.y + 0.5 * (patch.z - top + 0.55 * viscera.liver_mm)
    )
    patch.paint(patch.cover(cleft) * cover, hu["visceral fat"] * 0.75)
    _paint_gallbladder(canvas, anatomy, hu, low)


def _paint_gallbladder(
    canvas: Canvas, anatomy: Anatomy, hu: dict[str, float], liver_low: float
) -> None:
    body, half = anatomy.body, anatomy.viscera.gallbladder_mm / 2
    if half <= 0:  # it was removed
        return
    a, b = body.organ_lateral_mm, body.organ_depth_mm
    neck = np.array([0.26 * a, 0.10 * b, liver_low + 1.15 * half + 0.35 * anatomy.viscera.liver_mm])
    fundus = neck + half * 2 * np.array([0.40, 0.62, -0.68])
    low, high = np.minimum(neck, fundus) - half, np.maximum(neck, fundus) + half
    patch = canvas.patch((low, high))
    if patch is None:
        return
    along = np.linspace(0.0, 1.0, 5)
    points = neck + along[:, None] * (fundus - neck)
    f = tube(patch.place, points, half * (0.16 + 0.34 * np.sqrt(along)))
    f = torch.maximum(f, patch.abdomen + 1.5)
    patch.paint(patch.cover(f), hu["liver"] * 0.75, GALLBLADDER)
    patch.paint(patch.cover(f + 1.0), hu["gallbladder"], GALLBLADDER)


def paint_spleen(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float], mottled: bool) -> None:
    """Paint a crescent at the left back wall; in the early arterial phase it enhances in bands."""
    body, length = anatomy.body, anatomy.viscera.spleen_mm
    a, b = body.organ_lateral_mm, body.organ_depth_mm
    top = body.dome_left_mm - 0.35 * body.segment_mm
    middle = top - 0.50 * length
    patch = canvas.patch(((-a, -b, middle - length), (0.0, 0.5 * b, middle + length)))
    if patch is None:
        return
    slope = 0.35 * (patch.z - middle)
    outer = torch.sqrt(
        ((patch.x + 0.66 * a) / (0.34 * a)) ** 2
        + ((patch.y + 0.14 * b + slope) / (0.66 * b)) ** 2
        + ((patch.z - middle) / (0.56 * length)) ** 2
        + 1e-9
    )
    outer = (outer - 1.0) * 0.3 * a
    hollow = torch.hypot((patch.x + 0.36 * a) / 1.0, (patch.y - 0.12 * b + slope) / 1.25) - 0.27 * a
    f = smooth_max(outer, -hollow, 0.06 * a)
    f = smooth_max(f, patch.abdomen + 0.4, 0.03 * a)
    value = hu["spleen"] + 3.5 * patch.noise("fine") + 2.0 * patch.noise("middle")
    if mottled:
        value = value + 16.0 * patch.noise("large").clamp(-1.5, 1.5)
    patch.paint(patch.cover(f), value, SPLEEN)


def paint_pancreas(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint a lobulated pancreas from the duodenum across the great vessels to the spleen."""
    body = anatomy.body
    a, b, segment = body.organ_lateral_mm, body.organ_depth_mm, body.segment_mm
    front = body.spine_y_mm + 0.42 * body.vertebra_mm + 1.5 * anatomy.viscera.aorta_mm
    points = np.array(
        [
            [0.25 * a, front + 0.02 * b, -0.2 * segment],
            [0.17 * a, front + 0.10 * b, 0.6 * segment],
            [-0.03 * a, front + 0.16 * b, 1.2 * segment],
            [-0.25 * a, front + 0.02 * b, 1.7 * segment],
            [-0.50 * a, front - 0.18 * b, 2.2 * segment],
        ]
    )
    thick = b * np.array([0.13, 0.12, 0.085, 0.09, 0.075])
    box = (points.min(0) - thick.max() - 2, points.max(0) + thick.max() + 2)
    patch = canvas.patch(box)
    if patch is None:
        return
    f = tube(patch.place, points, thick)
    middle = patch.noise("middle", halo=True)
    f = f + 0.045 * b * middle.clamp(-2.0, 2.0)
    value = hu["pancreas"] + 5.0 * patch.noise("fine") + 4.0 * middle[:-1]
    patch.paint(patch.cover(f), value, PANCREAS)


def paint_stomach(canvas: Canvas, anatomy: Anatomy, up: np.ndarray, hu: dict[str, float]) -> None:
    """Paint the stomach from the left dome across the mid-line, with folds, contents and gas."""
    body, viscera = anatomy.body, anatomy.viscera
    a, b, segment = body.organ_lateral_mm, body.organ_depth_mm, body.segment_mm
    top = body.dome_left_mm
    points = np.array(
        [
            [-0.36 * a, -0.05 * b, top - 0.9 * segment],
            [-0.44 * a, 0.18 * b, top - 1.8 * segment],
            [-0.36 * a, 0.45 * b, top - 2.8 * segment],
            [-0.12 * a, 0.52 * b, top - 3.5 * segment],
            [0.14 * a, 0.34 * b, top - 3.2 * segment],
        ]
    )
    radii = viscera.stomach * b * np.array([0.26, 0.30, 0.26, 0.20, 0.12])
    reach = float(radii.max()) + 3.0
    patch = canvas.patch((points.min(0) - reach, points.max(0) + reach))
    if patch is None:
        return
    f = tube(patch.place, points, radii) + 0.6 * patch.noise("large", halo=True)
    f = smooth_max(f, patch.abdomen + 1.0, 0.04 * a)
    fine, middle = patch.noise("fine"), patch.noise("middle")
    wall = 1.6 + 0.02 * a
    folds = wall * (1.0 + 0.55 * patch.noise("middle", halo=True).clamp(-1.0, 2.0))
    patch.paint(patch.cover(f), hu["stomach wall"] + 4.0 * fine, STOMACH)
    chunks = (middle > 0.6).float()
    food = hu["bowel fluid"] + 10.0 + 25.0 * chunks + 5.0 * fine
    patch.paint(patch.cover(f + folds), food, STOMACH)
    cover = patch.cover(f + folds)
    heights = points @ up[:3] + up[3]
    top_mm, bottom_mm = (heights + radii).max(), (heights - radii).min()
    level = float(top_mm - viscera.stomach_gas * (top_mm - bottom_mm))
    gas = ((patch.up_mm - level) / 0.8 + 0.5).clamp(0.0, 1.0)[None]
    patch.paint(cover * gas, -960.0, STOMACH)


def paint_adrenals(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint two thin limbs in the fat above and medial to each kidney's upper pole."""
    body = anatomy.body
    neighbours = anatomy.neighbours or Neighbours()
    size = 0.30 * body.vertebra_mm + 3.0
    for sign, thickness in zip((1.0, -1.0), neighbours.adrenals, strict=True):
        centre = np.array(
            [
                sign * (0.85 * body.vertebra_mm),
                body.spine_y_mm + 0.12 * body.vertebra_mm,
                (2.5 if sign > 0 else 2.3) * body.segment_mm,
            ]
        )
        patch = canvas.patch((centre - 1.5 * size, centre + 1.5 * size))
        if patch is None:
            continue
        x = (patch.x - float(centre[0])) * sign
        y, z = patch.y - float(centre[1]), patch.z - float(centre[2])
        thick = (0.7 + 0.035 * body.vertebra_mm) * thickness
        limbs = []
        for turn in (0.25, 0.75):
            across = x * np.cos(turn) + (y - 0.35 * size) * np.sin(turn)
            along = (y - 0.35 * size) * np.cos(turn) - x * np.sin(turn)
            limb = torch.maximum(across.abs() - thick, (along + 0.45 * size).abs() - 0.5 * size)
            limbs.append(torch.maximum(limb, z.abs() - 0.6 * size))
        f = smooth_min(limbs[0], limbs[1], 0.5)
        patch.paint(patch.cover(f), hu["adrenal"], ADRENAL)
