"""Losses: hand-computed values, gradients, and the inverse warp."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kidseg.geometry import Grid, Volume, boxed, posed, resample
from kidseg.labels import Target
from kidseg.losses import (
    MIN_PROBABILITY,
    coarsened,
    crop_loss,
    cross_entropy,
    level_weights,
    restored,
    restored_segmentation_loss,
    segmentation_loss,
    soft_dice,
    weighted_cross_entropy,
)
from logits import random, some_labels


def certain(labels: Tensor, classes: int = 3, sharpness: float = 60.0) -> Tensor:
    """Logits (n, classes, *size) that are sure of these labels."""
    return sharpness * F.one_hot(labels.long(), classes).movedim(-1, 1).float()


def scan_grid(slices: int, size: int, pixel_mm: float = 1.5) -> Grid:
    return Grid.from_spacing((slices, size, size), (3.0, pixel_mm, pixel_mm), (10, -20, 30))


# ---- soft Dice ---------------------------------------------------------------------------------


def test_soft_dice_by_hand() -> None:
    found = torch.tensor([1.0, 0.5, 0.0, 0.0]).view(1, 1, 2, 2)
    reference = torch.tensor([1, 1, 0, 0]).view(1, 1, 2, 2)
    # 2 (1 + 0.5) / (1 + 0.25 + 1 + 1)
    assert soft_dice(found, reference).item() == pytest.approx(3 / 3.25, abs=1e-5)


def test_soft_dice_of_empty_masks() -> None:
    nothing, something = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    assert soft_dice(nothing, nothing).item() == 1.0
    assert soft_dice(something, nothing).item() == pytest.approx(0.0, abs=1e-5)
    assert soft_dice(nothing, something).item() == pytest.approx(0.0, abs=1e-5)


def test_soft_dice_over_samples_or_the_batch() -> None:
    found = torch.zeros(2, 1, 1, 4)
    reference = torch.zeros(2, 1, 1, 4)
    found[0, 0, 0, :2] = 1
    reference[0, 0, 0, :2] = 1
    reference[1, 0, 0, :2] = 1
    each = soft_dice(found, reference)
    assert each.shape == (2, 1)
    assert each.flatten().tolist() == pytest.approx([1.0, 0.0], abs=1e-5)
    whole = soft_dice(found, reference, over="batch")
    assert whole.tolist() == pytest.approx([2 * 2 / (2 + 4)], abs=1e-5)


def test_soft_dice_ignores_invalid_pixels_in_both() -> None:
    found, reference = torch.rand(2, 3, 4, 6), torch.rand(2, 3, 4, 6) > 0.5
    valid = torch.ones(2, 4, 6, dtype=torch.bool)
    valid[:, :, 4:] = False
    kept = soft_dice(found[..., :4], reference[..., :4])
    assert torch.allclose(soft_dice(found, reference, valid=valid), kept)


def test_soft_dice_counts_a_reference_for_all_once_per_sample() -> None:
    found, reference = torch.rand(3, 2, 4, 4), torch.rand(2, 4, 4)
    assert torch.allclose(
        soft_dice(found, reference), soft_dice(found, reference.expand(3, -1, -1, -1))
    )
    over = soft_dice(found, reference, over="batch")
    assert torch.allclose(over, soft_dice(found, reference.expand(3, -1, -1, -1), over="batch"))


def test_bfloat16_is_summed_in_float32() -> None:
    """In bfloat16 the count of 512^2 ones would stop at 256."""
    ones = torch.ones(1, 1, 512, 512, dtype=torch.bfloat16)
    half = ones.clone()
    half[..., 256:] = 0
    assert soft_dice(ones, half).item() == pytest.approx(2 * 0.5 / 1.5, abs=1e-5)


# ---- crop --------------------------------------------------------------------------------------


def test_crop_loss_by_hand() -> None:
    crop, target = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    target[0, 0, 0, 0] = -4.0  # mean |difference| = 4 / 8
    theta = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(2, 1, 1)
    other = theta.clone()
    other[0, 0, 0], other[0, 1, 1], other[1, 0, 2] = 0.5, 0.5, 0.5
    # root of ((0.25 + 0.25) + 0.25) / 2
    expected = 0.5 + math.sqrt(0.75 / 2)
    assert crop_loss(crop, target, theta, other).item() == pytest.approx(expected, abs=1e-6)


def test_crop_loss_has_a_gradient_at_agreement() -> None:
    theta = torch.ones(2, 2, 3, requires_grad=True)
    loss = crop_loss(torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4), theta, torch.ones(2, 2, 3))
    loss.backward()
    assert loss.item() == 0
    assert theta.grad is not None and (theta.grad == 0).all()


# ---- segmentation ------------------------------------------------------------------------------


def test_level_weights() -> None:
    assert level_weights(1) == [1.0]
    assert level_weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert sum(level_weights(5)) == pytest.approx(1.0)
    assert level_weights(4, "paper") == [1.0, 0.5, 0.25, 0.125]


@pytest.mark.parametrize(("old", "new"), [(16, 8), (16, 4), (16, 16), (13, 6), (437, 27), (5, 1)])
def test_coarsened_is_nearest_exact(old: int, new: int) -> None:
    labels = some_labels(2, old, old, classes=200)
    expected = F.interpolate(labels[None].float(), (new, new), mode="nearest-exact")[0].long()
    assert torch.equal(coarsened(labels, (new, new)), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_cross_entropy_agrees_with_torch(masked: bool) -> None:
    logits, labels = random(2, 3, 8, 8), some_labels(2, 8, 8)
    valid = random(2, 8, 8, seed=1) > 0 if masked else None
    torchs = labels if valid is None else labels.masked_fill(~valid, -100)
    expected = F.cross_entropy(logits, torchs)
    got = cross_entropy(logits.softmax(1), labels, valid=valid)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    dice = soft_dice(
        logits.softmax(1)[:, 1:],
        F.one_hot(labels, 3).movedim(-1, 1)[:, 1:],
        valid=valid,
        over="batch",
    )
    whole = segmentation_loss([logits], labels, valid=valid)
    assert whole.item() == pytest.approx(expected.item() + 1 - dice.mean().item(), rel=1e-5)


def test_weighted_cross_entropy_by_hand() -> None:
    """Probabilities 1/4, 1/2, 1/4; labels 0, 1, 2, 2 of weights 3, 5, 7: (6 + 5 + 28) ln 2 / 4."""
    target = Target(channels=((1,), (2,)))
    logits = torch.tensor([0.25, 0.5, 0.25]).log()[None, :, None].expand(1, 3, 4).contiguous()
    labels = torch.tensor([[0, 1, 2, 2]], dtype=torch.uint8)
    weights = torch.zeros(256)
    weights[:3] = torch.tensor([3.0, 5.0, 7.0])
    loss = weighted_cross_entropy(logits, labels, weights, target=target)
    assert float(loss) == pytest.approx(39 / 4 * math.log(2))
    valid = torch.tensor([[True, True, False, False]])
    loss = weighted_cross_entropy(logits, labels, weights, target=target, valid=valid)
    assert float(loss) == pytest.approx(11 / 2 * math.log(2))
    none = torch.zeros_like(valid)
    assert float(weighted_cross_entropy(logits, labels, weights, target=target, valid=none)) == 0
    with pytest.raises(ValueError, match="3 channels, but the target 2"):
        weighted_cross_entropy(logits, labels, weights, target=Target(channels=((1,),)))


def test_weighted_cross_entropy_of_regions() -> None:
    """Both binary entropies of a pixel count half; label 2 lies in both regions."""
    target = Target(channels=((1, 2), (2,)), exclusive=False)
    logits = torch.tensor([0.25, 0.5]).logit()[None, :, None].expand(1, 2, 3).contiguous()
    labels = torch.tensor([[0, 1, 2]], dtype=torch.uint8)
    weights = torch.ones(256)
    weights[2] = 4.0
    each = [-(math.log(0.75) + math.log(0.5)) / 2, *[-(math.log(0.25) + math.log(0.5)) / 2] * 2]
    loss = weighted_cross_entropy(logits, labels, weights, target=target)
    assert float(loss) == pytest.approx((each[0] + each[1] + 4 * each[2]) / 3, rel=1e-5)


def test_segmentation_loss_by_hand() -> None:
    """Two pixels, two classes, even odds: cross entropy log 2; Dice 2 (1/2) / (1/2 + 1) = 2/3."""
    loss = segmentation_loss([torch.zeros(1, 2, 1, 2)], torch.tensor([[[0, 1]]]))
    assert loss.item() == pytest.approx(math.log(2) + 1 / 3, abs=1e-5)


def test_levels_are_weighted_against_coarser_labels() -> None:
    labels = some_labels(2, 16, 16)
    levels = [random(2, 3, 16 >> n, 16 >> n, seed=n) for n in range(3)]
    alone = [
        segmentation_loss([level], coarsened(labels, level.shape[2:])).item() for level in levels
    ]
    expected = (4 * alone[0] + 2 * alone[1] + alone[2]) / 7
    assert segmentation_loss(levels, labels).item() == pytest.approx(expected, rel=1e-5)


def test_a_volume_has_the_same_loss_as_its_flattened_slices() -> None:
    logits, labels = random(1, 3, 4, 6, 8), some_labels(1, 4, 6, 8)
    flat = segmentation_loss([logits.flatten(2, 3)], labels.flatten(1, 2))
    assert segmentation_loss([logits], labels).item() == pytest.approx(flat.item(), rel=1e-5)


def test_invalid_pixels_do_not_count_at_any_level() -> None:
    labels = some_labels(1, 8, 8)
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    valid[..., 4:] = False
    levels = [random(1, 3, 8 >> n, 8 >> n, seed=n) for n in range(2)]
    changed = [level.clone() for level in levels]
    changed[0][..., 4:] = 50
    changed[1][..., 2:] = -50
    one, other = (segmentation_loss(each, labels, valid=valid) for each in (levels, changed))
    assert one.item() == pytest.approx(other.item(), rel=1e-6)


def test_no_valid_pixel_costs_nothing() -> None:
    logits, labels = random(1, 3, 8, 8).requires_grad_(), some_labels(1, 8, 8)
    loss = segmentation_loss([logits], labels, valid=torch.zeros(1, 8, 8, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and (logits.grad == 0).all()


def test_absent_classes_cost_nothing_once_nothing_is_found() -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    assert segmentation_loss([certain(labels)], labels).item() == pytest.approx(0, abs=1e-6)
    assert segmentation_loss([certain(labels + 1)], labels).item() > 60


def test_extreme_logits_stay_finite() -> None:
    labels = some_labels(2, 8, 8)
    wrong = (labels + 1) % 3
    for sharpness in (1e2, 1e4, 6e4):
        for narrow in (torch.float32, torch.bfloat16):
            logits = certain(wrong, sharpness=sharpness).to(narrow).requires_grad_()
            segmentation_loss([logits], labels).backward()
            assert logits.grad is not None and logits.grad.isfinite().all()
            grid = scan_grid(2, 8)
            again = logits.detach().clone().requires_grad_()
            restored_segmentation_loss([again], grid, Volume(labels[None], grid)).backward()
            assert again.grad is not None and again.grad.isfinite().all()


# ---- after the inverse warp --------------------------------------------------------------------


@pytest.mark.parametrize("slicewise", [False, True])
@pytest.mark.parametrize("size", [16, 32])
def test_an_identity_warp_is_no_warp(slicewise: bool, size: int) -> None:
    grid = scan_grid(3, size)
    grid = grid.slicewise() if slicewise else grid
    labels = some_labels(3, size, size)
    levels = [random(3, 3, size >> n, size >> n, seed=n).requires_grad_() for n in range(3)]
    valid = random(3, size, size, seed=9) > -1
    plain = segmentation_loss(levels, labels, valid=valid)
    warped = restored_segmentation_loss(levels, grid, Volume(labels[None], grid), valid=valid)
    assert warped.item() == pytest.approx(plain.item(), rel=1e-5)
    pairs = zip(
        torch.autograd.grad(plain, levels), torch.autograd.grad(warped, levels), strict=True
    )
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_restored_probabilities_sum_to_one_and_are_background_outside() -> None:
    original = scan_grid(2, 24).slicewise()
    low, high = torch.tensor([-0.5, 5.5, 7.5]), torch.tensor([0.5, 17.5, 19.5])
    crop = posed(
        boxed(original, low, high, (2, 16, 16)),
        angle_rad=torch.tensor([0.3, -0.2]),
        scale=torch.ones(2, 2),
        shift_mm=torch.zeros(2, 2),
    )
    found = restored(random(2, 3, 16, 16), crop, original)
    assert found.data.dtype == torch.float32
    assert torch.allclose(found.data.sum(0), torch.ones(2, 24, 24), atol=1e-5)
    corners = found.data[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.equal(corners, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 2, 4))
    assert (found.data[0, :, 11, 13] < 1).all()


def test_restored_answers_lie_where_the_object_is() -> None:
    """Labels known on a turned, shrunk grid come back onto the object, with Dice near 1."""
    original = scan_grid(2, 96).slicewise()
    at = (torch.arange(96) - 47.5) * 1.5
    y, x = at[:, None], at[None, :]
    labels = ((x - 12) ** 2 / 900 + (y + 8) ** 2 / 400 < 1).long().expand(2, -1, -1)
    network = posed(
        original,
        angle_rad=torch.tensor([0.4, -0.3]),
        scale=torch.tensor([[0.8, 0.8], [0.9, 0.7]]),
        shift_mm=torch.tensor([[9.0, -6.0]] * 2),
    )
    seen = resample(
        Volume(F.one_hot(labels, 2).movedim(-1, 0).float(), original), network, fill=(1.0, 0)
    )
    logits = torch.log(seen.data.clamp(1e-6, 1)).transpose(0, 1)
    loss = restored_segmentation_loss([logits], network, Volume(labels[None], original))
    assert loss.item() < 0.04
    misplaced = restored_segmentation_loss([logits], original, Volume(labels[None], original))
    assert misplaced.item() > 0.5


def test_a_crop_that_loses_tumour_is_punished() -> None:
    """The network answers rightly in all it sees; what the crop cuts off costs the full price."""
    original = scan_grid(1, 32).slicewise()
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, 10:20, 10:20] = 1
    labels[:, 12:18, 18:26] = 2

    def loss(right_edge: int) -> float:
        low = torch.tensor([-0.5, 3.5, 3.5])
        high = torch.tensor([0.5, 27.5, right_edge - 0.5])
        crop = boxed(original, low, high, (1, 24, right_edge - 4))
        seen = resample(Volume(labels[None], original), crop, mode="nearest").data[0]
        return restored_segmentation_loss(
            [certain(seen)], crop, Volume(labels[None], original)
        ).item()

    assert loss(28) == pytest.approx(0, abs=1e-4)
    lost = 6 * 4  # rows 12..17, columns 22..25 of 48 tumour pixels
    dice = 2 * (48 - lost) / (48 - lost + 48)
    paid = -math.log(MIN_PROBABILITY) * lost / 32**2
    assert loss(22) == pytest.approx(paid + (1 - dice) / 2, rel=1e-4)


def test_the_loss_reaches_the_pose_through_the_warp() -> None:
    original = scan_grid(2, 32).slicewise()
    labels = torch.zeros(2, 32, 32, dtype=torch.long)
    labels[:, 8:24, 10:20] = 1
    logits = certain(labels, 2, sharpness=4.0)
    shift = torch.full((2, 2), 3.0, dtype=torch.float64, requires_grad=True)
    grid = posed(original, angle_rad=torch.zeros(2), scale=torch.ones(2, 2), shift_mm=shift)
    restored_segmentation_loss([logits], grid, Volume(labels[None], original)).backward()
    assert shift.grad is not None
    assert (shift.grad > 0).all()  # descent takes the shift back


def test_odd_sizes_and_a_coarser_network_are_compared_on_the_original() -> None:
    original = scan_grid(2, 37).slicewise()
    labels = Volume(some_labels(1, 2, 37, 37), original)
    grid = original.resized((2, 16, 16))
    levels = [random(2, 3, 16 >> n, 16 >> n, seed=n).requires_grad_() for n in range(2)]
    loss = restored_segmentation_loss(levels, grid, labels)
    loss.backward()
    assert loss.isfinite()
    assert all(level.grad is not None and level.grad.isfinite().all() for level in levels)


def test_the_papers_supervision_by_hand() -> None:
    """Eq. 3: each level on the complete original grid, 1 / 2^n, without background in Dice."""
    original = scan_grid(2, 24).slicewise()
    labels = some_labels(2, 24, 24)
    grid = posed(original, angle_rad=torch.full((2,), 0.2), scale=torch.full((2, 2), 1.6))
    levels = [random(2, 3, 16 >> n, 16 >> n, seed=n) for n in range(3)]
    expected = 0.0
    for n, level in enumerate(levels):
        found = restored(level, grid, original).data.transpose(0, 1)
        truth = F.one_hot(labels, 3).movedim(-1, 1).float()
        log_loss = -torch.log((found * truth).sum(1)).mean()
        both, axes = 2 * (found * truth), (0, 2, 3)
        dice = both.sum(axes) / (found**2 + truth**2).sum(axes)
        expected += 0.5**n * float(log_loss + 1 - dice[1:].mean())
    loss = restored_segmentation_loss(
        levels, grid, Volume(labels[None], original), supervision="paper"
    )
    assert loss.item() == pytest.approx(expected, rel=1e-4)


# ---- gradients ---------------------------------------------------------------------------------


def test_gradients_are_the_derivatives() -> None:
    labels, logits = some_labels(2, 4, 4), random(2, 3, 4, 4).double().requires_grad_()
    theta = random(2, 2, 3, seed=1).double().requires_grad_()
    shift_mm = torch.tensor([[0.4, -0.3], [0.7, 0.2]], dtype=torch.float64, requires_grad=True)
    original = scan_grid(2, 4).slicewise()
    reference = F.one_hot(labels, 3).movedim(-1, 1)

    def plain(values: Tensor) -> Tensor:
        return segmentation_loss([values, values[..., ::2, ::2]], labels)

    def warped(values: Tensor, shift: Tensor) -> Tensor:
        grid = posed(
            original, angle_rad=torch.full((2,), 0.2), scale=torch.ones(2, 2), shift_mm=shift
        )
        return restored_segmentation_loss([values], grid, Volume(labels[None], original))

    def overlap(values: Tensor) -> Tensor:
        return 1.0 - soft_dice(values.sigmoid(), reference).mean()

    def regions(values: Tensor) -> Tensor:
        target = Target(channels=((1, 2), (2,), (0,)), exclusive=False)
        return segmentation_loss([values], labels, target=target)

    def crop(values: Tensor, matrix: Tensor) -> Tensor:
        return crop_loss(values, reference, matrix, torch.ones_like(matrix))

    assert torch.autograd.gradcheck(plain, (logits,))
    assert torch.autograd.gradcheck(warped, (logits, shift_mm))
    assert torch.autograd.gradcheck(overlap, (logits,))
    assert torch.autograd.gradcheck(regions, (logits,))
    assert torch.autograd.gradcheck(crop, (logits, theta))
