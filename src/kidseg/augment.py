"""nnU-Net's own augmentation, the baseline for homogenization."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kidseg.extras import check_installed

__all__ = ["MIN_SIDE", "Augmentation"]

# Source of all constants: nnU-Net v2.8.1, `nnUNetTrainer.get_training_transforms` and
# `configure_rotation_dummyDA_mirroring_and_inital_patch_size`.
_SCALING = (0.7, 1.4)
_SOURCE_SCALE = 0.85
# Ratio of the longest side to the shortest (2D), or to the number of slices (3D), above which a
# patch is elongated or flat.
_ELONGATED = 1.5
_FLAT = 3.0
MIN_SIDE = 4
"""Gaussian blur mirrors three voxels at each edge. Source: batchgeneratorsv2, sigma up to 1."""


class Augmentation:
    """nnU-Net v2's default training transforms in two or three dimensions, by batchgeneratorsv2.

    Rotation (p 0.2), scaling (p 0.2, 0.7 to 1.4), Gaussian noise and blur, brightness, contrast,
    low resolution, gamma, mirroring along all axes. The rotation angles depend on the patch: any
    angle in a slice, but within 15 degrees if one side is more than 1.5 times the other; within 30
    degrees about each axis of a volume. In flat volumes, whose longest side is more than 3 times
    the number of slices, rotation (any angle), scaling and low resolution act only in the planes.

    The transforms of a sample depend only on its seed. One difference from nnU-Net: the
    implementation of the blur is not chosen by timing, which would make a resumed training run
    differ in its last bits.

    Args:
        size: voxels along each side of the output: (rows, columns), (slices, rows, columns), or one
            number for square slices.

    Attributes:
        size: output size per axis.

    Raises:
        ValueError: not two or three sides, or a side below 4, the minimum for blurring.
        UsageError: "missing-extra": batchgeneratorsv2 is not installed.
    """

    def __init__(self, size: int | Sequence[int]) -> None:
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        if len(self.size) not in (2, 3) or min(self.size) < MIN_SIDE:
            raise ValueError(
                f"the size must be two or three sides of at least {MIN_SIDE}, not {self.size}"
            )
        self._check_installed()

    @property
    def is_flat(self) -> bool:
        """Whether a volume is rotated and scaled only in its planes (nnU-Net's dummy 2D)."""
        return len(self.size) == 3 and max(self.size) / self.size[0] > _FLAT

    @property
    def rotation_limit_rad(self) -> float:
        """Largest rotation angle in either direction."""
        if len(self.size) == 2:
            return math.radians(15 if max(self.size) / min(self.size) > _ELONGATED else 180)
        return math.radians(180 if self.is_flat else 30)

    @property
    def source_size(self) -> tuple[int, ...]:
        """Input size at which most corners of the rotated patch are inside the input.

        Larger than `size` by the same amount on both sides. Source: nnU-Net v2.8.1,
        `get_patch_size`, which rotates one corner about one axis at a time.
        """
        sides = [int(side / _SOURCE_SCALE) for side in self._rotated_extent()]
        sides = [side + (side - n) % 2 for side, n in zip(sides, self.size, strict=True)]
        return (self.size[0], *sides[1:]) if self.is_flat else tuple(sides)

    def _rotated_extent(self) -> list[float]:
        """Largest extent of the patch and of its rotated corner along each axis."""
        angle = self.rotation_limit_rad
        # 90 degrees gives the largest extent; its cosine is 0, not 6e-17.
        cos, sin = (0.0, 1.0) if angle >= math.pi / 2 else (math.cos(angle), math.sin(angle))
        reach = [float(n) for n in self.size]
        turns = [(0, 1)] if len(self.size) == 2 else [(1, 2), (2, 0), (0, 1)]
        for first, second in turns:
            a, b = self.size[first], self.size[second]
            reach[first] = max(reach[first], a * cos + b * sin)
            reach[second] = max(reach[second], abs(b * cos - a * sin))
        return reach

    def __call__(
        self,
        image: Tensor,
        masks: Tensor,
        *,
        seed: tuple[int, ...],
        first: int = 0,
        stride: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            image: (n, channels, *source_size) float32, normalised.
            masks: (n, masks, *source_size) uint8, transformed like the image; padded with 0.
            seed: of the batch.
            first: index of the first sample in the global batch.
            stride: distance between the indices of this process.

        Returns:
            Both at `size`, each on its own device.
        """
        images, moved = [], []
        with _own_randomness():
            for k in range(len(image)):
                _seed(*seed, first + k * stride)
                # Copies, because some transforms modify their input.
                picture = image[k].detach().to("cpu", torch.float32, copy=True)
                labels = masks[k].to("cpu", torch.int16, copy=True)
                out = self._transforms(image=picture, segmentation=labels)
                images.append(out["image"])
                moved.append(out["segmentation"].to(torch.uint8))
        return torch.stack(images).to(image.device), torch.stack(moved).to(masks.device)

    def poses(
        self, count: int, *, seed: tuple[int, ...], first: int = 0, stride: int = 1
    ) -> tuple[Tensor, Tensor]:
        """The spatial transforms of a batch of slices as poses, for `kidseg.geometry.posed`.

        A slice that is sampled on a posed grid and changed by `appearance` is augmented as by a
        call, and the way back to the original grid is known. Two differences: what lies beyond
        `source_size` is sampled, not padded, and pixels that are not square are rotated in
        millimetres.

        Args:
            count: samples of this process.
            seed: of the batch; first and stride as for a call.
            first: index of the first sample in the global batch.
            stride: distance between the indices of this process.

        Returns:
            (count,) angles in radians and (count, 2) scales along x and y, negative if mirrored;
            float64.

        Raises:
            ValueError: for volumes.
        """
        if len(self.size) != 2:
            raise ValueError("the spatial transforms of volumes are not poses in the plane")
        angles, scales = [], []
        blank = torch.zeros(1, *self.size)
        with _own_randomness():
            for k in range(count):
                _seed(*seed, first + k * stride)
                matrix = self._spatial.get_parameters(image=blank)["affine"]
                linear = np.eye(2) if matrix is None else np.asarray(matrix)
                mirrored = self._mirror.get_parameters()["axes"]
                size = float(np.sqrt(np.linalg.det(linear)))
                # The library turns (row, column); the same turn of (x, y) has the opposite sign.
                angles.append(float(np.arctan2(linear[0, 1], linear[0, 0])))
                scales.append([-size if axis in mirrored else size for axis in (1, 0)])
        return torch.tensor(angles).double(), torch.tensor(scales).double()

    def appearance(
        self, image: Tensor, *, seed: tuple[int, ...], first: int = 0, stride: int = 1
    ) -> Tensor:
        """The intensity transforms alone, on a batch of size `size`; see `poses`.

        Args:
            image: (n, channels, *size) float32, normalised.
            seed: of the batch; first and stride as for a call.
            first: index of the first sample in the global batch.
            stride: distance between the indices of this process.
        """
        from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

        changes = ComposeTransforms(self._randomised())
        images = []
        with _own_randomness():
            for k in range(len(image)):
                _seed(*seed, first + k * stride, 1)
                picture = image[k].detach().to("cpu", torch.float32, copy=True)
                images.append(changes(image=picture)["image"])
        return torch.stack(images).to(image.device)

    @cached_property
    def _transforms(self) -> Any:
        from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
        from batchgeneratorsv2.transforms.utils.pseudo2d import (
            Convert2DTo3DTransform,
            Convert3DTo2DTransform,
        )
        from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

        moved = [self._spatial]
        if self.is_flat:
            moved = [Convert3DTo2DTransform(), self._spatial, Convert2DTo3DTransform()]
        return ComposeTransforms(
            [*moved, *self._randomised(), self._mirror, RemoveLabelTansform(-1, 0)]
        )

    @cached_property
    def _spatial(self) -> Any:
        from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

        return SpatialTransform(
            self.size[1:] if self.is_flat else self.size,
            patch_center_dist_from_border=0,
            random_crop=False,
            p_elastic_deform=0,
            p_rotation=0.2,
            rotation=(-self.rotation_limit_rad, self.rotation_limit_rad),
            p_scaling=0.2,
            scaling=_SCALING,
            p_synchronize_scaling_across_axes=1,
            bg_style_seg_sampling=False,
            border_mode_seg="constant",
            padding_value_seg=-1,
        )

    @cached_property
    def _mirror(self) -> Any:
        from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

        return MirrorTransform(allowed_axes=tuple(range(len(self.size))))

    def _randomised(self) -> list[Any]:
        """Intensity transforms in order, each applied with its probability."""
        from batchgeneratorsv2.transforms.utils.random import RandomTransform

        return [RandomTransform(change, apply_probability=p) for change, p in self._intensity()]

    def _intensity(self) -> list[tuple[Any, float]]:
        """Intensity transforms in order, with their probabilities."""
        from batchgeneratorsv2.transforms.intensity.brightness import (
            MultiplicativeBrightnessTransform,
        )
        from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
        from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
        from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
        from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
        from batchgeneratorsv2.transforms.spatial.low_resolution import (
            SimulateLowResolutionTransform,
        )

        each: dict[str, Any] = {"synchronize_channels": False}
        noise = GaussianNoiseTransform(
            noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True
        )
        blur = GaussianBlurTransform(
            blur_sigma=(0.5, 1.0),
            synchronize_axes=False,
            p_per_channel=0.5,
            benchmark=False,
            **each,
        )
        brightness = MultiplicativeBrightnessTransform(
            multiplier_range=BGContrast((0.75, 1.25)), p_per_channel=1, **each
        )
        contrast = ContrastTransform(
            contrast_range=BGContrast((0.75, 1.25)), preserve_range=True, p_per_channel=1, **each
        )
        coarse = SimulateLowResolutionTransform(
            scale=(0.5, 1),
            synchronize_axes=True,
            ignore_axes=(0,) if self.is_flat else None,
            allowed_channels=None,
            p_per_channel=0.5,
            **each,
        )
        inverted, gamma = (
            GammaTransform(
                gamma=BGContrast((0.7, 1.5)),
                p_invert_image=invert,
                p_per_channel=1,
                p_retain_stats=1,
                **each,
            )
            for invert in (1, 0)
        )
        return [
            (noise, 0.1),
            (blur, 0.2),
            (brightness, 0.15),
            (contrast, 0.15),
            (coarse, 0.25),
            (inverted, 0.1),
            (gamma, 0.3),
        ]

    def _check_installed(self) -> None:
        check_installed(
            "nnU-Net's augmentation",
            ["batchgeneratorsv2"],
            "kidseg[train]",
            step='or train with augment "none".',
        )


@contextmanager
def _own_randomness() -> Iterator[None]:
    """Keep the global random states, from which the library draws, as they are outside."""
    before = np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _seed(*words: int) -> None:
    """Seed the global random states."""
    word = int(np.random.SeedSequence(words).generate_state(1)[0])
    np.random.seed(word)  # noqa: NPY002
    torch.default_generator.manual_seed(word)
