"""A still picture of a scan with labels: the three planes through a point."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kidseg.geometry import Volume
from kidseg.labels import LabelSchema
from kidseg.report.annotation import (
    CT_WINDOW,
    draw_found,
    fit_image,
    label_handles,
    mark_scale,
    mark_sides,
    place_legend,
    plain_text,
    window_text,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Still", "draw_planes", "fullest_slice", "middle_of"]

_INCHES, _DPI = 3.0, 110


@dataclass(frozen=True, kw_only=True, eq=False)
class Still:
    """A picture in a page.

    Attributes:
        png: the file.
        alt: what it shows, in words.
    """

    png: bytes
    alt: str


def middle_of(labels: np.ndarray) -> tuple[int, int, int]:
    """The voxel nearest to the centre of the labels in their fullest slice; else of the image.

    Args:
        labels: (slices, rows, columns); 0 is background.
    """
    inside = labels > 0
    if not inside.any():
        nz, ny, nx = labels.shape
        return nz // 2, ny // 2, nx // 2
    k = fullest_slice(labels)
    at = np.argwhere(inside[k])
    row, column = at[np.square(at - at.mean(0)).sum(1).argmin()]
    return k, int(row), int(column)


def fullest_slice(labels: np.ndarray) -> int:
    """The slice with the most labelled pixels; the middle one if there are none."""
    areas = (labels > 0).reshape(len(labels), -1).sum(1)
    return int(areas.argmax()) if areas.any() else len(labels) // 2


@plain_text()
def draw_planes(
    scan: Volume,
    labels: Volume,
    schema: LabelSchema,
    at: tuple[int, int, int],
    *,
    window: tuple[float, float] = CT_WINDOW,
    unit: str = "HU",
) -> Still:
    """The axial, coronal and sagittal plane through a voxel, with contours of the labels.

    Args:
        scan: (1, slices, rows, columns) in canonical order.
        labels: (1, ...) on the same voxels.
        schema: of the labels.
        at: (slice, row, column).
        window: values shown in black and in white.
        unit: of the values.
    """
    k, row, column = at
    image, found = scan.data[0].numpy(), labels.data[0].numpy()
    dz, dy, dx = scan.grid.spacing_mm.tolist()
    # Canonical: slices to the head, rows to the back, columns to the left. Seen from the feet,
    # from the front, and from the left, with the head on top.
    shown = [
        ("axial", image[k], found[k], (dy, dx), ("R", "L")),
        ("coronal", image[::-1, row], found[::-1, row], (dz, dx), ("R", "L")),
        ("sagittal", image[::-1, :, column], found[::-1, :, column], (dz, dy), ("A", "P")),
    ]
    widths = [pixels.shape[1] * mm[1] for _, pixels, _, mm, _ in shown]
    heights = [pixels.shape[0] * mm[0] for _, pixels, _, mm, _ in shown]
    # All at one scale, side by side; 0.35 inches below are for the legend.
    high = _INCHES * 3 * max(heights) / sum(widths)
    figure = _figure((3 * _INCHES, high + 0.65))
    places = figure.subplots(1, 3, width_ratios=widths)
    for axes, (title, pixels, inside, mm, letters) in zip(places, shown, strict=True):
        axes.imshow(pixels, cmap="gray", vmin=window[0], vmax=window[1], aspect=mm[0] / mm[1])
        axes.set_axis_off()
        axes.set_title(title, fontsize=8)
        draw_found(axes, inside, schema)
        mark_sides(axes, "left", letters)
        mark_scale(axes, (pixels.shape[0], pixels.shape[1]), mm)
        fit_image(axes, (pixels.shape[0], pixels.shape[1]))
    _legend(figure, schema, np.unique(found[found > 0]), window, unit)
    names = ", ".join(schema.names.get(int(n), "?") for n in np.unique(found[k][found[k] > 0]))
    alt = (
        f"Axial, coronal and sagittal plane through slice {k + 1} of {len(image)}, with contours of"
        f" the labels. In the axial plane: {names or 'no label'}."
    )
    return Still(png=_png(figure), alt=alt)


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(
    figure: Figure,
    schema: LabelSchema,
    present: np.ndarray,
    window: tuple[float, float],
    unit: str,
) -> None:
    shown = LabelSchema(labels=tuple(label for label in schema.labels if label.id in present))
    handles = label_handles(shown, found=True, true=False)
    place_legend(figure, handles, window_text([window], unit), 6)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()
