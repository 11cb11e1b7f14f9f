"""The configuration class of every method."""

from __future__ import annotations

from kidseg import registry
from kidseg.config.cascade import CascadeConfig
from kidseg.config.homogenized import HomogenizedConfig
from kidseg.config.methods import MethodConfig, Plain3dConfig, PlainConfig
from kidseg.config.multistage import MultistageConfig
from kidseg.config.nnunet_settings import NnUnetConfig

__all__ = ["METHODS"]

_CONFIGS: tuple[type[MethodConfig], ...] = (
    HomogenizedConfig,
    PlainConfig,
    Plain3dConfig,
    MultistageConfig,
    CascadeConfig,
    NnUnetConfig,
)

METHODS: dict[str, type[MethodConfig]] = dict(zip(registry.METHODS, _CONFIGS, strict=True))
"""Configuration class of each method, by name."""
