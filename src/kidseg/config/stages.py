"""Settings of the training loop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from kidseg.config.loading import CHECKED

__all__ = ["OptimizerConfig", "StageConfig"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class OptimizerConfig:
    """How weights are changed.

    Attributes:
        name: "sgd" (with Nesterov momentum) or "adam".
        learning_rate: at the start.
        momentum: of SGD; 0 is plain gradient descent.
        weight_decay: coupled L2, added to the gradient.
        poly_power: the rate falls as (1 - part of the epochs, or of the budget if that is further
            gone) ** power; 0 keeps it.
        clip_norm: gradients are scaled down to this norm; None leaves them.

    Source: defaults of nnU-Net v2's trainer; poly as in Chen et al., DeepLab, TPAMI 2018.
    """

    name: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.99, ge=0, lt=1)
    weight_decay: float = Field(default=3e-5, ge=0)
    poly_power: float = Field(default=0.9, ge=0)
    clip_norm: float | None = Field(default=12.0, gt=0)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StageConfig:
    """How long and how one network is trained.

    Attributes:
        epochs: at most so many.
        min_epochs: early stopping not before.
        patience: stop after so many epochs without a better validation score; None never stops.
        batch_size: slices (or patches) per step, over all processes.
        steps: optimizer steps per epoch; None: every training slice once.
        budget_s: stop after the epoch in which this much time was used, validation included; None:
            no limit.
        optimizer: see `OptimizerConfig`.
    """

    epochs: int = Field(default=50, ge=1)
    min_epochs: int = Field(default=50, ge=0)
    patience: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=12, ge=1)
    steps: int | None = Field(default=None, ge=1)
    budget_s: float | None = Field(default=None, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()
