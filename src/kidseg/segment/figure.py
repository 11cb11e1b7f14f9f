"""Draw the steps of a segmentation in one representative slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from kidseg.geometry import Grid, Volume, has_parallel_slices, resample
from kidseg.intensity import Normalisation
from kidseg.io.atomic import writing
from kidseg.labels import LabelSchema
from kidseg.pipeline import Region, decide
from kidseg.report.annotation import (
    CT_WINDOW,
    Edge,
    draw_found,
    draw_true,
    edge_of_right,
    fit_image,
    label_handles,
    mark_scale,
    mark_sides,
    place_legend,
    plain_text,
    window_text,
)
from kidseg.segment.figure_title import TITLE_POINTS, title_of, wrapped
from kidseg.segment.predictor import Segmentation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Panel",
    "draw_panels",
    "draw_steps",
    "frame_of",
    "representative_slice",
    "step_panels",
]

# Colours of reference body and crop; different from those of the labels. Source: as the labels'.
_OUTLINE, _FRAME = "#CC79A7", "#F0E442"
_PANEL_INCHES, _PANEL_PIXELS, _PANELS_IN_ROW = 2.7, 140, 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One image of a figure.

    Attributes:
        title: of the step.
        values: (rows, columns); HU for CT.
        window: values shown in black and in white.
        unit: of the values; "" if they have none.
        pixel: (height, width) of a pixel as it is drawn, in any unit.
        mm: (height, width) of a pixel in the patient; None: no scale is drawn.
        right: the edge on which the patient's right side lies; None: it is not marked.
        labels: (rows, columns) that were found, filled.
        true: (rows, columns) of the reference, dashed contours.
        outline: (rows, columns) float 0..1, drawn as contour at 0.5.
        frames: (5, 2) indices (row, column) of closed squares: the regions of the next step.
    """

    title: str
    values: np.ndarray
    pixel: tuple[float, float]
    window: tuple[float, float] = CT_WINDOW
    unit: str = "HU"
    mm: tuple[float, float] | None = None
    right: Edge | None = "left"
    labels: np.ndarray | None = None
    true: np.ndarray | None = None
    outline: np.ndarray | None = None
    frames: tuple[np.ndarray, ...] = ()


def draw_steps(
    path: Path,
    name: str,
    scan: Volume,
    result: Segmentation,
    schema: LabelSchema,
    *,
    reference: Volume | None = None,
    ignore: Volume | None = None,
) -> None:
    """Draw the steps of a segmentation; see `step_panels` and `representative_slice`.

    Right and left, a scale and the window of the values are marked. The title states how the
    patient lies in the slice and how it was scaled; the overlap with the reference patient before
    the pose, at its start and after it; what the steps decided; and, with reference labels, the
    Dice per patient.

    Args:
        path: a .png file.
        name: of the scan.
        scan: (1, slices, rows, columns) HU, as segmented.
        result: of the segmentation.
        schema: of the labels.
        reference: (1, ...) labels on the scan's voxels.
        ignore: (1, ...) bool: voxels that Dice ignores.
    """
    k = representative_slice(result.labels, reference)
    known = None if reference is None else (reference, ignore)
    title = title_of(name, scan, result, schema, k, known)
    draw_panels(path, step_panels(scan, result, k, reference), schema, title=title)


def representative_slice(labels: Volume, reference: Volume | None = None) -> int:
    """The slice with the most foreground pixels; else that of the reference; else the middle."""
    for volume in (labels, reference):
        if volume is not None and bool((volume.data > 0).any()):
            return int((volume.data[0] > 0).flatten(1).sum(1).argmax())
    return labels.grid.shape[0] // 2


def step_panels(
    scan: Volume, result: Segmentation, k: int, reference: Volume | None = None
) -> list[Panel]:
    """Panels of slice `k`: the scan, each region of each step, the labels, and the reference.

    The panel of a region shows the outline of the reference patient, the predicted labels, and the
    frames of the regions of the next step that has any, of those with its own name if there are
    such; that of the labels also the contours of the reference.
    """
    steps = list(result.progress.steps.items())
    panels = [_panel("scan", scan, scan.grid.slices(k, k + 1), result)]
    for number, (name, regions) in enumerate(steps, start=1):
        later: Sequence[Region] = next((found for _, found in steps[number:] if found), ())
        for region in regions:
            row = _shown_row(region, scan.grid, k)
            if row is None:
                continue
            place = region.grid.slices(row, row + 1)
            outline = result.placement.outlines.get(name)
            panels.append(
                _panel(
                    " ".join(filter(None, (name, region.name))),
                    scan,
                    place,
                    result,
                    as_seen=True,
                    labels=_labels(region, row),
                    outline=None if outline is None else _outline(outline, place, row),
                    frames=_frames(_following(region, later), place, scan.grid, k),
                )
            )
    here = scan.grid.slices(k, k + 1)
    found = result.labels.data[0, k].numpy()
    true = None if reference is None else reference.data[0, k].numpy()
    panels.append(_panel("labels", scan, here, result, labels=found, true=true))
    if true is not None:
        panels.append(_panel("reference", scan, here, result, true=true))
    return panels


@plain_text()
def draw_panels(
    path: Path,
    panels: Sequence[Panel],
    schema: LabelSchema,
    *,
    title: str = "",
) -> None:
    """Draw panels side by side, with correct aspect ratios; see `Panel` and `annotation`.

    More than six continue in further rows.

    Raises:
        UsageError, InputError, ResourceError: see `kidseg.io.atomic.writing`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = -(-len(panels) // _PANELS_IN_ROW)
    columns = -(-len(panels) // rows)
    width = max(_PANEL_INCHES * columns, 2 * _PANEL_INCHES)
    title = wrapped(title, width)
    above = 0.3 + 0.2 * len(title.splitlines()) if title else 0.3
    figure = Figure(figsize=(width, rows * _PANEL_INCHES + above + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in places[len(panels) :]:
        unused.set_axis_off()
    shown = zip(places, panels, strict=False)
    for number, (axes, panel) in enumerate(shown, start=1):
        _show(axes, panel, schema)
        axes.set_title(f"{number}  {panel.title}", fontsize=9)
    handles = label_handles(
        schema,
        found=any(panel.labels is not None for panel in panels),
        true=any(panel.true is not None for panel in panels),
    )
    if any(panel.outline is not None for panel in panels):
        handles.append(Line2D([], [], color=_OUTLINE, label="reference patient's body"))
    if any(panel.frames for panel in panels):
        handles.append(Line2D([], [], color=_FRAME, label="region of the next step"))
    note = window_text((panel.window for panel in panels), panels[0].unit)
    place_legend(figure, handles, note, 2 * columns)
    if title:
        figure.suptitle(title, fontsize=TITLE_POINTS)
    with writing(path) as file:
        figure.savefig(file, format="png", dpi=_PANEL_PIXELS)


def _panel(
    title: str,
    scan: Volume,
    place: Grid,
    result: Segmentation,
    *,
    as_seen: bool = False,
    labels: np.ndarray | None = None,
    true: np.ndarray | None = None,
    outline: np.ndarray | None = None,
    frames: tuple[np.ndarray, ...] = (),
) -> Panel:
    """One slice of a grid; with square pixels like the network's input, or in millimetres."""
    _, height, width = place.spacing_mm.reshape(-1, 3)[0].tolist()
    fill = [channel.padding_value for channel in result.channels]
    image = resample(scan, place, fill=fill).data[0, 0]
    return Panel(
        title=title,
        values=image.numpy(),
        window=_window(scan, result.channels[0]),
        unit="HU" if result.channels[0].scheme == "ct" else "",
        pixel=(1.0, 1.0) if as_seen else (height, width),
        mm=(height, width),
        right=edge_of_right(place),
        labels=labels,
        true=true,
        outline=outline,
        frames=frames,
    )


def _window(scan: Volume, channel: Normalisation) -> tuple[float, float]:
    """The abdominal window for CT; for other images, minimum to 99.5th percentile."""
    if channel.scheme == "ct":
        return CT_WINDOW
    low, high = np.percentile(scan.data[0].numpy(), (0.0, 99.5)).tolist()
    return low, max(high, low + 1e-6)


def _shown_row(region: Region, scan: Grid, k: int) -> int | None:
    """The slice of a region to show: see `_row_at`; across the scan's slices, the fullest."""
    if has_parallel_slices(region.grid, scan):
        return _row_at(region.grid, scan, k)
    if region.found is None or region.target is None:
        return region.grid.shape[0] // 2
    areas = (decide(region.found, region.target).data[0] > 0).flatten(1).sum(1)
    return int(areas.argmax()) if bool(areas.any()) else region.grid.shape[0] // 2


def _row_at(grid: Grid, scan: Grid, k: int) -> int | None:
    """The slice of a grid nearest to slice `k` of the scan; None if it is outside the grid."""
    if grid.is_slicewise:
        return k
    row = round(float(grid.index(scan.slices(k, k + 1).centre_mm.reshape(-1, 3)[0])[0]))
    return row if 0 <= row < grid.shape[0] else None


def _labels(region: Region, row: int) -> np.ndarray | None:
    if region.found is None or region.target is None:
        return None
    labels: np.ndarray = decide(region.found.slices(row, row + 1), region.target).data[0, 0].numpy()
    return labels


def _outline(outline: Volume, place: Grid, row: int) -> np.ndarray:
    drawn: np.ndarray = resample(outline.slices(row, row + 1), place).data[0, 0].numpy()
    return drawn


def _following(region: Region, later: Sequence[Region]) -> Sequence[Region]:
    """The regions of the next step that follow from a region: those of its name, or else all."""
    return [each for each in later if each.name == region.name] or later


def _frames(regions: Sequence[Region], place: Grid, scan: Grid, k: int) -> tuple[np.ndarray, ...]:
    """The borders of regions in a slice, without regions that cover exactly the slice."""
    frames = []
    for region in regions:
        if not has_parallel_slices(region.grid, scan) or not has_parallel_slices(place, scan):
            frames += _box_frame(region.grid, place)
            continue
        row = _row_at(region.grid, scan, k)
        if row is not None and not region.grid.slices(row, row + 1).same_as(place):
            frames.append(frame_of(region.grid.slices(row, row + 1), place))
    return tuple(frames)


def _box_frame(inner: Grid, place: Grid) -> list[np.ndarray]:
    """The frame of a volumetric grid in a slice across it; none if the slice does not meet it.

    For axes that are parallel to those of the slice, in any order.
    """
    if inner.is_slicewise:
        return []
    ends = torch.tensor([[-0.5] * 3, [n - 0.5 for n in inner.shape]], dtype=torch.float64)
    own = place.slicewise()
    at = torch.cat([own.index(corner) for corner in inner.mm(ends)])
    low, high = at.amin(0), at.amax(0)
    if not float(low[0]) <= 0.0 <= float(high[0]):
        return []
    (top, left), (bottom, right) = low[1:].tolist(), high[1:].tolist()
    return [np.array([(top, left), (top, right), (bottom, right), (bottom, left), (top, left)])]


def frame_of(inner: Grid, outer: Grid) -> np.ndarray:
    """(5, 2) corners of one slice as (row, column) indices of another; the first is repeated."""
    rows, columns = inner.shape[1] - 0.5, inner.shape[2] - 0.5
    ends = [(-0.5, -0.5), (-0.5, columns), (rows, columns), (rows, -0.5), (-0.5, -0.5)]
    corners = [outer.index(inner.mm((0.0, *end))).reshape(3)[1:] for end in ends]
    return torch.stack(corners).numpy()


def _show(axes: Axes, panel: Panel, schema: LabelSchema) -> None:
    rows, columns = panel.values.shape
    low, high = panel.window
    aspect = panel.pixel[0] / panel.pixel[1]
    axes.imshow(panel.values, cmap="gray", vmin=low, vmax=high, aspect=aspect)
    axes.set_axis_off()
    if panel.labels is not None:
        draw_found(axes, panel.labels, schema)
    if panel.true is not None:
        draw_true(axes, panel.true, schema)
    if panel.outline is not None and panel.outline.min() < 0.5 <= panel.outline.max():
        axes.contour(panel.outline, [0.5], colors=[_OUTLINE], linewidths=1.0)
    for frame in panel.frames:
        axes.plot(frame[:, 1], frame[:, 0], color=_FRAME, linewidth=1.2)
    if panel.mm is not None:
        mark_scale(axes, (rows, columns), panel.mm)
    mark_sides(axes, panel.right)
    fit_image(axes, (rows, columns))
