"""Two processes that train as one give the model that one gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ellipses import write_ellipse_dataset
from kidseg.checkpoint import load_model
from kidseg.distributed import (
    SharedBatchNorm,
    all_gather,
    broadcast,
    local_device,
    rank,
    share_norms,
    shared_map,
)
from kidseg.train import Setup, train

# Plain gradient descent: Adam would blow rounding up to whole steps where gradients are near zero.
SETTINGS = (
    "view.size=32",
    "unet.size=32",
    "unet.features=4",
    "precision=fp32",
    "segment.epochs=2",
    "segment.min_epochs=0",
    "segment.steps=2",
    "segment.batch_size=6",
    "segment.optimizer.momentum=0.0",
    "pose.localizer.size=32",
    "pose.localizer.pooled=4",
    "pose.localizer.hidden=[16,8]",
    "pose.stage.epochs=1",
    "pose.stage.min_epochs=0",
    "pose.stage.steps=2",
    "pose.stage.batch_size=6",
    "pose.stage.optimizer.name=sgd",
    "pose.stage.optimizer.learning_rate=0.01",
    "pose.teacher=0.0",
    "crop.localizer.size=32",
    "crop.localizer.pooled=4",
    "crop.localizer.hidden=[16,8]",
    "crop.stage.epochs=1",
    "crop.stage.min_epochs=0",
    "crop.stage.steps=2",
    "crop.stage.batch_size=6",
    "crop.stage.optimizer.name=sgd",
    "crop.stage.optimizer.learning_rate=0.01",
)

SCRIPT = """
import sys
from kidseg.train import Setup, train
train(sys.argv[1], sys.argv[2], Setup(method="homogenized", overrides=sys.argv[3:]), device="cpu")
"""


@pytest.mark.ci
def test_two_processes_train_the_model_of_one(tmp_path: Path) -> None:
    """The same losses, batch norms over both halves, one log, one model."""
    write_ellipse_dataset(tmp_path / "data", 3)
    alone = train(
        tmp_path / "data",
        tmp_path / "one",
        Setup(method="homogenized", overrides=SETTINGS),
        device="cpu",
    )
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launched, str(script), str(tmp_path / "data"), str(tmp_path / "two"), *SETTINGS],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert (alone["processes"], summary["processes"]) == (1, 2)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(logs[0]) == len(logs[1]) == 4
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4), a["stage"]
    models = [load_model(tmp_path / name / "model.safetensors") for name in ("one", "two")]
    for part, tensors in models[0].parts.items():
        for name, values in tensors.items():
            torch.testing.assert_close(
                models[1].parts[part][name], values, atol=2e-4, rtol=2e-3, msg=f"{part}.{name}"
            )


def test_one_process_alone_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(3, 2, requires_grad=True)
    assert all_gather(values) is values
    assert rank() == 0
    assert broadcast({"a": 1}) == {"a": 1}
    assert shared_map(lambda n: 2 * n, [3, 1, 2]) == [6, 2, 4]
    assert shared_map(str, []) == []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert local_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (local_device("cuda"), local_device("cpu")) == ("cuda:3", "cpu")


def test_shared_norms_keep_state_and_parameters() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    image = torch.rand(5, 1, 8, 8)
    net(image)
    before, expected = set(map(id, net.parameters())), net(image)
    names = list(net.state_dict())
    share_norms(net)
    assert isinstance(net[1][0], SharedBatchNorm)
    assert set(map(id, net.parameters())) == before and list(net.state_dict()) == names
    torch.testing.assert_close(net(image), expected)
    with pytest.raises(ValueError, match="cannot be shared"):
        SharedBatchNorm.like(nn.BatchNorm2d(4, affine=False))


NORMS = """
import os, sys, torch
from pathlib import Path
from torch import nn
from kidseg.distributed import SharedBatchNorm, joined, rank

torch.manual_seed(0)
values = 1000.0 + torch.randn(8, 3, 5, 5)  # the mean is far from 0, as after a ReLU or a bias
whole, shared = nn.BatchNorm2d(3), SharedBatchNorm.like(nn.BatchNorm2d(3))
one, part = values.clone().requires_grad_(), values.clone().requires_grad_()
weight = torch.rand_like(values)
(whole(one) * weight).sum().backward()
with joined(torch.device("cpu")):
    own = slice(0, 3) if rank() == 0 else slice(3, 8)
    found = shared(part[own])
    (found * weight[own]).sum().backward()
torch.testing.assert_close(found, whole(one)[own], rtol=1e-3, atol=1e-3)
torch.testing.assert_close(part.grad[own], one.grad[own], rtol=1e-2, atol=1e-3)
whole.reset_running_stats(), whole(one)
torch.testing.assert_close(shared.running_var, whole.running_var, rtol=1e-3, atol=0.0)
torch.testing.assert_close(shared.running_mean, whole.running_mean)
Path(sys.argv[1], f"said {os.environ['RANK']}").write_text("equal")
"""


CLOCKS = """
import os, sys, time, torch
from pathlib import Path
from torch import nn
from kidseg.config import StageConfig
from kidseg.errors import ModelError
from kidseg.stage import Stage
from kidseg.distributed import joined, rank
from kidseg.train.loop import Run, fit

class Slope(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
    def forward(self):
        return (self.weight - 3.0).square()

class Nothing:
    names = ()
    def to(self, device):
        return self

net = Slope()
def loss(called, batch):
    time.sleep(0.02 * rank())
    return {"loss": called()}
def validate():
    time.sleep(0.03 * rank())
    return {"score": 0.0}
config = StageConfig(epochs=1000, min_epochs=0, budget_s=0.5)
stage = Stage(name="slope", net=net, config=config, steps=1, batch=lambda step: Nothing(),
              loss=loss, validate=validate)

def say(line):
    with Path(sys.argv[1], f"said {os.environ['RANK']}").open("a") as said:
        said.write(line + "\\n")

def threads():
    names = [task / "comm" for task in Path("/proc/self/task").iterdir()]
    return [name for path in names if "gloo" in (name := path.read_text())]

try:
    with joined(torch.device("cpu")):
        fitted = fit(stage, Run(folder=Path(sys.argv[1]), device=torch.device("cpu")))
        say(f"END {fitted.epochs} {fitted.stopped} {net.weight.item()}")
except ModelError as error:
    say(f"END {error.code}")
say(f"LEFT {threads()}")
"""


def in_two_processes(folder: Path, code: str) -> None:
    """Run a script in two processes, with the folder as its argument."""
    (folder / "script.py").write_text(code)
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launched, str(folder / "script.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def said_in_two_processes(folder: Path, code: str) -> list[str]:
    """The lines that the processes said, of both together, in order."""
    in_two_processes(folder, code)
    return sorted(line for path in folder.glob("said *") for line in path.read_text().splitlines())


@pytest.mark.ci
def test_a_norm_over_two_processes_is_that_of_one_whatever_the_mean(tmp_path: Path) -> None:
    assert said_in_two_processes(tmp_path, NORMS) == ["equal", "equal"]


@pytest.mark.slow
def test_processes_with_other_clocks_spend_one_budget(tmp_path: Path) -> None:
    """They stop after the same epoch, and their rates fell alike: the same weights to the bit."""
    first, second, *left = said_in_two_processes(tmp_path, CLOCKS)
    assert first == second and "budget" in first
    # A thread of the group that outlives it may abort the process when Python ends.
    assert left == ["LEFT []", "LEFT []"]


@pytest.mark.slow
@pytest.mark.fault("rank dies")
def test_processes_that_fail_leave_their_group(tmp_path: Path) -> None:
    diverged = CLOCKS.replace('{"loss": called()}', '{"loss": called() * float("nan")}')
    found = said_in_two_processes(tmp_path, diverged)
    assert found == [*["END loss-not-finite"] * 2, *["LEFT []"] * 2]


SHARED = """
import json, sys, torch
from pathlib import Path
from kidseg.distributed import all_gather, broadcast, first_alone, joined, rank, shared_map

done = []
def task(item):
    done.append(item)
    return {"item": item, "by": rank()}

with joined(torch.device("cpu")):
    found = {str(n): shared_map(task, [f"case {k}" for k in range(n)]) for n in (5, 2, 1, 0)}
    mine = torch.full((2, 3), float(rank()))
    plain = all_gather(mine)
    weight = torch.full((2, 3), 1.0 + rank(), requires_grad=True)
    (all_gather(weight) * torch.arange(4.0)[:, None]).sum().backward()
    with first_alone() as first:
        alone = first
    Path(sys.argv[1], f"{rank()}.json").write_text(json.dumps({
        "found": found, "done": done, "first": alone, "told": broadcast({"from": rank()}),
        "gathered": plain[:, 0].tolist(), "gradient": weight.grad[:, 0].tolist()}))
"""


@pytest.mark.ci
def test_work_is_shared_and_all_have_all_of_it(tmp_path: Path) -> None:
    """Each item is done once, by one of two; each process has all results, in order."""
    in_two_processes(tmp_path, SHARED)
    first, second = (json.loads((tmp_path / f"{k}.json").read_text()) for k in (0, 1))
    assert first["found"] == second["found"]
    for count in (5, 2, 1, 0):
        results = first["found"][str(count)]
        assert [result["item"] for result in results] == [f"case {k}" for k in range(count)]
        assert [result["by"] for result in results] == [k % 2 for k in range(count)]
    assert first["done"] == ["case 0", "case 2", "case 4", "case 0", "case 0"]
    assert second["done"] == ["case 1", "case 3", "case 1"]
    assert first["told"] == second["told"] == {"from": 0}
    assert (first["first"], second["first"]) == (True, False)
    assert first["gathered"] == second["gathered"] == [0.0, 0.0, 1.0, 1.0]
    # Of both processes' losses, each sees its own rows' weights: 0 and 1, 2 and 3, twice.
    assert (first["gradient"], second["gradient"]) == ([0.0, 2.0], [4.0, 6.0])
