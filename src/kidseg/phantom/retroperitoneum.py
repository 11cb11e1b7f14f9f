"""Bowel and veins of the retroperitoneum: what `kidseg.phantom.neighbours` has in detail.

Duodenum beside the right kidney's hilum and across the aorta, loops of jejunum on the left kidney,
gonadal veins; and no loop of the standard anatomy beside and behind the kidneys.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kidseg.phantom.adjacent import Contents
from kidseg.phantom.anatomy import Anatomy, Kidney, Side
from kidseg.phantom.bowel import Loop
from kidseg.phantom.kidneys import Frame
from kidseg.phantom.shapes import rounded
from kidseg.phantom.vessels import Vessel, aorta_at, cava_at

__all__ = ["draw_contents", "gonadal_veins_of", "kidney_of", "loops_beside", "retroperitoneal"]

FAT, OTHER = 2, 20


def retroperitoneal(
    anatomy: Anatomy, small: list[Loop]
) -> tuple[list[Loop], list[Loop], list[Vessel]]:
    """The loops `small` that remain, those beside the kidneys, and further veins.

    Without neighbours all of `small`, and nothing else.
    """
    if anatomy.neighbours is None:
        return small, [], []
    rng = np.random.default_rng([anatomy.detail_seed, 9])
    kept = _without_retroperitoneal(anatomy, small)
    return kept, loops_beside(anatomy, rng), gonadal_veins_of(anatomy, rng)


def kidney_of(anatomy: Anatomy, side: str) -> Kidney | None:
    """The kidney of a side, or where it would be; None if there is no kidney at all."""
    own = [kidney for kidney in anatomy.kidneys if kidney.side == side]
    if own or not anatomy.kidneys:
        return own[0] if own else None
    other = anatomy.kidneys[0]
    x, y, z = other.centre_mm
    missing: Side = "right" if side == "right" else "left"
    return replace(other, side=missing, centre_mm=(-x, y, z))


def draw_contents(rng: np.random.Generator) -> Contents:
    """What a loop of bowel has in it."""
    every: tuple[Contents, ...] = ("collapsed", "fluid", "gas", "oral contrast")
    return every[int(rng.choice(4, p=[0.4, 0.3, 0.12, 0.18]))]


def loops_beside(anatomy: Anatomy, rng: np.random.Generator) -> list[Loop]:
    """Duodenum beside the right kidney's hilum and across the aorta; loops before the left one."""
    neighbours = anatomy.neighbours
    if neighbours is None:
        return []
    loops = []
    if neighbours.duodenum is not None:
        down, across = _duodenum_mm(anatomy, rng)
        loops += [
            _loop(anatomy, rng, way, contents)
            for way, contents in zip((down, across), neighbours.duodenum, strict=True)
        ]
    for _ in range(neighbours.jejunum):
        loops.append(_loop(anatomy, rng, _jejunum_mm(anatomy, rng), draw_contents(rng)))
    return loops


def _duodenum_mm(anatomy: Anatomy, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) points of the descending part, and of the part below it that crosses the aorta."""
    kidney = kidney_of(anatomy, "right")
    assert kidney is not None
    body, frame = anatomy.body, Frame.of(kidney)
    w, reach = body.vertebra_mm, 0.45 * anatomy.viscera.small_bowel_mm
    ahead = np.array([-0.3 * reach, 0.6 * reach, 0.0])
    tilt = float(rng.uniform(-0.15, 0.25))
    levels = (0.55, 0.1, -0.35)
    down = [frame.anatomy_mm(-0.95 + tilt * k, 0.75, w_) + ahead for k, w_ in enumerate(levels)]
    for place in down:
        place[1] = max(place[1], body.spine_y_mm + 0.40 * w + 0.8 * reach)
    bulb = down[0] + np.array([-0.4 * w, 0.5 * w, 0.4 * body.segment_mm])
    low = float(rng.uniform(-1.5, -0.9))
    aorta = aorta_at(anatomy, low)
    front = aorta + np.array([0.0, 0.55 * anatomy.viscera.aorta_mm + 0.8 * reach, 0.0])
    knee = np.array([down[-1][0] - 0.2 * w, max(down[-1][1], front[1] - 0.1 * w), front[2]])
    end = front + np.array([-0.9 * w, 0.0, 0.5 * body.segment_mm])
    return rounded(np.stack([bulb, *down, knee])), rounded(np.stack([knee, front, end]))


def _jejunum_mm(anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """(n, 3) points of a short loop that lies on the front of the left kidney."""
    kidney = kidney_of(anatomy, "left")
    assert kidney is not None
    frame, reach = Frame.of(kidney), 0.5 * anatomy.viscera.small_bowel_mm
    level, across = float(rng.uniform(-0.9, 0.35)), float(rng.uniform(-0.6, 0.7))
    depth = np.sqrt(max(1.0 - level**2 - 0.5 * across**2, 0.15))
    middle = frame.anatomy_mm(across, depth, level)
    middle[1] += reach + float(rng.uniform(0.0, 4.0))
    along = rng.normal(size=3) * np.array([1.0, 0.3, 0.8])
    along *= 1.6 * reach / np.linalg.norm(along)
    bend = np.array([0.0, 0.4 * reach, 0.0])
    return rounded(np.stack([middle - along + bend, middle, middle + along + bend]))


def _loop(anatomy: Anatomy, rng: np.random.Generator, way: np.ndarray, contents: Contents) -> Loop:
    collapsed = contents == "collapsed"
    size = float(rng.uniform(0.45, 0.75) if collapsed else rng.uniform(0.8, 1.25))
    waves = 1.0 + 0.08 * rng.normal(size=len(way))
    contrast = float(rng.uniform(100.0, 320.0))
    return Loop(
        points=way,
        radii=0.5 * anatomy.viscera.small_bowel_mm * size * waves,
        gas=float(rng.uniform(0.3, 0.8)) if contents == "gas" else 0.0,
        stool=0.0,
        distension=float(rng.uniform(0.25, 0.5) if collapsed else rng.uniform(0.8, 1.15)),
        folds=float(rng.uniform(0.2, 1.0)),
        density_hu=contrast if contents == "oral contrast" else float(rng.normal(6.0, 9.0)),
    )


def gonadal_veins_of(anatomy: Anatomy, rng: np.random.Generator) -> list[Vessel]:
    """A vein in front of each psoas, from the vena cava or the left renal vein to the pelvis."""
    neighbours = anatomy.neighbours
    if neighbours is None or neighbours.gonadal_mm <= 0:
        return []
    body = anatomy.body
    w, segment = body.vertebra_mm, body.segment_mm
    found = []
    for sign in (1.0, -1.0):
        start = cava_at(anatomy, 0.2) if sign > 0 else aorta_at(anatomy, 0.5) - (0.9 * w, 0, 0)
        lateral = sign * w * (0.95 + 0.1 * rng.normal())
        front = body.spine_y_mm + w * (0.42 + 0.1 * body.muscularity)
        way = [start, [0.5 * (start[0] + lateral), front + 0.1 * w, -0.4 * segment]]
        way += [[lateral, front, -1.5 * segment], [1.15 * lateral, front + 0.2 * w, -4.0 * segment]]
        radii = np.full(4, 0.5 * neighbours.gonadal_mm)
        found.append(Vessel(np.array(way, dtype=float), radii, "vena cava", OTHER, within=FAT))
    return found


def _without_retroperitoneal(anatomy: Anatomy, loops: list[Loop]) -> list[Loop]:
    """Loops of small bowel but those beside and behind the kidneys, where only fat is.

    The lattice of `small_bowel_of` reaches behind the kidneys. Where neither liver nor fat around a
    kidney covers it, as below a small liver, loops would show there.
    """
    body = anatomy.body
    back = body.spine_y_mm + 0.45 * body.vertebra_mm

    def behind(loop: Loop) -> bool:
        x, y, z = loop.points.T
        beside = (np.abs(x) > 0.9 * body.vertebra_mm) & (z > -2.2 * body.segment_mm)
        return bool((beside & (y - 0.5 * loop.radii < back)).mean() > 0.3)

    return [loop for loop in loops if not behind(loop)]
