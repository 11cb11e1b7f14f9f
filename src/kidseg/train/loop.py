"""The training loop: `fit` trains any stage of any method.

A stage provides the network, batches, loss and validation score; the loop does everything else.
Random numbers depend only on (seed, stage, epoch, step), so a run that is killed at any moment and
resumed is bit-identical to an uninterrupted one on the same device. A time budget is not
reproducible; a resumed run continues from the time already spent.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kidseg.config import OptimizerConfig, StageConfig
from kidseg.device import repeatable_convolutions
from kidseg.distributed import broadcast, share_norms
from kidseg.errors import ResourceError, is_out_of_memory
from kidseg.stage import Batch, Stage, TrainStep
from kidseg.train.average import WeightAverage
from kidseg.train.epochs import seconds_left
from kidseg.train.finite import EpochLosses, finite_metrics
from kidseg.train.prefetch import convert_killed_worker, prefetched
from kidseg.train.resuming import Best, Checkpoint, Stopped, Training, restore, save

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
        identity: digest of the settings and cases, which a checkpoint to resume from must have.
        on_trained: called when an epoch is trained, before its checkpoint is written.
        on_epoch: called after each epoch with (stage, epochs done, total epochs, log line and the
            seconds left, "left_s"); with 0 epochs done, and validation metrics alone, of a network
            that has learned before.
        clock: returns seconds; measures time budgets.
        workers: processes that prefetch batches.
    """

    folder: Path
    device: torch.device
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    resume: bool = False
    identity: str = ""
    on_trained: Callable[[], None] | None = None
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
    """Result of a stage.

    Attributes:
        epoch: the best one; -1 is before the first.
        score: of that epoch.
        epochs: that were run.
        seconds: spent.
        stopped: why it ended.
        metrics: of the validation after the best epoch.
        start: of the validation before the first epoch, if the network has learned before; then the
            best epoch is -1 if none was better.
    """

    epoch: int
    score: float
    epochs: int
    seconds: float
    stopped: Stopped
    metrics: Mapping[str, float]
    start: Mapping[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain data, without the metrics."""
        return {k: v for k, v in asdict(self).items() if k not in ("metrics", "start")}


def fit(stage: Stage, run: Run, before: Sequence[str] = (), *, learned: bool = False) -> Fitted:
    """Train a stage and load the weights of the best validation score into `stage.net`.

    After each epoch, writes a checkpoint to resume from and a line to log.jsonl.

    Args:
        stage: to train.
        run: settings; its folder.
        before: names of the stages that were trained before this one.
        learned: the network is a model's. It is validated before the first epoch, too, and its
            weights stay if all epochs are worse.

    Raises:
        ModelError: "loss-not-finite"; the message names epoch, step, losses and samples; see
            `kidseg.train.resuming.restore`.
        ResourceError: "out-of-memory" on the device; "worker-killed".
    """
    config, net = stage.config, stage.net.to(run.device)
    if run.world > 1:
        share_norms(net)
    frozen = freeze(net, stage.trainable)
    optimizer = _optimizer(net, config.optimizer)
    average = None if config.average is None else WeightAverage(net, config.average)
    training = Training(net=net, optimizer=optimizer, average=average)
    now = Checkpoint()
    if run.resume:
        now = restore(run.folder, run.identity, stage.name, training, before)
    if learned and now.epoch < 0:
        now = _before_training(stage, run, now)
    called = DistributedDataParallel(net) if run.world > 1 else net
    # The time left in the budget of the run is not reproducible and may seem larger now, but later
    # stages have been trained on the result of this one.
    stopped: Stopped | None = "budget" if now.stopped == "budget" else None
    if stopped is None and now.epoch >= 0:
        stopped = _stop_reason(config, now.epoch + 1, now.best, now.seconds)
    while stopped is None:
        start = run.clock()
        epoch = now.epoch + 1
        rate = _set_rate(optimizer, config, epoch, now.seconds)
        if stage.prepare is not None:
            net.eval()
            with torch.no_grad():
                stage.prepare(_step(run, epoch))
        net.train()
        for module in frozen:
            module.train(False)
        losses = EpochLosses(stage.name, epoch, net)
        means = _train_epoch(stage, run, called, training, losses)
        net.eval()
        with nullcontext() if average is None else average.applied(net):
            metrics = _validated(stage, losses)
            metrics, spent = broadcast((metrics, now.seconds + run.clock() - start))
            best = now.best
            if metrics["score"] > best.score or (epoch == 0 and metrics["score"] == best.score):
                weights = copy.deepcopy(net.state_dict())
                best = Best(epoch=epoch, score=metrics["score"], net=weights)
        line = {
            "stage": stage.name,
            "epoch": epoch,
            "rate": rate,
            **_mean(means, run),
            **{f"val_{name}": value for name, value in metrics.items()},
            "seconds": round(spent, 3),
        }
        if epoch == 0 and now.start is not None:
            line["start"] = dict(now.start)
        stopped = _stop_reason(config, epoch + 1, best, spent)
        lines = (*now.lines, line)
        now = replace(now, epoch=epoch, seconds=spent, stopped=stopped, best=best, lines=lines)
        if run.rank == 0:
            if run.on_trained is not None:
                run.on_trained()
            save(run.folder, run.identity, stage.name, training, now)
            if run.on_epoch is not None:
                left_s = seconds_left(config, epoch + 1, spent)
                run.on_epoch(stage.name, epoch + 1, config.epochs, {**line, "left_s": left_s})
    if now.best.net is not None:
        net.load_state_dict(now.best.net)
    net.eval()
    return Fitted(
        epoch=now.best.epoch,
        score=now.best.score,
        epochs=now.epoch + 1,
        seconds=now.seconds,
        stopped=stopped,
        metrics=_metrics_of(now),
        start=now.start,
    )


def _before_training(stage: Stage, run: Run, now: Checkpoint) -> Checkpoint:
    """Validate a network that has learned before: it is the best one so far."""
    start, net = run.clock(), stage.net
    net.eval()
    metrics = _validated(stage, EpochLosses(stage.name, -1, net))
    metrics, spent = broadcast((metrics, run.clock() - start))
    if run.rank == 0 and run.on_epoch is not None:
        line = {f"val_{name}": value for name, value in metrics.items()}
        run.on_epoch(stage.name, 0, stage.config.epochs, line)
    best = Best(epoch=-1, score=metrics["score"], net=copy.deepcopy(net.state_dict()))
    return replace(now, seconds=spent, best=best, start=metrics)


def _validated(stage: Stage, losses: EpochLosses) -> dict[str, float]:
    """The metrics of the validation; the network is in evaluation mode.

    Raises:
        ModelError: "loss-not-finite".
    """
    with torch.no_grad(), finite_metrics(losses) as metrics:
        metrics.update(stage.validate())
    return metrics


def _metrics_of(checkpoint: Checkpoint) -> dict[str, float]:
    """The validation metrics of the best epoch, from its line of the log."""
    if checkpoint.best.net is None:
        return {}
    if checkpoint.best.epoch < 0:
        return dict(checkpoint.start or {})
    line = checkpoint.lines[checkpoint.best.epoch]
    return {k.removeprefix("val_"): v for k, v in line.items() if k.startswith("val_")}


def _train_epoch(
    stage: Stage,
    run: Run,
    called: nn.Module,
    training: Training,
    losses: EpochLosses,
) -> dict[str, float]:
    """Run the optimizer steps of an epoch; the mean losses of this process."""
    clip_norm, optimizer = stage.config.optimizer.clip_norm, training.optimizer
    created = batches(stage, run, losses.epoch)
    killed = convert_killed_worker(stage.name, losses.epoch)
    with killed, closing(created), repeatable_convolutions():
        for index, batch in enumerate(created):
            torch.manual_seed(_seed(run.seed, stage.name, losses.epoch, index))
            with _convert_out_of_memory(run), losses.step(batch.names):
                on_device = batch.to(run.device)
                with _autocast(run):
                    values = stage.loss(called, on_device)
                losses.add(values)
                optimizer.zero_grad(set_to_none=True)
                values["loss"].backward()
                if clip_norm is not None:
                    nn.utils.clip_grad_norm_(stage.net.parameters(), clip_norm)
                optimizer.step()
                if training.average is not None:
                    training.average.update(stage.net, losses.epoch * stage.steps + index)
    return losses.means()


def batches(stage: Stage, run: Run, epoch: int) -> Generator[Batch, None, None]:
    """The batches of an epoch; identical with and without workers that prefetch them."""

    def batch(index: int) -> Batch:
        created: Batch = stage.batch(_step(run, epoch, index))
        return created

    return prefetched(batch, stage.steps, run.workers)


def _step(run: Run, epoch: int, index: int = 0) -> TrainStep:
    return TrainStep(seed=run.seed, epoch=epoch, step=index, rank=run.rank, world=run.world)


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


def _stop_reason(config: StageConfig, epochs: int, best: Best, spent: float) -> Stopped | None:
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
    weights = _groups(net, config)
    if config.name == "adam":
        return torch.optim.Adam(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        weights,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )


def _groups(net: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """The trainable parameters; those without weight decay in a group of their own."""
    weights = [p for p in net.parameters() if p.requires_grad]
    if config.decayed == "all":
        return [{"params": weights}]
    # Biases, and the scales and shifts of norms, have one axis.
    kernels = [p for p in weights if p.ndim > 1]
    others = [p for p in weights if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _set_rate(
    optimizer: torch.optim.Optimizer, config: StageConfig, epoch: int, spent: float
) -> float:
    """Polynomial decay over the epochs or the time budget, whichever has progressed further.

    Source: Chen et al., DeepLab, TPAMI 2018.
    """
    fraction = epoch / config.epochs
    if config.budget_s is not None and epoch:
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
    """Convert the lack of memory on the device to a ResourceError."""

    def __init__(self, run: Run) -> None:
        self.device = run.device

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and is_out_of_memory(error):
            raise ResourceError(
                f"not enough memory on {self.device}",
                next_step="Set a smaller batch_size, or use precision bf16.",
                code="out-of-memory",
            ) from error
