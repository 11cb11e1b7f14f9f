"""The loop: what it minimises, when it stops, and that a kill changes nothing."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kidseg.checkpoint import load_state, save_state, state_file
from kidseg.config import OptimizerConfig, StageConfig
from kidseg.errors import DivergedError, ModelError, ResourceError, UsageError
from kidseg.stage import Stage, TrainStep
from kidseg.train import Run, fit
from kidseg.train.finite import EpochLosses
from kidseg.train.loop import _optimizer, batches, freeze

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    """However a training ends, its workers end with it."""
    before = set(active_children())
    yield
    assert set(active_children()) <= before


# A small network with batch norm and dropout, so that buffers and random numbers matter too.
TRAINER = """
import sys, torch
from dataclasses import dataclass, replace
from pathlib import Path
from torch import nn
from kidseg.config import OptimizerConfig, StageConfig
from kidseg.stage import Stage
from kidseg.train import Run, fit

torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Dropout(0.2), nn.ReLU(),
                    nn.Linear(64, 1))

@dataclass
class Points:
    x: torch.Tensor
    names: tuple = ()
    def to(self, device):
        return replace(self, x=self.x.to(device))

def batch(step):
    generator = torch.Generator().manual_seed(1000 * step.epoch + step.step)
    return Points(torch.rand(16, 8, generator=generator))

def loss(called, points):
    y = points.x.pow(2).sum(1, keepdim=True)
    return {"loss": (called(points.x) - y).pow(2).mean()}

def validate():
    x = torch.linspace(0, 1, 80).reshape(10, 8)
    return {"score": -float((net(x) - x.pow(2).sum(1, keepdim=True)).pow(2).mean())}

stage = Stage(
    name="fit", net=net, steps=10, batch=batch, loss=loss, validate=validate,
    config=StageConfig(epochs=int(sys.argv[2]), min_epochs=0, batch_size=16,
                       optimizer=OptimizerConfig(learning_rate=0.01, momentum=0.9)),
)
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
run = Run(folder=folder, device=torch.device("cpu"), resume=True, workers=int(sys.argv[3]),
          on_epoch=lambda *a: print("epoch", flush=True))
fitted = fit(stage, run)
torch.save({"net": net.state_dict(), "epoch": fitted.epoch, "score": fitted.score},
           folder / "final.pt")
"""


EPOCHS = 25


def start(folder: Path, workers: int) -> subprocess.Popen[str]:
    """A training in a process of its own; it prints a line per epoch."""
    trainer = folder.with_suffix(".py")
    trainer.write_text(TRAINER)
    return subprocess.Popen(
        [sys.executable, str(trainer), str(folder), str(EPOCHS), str(workers)],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder, 0).wait(timeout=120) == 0
    return folder


@pytest.mark.requirement("same bits")
@pytest.mark.fault("kill -9 while training")
@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_killed_at_random_moments_it_ends_with_the_same_bits(
    tmp_path: Path, whole: Path, workers: int
) -> None:
    """Of the whole run, without workers: they change nothing either."""
    broken, moments = tmp_path / "broken", random.Random(5 + workers)
    for _ in range(2):
        process = start(broken, workers)
        assert process.stdout is not None
        for _ in range(moments.randint(1, 8)):
            assert process.stdout.readline()
        time.sleep(moments.random() * 0.02)
        assert process.poll() is None
        process.kill()
        process.wait()
    assert start(broken, workers).wait(timeout=120) == 0
    a = torch.load(whole / "final.pt", weights_only=True)
    b = torch.load(broken / "final.pt", weights_only=True)
    assert a["epoch"] == b["epoch"]
    assert a["score"] == b["score"]
    for name in a["net"]:
        assert torch.equal(a["net"][name], b["net"][name]), name

    def lines(folder: Path) -> list[dict[str, object]]:
        text = (folder / "log.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(t).items() if k != "seconds"} for t in text]

    assert lines(whole) == lines(broken)
    assert [line["epoch"] for line in lines(whole)] == list(range(EPOCHS))


@dataclass(frozen=True, kw_only=True)
class Points:
    """A batch: some numbers, and where they were moved to."""

    step: TrainStep
    values: Tensor
    moved: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        step = self.step
        return (f"point {step.epoch}-{step.step}-a", f"point {step.epoch}-{step.step}-b")

    def to(self, device: torch.device) -> Points:
        return replace(self, values=self.values.to(device), moved=(*self.moved, str(device)))


def points(step: TrainStep) -> Points:
    generator = torch.Generator().manual_seed(1000 * step.epoch + step.step)
    return Points(step=step, values=torch.rand(6, 3, 4, generator=generator))


class Slope(nn.Module):
    """One weight; the loss is (weight - 3)^2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self) -> Tensor:
        return (self.weight - 3) ** 2


def slope_stage(config: StageConfig, scores: list[float] | None = None) -> Stage:
    net = Slope()
    told = iter(scores or [])

    def loss(called: nn.Module, batch: Points) -> dict[str, Tensor]:
        return {"loss": called()}

    def validate() -> dict[str, float]:
        return {"score": next(told) if scores else -float(net())}

    return Stage(
        name="slope",
        net=net,
        config=config,
        steps=2,
        batch=points,
        loss=loss,
        validate=validate,
    )


def config(**changes: object) -> StageConfig:
    optimizer = OptimizerConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0, poly_power=0.0)
    return StageConfig(**{"epochs": 20, "min_epochs": 0, "optimizer": optimizer, **changes})


def test_gradient_descent_by_hand(tmp_path: Path) -> None:
    """w <- w - 0.1 * 2 (w - 3): the distance to 3 shrinks by 0.8 a step, 0.64 an epoch."""
    stage = slope_stage(config(epochs=3))
    fitted = fit(stage, Run(folder=tmp_path, device=CPU))
    assert stage.net.weight.item() == pytest.approx(3 * (1 - 0.8**6))
    assert fitted.stopped == "epochs"
    assert fitted.epoch == 2
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[0]["loss"] == pytest.approx((9 + (3 * 0.8) ** 2) / 2)


def test_the_best_weights_are_left_in_the_network(tmp_path: Path) -> None:
    stage = slope_stage(config(epochs=4), scores=[0.1, 0.9, 0.5, 0.2])
    fitted = fit(stage, Run(folder=tmp_path, device=CPU))
    assert fitted.epoch == 1
    assert stage.net.weight.item() == pytest.approx(3 * (1 - 0.8**4))


def test_patience_counts_from_the_best_epoch(tmp_path: Path) -> None:
    scores = [0.5, 0.6, 0.1, 0.1, 0.1, 0.1, 0.1]
    stage = slope_stage(config(patience=2), scores=scores)
    fitted = fit(stage, Run(folder=tmp_path, device=CPU))
    assert (fitted.stopped, fitted.epochs, fitted.epoch) == ("patience", 4, 1)
    late = slope_stage(config(patience=2, min_epochs=6), scores=scores)
    (tmp_path / "late").mkdir()
    assert fit(late, Run(folder=tmp_path / "late", device=CPU)).epochs == 6


def test_what_was_learned_before_stays_if_no_epoch_is_better(tmp_path: Path) -> None:
    told: list[tuple[int, int, Any]] = []

    def tell(_: str, done: int, total: int, line: Any) -> None:
        told.append((done, total, line["val_score"]))

    for name, scores, best in (("kept", [0.7, 0.1, 0.6], -1), ("better", [0.7, 0.1, 0.8], 1)):
        (tmp_path / name).mkdir()
        told.clear()
        stage = slope_stage(config(epochs=2), scores=scores)
        fitted = fit(stage, Run(folder=tmp_path / name, device=CPU, on_epoch=tell), learned=True)
        assert (fitted.epoch, fitted.score) == (best, max(scores))
        assert fitted.start == {"score": 0.7} and fitted.metrics == {"score": max(scores)}
        assert stage.net.weight.item() == (0.0 if best < 0 else pytest.approx(3 * (1 - 0.8**4)))
        assert told == [(0, 2, 0.7), (1, 2, scores[1]), (2, 2, scores[2])]
        first, second = (
            json.loads(text) for text in (tmp_path / name / "log.jsonl").read_text().splitlines()
        )
        assert first["start"] == {"score": 0.7} and "start" not in second
        again = slope_stage(config(epochs=2), scores=[99.0])
        run = Run(folder=tmp_path / name, device=CPU, resume=True)
        assert fit(again, run, learned=True) == fitted, "resumed: nothing is validated again"
        assert torch.equal(again.net.weight, stage.net.weight)


def test_one_epoch_is_trained_though_the_first_validation_used_up_the_time(tmp_path: Path) -> None:
    ticks = itertools.count()
    run = Run(folder=tmp_path, device=CPU, clock=lambda: float(next(ticks)))
    decaying = replace(config().optimizer, poly_power=0.9)
    stage = slope_stage(config(budget_s=0.5, optimizer=decaying), scores=[0.7, 0.8])
    fitted = fit(stage, run, learned=True)
    first = json.loads((tmp_path / "log.jsonl").read_text())
    assert first["rate"] == decaying.learning_rate, "the first epoch has the full rate"
    assert (fitted.epochs, fitted.epoch, fitted.seconds, fitted.stopped) == (1, 0, 2.0, "budget")


def test_patience_counts_from_what_was_learned_before(tmp_path: Path) -> None:
    stage = slope_stage(config(patience=2), scores=[0.7, 0.1, 0.2, 0.9])
    fitted = fit(stage, Run(folder=tmp_path, device=CPU), learned=True)
    assert (fitted.stopped, fitted.epochs, fitted.epoch) == ("patience", 2, -1)


def test_a_budget_ends_the_stage(tmp_path: Path) -> None:
    stage = slope_stage(config(epochs=10_000, budget_s=0.3))
    fitted = fit(stage, Run(folder=tmp_path, device=CPU))
    assert fitted.stopped == "budget"
    assert 1 <= fitted.epochs < 10_000


def test_a_budget_is_spent_by_the_clock_that_is_given(tmp_path: Path) -> None:
    """One that ticks at each look: an epoch, from start to after validation, is a second."""
    ticks = itertools.count()
    stage = slope_stage(config(epochs=10_000, budget_s=5.0))
    fitted = fit(stage, Run(folder=tmp_path, device=CPU, clock=lambda: float(next(ticks))))
    assert (fitted.epochs, fitted.seconds, fitted.stopped) == (5, 5.0, "budget")


def test_a_stage_that_its_budget_ended_stays_ended_when_resumed(tmp_path: Path) -> None:
    """However much is left now: stages that came after have learned from it as it was."""
    ticks = itertools.count()
    run = Run(folder=tmp_path, device=CPU, clock=lambda: float(next(ticks)))
    first = slope_stage(config(epochs=10_000, budget_s=3.0))
    fitted = fit(first, run)
    assert (fitted.epochs, fitted.stopped) == (3, "budget")
    more = slope_stage(config(epochs=10_000, budget_s=6.0))
    assert fit(more, replace(run, resume=True)) == fitted
    assert torch.equal(more.net.weight, first.net.weight)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.99, True), (0.5, True), (0.0, False)])
def test_momentum_is_nesterovs(momentum: float, nesterov: bool) -> None:
    """Plain gradient descent has none."""
    settings = OptimizerConfig(name="sgd", learning_rate=0.01, momentum=momentum)
    optimizer = _optimizer(nn.Linear(1, 1), settings)
    assert isinstance(optimizer, torch.optim.SGD)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.01, momentum, nesterov)


def test_the_rate_falls_by_the_polynomial(tmp_path: Path) -> None:
    poly = OptimizerConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0, poly_power=0.9)
    fit(slope_stage(config(epochs=4, optimizer=poly)), Run(folder=tmp_path, device=CPU))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["rate"] for line in lines] == pytest.approx(
        [0.1 * (1 - epoch / 4) ** 0.9 for epoch in range(4)]
    )


def test_under_a_budget_the_rate_falls_with_the_time(tmp_path: Path) -> None:
    poly = OptimizerConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0, poly_power=0.9)
    timed = config(epochs=10_000, budget_s=0.5, optimizer=poly)
    ticks = itertools.count()
    fit(slope_stage(timed), Run(folder=tmp_path, device=CPU, clock=lambda: 0.02 * next(ticks)))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    spent = [0.0, *(line["seconds"] for line in lines[:-1])]
    rates = [0.1 * (1 - seconds / 0.5) ** 0.9 for seconds in spent]
    assert [line["rate"] for line in lines] == pytest.approx(rates, abs=5e-4)
    assert rates[-1] < 0.05


@pytest.mark.fault("loss not finite")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loss_that_is_not_finite_stops_with_its_place(tmp_path: Path, workers: int) -> None:
    """Epoch, step, all losses and the samples, by which it can be looked for."""
    net = Slope()

    def loss(called: nn.Module, batch: Points) -> dict[str, Tensor]:
        place = (batch.step.epoch, batch.step.step)
        value = called() * (float("nan") if place == (1, 1) else 1.0)
        return {"loss": value, "other": torch.tensor(0.25)}

    stage = Stage(
        name="slope",
        net=net,
        config=config(),
        steps=3,
        batch=points,
        loss=loss,
        validate=lambda: {"score": 0},
    )
    with pytest.raises(ModelError, match="epoch 1, step 1") as error:
        fit(stage, Run(folder=tmp_path, device=CPU, workers=workers))
    assert error.value.code == "loss-not-finite"
    assert "stage 'slope'" in error.value.cause and "'other': 0.25" in error.value.cause
    assert error.value.cause.endswith("samples: point 1-1-a, point 1-1-b")
    state = load_state(state_file(tmp_path, "slope"))
    assert state is not None and state.progress.epoch == 0


@pytest.mark.fault("loss not finite")
@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("loss", "epoch 1, step 1: the output is infinite"),
        ("grid", "epoch 1, step 1: a grid must be finite"),
        ("other", "epoch 1, step 1: {'loss': 1.0, 'other': inf}"),
        ("last step", "epoch 1, after step 2: its weights are not"),
        ("statistics", "epoch 1, after step 2: its weights are not"),
        ("score", "the validation of stage 'slope' is not finite in epoch 1"),
        ("validation", "the validation of stage 'slope' is not finite in epoch 1: the output"),
    ],
)
def test_wherever_a_network_diverges_it_is_said_and_the_state_before_is_kept(
    tmp_path: Path, where: str, place: str
) -> None:
    net = Slope()
    net.register_buffer("mean", torch.zeros(1))

    def loss(called: nn.Module, batch: Points) -> dict[str, Tensor]:
        value = called()
        step = (batch.step.epoch, batch.step.step)
        if step == (1, 1) and where == "loss":
            raise DivergedError("the output is infinite", code="not-finite")
        if step == (1, 1) and where == "grid":
            with torch.no_grad():
                net.weight.fill_(float("nan"))
            raise ValueError("a grid must be finite")
        if step == (1, 1) and where == "other":
            return {"loss": value * 0 + 1, "other": torch.tensor(float("inf"))}
        if step == (1, 2) and where == "last step":
            value = value + (net.weight - net.weight.detach()).sqrt()  # its slope is infinite
        if step == (1, 2) and where == "statistics":
            net.mean.fill_(float("inf"))
        return {"loss": value, "other": torch.tensor(0.25)}

    calls = itertools.count()

    def validate() -> dict[str, float]:
        second = next(calls) == 1
        if second and where == "validation":
            raise DivergedError("the output is infinite", code="not-finite")
        return {"score": float("nan") if second and where == "score" else 0.5}

    stage = replace(slope_stage(config()), net=net, loss=loss, validate=validate, steps=3)
    with pytest.raises(ModelError) as error:
        fit(stage, Run(folder=tmp_path, device=CPU))
    assert error.value.code == "loss-not-finite" and error.value.exit_code == 6
    assert "stage 'slope'" in error.value.cause and place in error.value.cause
    step = 1 if ", step 1" in place else 2
    assert error.value.cause.endswith(f"samples: point 1-{step}-a, point 1-{step}-b")
    assert "--resume" in error.value.next_step
    state = load_state(state_file(tmp_path, "slope"))
    assert state is not None and state.progress.epoch == 0
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_an_error_of_another_cause_stays_what_it_is(tmp_path: Path) -> None:
    def loss(called: nn.Module, batch: Points) -> dict[str, Tensor]:
        raise ValueError("the sizes differ")

    with pytest.raises(ValueError, match="the sizes differ"):
        fit(replace(slope_stage(config()), loss=loss), Run(folder=tmp_path, device=CPU))


@pytest.mark.fault("out of device memory")
def test_a_batch_that_does_not_fit_says_what_to_change(tmp_path: Path) -> None:
    """Four exbibytes are more than any machine has."""

    def loss(called: nn.Module, batch: Points) -> dict[str, Tensor]:
        return {"loss": torch.empty(2**60).sum()}

    with pytest.raises(ResourceError, match=r"memory on cpu.*batch_size") as error:
        fit(replace(slope_stage(config()), loss=loss), Run(folder=tmp_path, device=CPU))
    assert error.value.code == "out-of-memory"


@pytest.mark.fault("loss not finite")
def test_the_samples_are_found_though_losses_are_looked_at_seldom() -> None:
    """On a device: here as if each step were on one, whose losses are not yet read."""
    losses = EpochLosses("slope", 4, Slope())
    losses.CHECK_INTERVAL = 32
    for step in range(5):
        with losses.step((f"case {step}",)):
            value = float("nan") if step >= 2 else 1.0
            losses.pending.append(({"loss": torch.tensor(value)}, losses.names))
    with pytest.raises(ModelError, match=r"epoch 4, step 2: .*samples: case 2") as error:
        losses.means()
    assert error.value.code == "loss-not-finite"
    for step in range(2):
        losses.pending.append(({"loss": torch.tensor(float("inf"))}, (f"case {step}",)))
    with pytest.raises(ModelError, match="samples: case 0"), losses.step(("case 2",)):
        raise ValueError("a grid must be finite")


def test_losses_are_of_the_batch_on_the_device_at_its_step(tmp_path: Path) -> None:
    """Each once, in turn; made on the CPU, then brought to the run's device."""
    seen: list[Points] = []
    stage = slope_stage(config(epochs=2))

    def loss(called: nn.Module, batch: Points) -> dict[str, Tensor]:
        seen.append(batch)
        return {"loss": called()}

    fit(replace(stage, loss=loss), Run(folder=tmp_path, device=CPU, seed=7))
    steps = [TrainStep(seed=7, epoch=epoch, step=step) for epoch in range(2) for step in range(2)]
    assert [batch.step for batch in seen] == steps
    assert all(batch.moved == ("cpu",) for batch in seen)


# Workers


def net_of_norms() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv1d(3, 5, 3, bias=False),
        nn.BatchNorm1d(5),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv1d(5, 4, 1, bias=False),
        nn.BatchNorm1d(4),
    )


def norms_stage(trainable: tuple[str, ...] | None = None) -> Stage:
    """With batch norms and dropout, so that buffers and random numbers matter too."""
    net = net_of_norms()

    def loss(called: nn.Module, batch: Points) -> dict[str, Tensor]:
        return {"loss": (called(batch.values) - 1.0).square().mean()}

    return Stage(
        name="norms",
        net=net,
        config=config(epochs=3),
        steps=5,
        batch=points,
        loss=loss,
        validate=lambda: {"score": -float((net(torch.ones(1, 3, 4)) - 1.0).square().mean())},
        trainable=trainable,
    )


def test_workers_change_no_bit(tmp_path: Path) -> None:
    trained = []
    for workers in (0, 2):
        stage, folder = norms_stage(), tmp_path / str(workers)
        folder.mkdir()
        fitted = fit(stage, Run(folder=folder, device=CPU, workers=workers))
        lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
        for line in lines:
            del line["seconds"]
        trained.append((fitted.score, lines, stage.net.state_dict()))
    assert trained[0][:2] == trained[1][:2]
    fresh = net_of_norms().state_dict()
    for name, values in trained[0][2].items():
        assert torch.equal(values, trained[1][2][name]), name
        assert not torch.equal(values, fresh[name]), name


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_those_of_their_steps_in_order(tmp_path: Path, workers: int) -> None:
    stage = replace(norms_stage(), steps=7)
    run = Run(folder=tmp_path, device=CPU, seed=3, workers=workers)
    made = [batch for batch in batches(stage, run, 4) if isinstance(batch, Points)]
    assert [batch.step for batch in made] == [
        TrainStep(seed=3, epoch=4, step=step) for step in range(7)
    ]
    assert all(torch.equal(batch.values, points(batch.step).values) for batch in made)


@pytest.mark.fault("worker killed")
def test_a_worker_that_is_killed_is_said_to_be(tmp_path: Path) -> None:
    """As the system does where memory runs out: with the stage, the epoch and what helps."""

    def batch(step: TrainStep) -> Points:
        if (step.epoch, step.step) == (1, 3):
            os.kill(os.getpid(), signal.SIGKILL)
        return points(step)

    stage = replace(norms_stage(), batch=batch)
    with pytest.raises(ResourceError, match="stage 'norms', epoch 1") as error:
        fit(stage, Run(folder=tmp_path, device=CPU, workers=2))
    assert error.value.code == "worker-killed"
    assert "fewer workers" in (error.value.next_step or "")
    whole = fit(norms_stage(), Run(folder=tmp_path, device=CPU, workers=2, resume=True))
    (tmp_path / "alone").mkdir()
    alone = fit(norms_stage(), Run(folder=tmp_path / "alone", device=CPU))
    assert (whole.epochs, whole.score) == (alone.epochs, alone.score), "and it went on from there"


@pytest.mark.fault("worker killed")
def test_a_worker_may_be_killed_while_the_network_learns(tmp_path: Path) -> None:
    """Not only while its batch is waited for."""

    def batch(step: TrainStep) -> Points:
        if step.step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return points(step)

    def loss(called: nn.Module, batch: Points) -> dict[str, Tensor]:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            time.sleep(0.01)
        raise AssertionError("it was not told")

    stage = replace(norms_stage(), batch=batch, loss=loss)
    with pytest.raises(ResourceError, match="stage 'norms', epoch 0") as error:
        fit(stage, Run(folder=tmp_path, device=CPU, workers=1))
    assert error.value.code == "worker-killed"


@pytest.mark.parametrize("workers", [0, 1])
def test_what_goes_wrong_in_a_batch_stays_what_it_is(tmp_path: Path, workers: int) -> None:
    """A worker's error is the batch's own, not one of workers."""

    def batch(step: TrainStep) -> Points:
        raise RuntimeError(f"no such slice in step {step.step}")

    with pytest.raises(RuntimeError, match="no such slice in step 0"):
        fit(replace(norms_stage(), batch=batch), Run(folder=tmp_path, device=CPU, workers=workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_batch_refuses_is_refused_as_such(tmp_path: Path, workers: int) -> None:
    """With code, path and next step, whoever made it."""

    def batch(step: TrainStep) -> Points:
        raise UsageError("cannot be shared", path="a.nii", next_step="Choose.", code="bad-batch")

    stage = replace(norms_stage(), batch=batch)
    with pytest.raises(UsageError) as error:
        fit(stage, Run(folder=tmp_path, device=CPU, workers=workers))
    caught = error.value
    assert (caught.cause, caught.path) == ("cannot be shared", "a.nii")
    assert (caught.next_step, caught.code) == ("Choose.", "bad-batch")


# States to resume from


def resumed(folder: Path, stage: Stage) -> None:
    fit(stage, Run(folder=folder, device=CPU, resume=True))


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    """Other names, shapes or types, of the weights, the best weights or the optimizer's."""
    moving = config(epochs=3, optimizer=OptimizerConfig(learning_rate=0.01, momentum=0.9))
    fit(replace(norms_stage(), config=moving), Run(folder=tmp_path, device=CPU))
    file = state_file(tmp_path, "norms")
    state = load_state(file)
    assert state is not None
    net, best, optimizer = (dict(state.parts[name]) for name in ("net", "best", "optimizer"))
    name, buffer = "0.weight", next(iter(optimizer))
    damages: list[dict[str, dict[str, Tensor]]] = [
        {"net": {}},
        {"net": {**net, "more": torch.ones(1)}},
        {"net": {**net, name: net[name][:1]}},
        {"net": {**net, name: net[name].double()}},
        {"best": {k: v for k, v in best.items() if k != name}},
        {"best": {**best, name: best[name].flatten()}},
        {"optimizer": {**optimizer, "99.momentum_buffer": torch.ones(1)}},
        {"optimizer": {**optimizer, buffer: torch.ones(1)}},
        {"optimizer": {**optimizer, "x.momentum_buffer": torch.ones(1)}},
        {"optimizer": {buffer.replace("momentum_buffer", "step"): torch.tensor(1.0)}},
    ]
    for damage in damages:
        save_state(replace(state, parts={**state.parts, **damage}), file)
        with pytest.raises(ModelError, match="does not fit") as error:
            resumed(tmp_path, norms_stage())
        assert error.value.code == "damaged-state" and error.value.next_step
    parts = {k: v for k, v in state.parts.items() if k != "best"}
    save_state(replace(state, parts=parts), file)
    with pytest.raises(ModelError, match="best weights"):
        resumed(tmp_path, norms_stage())
    save_state(state, file)
    resumed(tmp_path, norms_stage())


def without_gradient(optimizer: OptimizerConfig, folder: Path, **changes: Any) -> nn.Module:
    """A network whose parameters were all 0.5, after an epoch with a loss of no gradient."""
    still = replace(
        norms_stage(),
        config=config(epochs=1, optimizer=optimizer),
        loss=lambda net, batch: {"loss": (net(batch.values) * 0.0).sum()},
        **changes,
    )
    with torch.no_grad():
        for parameter in still.net.parameters():
            parameter.fill_(0.5)
    fit(still, Run(folder=folder, device=CPU))
    return still.net


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("decayed", ["all", "kernels"])
def test_decay_of_kernels_leaves_biases_and_norms(tmp_path: Path, name: str, decayed: str) -> None:
    """Without a gradient of the loss, only what decays changes."""
    chosen = OptimizerConfig(
        name=name, learning_rate=0.1, momentum=0.0, weight_decay=0.5, decayed=decayed
    )
    net = without_gradient(chosen, tmp_path)
    for parameter in net.parameters():
        moves = decayed == "all" or parameter.ndim > 1
        assert bool((parameter < 0.5).all()) == moves
        assert moves or bool((parameter == 0.5).all())
    assert {parameter.ndim > 1 for parameter in net.parameters()} == {True, False}


@pytest.mark.parametrize(("name", "after"), [("sgd", 0.5 - 0.1 * 0.25), ("adam", 0.5 - 0.1)])
def test_decay_is_a_part_of_the_gradient(tmp_path: Path, name: str, after: float) -> None:
    """An L2 term of the loss, as in the papers: 0.5 w; Adam's first step is of the rate's size."""
    poly = {"poly_power": 0.0, "clip_norm": None, "momentum": 0.0}
    chosen = OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5, **poly)
    for parameter in without_gradient(chosen, tmp_path, steps=1).parameters():
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, after))


@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("decayed", ["all", "kernels"])
def test_an_optimizer_goes_on_where_it_was(tmp_path: Path, name: str, decayed: str) -> None:
    chosen = OptimizerConfig(
        name=name, learning_rate=0.01, momentum=0.9, weight_decay=0.01, decayed=decayed
    )

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, *_: object) -> None:
        if done == 2:
            raise Stop

    def stage() -> Stage:
        return replace(norms_stage(), config=config(epochs=4, optimizer=chosen))

    whole, broken = stage(), stage()
    for folder in ("whole", "broken"):
        (tmp_path / folder).mkdir()
    fit(whole, Run(folder=tmp_path / "whole", device=CPU))
    with pytest.raises(Stop):
        fit(broken, Run(folder=tmp_path / "broken", device=CPU, on_epoch=stop))
    again = stage()
    resumed(tmp_path / "broken", again)
    for key, values in whole.net.state_dict().items():
        assert torch.equal(values, again.net.state_dict()[key]), key


# Parts that are not trained


def test_what_is_not_trained_stays_to_the_bit(tmp_path: Path) -> None:
    """Weights and the statistics of norms alike; the rest is trained."""
    stage = norms_stage(trainable=("4", "5"))
    before = {name: values.clone() for name, values in stage.net.state_dict().items()}
    fit(stage, Run(folder=tmp_path, device=CPU))
    after = stage.net.state_dict()
    assert "1.running_mean" in after and "1.num_batches_tracked" in after
    for name, values in after.items():
        assert torch.equal(values, before[name]) == (name[0] in "01"), name


def test_frozen_parts_are_in_evaluation_mode_while_the_others_train(tmp_path: Path) -> None:
    modes = []
    stage = norms_stage(trainable=("4.", "5."))

    def loss(called: nn.Module, batch: Points) -> dict[str, Tensor]:
        modes.append([module.training for module in stage.net])
        return {"loss": (called(batch.values) - 1.0).square().mean()}

    fit(replace(stage, loss=loss), Run(folder=tmp_path, device=CPU))
    # Convolution and norm in front are frozen; ReLU and dropout have nothing to train.
    assert modes == [[False, False, True, True, True, True]] * 15
    assert not stage.net.training


def test_freezing_by_hand() -> None:
    net = net_of_norms()
    assert freeze(net, None) == []
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert freeze(net, ("1.bias", "4")) == [net[0], net[5]], "half a norm is trained"
    named = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert named == {"1.bias", "4.weight"}
    assert freeze(net, ("",)) == []
    assert all(parameter.requires_grad for parameter in net.parameters()), "it can be undone"


@pytest.mark.parametrize("trainable", [("encoder",), ()])
def test_nothing_to_train_is_refused(tmp_path: Path, trainable: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="no parameter name starts with"):
        freeze(net_of_norms(), trainable)
    with pytest.raises(ValueError, match="no parameter name starts with"):
        fit(norms_stage(trainable), Run(folder=tmp_path, device=CPU))
    assert not (tmp_path / "log.jsonl").exists()


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    first = slope_stage(config(epochs=3))
    fit(first, Run(folder=tmp_path, device=CPU))
    again = slope_stage(config(epochs=3))
    fitted = fit(again, Run(folder=tmp_path, device=CPU, resume=True))
    assert torch.equal(again.net.weight, first.net.weight)
    assert fitted.epochs == 3


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_both_optimizers_learn(tmp_path: Path, name: str) -> None:
    chosen = OptimizerConfig(name=name, learning_rate=0.1, momentum=0.9, weight_decay=0.0)
    stage = slope_stage(config(epochs=60, optimizer=chosen))
    fit(stage, Run(folder=tmp_path, device=CPU))
    assert stage.net.weight.item() == pytest.approx(3, abs=0.1)


class _Stop(Exception):
    pass


def _interrupted(stage: Stage, folder: Path) -> None:
    """Train, and stop after the first epoch."""

    def stop(*_: object) -> None:
        raise _Stop

    with pytest.raises(_Stop):
        fit(stage, Run(folder=folder, device=CPU, on_epoch=stop))


def test_what_is_prepared_before_an_epoch_is_the_same_when_resumed(tmp_path: Path) -> None:
    """With the weights at the start of the epoch, in eval mode, without gradients."""

    def prepared_stage(seen: list[tuple[int, float]]) -> Stage:
        stage = norms_stage()

        def prepare(step: TrainStep) -> None:
            assert not stage.net.training and not torch.is_grad_enabled() and step.step == 0
            weights = torch.cat([p.flatten() for p in stage.net.parameters()])
            seen.append((step.epoch, float(weights.sum())))

        return replace(stage, prepare=prepare)

    whole: list[tuple[int, float]] = []
    parts: list[tuple[int, float]] = []
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    fit(prepared_stage(whole), Run(folder=tmp_path / "whole", device=CPU))
    _interrupted(prepared_stage(parts), tmp_path / "parts")
    fit(prepared_stage(parts), Run(folder=tmp_path / "parts", device=CPU, resume=True))
    assert parts == whole and [epoch for epoch, _ in whole] == [0, 1, 2]


def test_the_average_is_validated_kept_and_resumed_to_the_bit(tmp_path: Path) -> None:
    def averaged() -> Stage:
        stage = norms_stage()
        return replace(stage, config=replace(stage.config, average=0.5))

    results = []
    for name in ("whole", "parts"):
        folder, stage = tmp_path / name, averaged()
        folder.mkdir()
        if name == "parts":
            _interrupted(stage, folder)
            stage = averaged()
        fitted = fit(stage, Run(folder=folder, device=CPU, resume=name == "parts"))
        results.append((fitted.score, stage.net.state_dict()))
    (score, weights), (resumed_score, resumed_weights) = results
    assert score == resumed_score
    assert all(torch.equal(weights[name], resumed_weights[name]) for name in weights)
    plain = norms_stage()
    (tmp_path / "plain").mkdir()
    fit(plain, Run(folder=tmp_path / "plain", device=CPU))
    assert any(not torch.equal(weights[n], plain.net.state_dict()[n]) for n in weights)


def test_a_state_without_the_average_is_not_resumed_with_one(tmp_path: Path) -> None:
    _interrupted(norms_stage(), tmp_path)
    stage = norms_stage()
    stage = replace(stage, config=replace(stage.config, average=0.5))
    with pytest.raises(ModelError, match="average"):
        fit(stage, Run(folder=tmp_path, device=CPU, resume=True))
