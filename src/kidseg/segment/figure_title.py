"""What the figure of a segmentation says in words: pose, overlap, notes, Dice."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from kidseg.cohort.cohort import patient_dice
from kidseg.errors import printable
from kidseg.geometry import Volume, in_plane_pose
from kidseg.labels import LabelSchema
from kidseg.segment.predictor import Segmentation

__all__ = ["TITLE_POINTS", "pose_text", "title_of", "wrapped"]

TITLE_POINTS = 9
"""Size of the title's letters."""

_SAME_SIZE = 0.005
# Mean width of a letter of matplotlib's font, as a share of its size; of texts it is about 0.54.
_LETTER = 0.6


def title_of(
    name: str,
    scan: Volume,
    result: Segmentation,
    schema: LabelSchema,
    k: int,
    known: tuple[Volume, Volume | None] | None = None,
) -> str:
    """The title of the figure of slice `k`; see `kidseg.segment.figure.draw_steps`.

    Args:
        name: of the scan.
        scan: as segmented.
        result: of the segmentation.
        schema: of the labels.
        k: the slice.
        known: reference labels, and the voxels that Dice ignores.
    """
    lines = [f"{name}, slice {k + 1} of {scan.grid.shape[0]}", *_pose_text(scan, result, k)]
    lines += [f"{step}: {note.text}" for step, note in result.progress.notes.items()]
    if not bool((result.labels.data > 0).any()):
        lines.append("neither kidney nor tumour was found")
    if known is not None:
        dice = patient_dice(result.labels, known[0], schema, known[1])
        found = [f"{region} {value:.2f}" for region, value in dice.items() if value is not None]
        lines.append(f"Dice over the patient: {', '.join(found) or 'nothing there, nothing found'}")
    return printable("\n".join(lines))


def wrapped(title: str, inches: float) -> str:
    """A title whose lines are broken where they are wider than a figure; it keeps its own lines.

    Args:
        title: its lines.
        inches: width of the figure.
    """
    letters = int(72 * inches / (_LETTER * TITLE_POINTS))
    lines = (textwrap.wrap(line, letters) or [""] for line in title.splitlines())
    return "\n".join(line for parts in lines for line in parts)


def _pose_text(scan: Volume, result: Segmentation, k: int) -> list[str]:
    """The pose of the slice in each step with an outline, and the overlap with the reference."""
    lines = []
    for name, regions in result.progress.steps.items():
        if name not in result.placement.outlines or not regions:
            continue
        grid = regions[0].grid.slices(k, k + 1)
        pose = in_plane_pose(grid, scan.grid.slices(k, k + 1))
        median = result.facts["grids"][name][0]["scale"]
        own = median.get("per_slice", [median["median"]])
        wide, high = own[k if len(own) > 1 else 0]
        lines.append(
            pose_text(
                math.degrees(float(pose.angle_rad.reshape(-1)[0])),
                (wide, high),
                pose.shift_mm.reshape(-1, 2)[0].tolist(),
            )
        )
    overlap = result.placement.overlap
    if overlap:
        parts = [
            f"{mask} {' -> '.join(f'{overlap[when][mask]:.2f}' for when in overlap)}"
            for mask in overlap["after"]
        ]
        lines.append(
            f"overlap with the reference patient, as scanned -> at the start -> homogenized:"
            f" {', '.join(parts)}{'' if result.placement.corrected else ' (the start was kept)'}"
        )
    return lines


def pose_text(angle_deg: float, scale: tuple[float, float], shift_mm: Sequence[float]) -> str:
    """How a patient lies in a slice, and how the slice was brought to the reference's size.

    Args:
        angle_deg: of the patient in the scan, positive from the columns towards the rows.
        scale: (across, down) patient's millimetres in a millimetre of the result.
        shift_mm: (across, down) of the patient's centre from that of the scan.
    """
    turn = "clockwise" if angle_deg > 0 else "anticlockwise"
    across, down = (round(value) for value in shift_mm)
    off = [f"{abs(across)} mm to the patient's {'left' if across > 0 else 'right'}"] * bool(across)
    off += [f"{abs(down)} mm to the {'back' if down > 0 else 'front'}"] * bool(down)
    return (
        f"patient turned {turn} by {abs(angle_deg):.1f} deg"
        + (f", off centre by {' and '.join(off)}" if off else "")
        + f"; {_size_text(*scale)}"
    )


def _size_text(wide: float, high: float) -> str:
    """How the size was changed, by the patient's millimetres in a millimetre of the result."""
    done = [
        "kept" if abs(s - 1) < _SAME_SIZE else "shrunk" if s > 1 else "enlarged"
        for s in (wide, high)
    ]
    by = [f"{max(s, 1 / s):.2f}" for s in (wide, high)]
    if done[0] != done[1]:
        parts = (d if d == "kept" else f"{d} by {b}" for d, b in zip(done, by, strict=True))
        return " in width, ".join(parts) + " in height"
    if done[0] == "kept":
        return "kept in size"
    same = by[0] == by[1]
    return f"{done[0]} by {by[0] if same else f'{by[0]} in width and {by[1]} in height'}"
