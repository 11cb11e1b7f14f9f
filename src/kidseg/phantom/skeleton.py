"""Paint the bones: spine with discs and canal, ribs, iliac wings and sacrum.

The spine is periodic from segment to segment, and so are the ribs along their slope; one implicit
function of the position within a segment represents all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kidseg.phantom.anatomy import Anatomy, Body
from kidseg.phantom.canvas import Canvas, Patch
from kidseg.phantom.pelvis import SACRUM_LEVEL, profile
from kidseg.phantom.shapes import smooth_max, smooth_min
from kidseg.phantom.surfaces import cavity

__all__ = ["paint_iliac_wings", "paint_ribs", "paint_spine"]

SPINE, RIBS, PELVIS, CANAL, FAT, MUSCLE, DISC = 4, 5, 6, 7, 2, 3, 30

# Angle (radians from the back) at which ribs end, by segments above the second lumbar vertebra.
_TWELFTH, _ELEVENTH, _TENTH, _OTHERS, _CARTILAGE = 0.95, 1.40, 1.85, 2.15, 2.62


def paint_spine(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint vertebral bodies with rim and marrow, discs, arches with processes, and the canal."""
    body = anatomy.body
    w, y0 = body.vertebra_mm, body.spine_y_mm
    low, high = anatomy.modelled_mm
    box = ((-1.25 * w, y0 - 1.75 * w, 2 * low), (1.25 * w, y0 + 0.5 * w, 2 * high))
    patch = canvas.patch(box)
    if patch is None:
        return
    within = patch.z / body.segment_mm
    within = within - within.round()
    fine, middle = patch.noise("fine"), patch.noise("middle")
    coarse = anatomy.look.trabeculae_hu
    trabeculae = hu["marrow"] + (16.0 + coarse) * fine + (12.0 + 0.15 * coarse) * middle
    waist = 0.93 + 0.55 * within * within
    across = (patch.x / (0.5 * w * waist)) ** 2
    along = ((patch.y - y0) / (0.35 * w * waist)) ** 2
    hollow = 0.16 * torch.exp(-((patch.x / (0.25 * w)) ** 2)) * (patch.y < y0)
    radius = torch.sqrt(torch.sqrt(across**2 + 1.35 * across * along + along**2)) + hollow - 1.0
    rim = radius * 0.38 * w
    end = None
    if anatomy.pelvis is not None:  # the sacrum follows
        end = -SACRUM_LEVEL * body.segment_mm - patch.z
        rim = torch.maximum(rim, end)
    patch.paint(patch.cover(rim - 0.02 * w), hu["disc"] + 3.0 * fine, DISC)
    if anatomy.look.osteophytes > 0:
        rim = rim - _spurs_mm(patch, body, within, anatomy.look.osteophytes)
    ends = (within.abs() - body.bone_share / 2) * body.segment_mm
    bone = smooth_max(rim, ends, 0.08 * w)
    shell = 0.55 + 0.012 * w
    patch.paint(patch.cover(bone), 0.75 * hu["cortical bone"], SPINE)
    patch.paint(patch.cover(bone + shell), trabeculae, SPINE)
    vein = torch.hypot(patch.x / 2.0, within * body.segment_mm) - 0.035 * w
    vein = torch.maximum(vein, patch.y - y0 + 0.05 * w)
    patch.paint(patch.cover(torch.maximum(vein, bone + shell)), hu["marrow"] - 60.0, SPINE)
    _paint_arch(patch, body, within, hu, trabeculae, end)


def _spurs_mm(patch: Patch, body: Body, within: Tensor, size: float) -> Tensor:
    """Height of osteophytes: irregular spurs in front and beside the end plates."""
    near = torch.exp(-(((within.abs() - body.bone_share / 2) * body.segment_mm / 3.5) ** 2))
    front = (patch.y - body.spine_y_mm) / (0.35 * body.vertebra_mm) + 0.6
    uneven = (patch.noise("large", halo=True) + 0.6).clamp(0.0, 2.0)
    return 0.14 * size * body.vertebra_mm * near * uneven * front.clamp(0.0, 1.0)


def _paint_arch(
    patch: Patch,
    body: Body,
    within: Tensor,
    hu: dict[str, float],
    trabeculae: Tensor,
    end: Tensor | None,
) -> None:
    w, y0, segment = body.vertebra_mm, body.spine_y_mm, body.segment_mm
    side = patch.x.abs()
    half = (5.2 + 0.07 * w, 0.30 * w)
    middle_y = y0 - 0.33 * w - half[0]
    canal = torch.hypot(side / half[1], (patch.y - middle_y) / half[0])
    ring = (canal - 1.0) * half[0]
    thick = 0.075 * w + 0.4
    lamina = (ring - thick).abs() - thick
    height = (within + 0.10).abs() * segment - 0.36 * segment
    lamina = smooth_max(lamina, torch.maximum(patch.y - middle_y, height), 1.0)
    pedicle = torch.maximum(
        torch.maximum(
            (side - 0.37 * w).abs() - 0.085 * w, (patch.y - y0 + 0.55 * w).abs() - 0.3 * w
        ),
        (within - 0.16).abs() * segment - 0.21 * segment,
    )
    facet = torch.hypot(side - 0.43 * w, (patch.y - middle_y + 0.16 * w) / 1.15) - 0.165 * w
    joint = (0.5 - within.abs()) * segment + 0.25 * (side - 0.43 * w)
    facet = torch.maximum(facet, 0.035 * w + 0.3 - joint.abs())
    out = ((side - 0.4 * w) / (0.68 * w)).clamp(0.0, 1.0)
    transverse = torch.hypot(
        patch.y - middle_y - 0.02 * w + 0.22 * w * out * out, (within - 0.06) * segment
    )
    transverse = torch.maximum(transverse - w * (0.13 - 0.06 * out), side - 0.98 * w)
    transverse = torch.where(side > 0.35 * w, transverse, torch.full_like(transverse, 9.0))
    back = ((middle_y - half[0] - patch.y) / (0.66 * w)).clamp(0.0, 1.2)
    spinous = side - w * (0.05 + 0.05 * back**3)
    level = (within + 0.10 + 0.12 * back).abs() * segment - segment * (0.33 - 0.06 * back)
    spinous = smooth_max(spinous, level, 1.0)
    spinous = torch.maximum(spinous, (back - 1.0) * 0.66 * w)
    spinous = torch.where(
        patch.y < middle_y - 0.8 * half[0], spinous, torch.full_like(spinous, 9.0)
    )
    bone = torch.minimum(smooth_min(lamina, facet, 1.0), torch.minimum(pedicle, transverse))
    bone = torch.minimum(bone, spinous)
    if end is not None:
        bone, ring = torch.maximum(bone, end), torch.maximum(ring, end)
    patch.paint(patch.cover(bone), hu["cortical bone"] * 0.8, SPINE)
    patch.paint(patch.cover(bone + 0.045 * w), 1.25 * trabeculae, SPINE)
    patch.paint(patch.cover(ring), hu["canal"] - 25.0, CANAL)
    sac = torch.hypot(side / half[1], (patch.y - middle_y - 0.06 * half[0]) / half[0])
    sac = (sac - 0.88) * half[0]
    if end is not None:
        sac = torch.maximum(sac, end)
    patch.paint(patch.cover(sac), hu["canal"], CANAL)


def paint_ribs(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint ribs 8 to 12, sloping down from back to front, with cartilage."""
    body = anatomy.body
    w, segment = body.vertebra_mm, body.segment_mm
    a, b = body.organ_lateral_mm, body.organ_depth_mm
    patch = canvas.patch(((-a, -b, -1.8 * segment), (a, b, 2 * anatomy.modelled_mm[1])))
    if patch is None:
        return
    out = cavity(body, patch.x, patch.y)
    radius = torch.hypot(patch.x, patch.y)
    apart = radius * (1.0 - 1.0 / out.clamp(min=0.2))
    angle = torch.atan2(patch.x.abs(), -patch.y)
    drop = 2.15 * segment * (angle / 1.57).clamp(min=1e-3) ** 1.35
    drop = drop - 1.6 * segment * (angle - 1.9).clamp(min=0.0)
    slope = (1.85 * segment * (angle / 1.57).clamp(min=1e-3) ** 0.35) / radius.clamp(min=10.0)
    level = (patch.z + drop) / segment
    rib = level.round().clamp(min=2.0)
    across = (level - rib) * segment / torch.sqrt(1.0 + slope * slope)
    half_thick, half_high = 1.15 + 0.045 * w, 1.9 + 0.105 * w
    end = torch.full_like(angle, _OTHERS)
    end = torch.where(rib < 4.5, torch.full_like(end, _TENTH), end)
    end = torch.where(rib < 3.5, torch.full_like(end, _ELEVENTH), end)
    end = torch.where(rib < 2.5, torch.full_like(end, _TWELFTH), end)
    depth = (apart - half_thick - 0.8) / half_thick
    f = torch.sqrt(depth * depth + (across / half_high) ** 2 + 1e-6) - 1.0
    f = f * half_thick
    # Beyond its end, the distance to a rib is that of the centre between two ribs, which keeps the
    # function continuous.
    gap = half_thick * (0.5 * segment / half_high - 1.0)
    medial = 0.62 * w - patch.x.abs()
    bony = torch.maximum(f, ((angle - end) * 0.8 * b).clamp(max=gap))
    bony = torch.maximum(bony, medial)
    fine = patch.noise("fine")
    last = torch.where(rib < 4.5, end + 0.06, torch.full_like(end, _CARTILAGE))
    soft = torch.maximum(f, ((angle - last) * 0.8 * b).clamp(max=gap))
    soft = torch.maximum(soft, medial)
    patch.paint(patch.cover(soft), hu["cartilage"] + 5.0 * fine, RIBS)
    patch.paint(patch.cover(bony), hu["cortical bone"] * 0.9, RIBS)
    patch.paint(patch.cover(bony + 0.35 * half_thick), hu["marrow"] * 1.1 + 15.0 * fine, RIBS)


def paint_iliac_wings(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint the iliac wings below the crest, the wings of the sacrum, and the gluteal muscles."""
    body = anatomy.body
    w, segment, y0 = body.vertebra_mm, body.segment_mm, body.spine_y_mm
    a, b = body.organ_lateral_mm, body.organ_depth_mm
    top = anatomy.crest_mm
    patch = canvas.patch(((-a, -b, 2 * anatomy.modelled_mm[0]), (a, b, top + 2.0)))
    if patch is None:
        return
    side = patch.x.abs()
    fine = patch.noise("fine")
    down = ((top - patch.z) / segment).clamp(min=0.0)
    if anatomy.pelvis is not None:  # towards the hip joints, where the wings end
        side = side / profile(-patch.z / segment, (3.0, 5.4), (1.0, 0.86))
    start = (1.15 * w, y0 - 0.70 * w)
    stop = (0.74 * a, 0.16 * b)
    dx, dy = stop[0] - start[0], stop[1] - start[1]
    length = (dx * dx + dy * dy) ** 0.5
    t = ((side - start[0]) * dx + (patch.y - start[1]) * dy) / length**2
    off = ((side - start[0]) * dy - (patch.y - start[1]) * dx) / length - 0.16 * length * 4 * t * (
        1 - t
    )
    open_ = (0.25 + 0.45 * down).clamp(max=1.0)
    half = (0.045 + 0.05 * (2 * t - 0.9) ** 2).clamp(max=0.16) * w + 0.035 * w
    f = torch.maximum(off.abs() - half, ((t - 0.48).abs() - 0.5 * open_) * length)
    f = torch.maximum(f, patch.z - top)
    if anatomy.pelvis is not None:
        f = torch.maximum(f, -5.2 * segment - patch.z + 0.35 * length * (t - 0.4))
    glute = torch.maximum(
        (off + 0.18 * w + 0.02 * a).abs() - 0.16 * w - 0.04 * a, (0.05 - t) * length
    )
    glute = torch.maximum(glute, torch.maximum((t - 0.85) * length, patch.z - top + 0.2 * segment))
    if anatomy.pelvis is not None:
        glute = torch.maximum(glute, -5.0 * segment - patch.z)
    patch.paint(patch.cover(glute), hu["muscle"] + 4.0 * fine, MUSCLE)
    iliacus = torch.maximum(
        (off - 0.14 * w).abs() - 0.10 * w, (t - 0.48).abs() * length - 0.42 * length
    )
    iliacus = torch.maximum(iliacus, patch.z - top + 0.8 * segment)
    if anatomy.pelvis is not None:
        iliacus = torch.maximum(iliacus, -5.0 * segment - patch.z)
    patch.paint(patch.cover(iliacus), hu["muscle"] + 4.0 * fine, MUSCLE)
    patch.paint(patch.cover(f), hu["cortical bone"] * 0.85, PELVIS)
    patch.paint(patch.cover(f + 0.032 * w + 0.3), hu["marrow"] + 18.0 * fine, PELVIS)
    if anatomy.pelvis is not None:
        return
    below = ((-3.35 * segment - patch.z) / segment).clamp(0.0, 1.2)
    ala = (
        torch.hypot(side / (0.40 * w + 0.75 * w * below), (patch.y - y0 + 0.45 * w) / (0.42 * w))
        - 1.0
    )
    ala = torch.maximum(ala * 0.42 * w, patch.z + 3.45 * segment)
    patch.paint(patch.cover(ala), hu["cortical bone"] * 0.7, PELVIS)
    patch.paint(patch.cover(ala + 0.04 * w), hu["marrow"] + 15.0 * fine, PELVIS)
