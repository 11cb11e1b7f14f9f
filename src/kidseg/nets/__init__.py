"""Networks: plain PyTorch modules that `build` creates from a configuration."""

from __future__ import annotations

from typing import overload

import torch

from kidseg.config import LocalizerConfig, ResidualConfig, UNetConfig
from kidseg.nets.planned import PlannedUNet
from kidseg.nets.residual import ResidualUNet
from kidseg.nets.stn import Localizer
from kidseg.nets.unet import UNet
from kidseg.topology import Topology

__all__ = ["Localizer", "PlannedUNet", "ResidualUNet", "UNet", "build"]


@overload
def build(
    config: UNetConfig, in_channels: int, out_channels: int, *, seed: int = 0
) -> UNet | PlannedUNet: ...
@overload
def build(
    config: Topology, in_channels: int, out_channels: int, *, seed: int = 0
) -> PlannedUNet: ...
@overload
def build(
    config: ResidualConfig, in_channels: int, out_channels: int, *, seed: int = 0
) -> ResidualUNet: ...
@overload
def build(
    config: LocalizerConfig, in_channels: int, out_channels: int, *, seed: int = 0
) -> Localizer: ...
def build(
    config: UNetConfig | Topology | ResidualConfig | LocalizerConfig,
    in_channels: int,
    out_channels: int,
    *,
    seed: int = 0,
) -> UNet | PlannedUNet | ResidualUNet | Localizer:
    """Build the network of a configuration, on the CPU, in training mode, float32.

    Its weights depend only on the seed; the state of torch's random generator does not change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if isinstance(config, UNetConfig) and config.architecture == "plan":
            config = config.planned
        if isinstance(config, UNetConfig):
            return UNet(config, in_channels, out_channels)
        if isinstance(config, Topology):
            return PlannedUNet(config, in_channels, out_channels)
        if isinstance(config, ResidualConfig):
            return ResidualUNet(config, in_channels, out_channels)
        return Localizer(config, in_channels, out_channels)
