"""Renal tumours: their shape, the displacement of the anatomy, and their internal texture.

A tumour grows from a point of its kidney. A tumour of radius R moves tissue at distance r' from
that point to the distance r with r^3 = R^3 + r'^3: volume is preserved. So the kidney becomes a
thin crescent around the tumour (the claw sign), and liver, bowel and vessels are displaced. Spine
and back do not move, and the tumour adapts to their shape.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from kidseg.phantom.anatomy import Body, Kidney, Tumour
from kidseg.phantom.canvas import Canvas
from kidseg.phantom.surfaces import cavity, spine_clearance

__all__ = [
    "TUMOUR",
    "distance_mm",
    "draw_tumour",
    "fitted",
    "paint_tumours",
    "pushed",
    "resized",
    "settled",
]

TUMOUR = 26
_SAMPLES = 44
# A large tumour makes the belly bulge by this fraction, over this many tumour radii.
_BULGE = 0.24
_BULGE_REACH = 1.5
# Minimum fraction of its free shape that a tumour keeps; otherwise it is moved.
_LEAST_ROOM = 0.72


def draw_tumour(rng: np.random.Generator, body: Body, kidney: Kidney, volume_ml: float) -> Tumour:
    """Draw a tumour of this volume in a kidney."""
    from kidseg.phantom.kidneys import Frame

    frame = Frame.of(kidney)
    latitude = rng.uniform(-75.0, 75.0)
    azimuth = rng.normal(0.0, 55.0)
    lat, az = np.deg2rad([latitude, azimuth])
    outward = np.array([np.cos(lat) * np.cos(az), np.cos(lat) * np.sin(az), np.sin(lat)])
    origin = frame.anatomy_mm(*(rng.uniform(0.80, 1.0) * outward * (1.0, 1.0, 0.85)))
    radius = float(np.cbrt(volume_ml * 1000.0 * 3 / (4 * np.pi)))
    centre = settled(body, origin, origin + 0.7 * radius * (outward @ frame.axes), radius)
    lobes = [(0.0, 0.0, 0.0, float(rng.uniform(0.85, 0.95)))]
    for _ in range(int(rng.integers(2, 7))):
        away = rng.normal(size=3)
        away *= rng.uniform(0.35, 0.62) / np.linalg.norm(away)
        x, y, z = (float(v) for v in away * (1.0, 1.0, 1.15))
        lobes.append((x, y, z, float(rng.uniform(0.35, 0.60))))
    ox, oy, oz = (float(v) for v in origin)
    cx, cy, cz = (float(v) for v in centre)
    rough = Tumour(
        side=kidney.side,
        volume_ml=volume_ml,
        origin_mm=(ox, oy, oz),
        centre_mm=(cx, cy, cz),
        radius_mm=radius,
        lobes=tuple(lobes),
        necrosis=float(rng.beta(2.0, 2.4)),
        haemorrhage=float(rng.beta(1.2, 5.0)),
        septa=float(rng.beta(1.5, 2.0)),
        rim_mm=float(rng.uniform(0.8, 1.8)),
        calcified=bool(rng.random() < 0.09),
    )
    return fitted(rough, body)


def fitted(tumour: Tumour, body: Body) -> Tumour:
    """Move a tumour away from spine and back, and scale it to its volume."""
    return _scaled_to_volume(_with_room(tumour, body), body)


def resized(tumour: Tumour, body: Body, volume_ml: float) -> Tumour:
    """The same tumour grown to, or shrunk to, another volume."""
    scale = float(np.cbrt(volume_ml / tumour.volume_ml))
    origin, radius = np.array(tumour.origin_mm), scale * tumour.radius_mm
    centre = settled(body, origin, origin + scale * (tumour.centre_mm - origin), radius)
    x, y, z = (float(v) for v in centre)
    moved = replace(tumour, centre_mm=(x, y, z), radius_mm=radius, volume_ml=volume_ml)
    return fitted(moved, body)


def settled(body: Body, origin: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Move the centre until the tumour touches spine, back and wall but is not inside them."""
    spine = np.array([0.0, body.spine_y_mm])
    lateral = body.half_lateral_mm - body.fat_lateral_mm - body.wall_lateral_mm
    front = body.half_depth_mm - body.fat_front_mm - body.wall_front_mm
    back = body.half_depth_mm - body.fat_back_mm - body.wall_back_mm
    centre = centre.copy()
    sign = np.sign(origin[0])
    for _ in range(60):
        away = centre[:2] - spine
        gap = 0.75 * body.vertebra_mm + 0.80 * radius - np.linalg.norm(away)
        if gap > 0:
            away = away + np.array([sign * 0.5, 0.5])
            centre[:2] += 0.3 * gap * away / np.linalg.norm(away)
        centre[1] = max(centre[1], -back + 0.85 * radius)
        centre[1] = min(centre[1], max(front - 0.72 * radius, -back + 0.85 * radius))
        limit = max(lateral - 0.78 * radius, 0.0)
        centre[0] = sign * min(sign * centre[0], limit)
        # Growth limits the distance from the origin.
        step = centre - origin
        far = np.linalg.norm(step)
        if far > 0.85 * radius:
            centre = origin + step * (0.85 * radius / far)
    return centre


def _with_room(tumour: Tumour, body: Body) -> Tumour:
    """Move the tumour forwards until spine and back cut off little of it."""
    for _ in range(10):
        held, free = _volume_ml(tumour, body), _volume_ml(tumour, None)
        if held > _LEAST_ROOM * free:
            break
        x, y, z = tumour.centre_mm
        shift = 0.12 * tumour.radius_mm
        limit = 0.5 * (body.half_lateral_mm - body.fat_lateral_mm - body.wall_lateral_mm)
        x += float(np.clip(np.sign(tumour.origin_mm[0]) * limit - x, -shift / 2, shift / 2))
        tumour = replace(tumour, centre_mm=(x, y + shift, z))
    return tumour


def _scaled_to_volume(tumour: Tumour, body: Body) -> Tumour:
    """Set the radius so that the rendered shape has the tumour's volume."""
    low, high = 0.6 * tumour.radius_mm, 2.2 * tumour.radius_mm
    for _ in range(12):
        middle = (low + high) / 2
        trial = replace(tumour, radius_mm=middle)
        if _volume_ml(trial, body) < tumour.volume_ml:
            low = middle
        else:
            high = middle
    return replace(tumour, radius_mm=(low + high) / 2)


def _volume_ml(tumour: Tumour, body: Body | None) -> float:
    reach = 1.6 * tumour.radius_mm
    steps = torch.linspace(-reach, reach, _SAMPLES)
    offsets = torch.meshgrid(steps, steps, steps, indexing="ij")
    place = torch.stack([o + c for o, c in zip(offsets, tumour.centre_mm, strict=True)])
    step = 2 * reach / (_SAMPLES - 1)
    if body is None:
        distance = _free_distance_mm(tumour, place)
    else:
        distance = distance_mm(tumour, body, place)
    inside = (0.5 - distance / step).clamp(0.0, 1.0)
    return float(inside.sum()) * step**3 / 1000.0


def _free_distance_mm(tumour: Tumour, place: Tensor) -> Tensor:
    """Distance to the surface of the unconstrained tumour: a smooth union of round lobes."""
    away = [p - float(c) for p, c in zip(place, tumour.centre_mm, strict=True)]
    scale = tumour.radius_mm
    total = torch.zeros_like(place[0])
    sharp = 7.0
    for x, y, z, radius in tumour.lobes:
        d = torch.sqrt(
            (away[0] / scale - x) ** 2 + (away[1] / scale - y) ** 2 + (away[2] / scale - z) ** 2
        )
        total += torch.exp(-sharp * (d - radius).clamp(max=10.0))
    return -torch.log(total.clamp(min=1e-30)) / sharp * scale


def distance_mm(tumour: Tumour, body: Body, place: Tensor) -> Tensor:
    """Approximate signed distance to the tumour's surface, limited by spine, back and wall.

    Args:
        tumour: the tumour.
        body: constrains the tumour.
        place: (3, ...) x, y, z in the straight anatomy after growth of the tumour.
    """
    free = _free_distance_mm(tumour, place)
    within = _deflated(tumour, body, place)
    wall = (cavity(body, within[0], within[1]) - 1.0) * body.half_depth_mm + 0.5
    return torch.maximum(free, torch.maximum(wall, 0.5 - spine_clearance(body, *place[:2])))


def pushed(tumour: Tumour, body: Body, place: Tensor) -> Tensor:
    """Position of tissue before the tumour grew.

    Args:
        tumour: the tumour that displaces it.
        body: constrains the displacement.
        place: (3, ...) x, y, z after growth.

    Returns:
        (3, ...) x, y, z before growth.
    """
    free = _free_distance_mm(tumour, place)
    # Tissue that would become thinner than this belongs to the tumour.
    lost = 0.5 + 0.035 * tumour.radius_mm
    ratio = ((free + tumour.radius_mm) / (tumour.radius_mm - lost)).clamp(min=1.0)
    shrink = (1.0 - (1.0 - tumour.replaced) * ratio**-3).clamp(min=0.0) ** (1.0 / 3.0)
    stay = (1.0 - tumour.replaced) * ratio**-2
    place_then = _deflated(tumour, body, place)
    yields = _yielding(body, place_then) * _fade(ratio)
    moved = []
    for p, c, o in zip(place_then, tumour.centre_mm, tumour.origin_mm, strict=True):
        before = o + (c - o) * (1.0 - stay) + (p - c) * shrink
        moved.append(p + yields * (before - p))
    return torch.stack(moved)


def _deflated(tumour: Tumour, body: Body, place: Tensor) -> Tensor:
    """Position of tissue before the belly bulged smoothly over the tumour."""
    away = [p - c for p, c in zip(place, tumour.centre_mm, strict=True)]
    reach = _BULGE_REACH * tumour.radius_mm
    square = sum((a / reach) ** 2 for a in away)
    swelling = _BULGE * min(1.0, 2.0 * tumour.radius_mm / body.half_lateral_mm)
    share = swelling * torch.exp(-torch.as_tensor(square)) * _unheld(body, place)
    return torch.stack([p - a * share for p, a in zip(place, away, strict=True)])


def _fade(ratio: Tensor) -> Tensor:
    """Weight of the displacement: 0 beyond three radii, so that distant organs do not move."""
    return ((3.4 - ratio) / 1.2).clamp(0.0, 1.0)


def _yielding(body: Body, place: Tensor) -> Tensor:
    """1 where tissue can move, 0 where it is fixed: spine, back and wall."""
    wall = ((1.0 - cavity(body, place[0], place[1])) / 0.22).clamp(0.0, 1.0)
    return _unheld(body, place) * _eased(wall)


def _unheld(body: Body, place: Tensor) -> Tensor:
    """0 in spine, great vessels and back, 1 elsewhere."""
    x, y = place[0], place[1]
    vertebra = body.vertebra_mm
    vessels = torch.hypot(x / 1.2, y - body.spine_y_mm - 0.55 * vertebra) - 0.45 * vertebra
    clearance = torch.minimum(spine_clearance(body, x, y), vessels)
    back = -(body.half_depth_mm - body.fat_back_mm - body.wall_back_mm)
    behind = ((y - 1.1 * back) / (0.75 * body.half_depth_mm)).clamp(0.0, 1.0)
    return _eased((clearance / (1.1 * vertebra)).clamp(0.0, 1.0) * behind)


def _eased(share: Tensor) -> Tensor:
    return share * share * (3.0 - 2.0 * share)


def paint_tumours(
    canvas: Canvas, tumours: tuple[Tumour, ...], hu: dict[str, float], bright: bool
) -> None:
    """Paint heterogeneous tissue: necrosis, haemorrhage, septa, pseudocapsule, calcifications."""
    for k, tumour in enumerate(tumours):
        reach = float(canvas.field[3 + k].min())
        if reach >= 1.0 or tumour.tissue != "wilms":
            continue
        patch = canvas.where(canvas.field[3 + k] < 2.0)
        if patch is None:
            continue
        middle = patch.noise("middle", halo=True)
        f = patch.extra[k] + 0.35 * middle
        middle, fine = middle[:-1], patch.noise("fine")
        large, blotch = patch.noise("large"), patch.noise("blotch")
        depth = (-f[:-1] / tumour.radius_mm).clamp(0.0, 1.0)
        value = hu["tumour"] + 8.0 * blotch + 8.0 * large + 6.0 * middle + 3.0 * fine
        dead = (blotch + 0.7 * large + 1.2 * depth - 2.3 + 3.6 * tumour.necrosis) * 1.8
        value = value.lerp(hu["necrosis"] + 4.0 * large + 2.0 * fine, dead.clamp(0.0, 1.0))
        bled = (large - 0.6 * blotch - 2.3 + 2.2 * tumour.haemorrhage) * 2.0
        value = value.lerp(hu["haemorrhage"] + 4.0 * middle, bled.clamp(0.0, 1.0))
        ridge = (1.0 - (large + 0.5 * middle).abs() * 3.5).clamp(min=0.0)
        value = value + ridge * tumour.septa * (0.45 * (hu["tumour rim"] - hu["tumour"]) + 5.0)
        if bright:
            lively = (0.7 * large - 0.8 * blotch - 0.5).clamp(0.0, 1.0)
            value = value + 0.35 * (hu["tumour rim"] - hu["necrosis"]) * lively
            vessels = (patch.noise("vessels") - 2.1).clamp(0.0, 0.5) * 2.0
            value = value + vessels * 60.0 * (1.0 - dead.clamp(0.0, 1.0))
        if tumour.calcified:
            specks = (patch.noise("vessels") + 0.5 * blotch - 3.6).clamp(0.0, 0.5) * 2.0
            value = value + specks * 300.0
        rim = ((f[:-1] + tumour.rim_mm) / 0.5).clamp(0.0, 1.0)
        value = value.lerp(torch.full_like(value, hu["tumour rim"]), 0.75 * rim)
        patch.paint(patch.cover(f), value, TUMOUR)
