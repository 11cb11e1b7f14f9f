"""What the cascade decides about one case, from what its networks found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from kidseg.cohort.subject import Subject
from kidseg.config import CascadeConfig
from kidseg.geometry import Grid, Volume
from kidseg.labels import Target
from kidseg.measure import Midline, side_of_component
from kidseg.methods.cascade.components import (
    NORMAL,
    Component,
    components_of,
    kidneys_among,
    threshold_ml,
)
from kidseg.methods.cascade.crops import inside, part_of, union_grid
from kidseg.methods.cascade.kept_lesions import Lesions, touching
from kidseg.pipeline import Progress, Region, decide, restore

__all__ = ["Rules", "Targets"]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Meaning of the outputs of the networks and of the result.

    Attributes:
        renal: kidneys with tumours, of the networks coarse, correct and fine.
        tumour: of the networks tumour and refine.
        both: kidney and tumour, the result.
    """

    renal: Target
    tumour: Target
    both: Target

    @classmethod
    def of(cls, both: Target) -> Targets:
        """From that of the result.

        Raises:
            ValueError: it is not exclusive with two channels, kidney and tumour.
        """
        if not both.exclusive or len(both.channels) != 2:
            raise ValueError("the cascade gives two exclusive channels, kidney and tumour")
        kidney, tumour = both.channels
        return cls(
            renal=Target(channels=((*kidney, *tumour),), writes=both.writes[:1]),
            tumour=Target(channels=(tumour,), writes=both.writes[1:]),
            both=both,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Rules:
    """The rules for one case.

    Attributes:
        config: of the method.
        targets: see there.
        subject: the case.
    """

    config: CascadeConfig
    targets: Targets
    subject: Subject

    @cached_property
    def scan(self) -> Grid:
        """The scan at the networks' spacing."""
        return self.subject.image.grid.with_spacing(self.config.spacing_mm)

    @cached_property
    def _components(self) -> dict[Region, tuple[Component, ...]]:
        return {}

    @cached_property
    def _lesions(self) -> dict[tuple[Region, ...], Lesions]:
        return {}

    def guide(self, progress: Progress) -> tuple[Component, ...]:
        """Components of the mask that guides later steps: of the last correction, or the coarse.

        A correction that finds nothing does not count.
        """
        for name, regions in reversed(list(progress.steps.items())):
            if not (name == "coarse" or name.startswith("correct")) or not regions:
                continue
            (region,) = regions
            found = self.components(region)
            if found or name == "coarse":
                return found
        return ()

    def components(self, region: Region) -> tuple[Component, ...]:
        """The components of the kidneys that were found in a region; computed once."""
        if region not in self._components:
            assert region.found is not None
            found = decide(region.found, self.targets.renal).data[0] > 0
            self._components[region] = components_of(self._in_scan(found, region.grid), region.grid)
        return self._components[region]

    def kidneys(self, progress: Progress) -> tuple[Component, ...]:
        """The components of the guide that are kidneys; the largest if all are too small."""
        return kidneys_among(self.guide(progress), self.min_kidney_ml)

    def is_normal(self, progress: Progress) -> bool:
        """Whether exactly two components of the guide are large enough for a kidney.

        Source: Zhang et al., KiTS19, eq. 5.
        """
        return len(self.large(progress)) == NORMAL

    def large(self, progress: Progress) -> tuple[Component, ...]:
        """The components of the guide that are large enough for a kidney."""
        return tuple(c for c in self.guide(progress) if c.volume_ml >= self.min_kidney_ml)

    def centre_mm(self, progress: Progress) -> tuple[float, float, float]:
        """The centroid of the kidneys, or of the body if there are none."""
        kidneys = self.kidneys(progress)
        if not kidneys:
            return self._body_mm
        volumes = np.array([each.volume_ml for each in kidneys])
        x, y, z = (volumes / volumes.sum() @ np.array([k.centre_mm for k in kidneys])).tolist()
        return x, y, z

    def renal_on(self, progress: Progress, grid: Grid) -> Tensor:
        """(slices, rows, columns) bool: what the fine network found in all its regions."""
        labels = restore(progress.steps["fine"], grid, self.targets.renal)
        return self._in_scan(labels.data[0] > 0, grid)

    def _in_scan(self, found: Tensor, grid: Grid) -> Tensor:
        """A mask on a grid without what lies beyond the scan, where there is nothing to find."""
        box, kept = inside(self.scan, grid), torch.zeros_like(found)
        kept[box] = found[box]
        return kept

    def lesions(self, progress: Progress) -> Lesions | None:
        """The lesions that the 3D network found in all regions together; None without regions.

        Regions may overlap: what two of them show is one lesion. Computed once.
        """
        regions = progress.steps["tumour"]
        if not regions:
            return None
        if regions not in self._lesions:
            grid = union_grid(self.scan, [region.grid for region in regions])
            found = restore(regions, grid, self.targets.tumour).data[0] > 0
            self._lesions[regions] = touching(found, self.renal_on(progress, grid), grid)
        return self._lesions[regions]

    def is_search(self, lesions: Lesions) -> bool:
        """Whether (almost) nothing was detected, so that all regions are searched."""
        return sum(lesions.kept_ml) < self.almost_nothing_ml

    def dropped_ml(self, progress: Progress, dropped: Sequence[Volume]) -> tuple[float, ...]:
        """Volume of each tumour that was dropped in its region and kept in no other, largest first.

        Args:
            progress: with the step "refine".
            dropped: (1, slices, rows, columns) bool in each of its regions.
        """
        if not dropped:
            return ()
        grid, both = union_grid(self.scan, [each.grid for each in dropped]), self.targets.both
        apart = torch.zeros(grid.shape, dtype=torch.bool)
        for each in dropped:
            apart[part_of(grid, each.grid)] |= each.data[0]
        kept = restore(progress.steps["refine"], grid, both).data[0] == both.writes[1]
        return tuple(each.volume_ml for each in components_of(apart & ~kept, grid))

    @property
    def min_kidney_ml(self) -> float:
        """The volume of the smallest kidney that counts."""
        return threshold_ml(self.config.kidney, self.config.spacing_mm, self._radius_mm)

    @property
    def almost_nothing_ml(self) -> float:
        """The volume of detected tumours below which the 2D network searches."""
        threshold = self.config.refine.almost_nothing
        return threshold_ml(threshold, self.config.spacing_mm, self._radius_mm)

    @property
    def _radius_mm(self) -> float | None:
        return None if self.subject.body is None else self.subject.body.radius_mm

    @property
    def _body_mm(self) -> tuple[float, float, float]:
        """The centre of the body, at half the height of the scan; else of the scan."""
        grid = self.subject.image.grid
        middle = torch.tensor([(n - 1) / 2 for n in grid.shape], dtype=torch.float64)
        body = self.subject.body
        if body is not None and bool(body.whole.centre_mm.isfinite().all()):
            middle[1:] += body.whole.centre_mm.flip(0) / grid.spacing_mm[1:]
        x, y, z = grid.mm(middle).tolist()
        return x, y, z

    def sides(self, kidneys: Sequence[Component]) -> list[str]:
        """Unique names by the side of the body: "right", "left" or "both sides", as a horseshoe."""
        body = self.subject.body
        midline = Midline.of(self.subject.image.grid, None if body is None else body.per_slice)
        names: list[str] = []
        counts: dict[str, int] = {}
        for kidney in kidneys:
            mm = kidney.grid.mm(kidney.voxels).numpy()
            side = side_of_component(midline.right_of(mm) > 0)
            counts[side] = counts.get(side, 0) + 1
            names.append(f"{side} {counts[side]}" if counts[side] > 1 else side)
        return names

    def renal_ml(self, progress: Progress) -> float:
        """The volume that the fine network found; what two of its regions show counts once."""
        regions = progress.steps["fine"]
        if not regions:
            return 0.0
        grid = union_grid(self.scan, [region.grid for region in regions])
        return int(self.renal_on(progress, grid).sum()) * float(grid.voxel_ml)
