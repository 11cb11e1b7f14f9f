"""Paint what disease and surgery add: lesions of the liver, kidney stones, pedicle screws."""

from __future__ import annotations

import numpy as np
import torch

from kidseg.phantom.anatomy import Anatomy, Lesion, Stone
from kidseg.phantom.canvas import Canvas
from kidseg.phantom.devices import MATERIALS_HU
from kidseg.phantom.shapes import ellipsoid, tube

__all__ = ["paint_liver_lesions", "paint_screws", "paint_stones"]

LIVER, PELVIS, SPINE = 10, 24, 4


def paint_liver_lesions(canvas: Canvas, lesions: tuple[Lesion, ...], hu: dict[str, float]) -> None:
    """Paint round lesions, where they are inside the liver."""
    for lesion in lesions:
        centre, r = np.asarray(lesion.centre_mm), lesion.radius_mm
        patch = canvas.patch((centre - r - 1.0, centre + r + 1.0))
        if patch is None:
            continue
        f = ellipsoid(patch.place, lesion.centre_mm, (r, 0.85 * r, 0.9 * r))
        f = f + 0.06 * r * patch.noise("large", halo=True)
        value = max(hu["liver"] + lesion.relative_hu, 5.0) + 4.0 * patch.noise("middle")
        patch.paint(patch.cover(f) * (patch.organs == LIVER), value)


def paint_stones(canvas: Canvas, stones: tuple[Stone, ...]) -> None:
    """Paint kidney stones."""
    for stone in stones:
        centre, half = np.asarray(stone.centre_mm), np.asarray(stone.half_mm)
        patch = canvas.patch((centre - half - 1.0, centre + half + 1.0))
        if patch is not None:
            f = ellipsoid(patch.place, stone.centre_mm, stone.half_mm)
            patch.paint(patch.cover(f), stone.hu, PELVIS)


def paint_screws(canvas: Canvas, anatomy: Anatomy) -> None:
    """Paint pedicle screws with rods in the third and fourth lumbar vertebra."""
    if not anatomy.look.screws:
        return
    body = anatomy.body
    w, segment, y0 = body.vertebra_mm, body.segment_mm, body.spine_y_mm
    for side in (1.0, -1.0):
        heads = []
        for level in (-1.0, -2.0):
            z = (level + 0.16) * segment
            head = np.array([side * 0.50 * w, y0 - 1.05 * w, z])
            tip = np.array([side * 0.22 * w, y0 + 0.12 * w, z])
            heads.append(head)
            _paint_metal(canvas, np.stack([head, tip]), 2.8)
        _paint_metal(canvas, np.stack(heads), 3.0)


def _paint_metal(canvas: Canvas, points: np.ndarray, radius_mm: float) -> None:
    patch = canvas.patch((points.min(0) - radius_mm - 1.0, points.max(0) + radius_mm + 1.0))
    if patch is not None:
        f = tube(patch.place, points, np.full(len(points), radius_mm))
        patch.paint(patch.cover(f), torch.tensor(MATERIALS_HU["titanium"]), SPINE)
