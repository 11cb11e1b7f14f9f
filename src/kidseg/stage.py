"""One thing to train, as a method describes it and the loop trains it.

Several processes may share each batch. A loss that is a mean over samples is the mean of theirs;
any other is taken of the whole batch, which `kidseg.distributed.gathered` brings together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from kidseg.config import StageConfig

__all__ = ["Moment", "Stage"]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Where a training stands: the same moment draws the same batch.

    `rank` of `world` processes shares the batch.
    """

    seed: int
    epoch: int
    step: int
    rank: int = 0
    world: int = 1


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing to train.

    Attributes:
        name: of the stage, for logs and files.
        net: what is trained.
        config: how long and how.
        steps: optimizer steps per epoch.
        loss: (network to call, moment) -> named scalars; "loss" is minimised, others are logged.
        validate: () -> named figures; a higher "score" is better. The network is in eval mode.
    """

    name: str
    net: nn.Module
    config: StageConfig
    steps: int
    loss: Callable[[nn.Module, Moment], dict[str, Tensor]]
    validate: Callable[[], dict[str, float]]
