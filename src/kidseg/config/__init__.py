"""Every setting of kidseg, as plain data: frozen dataclasses with named, checked fields.

A configuration comes from its defaults, then a TOML file, then `key=value` overrides, each winning
over the one before. Unknown keys and wrong types are refused by name. This module imports no torch,
so that it can be read anywhere.
"""

from kidseg.config.loading import dump, load, preset, schema
from kidseg.config.methods import (
    METHODS,
    BlocksConfig,
    CohortConfig,
    CropConfig,
    HomogenizedConfig,
    MethodConfig,
    Plain3dConfig,
    PlainConfig,
    PoseConfig,
    PostprocessConfig,
    ViewConfig,
)
from kidseg.config.networks import LocalizerConfig, UNetConfig
from kidseg.config.phantom import PhantomConfig, Phase
from kidseg.config.stages import OptimizerConfig, StageConfig
from kidseg.config.study import StudyCommonConfig, StudyConfig, StudyMethodConfig

__all__ = [
    "METHODS",
    "BlocksConfig",
    "CohortConfig",
    "CropConfig",
    "HomogenizedConfig",
    "LocalizerConfig",
    "MethodConfig",
    "OptimizerConfig",
    "PhantomConfig",
    "Phase",
    "Plain3dConfig",
    "PlainConfig",
    "PoseConfig",
    "PostprocessConfig",
    "StageConfig",
    "StudyCommonConfig",
    "StudyConfig",
    "StudyMethodConfig",
    "UNetConfig",
    "ViewConfig",
    "dump",
    "load",
    "preset",
    "schema",
]
