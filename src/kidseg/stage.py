"""One thing to train, as a method describes it and the loop trains it.

Several processes may share each batch. A loss that is a mean over samples is the mean of theirs;
any other is taken of the whole batch, which `kidseg.distributed.all_gather` brings together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kidseg.config import StageConfig

__all__ = ["Batch", "Stage", "TrainStep"]


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """Where a training stands: the same step draws the same batch.

    `rank` of `world` processes shares the batch.
    """

    seed: int
    epoch: int
    step: int
    rank: int = 0
    world: int = 1


class Batch(Protocol):
    """What a training step learns from; made on the CPU, then brought to the device.

    `names` says which samples it holds, for messages.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Of its samples: case and slice or place."""
        ...

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing to train.

    Attributes:
        name: of the stage, for logs and files.
        net: what is trained.
        config: how long and how.
        steps: optimizer steps per epoch.
        batch: a training step's samples. Depends on nothing but the step and reads nothing that
            training changes, so that it may be made ahead, in another process.
        loss: (network to call, batch) -> named scalars; "loss" is minimised, others are logged.
        validate: () -> named figures; a higher "score" is better. The network is in eval mode.
            Processes that train as one share the cases.
        trainable: beginnings of the names of the parameters that are trained; None: all. Modules of
            which no parameter is trained stay in eval mode, so that the statistics of their norms
            stay too.
    """

    name: str
    net: nn.Module
    config: StageConfig
    steps: int
    batch: Callable[[TrainStep], Any]
    loss: Callable[[nn.Module, Any], dict[str, Tensor]]
    validate: Callable[[], dict[str, float]]
    trainable: tuple[str, ...] | None = None
