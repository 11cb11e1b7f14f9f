"""One thing to train, as a method describes it and the loop trains it.

Several processes may share each batch. A loss that is a mean over samples is the mean of theirs;
any other is taken of the whole batch, which `gathered` brings together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kidseg.config import StageConfig

__all__ = ["Moment", "Stage", "gathered"]


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


def gathered(values: Tensor) -> Tensor:
    """The values (n, ...) of all processes, (processes * n, ...): process by process.

    Differentiable: the gradients of all processes' losses come back to each value's own process.
    The values themselves where there is one process.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    if not values.requires_grad:
        out = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(out, values.contiguous())
        return torch.cat(out)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(values.contiguous()))  # type: ignore[no-untyped-call]
