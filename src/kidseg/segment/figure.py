"""Draw the steps of a segmentation in one representative slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kidseg.cohort.cohort import patient_dice
from kidseg.geometry import Grid, Volume, in_plane_pose, resample
from kidseg.intensity import Normalisation
from kidseg.io.atomic import writing
from kidseg.labels import LabelSchema
from kidseg.pipeline import Region, decide
from kidseg.segment.predictor import Segmentation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Panel", "draw_panels", "draw_steps", "frame_of", "representative_slice", "step_panels"]

# Abdominal soft-tissue window: level 40, width 400.
_WINDOW_HU = (-160.0, 240.0)
# Colours of reference body and crop; different from those of the labels. Source: as the labels'.
_OUTLINE, _FRAME = "#CC79A7", "#F0E442"
_PANEL_INCHES, _PANEL_PIXELS = 2.7, 100


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One image of a figure.

    Attributes:
        title: of the step.
        values: (rows, columns); HU for CT.
        window: values shown in black and in white.
        pixel: (height, width) of a pixel, in any unit.
        labels: (rows, columns), drawn as contours.
        outline: (rows, columns) float 0..1, drawn as contour at 0.5.
        frames: (5, 2) indices (row, column) of closed squares: the regions of the next step.
    """

    title: str
    values: np.ndarray
    pixel: tuple[float, float]
    window: tuple[float, float] = _WINDOW_HU
    labels: np.ndarray | None = None
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
    overwrite: bool = False,
) -> None:
    """Draw the steps of a segmentation; see `step_panels` and `representative_slice`.

    The title states the slice's angle, scales and shift; the overlap with the reference patient
    before the pose, at its start and after it; and, with reference labels, the Dice per patient.

    Args:
        path: a .png file.
        name: of the scan.
        scan: (1, slices, rows, columns) HU, as segmented.
        result: of the segmentation.
        schema: of the labels.
        reference: (1, ...) labels on the scan's voxels.
        ignore: (1, ...) bool: voxels that Dice ignores.
        overwrite: replace an existing file.
    """
    k = representative_slice(result.labels, reference)
    lines = [f"{name}, slice {k + 1} of {scan.grid.shape[0]}", *_pose_text(scan, result, k)]
    if reference is not None:
        dice = patient_dice(result.labels, reference, schema, ignore)
        found = [f"{region} {value:.2f}" for region, value in dice.items() if value is not None]
        lines.append(f"Dice over the patient: {', '.join(found) or 'nothing there, nothing found'}")
    panels = step_panels(scan, result, k, reference)
    draw_panels(path, panels, schema, title="\n".join(lines), overwrite=overwrite)


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
    frames of the next step's regions.
    """
    steps = list(result.progress.steps.items())
    panels = [_panel("scan", scan, scan.grid.slices(k, k + 1), result)]
    for number, (name, regions) in enumerate(steps, start=1):
        later = steps[number][1] if number < len(steps) else ()
        for region in regions:
            row = _row_at(region.grid, scan.grid, k)
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
                    frames=_frames(later, place, scan.grid, k),
                )
            )
    here = scan.grid.slices(k, k + 1)
    panels.append(_panel("labels", scan, here, result, labels=result.labels.data[0, k].numpy()))
    if reference is not None:
        panels.append(_panel("reference", scan, here, result, labels=reference.data[0, k].numpy()))
    return panels


def draw_panels(
    path: Path,
    panels: Sequence[Panel],
    schema: LabelSchema,
    *,
    title: str = "",
    overwrite: bool = False,
) -> None:
    """Draw panels side by side, with correct aspect ratios and labels as coloured contours.

    Raises:
        UsageError, InputError, ResourceError: see `kidseg.io.atomic.writing`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    above = 0.3 + 0.2 * len(title.splitlines()) if title else 0.3
    size = (_PANEL_INCHES * len(panels), _PANEL_INCHES + above + 0.25)
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, (axes, panel) in enumerate(zip(row, panels, strict=True), start=1):
        _show(axes, panel, schema)
        axes.set_title(f"{number}  {panel.title}", fontsize=9)
    known: list[tuple[str, Any]] = [(label.name, _colour(label.rgb)) for label in schema.labels]
    if any(panel.outline is not None for panel in panels):
        known.append(("reference patient's body", _OUTLINE))
    if any(panel.frames for panel in panels):
        known.append(("region of the next step", _FRAME))
    handles = [Line2D([], [], color=colour, label=name) for name, colour in known]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False
    )
    if title:
        figure.suptitle(title, fontsize=9)
    with writing(path, overwrite=overwrite) as file:
        figure.savefig(file, format="png", dpi=_PANEL_PIXELS)


def _panel(
    title: str,
    scan: Volume,
    place: Grid,
    result: Segmentation,
    *,
    as_seen: bool = False,
    labels: np.ndarray | None = None,
    outline: np.ndarray | None = None,
    frames: tuple[np.ndarray, ...] = (),
) -> Panel:
    """One slice of a grid; with square pixels like the network's input, or in millimetres."""
    pixel = place.spacing_mm.reshape(-1, 3)[0]
    fill = [channel.padding_value for channel in result.channels]
    image = resample(scan, place, fill=fill).data[0, 0]
    return Panel(
        title=title,
        values=image.numpy(),
        window=_window(scan, result.channels[0]),
        pixel=(1.0, 1.0) if as_seen else (float(pixel[1]), float(pixel[2])),
        labels=labels,
        outline=outline,
        frames=frames,
    )


def _window(scan: Volume, channel: Normalisation) -> tuple[float, float]:
    """The abdominal window for CT; for other images, minimum to 99.5th percentile."""
    if channel.scheme == "ct":
        return _WINDOW_HU
    low, high = np.percentile(scan.data[0].numpy(), (0.0, 99.5)).tolist()
    return low, max(high, low + 1e-6)


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


def _frames(regions: Sequence[Region], place: Grid, scan: Grid, k: int) -> tuple[np.ndarray, ...]:
    """The borders of regions in a slice, without regions that cover exactly the slice."""
    frames = []
    for region in regions:
        row = _row_at(region.grid, scan, k)
        if row is not None and not region.grid.slices(row, row + 1).same_as(place):
            frames.append(frame_of(region.grid.slices(row, row + 1), place))
    return tuple(frames)


def frame_of(inner: Grid, outer: Grid) -> np.ndarray:
    """(5, 2) corners of one slice as (row, column) indices of another; the first is repeated."""
    rows, columns = inner.shape[1] - 0.5, inner.shape[2] - 0.5
    ends = [(-0.5, -0.5), (-0.5, columns), (rows, columns), (rows, -0.5), (-0.5, -0.5)]
    corners = [outer.index(inner.mm((0.0, *end))).reshape(3)[1:] for end in ends]
    return torch.stack(corners).numpy()


def _pose_text(scan: Volume, result: Segmentation, k: int) -> list[str]:
    """The pose of the slice in each step with an outline, and the overlap with the reference."""
    lines = []
    for name, regions in result.progress.steps.items():
        if name not in result.placement.outlines or not regions:
            continue
        grid = regions[0].grid.slices(k, k + 1)
        pose = in_plane_pose(grid, scan.grid.slices(k, k + 1))
        angle = math.degrees(float(pose.angle_rad.reshape(-1)[0]))
        across, down = pose.shift_mm.reshape(-1, 2)[0].tolist()
        median = result.facts["grids"][name][0]["scale"]
        own = median.get("per_slice", [median["median"]])
        wide, high = own[k if len(own) > 1 else 0]
        lines.append(
            f"rotated by {angle:+.1f} deg, scaled by {wide:.2f} x {high:.2f},"
            f" shifted by ({across:+.0f}, {down:+.0f}) mm"
        )
    overlap = result.placement.overlap
    if overlap:
        parts = [
            f"{mask} {' -> '.join(f'{overlap[when][mask]:.2f}' for when in overlap)}"
            for mask in overlap["after"]
        ]
        lines.append(
            f"overlap with the reference patient, as scanned -> at the start -> homogenized:"
            f" {', '.join(parts)}"
        )
    return lines


def _show(axes: Axes, panel: Panel, schema: LabelSchema) -> None:
    aspect = panel.pixel[0] / panel.pixel[1]
    axes.imshow(
        panel.values, cmap="gray", vmin=panel.window[0], vmax=panel.window[1], aspect=aspect
    )
    axes.set_axis_off()
    if panel.outline is not None and panel.outline.min() < 0.5 <= panel.outline.max():
        axes.contour(panel.outline, [0.5], colors=[_OUTLINE], linewidths=1.0)
    for frame in panel.frames:
        axes.plot(frame[:, 1], frame[:, 0], color=_FRAME, linewidth=1.2)
    if panel.frames:
        axes.set(xlim=(-0.5, panel.values.shape[1] - 0.5), ylim=(panel.values.shape[0] - 0.5, -0.5))
    if panel.labels is None:
        return
    for label in schema.labels:
        mask = panel.labels == label.id
        if mask.any():
            # Padded with background, so that a mask that fills the image has a contour.
            padded = np.pad(mask.astype(float), 1)
            rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
            axes.contour(columns, rows, padded, [0.5], colors=[_colour(label.rgb)], linewidths=1.2)
    axes.set(xlim=(-0.5, panel.values.shape[1] - 0.5), ylim=(panel.values.shape[0] - 0.5, -0.5))


def _colour(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    return (rgb[0] / 255, rgb[1] / 255, rgb[2] / 255)
