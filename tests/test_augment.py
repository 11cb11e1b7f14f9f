"""nnU-Net's augmentation: what it may change, and that a seed fixes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kidseg.augment import Augmentation, _own_randomness, _seed
from kidseg.errors import UsageError
from kidseg.geometry import Grid, Volume, posed, resample

pytest.importorskip("batchgeneratorsv2", reason="nnU-Net's augmentation is an extra")


def batch(augmentation: Augmentation, count: int = 6) -> tuple[Tensor, Tensor]:
    """A disc, off the middle, in the image and in the mask alike."""
    rows, columns = augmentation.source_size
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    disc = ((y - rows / 2 + 3) ** 2 + (x - columns / 2 - 5) ** 2 < 80).float()
    image = (disc * 2 - 1)[None, None].expand(count, 1, -1, -1).contiguous()
    return image, (disc.to(torch.uint8) * 2)[None, None].expand(count, 1, -1, -1).contiguous()


def test_shapes_labels_and_agreement_of_image_and_mask() -> None:
    augmentation = Augmentation(48)
    assert augmentation.source_size == (56, 56)
    image, mask = augmentation(*batch(augmentation, 40), seed=(1, 2, 3))
    assert image.shape == mask.shape == (40, 1, 48, 48)
    assert mask.dtype == torch.uint8
    assert set(mask.unique().tolist()) == {0, 2}
    for picture, labels in zip(image[:, 0], mask[:, 0], strict=True):
        inside, outside = picture[labels == 2], picture[labels == 0]
        assert inside.median() > outside.median()


def test_a_seed_fixes_it_and_nothing_else_is_touched() -> None:
    augmentation = Augmentation(48)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    expected = np.random.rand(), torch.rand(())  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    a, am = augmentation(*batch(augmentation), seed=(0, 0, 0))
    assert (np.random.rand(), torch.rand(())) == expected  # noqa: NPY002
    b, bm = augmentation(*batch(augmentation), seed=(0, 0, 0))
    c, _ = augmentation(*batch(augmentation), seed=(0, 0, 1))
    assert torch.equal(a, b) and torch.equal(am, bm)
    assert not torch.equal(a, c)


def test_processes_that_share_a_batch_augment_it_as_one_would() -> None:
    augmentation = Augmentation(48)
    image, mask = batch(augmentation)
    whole, _ = augmentation(image, mask, seed=(4, 0, 0))
    for rank in range(2):
        part, _ = augmentation(image[rank::2], mask[rank::2], seed=(4, 0, 0), first=rank, stride=2)
        assert torch.equal(part, whole[rank::2])


def test_samples_of_a_batch_differ() -> None:
    augmentation = Augmentation(48)
    image, _ = augmentation(*batch(augmentation), seed=(0, 0, 0))
    assert len({tuple(picture.flatten().tolist()) for picture in image}) == len(image)


def test_poses_are_the_librarys_spatial_transforms() -> None:
    """A slice sampled on the posed grid is what the library's transforms make of it."""
    augmentation = Augmentation(32)
    side = augmentation.source_size[0]
    y, x = torch.meshgrid(*2 * [torch.arange(side) - (side - 1) / 2], indexing="ij")
    blob = torch.exp(-((x - 4) ** 2 / 60 + (y + 3) ** 2 / 20)) + 0.01 * x
    source = Grid.from_spacing((1, side, side), (1.0, 2.0, 2.0))
    patch = source.crop((0, (side - 32) // 2, (side - 32) // 2), (1, 32, 32))
    kinds = set()
    for number in range(40):
        angle, scale = augmentation.poses(1, seed=(7,), first=number)
        with _own_randomness():
            _seed(7, number)
            moved = augmentation._mirror(**augmentation._spatial(image=blob[None]))["image"]
        grid = posed(patch, angle_rad=angle, scale=scale)
        ours = resample(Volume(blob[None, None], source.slicewise()), grid).data[0]
        # The library pads beyond its larger patch; compare where both look inside it.
        within = torch.zeros(1, 1, side, side)
        within[..., 1:-1, 1:-1] = 1
        inside = resample(Volume(within, source.slicewise()), grid).data[0]
        assert torch.allclose(ours[inside > 0.999], moved[inside > 0.999], atol=2e-3)
        kinds.add((bool(angle != 0), bool(scale.abs().max() != 1), bool(scale.min() < 0)))
    assert {kind[n] for kind in kinds for n in range(3)} == {True, False} and len(kinds) > 4


def test_processes_share_poses_and_appearance() -> None:
    augmentation = Augmentation(32)
    image = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    angle, scale = augmentation.poses(6, seed=(4, 0, 0))
    whole = augmentation.appearance(image, seed=(4, 0, 0))
    assert whole.shape == image.shape and not torch.equal(whole, image)
    for rank in range(2):
        part = augmentation.poses(3, seed=(4, 0, 0), first=rank, stride=2)
        assert torch.equal(part[0], angle[rank::2]) and torch.equal(part[1], scale[rank::2])
        own = augmentation.appearance(image[rank::2], seed=(4, 0, 0), first=rank, stride=2)
        assert torch.equal(own, whole[rank::2])
    with pytest.raises(ValueError, match="volumes"):
        Augmentation((16, 16, 16)).poses(1, seed=(0,))


# ---- volumes, and patches that are not square --------------------------------------------------


def ball(augmentation: Augmentation, count: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    """A ball, off the middle; the later channels of the image are darker."""
    axes = [torch.arange(float(n)) - n / 2 for n in augmentation.source_size]
    at = torch.meshgrid(*axes, indexing="ij")
    inside = (sum((a - 1) ** 2 for a in at) < 25).float()
    shades = torch.arange(channels, 0, -1.0).view(1, -1, *[1] * len(axes))
    image = (inside * 2 - 1) * shades
    mask = (inside.to(torch.uint8) * 2)[None, None]
    repeat = (count, *[1] * (image.ndim - 1))
    return image.repeat(repeat), mask.repeat(repeat)


def test_one_number_is_a_square() -> None:
    one, other = Augmentation(48), Augmentation((48, 48))
    assert one.size == other.size == (48, 48)
    image, mask = batch(one)
    for a, b in zip(one(image, mask, seed=(1,)), other(image, mask, seed=(1,)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("size", "flat", "degrees"),
    [
        ((48, 48), False, 180),
        ((48, 72), False, 180),
        ((48, 80), False, 15),
        ((32, 32, 32), False, 30),
        ((32, 96, 64), False, 30),  # not more than 3 times the slices
        ((64, 16, 128), False, 30),  # slices are not the short side
        ((16, 64, 64), True, 180),
    ],
)
def test_angles_follow_the_patch(size: tuple[int, ...], flat: bool, degrees: float) -> None:
    augmentation = Augmentation(size)
    assert augmentation.is_flat == flat
    assert augmentation.rotation_limit_rad == pytest.approx(np.radians(degrees))


def test_source_size_by_hand() -> None:
    """A side and its turned corner over 0.85, and as much on either side of the patch."""
    assert Augmentation((64, 80)).source_size == (94, 94)  # any angle: 80 / 0.85 = 94.1
    # 15 degrees: (40 cos + 80 sin) / 0.85 = 69.8, made even; 80 / 0.85 = 94.1.
    assert Augmentation((40, 80)).source_size == (70, 94)
    # 30 degrees: 64 (cos + sin) / 0.85 = 102.8.
    assert Augmentation((64, 64, 64)).source_size == (102, 102, 102)
    # Flat: all slices and no more; in the plane any angle.
    assert Augmentation((8, 48, 64)).source_size == (8, 76, 76)


@pytest.mark.parametrize("size", [(20, 24, 28), (6, 24, 28), (24, 48)])
@pytest.mark.parametrize("channels", [1, 3])
def test_volumes_keep_labels_and_agreement(size: tuple[int, ...], channels: int) -> None:
    augmentation = Augmentation(size)
    image, mask = augmentation(*ball(augmentation, 20, channels), seed=(1, 2, 3))
    assert image.shape == (20, channels, *size) and mask.shape == (20, 1, *size)
    assert image.dtype == torch.float32 and mask.dtype == torch.uint8
    assert set(mask.unique().tolist()) == {0, 2}
    for picture, labels in zip(image[:, 0], mask[:, 0], strict=True):
        assert picture[labels == 2].median() > picture[labels == 0].median()
    again, _ = augmentation(*ball(augmentation, 20, channels), seed=(1, 2, 3))
    assert torch.equal(image, again)


def test_volumes_are_turned_and_mirrored_along_every_axis() -> None:
    augmentation = Augmentation((16, 16, 16))
    image, mask = ball(augmentation, 60)
    _, moved = augmentation(image, mask, seed=(0,))
    rest = mask[0, 0][tuple(slice((n - 16) // 2, (n + 16) // 2) for n in mask.shape[2:])]
    mirrored = [torch.equal(one[0].flip(axis), rest) for one in moved for axis in range(3)]
    for axis in range(3):
        assert any(mirrored[axis::3])
    centres = {tuple((one[0] > 0).nonzero().float().mean(0).tolist()) for one in moved}
    assert len(centres) > 8  # mirrors alone give eight


def test_slices_of_a_flat_volume_stay_apart() -> None:
    """The mask of one slice comes out in one slice: the same, or mirrored."""
    augmentation = Augmentation((6, 24, 24))
    image = torch.zeros(40, 1, *augmentation.source_size)
    mask = torch.zeros(40, 1, *augmentation.source_size, dtype=torch.uint8)
    mask[:, :, 1, 8:20, 8:20] = 1
    _, moved = augmentation(image, mask, seed=(0,))
    slices = [tuple(one[0].flatten(1).any(1).nonzero()[:, 0].tolist()) for one in moved]
    assert set(slices) == {(1,), (4,)}


@pytest.mark.parametrize("size", [3, (8,), (3, 16, 16), (8, 8, 8, 8)])
def test_sizes_that_cannot_be_augmented_are_refused(size: int | tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two or three sides"):
        Augmentation(size)


def test_the_least_side_can_be_blurred() -> None:
    augmentation = Augmentation((4, 8, 8))
    image, mask = ball(augmentation, 60)
    assert augmentation(image, mask, seed=(0,))[0].isfinite().all()


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kidseg.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'kidseg\[train\]'") as error:
        Augmentation(48)
    assert error.value.code == "missing-extra"
