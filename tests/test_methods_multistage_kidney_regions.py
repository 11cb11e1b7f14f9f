"""From what stage 1 found to a region per kidney: every rule by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cohorts import TARGET
from kidseg.config import PostprocessConfig
from kidseg.geometry import Grid, Volume, binned_grid
from kidseg.measure import Midline
from kidseg.methods.multistage.kidney_regions import Kidney, kidneys_in, without_small

FULL = Grid.from_spacing((10, 40, 60), (3.0, 2.0, 2.0))
COARSE = binned_grid(FULL, 2)  # 20 x 30 pixels; the midline lies between columns 14 and 15
MIDLINE = Midline.of(FULL)
RIGHT, LEFT = (slice(2, 5), slice(4, 8), slice(3, 7)), (slice(3, 7), slice(4, 9), slice(20, 26))


def mask_of(*boxes: tuple[slice, slice, slice]) -> Tensor:
    mask = torch.zeros(COARSE.shape, dtype=torch.bool)
    for box in boxes:
        mask[box] = True
    return mask


def found(mask: Tensor, box: int = 16) -> list[Kidney]:
    return kidneys_in(mask, COARSE, FULL, reduction=2, box=box, midline=MIDLINE)


def start_of(kidney: Kidney) -> list[int]:
    """First voxel of the region on the full grid."""
    start = FULL.index(kidney.grid.mm((0, 0, 0)))
    assert torch.allclose(start, start.round())
    return [int(n) for n in start.round()]


def test_two_kidneys_are_two_regions() -> None:
    """Columns 3-6 of the coarse grid are 6-13 of the full one: 8, extended by 4 on both sides."""
    right, left = found(mask_of(RIGHT, LEFT))
    assert (right.name, left.name) == ("right", "left")
    assert start_of(right) == [2, 4, 2] and right.grid.shape == (3, 16, 16)
    assert start_of(left) == [3, 5, 38] and left.grid.shape == (4, 16, 16)
    assert right.volume_ml == pytest.approx(3 * 4 * 4 * 3 * 4 * 4 / 1000)
    assert not right.is_grown and right.components == 1


def test_a_larger_kidney_has_a_larger_region_and_is_never_cut() -> None:
    (kidney,) = found(mask_of(LEFT), box=8)
    assert kidney.grid.shape == (4, 10, 12) and start_of(kidney) == [3, 8, 40]
    assert kidney.is_grown


def test_a_region_may_extend_beyond_the_scan() -> None:
    (kidney,) = found(mask_of((slice(0, 1), slice(0, 1), slice(0, 1))))
    assert start_of(kidney) == [0, -7, -7] and kidney.grid.shape == (1, 16, 16)


def test_pieces_on_one_side_are_one_kidney() -> None:
    upper, lower = (slice(1, 3), *RIGHT[1:]), (slice(6, 8), *RIGHT[1:])
    right, left = found(mask_of(upper, lower, LEFT))
    assert right.components == 2 and right.grid.shape[0] == 7 and start_of(right)[0] == 1
    assert left.components == 1


def test_a_horseshoe_is_one_region_on_both_sides() -> None:
    """Also two kidneys that a tumour connects, or a tumour across the midline."""
    bridge = (slice(4, 5), slice(6, 7), slice(7, 20))
    (kidney,) = found(mask_of(RIGHT, LEFT, bridge))
    assert kidney.name == "both sides" and kidney.components == 1
    assert start_of(kidney)[2] == 6 and kidney.grid.shape[2] == 2 * (26 - 3)


def test_a_kidney_beside_one_across_the_midline_keeps_its_region() -> None:
    across = (slice(0, 2), slice(14, 18), slice(12, 18))
    names = [kidney.name for kidney in found(mask_of(RIGHT, across))]
    assert names == ["right", "both sides"]


@pytest.mark.parametrize(
    ("columns", "name"),
    [((7, 17), "right"), ((7, 18), "both sides"), ((13, 23), "left"), ((12, 18), "both sides")],
)
def test_four_fifths_on_a_side_are_that_side(columns: tuple[int, int], name: str) -> None:
    (kidney,) = found(mask_of((slice(0, 1), slice(0, 1), slice(*columns))))
    assert kidney.name == name


def test_single_and_absent_kidneys() -> None:
    assert [kidney.name for kidney in found(mask_of(LEFT))] == ["left"]
    assert found(mask_of()) == []


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.002, 0.02, 0.3]))
def test_every_voxel_lies_in_a_region_of_at_most_three(seed: int, share: float) -> None:
    mask = torch.from_numpy(np.random.default_rng(seed).random(COARSE.shape) < share)
    kidneys = found(mask)
    assert len(kidneys) <= 3
    voxels = COARSE.mm(mask.nonzero())
    inside = torch.zeros(len(voxels), dtype=torch.bool)
    for kidney in kidneys:
        at, shape = kidney.grid.index(voxels), torch.tensor(kidney.grid.shape)
        inside |= ((at > -0.5 - 1e-6) & (at < shape - 0.5 + 1e-6)).all(1)
        assert min(kidney.grid.shape[1:]) >= 16
    assert bool(inside.all())
    total = sum(kidney.volume_ml for kidney in kidneys)
    assert total == pytest.approx(int(mask.sum()) * float(COARSE.voxel_ml))


def sure(labels: Tensor) -> Volume:
    """Probabilities of 0.8 for these labels."""
    each = torch.stack([(labels == k).float() for k in range(3)])
    return Volume(0.1 + 0.7 * each, COARSE)


def test_small_components_become_certain_background() -> None:
    labels = torch.zeros(COARSE.shape, dtype=torch.uint8)
    labels[LEFT], labels[9, 0, 0], labels[5, 19, 29] = 1, 2, 2
    probable = sure(labels)
    for config, count in ((PostprocessConfig(), 1), (PostprocessConfig(min_voxels=2), 2)):
        clean, removed = without_small(probable, TARGET, config, 0.1)
        assert len(removed) == count, "one in the last slice stays, unless voxels are counted"
        assert clean.data[:, 5, 19, 29].tolist() == [1.0, 0.0, 0.0]
        assert (clean.data[2, 9, 0, 0] == 0) == (count == 2)
        assert torch.equal(clean.data[:, 3, 4, 20:26], probable.data[:, 3, 4, 20:26])
    same, removed = without_small(probable, TARGET, PostprocessConfig(), 0.0)
    assert same is probable and removed == ()
