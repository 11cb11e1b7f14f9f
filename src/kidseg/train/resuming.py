"""The log and the checkpoints of a stage: written after each epoch, verified when resumed.

The checkpoint is written before the line of the log, and contains all lines of its stage. So a line
in the log means that there is a checkpoint of its epoch or a later one; where there is none, it was
removed, and training from the start instead would not be the run that is to be resumed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kidseg.checkpoint import StageProgress, State, load_state, save_state, state_file
from kidseg.distributed import rank
from kidseg.errors import ModelError
from kidseg.io.atomic import writing
from kidseg.records import AFRESH, canonical, parsed
from kidseg.train.average import WeightAverage

__all__ = [
    "LOG",
    "Best",
    "Checkpoint",
    "Stopped",
    "Training",
    "read_log",
    "restore",
    "save",
    "saved_epoch",
]

LOG = "log.jsonl"

Stopped = Literal["epochs", "patience", "budget"]

_BUFFERS = {"SGD": {"momentum_buffer"}, "Adam": {"step", "exp_avg", "exp_avg_sq"}}
"""State of an optimizer for each parameter; all but "step" have the parameter's shape."""


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best epoch so far: its number, -1 before the first, its score and weights."""

    epoch: int = -1
    score: float = -math.inf
    net: Mapping[str, Tensor] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """What an optimizer step changes: network, optimizer, and the average of the weights if any."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where the training of a stage is.

    Attributes:
        epoch: the last one that is complete; -1 at the start.
        seconds: spent.
        stopped: why the stage ended; None while it goes on.
        best: the best epoch so far.
        lines: of the log, of all epochs.
        start: validation metrics before the first epoch, of a network that has learned before.
    """

    epoch: int = -1
    seconds: float = 0.0
    stopped: Stopped | None = None
    best: Best = Best()
    lines: tuple[Mapping[str, Any], ...] = ()
    start: Mapping[str, float] | None = None


def save(
    folder: Path,
    run: str,
    stage: str,
    training: Training,
    checkpoint: Checkpoint,
) -> None:
    """Write a checkpoint, then the line of its last epoch into the log.

    Args:
        folder: of the run.
        run: digest that identifies it.
        stage: its name.
        training: network, optimizer and average.
        checkpoint: after an epoch.
    """
    average, best = training.average, checkpoint.best
    state = State(
        progress=StageProgress(
            run=run,
            stage=stage,
            epoch=checkpoint.epoch,
            seconds=checkpoint.seconds,
            stopped=checkpoint.stopped,
            best_epoch=None if best.net is None else best.epoch,
            log=tuple(dict(line) for line in checkpoint.lines),
        ),
        parts={
            "net": training.net.state_dict(),
            "best": best.net or {},
            "average": {} if average is None else average.weights,
            "optimizer": {
                f"{index}.{name}": value
                for index, buffers in training.optimizer.state_dict()["state"].items()
                for name, value in buffers.items()
                if isinstance(value, Tensor)
            },
        },
    )
    save_state(state, state_file(folder, stage))
    _append(folder / LOG, checkpoint.lines[-1])


def restore(
    folder: Path,
    run: str,
    stage: str,
    training: Training,
    before: Sequence[str] = (),
) -> Checkpoint:
    """Load the checkpoint of a stage into network and optimizer; the start if there is none.

    Args:
        folder: of the run.
        run: digest that identifies it.
        stage: its name.
        training: network, optimizer and average.
        before: stages that come before it.

    Raises:
        ModelError: "damaged-state"; "missing-state": the log, or the checkpoint of a later stage,
            says that there was one; "state-of-another-run"; "damaged-log".
    """
    file = state_file(folder, stage)
    state = load_state(file)
    logged = [line for line in read_log(folder / LOG) if line["stage"] == stage]
    if state is None:
        known = {state_file(folder, name).stem for name in before}
        later = [p for p in _states(folder) if p.stem.removesuffix("-before") not in known]
        if logged or later:
            cause = f"the state of stage '{stage}' is missing, of which epochs were trained"
            raise ModelError(cause, path=file, next_step=AFRESH, code="missing-state")
        return Checkpoint()
    progress = state.progress
    if (progress.run, progress.stage) != (run, stage):
        raise ModelError(
            f"the state is of stage '{progress.stage}' of another run",
            path=file,
            next_step=AFRESH,
            code="state-of-another-run",
        )
    try:
        checkpoint = _checkpoint(state)
        _load(state, training)
    except ValueError as error:
        raise ModelError(
            f"the state does not fit this run: {error}",
            path=file,
            next_step=AFRESH,
            code="damaged-state",
        ) from error
    _check_log(folder / LOG, logged, checkpoint)
    return checkpoint


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; none if there is no log.

    Raises:
        ModelError: "damaged-log".
    """
    if not file.exists():
        return []
    lines = []
    try:
        for text in file.read_text().splitlines():
            line = parsed(text.encode())
            if not isinstance(line.get("stage"), str) or type(line.get("epoch")) is not int:
                raise ValueError(f"a line without stage and epoch: {text:.60}")
            lines.append(line)
    except (ValueError, OSError) as error:
        raise _damaged_log(file, str(error)) from error
    return lines


def saved_epoch(folder: Path) -> tuple[str, int] | None:
    """Stage and number of the last epoch that is saved in a run folder; None if there is none."""
    try:
        lines = read_log(folder / LOG)
    except ModelError:
        return None
    return (lines[-1]["stage"], lines[-1]["epoch"]) if lines else None


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.safetensors"))


def _checkpoint(state: State) -> Checkpoint:
    """The checkpoint of a state.

    Raises:
        ValueError: the best epoch is none of the log's.
    """
    progress = state.progress
    start = progress.log[0].get("start")
    best = Best()
    if progress.best_epoch is not None:
        if progress.best_epoch < 0:
            score = (start or {}).get("score")
        else:
            score = progress.log[progress.best_epoch].get("val_score")
        if not isinstance(score, int | float) or "best" not in state.parts:
            raise ValueError("it lacks the best weights or their score")
        best = Best(epoch=progress.best_epoch, score=float(score), net=state.parts["best"])
    if any(line.get("stage") != progress.stage for line in progress.log):
        raise ValueError("its log is of another stage")
    return Checkpoint(
        epoch=progress.epoch,
        seconds=progress.seconds,
        stopped=progress.stopped,
        best=best,
        lines=progress.log,
        start=start,
    )


def _load(state: State, training: Training) -> None:
    """Load tensors into network, optimizer and average.

    Raises:
        ValueError: names, shapes or types of the tensors are not those of the network.
    """
    net, optimizer, average = training.net, training.optimizer, training.average
    expected = net.state_dict()
    for part in ("net", "best", "average"):
        required = part == "net" or (part == "average" and average is not None)
        if part in state.parts or required:
            _check_tensors(part, state.parts.get(part, {}), expected)
    content = optimizer.state_dict()
    buffers: dict[int, dict[str, Tensor]] = {}
    for name, value in state.parts.get("optimizer", {}).items():
        index, _, key = name.partition(".")
        if not index.isdecimal():
            raise ValueError(f"unknown tensor 'optimizer.{name}'")
        buffers.setdefault(int(index), {})[key] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    wanted = _BUFFERS[type(optimizer).__name__]
    for number, found in buffers.items():
        if number >= len(parameters) or set(found) != wanted:
            raise ValueError(f"its optimizer has {sorted(found)} for parameter {number}")
        like = parameters[number].detach()
        scalars = {"step": torch.zeros(())}
        _check_tensors(f"optimizer.{number}", found, {k: scalars.get(k, like) for k in wanted})
    net.load_state_dict(dict(state.parts["net"]))
    if average is not None:
        average.load(state.parts["average"])
    optimizer.load_state_dict({**content, "state": buffers})


def _check_tensors(part: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if different := sorted(set(found) ^ set(expected)):
        raise ValueError(f"'{part}.{different[0]}' is missing or unknown")
    for name, value in found.items():
        like = expected[name]
        if (value.shape, value.dtype) != (like.shape, like.dtype):
            raise ValueError(
                f"'{part}.{name}' is {tuple(value.shape)} {value.dtype}, not"
                f" {tuple(like.shape)} {like.dtype}"
            )


def _check_log(file: Path, logged: Sequence[Mapping[str, Any]], checkpoint: Checkpoint) -> None:
    """Check the log against a checkpoint; add the last line if a kill came in between.

    After the current state was damaged, the log is one epoch ahead of the previous one.

    Raises:
        ModelError: "damaged-log".
    """
    lines = checkpoint.lines
    missing, ahead = len(lines) - len(logged), len(logged) - len(lines)
    common = zip(logged, lines, strict=False)
    if missing > 1 or ahead > 1 or any(canonical(a) != canonical(b) for a, b in common):
        raise _damaged_log(file, "its lines are not those of the trained epochs")
    if missing and rank() == 0:
        _append(file, lines[-1])


def _damaged_log(file: Path, cause: str) -> ModelError:
    return ModelError(
        f"the log is damaged: {cause}", path=file, next_step=AFRESH, code="damaged-log"
    )


def _append(file: Path, line: Mapping[str, Any]) -> None:
    """Append a line; replace the line of the same epoch, which is trained again after a fault."""
    kept = [
        old
        for old in read_log(file)
        if (old["stage"], old["epoch"]) != (line["stage"], line["epoch"])
    ]
    with writing(file, overwrite=True) as out:
        out.write("".join(f"{json.dumps(entry)}\n" for entry in [*kept, line]).encode())
