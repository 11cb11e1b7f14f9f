"""The loop: what it minimises, when it stops, and that a kill changes nothing."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kidseg.checkpoint import load_state
from kidseg.config import OptimizerConfig, StageConfig
from kidseg.errors import ModelError
from kidseg.stage import Moment, Stage
from kidseg.train import Run, fit

CPU = torch.device("cpu")

# A small network with batch norm and dropout, so that buffers and random numbers matter too.
TRAINER = """
import sys, torch
from pathlib import Path
from torch import nn
from kidseg.config import OptimizerConfig, StageConfig
from kidseg.stage import Stage
from kidseg.train import Run, fit

torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Dropout(0.2), nn.ReLU(),
                    nn.Linear(64, 1))

def draw(now):
    generator = torch.Generator().manual_seed(1000 * now.epoch + now.step)
    x = torch.rand(16, 8, generator=generator)
    return x, x.pow(2).sum(1, keepdim=True)

def loss(called, now):
    x, y = draw(now)
    return {"loss": (called(x) - y).pow(2).mean()}

def validate():
    x = torch.linspace(0, 1, 80).reshape(10, 8)
    return {"score": -float((net(x) - x.pow(2).sum(1, keepdim=True)).pow(2).mean())}

stage = Stage(
    name="fit", net=net, steps=10, loss=loss, validate=validate,
    config=StageConfig(epochs=int(sys.argv[2]), min_epochs=0, batch_size=16,
                       optimizer=OptimizerConfig(learning_rate=0.01, momentum=0.9)),
)
folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
run = Run(folder=folder, device=torch.device("cpu"), resume=True,
          on_epoch=lambda *a: print("epoch", flush=True))
fitted = fit(stage, run)
torch.save({"net": net.state_dict(), "epoch": fitted.epoch, "score": fitted.score},
           folder / "final.pt")
"""


def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    trainer = tmp_path / "trainer.py"
    trainer.write_text(TRAINER)
    epochs = "40"

    def start(folder: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(trainer), str(folder), epochs],
            stdout=subprocess.PIPE,
            text=True,
        )

    whole = tmp_path / "whole"
    assert start(whole).wait(timeout=120) == 0

    broken, kills = tmp_path / "broken", 0
    moments = random.Random(5)
    for _ in range(20):
        process = start(broken)
        assert process.stdout is not None
        for _ in range(moments.randint(1, 8)):
            if not process.stdout.readline():
                break
        time.sleep(moments.random() * 0.02)
        if kills < 4 and process.poll() is None:
            process.kill()
            kills += 1
            process.wait()
            continue
        if process.wait(timeout=120) == 0:
            break
    assert kills >= 3
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
    assert [line["epoch"] for line in lines(whole)] == list(range(int(epochs)))


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

    def loss(called: nn.Module, now: Moment) -> dict[str, Tensor]:
        return {"loss": called()}

    def validate() -> dict[str, float]:
        return {"score": next(told) if scores else -float(net())}

    return Stage(name="slope", net=net, config=config, steps=2, loss=loss, validate=validate)


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
    first = slope_stage(config(epochs=10_000, budget_s=0.1))
    fitted = fit(first, Run(folder=tmp_path, device=CPU))
    more = slope_stage(config(epochs=10_000, budget_s=fitted.seconds + 0.3))
    assert fit(more, Run(folder=tmp_path, device=CPU, resume=True)) == fitted
    assert torch.equal(more.net.weight, first.net.weight)


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
    fit(slope_stage(timed), Run(folder=tmp_path, device=CPU))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    spent = [0.0, *(line["seconds"] for line in lines[:-1])]
    rates = [0.1 * (1 - seconds / 0.5) ** 0.9 for seconds in spent]
    assert [line["rate"] for line in lines] == pytest.approx(rates, abs=5e-4)
    assert rates[-1] < 0.05


def test_a_loss_that_is_not_finite_stops_with_its_place(tmp_path: Path) -> None:
    net = Slope()

    def loss(called: nn.Module, now: Moment) -> dict[str, Tensor]:
        value = called() * (float("nan") if (now.epoch, now.step) == (1, 1) else 1.0)
        return {"loss": value}

    stage = Stage(
        name="slope", net=net, config=config(), steps=2, loss=loss, validate=lambda: {"score": 0}
    )
    with pytest.raises(ModelError, match="epoch 1, step 1"):
        fit(stage, Run(folder=tmp_path, device=CPU))
    state = load_state(tmp_path / "state-slope.pt", CPU)
    assert state is not None
    assert state["epoch"] == 0


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
