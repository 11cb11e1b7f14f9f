"""All settings of kidseg: frozen dataclasses with validated fields.

A configuration is built from its defaults, then a TOML file, then `key=value` overrides; later
values take precedence. Errors name unknown keys and values of the wrong type. This package does not
import torch, so that it works everywhere.
"""

from kidseg.config.cascade import (
    CascadeConfig,
    CoarseConfig,
    CorrectConfig,
    FineConfig,
    RefineConfig,
    ThresholdConfig,
    TumourConfig,
)
from kidseg.config.catalogue import METHODS
from kidseg.config.explanation import explain, meanings
from kidseg.config.homogenized import CropConfig, HomogenizedConfig, PoseConfig
from kidseg.config.loading import dump, load, passed_on, preset, schema
from kidseg.config.methods import (
    BlocksConfig,
    BodyConfig,
    CohortConfig,
    MethodConfig,
    Plain3dConfig,
    PlainConfig,
    PostprocessConfig,
    ViewConfig,
)
from kidseg.config.multistage import MultistageConfig, SliceAugmentationConfig, StagedNetConfig
from kidseg.config.networks import LocalizerConfig, ResidualConfig, UNetConfig
from kidseg.config.nnunet_settings import NnUnetConfig, ResizingConfig
from kidseg.config.phantom import KidneyForm, PhantomConfig, Phase
from kidseg.config.randomization import StyleConfig
from kidseg.config.stages import OptimizerConfig, StageConfig
from kidseg.config.study import StudyCommonConfig, StudyConfig, StudyDataConfig, StudyMethodConfig

__all__ = [
    "METHODS",
    "BlocksConfig",
    "BodyConfig",
    "CascadeConfig",
    "CoarseConfig",
    "CohortConfig",
    "CorrectConfig",
    "CropConfig",
    "FineConfig",
    "HomogenizedConfig",
    "KidneyForm",
    "LocalizerConfig",
    "MethodConfig",
    "MultistageConfig",
    "NnUnetConfig",
    "OptimizerConfig",
    "PhantomConfig",
    "Phase",
    "Plain3dConfig",
    "PlainConfig",
    "PoseConfig",
    "PostprocessConfig",
    "RefineConfig",
    "ResidualConfig",
    "ResizingConfig",
    "SliceAugmentationConfig",
    "StageConfig",
    "StagedNetConfig",
    "StudyCommonConfig",
    "StudyConfig",
    "StudyDataConfig",
    "StudyMethodConfig",
    "StyleConfig",
    "ThresholdConfig",
    "TumourConfig",
    "UNetConfig",
    "ViewConfig",
    "dump",
    "explain",
    "load",
    "meanings",
    "passed_on",
    "preset",
    "schema",
]
