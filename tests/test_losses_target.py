"""Losses by target and in three dimensions: values by hand, and volumes on their own grids."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kidseg.geometry import Grid, Volume, boxed, posed, resample
from kidseg.labels import KIDNEY_TUMOUR, Target
from kidseg.losses import (
    MIN_PROBABILITY,
    coarsened,
    encode,
    probabilities,
    restored,
    restored_segmentation_loss,
    segmentation_loss,
    soft_dice,
)
from logits import random, some_labels

REGIONS = Target(channels=((1, 2), (2,)), exclusive=False, writes=(1, 2))
"""nnU-Net's: kidney and tumour together, tumour alone."""
MERGED = Target(channels=((1, 2),))


def certain(labels: Tensor, target: Target, sharpness: float = 60.0) -> Tensor:
    """Logits that are sure of what the target says of these labels."""
    true = encode(labels, target)
    if target.exclusive:
        return sharpness * F.one_hot(true, target.outputs).movedim(-1, 1).float()
    return sharpness * (2.0 * true - 1.0)


def grids(shape: Sequence[int], count: int = 2) -> list[Grid]:
    return [Grid.from_spacing(shape, (3.0, 1.5, 1.5), (10.0 * k, -20, 30)) for k in range(count)]


# ---- what a target makes of labels -------------------------------------------------------------


def test_encode_by_hand() -> None:
    labels = torch.tensor([[[0, 1, 2, 3]]], dtype=torch.uint8)
    kidney_and_cyst = Target(channels=((1, 3), (2,)))
    assert encode(labels, kidney_and_cyst).tolist() == [[[0, 1, 2, 1]]]
    tumour_alone = Target(channels=((2,),))
    assert encode(labels, tumour_alone).tolist() == [[[0, 0, 1, 0]]]
    assert encode(labels, REGIONS).tolist() == [
        [[[False, True, True, False]], [[False, False, True, False]]]
    ]


def test_each_label_a_channel_is_no_change() -> None:
    labels = some_labels(2, 4, 5, 6)
    assert torch.equal(encode(labels, Target.of_labels(KIDNEY_TUMOUR)), labels)
    logits = random(2, 3, 4, 5, 6)
    plain = segmentation_loss([logits], labels)
    same = segmentation_loss([logits], labels, target=Target.of_labels(KIDNEY_TUMOUR))
    assert torch.equal(plain, same)


def test_probabilities_of_classes_sum_to_one_and_of_regions_stand_alone() -> None:
    logits = random(2, 2, 3, 4)
    assert torch.allclose(probabilities(logits).sum(1), torch.ones(2, 3, 4))
    assert torch.equal(probabilities(logits, MERGED), probabilities(logits))
    assert torch.equal(probabilities(logits, REGIONS), logits.sigmoid())
    assert probabilities(logits.bfloat16(), REGIONS).dtype == torch.float32


@pytest.mark.parametrize("target", [MERGED, REGIONS])
def test_another_number_of_channels_is_refused(target: Target) -> None:
    logits, labels, scan = random(1, 3, 2, 4), some_labels(1, 2, 4), grids((1, 2, 4), 1)[0]
    with pytest.raises(ValueError, match="3 channels, but the target 2"):
        segmentation_loss([logits], labels, target=target)
    with pytest.raises(ValueError, match="3 channels"):
        restored(logits, scan, scan, target=target)


# ---- regions -----------------------------------------------------------------------------------


def test_loss_of_regions_by_hand() -> None:
    """Two pixels, two regions, even odds.

    Binary cross entropy log 2 everywhere; kidney and tumour in both pixels: Dice
    2 (1/2 + 1/2) / (1/4 + 1/4 + 2) = 4/5; tumour in one: 2 (1/2) / (1/2 + 1) = 2/3.
    """
    loss = segmentation_loss([torch.zeros(1, 2, 1, 2)], torch.tensor([[[1, 2]]]), target=REGIONS)
    assert loss.item() == pytest.approx(math.log(2) + 1 - (4 / 5 + 2 / 3) / 2, abs=1e-5)


@pytest.mark.parametrize("over", ["batch", "sample"])
@pytest.mark.parametrize("masked", [False, True])
def test_regions_have_the_binary_cross_entropy_of_torch(over: str, masked: bool) -> None:
    logits, labels = random(2, 2, 4, 6, 6), some_labels(2, 4, 6, 6)
    valid = random(2, 4, 6, 6, seed=1) > 0 if masked else None
    true = torch.stack([labels > 0, labels == 2], dim=1)
    kept = torch.ones_like(true) if valid is None else valid[:, None].expand_as(true)
    expected = F.binary_cross_entropy_with_logits(logits[kept], true[kept].float())
    dice = soft_dice(logits.sigmoid(), true, valid=valid, over=over)  # type: ignore[arg-type]
    loss = segmentation_loss([logits], labels, target=REGIONS, valid=valid, over=over)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(expected.item() + 1 - dice.mean().item(), rel=1e-5)


@pytest.mark.parametrize("target", [REGIONS, MERGED])
def test_the_truth_costs_nothing_at_any_level(target: Target) -> None:
    labels = some_labels(2, 8, 8, 8)
    sizes = [(8, 8, 8), (8, 4, 4), (4, 2, 4)]  # strides differ between the axes
    levels = [certain(coarsened(labels, size), target) for size in sizes]
    assert segmentation_loss(levels, labels, target=target).item() == pytest.approx(0, abs=1e-6)
    wrong = [-level for level in levels]
    assert segmentation_loss(wrong, labels, target=target).item() > 50


def test_an_absent_region_and_an_empty_batch_cost_nothing() -> None:
    labels = torch.zeros(2, 4, 4, dtype=torch.uint8)
    loss = segmentation_loss([certain(labels, REGIONS)], labels, target=REGIONS)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    logits = random(2, 2, 4, 4).requires_grad_()
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    loss = segmentation_loss([logits], labels, target=REGIONS, valid=nothing)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_extreme_logits_of_regions_stay_finite() -> None:
    labels, scan = some_labels(2, 8, 8), grids((2, 8, 8), 1)[0]
    for sharpness in (1e2, 1e4, 6e4):
        for narrow in (torch.float32, torch.bfloat16):
            wrong = -certain(labels, REGIONS, sharpness).to(narrow)
            for warp in (False, True):
                logits = wrong.clone().requires_grad_()
                if warp:
                    loss = restored_segmentation_loss(
                        [logits], scan, Volume(labels[None], scan), target=REGIONS
                    )
                else:
                    loss = segmentation_loss([logits], labels, target=REGIONS)
                loss.backward()
                assert loss.isfinite()
                assert logits.grad is not None and logits.grad.isfinite().all()


# ---- after the inverse warp --------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, MERGED, REGIONS])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_an_identity_warp_is_no_warp(target: Target | None, dimensions: int) -> None:
    channels = 3 if target is None else target.outputs
    sizes = [(4, 16, 16), (4, 8, 8), (2, 4, 8)]
    labels = some_labels(2, 4, 16, 16)
    levels = [random(2, channels, *size, seed=n) for n, size in enumerate(sizes)]
    valid = random(2, 4, 16, 16, seed=9) > -1
    if dimensions == 3:
        on = grids(sizes[0])
        reference = [Volume(one[None], grid) for one, grid in zip(labels, on, strict=True)]
        warped = restored_segmentation_loss(levels, on, reference, target=target, valid=valid)
    else:
        labels, valid, levels = (
            labels[0],
            valid[0],
            [level[0].movedim(1, 0) for level in levels[:2]],
        )
        on = grids(sizes[0], 1)[0]
        warped = restored_segmentation_loss(
            levels, on, Volume(labels[None], on), target=target, valid=valid
        )
    plain = segmentation_loss(levels, labels, target=target, valid=valid)
    assert warped.item() == pytest.approx(plain.item(), rel=1e-5)


def test_volumes_are_restored_each_on_its_own_grid() -> None:
    originals = grids((6, 20, 20))
    seen = [
        posed(
            boxed(
                grid, torch.tensor([0.5, 3.5, 2.5]), torch.tensor([4.5, 15.5, 14.5]), (4, 12, 12)
            ),
            angle_rad=torch.tensor([0.1, -0.2, 0.3]) * (k + 1),
            scale=torch.ones(3),
            shift_mm=torch.zeros(3),
        )
        for k, grid in enumerate(originals)
    ]
    logits = random(2, 3, 4, 12, 12)
    found = restored(logits, seen, originals)
    assert isinstance(found, list) and len(found) == 2
    for k in range(2):
        alone = resample(
            Volume(logits[k].softmax(0), seen[k]), originals[k], fill=(1.0, 0.0, 0.0)
        ).data
        assert torch.equal(found[k].data, alone)
        assert torch.allclose(found[k].data.sum(0), torch.ones(6, 20, 20), atol=1e-5)
        assert torch.equal(found[k].data[:, 0, 0, 0], torch.tensor([1.0, 0, 0]))


def test_outside_the_grid_no_region_is_found() -> None:
    original = grids((2, 12, 12), 1)[0]
    seen = original.crop((0, 3, 3), (2, 6, 6))
    found = restored(torch.full((2, 2, 6, 6), 60.0), seen, original, target=REGIONS).data
    assert torch.equal(found[:, :, 3:9, 3:9], torch.ones(2, 2, 6, 6))
    assert found.sum() == 2 * 2 * 36


@pytest.mark.parametrize("target", [REGIONS, Target.of_labels(KIDNEY_TUMOUR)])
def test_tumour_that_a_box_cuts_off_is_paid_for(target: Target) -> None:
    """The network is right in all it sees; a slice of tumour lies outside its box."""
    original = grids((4, 8, 8), 1)[0]
    labels = torch.zeros(4, 8, 8, dtype=torch.long)
    labels[1:4, 2:6, 2:6] = 2
    box = original.crop((0, 0, 0), (3, 8, 8))
    logits = certain(labels[None, :3], target)
    loss = restored_segmentation_loss(
        [logits], [box], [Volume(labels[None], original)], target=target
    )
    share, paid = 16 / labels.numel(), -math.log(MIN_PROBABILITY)
    dice = 2 * 32 / (32 + 48)
    # Regions: both channels lose it. Classes: kidney is absent and perfect, tumour is cut.
    expected = share * paid + (1 - dice) / (1 if target is REGIONS else 2)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_the_loss_reaches_the_pose_of_each_volume() -> None:
    originals = grids((4, 16, 16))
    labels = torch.zeros(4, 16, 16, dtype=torch.long)
    labels[1:3, 4:12, 5:10] = 1
    shift = torch.full((2, 3), 1.0, dtype=torch.float64, requires_grad=True)
    seen = [
        posed(grid, angle_rad=torch.zeros(3), scale=torch.ones(3), shift_mm=one)
        for grid, one in zip(originals, shift, strict=True)
    ]
    logits = certain(labels.expand(2, -1, -1, -1), MERGED, sharpness=4.0)
    reference = [Volume(labels[None], grid) for grid in originals]
    restored_segmentation_loss([logits], seen, reference, target=MERGED).backward()
    assert shift.grad is not None
    assert (shift.grad > 0).all()  # descent takes each back


def test_anisotropic_levels_are_compared_at_their_own_proportions() -> None:
    """Odd sides; a level with all slices, half the rows, a quarter of the columns."""
    original = grids((5, 22, 37), 1)
    labels = [Volume(some_labels(1, 5, 22, 37), original[0])]
    seen = [original[0].resized((4, 16, 32))]
    finest, coarse = random(1, 3, 4, 16, 32), random(1, 3, 4, 8, 8, seed=1)
    both = restored_segmentation_loss([finest, coarse], seen, labels)
    first = restored_segmentation_loss([finest], seen, labels)
    small = Volume(coarsened(labels[0].data, (5, 11, 9)), original[0].resized((5, 11, 9)))
    second = restored_segmentation_loss([coarse], seen, [small])
    assert both.item() == pytest.approx((2 * first.item() + second.item()) / 3, rel=1e-5)


def test_volumes_that_do_not_pair_are_refused() -> None:
    on, logits = grids((4, 8, 8)), random(2, 3, 4, 8, 8)
    labels = [Volume(some_labels(1, 4, 8, 8), grid) for grid in on]
    other = Volume(some_labels(1, 4, 8, 6), grids((4, 8, 6), 1)[0])
    with pytest.raises(ValueError, match="the same size"):
        restored_segmentation_loss([logits], on, [labels[0], other])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        restored_segmentation_loss([logits], on[:1], labels)
    with pytest.raises(ValueError, match="one grid on both sides"):
        restored_segmentation_loss([logits], on[0], labels)
