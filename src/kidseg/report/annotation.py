"""What every picture of a slice shows: right and left, a scale in cm, labels found and true."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from kidseg.geometry import Grid
from kidseg.labels import Label, LabelSchema

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "CT_WINDOW",
    "RESEARCH_ONLY",
    "Edge",
    "draw_found",
    "draw_true",
    "edge_of_right",
    "fit_image",
    "label_handles",
    "mark_scale",
    "mark_sides",
    "place_legend",
    "plain_text",
    "rgb_of",
    "window_text",
]

CT_WINDOW = (-160.0, 240.0)
"""Lowest and highest HU shown: the abdominal soft-tissue window, level 40, width 400."""

RESEARCH_ONLY = "For research use only. Not a medical device."

Edge = Literal["left", "right", "top", "bottom"]
"""An edge of an image."""

_OPPOSITE: dict[Edge, Edge] = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
# (x, y) as fractions of the axes, and the alignment of a letter there.
_PLACES: dict[Edge, tuple[float, float, str, str]] = {
    "left": (0.02, 0.5, "left", "center"),
    "right": (0.98, 0.5, "right", "center"),
    "top": (0.5, 0.98, "center", "top"),
    "bottom": (0.5, 0.02, "center", "bottom"),
}
_FILL = 0.4
_BAR_MM = (200.0, 100.0, 50.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.5)
_LONGEST_BAR = 0.35  # of the side of the image
_ROUND = 0.02  # pixels this much from square count as square


@contextmanager
def plain_text() -> Iterator[None]:
    """Draw texts as they are: names of scans and labels may be any.

    "$" begins no formula, and letters that the font does not have are boxes without a warning.
    """
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def edge_of_right(place: Grid) -> Edge | None:
    """The edge of a slice on which the patient's right side lies; None if the slice is sagittal.

    Args:
        place: (1, rows, columns). +x is the patient's right, RAS+.
    """
    matrix = place.mm_from_index.reshape(-1, 4, 4)[0, :3, :3]
    across, down = (matrix / torch.linalg.vector_norm(matrix, dim=0))[0, [2, 1]].tolist()
    along = float(matrix[0, 0].abs() / torch.linalg.vector_norm(matrix[:, 0]))
    if along > max(abs(across), abs(down)):
        return None
    if abs(across) >= abs(down):
        return "right" if across > 0 else "left"
    return "bottom" if down > 0 else "top"


def mark_sides(axes: Axes, right: Edge | None, letters: tuple[str, str] = ("R", "L")) -> None:
    """Write R and L at the edges of an image; nothing if `right` is None.

    Args:
        axes: with the image.
        right: the edge of the first letter.
        letters: for this edge and the opposite one.
    """
    if right is None:
        return
    for text, edge in zip(letters, (right, _OPPOSITE[right]), strict=True):
        x, y, across, along = _PLACES[edge]
        _write(axes, x, y, text, size=10, ha=across, va=along, weight="bold")


def mark_scale(axes: Axes, shape: tuple[int, int], mm: tuple[float, float]) -> None:
    """Draw a scale bar; two, across and down, if a pixel that is drawn square is none.

    Args:
        axes: with the image.
        shape: (rows, columns) of the image.
        mm: (height, width) of a pixel in the patient.
    """
    rows, columns = shape
    fits = min(rows * mm[0], columns * mm[1]) * _LONGEST_BAR
    bar_mm = next((length for length in _BAR_MM if length <= fits), _BAR_MM[-1])
    x, y = -0.5 + 0.04 * columns, rows - 0.5 - 0.05 * rows
    ends = [((x, x + bar_mm / mm[1]), (y, y))]
    drawn_square = abs(float(axes.get_aspect()) - 1.0) < _ROUND
    if drawn_square and abs(mm[0] / mm[1] - 1.0) > _ROUND:
        ends.append(((x, x), (y, y - bar_mm / mm[0])))
    for across, down in ends:
        axes.plot(
            across,
            down,
            color="white",
            linewidth=2.0,
            solid_capstyle="butt",  # other caps would lengthen the bar
            path_effects=_halo(3.5),
        )
    text = f"{bar_mm / 10:g} cm" if bar_mm >= 10 else f"{bar_mm:g} mm"
    _write(axes, 0.065, 0.07, text, size=7, ha="left", va="bottom")


def draw_found(axes: Axes, labels: np.ndarray, schema: LabelSchema) -> None:
    """Draw labels that were found, (rows, columns): filled, with a solid contour."""
    fill = np.zeros((*labels.shape, 4))
    for label in schema.labels:
        mask = labels == label.id
        if mask.any():
            fill[mask] = (*rgb_of(label), _FILL)
            _contour(axes, mask, rgb_of(label), linewidths=1.0)
    axes.imshow(fill, aspect=axes.get_aspect(), interpolation="nearest")


def draw_true(axes: Axes, labels: np.ndarray, schema: LabelSchema) -> None:
    """Draw true labels, (rows, columns): not filled, with a dashed contour on black."""
    for label in schema.labels:
        mask = labels == label.id
        if mask.any():
            _contour(axes, mask, "black", linewidths=2.2)
            _contour(axes, mask, rgb_of(label), linewidths=1.2, linestyles=[(0, (2.5, 1.5))])


def label_handles(schema: LabelSchema, *, found: bool, true: bool) -> list[Any]:
    """Handles for a legend: each label, found and true."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for label in schema.labels:
        colour = rgb_of(label)
        if found:
            name = f"{label.name}, found" if true else label.name
            handles.append(Patch(facecolor=(*colour, _FILL), edgecolor=colour, label=name))
        if true:
            line = Line2D([], [], color=colour, linestyle=(0, (2.5, 1.5)), linewidth=1.6)
            line.set_path_effects(_halo(3.0))
            line.set_label(f"{label.name}, true")
            handles.append(line)
    return handles


def window_text(windows: Iterable[tuple[float, float]], unit: str = "HU") -> str:
    """The windows of the images, (black, white): level and width."""
    named = [
        f"level {(low + high) / 2:g}, width {high - low:g} {unit}".strip()
        for low, high in dict.fromkeys(windows)
    ]
    return f"Window: {'; '.join(named)}."


def place_legend(figure: Figure, handles: Sequence[Any], note: str, ncols: int) -> None:
    """Write a legend below everything else, under a note and that it is for research only."""
    figure.legend(
        handles=handles,
        title=f"{note} {RESEARCH_ONLY}".strip(),
        title_fontsize=7.5,
        loc="outside lower center",
        ncols=max(1, min(ncols, len(handles))),
        fontsize=8,
        frameon=False,
    )


def fit_image(axes: Axes, shape: tuple[int, int]) -> None:
    """Show exactly the pixels of an image, (rows, columns), after everything is drawn on it."""
    rows, columns = shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))


def rgb_of(label: Label) -> tuple[float, float, float]:
    """The colour of a label, 0..1."""
    red, green, blue = (channel / 255 for channel in label.rgb)
    return red, green, blue


def _contour(axes: Axes, mask: np.ndarray, colour: Any, **style: Any) -> None:
    # Padded with background, so that a mask that fills the image has a contour.
    padded = np.pad(mask.astype(float), 1)
    rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
    axes.contour(columns, rows, padded, [0.5], colors=[colour], **style)


def _write(axes: Axes, x: float, y: float, text: str, *, size: float, **style: Any) -> None:
    axes.text(
        x, y, text, transform=axes.transAxes, color="white", fontsize=size, path_effects=_halo(2.0),
        **style,
    )  # fmt: skip


def _halo(width: float) -> list[Any]:
    """A dark border, so that a line or a letter can be seen on any background."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground="black")]
