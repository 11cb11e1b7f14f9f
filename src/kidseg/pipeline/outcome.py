"""A method at work: steps that choose a grid and segment on it, then the way back.

The scan is interpolated once, from its own voxels to each step's grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kidseg.geometry import Grid, Volume, resample
from kidseg.intensity import AIR_HU
from kidseg.pipeline.restore import restore

__all__ = ["Locate", "Outcome", "Segment", "Step", "run"]

Locate = Callable[[Volume, Grid, Volume | None], Grid]
"""(scan, current grid, probabilities found so far) -> the grid to go on with."""

Segment = Callable[[Volume], Volume]
"""HU on a grid -> (labels + 1, slices, rows, columns) probabilities on the same grid."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a method: where to look and, maybe, what is there."""

    name: str
    locate: Locate
    segment: Segment | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run gave.

    Attributes:
        labels: (1, slices, rows, columns) uint8 on the scan's own grid, or where they were wanted.
        found: the last step's probabilities on its own grid.
        grids: the grid of each step, by name.
        seconds: wall time of each step, and of "restore".
    """

    labels: Volume
    found: Volume
    grids: dict[str, Grid]
    seconds: dict[str, float]


def run(scan: Volume, steps: Sequence[Step], *, onto: Grid | None = None) -> Outcome:
    """Take a scan, (1, slices, rows, columns) HU, through the steps and back.

    Args:
        scan: what the steps look at.
        steps: at least one of them segments.
        onto: where the labels are wanted; the scan's own grid by default.

    Raises:
        ValueError: no step segments.
        ModelError: as `restore`.
    """
    grid, found = scan.grid, None
    grids: dict[str, Grid] = {}
    seconds: dict[str, float] = {}
    for step in steps:
        start = time.perf_counter()
        grid = step.locate(scan, grid, found)
        grids[step.name] = grid
        if step.segment is not None:
            found = step.segment(resample(scan, grid, fill=AIR_HU))
        seconds[step.name] = time.perf_counter() - start
    if found is None:
        raise ValueError("no step segments")
    start = time.perf_counter()
    labels = restore(found, scan.grid if onto is None else onto)
    seconds["restore"] = time.perf_counter() - start
    return Outcome(labels=labels, found=found, grids=grids, seconds=seconds)
