"""The steps of a method: each locates regions of interest and optionally segments them.

`advance` is the only function that runs steps: inference runs all steps of a method, and a training
stage takes its grids from the steps before it. The scan is interpolated once, from its own voxels
to each region's grid; `kidseg.pipeline.restore` resamples the result back to the scan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kidseg.errors import Finding
from kidseg.geometry import Grid, Slices, Volume
from kidseg.labels import Target

__all__ = [
    "Adapt",
    "Locate",
    "Note",
    "OnProgress",
    "Progress",
    "Region",
    "Segment",
    "Step",
    "advance",
    "ignore_progress",
    "share_of",
]

OnProgress = Callable[[float], None]
"""Called with how much of a task is done, 0 to 1, whenever more of it is."""


def ignore_progress(fraction: float) -> None:
    """An `OnProgress` that does nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """A region of interest, and the probabilities predicted in it.

    Attributes:
        grid: of its voxels; volumetric, or slice-wise over the scan's slices.
        name: regions with the same name are an ensemble and are averaged; regions with different
            names are different places (one per kidney), which may overlap.
        target: meaning of the channels of `found`, set by `advance`.
        found: (channels, *grid.shape) probabilities on `grid`, with the channels of the step's
            target; None if the step only locates.
    """

    grid: Grid
    name: str = ""
    found: Volume | None = None
    target: Target | None = None


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a step decided, for the reader of the result.

    Attributes:
        text: a sentence, without a full stop.
        facts: the same and more as plain data.
        findings: warnings.
    """

    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """A scan and the results of the steps that have run; later steps may read all of it.

    Attributes:
        image: (channels, slices, rows, columns), HU for CT; the slices of a batch in joint
            training.
        steps: {step name: its regions}, in order of execution. A step may have no regions.
        seconds: wall time of each step.
        notes: of the steps that have one.
        on_progress: called by `Segment` with how much of its region is done.
    """

    image: Volume | Slices
    steps: Mapping[str, tuple[Region, ...]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Note] = field(default_factory=dict)
    on_progress: OnProgress = ignore_progress

    @property
    def last(self) -> tuple[Region, ...]:
        """The regions of the last step that has any; the full image if none has."""
        for regions in reversed(tuple(self.steps.values())):
            if regions:
                return regions
        if isinstance(self.image, Slices):
            raise ValueError("the slices of a batch share no grid; run a locating step first")
        return (Region(grid=self.image.grid),)

    @property
    def found(self) -> tuple[Region, ...]:
        """The regions of the last step that segmented; () if none did."""
        for regions in reversed(tuple(self.steps.values())):
            if regions and regions[0].found is not None:
                return regions
        return ()


Locate = Callable[[Progress], Sequence[Region]]
"""Progress so far -> regions of interest; () if there is nothing to do."""

Segment = Callable[[Progress, Region], Volume]
"""Progress so far, region -> probabilities on the region's grid."""

Adapt = Callable[[Progress, Region, float], None]
"""Progress so far, region, weight: adapts a network's norm statistics to the image in a region."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a method: locates regions and optionally segments them.

    Attributes:
        name: unique in a method.
        locate: see `Locate`.
        segment: see `Segment`; None if the step only locates.
        target: meaning of the output channels of `segment`.
        adapt: see `Adapt`; None if the networks of `segment` cannot be adapted.
        note: (progress with this step) -> what the step decided; None: nothing.
    """

    name: str
    locate: Locate
    segment: Segment | None = None
    target: Target | None = None
    adapt: Adapt | None = None
    note: Callable[[Progress], Note] | None = None


def advance(
    start: Volume | Slices | Progress,
    steps: Sequence[Step],
    on_progress: OnProgress = ignore_progress,
) -> Progress:
    """Run the steps; each step can read the results of those before it.

    Args:
        start: an image; or the progress of the steps before these.
        steps: to run.
        on_progress: called with how much is done; each step that segments counts the same.
    """
    progress = start if isinstance(start, Progress) else Progress(image=start)
    segmenting = [step for step in steps if step.segment is not None]
    for step in steps:
        begin = time.perf_counter()
        regions = tuple(step.locate(progress))
        if step.segment is not None:
            first, share = segmenting.index(step) / len(segmenting), 1 / len(segmenting)
            regions = tuple(
                replace(r, found=step.segment(now, r), target=step.target)
                for r, now in _in_turn(progress, regions, share_of(on_progress, first, share))
            )
            on_progress(first + share)
        progress = replace(progress, steps={**progress.steps, step.name: regions})
        if step.note is not None:
            progress = replace(progress, notes={**progress.notes, step.name: step.note(progress)})
        seconds = time.perf_counter() - begin
        progress = replace(progress, seconds={**progress.seconds, step.name: seconds})
    return progress


def share_of(on_progress: OnProgress, first: float, share: float) -> OnProgress:
    """For a part of a task: it begins when `first` is done, and is this share of the whole."""
    return lambda fraction: on_progress(first + share * fraction)


def _in_turn(
    progress: Progress, regions: Sequence[Region], on_progress: OnProgress
) -> Iterator[tuple[Region, Progress]]:
    """Each region, and the progress that its segmentation reads and tells."""
    for k, region in enumerate(regions):
        yield (
            region,
            replace(
                progress, on_progress=share_of(on_progress, k / len(regions), 1 / len(regions))
            ),
        )
