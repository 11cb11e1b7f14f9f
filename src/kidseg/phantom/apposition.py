"""Draw lean people, in whom liver and spleen lie directly at the kidneys.

The standard anatomy, and the organs of `neighbours`, leave fat around most of a kidney. In lean
people a film of fat separates the upper half of the right kidney from the liver, which covers it
outside and in front, and the left kidney from the spleen. There a slice shows a large grey organ at
a kidney without a border of fat, as a tumour is; before the liver enhances, it is as grey as one.
Shares and sizes are chosen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from kidseg.phantom.adjacent import Extension, Neighbours, tapered
from kidseg.phantom.anatomy import Anatomy, Kidney
from kidseg.phantom.kidneys import Frame
from kidseg.phantom.retroperitoneum import kidney_of
from kidseg.phantom.surfaces import wall_mm

__all__ = ["with_apposed_organs"]

_SPLEEN_SHARE = 0.6
# Thickness of the perirenal fat relative to what it was, and of the film between kidney and organ
# in a body with vertebrae of 48 mm.
_THINNER = (0.1, 0.6)
_FILM_MM = (0.0, 4.0)
_BED = (0.3, 0.7)


def with_apposed_organs(rng: np.random.Generator, anatomy: Anatomy) -> Anatomy:
    """The same person with little fat, and with liver and often spleen directly at the kidneys.

    Without kidneys only the liver's hollow differs.
    """
    known = anatomy.neighbours or Neighbours()
    extensions = list(known.extensions)
    right, left = (kidney_of(anatomy, side) for side in ("right", "left"))
    if right is not None:
        extensions.append(_wrapped(rng, anatomy, right, "liver"))
    if left is not None and rng.random() < _SPLEEN_SHARE:
        extensions.append(_wrapped(rng, anatomy, left, "spleen"))
    scale = anatomy.body.vertebra_mm / 48.0
    neighbours = replace(
        known,
        extensions=tuple(extensions),
        bed=float(rng.uniform(*_BED)),
        film_mm=scale * float(rng.uniform(*_FILM_MM)),
    )
    look, thinner = anatomy.look, float(rng.uniform(*_THINNER))
    if look.perirenal_mm is not None:
        look = replace(look, perirenal_mm=thinner * look.perirenal_mm)
    return replace(anatomy, neighbours=neighbours, look=look)


def _wrapped(
    rng: np.random.Generator, anatomy: Anatomy, kidney: Kidney, organ: Literal["liver", "spleen"]
) -> Extension:
    """The part of an organ that covers a kidney from outside; the liver from in front, too.

    It begins above the upper pole and ends between the lower half and the pole's tip.
    """
    liver = organ == "liver"
    half_lateral, half_deep, half_long = Frame.of(kidney).half
    x0, y0, z0 = kidney.centre_mm
    back = y0 - float(rng.uniform(0.0, 1.0)) * half_deep
    front = y0 + float(rng.uniform(1.2, 3.5) if liver else rng.uniform(0.3, 1.5)) * half_deep
    inner = (
        abs(x0) + float(rng.uniform(-1.0, 0.4) if liver else rng.uniform(-0.2, 0.7)) * half_lateral
    )
    middle = (back + front) / 2
    outer = max(wall_mm(anatomy.body, middle), inner + half_lateral)
    widest = (outer - inner) / 2
    start = z0 + float(rng.uniform(1.1, 1.5)) * half_long
    end = z0 + float(rng.uniform(-0.5, 0.8)) * half_long
    t, radii = tapered(widest, float(rng.uniform(0.3, 0.7)))
    x = kidney.sign * (outer - radii)
    points = np.stack([x, np.full_like(t, middle), start + t * (end - start)], axis=1)
    depth = float(np.clip((front - back) / 2 / widest, 0.4, 3.0))
    return Extension.along(organ, points, radii, depth)
