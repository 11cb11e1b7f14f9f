"""Paint the body wall: skin, fat, muscle layers, diaphragm, lung bases, arms."""

from __future__ import annotations

import torch
from torch import Tensor

from kidseg.phantom.anatomy import Anatomy, Body
from kidseg.phantom.canvas import Canvas, Patch
from kidseg.phantom.pelvis import SACRUM_LEVEL
from kidseg.phantom.surfaces import cavity, dome_mm, fascia, paraspinal, skin

__all__ = ["arm_centres", "paint_arms", "paint_deep_muscles", "paint_thorax", "paint_wall"]

SKIN, FAT, MUSCLE, LUNG, HEART, ARM, DIAPHRAGM = 1, 2, 3, 8, 9, 28, 29


def paint_wall(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint skin, subcutaneous fat, the muscle layers, and visceral fat in the cavity."""
    body, patch = anatomy.body, canvas.full()
    radius = torch.hypot(patch.x, patch.y)
    outer = skin(body, patch.x, patch.y)
    depth = radius * (1.0 / outer.clamp(min=1e-3) - 1.0)
    patch.paint(patch.cover(-depth), hu["skin"], SKIN)
    fine, large = patch.noise("fine"), patch.noise("large")
    strands = (1.0 - patch.noise("middle").abs() * 5.0).clamp_(min=0.0)
    fat = hu["fat"] + 3.0 * fine + 12.0 * strands * (large > 0.2)
    patch.paint(patch.cover(body.skin_mm - depth), fat, FAT)
    rho_out = fascia(body, patch.x, patch.y)
    rho_in = cavity(body, patch.x, patch.y)
    muscle = hu["muscle"] + 4.0 * fine + 3.0 * large
    wall = patch.cover((rho_out - 1.0) * 50.0)
    patch.paint(wall, muscle, MUSCLE)
    _paint_layers(patch, body, rho_out, rho_in, wall, fat)
    fill = hu["visceral fat"] + 4.0 * fine + 20.0 * (strands > 0.75) * (large > -0.5)
    patch.paint(patch.cover((rho_in - 1.0) * 50.0), fill, FAT)


def _paint_layers(
    patch: Patch, body: Body, rho_out: Tensor, rho_in: Tensor, wall: Tensor, fat: Tensor
) -> None:
    """Paint fat between the flat muscles, around the rectus and behind the flank."""
    depth = ((1.0 - rho_out) / (rho_in - rho_out).clamp(min=1e-3)).clamp(-0.5, 1.5)
    side = patch.x.abs() / body.organ_lateral_mm
    front = patch.y / body.organ_depth_mm
    wall_mm = body.wall_lateral_mm
    half_line = (0.25 + 0.45 * body.visceral_fat) / wall_mm
    slant = front[:-1] + 0.22 * (depth[:-1] - 0.5)
    lateral = _ramp(side[:-1], 0.50, 0.58) * _ramp(slant, -0.36, -0.28)
    large = patch.noise("large", halo=True)
    for level in (0.36, 0.70):
        line = (depth + 0.05 * large - level).abs() - half_line
        line = patch.cover(line * wall_mm, 2 * half_line * wall_mm) * wall
        patch.paint(line * lateral * 0.85, fat)
    # The rectus: a lens on each side of the linea alba; only tendon between it and the flank.
    in_front = _ramp(front[:-1], 0.25, 0.33) * _ramp(-side[:-1], -0.60, -0.52)
    across = (side - 0.27) / 0.255
    lens = across**2 + ((depth - 0.42) / 0.62) ** 2 - 1.0
    gap = patch.cover(-lens) * wall * in_front
    sinew = patch.cover((depth - 0.88).abs() - 0.10)
    patch.paint(gap, fat)
    patch.paint(gap * sinew, 45.0)
    strip = wall * _ramp(-slant, 0.30, 0.40)
    patch.paint(strip, fat, FAT)
    size = min(1.0, body.muscularity)
    thin = patch.cover((depth - 0.20 + 0.04 * large).abs() - 0.17 * size)
    shell = patch.cover((depth - 0.78 + 0.05 * large).abs() - 0.17)
    muscle = 52.0 + 4.0 * patch.noise("fine")
    for sheet in (thin, shell):
        patch.paint(sheet * strip * (side > 0.2)[:-1], muscle, MUSCLE)


def _ramp(values: Tensor, low: float, high: float) -> Tensor:
    """0 up to `low`, 1 from `high`, linear in between."""
    return ((values - low) / (high - low)).clamp(0.0, 1.0)


def paint_deep_muscles(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint psoas, quadratus lumborum and the muscles behind the spine."""
    body = anatomy.body
    vertebra, segment = body.vertebra_mm, body.segment_mm
    reach = 2.2 * vertebra
    low, high = anatomy.modelled_mm
    y0 = body.spine_y_mm
    patch = canvas.patch(((-reach, -body.half_depth_mm, low), (reach, y0 + vertebra, high)))
    if patch is None:
        return
    fine, middle = patch.noise("fine"), patch.noise("middle")
    streaks = (1.0 - middle.abs() * 9.0).clamp_(min=0.0)
    muscle = hu["muscle"] + 4.0 * fine
    # With a pelvis, its own muscles follow below.
    lowest = torch.full_like(patch.z, -torch.inf)
    if anatomy.pelvis is not None:
        lowest = -SACRUM_LEVEL * segment - patch.z
    streaked = muscle - (20.0 + 45.0 * body.visceral_fat) * streaks
    if anatomy.look.muscle_fat > 0:
        streaked = muscle - _fat_streaks(patch, body, anatomy.look.muscle_fat)
    back = torch.maximum(paraspinal(body, patch.x, patch.y), lowest - 1.5 * segment)
    patch.paint(patch.cover(back), streaked, MUSCLE)
    cleft = (
        patch.x.abs()
        + 0.05 * vertebra * patch.noise("large", halo=True)
        - 0.62 * vertebra
        - 0.25 * (patch.y - y0 + vertebra)
    ).abs()
    line = patch.cover(torch.maximum(cleft - 0.3 - 0.5 * body.visceral_fat, back + 1.5))
    patch.paint(line * 0.7, -60.0)
    size = body.muscularity
    gap_mm = 0.3 + 1.2 * body.visceral_fat
    for sign in (1.0, -1.0):
        down = ((1.6 * segment - patch.z) / segment).clamp(min=0.0)
        radius = vertebra * size * (0.085 * down.clamp(max=3.5) + 0.07)
        apart = vertebra * (0.50 + 0.045 * down) + 0.62 * radius
        psoas = torch.hypot(
            patch.x * sign - apart, (patch.y - y0 + vertebra * 0.10 - 0.25 * radius) / 1.25
        )
        f = torch.where(patch.z < 1.6 * segment, psoas - radius, torch.full_like(psoas, 9.0))
        f = torch.maximum(f, lowest)
        patch.paint(0.8 * patch.cover(f - gap_mm), hu["visceral fat"])
        patch.paint(patch.cover(f), muscle - 25.0 * streaks, MUSCLE)
        lumborum = torch.hypot(
            (patch.x * sign - vertebra * (1.32 + 0.04 * down)) / 2.4,
            patch.y - y0 + vertebra * 0.58 - 0.05 * (patch.x * sign),
        )
        f = lumborum - 0.17 * vertebra * size
        f = torch.where(patch.z < 2.0 * segment, f, torch.full_like(f, 9.0))
        f = torch.maximum(f, lowest)
        patch.paint(0.8 * patch.cover(f - gap_mm), hu["visceral fat"])
        patch.paint(patch.cover(f), muscle, MUSCLE)


def _fat_streaks(patch: Patch, body: Body, amount: float) -> Tensor:
    """HU that fat takes away from the muscles of the back: sheets between fascicles, and a haze.

    Fascicles run to the spinous processes; more of them are fatty near the mid-line. On MRI the
    multifidus was fatty in 81 % of people of 40 years, in 14 % of those of 13. The texture was
    drawn after development slices. Source: Kjaer et al., BMC Med 5 (2007) 2.
    """
    w = body.vertebra_mm
    x, y = patch.x[:-1].abs(), patch.y[:-1] - body.spine_y_mm
    middle, large = patch.noise("middle"), patch.noise("large")
    blotch = patch.noise("blotch")
    across = (x * 0.85 + 0.5 * y) / (0.19 * w) + 0.55 * blotch + 0.12 * middle
    near = torch.exp(-((x / (0.9 * w)) ** 2)) + 0.35
    off = (torch.remainder(across, 1.0) - 0.5).abs()
    sheet = (1.0 - off / (0.05 + 0.22 * amount)).clamp(0.0, 1.0)
    kept = ((0.8 * large + 0.7 * middle + 3.0 * amount * near - 1.0) * 0.8).clamp(0.0, 1.0)
    haze = (middle + 0.5 * patch.noise("fine") - 0.6).clamp(0.0, 1.5) * near * amount
    return 110.0 * sheet * kept * (0.25 + amount) + 30.0 * haze + 12.0 * amount


def paint_thorax(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint diaphragm, lungs with their vessels, and the heart above the diaphragm."""
    body, segment = anatomy.body, anatomy.body.segment_mm
    a, b = body.organ_lateral_mm, body.organ_depth_mm
    low, high = -0.5 * segment, anatomy.modelled_mm[1] + 2 * segment
    patch = canvas.patch(((-a, -b, low), (a, b, high)))
    if patch is None:
        return
    dome = dome_mm(body, patch.x, patch.y)
    steep = 1.0 + 1.2 * (patch.x.abs() / a + patch.y.abs() / b)
    above = (patch.z - dome) / steep
    inside = (cavity(body, patch.x, patch.y, grow_mm=0.5) - 1.0) * 0.7 * b
    thick = 0.8 + 0.014 * a
    leaf = torch.maximum(inside, -above - thick)
    patch.paint(patch.cover(leaf), hu["muscle"], DIAPHRAGM)
    fine, middle = patch.noise("fine"), patch.noise("middle")
    vessels = (patch.noise("vessels") - 1.55).clamp_(0.0, 0.5) * 2.0
    lung = hu["lung"] + 28.0 * middle + 10.0 * fine
    lung = lung + vessels * (40.0 - lung)
    back = ((body.spine_y_mm - patch.y) * 0.5).clamp(0.0, 30.0)[:-1]
    mediastinum = torch.hypot(
        (patch.x + 0.05 * a) / 0.30, (patch.y - body.spine_y_mm - 0.25 * b) / 0.75
    )
    between = (a * 0.9 - mediastinum) * 0.3
    soft = torch.maximum(torch.maximum(inside, -above), -between)
    patch.paint(patch.cover(soft), hu["visceral fat"] + 25.0 + 25.0 * middle, FAT)
    gullet = torch.hypot(patch.x + 0.10 * a, patch.y - body.spine_y_mm - 0.75 * body.vertebra_mm)
    gullet = torch.maximum(gullet - 0.035 * a - 2.0, -above)
    patch.paint(patch.cover(gullet), hu["stomach wall"], MUSCLE)
    f = torch.maximum(torch.maximum(inside, -above), between)
    patch.paint(patch.cover(f), lung + 2.0 * back, LUNG)
    centre = body.dome_left_mm + 0.55 * segment
    heart = torch.sqrt(
        ((patch.x + 0.16 * a) / (0.48 * a)) ** 2
        + ((patch.y - 0.38 * b) / (0.44 * b)) ** 2
        + ((patch.z - centre) / (1.35 * segment * anatomy.viscera.heart)) ** 2
    )
    f = torch.maximum((heart - 1.0) * 0.4 * a, -above)
    cover = patch.cover(torch.maximum(f, inside))
    fat = patch.cover(torch.maximum((heart - 1.0) * 0.4 * a - 2.0, torch.maximum(inside, -above)))
    patch.paint(fat, hu["visceral fat"] * 0.6, FAT)
    chamber = (1.0 - heart[:-1]).clamp(0.0, 0.35) / 0.35
    blood = 0.55 * hu["heart"] + 0.45 * hu["heart"] * (chamber > 0.5) + 4.0 * fine
    patch.paint(cover, blood, HEART)


def arm_centres(body: Body) -> tuple[float, float, float]:
    """(|x|, y, radius) of arms next to the body, mm."""
    radius = 0.235 * body.half_lateral_mm
    return body.half_lateral_mm + 1.35 * radius, -0.72 * body.half_depth_mm, radius


def paint_arms(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float]) -> None:
    """Paint both arms along the body: elbow at the second lumbar vertebra, forearm below."""
    body = anatomy.body
    x0, y0, radius = arm_centres(body)
    low, high = anatomy.modelled_mm
    segment = body.segment_mm
    for sign in (1.0, -1.0):
        box = (
            (min(sign * (x0 - 2 * radius), sign * (x0 + 2 * radius)), y0 - 2 * radius, 2 * low),
            (max(sign * (x0 - 2 * radius), sign * (x0 + 2 * radius)), y0 + 2 * radius, 2 * high),
        )
        patch = canvas.patch(box)
        if patch is None:
            continue
        x = patch.x * sign - x0 + 0.02 * patch.z
        y = patch.y - y0 - 0.02 * patch.z
        size = radius * (1.0 + 0.02 * (patch.z / segment).clamp(-4.0, 4.0))
        r = torch.hypot(x, y * 1.12)
        fat = 0.20 * radius + 0.25 * body.fat_lateral_mm
        fine = patch.noise("fine")
        patch.paint(patch.cover(r - size), hu["skin"], ARM)
        patch.paint(patch.cover(r - size + body.skin_mm), hu["fat"] + 3 * fine, ARM)
        muscle = hu["muscle"] + 4 * fine
        patch.paint(patch.cover(r - size + fat), muscle, ARM)
        spread = 0.30 * radius * ((0.5 * segment - patch.z) / segment).clamp(0.0, 1.0)
        for end in (1.0, -1.0):
            bone = torch.hypot(x - end * spread, y - 0.1 * radius) - 0.17 * radius
            patch.paint(patch.cover(bone), hu["cortical bone"], ARM)
            patch.paint(patch.cover(bone + 0.07 * radius), hu["marrow"] * 0.6, ARM)
