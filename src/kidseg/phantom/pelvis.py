"""The walls of the pelvis: its cavity, sacrum, hip bones, femurs, and the muscles around them.

Below the iliac crest the trunk is no longer a cylinder of nested layers: the cavity narrows to the
pelvic floor, and bones and muscles fill the space up to the fat. Sizes are relative to the width of
a lumbar vertebra, levels are in lumbar segments below the second lumbar vertebra.

Source: usual values of anatomy: hip bone 21 cm high, heads of the femurs 4.8 cm wide and 18 cm
apart, inlet 12 cm and outlet 11 cm wide, for a vertebra of 4.8 cm and a segment of 3.6 cm.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from kidseg.phantom.anatomy import Anatomy, Body
from kidseg.phantom.canvas import Canvas, Patch
from kidseg.phantom.shapes import Place, ellipsoid, smooth_max, smooth_min, tube
from kidseg.phantom.surfaces import cavity, fascia, skin

__all__ = [
    "HIP_LEVEL",
    "SACRUM_LEVEL",
    "femur_mm",
    "hip_centre_mm",
    "in_pelvis",
    "paint_hips",
    "paint_pelvic_wall",
    "paint_sacrum",
    "profile",
    "sacrum_front_mm",
    "symphysis_mm",
]

FAT, MUSCLE, BONE, FEMUR = 2, 3, 6, 34

SACRUM_LEVEL = 3.5
"""Lower end of the fifth lumbar vertebra."""
HIP_LEVEL = 5.75
"""Centres of the heads of the femurs."""
_SYMPHYSIS_LEVEL = 6.5
_FLOOR_LEVEL = 7.5
_CREST_LEVEL = 2.0

# The sacrum and coccyx by level: y of the centre, half the thickness and half the width.
_SACRUM = (3.6, 4.1, 4.7, 5.3, 5.8, 6.2, 6.6)
_SACRUM_Y = (-0.02, -0.25, -0.62, -0.86, -0.84, -0.62, -0.38)
_SACRUM_DEPTH = (0.36, 0.33, 0.28, 0.24, 0.17, 0.11, 0.05)
_SACRUM_WIDTH = (0.60, 1.15, 1.05, 0.80, 0.55, 0.30, 0.10)


def profile(level: Tensor, knots: Sequence[float], values: Sequence[float]) -> Tensor:
    """Piecewise linear in the level, constant beyond the first and the last knot."""
    out = torch.full_like(level, values[0])
    for (k0, v0), (k1, v1) in pairwise(zip(knots, values, strict=True)):
        out = out + (v1 - v0) * ((level - k0) / (k1 - k0)).clamp(0.0, 1.0)
    return out


def _hip_y(body: Body) -> float:
    return body.spine_y_mm + 0.55 * body.vertebra_mm


def hip_centre_mm(body: Body) -> tuple[float, float, float]:
    """(|x|, y, z) of the head of a femur."""
    w = body.vertebra_mm
    return min(1.85 * w, 0.55 * body.organ_lateral_mm), _hip_y(body), -HIP_LEVEL * body.segment_mm


def symphysis_mm(body: Body) -> tuple[float, float]:
    """(y, z) of the centre of the pubic symphysis."""
    return _hip_y(body) + 0.95 * body.vertebra_mm, -_SYMPHYSIS_LEVEL * body.segment_mm


def sacrum_front_mm(body: Body, level: float) -> float:
    """y of the front of the sacrum at a level."""
    middle = np.interp(level, _SACRUM, _SACRUM_Y) + np.interp(level, _SACRUM, _SACRUM_DEPTH)
    return body.spine_y_mm + float(middle) * body.vertebra_mm


def in_pelvis(body: Body, place: Place) -> Tensor:
    """Implicit function of the cavity's lower part, about mm: a funnel from the crest to the floor.

    Above the crest it is negative everywhere inside the trunk.
    """
    x, y, z = place
    w, level = body.vertebra_mm, -z / body.segment_mm
    knots = (2.0, 3.0, 4.2, 5.2, 6.2, 7.0, _FLOOR_LEVEL)
    a, b = body.organ_lateral_mm, body.organ_depth_mm
    inlet = min(1.40 * w, 0.46 * a)
    wide = (1.5 * a, 0.82 * a, 0.60 * a, inlet, 0.90 * inlet, 0.62 * inlet, 0.15 * inlet)
    back = [-2.0 * b, body.spine_y_mm - w]
    back += [sacrum_front_mm(body, k) for k in knots[2:5]]
    back += [body.spine_y_mm + 0.1 * w, body.spine_y_mm + 0.55 * w]
    bone = symphysis_mm(body)[0] - 0.30 * w
    front = (3.0 * b, 3.0 * b, 3.0 * b, 1.6 * b, bone, bone - 0.15 * w, bone - 0.4 * w)
    half = profile(level, knots, wide)
    low, high = profile(level, knots, back), profile(level, knots, front)
    across, along = (x / half) ** 2, ((y - (low + high) / 2) / ((high - low) / 2)) ** 2
    radius = torch.sqrt(torch.sqrt(across**2 + 1.2 * across * along + along**2) + 1e-9)
    wall = (radius - 1.0) * 0.8 * torch.minimum(half, (high - low) / 2)
    return torch.maximum(wall, (level - _FLOOR_LEVEL) * body.segment_mm)


def paint_pelvic_wall(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint fat and muscle between the skin and the cavity, from the crest down."""
    body = anatomy.body
    w, segment = body.vertebra_mm, body.segment_mm
    half = 1.3 * body.half_lateral_mm, 1.4 * body.half_depth_mm
    low = 2 * anatomy.modelled_mm[0]
    patch = canvas.patch(((-half[0], -half[1], low), (*half, -_CREST_LEVEL * segment)))
    if patch is None:
        return
    level = -patch.z / segment
    fine, middle, large = (patch.noise(name) for name in ("fine", "middle", "large"))
    fat = hu["fat"] + 3.0 * fine
    muscle = hu["muscle"] + 4.0 * fine + 3.0 * large
    muscle = muscle - 55.0 * anatomy.look.muscle_fat * (middle - 0.4).clamp(0.0, 1.0)
    below = (5.0 - level) * segment
    within = (skin(body, patch.x, patch.y) - 1.0) * 0.9 * body.half_depth_mm + body.skin_mm + 0.5
    patch.paint(patch.cover(torch.maximum(below, within)), fat, FAT)
    hull = _hull(body, patch.place, level)
    inner = patch.pelvis
    under = (_CREST_LEVEL + 0.6 - level) * segment
    trunk = (fascia(body, patch.x, patch.y) - 1.0) * 0.9 * body.half_depth_mm
    wall = torch.maximum(torch.maximum(hull, trunk), torch.maximum(-inner, under))
    patch.paint(patch.cover(wall), muscle, MUSCLE)
    _paint_planes(patch, anatomy, wall, hull, fat)
    # The rectus reaches the pubic bone.
    front = torch.maximum(trunk, 1.0 - (cavity(body, patch.x, patch.y) - 1.0) * 50)
    rectus = torch.maximum(front, patch.x.abs() - 0.45 * body.organ_lateral_mm)
    rectus = torch.maximum(rectus, (level - HIP_LEVEL - 0.3) * segment)
    rectus = torch.maximum(rectus, torch.maximum(below, _hip_y(body) - patch.y))
    patch.paint(patch.cover(rectus), muscle, MUSCLE)
    inside = torch.maximum(torch.maximum(inner, under), (cavity(body, patch.x, patch.y) - 1) * 50)
    fill = hu["visceral fat"] + 4.0 * fine + 14.0 * middle.clamp(0.0, 1.5)
    patch.paint(patch.cover(inside), fill, FAT)
    # Levator and obturator line the cavity.
    lining = torch.maximum((inner - 0.06 * w).abs() - 0.06 * w, (5.4 - level) * segment)
    patch.paint(patch.cover(lining), hu["muscle"] + 4.0 * fine, MUSCLE)


def _hull(body: Body, place: Place, level: Tensor) -> Tensor:
    """The muscles around hip and thigh: wide at the crest, around the femurs below."""
    x, y, _ = place
    w, (cx, cy, _) = body.vertebra_mm, hip_centre_mm(body)
    knots = (3.0, 5.0, 5.9, 6.8, 7.6)
    most = 2.0 * body.half_lateral_mm
    wide = profile(level, knots, (most, most, cx + 1.55 * w, cx + 1.45 * w, cx + 1.25 * w))
    deep = 2.0 * body.half_depth_mm
    back = profile(level, knots, (deep, 2.6 * w, 2.45 * w, 2.0 * w, 1.6 * w))
    front = profile(level, knots, (deep, deep, 1.45 * w, 1.55 * w, 1.6 * w))
    along = (y - cy) / torch.where(y < cy, back, front)
    across = x / wide
    radius = torch.sqrt(torch.sqrt(across**4 + 1.1 * (across * along) ** 2 + along**4) + 1e-9)
    hull = (radius - 1.0) * torch.minimum(wide, torch.where(y < cy, back, front))
    cleft = 0.10 * w - x.abs() + 0.25 * (y - cy + 1.2 * w).clamp(min=0.0)
    return torch.maximum(hull, torch.where(y < cy - 0.8 * w, cleft, torch.full_like(cleft, -9.0)))


def _paint_planes(patch: Patch, anatomy: Anatomy, wall: Tensor, hull: Tensor, fat: Tensor) -> None:
    """Paint fat between the muscles: parallel to the surface, and between their bundles."""
    w, spread = anatomy.body.vertebra_mm, anatomy.body.visceral_fat
    thin = 0.4 + 1.3 * spread
    bundles = patch.noise("large", halo=True) + 0.35 * patch.noise("blotch", halo=True)
    for depth in (0.42, 0.85):
        sheet = (hull + depth * w + 0.10 * w * bundles).abs() - thin
        patch.paint(0.85 * patch.cover(torch.maximum(sheet, wall + 1.0), 2 * thin), fat)
    seam = (bundles.abs() - 0.10) * 0.12 * w
    patch.paint(0.6 * patch.cover(torch.maximum(seam, wall + 1.5)), fat)


def paint_sacrum(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint sacrum and coccyx, with the foramina of the sacral nerves."""
    body = anatomy.body
    w, y0, segment = body.vertebra_mm, body.spine_y_mm, body.segment_mm
    box = ((-1.3 * w, y0 - 1.6 * w, -6.8 * segment), (1.3 * w, y0 + 0.6 * w, -3.3 * segment))
    patch = canvas.patch(box)
    if patch is None:
        return
    level = -patch.z / segment
    thick = profile(level, _SACRUM, _SACRUM_DEPTH) * w
    wide = profile(level, _SACRUM, _SACRUM_WIDTH) * w
    off = patch.y - y0 - profile(level, _SACRUM, _SACRUM_Y) * w
    f = (torch.hypot(patch.x / wide, off / thick) - 1.0) * torch.minimum(thick, wide)
    ends = torch.maximum(_SACRUM[0] - level, level - _SACRUM[-1]) * segment
    f = smooth_max(f, ends, 0.06 * w)
    crest = torch.maximum(patch.x.abs() - 0.07 * w, (off + 1.25 * thick).abs() - 0.45 * thick)
    f = smooth_min(f, torch.maximum(crest, (level - 5.4).abs() * segment - 1.3 * segment), 1.0)
    fine = patch.noise("fine")
    patch.paint(patch.cover(f), hu["cortical bone"] * 0.75, BONE)
    marrow = 0.85 * hu["marrow"] + 18.0 * fine
    patch.paint(patch.cover(f + 0.03 * w + 0.4), marrow, BONE)
    within = level / 0.6 - (level / 0.6).round()
    foramen = torch.hypot((patch.x.abs() - 0.38 * wide) / 1.2, within * 0.6 * segment) - 0.085 * w
    foramen = torch.maximum(foramen, (level - 4.7).abs() * segment - 0.9 * segment)
    patch.paint(patch.cover(torch.maximum(foramen, f)), hu["visceral fat"] + 60.0)
    canal = torch.hypot(patch.x / 1.8, off + 0.55 * thick) - 0.10 * w
    canal = torch.maximum(canal, (level - 4.3) * segment - 1.0 * segment)
    patch.paint(patch.cover(torch.maximum(canal, f)), hu["canal"])


def paint_hips(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint both hip bones below the iliac wings, the femurs, and the iliopsoas before them."""
    for sign in (1.0, -1.0):
        _paint_hip(canvas, anatomy, sign, hu)


def _paint_hip(canvas: Canvas, anatomy: Anatomy, sign: float, hu: dict[str, float]) -> None:
    body = anatomy.body
    w, (cx, cy, cz) = body.vertebra_mm, hip_centre_mm(body)
    ends = sorted((0.0, sign * (cx + 2.0 * w)))
    low, high = 2 * anatomy.modelled_mm[0], cz + 2.6 * body.segment_mm
    patch = canvas.patch(((ends[0], cy - 2 * w, low), (ends[1], cy + 2 * w, high)))
    if patch is None:
        return
    place = (patch.x * sign, patch.y, patch.z)
    psoas = _iliopsoas(place, body)
    muscle = hu["muscle"] + 4.0 * patch.noise("fine")
    patch.paint(0.8 * patch.cover(psoas - 0.3 - body.visceral_fat), hu["visceral fat"])
    patch.paint(patch.cover(psoas), muscle, MUSCLE)
    head = ellipsoid(place, (cx, cy, cz), (0.50 * w,) * 3)
    hip = _hip_bone(place, body, head)
    _paint_bone(patch, hip, 0.035 * w + 0.4, BONE, hu)
    joint = torch.maximum(head - 0.06 * w, -hip)
    patch.paint(patch.cover(joint), hu["cartilage"])
    shell = 0.03 * w + 0.4 + 0.09 * w * ((cz - 0.9 * w - patch.z) / w).clamp(0.0, 1.0)
    _paint_bone(patch, _femur(place, body, head), shell, FEMUR, hu)


def _rod(
    place: Place, body: Body, points: Sequence[tuple[float, float, float]], radii: Sequence[float]
) -> Tensor:
    """A tube through points (mm); radii in widths of a vertebra."""
    return tube(place, np.array(points), body.vertebra_mm * np.array(radii))


def _iliopsoas(place: Place, body: Body) -> Tensor:
    """The muscle before the hip, from the spine to the femur."""
    w, segment, (cx, cy, cz) = body.vertebra_mm, body.segment_mm, hip_centre_mm(body)
    way = [
        (1.05 * w, body.spine_y_mm + 0.25 * w, -3.6 * segment),
        (1.45 * w, cy + 0.55 * w, -4.8 * segment),
        (cx - 0.05 * w, cy + 0.80 * w, cz),
        (cx + 0.30 * w, cy + 0.15 * w, cz - 1.4 * w),
    ]
    return _rod(place, body, way, [0.40, 0.42, 0.36, 0.22])


def _hip_bone(place: Place, body: Body, head: Tensor) -> Tensor:
    """Socket and roof of the joint, ischium and pubis, around the head of the femur."""
    w, (cx, cy, cz) = body.vertebra_mm, hip_centre_mm(body)
    sy, sz = symphysis_mm(body)
    socket = torch.maximum(ellipsoid(place, (cx, cy, cz), (0.72 * w,) * 3), -(head - 0.06 * w))
    # The socket is open to the side and below.
    socket = smooth_max(socket, place[0] - cx - 0.30 * w - 0.35 * (place[2] - cz), 0.1 * w)
    above = [(cx + 0.05 * w, cy - 0.05 * w, cz + 0.60 * w), (cx, cy - 0.35 * w, cz + 1.25 * w)]
    roof = _rod(place, body, above, [0.42, 0.20])
    behind = [
        (cx - 0.30 * w, cy - 0.50 * w, cz - 0.1 * w),
        (cx - 0.40 * w, cy - 0.70 * w, cz - 1.0 * w),
        (cx - 0.50 * w, cy - 0.55 * w, cz - 1.75 * w),
    ]
    ischium = _rod(place, body, behind, [0.28, 0.26, 0.30])
    before = [
        (cx - 0.45 * w, cy + 0.40 * w, cz + 0.05 * w),
        (0.30 * w, sy, sz + 0.10 * w),
        (0.24 * w, sy - 0.05 * w, sz - 0.35 * w),
        (cx - 0.60 * w, cy - 0.25 * w, cz - 1.75 * w),
    ]
    pubis = _rod(place, body, before, [0.22, 0.22, 0.17, 0.13])
    pubis = torch.maximum(pubis, 0.05 * w - place[0])
    return smooth_min(
        smooth_min(socket, roof, 0.2 * w), smooth_min(ischium, pubis, 0.1 * w), 0.1 * w
    )


def _trochanter_mm(body: Body) -> float:
    """|x| of the outer side of the greater trochanter."""
    w, (cx, _, _) = body.vertebra_mm, hip_centre_mm(body)
    return min(cx + 1.35 * w, 0.78 * body.half_lateral_mm)


def femur_mm(body: Body) -> list[tuple[float, float, float]]:
    """(|x|, y, z) along a femur: its head, the base of its neck, and two points of its shaft."""
    w, (cx, cy, cz), trochanter = body.vertebra_mm, hip_centre_mm(body), _trochanter_mm(body)
    return [
        (cx, cy, cz),
        (trochanter - 0.25 * w, cy - 0.20 * w, cz - 0.75 * w),
        (trochanter - 0.42 * w, cy - 0.10 * w, cz - 2.0 * w),
        (trochanter - 0.55 * w, cy, cz - 5.0 * w),
    ]


def _femur(place: Place, body: Body, head: Tensor) -> Tensor:
    """Head, neck, greater trochanter and shaft."""
    w, (_, cy, cz) = body.vertebra_mm, hip_centre_mm(body)
    trochanter = _trochanter_mm(body)
    outwards = femur_mm(body)[:2]
    neck = _rod(place, body, outwards, [0.34, 0.36])
    great = ellipsoid(
        place,
        (trochanter - 0.12 * w, cy - 0.32 * w, cz - 0.55 * w),
        (0.34 * w, 0.42 * w, 0.55 * w),
    )
    down = [(trochanter - 0.30 * w, cy - 0.20 * w, cz - 0.8 * w), *femur_mm(body)[2:]]
    shaft = _rod(place, body, down, [0.42, 0.32, 0.30])
    return smooth_min(
        smooth_min(head, neck, 0.12 * w), smooth_min(great, shaft, 0.15 * w), 0.15 * w
    )


def _paint_bone(
    patch: Patch, f: Tensor, shell_mm: float | Tensor, organ: int, hu: dict[str, float]
) -> None:
    marrow = 0.8 * hu["marrow"] + 18.0 * patch.noise("fine") + 10.0 * patch.noise("middle")
    patch.paint(patch.cover(f), hu["cortical bone"] * 0.9, organ)
    patch.paint(patch.cover(f + shell_mm), marrow, organ)
