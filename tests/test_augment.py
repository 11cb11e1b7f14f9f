"""nnU-Net's augmentation: what it may change, and that a seed fixes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kidseg.augment import Augmentation
from kidseg.errors import UsageError

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


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'kidseg\[train\]'") as error:
        Augmentation(48)
    assert error.value.code == "no-batchgenerators"
