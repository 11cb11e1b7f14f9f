"""The training loop: `fit` trains any stage of any method.

A stage provides the network, batches, loss and validation score; the loop does everything else.
Random numbers depend only on (seed, stage, epoch, step), so a run that is killed at any moment and
resumed is bit-identical to an uninterrupted one on the same device. A time budget is not
reproducible; a resumed run continues from the time already spent.
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
from kidseg.train.epochs import seconds_left

__all__ = ["Fitted", "Run", "fit"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Settings of a training run that all stages share.

    Attributes:
        folder: of log.jsonl and the checkpoints.
        device: of the networks.
        seed: of all random numbers.
        precision: "bf16" runs the forward passes under autocast; weights stay float32.
        resume: continue from the checkpoint in `folder`, if there is one.
        on_epoch: called after each epoch with (stage, epochs done, total epochs, log line and the
            seconds left, "left_s").
        clock: returns seconds; measures time budgets.
        workers: processes that prefetch batches.
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
        """Rank of this process in distributed training; 0 without."""
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def world(self) -> int:
        """Number of processes in distributed training; 1 without."""
        return dist.get_world_size() if dist.is_initialized() else 1


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Result of a stage: best epoch and its score, epochs run, seconds, reason for stopping."""

    epoch: int
    score: float
    epochs: int
    seconds: float
    stopped: Literal["epochs", "patience", "budget"]


def fit(stage: Stage, run: Run) -> Fitted:
    """Train a stage and load the weights of the best validation score into `stage.net`.

    After each epoch, writes a line to log.jsonl and a checkpoint to resume from.

    Raises:
        ModelError: "loss-not-finite"; the message names epoch, step, losses and samples. Or the
            checkpoint is damaged.
        ResourceError: "out-of-memory" on the device; "worker-killed".
    """
    config, net = stage.config, stage.net.to(run.device)
    if run.world > 1:
        share_norms(net)
    frozen = freeze(net, stage.trainable)
    optimizer = _optimizer(net, config.optimizer)
    state_file = run.folder / f"state-{stage.name}.pt"
    first, best, spent, ended = _load_checkpoint(net, optimizer, state_file, run)
    called = DistributedDataParallel(net) if run.world > 1 else net
    stopped = ended or _stop_reason(config, first, best, spent)
    epoch = first - 1
    while stopped is None:
        epoch += 1
        start = run.clock()
        rate = _set_rate(optimizer, config, epoch, spent)
        net.train()
        for module in frozen:
            module.train(False)
        losses = _train_epoch(stage, run, called, optimizer, epoch)
        net.eval()
        with torch.no_grad():
            metrics = stage.validate()
        metrics, spent = broadcast((metrics, spent + run.clock() - start))
        if metrics["score"] > best.score:
            best = _Best(epoch=epoch, score=metrics["score"], net=copy.deepcopy(net.state_dict()))
        line = {
            "stage": stage.name,
            "epoch": epoch,
            "rate": rate,
            **_mean(losses, run),
            **{f"val_{name}": value for name, value in metrics.items()},
            "seconds": round(spent, 3),
        }
        stopped = _stop_reason(config, epoch + 1, best, spent)
        if run.rank == 0:
            # The log before the checkpoint: after a kill in between, the epoch is trained again and
            # its line replaced. In the other order, the line would be missing.
            _log(run.folder / "log.jsonl", line)
            _save_checkpoint(state_file, net, optimizer, (epoch, spent, stopped), best)
            if run.on_epoch is not None:
                left_s = seconds_left(config, epoch + 1, spent)
                run.on_epoch(stage.name, epoch + 1, config.epochs, {**line, "left_s": left_s})
    if best.net is not None:
        net.load_state_dict(best.net)
    net.eval()
    return Fitted(
        epoch=best.epoch, score=best.score, epochs=epoch + 1, seconds=spent, stopped=stopped
    )


def _train_epoch(
    stage: Stage, run: Run, called: nn.Module, optimizer: torch.optim.Optimizer, epoch: int
) -> dict[str, float]:
    """Run the optimizer steps of an epoch; the mean losses of this process."""
    clip_norm = stage.config.optimizer.clip_norm
    losses = _Losses(stage.name, epoch)
    with _convert_killed_worker(stage.name, epoch):
        for index, batch in enumerate(batches(stage, run, epoch)):
            torch.manual_seed(_seed(run.seed, stage.name, epoch, index))
            with _convert_out_of_memory(run):
                on_device = batch.to(run.device)
                with _autocast(run):
                    values = stage.loss(called, on_device)
                losses.add(values, batch.names)
                optimizer.zero_grad(set_to_none=True)
                values["loss"].backward()  # type: ignore[no-untyped-call]
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(stage.net.parameters(), clip_norm)
            optimizer.step()
    return losses.means()


def batches(stage: Stage, run: Run, epoch: int) -> Iterator[Batch]:
    """The batches of an epoch; identical with and without workers that prefetch them."""

    def batch(index: int) -> Batch:
        created: Batch = stage.batch(
            TrainStep(seed=run.seed, epoch=epoch, step=index, rank=run.rank, world=run.world)
        )
        return created

    if run.workers == 0:
        yield from map(batch, range(stage.steps))
        return
    from torch.utils.data import DataLoader

    for item in DataLoader(
        _Batches(batch, stage.steps),
        batch_size=None,
        num_workers=run.workers,
        # Stages cannot be pickled; with fork, workers share them and the memory-mapped voxels.
        multiprocessing_context="fork",
        prefetch_factor=2,
    ):
        if isinstance(item, _WorkerError):
            raise item.kind(**item.attributes)
        yield item


@dataclass(frozen=True, kw_only=True)
class _WorkerError:
    """A KidsegError from a worker; DataLoader would keep only the text of the exception."""

    kind: type[KidsegError]
    attributes: dict[str, Any]


class _Batches(Dataset[Batch | _WorkerError]):
    """The batches of an epoch, by index."""

    def __init__(self, batch: Callable[[int], Batch], count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch | _WorkerError:
        try:
            return self.batch(index)
        except KidsegError as error:
            return _WorkerError(kind=type(error), attributes=vars(error))


def freeze(net: nn.Module, trainable: Sequence[str] | None) -> list[nn.Module]:
    """Freeze all parameters except the trainable ones.

    Args:
        net: the network.
        trainable: prefixes of the names of the trainable parameters; None: all.

    Returns:
        The leaf modules whose parameters are all frozen. Keep them in eval mode, so that the
        running statistics of their norms do not change.

    Raises:
        ValueError: no parameter is trainable.
    """
    if trainable is None:
        net.requires_grad_(True)
        return []
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(trainable)))
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise ValueError(f"no parameter name starts with any of {tuple(trainable)}")
    return [
        module
        for module in net.modules()
        if not list(module.children())
        and list(module.parameters())
        and not any(parameter.requires_grad for parameter in module.parameters())
    ]


class _Losses:
    """The losses of an epoch, kept on the device: reading each would synchronise it every step."""

    CHECK_INTERVAL = 32

    def __init__(self, stage: str, epoch: int) -> None:
        self.stage, self.epoch = stage, epoch
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.pending: list[tuple[dict[str, Tensor], tuple[str, ...]]] = []

    def add(self, losses: Mapping[str, Tensor], names: tuple[str, ...]) -> None:
        """Add the losses of a step, with the names of its samples."""
        self.pending.append(({name: value.detach() for name, value in losses.items()}, names))
        if losses["loss"].device.type == "cpu" or len(self.pending) == self.CHECK_INTERVAL:
            self._flush()

    def means(self) -> dict[str, float]:
        """The means over all steps."""
        self._flush()
        return {name: total / self.steps for name, total in self.sums.items()}

    def _flush(self) -> None:
        """Check and sum the pending losses.

        Raises:
            ModelError: "loss-not-finite".
        """
        for losses, names in self.pending:
            values = {name: float(value) for name, value in losses.items()}
            if not math.isfinite(values["loss"]):
                raise ModelError(
                    f"the loss of stage '{self.stage}' is not finite in epoch {self.epoch}, step"
                    f" {self.steps}: {values}; samples: {', '.join(names)}",
                    next_step="Lower the learning rate, or use precision fp32; --resume continues "
                    "from the last epoch.",
                    code="loss-not-finite",
                )
            for name, value in values.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.steps += 1
        self.pending.clear()


def _load_checkpoint(
    net: nn.Module, optimizer: torch.optim.Optimizer, file: Path, run: Run
) -> tuple[int, _Best, float, Literal["budget"] | None]:
    """Resume from a checkpoint, if there is one.

    Returns the first epoch to train, the best epoch so far, seconds spent, and "budget" if the
    budget ended the stage.
    """
    if not run.resume or (state := load_state(file, run.device)) is None:
        return 0, _Best(), 0.0, None
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    best = _Best(epoch=state["best_epoch"], score=state["best_score"], net=state["best_net"])
    # The time left in the budget of the run is not reproducible and may seem larger now, but later
    # stages have been trained on the result of this one.
    ended: Literal["budget"] | None = "budget" if state.get("stopped") == "budget" else None
    return state["epoch"] + 1, best, state["seconds"], ended


def _save_checkpoint(
    file: Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: tuple[int, float, str | None],
    best: _Best,
) -> None:
    """Save a checkpoint; `position` is epoch, seconds spent and reason for stopping."""
    epoch, seconds, stopped = position
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


def _stop_reason(
    config: StageConfig, epochs: int, best: _Best, spent: float
) -> Literal["epochs", "patience", "budget"] | None:
    """The reason to stop after this number of epochs; None to continue."""
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
    """Polynomial decay over the epochs or the time budget, whichever has progressed further.

    Source: Chen et al., DeepLab, TPAMI 2018.
    """
    fraction = epoch / config.epochs
    if config.budget_s is not None:
        fraction = max(fraction, spent / config.budget_s)
    rate: float = config.optimizer.learning_rate * (1 - fraction) ** config.optimizer.poly_power
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _seed(*parts: object) -> int:
    """A 63-bit seed that depends only on the parts."""
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


class _convert_out_of_memory(AbstractContextManager[None]):  # noqa: N801
    """Convert an OutOfMemoryError of torch to a ResourceError."""

    def __init__(self, run: Run) -> None:
        self.device = run.device

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            raise ResourceError(
                f"not enough memory on {self.device}",
                next_step="Set a smaller batch_size, or use precision bf16.",
                code="out-of-memory",
            ) from error


class _convert_killed_worker(AbstractContextManager[None]):  # noqa: N801
    """Convert the error for a killed worker to a ResourceError.

    torch raises it from a signal handler, so at any point of this process, even in a forward pass.
    """

    def __init__(self, stage: str, epoch: int) -> None:
        self.stage, self.epoch = stage, epoch

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Exceptions raised inside a worker also mention "DataLoader worker", but without "(pid".
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid"):
            raise ResourceError(
                f"a worker that prefetches batches was killed in stage '{self.stage}', epoch"
                f" {self.epoch}",
                next_step="Usually memory ran out: set fewer workers, then continue with --resume.",
                code="worker-killed",
            ) from error


def _log(file: Path, line: Mapping[str, Any]) -> None:
    """Append a line; replace the line of the same epoch, which is trained again after a kill."""
    lines = file.read_text().splitlines() if file.exists() else []
    kept = []
    for old in lines:
        entry = json.loads(old)
        if (entry["stage"], entry["epoch"]) != (line["stage"], line["epoch"]):
            kept.append(old)
    with writing(file, overwrite=True) as out:
        out.write("".join(f"{entry}\n" for entry in [*kept, json.dumps(line)]).encode())
