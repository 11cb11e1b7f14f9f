"""A training from files to a model: what it writes, refuses, and that nothing stops it for good."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ellipses import write_ellipse_dataset
from kidseg.checkpoint import load_model, read_header
from kidseg.config import MethodConfig, PlainConfig, load
from kidseg.device import choose_device
from kidseg.errors import InputError, ModelError, UsageError
from kidseg.plan import Plan
from kidseg.train import Setup, train
from kidseg.train.run import CLOCKS, _workers

TINY = (
    "view.size=32",
    "unet.size=32",
    "unet.features=4",
    "precision=fp32",
    "segment.epochs=3",
    "segment.min_epochs=0",
    "segment.steps=2",
    "segment.batch_size=6",
)
POSE = (
    "pose.localizer.size=32",
    "pose.localizer.pooled=4",
    "pose.localizer.hidden=[16,8]",
    "pose.stage.epochs=2",
    "pose.stage.min_epochs=0",
    "pose.stage.steps=2",
    "pose.stage.batch_size=6",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "ellipses"
    write_ellipse_dataset(root, 4)
    return root


def quick(data: Path, out: Path, **changes: Any) -> dict[str, Any]:
    asked = {"method": "plain", "overrides": TINY, "device": "cpu", **changes}
    names = {field.name for field in fields(Setup)}
    setup = Setup(**{name: asked.pop(name) for name in list(asked) if name in names})
    return train(data, out, setup, **asked)


def test_what_it_writes(data: Path, tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    out = tmp_path / "run"
    summary = quick(
        data, out, seed=3, progress=lambda what, done, total, _: heard.append((what, done, total))
    )
    assert {file.name for file in out.iterdir()} == {
        ".lock",
        "cases.json",
        "config.toml",
        "curves.png",
        "log.jsonl",
        "model.safetensors",
        "plan.json",
        "state-segment.pt",
        "state-segment-before.pt",
        "summary.json",
    }
    assert json.loads((out / "summary.json").read_text()) == summary
    assert heard[-3:] == [("segment", 1, 3), ("segment", 2, 3), ("segment", 3, 3)]
    config = load(PlainConfig, file=out / "config.toml")
    assert config == load(PlainConfig, overrides=TINY)
    plan = Plan.from_dict(json.loads((out / "plan.json").read_text()))
    cases = json.loads((out / "cases.json").read_text())
    assert list(plan.training) == cases["training"] and len(cases["validation"]) == 1
    assert summary["cases"]["training_slices"] == 24
    assert summary["peak_memory_mb"]["process"] > 100
    assert summary["seconds"]["segment"] > 0

    header = read_header(out / "model.safetensors")
    assert header["method"] == "plain"
    assert header["labels"]["names"] == {"1": "kidney", "2": "tumour"}
    assert header["training_set"] == {"digest": cases["digest"], "cases": 3}
    assert Plan.from_dict(header["plan"]) == plan
    assert load(PlainConfig, base=header["config"]) == config
    model = load_model(out / "model.safetensors")
    assert model.sha256 == summary["model"]["sha256"]
    assert set(model.parts) == {"segment"}


def test_the_same_seed_gives_the_same_model(data: Path, tmp_path: Path) -> None:
    digests = [
        quick(data, tmp_path / name, seed=seed)["model"]["sha256"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    first, second, third = (
        load_model(tmp_path / name / "model.safetensors").header["tensors_sha256"] for name in "abc"
    )
    assert first == second != third
    assert len(digests) == 3


@pytest.mark.parametrize("method", ["plain", "homogenized"])
def test_workers_that_make_batches_change_no_bit(data: Path, tmp_path: Path, method: str) -> None:
    """Of no stage; how many there were stands in the settings alone."""
    overrides = TINY if method == "plain" else (*TINY, *POSE)
    digests = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        settings = [*overrides, f"workers={workers}"]
        quick(data, out, method=method, overrides=settings)
        digests.append(read_header(out / "model.safetensors")["tensors_sha256"])
    assert digests[0] == digests[1]


def test_as_many_workers_as_are_asked_for_and_by_default_none_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU is fed by all cores but one, at most eight."""
    cpu = choose_device("cpu", "fp32")
    cuda = replace(cpu, torch=torch.device("cuda"))

    def asked(workers: int | None, clock: str = "wall") -> MethodConfig:
        return MethodConfig(workers=workers, budget_clock=clock)

    assert [_workers(asked(wanted), cpu) for wanted in (None, 0, 3)] == [0, 0, 3]
    for cores, expected in ((1, 0), (4, 3), (64, 8), (None, 0)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert _workers(asked(None), cuda) == expected
        assert _workers(asked(2), cuda) == 2
        assert _workers(asked(None, "processor"), cuda) == 0, "they would not be counted"
    with pytest.raises(ValueError, match="does not count workers"):
        asked(1, "processor")


def test_the_cases_may_be_named(data: Path, tmp_path: Path) -> None:
    summary = quick(
        data,
        tmp_path / "run",
        cases=["ellipse_000", "ellipse_002", "ellipse_003"],
        validation=["ellipse_002"],
    )
    assert summary["cases"]["training"] == ["ellipse_000", "ellipse_003"]
    assert summary["cases"]["validation"] == ["ellipse_002"]


@pytest.mark.parametrize(
    ("changes", "error", "code"),
    [
        ({"method": "best"}, UsageError, "unknown-method"),
        ({"preset": "best"}, UsageError, "unknown-preset"),
        ({"overrides": ["segment.epoch=3"]}, UsageError, "bad-setting"),
        ({"validation": ["nobody"]}, UsageError, "unknown-case"),
        ({"cases": ["ellipse_000"], "validation": ["ellipse_000"]}, UsageError, "bad-split"),
        ({"cases": ["ellipse_000"]}, InputError, "too-few-patients"),
        ({"resume": True}, UsageError, "nothing-to-resume"),
        ({"device": "gpu"}, UsageError, "unknown-device"),
    ],
)
def test_what_it_refuses(
    data: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], code: str
) -> None:
    with pytest.raises(error) as caught:
        quick(data, tmp_path / "run", **changes)
    assert caught.value.code == code  # type: ignore[attr-defined]
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_whole_trainings_budget_leaves_the_last_stage_the_rest(
    data: Path, tmp_path: Path
) -> None:
    """Reading and the stages before count; a stage's own smaller budget holds."""
    start = time.perf_counter()
    summary = quick(
        data,
        tmp_path / "run",
        method="homogenized",
        overrides=(
            *TINY,
            *POSE,
            "pose.stage.epochs=100000",
            "pose.stage.budget_s=0.5",
            "segment.epochs=100000",
            "segment.patience=null",
            "budget_s=4.0",
        ),
    )
    took = time.perf_counter() - start
    pose, segment = summary["stages"]["pose"], summary["stages"]["segment"]
    assert (pose["stopped"], segment["stopped"]) == ("budget", "budget")
    assert segment["seconds"] < 4.0 - pose["seconds"]
    assert took > 4.0


def test_seconds_may_be_the_processors(data: Path, tmp_path: Path) -> None:
    """A loss that sleeps takes wall time, but hardly any of the processor's."""
    slow = quick(data, tmp_path / "slow", progress=lambda *_: time.sleep(0.3))
    spare = quick(
        data,
        tmp_path / "spare",
        overrides=(*TINY, "budget_clock=processor"),
        progress=lambda *_: time.sleep(0.3),
    )
    assert slow["seconds"]["prepare"] - spare["seconds"]["prepare"] > 1.0


def test_stages_are_measured_by_the_clock_of_the_settings(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ticks at each look: an epoch is a second."""
    ticks = itertools.count()
    monkeypatch.setitem(CLOCKS, "processor", lambda: float(next(ticks)))
    summary = quick(data, tmp_path / "run", overrides=(*TINY, "budget_clock=processor"))
    assert summary["seconds"]["segment"] == summary["stages"]["segment"]["epochs"] > 0


def test_after_a_budget_is_gone_each_stage_has_one_epoch(data: Path, tmp_path: Path) -> None:
    summary = quick(
        data, tmp_path / "run", method="homogenized", overrides=(*TINY, *POSE, "budget_s=0.001")
    )
    assert [stage["epochs"] for stage in summary["stages"].values()] == [1, 1]


def test_a_run_that_is_there_is_kept_or_replaced(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    quick(data, out)
    with pytest.raises(UsageError) as error:
        quick(data, out)
    assert error.value.code == "output-exists"
    fewer = [*TINY, "segment.epochs=1"]
    with pytest.raises(UsageError) as error:
        quick(data, out, overrides=fewer, resume=True)
    assert error.value.code == "other-settings"
    with pytest.raises(UsageError) as error:
        quick(data, out, seed=7, validation=["ellipse_001"], resume=True)
    assert error.value.code == "other-cases"
    quick(data, out, overrides=fewer, overwrite=True)
    assert len((out / "log.jsonl").read_text().splitlines()) == 1


def test_a_run_is_not_resumed_with_another_seed(data: Path, tmp_path: Path) -> None:
    """The same settings and cases; but its batches and its model would be of two seeds."""
    chosen = {"validation": ["ellipse_001"], "overrides": [*TINY, "segment.epochs=1"]}
    quick(data, tmp_path / "run", seed=1, **chosen)
    with pytest.raises(UsageError, match="started with seed 1, not 2") as error:
        quick(data, tmp_path / "run", seed=2, resume=True, **chosen)
    assert error.value.code == "other-settings"
    assert quick(data, tmp_path / "run", seed=1, resume=True, **chosen)["seed"] == 1


def test_a_finished_run_resumed_is_the_same(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = quick(data, out)
    again = quick(data, out, resume=True)
    assert first["model"] == again["model"]
    assert first["validation"] == again["validation"]


def test_two_trainings_never_share_a_folder(data: Path, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "run"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError) as error:
            quick(data, out)
    assert error.value.code == "in-use"


def test_a_damaged_state_is_never_a_fresh_start(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    quick(data, out)
    for state in out.glob("state-*.pt"):
        state.write_bytes(state.read_bytes()[:-10])
    with (
        pytest.raises(ModelError) as error,
        pytest.warns(match="damaged"),
    ):
        quick(data, out, resume=True)
    assert error.value.code == "damaged-state"


KILLED = """
import sys
from pathlib import Path
import torch
from kidseg.train import Setup, train

torch.set_num_threads(1)
overrides = sys.argv[3:]
train(Path(sys.argv[1]), Path(sys.argv[2]), Setup(method="homogenized", overrides=overrides),
      device="cpu", resume=(Path(sys.argv[2]) / "config.toml").exists(),
      progress=lambda *a: print(*a[:3], flush=True))
"""


def test_killed_in_each_stage_it_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(KILLED)
    overrides = [*TINY, *POSE, "pose.target=body"]

    def start(out: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script), str(data), str(out), *overrides],
            stdout=subprocess.PIPE,
            text=True,
        )

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(whole).wait(timeout=120) == 0
    for moment in ("pose 1", "segment 1"):
        process = start(broken)
        assert process.stdout is not None
        assert any(line.startswith(moment) for line in process.stdout)
        time.sleep(0.01)
        process.kill()
        process.wait()
    assert not (broken / "model.safetensors").exists()
    assert start(broken).wait(timeout=120) == 0
    headers = [read_header(out / "model.safetensors") for out in (whole, broken)]
    assert headers[0]["tensors_sha256"] == headers[1]["tensors_sha256"]
    figures = [json.loads((out / "summary.json").read_text()) for out in (whole, broken)]
    assert figures[0]["validation"] == figures[1]["validation"]
