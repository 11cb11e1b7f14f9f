"""Batches of the multi-stage method: their groups, and the augmentation of tumour slices."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cohorts import PLAN, make_cohort
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import draw
from kidseg.cohort.place import Place
from kidseg.cohort.subject import Subject
from kidseg.config import SliceAugmentationConfig
from kidseg.device import choose_device
from kidseg.geometry import Grid, in_plane_pose, resample
from kidseg.labels import KIDNEY_TUMOUR, KIDNEY_TUMOUR_CYST, LabelSchema
from kidseg.methods.multistage.balanced import BalancedSlices, augmented, groups_of, slice_index
from kidseg.pipeline import Planes
from kidseg.stage import TrainStep

CPU = choose_device("cpu", "fp32")
GRID = Grid.from_spacing((1, 20, 30), (3.0, 1.5, 2.0))
NEVER = SliceAugmentationConfig(rotated_share=0.0, flipped_share=0.0)
NOW = TrainStep(seed=0, epoch=0, step=0)


def place(*slices: tuple[int, int, int]) -> Place:
    """A place with voxels of kidney, tumour and cyst in each slice."""
    counts = [(100 - sum(each), *each) for each in slices]
    return Place(case=0, grid=GRID, counts=np.array(counts))


# Slices 0-3 show nothing, 4 and 5 kidney, 6 a tumour alone, 7 kidney and tumour, 8 a cyst in a
# kidney, 9 a cyst and a tumour.
MIXED = place(
    *[(0, 0, 0)] * 4, *[(9, 0, 0)] * 2, (0, 5, 0), (9, 5, 0), (9, 0, 3), (9, 5, 3)
)  # fmt: skip


def test_groups_by_hand() -> None:
    index = slice_index([MIXED], background=True)
    assert [group.tolist() for group in index.groups] == [[0, 1, 2, 3], [4, 5, 8], [6, 7, 9], [8]]
    assert index.shares == pytest.approx((1 / 3, 1 / 3, 1 / 3, 0.0))
    of_regions = slice_index([MIXED], background=False)
    assert of_regions.every[:, 1].tolist() == [4, 5, 6, 7, 8, 9], "none of background"
    assert of_regions.shares == (0.0, 0.5, 0.5, 0.0)
    hard = slice_index([MIXED], background=False, hard_negatives=0.25)
    assert hard.shares == (0.0, 0.25, 0.5, 0.25)


@pytest.mark.parametrize(
    ("background", "batch", "counts"), [(True, 12, (4, 4, 4)), (False, 12, (0, 6, 6))]
)
def test_batches_are_balanced(background: bool, batch: int, counts: tuple[int, ...]) -> None:
    index = slice_index([MIXED], background=background)
    for step in range(10):
        drawn = [k for _, k in draw(index, replace(NOW, step=step), batch)]
        shown = [sum(k in group for k in drawn) for group in ((0, 1, 2, 3), (4, 5, 8), (6, 7, 9))]
        assert tuple(shown) == counts


def test_hard_negatives_are_cysts_without_tumour() -> None:
    index = slice_index([MIXED], background=False, hard_negatives=0.25)
    for step in range(10):
        drawn = [k for _, k in draw(index, replace(NOW, step=step), 8)]
        assert drawn.count(8) >= 2 and sum(k in (6, 7, 9) for k in drawn) == 4


def test_labels_by_meaning() -> None:
    assert groups_of(KIDNEY_TUMOUR) == ((1,), (2,), ())
    assert groups_of(KIDNEY_TUMOUR_CYST) == ((1,), (2,), (3,))
    sides = LabelSchema.from_names({1: "left kidney", 2: "liver", 3: "tumour", 4: "right kidney"})
    assert groups_of(sides) == ((1, 4), (3,), ()), "a liver is background"
    unknown = LabelSchema.from_names({1: "liver", 2: "spleen"})
    assert groups_of(unknown) == ((1, 2), (), ()), "without a name that is understood, all count"


@pytest.mark.parametrize("seed", range(5))
def test_a_turn_is_a_rotation_a_flip_and_a_centre(seed: int) -> None:
    """About the centre of the grid, within the limits; each as often as told."""
    config = SliceAugmentationConfig(rotation_deg=30.0, cropped_share=1.0, min_centre=0.7)
    mirrored = augmented(GRID, replace(config, flipped_share=1.0), np.random.default_rng(seed))
    plain = augmented(GRID, replace(config, flipped_share=0.0), np.random.default_rng(seed))
    for grid in (mirrored, plain):
        torch.testing.assert_close(grid.centre_mm, GRID.centre_mm)
    pose = in_plane_pose(plain, GRID)
    assert 0 < abs(math.degrees(float(pose.angle_rad))) <= 30
    assert float(pose.scale[0]) == pytest.approx(float(pose.scale[1]))
    assert 0.7 <= float(pose.scale[0]) < 1.0
    # A mirrored grid reads its columns from the other end.
    last = GRID.shape[2] - 1
    torch.testing.assert_close(mirrored.mm((0, 3, 0)), plain.mm((0, 3, last)))
    assert augmented(GRID, NEVER, np.random.default_rng(seed)).same_as(GRID)


def test_turns_are_as_frequent_as_told() -> None:
    random = np.random.default_rng(0)
    config = SliceAugmentationConfig(rotated_share=0.0, flipped_share=0.5, cropped_share=0.66)
    grids = [augmented(GRID, config, random) for _ in range(400)]
    steps = torch.stack([grid.mm_from_index[0, 2] for grid in grids])
    flipped = float((steps > 0).double().mean())  # columns lead to the left, x to the right
    cropped = float((steps.abs() < 2.0 - 1e-9).double().mean())
    assert abs(flipped - 0.5) < 0.08 and abs(cropped - 0.66) < 0.08


def view_of(subject: Subject) -> Planes:
    return Planes(scalings=[subject.scalings], padding=PLAN.padding, device=CPU, reach=2)


def batches(
    cohort: Cohort, augmentation: SliceAugmentationConfig, sides: tuple[int, int] = (32, 32)
) -> BalancedSlices:
    """Places of 32 pixels; the second case's of `sides`."""
    grids = [
        subject.image.grid.crop((0, 32 - rows // 2, 32 - columns // 2), (8, rows, columns))
        for subject, (rows, columns) in zip(cohort.training, ((32, 32), sides), strict=True)
    ]
    places = BalancedSlices.places_of(cohort, [[grid] for grid in grids])
    return BalancedSlices(
        cohort=cohort,
        places=places,
        index=slice_index(places, background=True),
        view=view_of,
        augmentation=augmentation,
        batch_size=6,
        multiple=8,
    )


def shown(cohort: Cohort, name: str) -> tuple[Tensor, Tensor]:
    """The network's input and the labels of a slice, counted from 1, as it is."""
    case, _, number = name.partition(" slice ")
    (subject,) = (each for each in cohort.training if each.id == case)
    k = int(number) - 1
    grid = subject.image.grid.crop((0, 16, 16), (8, 32, 32)).slices(k, k + 1)
    assert subject.labels is not None
    labels = resample(subject.labels, grid, mode="nearest").data[0, 0]
    return view_of(subject).image(subject.image, grid)[0], labels


def test_only_slices_with_tumour_are_turned() -> None:
    cohort = make_cohort(2, 1)
    plain, all_turned = batches(cohort, NEVER)(NOW), batches(cohort, SliceAugmentationConfig())(NOW)
    assert plain.names == all_turned.names
    kinds = set()
    for row, name in enumerate(plain.names):
        image, labels = shown(cohort, name)
        torch.testing.assert_close(plain.image[row], image)
        assert torch.equal(plain.labels[row], labels)
        has_tumour = bool((labels == 2).any())
        same = torch.equal(all_turned.image[row], plain.image[row])
        assert same != has_tumour
        kinds.add(has_tumour)
    assert kinds == {True, False}
    assert plain.image.shape == (6, 5, 32, 32), "five slices"


def test_batches_are_of_the_step_and_split_over_processes() -> None:
    """Also with places of several sizes, which are extended to the largest of the whole batch."""
    create = batches(make_cohort(2, 1), SliceAugmentationConfig(), (36, 44))
    whole = create(NOW)
    assert whole.image.shape[2:] == (40, 48), "multiples of 8"
    for rank in range(2):
        part = create(replace(NOW, rank=rank, world=2))
        assert part.names == whole.names[rank::2]
        assert torch.equal(part.image, whole.image[rank::2])
        assert torch.equal(part.labels, whole.labels[rank::2])
    assert not torch.equal(whole.image, create(replace(NOW, epoch=1)).image)
