"""The interface between a method and the training loop: a method defines stages, `fit` trains them.

With distributed training, each batch is split across the processes. A loss that is a mean over
samples needs no communication; any other loss is computed on the full batch, which
`kidseg.distributed.all_gather` collects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kidseg.config import StageConfig
from kidseg.errors import UsageError

__all__ = ["Batch", "Stage", "TrainStep", "shares"]


@dataclass(frozen=True, kw_only=True)
class TrainStep:
    """Identifies one optimizer step; equal steps draw equal batches.

    Process `rank` of `world` draws its share of the batch.
    """

    seed: int
    epoch: int
    step: int
    rank: int = 0
    world: int = 1

    def positions(self, batch_size: int) -> range:
        """The positions in the global batch that this process draws.

        Raises:
            UsageError: "bad-batch-size": it is not divisible by the number of processes.
        """
        if batch_size % self.world:
            raise UsageError(
                f"a batch size of {batch_size} is not divisible by {self.world} processes",
                code="bad-batch-size",
                next_step="Set batch_size to a multiple of the number of processes.",
            )
        return range(self.rank, batch_size, self.world)


class Batch(Protocol):
    """The samples of a training step; created on the CPU, then moved to the device."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the samples, for error messages: case, and slice where there is one."""
        ...

    def to(self, device: torch.device) -> Batch:
        """A copy of the batch on the device."""
        ...


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One network to train, with its batches, loss and validation.

    Attributes:
        name: of the stage, for logs and files.
        net: the network to train.
        config: number of epochs, batch size, optimizer, early stopping.
        steps: optimizer steps per epoch.
        batch: creates the batch of a step. A pure function of the step that reads nothing that
            training modifies within an epoch, so that worker processes can prefetch batches.
        loss: (network to call, batch) -> named scalars; "loss" is minimised, all are logged.
        validate: () -> named metrics; a higher "score" is better. The network is in eval mode. The
            cases are distributed over the processes.
        prepare: (step 0 of an epoch) -> nothing; called before each epoch with the network in eval
            mode, in every process; `batch` may read what it has prepared. With equal weights it
            does the same.
        trainable: prefixes of the names of the parameters to train; None: all. Modules without
            trainable parameters stay in eval mode, so that their norm statistics do not change.
        share: of the time that is left of the run's budget when the stage begins; see `shares`.
    """

    name: str
    net: nn.Module
    config: StageConfig
    steps: int
    batch: Callable[[TrainStep], Any]
    loss: Callable[[nn.Module, Any], dict[str, Tensor]]
    validate: Callable[[], dict[str, float]]
    prepare: Callable[[TrainStep], None] | None = None
    trainable: tuple[str, ...] | None = None
    share: float = 1.0


def shares(configs: Sequence[StageConfig]) -> list[float]:
    """The `share` of each of the stages of a run, in order; 1 for the last.

    The stages get parts of the time in proportion to their own budgets, if all have one; otherwise
    equal parts. What a stage leaves of its part goes to those after it.
    """
    own = [config.budget_s for config in configs if config.budget_s is not None]
    weights = own if len(own) == len(configs) else [1.0] * len(configs)
    return [weight / sum(weights[k:]) for k, weight in enumerate(weights)]
