"""Render a person's anatomy and pose as true HU and labels on the voxels of a scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from kidseg.config import Phase
from kidseg.geometry import Grid
from kidseg.phantom.adjacent import paint_extensions, paint_nodules
from kidseg.phantom.anatomy import ORGANS, Anatomy, Body
from kidseg.phantom.bowel import COLON, SMALL, Loop, colon_of, emptied, paint_bowel, small_bowel_of
from kidseg.phantom.canvas import Canvas, Locator
from kidseg.phantom.devices import Piece, paint_pieces
from kidseg.phantom.growth import CHILD_AGES_YEARS
from kidseg.phantom.implants import pieces_of
from kidseg.phantom.kidneys import paint_cysts, paint_kidneys, paint_perirenal_fat
from kidseg.phantom.lesions import paint_liver_lesions, paint_screws, paint_stones
from kidseg.phantom.mass import paint_masses
from kidseg.phantom.organs import (
    paint_adrenals,
    paint_liver,
    paint_pancreas,
    paint_spleen,
    paint_stomach,
)
from kidseg.phantom.pelvic_organs import paint_pelvic_organs, pelvic_vessels_of, rectum_of
from kidseg.phantom.pelvis import (
    in_pelvis,
    paint_hips,
    paint_pelvic_wall,
    paint_sacrum,
    profile,
    symphysis_mm,
)
from kidseg.phantom.posture import Pose
from kidseg.phantom.retroperitoneum import retroperitoneal
from kidseg.phantom.skeleton import paint_iliac_wings, paint_ribs, paint_spine
from kidseg.phantom.splines import Splines, axes_mm, draw_texture
from kidseg.phantom.surfaces import below_diaphragm, skin
from kidseg.phantom.tissues import draw_broad_tissues, draw_tissues
from kidseg.phantom.trunk import (
    arm_centres,
    paint_arms,
    paint_deep_muscles,
    paint_thorax,
    paint_wall,
)
from kidseg.phantom.tumour import distance_mm, paint_tumours, pushed
from kidseg.phantom.vessels import Vessel, paint_vessels, vessels_of

__all__ = ["KIDNEY", "TUMOUR", "Rendering", "render"]

KIDNEY, TUMOUR = 1, 2
"""Values of `Rendering.labels`."""

# Organs of the label kidney: parenchyma, and cysts as in KiTS19, without sinus fat and pelvis.
_KIDNEY_ORGANS = ("renal cortex", "renal medulla", "cyst")
_NUMBERS = {name: number for number, name in ORGANS.items()}
_SHRED_ML = 0.3
_SLAB_VOXELS = 1_200_000
# Coarse nodes per body diameter; displacements are smooth over many nodes.
_NODES_PER_DIAMETER = 44
_WOBBLE = 0.011
_WOBBLE_LENGTH_MM = 30.0
_WAVES = 16


@dataclass(frozen=True, eq=False)
class Rendering:
    """A person on voxels, without the effects of a scanner.

    Attributes:
        hu: (slices, rows, columns) float32; partial volume included; -1000 outside the body.
        organs: uint8, numbers of `ORGANS`.
        labels: uint8, 0, 1 kidney, 2 tumour.
    """

    hu: np.ndarray
    organs: np.ndarray
    labels: np.ndarray


def render(
    anatomy: Anatomy,
    pose: Pose,
    grid: Grid,
    phase: Phase,
    rng: np.random.Generator,
    *,
    broad: bool = False,
) -> Rendering:
    """Render a person on a grid.

    Args:
        anatomy: the person.
        pose: its pose in the scanner.
        grid: axial, canonical order, in scanner mm; any spacing and extent.
        phase: contrast phase.
        rng: random generator for tissue HU and texture; draws do not depend on the grid.
        broad: tissue HU with the spread of the broad cohort, between phases.

    Returns:
        HU and labels on `grid`. Outside the body there is air without labels.
    """
    if broad:
        adult = anatomy.age_years > CHILD_AGES_YEARS[1]
        hu = draw_broad_tissues(rng, phase, adult=adult, look=anatomy.look)
    else:
        hu = draw_tissues(rng, phase)
    textures = _draw_textures(rng, anatomy, pose)
    details = _draw_details(anatomy, phase)
    out = np.full(grid.shape, -1000.0, dtype=np.float32)
    organs = np.zeros(grid.shape, dtype=np.uint8)
    field = _draw_field(anatomy, pose, grid)
    rows, columns = _body_window(anatomy, pose, grid, field)
    if rows.start < rows.stop and columns.start < columns.stop:
        window = (rows.stop - rows.start, columns.stop - columns.start)
        locator = Locator(field.coefficients[:3])
        cavities = partial(_cavities, anatomy)
        thick = max(1, _SLAB_VOXELS // (window[0] * window[1]))

        def paint(start: int) -> None:
            stop = min(start + thick, grid.shape[0])
            slab = grid.crop((start, rows.start, columns.start), (stop - start, *window))
            canvas = Canvas(slab, field, locator, textures, cavities)
            _paint(canvas, anatomy, pose, details, hu, phase)
            out[start:stop, rows, columns] = canvas.hu.numpy()
            organs[start:stop, rows, columns] = canvas.organs.numpy()

        _side_by_side(paint, range(0, grid.shape[0], thick))
    if anatomy.tumours:
        _absorb_shreds(organs, float(grid.voxel_ml))
    return Rendering(out, organs, _labels(organs))


def _side_by_side(work: Callable[[int], None], starts: Iterable[int]) -> None:
    """Process slabs in parallel, one thread per slab.

    Organs are small boxes, for which threads within one operation would be inefficient.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, starts):
                pass
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class _Details:
    small_bowel: list[Loop]
    colon: list[Loop]
    beside: list[Loop]
    vessels: list[Vessel]
    implants: list[Piece]


def _paint(
    canvas: Canvas,
    anatomy: Anatomy,
    pose: Pose,
    details: _Details,
    hu: dict[str, float],
    phase: Phase,
) -> None:
    """Paint all organs; later ones cover earlier ones."""
    arterial = phase == "early-arterial"
    up = pose.scanner_from_anatomy()[1].numpy()
    paint_wall(canvas, anatomy, hu)
    if anatomy.pelvis is not None:
        paint_pelvic_wall(canvas, anatomy, hu)
    paint_bowel(canvas, anatomy, details.small_bowel, up, SMALL, hu)
    paint_pancreas(canvas, anatomy, hu)
    paint_bowel(canvas, anatomy, details.colon, up, COLON, hu)
    paint_stomach(canvas, anatomy, up, hu)
    paint_liver(canvas, anatomy, hu)
    paint_liver_lesions(canvas, anatomy.look.lesions, hu)
    paint_spleen(canvas, anatomy, hu, mottled=arterial)
    paint_thorax(canvas, anatomy, hu)
    paint_perirenal_fat(canvas, anatomy, hu)
    if anatomy.neighbours is not None:
        paint_extensions(canvas, anatomy.neighbours.extensions, hu)
        paint_bowel(canvas, anatomy, details.beside, up, SMALL, hu)
        paint_nodules(canvas, anatomy.neighbours.nodules, hu)
    paint_deep_muscles(canvas, anatomy, hu)
    paint_kidneys(canvas, anatomy, hu)
    paint_adrenals(canvas, anatomy, hu)
    paint_cysts(canvas, anatomy.cysts, hu)
    paint_vessels(canvas, anatomy, details.vessels, hu, phase)
    paint_stones(canvas, anatomy.look.stones)
    paint_iliac_wings(canvas, anatomy, hu)
    if anatomy.pelvis is not None:
        paint_hips(canvas, anatomy, hu)
        paint_pelvic_organs(canvas, anatomy, anatomy.pelvis, up, hu, phase)
        paint_sacrum(canvas, anatomy, hu)
    paint_spine(canvas, anatomy, hu)
    paint_screws(canvas, anatomy)
    paint_ribs(canvas, anatomy, hu)
    paint_pieces(canvas, details.implants, hu)
    # Tumours come last: inside a tumour the field maps to the surroundings of its origin.
    paint_tumours(canvas, anatomy.tumours, hu, bright=arterial)
    paint_masses(canvas, anatomy.tumours, hu)
    if pose.arms:
        paint_arms(canvas, anatomy, hu)


def _draw_details(anatomy: Anatomy, phase: Phase) -> _Details:
    """Bowel and vessels; those of the pelvis are drawn apart, so that the others are the same."""
    rng = np.random.default_rng(anatomy.detail_seed)
    small, colon = small_bowel_of(anatomy, rng), colon_of(anatomy, rng)
    vessels = vessels_of(anatomy, rng)
    if anatomy.pelvis is not None:
        rng = np.random.default_rng([anatomy.detail_seed, 3])
        small += small_bowel_of(anatomy, rng, levels=(-6.6, -4.4))
        colon += rectum_of(anatomy, anatomy.pelvis, rng)
        vessels += pelvic_vessels_of(anatomy, phase, rng)
    small, beside, veins = retroperitoneal(anatomy, small)
    small, colon, beside = (emptied(loops, anatomy.tumours) for loops in (small, colon, beside))
    return _Details(small, colon, beside, vessels + veins, pieces_of(anatomy))


def _cavities(anatomy: Anatomy, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Implicit functions of the abdominal cavity, and of its part in the pelvis; see `Canvas`.

    The abdominal cavity lies below the diaphragm and above the pelvic floor.
    """
    upper = below_diaphragm(anatomy.body, x, y, z)
    if anatomy.pelvis is None:
        return upper, upper
    pelvis = in_pelvis(anatomy.body, (x, y, z))
    return torch.maximum(upper, pelvis), pelvis


def _draw_textures(rng: np.random.Generator, anatomy: Anatomy, pose: Pose) -> dict[str, Splines]:
    low, high = anatomy.modelled_mm
    wide = 1.3 * anatomy.lateral_mm
    size = (wide, wide, 1.1 * (high - low) + 20.0)
    centre = (pose.offset_mm[0], pose.offset_mm[1], (low + high) / 2)
    scale = anatomy.body_scale**0.5
    lengths = {
        "fine": 1.3 * scale,
        "middle": 2.6 * scale,
        "vessels": 1.8 * scale,
        "large": 7.0 * scale,
        "blotch": 11.0 * scale,
    }
    return {name: draw_texture(rng, size, centre, mm) for name, mm in lengths.items()}


def _draw_field(anatomy: Anatomy, pose: Pose, grid: Grid) -> Splines:
    """Reference (x, y, z) and distance to each tumour, at nodes over the grid and a margin.

    Nodes are at multiples of their step, so that all grids of a patient share them.
    """
    step = anatomy.effective_diameter_mm / _NODES_PER_DIAMETER
    small = min((t.radius_mm for t in anatomy.tumours if t.tissue != "wilms"), default=step * 9)
    step = float(np.clip(small / 3.0, 0.6 * step, step))
    ends = np.array([[float(mm.min()), float(mm.max())] for mm in axes_mm(grid)])
    first = np.floor(ends[:, 0] / step).astype(int) - 3
    counts = np.ceil(ends[:, 1] / step).astype(int) + 4 - first
    axes = [torch.from_numpy((f + np.arange(n)) * step) for f, n in zip(first, counts, strict=True)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    scanner = torch.stack([x, y, z])
    matrix = torch.linalg.inv(pose.scanner_from_anatomy())
    place = torch.einsum("ij,j...->i...", matrix[:3, :3], scanner) + matrix[:3, 3, None, None, None]
    place = _straightened(anatomy, pose, place.float())
    distances = [distance_mm(t, anatomy.body, place)[None] for t in anatomy.tumours]
    before = place
    for tumour in anatomy.tumours:
        before = before + (pushed(tumour, anatomy.body, place) - place)
    before = _relaxed(anatomy, before)
    first_mm = [float(a[0]) for a in axes[::-1]]
    return Splines.through(torch.cat([before, *distances]), first_mm, step)


def _straightened(anatomy: Anatomy, pose: Pose, place: Tensor) -> Tensor:
    """Undo a scoliosis: the lateral shift of spine and back, less in front. Preserves volumes."""
    if pose.scoliosis_mm == 0.0:
        return place
    x, y, z = place
    body = anatomy.body
    bend = pose.scoliosis_mm * torch.cos(np.pi * z / pose.scoliosis_length_mm)
    fade = torch.exp(-(((y - body.spine_y_mm) / (1.1 * body.half_lateral_mm)) ** 2))
    return torch.stack([x - bend * fade, y, z])


def _relaxed(anatomy: Anatomy, place: Tensor) -> Tensor:
    """Undo lordosis, the taper of the trunk, and small smooth deviations from ideal shapes."""
    x, y, z = place
    body = anatomy.body
    level = z / body.segment_mm
    curve = body.lordosis_mm * (torch.cos((level + 2.0) * 0.55) - 0.6)
    behind = torch.exp(-(((y - body.spine_y_mm) / (0.7 * body.half_depth_mm)) ** 2))
    medial = (1.0 - x.abs() / body.half_lateral_mm).clamp(0.0, 1.0)
    y = y - curve * behind * medial
    below, above = (level + 0.5).clamp(-5.0, 0.0), (level - 2.0).clamp(0.0, 5.0)
    taper = 1.0 + 0.005 * below - 0.010 * above
    x, y = x / taper, torch.where(y > 0, y / taper, y)
    if anatomy.pelvis is not None:
        x, y = _without_hips(body, anatomy.pelvis.hip, x, y, level)
    amplitude = _WOBBLE * anatomy.effective_diameter_mm
    away = torch.hypot(x, y - body.spine_y_mm) / body.vertebra_mm
    soft = amplitude * (away - 0.7).clamp(0.15, 1.0)
    moved = [p + soft * w for p, w in zip((x, y, z), _wobble(anatomy, place), strict=True)]
    return torch.stack(moved)


def _without_hips(
    body: Body, hip: float, x: Tensor, y: Tensor, level: Tensor
) -> tuple[Tensor, Tensor]:
    """Undo the width of the hips, the buttocks, and the belly's recession above the pubis."""
    x = x / profile(level, (-7.6, -6.2, -3.0), (0.96 * hip, hip, 1.0))
    buttocks = profile(level, (-7.6, -6.2, -3.0), (1.05, 1.12, 1.0))
    pubis, _ = symphysis_mm(body)
    flat = pubis + (y - pubis) / profile(level, (-7.6, -6.2, -4.4), (0.5, 0.6, 1.0))
    return x, torch.where(y < body.spine_y_mm, y / buttocks, torch.where(y > pubis, flat, y))


def _wobble(anatomy: Anatomy, place: Tensor) -> list[Tensor]:
    """Three smooth random functions of the position, standard deviation 1, specific to the child.

    Source: random Fourier features of a Gaussian process, Rahimi and Recht, NeurIPS 2007.
    """
    rng = np.random.default_rng([anatomy.detail_seed, 1])
    length_mm = _WOBBLE_LENGTH_MM * anatomy.body_scale**0.5
    x, y, z = place
    found = []
    for _ in range(3):
        total = torch.zeros_like(x)
        for kx, ky, kz, phase in zip(
            *rng.normal(size=(3, _WAVES)) / length_mm,
            rng.uniform(0, 2 * np.pi, _WAVES),
            strict=True,
        ):
            total += torch.cos(float(kx) * x + float(ky) * y + float(kz) * z + float(phase))
        found.append(total * (2.0 / _WAVES) ** 0.5)
    return found


def _body_window(anatomy: Anatomy, pose: Pose, grid: Grid, field: Splines) -> tuple[slice, slice]:
    """Rows and columns that may contain the body."""
    body = anatomy.body
    x, y = field.coefficients[0], field.coefficients[1]
    shown = skin(body, x, y) < 1.06
    if pose.arms:
        x0, y0, radius = arm_centres(body)
        shown |= torch.hypot(x.abs() - x0, y - y0) < 1.5 * radius
    found = []
    for axis, other, first in ((1, 1, field.first_mm[1]), (2, 0, field.first_mm[0])):
        hits = shown.any(dim=0).any(dim=other).nonzero()
        if len(hits) == 0:
            return slice(0, 0), slice(0, 0)
        low = first + (int(hits[0]) - 1) * field.step_mm
        high = first + (int(hits[-1]) + 1) * field.step_mm
        inside = ((axes_mm(grid)[axis] >= low) & (axes_mm(grid)[axis] <= high)).nonzero()
        found.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
    return found[0], found[1]


def _absorb_shreds(organs: np.ndarray, voxel_ml: float) -> None:
    """Relabel kidney fragments on the surface of a tumour as tumour, in place.

    If a tumour stretches its kidney to less than a voxel, isolated voxels of kidney remain, which
    no reader would outline.
    """
    from scipy import ndimage

    kidney, tumour = _NUMBERS["renal cortex"], _NUMBERS["tumour"]
    parts = (organs == kidney) | (organs == _NUMBERS["renal medulla"])
    if not parts.any() or not (organs == tumour).any():
        return
    box = ndimage.find_objects(parts.astype(np.uint8))[0]
    window, inside = organs[box], parts[box]
    number, _ = ndimage.label(inside, structure=np.ones((3, 3, 3)))
    size_ml = np.bincount(number.ravel()) * voxel_ml
    near = ndimage.binary_dilation(window == tumour, iterations=2)
    touching = np.zeros(len(size_ml), dtype=bool)
    touching[np.unique(number[near & inside])] = True
    shreds = touching & (size_ml < _SHRED_ML)
    window[shreds[number] & inside] = tumour


def _labels(organs: np.ndarray) -> np.ndarray:
    table = np.zeros(256, dtype=np.uint8)
    for number, name in ORGANS.items():
        if name in _KIDNEY_ORGANS:
            table[number] = KIDNEY
        elif name == "tumour":
            table[number] = TUMOUR
    mapped: np.ndarray = table[organs]
    return mapped
