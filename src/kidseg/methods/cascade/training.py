"""The training stages of the cascade: what each network is shown, its loss and its validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kidseg.cohort.batch import Patches
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import SliceIndex, draw, steps_per_epoch
from kidseg.cohort.place import (
    Place,
    draw_centres,
    place_of,
    plane_index,
    planes_of,
    sampled_patches,
)
from kidseg.cohort.subject import Subject
from kidseg.config import CascadeConfig
from kidseg.distributed import all_gather
from kidseg.geometry import Grid, Volume, resample
from kidseg.labels import Target
from kidseg.losses import (
    coarsened,
    cross_entropy,
    encode,
    level_weights,
    probabilities,
    soft_dice,
)
from kidseg.methods.cascade.chain import Chain
from kidseg.methods.cascade.crops import centred, sagittal_crop
from kidseg.methods.cascade.decisions import Targets
from kidseg.methods.segmentation import validation
from kidseg.pipeline import Blocks, Planes, Progress, Region, advance
from kidseg.stage import Stage, TrainStep

__all__ = ["Training", "binary_loss", "truth"]


class ChainOf(Protocol):
    """Makes the steps of a case; by its reference labels in place of the networks."""

    def __call__(self, subject: Subject, *, by_truth: bool = False) -> Chain:
        """See `Cascade.chain`."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """The training of the cascade.

    Attributes:
        config: of the method.
        targets: of its networks.
        cohort: the cases.
        parts: the networks by name.
        chain: makes the steps of a case.
        view: (case, name of the network) -> its view.
    """

    config: CascadeConfig
    targets: Targets
    cohort: Cohort
    parts: Mapping[str, nn.Module]
    chain: ChainOf
    view: Callable[[Subject, str], Planes | Blocks]

    def stage(self, name: str) -> Stage:
        """The stage of a network; those before it have been trained."""
        settings: Any = getattr(self.config, name)
        places = self._places(name)
        batch, steps = self._blocks(places) if name == "tumour" else self._planes(name, places)
        target = self._target(name)

        def loss(called: nn.Module, batch: Patches) -> dict[str, Tensor]:
            image = batch.image
            if image.ndim == 4:
                image = image.contiguous(memory_format=torch.channels_last)
            levels = [all_gather(level) for level in called(image)]
            labels = all_gather(batch.labels)
            valid = None if batch.valid is None else all_gather(batch.valid)
            return {
                "loss": binary_loss(
                    levels, labels, target, settings.loss, self.config.dice_over, valid
                )
            }

        return Stage(
            name=name,
            net=self.parts[name],
            config=settings.stage,
            steps=settings.stage.steps or steps,
            batch=batch,
            loss=loss,
            validate=self._validation(name),
        )

    def _target(self, name: str) -> Target:
        return self.targets.tumour if name in ("tumour", "refine") else self.targets.renal

    @property
    def _groups(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Labels of kidney and of tumour."""
        kidney, tumour = self.targets.both.channels
        return kidney, tumour

    # What is shown

    def _places(self, name: str) -> list[Place]:
        """The places in all training cases where a network is trained."""
        places = []
        for case, subject in enumerate(self.cohort.training):
            for grid, mask in self._grids(name, subject):
                places.append(place_of(subject, case, grid, self._groups, mask))
        return places or [self._middle(name)]

    def _middle(self, name: str) -> Place:
        """The middle of the first scan, if no case has a kidney."""
        subject = self.cohort.training[0]
        size = self.config.fine.size if name == "fine" else self.config.refine.size
        grid = centred(self.chain(subject).rules.scan, size)
        return place_of(subject, 0, grid, self._groups)

    @torch.no_grad()
    def _grids(self, name: str, subject: Subject) -> list[tuple[Grid, Volume | None]]:
        """Grids, and the kidney masks of the 2-channel network if they are predicted."""
        by_truth = self.config.crops == "truth"
        chain = self.chain(subject, by_truth=by_truth)
        (coarse,) = chain.coarse().locate(Progress(image=subject.image))
        if name == "coarse":
            return [(coarse.grid, None)]
        progress = advance(subject.image, [chain.coarse()])
        if name == "correct":
            size, centre_mm = self.config.correct.size, chain.rules.centre_mm(progress)
            return [(sagittal_crop(chain.rules.scan, centre_mm, size), None)]
        if not by_truth:
            progress = advance(progress, chain.corrections())
        if name == "fine":
            regions = chain.fine(grow=False).locate(progress)
            return [(region.grid, None) for region in regions]
        progress = advance(progress, [chain.fine()])
        regions = chain.tumour().locate(progress)
        if name == "tumour":
            return [(region.grid, None) for region in regions]
        grids = [centred(region.grid, self.config.refine.size) for region in regions]
        if by_truth:
            return [(grid, None) for grid in grids]
        masks = [chain.rules.renal_on(progress, grid)[None] for grid in grids]
        return [(grid, Volume(m, grid)) for grid, m in zip(grids, masks, strict=True)]

    def _planes(
        self, name: str, places: Sequence[Place]
    ) -> tuple[Callable[[TrainStep], Patches], int]:
        """Batches of planes of places, and the steps of an epoch."""
        size = getattr(self.config, name).stage.batch_size
        if name == "refine":
            index, steps = _balanced(places, size)
        else:
            index = plane_index(places, [_shows_kidney], self.cohort.config.label_share)
            steps = steps_per_epoch(index, size)

        def batch(step: TrainStep) -> Patches:
            drawn = draw(index, step, size)

            def mask(number: int, grid: Grid) -> Tensor:
                place = places[drawn[number][0]]
                if place.mask is not None:
                    return resample(place.mask, grid, mode="nearest").data
                subject = self.cohort.training[place.case]
                return truth(subject, self.targets.renal, None, Region(grid=grid)).data[1:]

            return sampled_patches(
                self.cohort.training,
                planes_of(places, drawn),
                lambda subject: self.view(subject, name),
                mask if name == "refine" else None,
            )

        return batch, steps

    def _blocks(self, places: Sequence[Place]) -> tuple[Callable[[TrainStep], Patches], int]:
        """Batches of blocks: a third each around background, kidney and tumour."""
        config, subjects = self.config.tumour, self.cohort.training

        def batch(step: TrainStep) -> Patches:
            centres = draw_centres(subjects, places, self._groups, step, config.stage.batch_size)
            patches = []
            for centre in centres:
                place = places[centre.place]
                pairs = zip(centre.voxel, config.patch, strict=True)
                start = [voxel - side // 2 for voxel, side in pairs]
                patches.append((place.case, place.grid.crop(start, config.patch)))
            return sampled_patches(subjects, patches, lambda each: self.view(each, "tumour"))

        return batch, max(1, len(subjects) // config.stage.batch_size)

    # How it is scored

    def _validation(self, name: str) -> Callable[[], dict[str, float]]:
        """Dice per patient on the scans' own voxels, with regions as at inference.

        Networks for kidneys are scored by kidneys with tumours, the 3D network by tumours, the last
        one as the result. The correction is scored as if every case were abnormal.
        """
        target = self.targets.both if name == "refine" else self._target(name)
        cohort = self.cohort
        if name != "refine":
            cohort = replace(cohort, config=replace(cohort.config, selection=()))
        cohort = replace(cohort, target=target)

        @cache
        def before(case: int) -> Progress:
            subject = cohort.validation[case]
            chain = self.chain(subject)
            if name == "coarse":
                return Progress(image=subject.image)
            progress = advance(subject.image, [chain.coarse()])
            if name == "correct":
                return progress
            progress = advance(progress, chain.corrections())
            if name == "fine":
                return progress
            progress = advance(progress, [chain.fine()])
            return progress if name == "tumour" else advance(progress, [chain.tumour()])

        def predict(case: int) -> Sequence[Region]:
            chain = self.chain(cohort.validation[case])
            steps = {
                "coarse": chain.coarse,
                "correct": lambda: chain.correct(always=True),
                "fine": chain.fine,
                "tumour": chain.tumour,
                "refine": chain.refine,
            }
            return advance(before(case), [steps[name]()]).steps[name]

        return validation(cohort, predict, target)


def truth(subject: Subject, target: Target, progress: Progress | None, region: Region) -> Volume:
    """What a perfect network would find in a region: (2, *region.grid.shape), 0 or 1.

    Args:
        subject: with labels.
        target: one exclusive channel.
        progress: not used.
        region: volumetric.
    """
    assert subject.labels is not None
    labels = resample(subject.labels, region.grid, mode="nearest").data
    found = encode(labels, target)[0] == 1
    return Volume(torch.stack([~found, found]).float(), region.grid)


def binary_loss(
    levels: Sequence[Tensor],
    labels: Tensor,
    target: Target,
    kind: str,
    over: Any,
    valid: Tensor | None = None,
) -> Tensor:
    """The loss of a network with a single class, over the levels of deep supervision.

    Args:
        levels: logits (n, 2, *size), finest first.
        labels: (n, *size) of the finest level.
        target: one exclusive channel.
        kind: "dice" is 1 - SoftDice of the class, "cross-entropy", or "both": their sum.
        over: the sums in Dice: "batch" or "sample".
        valid: (n, *size) bool; other voxels are ignored.

    Source: Zhang et al., KiTS19, eq. 1 and 6.
    """
    losses = []
    for weight, logits in zip(level_weights(len(levels)), levels, strict=True):
        size = logits.shape[2:]
        true = encode(coarsened(labels, size), target)
        counted = None if valid is None else coarsened(valid, size)
        found = probabilities(logits, target)
        terms = []
        if kind != "cross-entropy":
            dice = soft_dice(found[:, 1:], (true == 1)[:, None], valid=counted, over=over)
            terms.append(1.0 - dice.mean())
        if kind != "dice":
            terms.append(cross_entropy(found, true, valid=counted))
        losses.append(weight * torch.stack(terms).sum())
    return torch.stack(losses).sum()


def _shows_kidney(counts: np.ndarray) -> np.ndarray:
    return np.asarray(counts[:, 1:].any(1))


def _shows_tumour(counts: np.ndarray) -> np.ndarray:
    shown: np.ndarray = counts[:, 2] > 0
    return shown


def _balanced(places: Sequence[Place], batch_size: int) -> tuple[SliceIndex, int]:
    """Half of a batch with tumour, half without; every plane with tumour once in an epoch.

    Source: Zhang et al., KiTS19, section 2.2.
    """
    index = plane_index(places, [_shows_tumour, lambda counts: ~_shows_tumour(counts)], 0.5)
    tumours = sum(int(_shows_tumour(place.counts).sum()) for place in places)
    return index, max(1, -(-2 * tumours // batch_size))
