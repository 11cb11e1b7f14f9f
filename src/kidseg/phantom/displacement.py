"""Kidneys that a tumour has moved as a whole, and turned, instead of spreading them out.

A tumour that grows out of the back or a pole of its kidney pushes it forwards, to the middle, up or
down: in the scan the kidney lies far in front, turned as no healthy kidney is, and its hilum may
face backwards.

Source: 3 of the 13 patients of the KiTS19 slices (case_00042, case_00135, case_00199); the numbers
are chosen to include them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from kidseg.phantom.anatomy import Anatomy, Body, Kidney, Tumour
from kidseg.phantom.kidneys import Frame
from kidseg.phantom.shapes import point
from kidseg.phantom.surfaces import below_diaphragm, cavity, spine_clearance
from kidseg.phantom.tumour import fitted, settled

__all__ = ["SMALLEST_RADIUS", "displaced"]

SMALLEST_RADIUS = 0.18
"""Smallest radius of a tumour that moves its kidney, in lengths of the kidney: 33 ml at 11 cm."""
_TRIES = 40
# Of a kidney in its new place: how far its centre is inside the cavity (1 is the wall), and how
# near to the spine and the diaphragm, in halves of its thickness.
_INSIDE = 0.78
_CLEARANCE = 0.55
# Of the tumour's volume, what replaces other tissue. The more, the less the kidney is flattened.
_REPLACED = (0.35, 0.9)
# Distance of the kidney's surface from the tumour's centre, in its radii: both touch, or the tumour
# reaches into the kidney.
_SURFACE = (0.70, 1.03)


def displaced(rng: np.random.Generator, anatomy: Anatomy) -> Anatomy:
    """The same person; each kidney with one large enough tumour is moved by it as a whole.

    The tumour takes the place of the kidney, whose cysts and stones move with it. A kidney stays if
    it has several tumours, if it is joined to the other one, or if there is no room for it.
    """
    if anatomy.form not in ("separate", "single"):
        return anatomy
    for kidney in anatomy.kidneys:
        own = [tumour for tumour in anatomy.tumours if tumour.side == kidney.side]
        if len(own) == 1 and own[0].radius_mm >= SMALLEST_RADIUS * kidney.length_mm:
            tumour = _in_place_of(rng, own[0], kidney, anatomy.body)
            moved = _moved(rng, kidney, tumour, anatomy.body)
            if moved is not None:
                anatomy = _with(anatomy, kidney, moved, own[0], tumour)
    return anatomy


def _in_place_of(rng: np.random.Generator, tumour: Tumour, kidney: Kidney, body: Body) -> Tumour:
    """The tumour near the place of its kidney, from which it grows to all sides alike."""
    start = np.asarray(kidney.centre_mm) + rng.normal(size=3) * 0.12 * kidney.length_mm
    sign = np.sign(kidney.centre_mm[0])
    start[0] = sign * max(sign * start[0], 0.2 * kidney.width_mm)
    centre = point(settled(body, start, start, tumour.radius_mm))
    grown = fitted(replace(tumour, origin_mm=centre, centre_mm=centre), body)
    return replace(grown, origin_mm=grown.centre_mm, replaced=float(rng.uniform(*_REPLACED)))


def _moved(rng: np.random.Generator, kidney: Kidney, tumour: Tumour, body: Body) -> Kidney | None:
    """The kidney beside the tumour, turned; None if there is no room."""
    sign = kidney.sign
    for _ in range(_TRIES):
        away = np.array([sign * rng.normal(-0.25, 0.55), rng.normal(0.8, 0.45), rng.normal(0, 0.7)])
        away /= np.linalg.norm(away)
        turned = replace(
            kidney,
            coronal_deg=float(rng.normal(10.0, 18.0)),
            sagittal_deg=float(rng.normal(5.0, 22.0)),
            hilum_deg=float(rng.normal(40.0, 50.0)),
        )
        frame = Frame.of(turned)
        depth = float(np.linalg.norm((frame.axes @ away) * frame.half))
        # The distance before the tumour has grown, as `tumour.pushed` has it.
        grown = rng.uniform(*_SURFACE) ** 3 - (1.0 - tumour.replaced)
        start = float(np.cbrt(max(grown, 0.0))) * tumour.radius_mm
        centre = np.asarray(tumour.centre_mm) + away * (depth + start)
        if _has_room(kidney, centre, body):
            return replace(turned, centre_mm=point(centre))
    return None


def _has_room(kidney: Kidney, centre: np.ndarray, body: Body) -> bool:
    """Whether a kidney here is inside the cavity, on its side, clear of spine and diaphragm."""
    x, y, z = (torch.tensor(float(v)) for v in centre)
    least = _CLEARANCE * kidney.thickness_mm / 2
    return bool(
        cavity(body, x, y) < _INSIDE
        and spine_clearance(body, x, y) > least
        and below_diaphragm(body, x, y, z) < -least
        and centre[0] * np.sign(kidney.centre_mm[0]) > 0.25 * kidney.width_mm
        and z > -3.2 * body.segment_mm
    )


def _with(
    anatomy: Anatomy, kidney: Kidney, moved: Kidney, tumour: Tumour, grown: Tumour
) -> Anatomy:
    """The person with this kidney and its tumour; its cysts and stones move with it."""
    old, new = Frame.of(kidney), Frame.of(moved)

    def carried(place: tuple[float, float, float]) -> tuple[float, float, float]:
        return point(new.centre + new.axes.T @ (old.axes @ (np.asarray(place) - old.centre)))

    def is_own(place: tuple[float, float, float]) -> bool:
        local = old.axes @ (np.asarray(place) - old.centre) / old.half
        return bool(np.linalg.norm(local) < 1.0)

    look = anatomy.look
    return replace(
        anatomy,
        kidneys=tuple(moved if each is kidney else each for each in anatomy.kidneys),
        tumours=tuple(grown if each is tumour else each for each in anatomy.tumours),
        cysts=tuple(
            replace(cyst, centre_mm=carried(cyst.centre_mm)) if cyst.side == kidney.side else cyst
            for cyst in anatomy.cysts
        ),
        look=replace(
            look,
            stones=tuple(
                replace(stone, centre_mm=carried(stone.centre_mm))
                if is_own(stone.centre_mm)
                else stone
                for stone in look.stones
            ),
        ),
    )
