"""Fine-tuning: load the weights of a model, and select the parameters to train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from kidseg.device import choose_device
from kidseg.errors import UsageError
from kidseg.labels import KIDNEY_TUMOUR, Target
from kidseg.methods import Method
from kidseg.plan import Plan
from kidseg.stage import Stage

__all__ = [
    "LoadedWeights",
    "between_neighbours",
    "check_tune",
    "has_learned",
    "load_weights",
    "select_trainable",
]

_REGIMES = {
    "all": ("*",),
    "decoder": ("*.up.*", "*.decode.*", "*.last.*", "*.heads.*"),
    "ends": (
        *(f"*.{block}.{k}.*" for block in ("encode", "down", "up", "decode") for k in (0, 1)),
        "*.last.*",
        "*.heads.*",
    ),
}
"""Patterns of the trainable parameters, of every network with an encoder and a decoder. Levels
count from the finest, so the first two of the encoder are the last two of the decoder; `last` is
the norm before the output of a residual network.
Source: La Barbera et al., ISBI 2021, table 1."""


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """Result of loading weights; names include the part, as in "segment.heads.0.weight".

    Attributes:
        loaded: number of tensors loaded.
        widened: those of them that see neighbouring slices now; these count nothing at first.
        fresh: tensors that keep their initial values because the model lacks them.
        reshaped: tensors that keep their initial values because the model's have another shape.
        unused: tensors of the model that the new networks lack.
    """

    loaded: int
    widened: tuple[str, ...]
    fresh: tuple[str, ...]
    reshaped: tuple[str, ...]
    unused: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.loaded} tensors loaded from the model"
        for names, description in (
            (self.widened, "see neighbouring slices now"),
            (self.fresh, "newly initialised (missing in the model)"),
            (self.reshaped, "newly initialised (other shape in the model)"),
            (self.unused, "of the model not used"),
        ):
            if names:
                examples = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
                text += f"; {len(names)} {description}: {examples}"
        return text


def load_weights(method: Method, parts: Mapping[str, Mapping[str, Tensor]]) -> LoadedWeights:
    """Load the tensors of a model with matching names and shapes into a method's networks.

    A model that saw one slice can be trained further with its neighbours (setting `reach`): at
    first they count nothing, so that the result is the model's.

    Raises:
        UsageError: "nothing-taken-over": no weights match. Biases and the counters of norms, which
            match networks of any size, do not count.
    """
    loaded, widened, fresh, reshaped = 0, [], [], []
    shown = 2 * getattr(method.config, "reach", 0) + 1
    channels = len(method.plan.channels)
    learned = {
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
                continue
            weights = known[name]
            if _saw_one_slice(weights, tensor, channels, shown):
                weights = between_neighbours(weights, shown)
                widened.append(name)
            if weights.shape != tensor.shape:
                reshaped.append(name)
                continue
            tensor.copy_(weights)
            loaded += 1
    if learned <= {*fresh, *reshaped}:
        raise UsageError(
            "no weights of the model match the networks of these settings",
            code="nothing-taken-over",
            next_step="Train with the settings of the model: 'kidseg info MODEL' shows them.",
        )
    return LoadedWeights(
        loaded=loaded,
        widened=tuple(widened),
        fresh=tuple(fresh),
        reshaped=tuple(reshaped),
        unused=tuple(name for name in known if name not in wanted),
    )


def _saw_one_slice(weights: Tensor, wanted: Tensor, channels: int, shown: int) -> bool:
    """Are these kernels of the image, and those wanted of it and its neighbours?"""
    if shown == 1 or weights.ndim < 2:
        return False
    shape = (weights.shape[0], channels * shown, *weights.shape[2:])
    return weights.shape[1] == channels and wanted.shape == shape


def between_neighbours(weights: Tensor, shown: int) -> Tensor:
    """Kernels of a slice with zeros for its neighbours on either side; `shown` slices in all."""
    beside = torch.zeros_like(weights)
    half = shown // 2
    return torch.cat([beside] * half + [weights] + [beside] * half, dim=1)


def select_trainable(
    stage: Stage, method: Method, tune: str, loaded: LoadedWeights | None = None
) -> Stage | None:
    """Restrict a stage to the selected parameters; None if it has none of them.

    Parameters that the model did not provide are always trained.

    Args:
        stage: of the method.
        method: whose parts the stage trains.
        tune: see `kidseg.train.setup.Setup`.
        loaded: what the model provided; None: all.

    Raises:
        UsageError: "nothing-to-tune": no parameter of the method is selected.
    """
    if tune == "all":
        return stage
    selected = _selected(method.parts, tune)
    if loaded is not None:
        selected |= _new(method, loaded)
    names = tuple(name for name, p in stage.net.named_parameters() if id(p) in selected)
    return replace(stage, trainable=names) if names else None


def has_learned(stage: Stage, method: Method, loaded: LoadedWeights | None) -> bool:
    """Whether all parameters of a stage's network are a model's.

    Args:
        stage: of the method.
        method: whose parts the stage trains.
        loaded: what the model provided; None: there is no model.
    """
    if loaded is None:
        return False
    new = _new(method, loaded)
    return not any(id(parameter) in new for parameter in stage.net.parameters())


def _new(method: Method, loaded: LoadedWeights) -> set[int]:
    """Identities of the parameters that a model did not provide."""
    names = {*loaded.fresh, *loaded.reshaped}
    return {
        id(parameter)
        for part, net in method.parts.items()
        for name, parameter in net.named_parameters()
        if f"{part}.{name}" in names
    }


def check_tune(method: type[Method], config: Any, plan: Plan | None, tune: str) -> None:
    """Check that something is selected for training, before the data set is read.

    The names of the parameters do not depend on the data set.

    Args:
        method: to train.
        config: its settings.
        plan: of the model to fine-tune; None: without one, everything is trained.
        tune: see `kidseg.train.setup.Setup`.

    Raises:
        UsageError: "nothing-to-tune".
    """
    if plan is None or tune == "all":
        return
    target = Target.of_labels(KIDNEY_TUMOUR)
    device = choose_device("cpu", "fp32")
    _selected(method.build(config, target, plan, device=device).parts, tune)


def _selected(parts: Mapping[str, nn.Module], tune: str) -> set[int]:
    """Identities of the parameters whose names match.

    Raises:
        UsageError: "nothing-to-tune".
    """
    patterns = _REGIMES.get(tune) or tuple(part.strip() for part in tune.split(","))
    selected = {
        id(parameter)
        for part, net in parts.items()
        for name, parameter in net.named_parameters()
        if any(fnmatchcase(f"{part}.{name}", pattern) for pattern in patterns)
    }
    if not selected:
        raise UsageError(
            f"no parameter name matches '{tune}'",
            code="nothing-to-tune",
            next_step=f"Choose {', '.join(_REGIMES)}, or patterns of names such as "
            f"{_first_name(parts)}.",
        )
    return selected


def _first_name(parts: Mapping[str, nn.Module]) -> str:
    return next(
        f"{part}.{name}" for part, net in parts.items() for name, _ in net.named_parameters()
    )
