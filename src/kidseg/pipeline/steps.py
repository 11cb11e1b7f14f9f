"""A method at work: steps that locate regions and, maybe, segment them.

`advance` is the only chain there is: inference runs all steps of a method, and a stage of training
gets its grids from the steps before it. The scan is interpolated once, from its own voxels to each
region's grid; `kidseg.pipeline.restore` brings what was found there back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kidseg.geometry import Grid, Slices, Volume
from kidseg.labels import Target

__all__ = ["Locate", "Progress", "Region", "Segment", "Step", "advance"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Region:
    """One place to look at, and what was found there.

    Attributes:
        grid: where its voxels lie; volumetric, or slice-wise over the scan's slices.
        name: regions of one name are several opinions on the same place, and are averaged; those of
            different names are different places (one per kidney), which may overlap.
        found: (channels, *grid.shape) probabilities on `grid`, as the step's target means them;
            None where the step only locates.
    """

    grid: Grid
    name: str = ""
    found: Volume | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """A scan, and the regions of each step that has run: what every later step may read.

    Attributes:
        image: (channels, slices, rows, columns), HU for CT; the slices of a batch in
            joint training.
        steps: the regions of each step, by its name, in order. A step that had nothing to do has
            none.
        seconds: wall time of each step.
    """

    image: Volume | Slices
    steps: Mapping[str, tuple[Region, ...]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def last(self) -> tuple[Region, ...]:
        """The regions of the last step that had any; the whole image, if none had."""
        for regions in reversed(tuple(self.steps.values())):
            if regions:
                return regions
        if isinstance(self.image, Slices):
            raise ValueError("slices of a batch have no grid in common; a step must come first")
        return (Region(grid=self.image.grid),)

    @property
    def found(self) -> tuple[Region, ...]:
        """The regions of the last step that found something; () if none did."""
        for regions in reversed(tuple(self.steps.values())):
            if regions and regions[0].found is not None:
                return regions
        return ()


Locate = Callable[[Progress], Sequence[Region]]
"""Where to look, from what is known so far; (): nothing to do."""

Segment = Callable[[Progress, Region], Volume]
"""Probabilities on the region's grid; may read earlier results."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a method: where to look and, maybe, what is there.

    Attributes:
        name: unique in a method.
        locate: see `Locate`.
        segment: see `Segment`; None only locates.
        target: what the channels of `segment` mean.
    """

    name: str
    locate: Locate
    segment: Segment | None = None
    target: Target | None = None


def advance(image: Volume | Slices, steps: Sequence[Step]) -> Progress:
    """Take an image through steps, each reading what those before it located and found."""
    progress = Progress(image=image)
    for step in steps:
        start = time.perf_counter()
        regions = tuple(step.locate(progress))
        if step.segment is not None:
            regions = tuple(replace(r, found=step.segment(progress, r)) for r in regions)
        progress = Progress(
            image=image,
            steps={**progress.steps, step.name: regions},
            seconds={**progress.seconds, step.name: time.perf_counter() - start},
        )
    return progress
