"""Painting the bowel: loops of small bowel that fill the cavity, and the frame of the colon."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kidseg.phantom.anatomy import Anatomy
from kidseg.phantom.canvas import Canvas, Patch
from kidseg.phantom.organs import below_diaphragm
from kidseg.phantom.shapes import smooth_max, tube

__all__ = ["Loop", "colon_of", "paint_bowel", "small_bowel_of"]

SMALL, COLON = 15, 16


@dataclass(frozen=True, eq=False)
class Loop:
    """A stretch of bowel.

    Attributes:
        points, radii: (n, 3) and (n,), mm.
        gas: part of its height that is gas, 0-1.
        stool: 0 fluid to 1 formed and mottled.
        distension: thins the wall where large.
        folds: depth of the folds, part of the wall.
    """

    points: np.ndarray
    radii: np.ndarray
    gas: float
    stool: float
    distension: float
    folds: float


def small_bowel_of(anatomy: Anatomy, rng: np.random.Generator) -> list[Loop]:
    """Loops through the jittered points of a lattice that fills the front of the cavity."""
    body, viscera = anatomy.body, anatomy.viscera
    a, b, segment = body.half_lateral_mm, body.half_depth_mm, body.segment_mm
    size = viscera.small_bowel_mm
    step = size * 0.98
    front = body.half_depth_mm - body.fat_front_mm - body.wall_front_mm
    back = body.spine_y_mm + 0.25 * body.vertebra_mm
    loops: list[Loop] = []
    spots = []
    for z in np.arange(-4.4 * segment, 3.0 * segment, step):
        for y in np.arange(back - 0.25 * b, front, step):
            for x in np.arange(-0.85 * a, 0.85 * a, step):
                spots.append((x, y, z))
    lattice = np.array(spots) + rng.normal(0.0, 0.14 * step, size=(len(spots), 3))
    inside = (np.abs(lattice[:, 0]) / (0.86 * a)) ** 2 + (lattice[:, 1] / (0.80 * b)) ** 2 < 1.0
    lattice = lattice[inside]
    unused = np.ones(len(lattice), dtype=bool)
    order = rng.permutation(len(lattice))
    for start in order:
        if not unused[start]:
            continue
        path = _walk(rng, lattice, unused, int(start), step, int(rng.integers(3, 11)))
        points = lattice[path]
        if len(points) == 1:
            points = np.stack([points[0], points[0] + rng.normal(0.0, 0.25 * step, size=3)])
        points = _rounded(points)
        distension = float(rng.uniform(0.80, 1.12))
        waves = 1.0 + 0.08 * rng.normal(size=len(points))
        gassy = rng.random() < 0.15 + 0.7 * viscera.small_bowel_gas
        loops.append(
            Loop(
                points,
                0.5 * size * distension * waves,
                float(rng.uniform(0.1, 0.8)) if gassy else 0.0,
                0.0,
                distension,
                float(rng.uniform(0.2, 1.0) if points[:, 0].mean() < 0 else rng.uniform(0, 0.4)),
            )
        )
    return loops


def _walk(
    rng: np.random.Generator,
    lattice: np.ndarray,
    unused: np.ndarray,
    start: int,
    step: float,
    length: int,
) -> list[int]:
    """Indices of a self-avoiding walk between neighbours, which it uses up; it prefers no turns."""
    path = [start]
    unused[start] = False
    heading = rng.normal(size=3) * (1.0, 1.0, 0.5)
    while len(path) < length:
        away = lattice - lattice[path[-1]]
        near = np.flatnonzero(unused & ((away**2).sum(axis=1) < (1.45 * step) ** 2))
        if len(near) == 0:
            break
        ahead = away[near] @ heading / (step * max(float(np.linalg.norm(heading)), 1e-6))
        nearest = int(near[np.argmax(ahead + rng.normal(0.0, 0.5, size=len(near)))])
        heading = lattice[nearest] - lattice[path[-1]]
        path.append(nearest)
        unused[nearest] = False
    return path


def _rounded(points: np.ndarray) -> np.ndarray:
    """Corners cut once. Source: Chaikin 1974."""
    if len(points) < 3:
        return points
    quarter = 0.75 * points[:-1] + 0.25 * points[1:]
    three = 0.25 * points[:-1] + 0.75 * points[1:]
    inner = np.stack([quarter, three], axis=1).reshape(-1, 3)
    return np.concatenate([points[:1], inner[1:-1], points[-1:]])


def colon_of(anatomy: Anatomy, rng: np.random.Generator) -> list[Loop]:
    """Ascending, transverse and descending colon in stretches with a filling of their own."""
    body, viscera = anatomy.body, anatomy.viscera
    a, b, segment = body.half_lateral_mm, body.half_depth_mm, body.segment_mm
    y0 = body.spine_y_mm
    sag = rng.uniform(-1.2, 0.2) * segment
    way = np.array(
        [
            [0.52 * a, -0.02 * b, -3.6 * segment],
            [0.60 * a, y0 + 0.28 * b, -2.0 * segment],
            [0.62 * a, y0 + 0.32 * b, -0.7 * segment],
            [0.56 * a, y0 + 0.55 * b, 0.2 * segment],
            [0.36 * a, 0.42 * b, -0.2 * segment + 0.5 * sag],
            [0.10 * a, 0.60 * b, 0.1 * segment + sag],
            [-0.20 * a, 0.58 * b, 0.3 * segment + sag],
            [-0.46 * a, 0.40 * b, 1.0 * segment + 0.5 * sag],
            [-0.62 * a, 0.08 * b, 2.0 * segment],
            [-0.68 * a, y0 + 0.20 * b, 1.2 * segment],
            [-0.70 * a, y0 + 0.16 * b, -0.4 * segment],
            [-0.68 * a, y0 + 0.22 * b, -1.8 * segment],
            [-0.58 * a, y0 + 0.45 * b, -3.2 * segment],
            [-0.30 * a, 0.10 * b, -4.2 * segment],
        ]
    )
    way[1:-1] += rng.normal(0.0, 0.035, size=(len(way) - 2, 3)) * (a, b, segment)
    fine = _rounded(_rounded(_rounded(way)))
    wide = np.interp(
        np.linspace(0, 1, len(fine)), (0, 0.3, 0.6, 0.75, 1), (1.15, 1.0, 0.95, 0.75, 0.7)
    )
    haustra = 1.0 + 0.10 * np.cos(np.arange(len(fine)) * 1.9 + rng.uniform(0, 6))
    radii = 0.5 * viscera.colon_mm * wide * haustra * rng.uniform(0.9, 1.1, size=len(fine))
    loops = []
    pieces = np.array_split(np.arange(len(fine)), 12)
    for piece in pieces:
        last = min(int(piece[-1]) + 2, len(fine))
        stretch = slice(int(piece[0]), last)
        stool = float(rng.beta(1.5, 1.5) * 0.5 + 0.5 * viscera.colon_stool)
        gas = float(np.clip(rng.normal(viscera.colon_gas, 0.25), 0.0, 0.97))
        squeeze = float(rng.uniform(0.7, 1.1)) if gas > 0.3 else float(rng.uniform(0.55, 0.9))
        loops.append(Loop(fine[stretch], radii[stretch] * squeeze, gas, stool, 1.3, 0.1))
    return loops


def paint_bowel(
    canvas: Canvas, anatomy: Anatomy, loops: list[Loop], organ: int, hu: dict[str, float]
) -> None:
    """Wall, contents and gas of each stretch."""
    body = anatomy.body
    wall_mm = (0.9 + 0.016 * body.half_lateral_mm) * (0.8 if organ == COLON else 1.0)
    for loop in loops:
        reach = float(loop.radii.max()) * 1.1 + 1.0
        patch = canvas.patch((loop.points.min(0) - reach, loop.points.max(0) + reach))
        if patch is not None:
            _paint_loop(patch, anatomy, loop, wall_mm, organ, hu)


def _paint_loop(
    patch: Patch, anatomy: Anatomy, loop: Loop, wall_mm: float, organ: int, hu: dict[str, float]
) -> None:
    large = patch.noise("large", halo=True)
    f = tube(patch.place, loop.points, loop.radii) + 0.06 * float(loop.radii.mean()) * large
    f = smooth_max(f, below_diaphragm(anatomy.body, patch, 0.4), 2.0)
    cover = patch.cover(f)
    if not bool((cover > 0).any()):
        return
    fine, middle = patch.noise("fine"), patch.noise("middle")
    fat_mm = 0.1 + 1.2 * anatomy.body.visceral_fat
    patch.paint(patch.cover(f - fat_mm), hu["visceral fat"] + 5.0 * fine + 8.0 * middle, 2)
    patch.paint(cover, hu["bowel wall"] + 6.0 * fine, organ)
    thick = wall_mm / loop.distension
    folded = f + thick * (1.0 + loop.folds * patch.noise("middle", halo=True).clamp(-0.8, 1.6))
    lumen = patch.cover(folded)
    fluid = hu["bowel fluid"] + 4.0 * fine + 5.0 * middle + 8.0 * loop.folds
    if loop.stool > 0.25:
        crumbs = fine + 0.9 * middle
        stool = 25.0 + 35.0 * middle - 750.0 * ((crumbs - 1.15) * 1.3).clamp(0.0, 1.0)
        stool = stool - 130.0 * (patch.noise("middle") < -0.5)
        fluid = fluid.lerp(stool, min(1.0, 1.4 * (loop.stool - 0.25) + 0.4))
    patch.paint(lumen, fluid, organ)
    if loop.gas > 0.02:
        rows = lumen.sum(dim=(0, 2))
        filled = (rows > 0).nonzero()
        if len(filled) == 0:
            return
        _, scanner_up = filled, patch.up_mm[:, 0]
        top, bottom = float(scanner_up[filled[0, 0]]), float(scanner_up[filled[-1, 0]])
        level = top - loop.gas * (top - bottom)
        ragged = 1.5 * loop.stool * middle
        above = ((patch.up_mm[None] + ragged - level) / 0.9 + 0.5).clamp(0.0, 1.0)
        patch.paint(lumen * above, -975.0, organ)
