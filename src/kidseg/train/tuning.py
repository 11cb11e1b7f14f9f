"""Fine-tuning: weights taken over from a model, and which of them go on learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from kidseg.errors import UsageError
from kidseg.methods import Method
from kidseg.stage import Stage

__all__ = ["TakenOver", "take_over", "tuned"]

_REGIMES = {
    "all": ("*",),
    "decoder": ("segment.up.*", "segment.decode.*", "segment.heads.*"),
    "ends": (
        *(f"segment.{block}.{k}.*" for block in ("encode", "down", "up", "decode") for k in (0, 1)),
        "segment.heads.*",
    ),
}
"""Patterns of what is trained. Levels count from the finest: the first two of the encoder are the
last two of the decoder. Source: La Barbera et al., ISBI 2021, table 1."""


@dataclass(frozen=True, kw_only=True)
class TakenOver:
    """What became of a model's tensors; names with their part, "segment.heads.0.weight".

    Attributes:
        loaded: how many tensors were taken over.
        fresh: those of the new networks that keep their fresh values: the model has none.
        reshaped: those that are fresh because the model's have another shape.
        unused: those of the model that the new networks do not have.
    """

    loaded: int
    fresh: tuple[str, ...]
    reshaped: tuple[str, ...]
    unused: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.loaded} tensors taken over from the model"
        for names, what in (
            (self.fresh, "fresh, as the model has none"),
            (self.reshaped, "fresh, as the model's have another shape"),
            (self.unused, "of the model not used"),
        ):
            if names:
                shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
                text += f"; {len(names)} {what} ({shown})"
        return text


def take_over(method: Method, parts: Mapping[str, Mapping[str, Tensor]]) -> TakenOver:
    """Give a method's networks the tensors of a model, name by name, where the shapes agree.

    Raises:
        UsageError: "nothing-taken-over": no weights fit; biases and the counters of norms, which
            fit networks of any size, do not count as such.
    """
    loaded, fresh, reshaped = 0, [], []
    weights = {
        f"{part}.{name}"
        for part, net in method.parts.items()
        for name, parameter in net.named_parameters()
        if parameter.ndim > 1
    }
    wanted = {
        f"{part}.{name}": tensor
        for part, net in method.parts.items()
        for name, tensor in net.state_dict().items()
    }
    known = {f"{part}.{name}": t for part, state in parts.items() for name, t in state.items()}
    with torch.no_grad():
        for name, tensor in wanted.items():
            if name not in known:
                fresh.append(name)
            elif known[name].shape != tensor.shape:
                reshaped.append(name)
            else:
                tensor.copy_(known[name])
                loaded += 1
    if weights <= {*fresh, *reshaped}:
        raise UsageError(
            "no weights of the model fit the networks of these settings",
            code="nothing-taken-over",
            next_step="Train with the settings of the model: 'kidseg info MODEL' shows them.",
        )
    return TakenOver(
        loaded=loaded,
        fresh=tuple(fresh),
        reshaped=tuple(reshaped),
        unused=tuple(name for name in known if name not in wanted),
    )


def tuned(stage: Stage, method: Method, tune: str) -> Stage | None:
    """A stage that trains only what is chosen; None if it has nothing of it.

    Args:
        stage: of the method.
        method: whose parts the stage trains.
        tune: see `kidseg.train.setup.Setup`.

    Raises:
        UsageError: "nothing-to-tune": no parameter of the method is chosen.
    """
    if tune == "all":
        return stage
    patterns = _REGIMES.get(tune) or tuple(part.strip() for part in tune.split(","))
    chosen = {
        id(parameter)
        for part, net in method.parts.items()
        for name, parameter in net.named_parameters()
        if any(fnmatchcase(f"{part}.{name}", pattern) for pattern in patterns)
    }
    if not chosen:
        raise UsageError(
            f"no parameter is called like '{tune}'",
            code="nothing-to-tune",
            next_step=f"Choose {', '.join(_REGIMES)}, or patterns of names such as "
            f"{_first_name(method.parts)}.",
        )
    names = tuple(name for name, p in stage.net.named_parameters() if id(p) in chosen)
    return replace(stage, trainable=names) if names else None


def _first_name(parts: Mapping[str, nn.Module]) -> str:
    return next(
        f"{part}.{name}" for part, net in parts.items() for name, _ in net.named_parameters()
    )
