"""What is trained, with which settings, on which cases: what training and making a store share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kidseg.checkpoint import Model, load_model
from kidseg.config import METHODS, load, preset
from kidseg.errors import KidsegWarning, ModelError, UsageError
from kidseg.methods import Method, method_named
from kidseg.plan import Plan

__all__ = ["Configured", "Setup", "check_start", "configured", "planned_as"]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is asked for.

    Attributes:
        method: one of `kidseg.registry.METHODS`; None: that of `start`, else the first.
        preset: settings that come with the package.
        config_file: TOML, over the preset.
        overrides: "key=value", over both.
        start: a model file to go on from: its weights, its plan and, under all others, its
            settings.
        tune: which of its parameters are trained: "all", "decoder", "ends" (the first two blocks of
            the encoder and the last two of the decoder), or patterns as of file names, separated by
            commas, of parameters' names ("segment.decode.*").
        cases: ids, to train and validate on these alone; None: all labelled cases, or the store's.
        validation: ids, to validate on these; None: a share of the patients, stratified, or the
            store's.
        seed: of all randomness; the split's too.
        jobs: processes that read the data set.
    """

    method: str | None = None
    preset: str | None = None
    config_file: Path | None = None
    overrides: Sequence[str] = ()
    start: Path | None = None
    tune: str = "all"
    cases: Sequence[str] | None = None
    validation: Sequence[str] | None = None
    seed: int = 0
    jobs: int = 1


@dataclass(frozen=True, kw_only=True)
class Configured:
    """A setup made definite.

    Attributes:
        method: what is trained.
        config: its settings.
        start: the model to go on from.
        plan: that it was made with.
    """

    method: type[Method]
    config: Any
    start: Model | None = None
    plan: Plan | None = None


def configured(setup: Setup) -> Configured:
    """A setup with its settings resolved and its model read.

    Raises:
        UsageError: "other-method": the model is of another; "tune-without-model"; as
            `method_named`, `preset` and `load`.
        InputError: as `load`.
        ModelError: as `load_model`; "damaged-model".
    """
    if setup.start is None:
        if setup.tune != "all":
            raise UsageError(
                "there is no model of which a part could be trained",
                code="tune-without-model",
                next_step="Name one with --from.",
            )
        name = setup.method or next(iter(METHODS))
        base = None if setup.preset is None else preset(setup.preset, name)
        return Configured(method=method_named(name), config=_loaded(name, setup, base))
    model = load_model(setup.start)
    name = setup.method or str(model.header.get("method"))
    if name != model.header.get("method"):
        raise UsageError(
            f"it is a model of method '{model.header.get('method')}', not '{name}'",
            path=setup.start,
            code="other-method",
            next_step="Leave out --method, or start from another model.",
        )
    try:
        plan = Plan.from_dict(model.header["plan"])
        base = dict(model.header["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"does not hold what its header says: {error}", path=setup.start, code="damaged-model"
        ) from error
    if setup.preset is not None:
        base = _over(base, preset(setup.preset, name))
    config = _loaded(name, setup, base)
    return Configured(method=method_named(name), config=config, start=model, plan=plan)


def planned_as(
    start: Plan, channels: Sequence[str], training: Sequence[str], labels: dict[int, str]
) -> Plan:
    """The plan of a model to go on from, for other cases: their voxels have no say in it.

    Args:
        start: the model's.
        channels: names of the data set's.
        training: ids of the cases that are trained on.
        labels: their numbers and names.

    Raises:
        UsageError: as `check_start`.
    """
    check_start(start, channels, labels)
    return replace(start, training=tuple(training), labels=labels)


def check_start(start: Plan, channels: Sequence[str], labels: Mapping[int, str]) -> None:
    """Warn of channels, or of as many labels, that a model to go on from calls otherwise.

    Args:
        start: the model's.
        channels: names of the data set's.
        labels: their numbers and names.

    Raises:
        UsageError: "other-channels": another number of channels.
    """
    known = [channel.channel for channel in start.channels]
    if len(known) != len(channels):
        raise UsageError(
            f"the model takes {len(known)} channel(s), the data set has {len(channels)}",
            code="other-channels",
            next_step="Start from a model of the same channels.",
        )
    if known != list(channels):
        warnings.warn(
            f"the model was trained on channels called {known}; these are {list(channels)}",
            KidsegWarning,
            stacklevel=2,
        )
    if len(start.labels) == len(labels) and start.labels != labels:
        warnings.warn(
            f"the model was trained on labels called {list(start.labels.values())}; these are"
            f" {list(labels.values())}; its outputs are taken over in this order where they fit",
            KidsegWarning,
            stacklevel=2,
        )


def _loaded(name: str, setup: Setup, base: dict[str, Any] | None) -> Any:
    if name not in METHODS:
        method_named(name)
    return load(METHODS[name], base=base, file=setup.config_file, overrides=setup.overrides)


def _over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables merged key by key; of two values the upper wins."""
    out = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _over(out[key], value) if both else value
    return out
