"""Draw what lies beside the kidneys: tips of liver and spleen, adrenal masses, duodenum, nodes.

The standard anatomy leaves fat around the kidneys where real people have organs that touch them.
Shares, sizes and looks are chosen, wide and more than in practice, unless a source is named:
`neighbour_share` says how many patients have any.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from kidseg.phantom.adjacent import Extension, Neighbours, Nodule, tapered
from kidseg.phantom.anatomy import Anatomy, Body, Kidney, Tumour
from kidseg.phantom.kidneys import Frame
from kidseg.phantom.retroperitoneum import draw_contents, kidney_of
from kidseg.phantom.shapes import point, rounded
from kidseg.phantom.surfaces import wall_mm
from kidseg.phantom.tumour import fitted, settled
from kidseg.phantom.vessels import aorta_at, cava_at

__all__ = ["OUTGROWN_SHARE", "with_neighbours"]

OUTGROWN_SHARE = 0.5
"""Share of the tumours of suitable size that grow out of the upper pole or the front."""
# Their radius relative to the length of the kidney: sections of an adult's are 2 to 11 cm wide.
_OUTGROWN = (0.09, 0.5)

_LIVER_TIP, _RIEDEL = 0.65, 0.25
_LARGE_SPLEEN = 0.35
_ACCESSORY_SPLEEN = 0.35
_ADRENAL_MASS, _THICK_ADRENALS = 0.4, 0.35
_DUODENUM, _JEJUNUM, _PANCREAS = 0.8, 0.6, 0.45
_NODES, _GONADAL = 0.4, 0.7

# Half of the longest axis, in a body with vertebrae of 48 mm.
_ADRENAL_MASS_MM = (5.0, 25.0)
_ACCESSORY_MM = (4.0, 10.0)
_NODE_MM = (2.5, 15.0)
_GONADAL_MM = (2.0, 5.0)


def with_neighbours(rng: np.random.Generator, anatomy: Anatomy) -> Anatomy:
    """The same person with organs that touch the kidneys, and some tumours that grow out of them.

    Without any kidney only lymph nodes and the liver's hollow differ.
    """
    anatomy = _with_outgrown(rng, anatomy)
    right, left = (kidney_of(anatomy, side) for side in ("right", "left"))
    extensions: list[Extension] = []
    nodules: list[Nodule] = []
    if right is not None and rng.random() < _LIVER_TIP:
        extensions.append(_tip(rng, anatomy, right, "liver"))
    if left is not None:
        if rng.random() < _LARGE_SPLEEN:
            extensions.append(_tip(rng, anatomy, left, "spleen"))
        if rng.random() < _PANCREAS:
            extensions.append(_pancreas(rng, anatomy, left))
        if rng.random() < _ACCESSORY_SPLEEN:
            count = int(rng.integers(1, 4))
            nodules += [_accessory_spleen(rng, anatomy, left) for _ in range(count)]
    for kidney in (right, left):
        if kidney is not None and rng.random() < _ADRENAL_MASS:
            nodules.append(_adrenal_mass(rng, anatomy, kidney))
    if rng.random() < _NODES:
        nodules += [_node(rng, anatomy) for _ in range(int(rng.integers(1, 9)))]
    thick = rng.uniform(1.3, 3.0, size=2) if rng.random() < _THICK_ADRENALS else np.ones(2)
    duodenum = (draw_contents(rng), draw_contents(rng)) if rng.random() < _DUODENUM else None
    scale = anatomy.body.vertebra_mm / 48.0
    gonadal = scale * float(rng.uniform(*_GONADAL_MM)) if rng.random() < _GONADAL else 0.0
    neighbours = Neighbours(
        extensions=tuple(extensions),
        nodules=tuple(nodules),
        bed=float(rng.uniform(0.3, 1.1)),
        adrenals=(float(thick[0]), float(thick[1])),
        duodenum=duodenum if right is not None else None,
        jejunum=int(rng.integers(1, 5)) if left is not None and rng.random() < _JEJUNUM else 0,
        gonadal_mm=gonadal,
    )
    return replace(anatomy, neighbours=neighbours)


def _tip(
    rng: np.random.Generator, anatomy: Anatomy, kidney: Kidney, organ: Literal["liver", "spleen"]
) -> Extension:
    """The lower end of liver or spleen, lateral of the kidney and in front or behind of it.

    It ends between the hilum and the lower pole; a Riedel's lobe between the pole and the crest.
    """
    body = anatomy.body
    liver = organ == "liver"
    sign = kidney.sign
    half_lateral, half_deep, half_long = Frame.of(kidney).half
    x0, y0, z0 = kidney.centre_mm
    end = z0 - float(rng.uniform(0.1, 1.15)) * half_long
    if liver and rng.random() < _RIEDEL:
        pole = z0 - 0.9 * half_long
        end = float(rng.uniform(min(anatomy.crest_mm, pole), pole))
    start = z0 + (1.2 if liver else 1.0) * half_long
    depth = float(rng.uniform(1.2, 2.6))
    y = y0 + float(rng.uniform(-0.4, 1.2)) * half_deep
    gap = float(rng.uniform(-5.0, 5.0)) * body.vertebra_mm / 48.0
    inner, medial = abs(x0) + 0.92 * half_lateral + gap, abs(x0) + 0.5 * half_lateral
    widest = max(0.5 * (wall_mm(body, y) - inner), 0.13 * body.organ_lateral_mm)
    widest *= float(rng.uniform(0.85, 1.4))
    t, radii = tapered(widest, float(rng.uniform(0.15, 0.5)))
    x = np.minimum(inner + radii, np.maximum(wall_mm(body, y) - 0.85 * radii, medial))
    bend = float(rng.normal(0.0, 0.35)) * half_deep
    points = np.stack([sign * x, y + bend * t, start + t * (end - start)], axis=1)
    return Extension.along(organ, points, radii, depth)


def _pancreas(rng: np.random.Generator, anatomy: Anatomy, kidney: Kidney) -> Extension:
    """A low tail, in front of the upper half of the left kidney."""
    body = anatomy.body
    a, b = body.organ_lateral_mm, body.organ_depth_mm
    front = body.spine_y_mm + 0.42 * body.vertebra_mm + 1.5 * anatomy.viscera.aorta_mm
    level = float(rng.uniform(0.0, 0.9))
    thick = 0.075 * b * float(rng.uniform(0.8, 1.5))
    ahead = np.array([0.0, thick + float(rng.uniform(0.0, 4.0)), 0.0])
    frame = Frame.of(kidney)
    way = np.stack(
        [
            [-0.20 * a, front + 0.02 * b, 1.5 * body.segment_mm],
            frame.anatomy_mm(-0.5, 0.9, level) + ahead,
            frame.anatomy_mm(float(rng.uniform(0.1, 0.8)), 0.75, level + 0.1) + ahead,
        ]
    )
    points = rounded(way)
    return Extension.along("pancreas", points, np.linspace(1.0, 0.85, len(points)) * thick)


def _accessory_spleen(rng: np.random.Generator, anatomy: Anatomy, kidney: Kidney) -> Nodule:
    """A ball near the hilum of the spleen, or in front or lateral of the left kidney."""
    radius = _size(rng, anatomy, _ACCESSORY_MM)
    angle = float(rng.uniform(-0.2, 1.7))
    level = float(rng.uniform(-0.4, 1.1))
    away = 1.0 + (radius + float(rng.uniform(0.0, 8.0))) / float(Frame.of(kidney).half[1])
    around = away * np.sqrt(max(1.0 - level**2, 0.1))
    place = Frame.of(kidney).anatomy_mm(around * np.cos(angle), around * np.sin(angle), level)
    return Nodule(organ="spleen", centre_mm=point(place), half_mm=(radius,) * 3)


def _adrenal_mass(rng: np.random.Generator, anatomy: Anatomy, kidney: Kidney) -> Nodule:
    """An adenoma, a metastasis or a phaeochromocytoma, above and medial of the upper pole.

    An adenoma is poor in attenuation and enhances little: 10 HU or less without contrast in most.
    Source: the guideline of Fassnacht et al., Eur J Endocrinol 175 (2016) G1-G34.
    """
    body = anatomy.body
    w = body.vertebra_mm
    radius = _size(rng, anatomy, _ADRENAL_MASS_MM)
    half = radius * np.array([rng.uniform(0.7, 1.0), rng.uniform(0.7, 1.0), 1.0])
    pole = Frame.of(kidney).anatomy_mm(-0.2, 0.1, 0.9)
    sign = kidney.sign
    x = max(0.8 * w, 0.55 * w + half[0], 0.5 * (abs(pole[0]) + 0.8 * w))
    y = max(body.spine_y_mm + 0.12 * w, pole[1]) + float(rng.normal(0.0, 0.1)) * w
    z = max(2.3 * body.segment_mm, pole[2]) + float(rng.uniform(0.0, 0.6)) * radius
    z = min(z, body.dome_left_mm - 0.5 * body.segment_mm)
    kind = str(rng.choice(["adenoma", "metastasis", "phaeochromocytoma"], p=[0.45, 0.35, 0.2]))
    if kind == "adenoma":
        look = (rng.uniform(-8.0, 22.0), rng.uniform(0.08, 0.3), rng.uniform(2.0, 6.0), 0.0)
    elif kind == "metastasis":
        look = (rng.uniform(25.0, 42.0), rng.uniform(0.1, 0.45), rng.uniform(5.0, 16.0), 0.6)
    else:
        look = (rng.uniform(25.0, 45.0), rng.uniform(0.45, 0.95), rng.uniform(8.0, 20.0), 0.8)
    plain, uptake, structure, most = (float(v) for v in look)
    return Nodule(
        organ="adrenal",
        centre_mm=(float(sign * x), float(y), float(z)),
        half_mm=point(half),
        plain_hu=plain,
        uptake=uptake,
        structure_hu=structure,
        necrosis=most * float(rng.random()),
    )


def _node(rng: np.random.Generator, anatomy: Anatomy) -> Nodule:
    """A lymph node beside aorta or vena cava, or between them; longest along them."""
    radius = _size(rng, anatomy, _NODE_MM)
    half = radius * np.array([rng.uniform(0.55, 0.9), rng.uniform(0.55, 0.9), 1.0])
    level = float(rng.uniform(-1.9, 1.6))
    width = anatomy.viscera.aorta_mm
    aorta, cava = aorta_at(anatomy, level), cava_at(anatomy, level)
    aside = 0.55 * width + half[0]
    ahead = float(rng.uniform(-0.3, 0.5)) * width
    places = (
        aorta + np.array([-aside, ahead, 0.0]),
        cava + np.array([aside, ahead, 0.0]),
        (aorta + cava) / 2 + np.array([0.0, 0.25 * width + half[1], 0.0]),
    )
    return Nodule(
        organ="lymph node",
        centre_mm=point(places[int(rng.choice(3, p=[0.5, 0.2, 0.3]))]),
        half_mm=point(half),
        plain_hu=float(rng.uniform(28.0, 45.0)),
        uptake=float(rng.uniform(0.1, 0.35)),
        structure_hu=float(rng.uniform(2.0, 8.0)),
        necrosis=float(0.6 * rng.random()) if rng.random() < 0.3 else 0.0,
    )


def _with_outgrown(rng: np.random.Generator, anatomy: Anatomy) -> Anatomy:
    """Some tumours moved out of the upper pole or the front of their kidney, on a narrow base."""
    if anatomy.form not in ("separate", "single"):
        return anatomy
    tumours = []
    for tumour in anatomy.tumours:
        kidney = next(kidney for kidney in anatomy.kidneys if kidney.side == tumour.side)
        low, high = (kidney.length_mm * share for share in _OUTGROWN)
        # A tumour that has moved its kidney grows from its own centre; see `displacement`.
        free = tumour.origin_mm != tumour.centre_mm and low < tumour.radius_mm < high
        chosen = rng.random() < OUTGROWN_SHARE and free
        tumours.append(_outgrown(rng, anatomy.body, kidney, tumour) if chosen else tumour)
    return replace(anatomy, tumours=tuple(tumours))


def _outgrown(rng: np.random.Generator, body: Body, kidney: Kidney, tumour: Tumour) -> Tumour:
    frame, radius = Frame.of(kidney), tumour.radius_mm
    height = float(rng.uniform(0.75, 1.0))
    azimuth = float(rng.uniform(-0.4, 2.4))
    around = np.sqrt(1.0 - height**2)
    out = np.array([around * np.cos(azimuth), around * np.sin(azimuth), height])
    surface = frame.anatomy_mm(*out)
    away = surface - frame.centre
    away = away / np.linalg.norm(away) + np.array([0.0, float(rng.uniform(0.0, 0.6)), 0.0])
    away /= np.linalg.norm(away)
    out_mm = float(rng.uniform(0.6, 0.95)) * radius
    centre = surface + away * out_mm
    origin = surface + away * (out_mm - 0.55 * radius)
    centre = settled(body, origin, centre, radius)
    moved = replace(tumour, origin_mm=point(origin), centre_mm=point(centre))
    return fitted(moved, body)


def _size(rng: np.random.Generator, anatomy: Anatomy, range_mm: tuple[float, float]) -> float:
    """Log-uniform within a range of a grown person, smaller in a smaller body."""
    low, high = np.log(range_mm)
    return float(np.exp(rng.uniform(low, high)) * anatomy.body.vertebra_mm / 48.0)
