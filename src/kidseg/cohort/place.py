"""Places in training cases, from which planes and blocks are drawn: organs, boxes, whole scans.

A place is a volumetric grid in any orientation; it is sampled from the scan when it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kidseg.cohort.batch import Patches
from kidseg.cohort.items import Drawn, SliceIndex
from kidseg.cohort.subject import Subject
from kidseg.geometry import Grid, Volume, resample
from kidseg.pipeline import View
from kidseg.stage import TrainStep

__all__ = [
    "Centre",
    "Place",
    "draw_centres",
    "place_of",
    "plane_index",
    "planes_of",
    "sampled_patches",
]

Groups = Sequence[Sequence[int]]
"""Groups of labels; all other labels are background."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """A place in a training case.

    Attributes:
        case: index of the training case.
        grid: volumetric.
        counts: (planes, 1 + groups) voxels of background and of each group of labels in each plane.
        mask: (masks, *grid.shape) additional channels on the grid; None: there are none.
    """

    case: int
    grid: Grid
    counts: np.ndarray
    mask: Volume | None = None


@dataclass(frozen=True, kw_only=True)
class Centre:
    """The voxel on which a block is centred.

    Attributes:
        place: index of the place.
        voxel: (slice, row, column) in its grid.
        group: 0 for background, or 1 + the group of labels that was to be drawn.
    """

    place: int
    voxel: tuple[int, int, int]
    group: int


def place_of(
    subject: Subject, case: int, grid: Grid, groups: Groups, mask: Volume | None = None
) -> Place:
    """The place on a grid, with its labels counted.

    Args:
        subject: the case, with labels.
        case: its index.
        grid: volumetric, in any orientation; it may extend beyond the scan.
        groups: of labels to count.
        mask: see `Place`.
    """
    counts = np.stack([_counts(plane, groups) for plane in _labels(subject, grid)])
    return Place(case=case, grid=grid, counts=counts, mask=mask)


def plane_index(
    places: Sequence[Place], choices: Sequence[Callable[[np.ndarray], np.ndarray]], share: float
) -> SliceIndex:
    """Index the planes of places, to draw them with `kidseg.cohort.items.draw`.

    Args:
        places: at least one; the first number of a pair that is drawn is the place.
        choices: (counts of a place) -> (planes,) bool; at least `share` of a batch is chosen by
            each.
        share: see `SliceIndex`.
    """
    present = [
        np.stack([choice(place.counts) for choice in choices], axis=1)
        if choices
        else np.zeros((len(place.counts), 0), dtype=bool)
        for place in places
    ]
    return SliceIndex.of_cases(present, share)


def draw_centres(
    subjects: Sequence[Subject],
    places: Sequence[Place],
    groups: Groups,
    step: TrainStep,
    batch_size: int,
) -> list[Centre]:
    """Draw the centres of this process's blocks for a training step; a function of the step.

    Background and the groups take turns, so that each is the centre of the same share of a batch.
    The place is drawn among those that contain the group, with replacement, and the voxel among
    those of the group in the place, all with equal probability. A group that no place contains is
    replaced by any voxel.

    Args:
        subjects: the training cases.
        places: at least one, with the counts of these groups.
        groups: of labels, apart from the background.
        step: seed, epoch and step determine the batch; `rank` selects this process's share.
        batch_size: over all processes.

    Raises:
        UsageError: "bad-batch-size": see `TrainStep.positions`.

    Source: Kamnitsas et al., Efficient multi-scale 3D CNN, MedIA 2017, dense training; Zhang et
    al., KiTS19, section 2.1: a third each.
    """
    kinds = 1 + len(groups)
    totals = np.stack([place.counts.sum(0) for place in places])
    centres = []
    for position in step.positions(batch_size):
        random = np.random.default_rng([step.seed, step.epoch, step.step, position])
        group = (step.step * batch_size + position) % kinds
        with_group = np.flatnonzero(totals[:, group])
        number = int(random.choice(with_group if len(with_group) else len(places)))
        place = places[number]
        if len(with_group):
            voxel = _voxel(subjects[place.case], place, groups, group, random)
        else:
            sides = tuple(int(random.integers(n)) for n in place.grid.shape)
            voxel = (sides[0], sides[1], sides[2])
        centres.append(Centre(place=number, voxel=voxel, group=group))
    return centres


def sampled_patches(
    subjects: Sequence[Subject],
    patches: Sequence[tuple[int, Grid]],
    view: Callable[[Subject], View],
    mask: Callable[[int, Grid], Tensor] | None = None,
) -> Patches:
    """Sample image and labels of a batch from the scans, with one interpolation.

    Args:
        subjects: the training cases.
        patches: (case, volumetric grid) of each; all of one size. A grid with a single plane gives
            a slice for a 2D network if the view is of slices.
        view: (case) -> view of the network.
        mask: (number in the batch, grid) -> (masks, *grid.shape), further channels after those of
            the image.
    """
    images, labels, valid = [], [], []
    has_ignore = any(subject.ignore is not None for subject in subjects)
    for number, (case, grid) in enumerate(patches):
        subject = subjects[case]
        image = view(subject).image(subject.image, grid)[0]
        planar = image.ndim == 3
        if mask is not None:
            more = mask(number, grid).to(image)
            image = torch.cat([image, more[:, 0] if planar else more])
        images.append(image)
        found = _labels(subject, grid)
        counted = torch.ones_like(found, dtype=torch.bool)
        if subject.ignore is not None:
            counted = ~resample(subject.ignore, grid, mode="nearest").data[0]
        labels.append(found[0] if planar else found)
        valid.append(counted[0] if planar else counted)
    return Patches(
        names=tuple(subjects[case].id for case, _ in patches),
        image=torch.stack(images),
        labels=torch.stack(labels),
        valid=torch.stack(valid) if has_ignore else None,
    )


def planes_of(places: Sequence[Place], drawn: Drawn) -> list[tuple[int, Grid]]:
    """(case, grid) of drawn planes, for `sampled_patches`."""
    return [(places[n].case, places[n].grid.slices(k, k + 1)) for n, k in drawn]


def _labels(subject: Subject, grid: Grid) -> Tensor:
    """(slices, rows, columns) uint8; background outside the scan."""
    assert subject.labels is not None
    return resample(subject.labels, grid, mode="nearest").data[0]


def _counts(labels: Tensor, groups: Groups) -> np.ndarray:
    by_label = np.bincount(labels.numpy().ravel(), minlength=256)
    each = [by_label[list(group)].sum() for group in groups]
    return np.array([by_label.sum() - sum(each), *each])


def _voxel(
    subject: Subject, place: Place, groups: Groups, group: int, random: np.random.Generator
) -> tuple[int, int, int]:
    """A random voxel of a group in a place that contains the group."""
    counts = place.counts[:, group]
    number = int(random.integers(counts.sum()))
    k = int(np.searchsorted(np.cumsum(counts), number, side="right"))
    plane = _labels(subject, place.grid.slices(k, k + 1))[0]
    others = [label for each in groups for label in each]
    chosen = torch.tensor(others if group == 0 else list(groups[group - 1]), dtype=torch.uint8)
    inside = torch.isin(plane, chosen) != (group == 0)
    found = inside.nonzero()
    if not len(found):  # a plane by itself may differ by the rounding of positions
        return k, plane.shape[0] // 2, plane.shape[1] // 2
    row, column = found[min(number - int(counts[:k].sum()), len(found) - 1)].tolist()
    return k, row, column
