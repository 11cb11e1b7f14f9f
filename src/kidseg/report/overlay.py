"""A small picture of one slice: what was found, filled, and the reference, dashed.

Without Matplotlib, because a cohort has hundreds: it takes milliseconds.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from kidseg.geometry import Grid
from kidseg.labels import LabelSchema
from kidseg.report.annotation import CT_WINDOW
from kidseg.report.cohort_page import Picture
from kidseg.report.planes import fullest_slice

__all__ = ["Found", "draw_case", "draw_overlay", "worst_slice"]

_SIDE = 360  # pixels of the longer side, about
_FILL = 0.35
_MARGIN = 0.25  # around the labels, of their size
_LEAST_MM = 120.0  # of the shown part
_BAR_MM = 50.0
_LETTERS = 40  # of a name of a label


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The labels of a case, in canonical order.

    Attributes:
        found: (slices, rows, columns) uint8.
        grid: of the voxels.
        schema: of the labels.
        true: the reference; None without.
        image: the scan in HU; None: not known.
    """

    found: np.ndarray
    grid: Grid
    schema: LabelSchema
    true: np.ndarray | None = None
    image: np.ndarray | None = None


def worst_slice(found: np.ndarray, true: np.ndarray) -> int:
    """The slice with the most wrong pixels; without any, that with the most labelled ones."""
    wrong = (found != true).reshape(len(found), -1).sum(1)
    return int(wrong.argmax()) if wrong.any() else fullest_slice(true)


def draw_case(case: Found, made_of: str = "") -> Picture:
    """The slice of a case with the largest error, or with most labels if there is no reference.

    Args:
        case: its labels.
        made_of: see `Picture`.
    """
    true = case.true
    k = fullest_slice(case.found) if true is None else worst_slice(case.found, true)
    label = case.found[k] if true is None else np.maximum(case.found[k], true[k])
    _, dy, dx = case.grid.spacing_mm.tolist()
    rows, columns = _part(label > 0, (dy, dx))
    png = draw_overlay(
        None if case.image is None else case.image[k, rows, columns],
        case.found[k, rows, columns],
        None if true is None else true[k, rows, columns],
        case.schema,
        (dy, dx),
    )
    what = "most labels" if true is None else "the largest error"
    alt = f"slice {k + 1} of {len(case.found)}, that with {what}; the bar is {_BAR_MM / 10:g} cm"
    if case.image is None:
        alt += "; its image is not shown"
    return Picture(png=png, alt=alt, made_of=made_of)


def draw_overlay(
    image: np.ndarray | None,
    found: np.ndarray,
    true: np.ndarray | None,
    schema: LabelSchema,
    mm: tuple[float, float],
) -> bytes:
    """A slice as PNG, with the patient's right on the left.

    Args:
        image: (rows, columns) HU; None: black.
        found: (rows, columns) labels.
        true: likewise; None without a reference.
        schema: of both.
        mm: (height, width) of a pixel.
    """
    from PIL import Image, ImageDraw

    step = max(found.shape[0] * mm[0], found.shape[1] * mm[1]) / _SIDE  # mm of a drawn pixel
    size = [max(1, round(n * s / step)) for n, s in zip(found.shape, mm, strict=True)]
    at = np.ix_(*(_nearest(n, count) for n, count in zip(found.shape, size, strict=True)))
    low, high = CT_WINDOW
    grey = (
        np.zeros(found.shape) if image is None else (np.asarray(image, float) - low) / (high - low)
    )
    colours = np.repeat(255 * grey.clip(0, 1)[at][..., None], 3, axis=-1)
    shown, reference = found[at], None if true is None else true[at]
    dash = (np.add.outer(np.arange(size[0]), np.arange(size[1])) // 4) % 2 == 0
    for label in schema.labels:
        rgb = np.array(label.rgb, float)
        mask = shown == label.id
        colours[mask] = (1 - _FILL) * colours[mask] + _FILL * rgb
        colours[_edge(mask)] = rgb
        if reference is not None:
            edge = _edge(reference == label.id)
            colours[edge & dash] = 255.0
            colours[edge & ~dash] = 0.5 * rgb
    picture = Image.fromarray(colours.round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    bar = round(_BAR_MM / step)
    draw.line([(8, size[0] - 8), (8 + bar, size[0] - 8)], fill="white", width=2)
    draw.text((4, size[0] // 2), "R", fill="white")
    draw.text((size[1] - 12, size[0] // 2), "L", fill="white")
    present = [label for label in schema.labels if _occurs(label.id, found, true)]
    for k, label in enumerate(present):
        name = label.name.encode("ascii", "replace").decode()[:_LETTERS]
        draw.text((6, 4 + 14 * k), name, fill=label.rgb, stroke_width=2, stroke_fill="black")
    file = io.BytesIO()
    picture.quantize(64).save(file, "PNG", optimize=True)
    return file.getvalue()


def _occurs(number: int, found: np.ndarray, true: np.ndarray | None) -> bool:
    return bool((found == number).any() or (true is not None and (true == number).any()))


def _nearest(count: int, shown: int) -> np.ndarray:
    """(shown,) indices of the pixels under the centres of the drawn ones."""
    return ((np.arange(shown) + 0.5) * count / shown).astype(int).clip(0, count - 1)


def _edge(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask with a neighbour outside of it."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inner)


def _part(inside: np.ndarray, mm: tuple[float, float]) -> tuple[slice, slice]:
    """The part of a slice around labels, with a margin; all of it without labels."""
    parts = []
    for axis, step in enumerate(mm):
        count = inside.shape[axis]
        occupied = np.flatnonzero(inside.any(axis=1 - axis))
        if not len(occupied):
            return slice(0, inside.shape[0]), slice(0, inside.shape[1])
        low, high = int(occupied[0]), int(occupied[-1]) + 1
        more = max(_MARGIN * (high - low), (_LEAST_MM / step - (high - low)) / 2)
        parts.append(slice(max(0, round(low - more)), min(count, round(high + more))))
    return parts[0], parts[1]
