"""Batches of slices, balanced by what they show; slices with tumour are augmented."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kidseg.cohort.batch import Patches
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import SliceIndex, draw
from kidseg.cohort.place import Place, place_of, planes_of, sampled_patches
from kidseg.cohort.subject import Subject
from kidseg.config import SliceAugmentationConfig
from kidseg.geometry import Grid, posed
from kidseg.labels import LabelSchema
from kidseg.meaning import RENAL
from kidseg.pipeline import Planes
from kidseg.stage import TrainStep

__all__ = ["BalancedSlices", "augmented", "groups_of", "slice_index"]

# The stream of random numbers for augmentation, apart from those of `draw`.
_STREAM = 1_000_003


def groups_of(schema: LabelSchema) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The labels of kidney, of tumour, of cyst; all are kidney if none means any of these."""
    kidney, tumour, cyst = (schema.ids_of(meaning) for meaning in RENAL)
    return kidney if kidney + tumour + cyst else schema.ids, tumour, cyst


def slice_index(
    places: Sequence[Place], *, background: bool, hard_negatives: float = 0.0
) -> SliceIndex:
    """The slices of places in groups: background, kidney without tumour, tumour; and cysts.

    Args:
        places: with the labels of `groups_of` counted.
        background: a third of a batch each of background, kidney and tumour; otherwise half of it
            each of kidney and tumour, and none of background.
        hard_negatives: fraction of a batch with cysts and no tumour; the share of other slices with
            kidney is so much smaller.

    Raises:
        ValueError: there are no slices.

    Source: Santini et al., KiTS19, section 3.1.
    """
    member = []
    for place in places:
        kidney, tumour, cyst = (place.counts[:, k] > 0 for k in (1, 2, 3))
        any_label = kidney | tumour | cyst
        member.append(np.stack([~any_label, any_label & ~tumour, tumour, cyst & ~tumour], axis=1))
    share = 1 / 3 if background else 1 / 2
    shares = (share if background else 0.0, share - hard_negatives, share, hard_negatives)
    return SliceIndex.of_groups(member, shares, members_only=not background)


def augmented(grid: Grid, config: SliceAugmentationConfig, random: np.random.Generator) -> Grid:
    """A grid that is rotated, mirrored and zoomed at random about its centre, in its plane."""
    chances, angle, centre = random.random(3), random.uniform(-1, 1), random.random()
    rotated, flipped, cropped = chances < (
        config.rotated_share,
        config.flipped_share,
        config.cropped_share,
    )
    side = config.min_centre + (1 - config.min_centre) * centre if cropped else 1.0
    return posed(
        grid,
        angle_rad=math.radians(config.rotation_deg) * angle if rotated else 0.0,
        scale=(-side if flipped else side, side),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class BalancedSlices:
    """Creates batches; a pure function of the training step.

    Attributes:
        cohort: the cases.
        places: in them, of any size in the plane, with the labels of `groups_of` counted.
        index: of their slices.
        view: (case) -> view of the network.
        augmentation: augmentation of slices with tumour.
        batch_size: over all processes.
        multiple: sides of the network's input must be multiples of it.
    """

    cohort: Cohort
    places: Sequence[Place]
    index: SliceIndex
    view: Callable[[Subject], Planes]
    augmentation: SliceAugmentationConfig
    batch_size: int
    multiple: int

    @classmethod
    def places_of(cls, cohort: Cohort, grids: Sequence[Sequence[Grid]]) -> list[Place]:
        """The places of the training cases, with their labels counted.

        Args:
            cohort: the cases.
            grids: of each training case, volumetric.
        """
        groups = groups_of(cohort.schema)
        return [
            place_of(subject, case, grid, groups)
            for case, (subject, own) in enumerate(zip(cohort.training, grids, strict=True))
            for grid in own
        ]

    def __call__(self, step: TrainStep) -> Patches:
        """The batch of a step. Slices of smaller places are extended to the size of the largest."""
        drawn = draw(self.index, step, self.batch_size)
        everyone = draw(self.index, replace(step, rank=0, world=1), self.batch_size)
        shapes = np.array([self.places[n].grid.shape[1:] for n, _ in everyone])
        rows, columns = (-(-int(side) // self.multiple) * self.multiple for side in shapes.max(0))
        patches = []
        positions, planes = step.positions(self.batch_size), planes_of(self.places, drawn)
        for position, (number, k), (case, grid) in zip(positions, drawn, planes, strict=True):
            before = (rows - grid.shape[1]) // 2, (columns - grid.shape[2]) // 2
            extended = grid.crop((0, -before[0], -before[1]), (1, rows, columns))
            if self.places[number].counts[k, 2] > 0:
                seed = [step.seed, step.epoch, step.step, position, _STREAM]
                random = np.random.default_rng(seed)
                extended = augmented(extended, self.augmentation, random)
            patches.append((case, extended))
        batch = sampled_patches(self.cohort.training, patches, self.view)
        names = (f"{self.cohort.training[self.places[n].case].id} slice {k + 1}" for n, k in drawn)
        return replace(batch, names=tuple(names))
