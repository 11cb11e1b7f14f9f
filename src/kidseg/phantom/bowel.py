"""Paint the bowel: loops of small bowel that fill the cavity, and the colon around them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from kidseg.phantom.anatomy import Anatomy, Tumour
from kidseg.phantom.canvas import Canvas
from kidseg.phantom.shapes import rounded, smooth_max, tube
from kidseg.phantom.surfaces import cavity

__all__ = ["Loop", "colon_of", "emptied", "paint_bowel", "small_bowel_of"]

SMALL, COLON = 15, 16


@dataclass(frozen=True, eq=False)
class Loop:
    """A segment of bowel.

    Attributes:
        points, radii: (n, 3) and (n,), mm.
        gas: fraction of its height that is gas, 0-1.
        stool: 0 (fluid) to 1 (formed and mottled).
        distension: large values make the wall thinner.
        folds: depth of the folds, as a fraction of the wall.
        density_hu: of the contents, relative to normal bowel fluid.
    """

    points: np.ndarray
    radii: np.ndarray
    gas: float
    stool: float
    distension: float
    folds: float
    density_hu: float = 0.0


def small_bowel_of(
    anatomy: Anatomy, rng: np.random.Generator, levels: tuple[float, float] = (-4.4, 3.0)
) -> list[Loop]:
    """Loops along jittered lattice points that fill the front of the cavity.

    Args:
        anatomy: the person.
        rng: random generator.
        levels: lowest and highest, in lumbar segments.
    """
    body, viscera = anatomy.body, anatomy.viscera
    a, b, segment = body.organ_lateral_mm, body.organ_depth_mm, body.segment_mm
    size = viscera.small_bowel_mm
    step = size * 0.86
    front = body.half_depth_mm - body.fat_front_mm - body.wall_front_mm
    back = body.spine_y_mm + 0.25 * body.vertebra_mm
    loops: list[Loop] = []
    spots = []
    for z in np.arange(levels[0] * segment, levels[1] * segment, step):
        for y in np.arange(back - 0.25 * b, front, step):
            for x in np.arange(-0.9 * a, 0.9 * a, step):
                spots.append((x, y, z))
    lattice = np.array(spots) + rng.normal(0.0, 0.14 * step, size=(len(spots), 3))
    x, y = torch.from_numpy(lattice[:, :2].T.copy())
    inside = (cavity(body, x, y) < 1.0 - 0.35 * size / body.half_depth_mm).numpy()
    lattice = lattice[inside]
    unused = np.ones(len(lattice), dtype=bool)
    look = anatomy.look
    unused &= _in_view(lattice, size, look.bowel_share, anatomy.detail_seed)
    order = rng.permutation(len(lattice))
    for start in order:
        if not unused[start]:
            continue
        path = _walk(rng, lattice, unused, int(start), step, int(rng.integers(3, 9)))
        points = lattice[path]
        if len(points) == 1:
            points = np.stack([points[0], points[0] + rng.normal(0.0, 0.25 * step, size=3)])
        points = rounded(points)
        distension = float(rng.uniform(0.80, 1.12))
        waves = 1.0 + 0.08 * rng.normal(size=len(points))
        gassy = rng.random() < 0.15 + 0.7 * viscera.small_bowel_gas
        gassy &= points[:, 1].mean() > -0.05 * b
        loops.append(
            Loop(
                points,
                0.5 * size * distension * waves,
                float(rng.uniform(0.1, 0.8)) if gassy else 0.0,
                0.0,
                distension,
                float(rng.uniform(0.2, 1.0) if points[:, 0].mean() < 0 else rng.uniform(0, 0.4)),
                float(rng.normal(6.0, 9.0)) + viscera.oral_contrast_hu * (rng.random() < 0.7),
            )
        )
    if look.collapsed > 0:
        loops = [_collapsed(rng, loop) if rng.random() < look.collapsed else loop for loop in loops]
    return loops


def _in_view(lattice: np.ndarray, size_mm: float, share: float, seed: int) -> np.ndarray:
    """Which points have bowel: clusters of several loops, separated by mesentery."""
    if share >= 1.0:
        return np.ones(len(lattice), dtype=bool)
    rng = np.random.default_rng([seed, 2])
    waves = rng.normal(size=(12, 3)) / (1.6 * size_mm)
    level = np.cos(lattice @ waves.T + rng.uniform(0, 2 * np.pi, 12)).sum(axis=1)
    kept: np.ndarray = level >= np.quantile(level, 1.0 - share)
    return kept


def _collapsed(rng: np.random.Generator, loop: Loop) -> Loop:
    """An empty, compact loop: little more than its wall, without gas."""
    return replace(
        loop,
        radii=loop.radii * rng.uniform(0.5, 0.95),
        gas=0.0,
        distension=float(rng.uniform(0.25, 0.6)),
        density_hu=float(max(loop.density_hu, rng.uniform(0.0, 25.0))),
    )


def _walk(
    rng: np.random.Generator,
    lattice: np.ndarray,
    unused: np.ndarray,
    start: int,
    step: float,
    length: int,
) -> list[int]:
    """Indices of a self-avoiding walk between neighbours, mostly straight; marks them as used."""
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


def colon_of(anatomy: Anatomy, rng: np.random.Generator) -> list[Loop]:
    """Ascending, transverse and descending colon, in segments with different contents."""
    body, viscera = anatomy.body, anatomy.viscera
    a, b, segment = body.organ_lateral_mm, body.organ_depth_mm, body.segment_mm
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
    fine = rounded(rounded(rounded(way)))
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
    canvas: Canvas,
    anatomy: Anatomy,
    loops: list[Loop],
    up: np.ndarray,
    organ: int,
    hu: dict[str, float],
) -> None:
    """Paint wall, contents and gas of all loops. Adjacent loops flatten against each other.

    Args:
        canvas: the slab.
        anatomy: the child.
        loops: small bowel or colon.
        up: (4,) maps anatomy (x, y, z, 1) to height in the scanner, against gravity.
        organ: number of the organ.
        hu: of the tissues.
    """
    nearest = _Nearest.of(canvas, loops)
    patch = canvas.where(nearest.first < 1.5)
    if patch is None:
        return
    window = patch.deep
    first, second = nearest.first[window], nearest.second[window]
    owner = nearest.owner[window][:-1].clamp(min=0).long()
    body = anatomy.body
    apart_mm = 0.25 + 0.8 * body.visceral_fat + anatomy.look.bowel_apart_mm
    bulge = 0.5 * patch.noise("middle", halo=True)
    f = torch.maximum(first + bulge, 0.5 * (first - second + apart_mm))
    f = smooth_max(f, patch.abdomen + 0.4, 1.5)
    fine, middle = patch.noise("fine"), patch.noise("middle")
    patch.paint(patch.cover(f), hu["bowel wall"] + 6.0 * fine + 4.0 * middle, organ)

    def each(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)[owner]

    wall_mm = (0.75 + 0.014 * body.half_lateral_mm) * (0.8 if organ == COLON else 1.0)
    thick = torch.tensor([wall_mm / loop.distension for loop in loops], dtype=torch.float32)
    folds = torch.tensor([loop.folds for loop in loops], dtype=torch.float32)
    deep_owner = nearest.owner[window].clamp(min=0).long()
    crinkle = 1.0 + folds[deep_owner] * patch.noise("middle", halo=True).clamp(-0.7, 1.8)
    lumen = patch.cover(f + thick[deep_owner] * crinkle)
    fluid = (
        hu["bowel fluid"] + each([loop.density_hu for loop in loops]) + 4.0 * fine + 5.0 * middle
    )
    stool = each([loop.stool for loop in loops])
    crumbs = ((fine + 1.1 * middle - 1.3) * 1.3).clamp_(0.0, 1.0)
    mottled = 18.0 + 22.0 * middle + 10.0 * fine - 90.0 * (middle < -0.7) - 750.0 * crumbs
    fluid = fluid.lerp(mottled, (1.6 * stool - 0.3).clamp_(0.0, 1.0))
    patch.paint(lumen, fluid, organ)
    level = each([_gas_level_mm(loop, up) for loop in loops])
    above = (patch.up_mm[None] + 1.6 * stool * middle - level) / 0.9 + 0.5
    patch.paint(lumen * above.clamp_(0.0, 1.0), -975.0, organ)


def emptied(loops: list[Loop], tumours: tuple[Tumour, ...]) -> list[Loop]:
    """Remove gas and most stool from loops that a tumour compresses."""
    out = []
    for loop in loops:
        pressed = any(
            np.linalg.norm(loop.points - np.array(t.origin_mm), axis=1).min() < 0.9 * t.radius_mm
            for t in tumours
        )
        out.append(replace(loop, gas=0.0, stool=0.2 * loop.stool) if pressed else loop)
    return out


def _gas_level_mm(loop: Loop, up: np.ndarray) -> float:
    """Height in the scanner above which a loop contains gas; very large without gas."""
    if loop.gas <= 0.02:
        return 1e6
    heights = loop.points @ up[:3] + up[3]
    top, bottom = (heights + loop.radii).max(), (heights - loop.radii).min()
    return float(top - loop.gas * (top - bottom))


@dataclass(frozen=True, eq=False)
class _Nearest:
    """Distance of each voxel (with halo) to the nearest loop and to the second nearest."""

    first: Tensor
    second: Tensor
    owner: Tensor

    @classmethod
    def of(cls, canvas: Canvas, loops: list[Loop]) -> _Nearest:
        shape = canvas.field.shape[1:]
        first, second = torch.full(shape, 1e3), torch.full(shape, 1e3)
        owner = torch.full(shape, -1, dtype=torch.int16)
        for number, loop in enumerate(loops):
            for k in range(len(loop.points) - 1):
                ends, radii = loop.points[k : k + 2], loop.radii[k : k + 2]
                reach = float(radii.max()) + 1.2
                window = canvas.window((ends.min(0) - reach, ends.max(0) + reach))
                if window is None:
                    continue
                deep = canvas.deepened(window)
                x, y, z = canvas.field[:3, *deep]
                d = tube((x, y, z), ends, radii)
                a, b, mine = first[deep], second[deep], owner[deep]
                same = mine == number
                b.copy_(torch.where(same, b, torch.minimum(b, torch.maximum(a, d))))
                mine.masked_fill_(d < a, number)
                torch.minimum(a, d, out=a)
        return cls(first, second, owner)
