"""Settings of the training loop."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from kidseg.config.checked import CHECKED

__all__ = ["OptimizerConfig", "StageConfig"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class OptimizerConfig:
    """The optimizer.

    Source: defaults of nnU-Net v2's trainer; poly as in Chen et al., DeepLab, TPAMI 2018.
    """

    name: Literal["sgd", "adam"] = "sgd"
    """The algorithm: "sgd" (with Nesterov momentum) or "adam"."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Initial learning rate."""
    momentum: float = Field(default=0.99, ge=0, lt=1)
    """Momentum of SGD; 0 is plain gradient descent."""
    weight_decay: float = Field(default=3e-5, ge=0)
    """Weight decay: coupled L2, added to the gradient."""
    decayed: Literal["all", "kernels"] = "all"
    """Parameters with weight decay: "all", or the "kernels" of convolutions and dense layers alone,
    without biases and norms.
    """
    poly_power: float = Field(default=0.9, ge=0)
    """The learning rate decays as (1 - fraction of the epochs, or of the budget if larger) **
    power; 0: constant rate.
    """
    clip_norm: float | None = Field(default=12.0, gt=0)
    """Maximum norm of the gradient. None: no clipping."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StageConfig:
    """The training of one network."""

    of_one_training: ClassVar[tuple[str, ...]] = (
        "epochs",
        "min_epochs",
        "patience",
        "steps",
        "budget_s",
    )
    """Settings that a model does not pass on to a training that starts from it: see
    `kidseg.config.passed_on`.
    """

    epochs: int = Field(default=50, ge=1)
    """Maximum number of epochs."""
    min_epochs: int = Field(default=50, ge=0)
    """Minimum number of epochs before early stopping."""
    patience: int | None = Field(default=None, ge=1)
    """Early stopping after this many epochs without a better validation score. None: no early
    stopping.
    """
    batch_size: int = Field(default=12, ge=1)
    """Slices (or patches) per step, over all processes."""
    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps per epoch. None: an epoch draws as many slices as there are for training (or
    as many patches as cases); where kidney and tumour have their shares of a batch, those that show
    them are drawn more often than others.
    """
    budget_s: float | None = Field(default=None, gt=0)
    """Time limit, including validation; training stops after the epoch that exceeds it. None: no
    limit.
    """
    average: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of a moving average of the weights, which is validated and kept in place of
    the last weights. None: no average.
    """
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
