"""Paint vessels: aorta and its branches, vena cava, renal, portal, hepatic, mesenteric."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kidseg.config import Phase
from kidseg.phantom.anatomy import Anatomy
from kidseg.phantom.canvas import Canvas, Patch
from kidseg.phantom.kidneys import Frame
from kidseg.phantom.shapes import tube

__all__ = ["Vessel", "aorta_at", "branched", "cava_at", "paint_vessels", "vessels_of"]

FAT, LIVER, AORTA, CAVA, PORTAL, OTHER = 2, 10, 17, 18, 19, 20


@dataclass(frozen=True, eq=False)
class Vessel:
    """A tube: (n, 3) points and (n,) radii in mm, tissue, organ; limited to the organ `within`."""

    points: np.ndarray
    radii: np.ndarray
    tissue: str
    organ: int
    within: int | None = None


def branched(
    rng: np.random.Generator,
    start: np.ndarray,
    direction: np.ndarray,
    length: float,
    radius: float,
    depth: int,
    spread: float = 0.6,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """A branching tree of tubes with radii by Murray's law: r^3 = r1^3 + r2^3."""
    direction = direction / np.linalg.norm(direction)
    bend = rng.normal(0.0, 0.18, size=3)
    middle = start + 0.5 * length * (direction + bend)
    end = start + length * (direction + 0.5 * bend)
    points = np.stack([start, middle, end])
    found = [(points, radius * np.array([1.0, 0.9, 0.8]))]
    if depth > 0:
        for _ in range(2 if rng.random() < 0.8 else 3):
            turn = direction + rng.normal(0.0, spread, size=3)
            found += branched(
                rng, end, turn, length * rng.uniform(0.6, 0.85), radius * 0.72, depth - 1, spread
            )
    return found


def vessels_of(anatomy: Anatomy, rng: np.random.Generator) -> list[Vessel]:
    """All vessels except aorta and vena cava."""
    return [
        *_renal(anatomy, rng),
        *_splanchnic(anatomy, rng),
        *_hepatic(anatomy, rng),
    ]


def aorta_at(anatomy: Anatomy, segments: float) -> np.ndarray:
    """(3,) centre of the aorta at a level, in lumbar segments above the second lumbar vertebra."""
    body, width = anatomy.body, anatomy.viscera.aorta_mm
    y = body.spine_y_mm + 0.36 * body.vertebra_mm + 0.60 * width
    x = -0.10 * body.vertebra_mm - 0.04 * body.vertebra_mm * max(segments, 0.0)
    return np.array([x, y - 0.015 * body.vertebra_mm * segments, segments * body.segment_mm])


def cava_at(anatomy: Anatomy, segments: float) -> np.ndarray:
    """(3,) centre of the vena cava at a level, as `aorta_at`."""
    body, width = anatomy.body, anatomy.viscera.aorta_mm
    forward = np.clip(segments - 1.0, 0.0, 3.0)
    y = body.spine_y_mm + (0.30 + 0.13 * forward) * body.vertebra_mm + 0.55 * width
    x = (0.40 + 0.05 * forward) * body.vertebra_mm
    return np.array([x, y, segments * body.segment_mm])


def paint_vessels(
    canvas: Canvas, anatomy: Anatomy, vessels: list[Vessel], hu: dict[str, float], phase: Phase
) -> None:
    """Paint all vessels; in the early arterial phase the vena cava shows mixing artefacts."""
    for vessel in vessels:
        reach = float(vessel.radii.max()) + 1.0
        patch = canvas.patch((vessel.points.min(0) - reach, vessel.points.max(0) + reach))
        if patch is None:
            continue
        thick = 2.0 * float(vessel.radii.mean())
        cover = patch.cover(tube(patch.place, vessel.points, vessel.radii), thick)
        if vessel.within is not None:
            cover = cover * (patch.organs == vessel.within)
        patch.paint(cover, hu[vessel.tissue], vessel.organ)
    _paint_great(canvas, anatomy, hu, phase)


def _paint_great(canvas: Canvas, anatomy: Anatomy, hu: dict[str, float], phase: Phase) -> None:
    body, width = anatomy.body, anatomy.viscera.aorta_mm
    top = anatomy.modelled_mm[1] / body.segment_mm + 2
    levels = np.linspace(-2.1, top, 9)
    points = np.stack([cava_at(anatomy, s) for s in levels])
    radius = 0.58 * width
    patch = canvas.patch((points.min(0) - 2 * radius - 1, points.max(0) + 2 * radius + 1))
    if patch is not None:
        flat = anatomy.viscera.cava_flatness
        # An oval cross-section: a tube in a space that is stretched from front to back.
        place = (patch.x, patch.y / flat, patch.z)
        radii = np.full(len(points), radius / flat**0.5)
        f = tube(place, points * (1.0, 1.0 / flat, 1.0), radii)
        value = torch.full_like(patch.hu, hu["vena cava"])
        if phase == "early-arterial":
            above = ((patch.z[:-1] / body.segment_mm - 0.4) / 1.2).clamp(0.0, 1.0)
            stream = (0.5 + 0.6 * patch.noise("middle")).clamp(0.0, 1.0)
            value = value + above * stream * 0.8 * (hu["renal vein"] - hu["vena cava"])
        patch.paint(patch.cover(f), value, CAVA)
    levels = np.linspace(-2.0, top, 9)
    points = np.stack([aorta_at(anatomy, s) for s in levels])
    radii = width / 2 * np.interp(levels, (-2, 2, 5), (0.9, 1.05, 1.25))
    patch = canvas.patch((points.min(0) - width, points.max(0) + width))
    if patch is not None:
        f = tube(patch.place, points, radii)
        patch.paint(patch.cover(f - 0.7), 48.0, AORTA)
        patch.paint(patch.cover(f), hu["aorta"] + 3.0 * patch.noise("fine"), AORTA)
        _paint_plaques(patch, f, anatomy.look.calcification)


def _paint_plaques(patch: Patch, f: torch.Tensor, extent: float) -> None:
    """Paint calcified plaques in the wall of an artery; `extent` 0 to 1 of its circumference."""
    if extent <= 0:
        return
    plaque = (patch.noise("large") + 0.4 * patch.noise("middle") - 1.7 + 2.2 * extent) * 2.0
    sheet = patch.cover((f + 0.2).abs() - 0.9)
    patch.paint(sheet * plaque.clamp(0.0, 1.0), 750.0, AORTA)


def _renal(anatomy: Anatomy, rng: np.random.Generator) -> list[Vessel]:
    body, width = anatomy.body, anatomy.viscera.aorta_mm
    found = []
    for kidney in anatomy.kidneys:
        frame = Frame.of(kidney)
        right = kidney.side == "right"
        hilum = frame.anatomy_mm(-1.25, 0.0, 0.05)
        sinus = frame.anatomy_mm(-0.45, 0.0, 0.0)
        source = aorta_at(anatomy, float(rng.uniform(0.5, 1.0)))
        between = (source + hilum) / 2 - (0, 0.05 * body.vertebra_mm, 0)
        if right:
            between[1] = min(between[1], cava_at(anatomy, 0.6)[1] - 0.75 * width)
        trunk = np.stack([source, between, hilum, sinus])
        radius = 0.17 * width * float(rng.uniform(0.85, 1.15))
        found.append(Vessel(trunk, np.full(4, radius) * (1, 1, 0.9, 0.8), "aorta", OTHER))
        drain = cava_at(anatomy, float(rng.uniform(0.4, 0.8)))
        shift = np.array([0.0, 0.10 * width, -0.25 * width])
        points = [sinus + shift, hilum + shift]
        if not right:
            front = aorta_at(anatomy, 0.5) + np.array([0, 1.15 * width, 0])
            points += [front + np.array([-0.9 * width, -0.45 * width, 0]), front]
        points.append(drain)
        vein = np.stack(points)
        radii = np.linspace(0.22, 0.34, len(points)) * width
        found.append(Vessel(vein, radii, "renal vein", OTHER))
        for _ in range(6):
            angle, level = rng.uniform(-np.pi / 2, np.pi / 2), rng.uniform(-0.6, 0.6)
            end = frame.anatomy_mm(-0.15, 0.35 * np.sin(angle), level)
            half = (sinus + end) / 2 + rng.normal(0.0, 0.6, size=3)
            for tissue, shrink in (("aorta", 0.09), ("renal vein", 0.13)):
                path = np.stack([sinus, half, end]) + rng.normal(0.0, 0.8, size=(3, 3))
                found.append(Vessel(path, width * shrink * np.array([1, 0.8, 0.6]), tissue, OTHER))
    return found


def _splanchnic(anatomy: Anatomy, rng: np.random.Generator) -> list[Vessel]:
    """Coeliac trunk, superior mesenteric artery and vein with branches, splenic and portal vein."""
    body, width = anatomy.body, anatomy.viscera.aorta_mm
    a, b, segment = body.organ_lateral_mm, body.organ_depth_mm, body.segment_mm
    start = aorta_at(anatomy, 1.2)
    front = start + np.array([0, 1.6 * width, -0.8 * segment])
    root = np.array([0.03 * a, front[1] + 0.10 * b, -1.5 * segment])
    found = [
        Vessel(
            np.stack([start, start + np.array([0, 1.1 * width, -0.2 * segment]), front, root]),
            0.21 * width * np.array([1, 1, 0.9, 0.6]),
            "aorta",
            OTHER,
        )
    ]
    lateral = np.array([0.75 * width, 0.1 * width, 0.0])
    confluence = np.array([0.10 * a, front[1] + 0.12 * b, 1.0 * segment])
    found.append(
        Vessel(
            np.stack([root + lateral, front + 1.3 * lateral, confluence]),
            0.30 * width * np.array([0.7, 1, 1.1]),
            "mesenteric vein",
            OTHER,
        )
    )
    porta = np.array([0.30 * a, 0.02 * b, 2.3 * segment])
    found.append(
        Vessel(np.stack([confluence, porta]), 0.36 * width * np.ones(2), "portal vein", PORTAL)
    )
    hilum = np.array([-0.52 * a, -0.12 * b, 2.2 * segment])
    path = np.stack([confluence, [-0.12 * a, front[1] + 0.05 * b, 1.5 * segment], hilum])
    found.append(Vessel(path, 0.25 * width * np.array([1.1, 1, 0.8]), "portal vein", PORTAL))
    coeliac = aorta_at(anatomy, 1.8)
    fork = coeliac + np.array([0, 1.3 * width, 0.1 * segment])
    found.append(Vessel(np.stack([coeliac, fork]), 0.22 * width * np.ones(2), "aorta", OTHER))
    for end in (porta + np.array([0, 2, 0]), hilum + np.array([0, 3, 4])):
        half = (fork + end) / 2 + rng.normal(0, 2, size=3)
        found.append(
            Vessel(
                np.stack([fork, half, end]), 0.14 * width * np.array([1, 0.9, 0.8]), "aorta", OTHER
            )
        )
    for tissue, radius, shift in (("aorta", 0.11, 0.0), ("mesenteric vein", 0.15, 1.0)):
        for _ in range(anatomy.look.mesenteric_vessels):
            begin = front + (root - front) * rng.uniform(0.2, 1.0) + shift * lateral
            direction = np.array([rng.normal(0, 1.0), rng.uniform(0.1, 0.9), rng.normal(-0.5, 0.6)])
            for points, radii in branched(
                rng, begin, direction, 0.20 * b + 3.0, radius * width, 3, 0.8
            ):
                found.append(Vessel(points, radii, tissue, OTHER, within=FAT))
    return found


def _hepatic(anatomy: Anatomy, rng: np.random.Generator) -> list[Vessel]:
    """Portal branches from the porta and hepatic veins from the vena cava, inside the liver."""
    body, width = anatomy.body, anatomy.viscera.aorta_mm
    a, b, segment = body.organ_lateral_mm, body.organ_depth_mm, body.segment_mm
    porta = np.array([0.30 * a, 0.02 * b, 2.3 * segment])
    found = []
    for way in ([1.0, 0.1, -0.1], [0.9, -0.4, 0.5], [-0.7, 0.7, 0.3]):
        for points, radii in branched(rng, porta, np.array(way), 0.26 * a, 0.26 * width, 4, 0.55):
            found.append(Vessel(points, radii, "portal vein", LIVER, within=LIVER))
    outlet = cava_at(anatomy, anatomy.dome_mm / segment - 0.7)
    for way in ([1.0, 0.0, -0.5], [0.5, 0.8, -0.5], [-0.4, 0.9, -0.3]):
        for points, radii in branched(rng, outlet, np.array(way), 0.26 * a, 0.24 * width, 4, 0.5):
            found.append(Vessel(points, radii, "hepatic vein", LIVER, within=LIVER))
    return found
