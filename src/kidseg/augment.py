"""nnU-Net's own augmentation of slices: the baseline that homogenization is measured against."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import UsageError

__all__ = ["Augmentation"]

# Source of all constants: nnU-Net v2.8.1, `nnUNetTrainer.get_training_transforms` and
# `configure_rotation_dummyDA_mirroring_and_inital_patch_size`, 2D configuration.
_ROTATION_RAD = (-math.pi, math.pi)
_SCALING = (0.7, 1.4)
_SOURCE_SCALE = 0.85


class Augmentation:
    """nnU-Net v2's default training transforms for 2D, by batchgeneratorsv2.

    Rotation (p 0.2, any angle), scaling (p 0.2, 0.7 to 1.4), Gaussian noise and blur, brightness,
    contrast, low resolution, gamma, mirroring along both axes. What a sample undergoes depends on
    its seed alone. One thing differs from nnU-Net: which implementation blurs is not decided by
    timing them, which would let a resumed training end with other bits.

    Args:
        size: pixels along each side of what comes out.

    Raises:
        UsageError: "no-batchgenerators": batchgeneratorsv2 is not installed.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._check_installed()

    @property
    def source_size(self) -> tuple[int, int]:
        """Rows and columns of what is to go in, so that most turned corners find values."""
        side = int(self.size / _SOURCE_SCALE)
        side += (side - self.size) % 2  # as much on either side
        return side, side

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
            masks: (n, masks, *source_size) uint8, moved with the image; 0 comes in at the edges.
            seed: of the batch.
            first: place of the first sample in the whole batch.
            stride: between the places of this process.

        Returns:
            Both at `size`, on the image's device.
        """
        images, moved = [], []
        before = np.random.get_state()  # noqa: NPY002 - the library draws from the global state
        with torch.random.fork_rng(devices=[]):
            for k in range(len(image)):
                words = np.random.SeedSequence([*seed, first + k * stride]).generate_state(1)
                np.random.seed(int(words[0]))  # noqa: NPY002
                torch.default_generator.manual_seed(int(words[0]))
                # Copies: some of the transforms write into what they are given.
                picture = image[k].detach().to("cpu", torch.float32, copy=True)
                labels = masks[k].to("cpu", torch.int16, copy=True)
                out = self._transforms(image=picture, segmentation=labels)
                images.append(out["image"])
                moved.append(out["segmentation"].to(torch.uint8))
        np.random.set_state(before)  # noqa: NPY002
        return torch.stack(images).to(image.device), torch.stack(moved).to(masks.device)

    @cached_property
    def _transforms(self) -> Any:
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
        from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
        from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
        from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
        from batchgeneratorsv2.transforms.utils.random import RandomTransform
        from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

        spatial = SpatialTransform(
            (self.size, self.size),
            patch_center_dist_from_border=0,
            random_crop=False,
            p_elastic_deform=0,
            p_rotation=0.2,
            rotation=_ROTATION_RAD,
            p_scaling=0.2,
            scaling=_SCALING,
            p_synchronize_scaling_across_axes=1,
            bg_style_seg_sampling=False,
            border_mode_seg="constant",
            padding_value_seg=-1,
        )
        noise = GaussianNoiseTransform(
            noise_variance=(0, 0.1), p_per_channel=1, synchronize_channels=True
        )
        blur = GaussianBlurTransform(
            blur_sigma=(0.5, 1.0),
            synchronize_channels=False,
            synchronize_axes=False,
            p_per_channel=0.5,
            benchmark=False,
        )
        brightness = MultiplicativeBrightnessTransform(
            multiplier_range=BGContrast((0.75, 1.25)), synchronize_channels=False, p_per_channel=1
        )
        contrast = ContrastTransform(
            contrast_range=BGContrast((0.75, 1.25)),
            preserve_range=True,
            synchronize_channels=False,
            p_per_channel=1,
        )
        coarse = SimulateLowResolutionTransform(
            scale=(0.5, 1),
            synchronize_channels=False,
            synchronize_axes=True,
            ignore_axes=None,
            allowed_channels=None,
            p_per_channel=0.5,
        )
        inverted, gamma = (
            GammaTransform(
                gamma=BGContrast((0.7, 1.5)),
                p_invert_image=invert,
                synchronize_channels=False,
                p_per_channel=1,
                p_retain_stats=1,
            )
            for invert in (1, 0)
        )
        chances = (
            (noise, 0.1),
            (blur, 0.2),
            (brightness, 0.15),
            (contrast, 0.15),
            (coarse, 0.25),
            (inverted, 0.1),
            (gamma, 0.3),
        )
        return ComposeTransforms(
            [
                spatial,
                *(RandomTransform(change, apply_probability=p) for change, p in chances),
                MirrorTransform(allowed_axes=(0, 1)),
                RemoveLabelTansform(-1, 0),
            ]
        )

    def _check_installed(self) -> None:
        from importlib.util import find_spec

        if find_spec("batchgeneratorsv2") is None:
            raise UsageError(
                "nnU-Net's augmentation needs batchgeneratorsv2, which is not installed",
                code="no-batchgenerators",
                next_step="pip install 'kidseg[train]', or train with augment \"none\".",
            )
