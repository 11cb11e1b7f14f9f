"""Watch the losses of an epoch: a value that is not finite stops the training and names its place.

A network that diverges shows it anywhere: in the loss, in a grid that its output places, in the
validation, or only in its weights. Each becomes one error, which names the stage, the epoch and the
samples, and the state of before is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kidseg.errors import DivergedError, ModelError, is_out_of_memory

__all__ = ["EpochLosses", "finite_metrics"]


class EpochLosses:
    """The losses of an epoch, kept on the device: reading each would synchronise it every step."""

    CHECK_INTERVAL = 32

    def __init__(self, stage: str, epoch: int, net: nn.Module) -> None:
        self.stage, self.epoch, self.net = stage, epoch, net
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.names: tuple[str, ...] = ()
        self.pending: list[tuple[dict[str, Tensor], tuple[str, ...]]] = []

    @contextmanager
    def step(self, names: tuple[str, ...]) -> Iterator[None]:
        """A step with these samples: what fails in it because of diverged weights is said to be.

        Raises:
            ModelError: "loss-not-finite".
        """
        self.names = names
        try:
            yield
        except (DivergedError, ValueError, RuntimeError, ArithmeticError) as error:
            if is_out_of_memory(error):
                raise
            self._flush()
            if isinstance(error, DivergedError) or not _has_finite_weights(self.net):
                step = self.steps + len(self.pending)
                raise self._error(f"step {step}: {error}", names) from error
            raise

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Add the losses of the step."""
        values = {name: value.detach() for name, value in losses.items()}
        self.pending.append((values, self.names))
        if losses["loss"].device.type == "cpu" or len(self.pending) == self.CHECK_INTERVAL:
            self._flush()

    def means(self) -> dict[str, float]:
        """The means over all steps.

        Raises:
            ModelError: "loss-not-finite": a loss is not, or a weight after the last step.
        """
        self._flush()
        if not _has_finite_weights(self.net):
            step = f"after step {self.steps - 1}: its weights are not"
            raise self._error(step, self.names)
        return {name: total / self.steps for name, total in self.sums.items()}

    def _flush(self) -> None:
        """Check and sum the pending losses.

        Raises:
            ModelError: "loss-not-finite".
        """
        pending, self.pending = self.pending, []
        for losses, names in pending:
            values = {name: float(value) for name, value in losses.items()}
            if not all(map(math.isfinite, values.values())):
                raise self._error(f"step {self.steps}: {values}", names)
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.steps += 1

    def _error(self, where: str, names: tuple[str, ...]) -> ModelError:
        return _error(
            f"the loss of stage '{self.stage}' is not finite in epoch {self.epoch}, {where}", names
        )


@contextmanager
def finite_metrics(losses: EpochLosses) -> Iterator[dict[str, float]]:
    """Fill in the metrics of the validation after an epoch; they must be finite.

    Raises:
        ModelError: "loss-not-finite".
    """
    metrics: dict[str, float] = {}
    place = f"the validation of stage '{losses.stage}' is not finite in epoch {losses.epoch}"
    try:
        yield metrics
    except (DivergedError, ValueError, RuntimeError, ArithmeticError) as error:
        if isinstance(error, DivergedError):
            raise _error(f"{place}: {error}", losses.names) from error
        raise
    if not all(map(math.isfinite, metrics.values())):
        raise _error(f"{place}: {metrics}", losses.names)


def _error(cause: str, names: tuple[str, ...]) -> ModelError:
    return ModelError(
        f"{cause}; samples: {', '.join(names)}",
        next_step="Lower the learning rate, or use precision fp32; --resume continues from the last"
        " epoch.",
        code="loss-not-finite",
    )


def _has_finite_weights(net: nn.Module) -> bool:
    """Are all weights and statistics finite? One synchronisation of the device."""
    values = [value for value in net.state_dict().values() if value.is_floating_point()]
    return bool(torch.stack([value.isfinite().all() for value in values]).all()) if values else True
