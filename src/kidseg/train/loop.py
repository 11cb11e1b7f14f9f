"""The loop: `fit` trains any stage of any method.

A stage brings its network, its batches, their loss and a validation score; the loop brings
everything else, read from top to bottom. Randomness belongs to (seed, stage, epoch, step), never to
what ran before, so a run killed at any moment and resumed ends with the same bits on the same
device. Under a budget of time, which no two runs spend alike, it goes on from the time that it had
spent.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from kidseg.checkpoint import load_state, save_state
from kidseg.config import OptimizerConfig, StageConfig
from kidseg.distributed import broadcast, share_norms
from kidseg.errors import KidsegError, ModelError, ResourceError
from kidseg.io.atomic import writing
from kidseg.stage import Batch, Stage, TrainStep

__all__ = ["Fitted", "Run", "fit"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where and on what a training runs; common to its stages.

    Attributes:
        folder: holds log.jsonl and the state.
        device: of the networks.
        seed: of all randomness.
        precision: "bf16" runs the forward passes under autocast; weights stay float32.
        resume: go on from the state in `folder`, if there is one.
        on_epoch: called after each epoch with (stage, epochs done, epochs planned, log line).
        clock: in seconds; what budgets are measured by.
        workers: processes that make batches ahead.
    """

    folder: Path
    device: torch.device
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    resume: bool = False
    on_epoch: Callable[[str, int, int, Mapping[str, Any]], None] | None = None
    clock: Callable[[], float] = time.perf_counter
    workers: int = 0

    @property
    def rank(self) -> int:
        """This process among those that train together (0 alone)."""
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def world(self) -> int:
        """How many processes train together."""
        return dist.get_world_size() if dist.is_initialized() else 1


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """How a stage went: the epoch that was kept, its score, epochs run, seconds of training."""

    epoch: int
    score: float
    epochs: int
    seconds: float
    stopped: Literal["epochs", "patience", "budget"]


def fit(stage: Stage, run: Run) -> Fitted:
    """Train a stage and leave the weights of its best validation score in `stage.net`.

    Writes a line per epoch to log.jsonl and, after each epoch, the state to resume from.

    Raises:
        ModelError: the loss is not finite; the message names epoch, step, losses and samples. Or
            the state to resume from is damaged.
        ResourceError: the device is out of memory; "worker-killed".
    """
    config, net = stage.config, stage.net.to(run.device)
    if run.world > 1:
        share_norms(net)
    frozen = freeze(net, stage.trainable)
    optimizer = _optimizer(net, config.optimizer)
    state_file = run.folder / f"state-{stage.name}.pt"
    first, best, spent, ended = _resumed(net, optimizer, state_file, run)
    called = DistributedDataParallel(net) if run.world > 1 else net
    stopped = ended or _why_stop(config, first, best, spent)
    epoch = first - 1
    while stopped is None:
        epoch += 1
        start = run.clock()
        rate = _set_rate(optimizer, config, epoch, spent)
        net.train()
        for module in frozen:
            module.train(False)
        losses = _Losses(stage.name, epoch)
        with _workers_named(stage.name, epoch):
            for index, batch in enumerate(batches(stage, run, epoch)):
                torch.manual_seed(_seed(run.seed, stage.name, epoch, index))
                with _memory_named(run):
                    there = batch.to(run.device)
                    with _autocast(run):
                        found = stage.loss(called, there)
                    losses.add(found, batch.names)
                    optimizer.zero_grad(set_to_none=True)
                    found["loss"].backward()  # type: ignore[no-untyped-call]
                if config.optimizer.clip_norm is not None:
                    nn.utils.clip_grad_norm_(net.parameters(), config.optimizer.clip_norm)
                optimizer.step()
        means = losses.means()
        net.eval()
        with torch.no_grad():
            figures = stage.validate()
        figures, spent = broadcast((figures, spent + run.clock() - start))
        if figures["score"] > best.score:
            best = _Best(epoch=epoch, score=figures["score"], net=copy.deepcopy(net.state_dict()))
        line = {
            "stage": stage.name,
            "epoch": epoch,
            "rate": rate,
            **_mean(means, run),
            **{f"val_{name}": value for name, value in figures.items()},
            "seconds": round(spent, 3),
        }
        stopped = _why_stop(config, epoch + 1, best, spent)
        if run.rank == 0:
            # The line first: an epoch that is trained again after a kill replaces its line, but
            # one that is not trained again could never add it.
            _log(run.folder / "log.jsonl", line)
            _save(state_file, net, optimizer, (epoch, spent, stopped), best)
            if run.on_epoch is not None:
                run.on_epoch(stage.name, epoch + 1, config.epochs, line)
    if best.net is not None:
        net.load_state_dict(best.net)
    net.eval()
    return Fitted(
        epoch=best.epoch, score=best.score, epochs=epoch + 1, seconds=spent, stopped=stopped
    )


def batches(stage: Stage, run: Run, epoch: int) -> Iterator[Batch]:
    """The batches of an epoch, made ahead by workers if there are any; the same in any case."""

    def batch(index: int) -> Batch:
        made: Batch = stage.batch(
            TrainStep(seed=run.seed, epoch=epoch, step=index, rank=run.rank, world=run.world)
        )
        return made

    if run.workers == 0:
        yield from map(batch, range(stage.steps))
        return
    from torch.utils.data import DataLoader

    for made in DataLoader(
        _Made(batch, stage.steps),
        batch_size=None,
        num_workers=run.workers,
        # The workers take stages as they are; what they read is mapped into memory.
        multiprocessing_context="fork",
        prefetch_factor=2,
    ):
        if isinstance(made, _Refused):
            raise made.kind(**made.words)
        yield made


@dataclass(frozen=True, kw_only=True)
class _Refused:
    """An error on purpose, as it comes from a worker: exceptions would lose all but their text."""

    kind: type[KidsegError]
    words: dict[str, Any]


class _Made(Dataset[Batch | _Refused]):
    """Batches by their number."""

    def __init__(self, batch: Callable[[int], Batch], count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch | _Refused:
        try:
            return self.batch(index)
        except KidsegError as error:
            return _Refused(kind=type(error), words=vars(error))


def freeze(net: nn.Module, trainable: Sequence[str] | None) -> list[nn.Module]:
    """Let only some parameters change, and say which modules stay as they are.

    Args:
        net: all its parameters can be trained.
        trainable: beginnings of the names of those that shall be; None: all.

    Returns:
        The modules without children in which nothing is trained and something is kept: to be left
        in eval mode, or the running statistics of their norms would go on.

    Raises:
        ValueError: no parameter is left to train.
    """
    if trainable is None:
        net.requires_grad_(True)
        return []
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(trainable)))
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError(f"no parameter's name begins with any of {tuple(trainable)}")
    return [
        module
        for module in net.modules()
        if not list(module.children())
        and list(module.parameters())
        and not any(parameter.requires_grad for parameter in module.parameters())
    ]


class _Losses:
    """The losses of an epoch, kept on the device: asking for each would wait for it each time."""

    CHECKED_EVERY = 32

    def __init__(self, stage: str, epoch: int) -> None:
        self.stage, self.epoch = stage, epoch
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.waiting: list[tuple[dict[str, Tensor], tuple[str, ...]]] = []

    def add(self, losses: Mapping[str, Tensor], names: tuple[str, ...]) -> None:
        """The losses of a step, and the names of its samples."""
        self.waiting.append(({name: value.detach() for name, value in losses.items()}, names))
        if losses["loss"].device.type == "cpu" or len(self.waiting) == self.CHECKED_EVERY:
            self._look()

    def means(self) -> dict[str, float]:
        """Of all steps."""
        self._look()
        return {name: total / self.steps for name, total in self.sums.items()}

    def _look(self) -> None:
        """Add up what waits.

        Raises:
            ModelError: "loss-not-finite".
        """
        for losses, names in self.waiting:
            values = {name: float(value) for name, value in losses.items()}
            if not math.isfinite(values["loss"]):
                raise ModelError(
                    f"the loss of stage '{self.stage}' is not finite in epoch {self.epoch}, step"
                    f" {self.steps}: {values}; samples: {', '.join(names)}",
                    next_step="Lower the learning rate, or use precision fp32; --resume goes on "
                    "from the last epoch.",
                    code="loss-not-finite",
                )
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.steps += 1
        self.waiting.clear()


def _resumed(
    net: nn.Module, optimizer: torch.optim.Optimizer, file: Path, run: Run
) -> tuple[int, _Best, float, Literal["budget"] | None]:
    """The first epoch to train, the best so far, seconds spent, and "budget" if that ended it."""
    if not run.resume or (state := load_state(file, run.device)) is None:
        return 0, _Best(), 0.0, None
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    best = _Best(epoch=state["best_epoch"], score=state["best_score"], net=state["best_net"])
    # What was left of a whole training's budget cannot be told again: it may seem more now, and
    # later stages have learned from this one as it ended.
    ended: Literal["budget"] | None = "budget" if state.get("stopped") == "budget" else None
    return state["epoch"] + 1, best, state["seconds"], ended


def _save(
    file: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    where: tuple[int, float, str | None],
    best: _Best,
) -> None:
    """Keep what resuming takes; `where` is epoch, seconds spent and why training stopped."""
    epoch, seconds, stopped = where
    state = {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": epoch,
        "seconds": seconds,
        "stopped": stopped,
        "best_epoch": best.epoch,
        "best_score": best.score,
        "best_net": best.net,
    }
    save_state(state, file)


@dataclass(frozen=True, kw_only=True)
class _Best:
    epoch: int = -1
    score: float = -math.inf
    net: dict[str, Tensor] | None = None


def _why_stop(
    config: StageConfig, epochs: int, best: _Best, spent: float
) -> Literal["epochs", "patience", "budget"] | None:
    """The reason to end after so many epochs, or None to go on."""
    if epochs >= config.epochs:
        return "epochs"
    if config.budget_s is not None and spent >= config.budget_s:
        return "budget"
    waited = epochs - 1 - best.epoch
    if config.patience is not None and epochs >= config.min_epochs and waited >= config.patience:
        return "patience"
    return None


def _optimizer(net: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    weights = [p for p in net.parameters() if p.requires_grad]
    if config.name == "adam":
        return torch.optim.Adam(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        weights,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )


def _set_rate(
    optimizer: torch.optim.Optimizer, config: StageConfig, epoch: int, spent: float
) -> float:
    """Polynomial decay over the epochs or over the budget, whichever is further gone.

    Source: Chen et al., DeepLab, TPAMI 2018.
    """
    gone = epoch / config.epochs
    if config.budget_s is not None:
        gone = max(gone, spent / config.budget_s)
    rate: float = config.optimizer.learning_rate * (1 - gone) ** config.optimizer.poly_power
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _seed(*parts: object) -> int:
    """A seed of 63 bits that depends on every part, and on nothing else."""
    import hashlib

    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _mean(sums: dict[str, float], run: Run) -> dict[str, float]:
    """The mean over the processes."""
    if run.world == 1:
        return sums
    values = torch.tensor(list(sums.values()), device=run.device)
    dist.all_reduce(values)
    return dict(zip(sums, (values / run.world).tolist(), strict=True))


def _autocast(run: Run) -> AbstractContextManager[Any]:
    if run.precision == "bf16":
        return torch.autocast(run.device.type, dtype=torch.bfloat16)
    return nullcontext()


class _memory_named(AbstractContextManager[None]):  # noqa: N801
    """Turn a device's out-of-memory into an error that says what to do."""

    def __init__(self, run: Run) -> None:
        self.device = run.device

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise ResourceError(
                f"not enough memory on {self.device}",
                next_step="Set a smaller batch_size, or use precision bf16.",
                code="out-of-memory",
            ) from error


class _workers_named(AbstractContextManager[None]):  # noqa: N801
    """Turn the end of a worker into an error that says what to do.

    torch raises it from a signal's handler, wherever this process is: in a forward pass, too.
    """

    def __init__(self, stage: str, epoch: int) -> None:
        self.stage, self.epoch = stage, epoch

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # What goes wrong within a worker bears the first of these words, too.
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
            raise ResourceError(
                f"a worker that makes batches was killed in stage '{self.stage}', epoch"
                f" {self.epoch}",
                next_step="Most often memory ran out: set fewer workers; --resume goes on.",
                code="worker-killed",
            ) from error


def _log(file: Path, line: Mapping[str, Any]) -> None:
    """Append one line; a line of an epoch that is trained again after a kill replaces the old."""
    lines = file.read_text().splitlines() if file.exists() else []
    kept = []
    for old in lines:
        entry = json.loads(old)
        if (entry["stage"], entry["epoch"]) != (line["stage"], line["epoch"]):
            kept.append(old)
    with writing(file, overwrite=True) as out:
        out.write("".join(f"{entry}\n" for entry in [*kept, json.dumps(line)]).encode())
