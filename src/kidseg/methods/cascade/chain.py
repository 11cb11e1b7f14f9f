"""The steps of the cascade for one case: where each network looks, and the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from kidseg.geometry import Volume, resample
from kidseg.methods.cascade.account import (
    correct_note,
    fine_note,
    guide_note,
    refine_note,
    tumour_note,
)
from kidseg.methods.cascade.crops import coarse_grid, framed_box, kidney_crop, sagittal_crop
from kidseg.methods.cascade.decisions import Rules
from kidseg.methods.cascade.kept_lesions import boxes_around, combined, touching
from kidseg.pipeline import Predicted, Progress, Region, Segment, Step

__all__ = ["Chain"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """The steps of one case.

    Attributes:
        rules: of the case.
        segment: of each network by its name: "coarse", "correct", "fine", "tumour", "refine"; in
            training, what the reference labels say.
    """

    rules: Rules
    segment: Mapping[str, Segment]

    @property
    def steps(self) -> list[Step]:
        """All steps, in order."""
        return [self.coarse(), *self.corrections(), self.fine(), self.tumour(), self.refine()]

    def coarse(self) -> Step:
        """Kidneys in all slices."""
        return Step(
            name="coarse",
            locate=lambda _: [
                Region(grid=coarse_grid(self.rules.scan, self.rules.config.coarse.size))
            ],
            segment=self.segment["coarse"],
            target=self.rules.targets.renal,
            note=partial(guide_note, self.rules, "coarse"),
        )

    def corrections(self) -> list[Step]:
        """As many as are configured; each runs if the case is not yet normal."""
        return [self.correct(number) for number in range(self.rules.config.correct.iterations)]

    def correct(self, number: int = 0, *, always: bool = False) -> Step:
        """Kidneys again, in sagittal slices, if what was found so far is not normal.

        Args:
            number: of the correction, from 0.
            always: in normal cases, too.
        """
        name = _correction(number)

        def locate(progress: Progress) -> Sequence[Region]:
            if not always and self.rules.is_normal(progress):
                return ()
            grid = sagittal_crop(
                self.rules.scan, self.rules.centre_mm(progress), self.rules.config.correct.size
            )
            return [Region(grid=grid)]

        return Step(
            name=name,
            locate=locate,
            segment=self.segment["correct"],
            target=self.rules.targets.renal,
            note=partial(correct_note, self.rules, name),
        )

    def fine(self, *, grow: bool | None = None) -> Step:
        """Each kidney separately.

        Args:
            grow: whether crops grow; None: as configured.
        """
        config = self.rules.config.fine
        if grow is not None:
            config = replace(config, grow=grow)

        def locate(progress: Progress) -> list[Region]:
            kidneys = self.rules.kidneys(progress)
            return [
                Region(
                    grid=kidney_crop(
                        self.rules.scan, kidney, config, self.rules.config.unet.multiple
                    ),
                    name=name,
                )
                for kidney, name in zip(kidneys, self.rules.sides(kidneys), strict=True)
            ]

        return Step(
            name="fine",
            locate=locate,
            segment=self.segment["fine"],
            target=self.rules.targets.renal,
            note=partial(fine_note, self.rules),
        )

    def tumour(self) -> Step:
        """Tumours in three dimensions, around each kidney that the fine network found."""

        def locate(progress: Progress) -> list[Region]:
            regions = []
            for region in progress.steps["fine"]:
                if components := self.rules.components(region):
                    grid = framed_box(self.rules.scan, components, self.rules.config.tumour)
                    regions.append(Region(grid=grid, name=region.name))
            return regions

        return Step(
            name="tumour",
            locate=locate,
            segment=self.segment["tumour"],
            target=self.rules.targets.tumour,
            note=partial(tumour_note, self.rules),
        )

    def refine(self) -> Step:
        """Tumours slice by slice, inside those that were detected, or in all regions; the result.

        Lesions that do not touch a kidney are dropped before and after.
        """
        dropped: list[Volume] = []

        def locate(progress: Progress) -> list[Region]:
            dropped.clear()
            return [
                Region(grid=region.grid, name=region.name) for region in progress.steps["tumour"]
            ]

        def segment(progress: Progress, region: Region) -> Volume:
            found, apart = self._refined(progress, region)
            dropped.append(apart)
            return found

        return Step(
            name="refine",
            locate=locate,
            segment=segment,
            target=self.rules.targets.both,
            note=lambda progress: refine_note(self.rules, dropped, progress),
        )

    def _refined(self, progress: Progress, region: Region) -> tuple[Volume, Volume]:
        """(3, *region.grid.shape): background, kidney, tumour; (1, ...) bool: what was dropped."""
        lesions, grid = self.rules.lesions(progress), region.grid
        assert lesions is not None, "there is a region"
        (fine,) = (each for each in progress.steps["fine"] if each.name == region.name)
        assert fine.found is not None
        background = self.rules.targets.renal.background
        kidney = resample(fine.found, grid, fill=background).data[1].float()
        tumour, rows = torch.zeros_like(kidney), _rows(fine.found, None)
        detected, apart = lesions.kept_in(grid), torch.zeros(grid.shape, dtype=torch.bool)
        if self.rules.is_search(lesions) or bool(detected.any()):
            refined = self.segment["refine"](progress, region)
            tumour, rows = refined.data[1].float(), _rows(fine.found, refined)
            if not self.rules.is_search(lesions):
                inside = detected
                if self.rules.config.refine.inside == "box":
                    inside = boxes_around(detected)
                tumour = tumour * inside
            found = tumour > 0.5
            kept = touching(found, self.rules.renal_on(progress, grid), grid).kept
            apart = found & ~kept
            tumour = tumour.masked_fill(apart, 0.0)
        return Predicted(combined(kidney, tumour), grid, rows), Volume(apart[None], grid)


def _rows(renal: Volume, tumour: Volume | None) -> tuple[tuple[float, float], ...]:
    """What each opinion says of kidney and tumour, before tumours without a kidney are dropped."""
    of_renal = renal.rows if isinstance(renal, Predicted) else ()
    none = ((0.0,),) * len(of_renal)
    of_tumour = tumour.rows if isinstance(tumour, Predicted) else none
    return tuple(
        (max(whole - part, 0.0), part)
        for (whole,), (part,) in zip(of_renal, of_tumour, strict=True)
    )


def _correction(number: int) -> str:
    return "correct" if number == 0 else f"correct {number + 1}"
