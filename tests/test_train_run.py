"""A training from files to a model: what it writes, refuses, and that nothing stops it for good."""

from __future__ import annotations

import fcntl
import itertools
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ellipses import write_ellipse_dataset
from kidseg.cases.same_images import voxels_sha256
from kidseg.checkpoint import load_model, read_header
from kidseg.config import MethodConfig, PlainConfig, load
from kidseg.device import choose_device
from kidseg.errors import InputError, KidsegError, ModelError, UsageError
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, read, save
from kidseg.plan import Plan
from kidseg.train import Setup, make_store, train
from kidseg.train import software as software_module
from kidseg.train.run import CLOCKS, _workers
from kidseg.train.software import RESUMED, software
from trained import run_plain, stopped_after, tiny, tiny_pose
from weights import weights_of

TINY = tiny(3)
POSE = tiny_pose(2)
quick = partial(run_plain, overrides=TINY)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "ellipses"
    write_ellipse_dataset(root, 4)
    return root


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
        "run.json",
        "state-segment.safetensors",
        "state-segment-before.safetensors",
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
    scans = sorted((data / "imagesTr").iterdir())
    seen = sorted(voxels_sha256(read(scan).volume) for scan in scans)
    assert header["training_set"] == {
        "digest": cases["digest"],
        "cases": 3,
        "images": {"voxels": seen, "complete": True},  # validation, too
    }
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
    first, second, third = (weights_of(tmp_path / name / "model.safetensors") for name in "abc")
    assert first == second != third
    assert len(digests) == 3


@pytest.mark.ci
@pytest.mark.parametrize("method", ["plain", pytest.param("homogenized", marks=pytest.mark.slow)])
def test_workers_that_make_batches_change_no_bit(data: Path, tmp_path: Path, method: str) -> None:
    """Of no stage; how many there were stands in the settings alone."""
    overrides = TINY if method == "plain" else (*TINY, *POSE)
    digests = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        settings = [*overrides, f"workers={workers}"]
        quick(data, out, method=method, overrides=settings)
        digests.append(weights_of(out / "model.safetensors"))
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.ci
def test_after_a_budget_is_gone_each_stage_has_one_epoch(data: Path, tmp_path: Path) -> None:
    summary = quick(
        data, tmp_path / "run", method="homogenized", overrides=(*TINY, *POSE, "budget_s=0.001")
    )
    assert [stage["epochs"] for stage in summary["stages"].values()] == [1, 1]


def test_a_label_that_no_case_has_is_said(data: Path, tmp_path: Path) -> None:
    for name, told in (("whole", []), ("kidneys", ["none of the 3 training cases has tumour"])):
        folder = tmp_path / name
        shutil.copytree(data, folder)
        if told:
            for path in (folder / "labelsTr").iterdir():
                labels = read(path, ReadOptions(values="labels")).volume
                save(Volume(labels.data.clamp(max=1), labels.grid), path, overwrite=True)
        summary = run_plain(folder, tmp_path / f"run-{name}", overrides=tiny(1))
        found = [one["cause"] for one in summary["findings"] if one["code"] == "label-not-learned"]
        assert [cause.split(":")[0] for cause in found] == told


def test_a_run_that_is_there_is_kept_or_replaced(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    quick(data, out)
    with pytest.raises(UsageError) as error:
        quick(data, out)
    assert error.value.code == "output-exists"
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    for wrong in (tmp_path / "nothing", data):
        with pytest.raises(KidsegError):
            quick(wrong, out, validation=["no case"], overwrite=True)
        assert before == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    quick(data, out, overrides=[*TINY, "segment.epochs=1"], overwrite=True)
    assert len((out / "log.jsonl").read_text().splitlines()) == 1


# Resuming


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages, stopped in the second; with a seed, settings and cases of its own."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    chosen: dict[str, Any] = {
        "method": "homogenized",
        "overrides": (*TINY, *POSE),
        "validation": ["ellipse_001"],
        "cases": ["ellipse_000", "ellipse_001", "ellipse_003"],
        "seed": 5,
    }
    with pytest.raises(KeyboardInterrupt):
        quick(data, out, progress=stopped_after("segment", 2), **chosen)
    quick(data, out.with_name("whole"), **chosen)
    return out


@pytest.fixture
def broken(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "run")


def test_a_run_resumes_by_itself(data: Path, stopped: Path, broken: Path) -> None:
    """Method, settings, cases and seed are in its folder; the data set may be elsewhere."""
    moved = shutil.copytree(data, broken.with_name("moved"))
    summary = train(moved, broken, resume=True, device="cpu")
    whole = stopped.with_name("whole")
    assert weights_of(broken / "model.safetensors") == weights_of(whole / "model.safetensors")
    expected = json.loads((whole / "summary.json").read_text())
    for name in ("method", "seed", "cases", "validation", "preset"):
        assert summary[name] == expected[name]


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        ({"seed": 6}, "other-settings", "seed 5, not 6"),
        ({"seed": 0}, "other-settings", "seed 5, not 0"),
        ({"method": "plain"}, "other-settings", "method homogenized, not plain"),
        ({"preset": "demo"}, "other-settings", "with no preset, not demo"),
        ({"tune": "decoder"}, "other-settings", "tune all, not decoder"),
        ({"overrides": ["segment.epochs=4"]}, "other-settings", "segment.epochs 3, not 4"),
        ({"overrides": ["pose.bone=0.5"]}, "other-settings", "pose.bone 0.0, not 0.5"),
        ({"overrides": ["segment.epoch=4"]}, "bad-setting", "epoch"),
        ({"validation": ["ellipse_000"]}, "other-cases", "other cases"),
        ({"cases": ["ellipse_000", "ellipse_001"]}, "other-cases", "other cases"),
        ({"cases": ["nobody"]}, "other-cases", "other cases"),
    ],
)
def test_what_differs_from_the_run_is_refused(
    data: Path, stopped: Path, asked: dict[str, Any], code: str, words: str
) -> None:
    before = sorted((file.name, file.stat().st_mtime_ns) for file in stopped.rglob("*"))
    with pytest.raises(UsageError, match=words) as error:
        train(data, stopped, Setup(**asked), resume=True, device="cpu")
    assert error.value.code == code and error.value.next_step
    assert before == sorted((file.name, file.stat().st_mtime_ns) for file in stopped.rglob("*"))


@pytest.mark.ci
def test_what_agrees_with_the_run_may_be_given(data: Path, broken: Path, tmp_path: Path) -> None:
    settings = tmp_path / "mine.toml"
    settings.write_text("[segment]\nepochs = 3\n")
    setup = Setup(
        method="homogenized",
        config_file=settings,
        overrides=["view.size=32"],
        seed=5,
        cases=["ellipse_003", "ellipse_000"],
        validation=["ellipse_001"],
        tune="all",
    )
    assert train(data, broken, setup, resume=True, device="cpu")["seed"] == 5


def removed(*names: str) -> Callable[[Path], None]:
    def remove(run: Path) -> None:
        for name in names:
            for file in run.glob(name):
                file.unlink()

    return remove


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def replace_(run: Path) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))

    return replace_


def cut(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:-9]) and None


@pytest.mark.ci
@pytest.mark.fault("damaged state or model")
@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (removed("state-segment*"), "missing-state"),
        (removed("state-pose*"), "missing-state"),
        (removed("state-*"), "missing-state"),
        (removed("state-pose*", "log.jsonl"), "missing-state"),
        (removed("run.json"), "missing-record"),
        (removed("run.json", "log.jsonl"), "missing-record"),
        (removed("config.toml"), "damaged-record"),
        (removed("plan.json"), "damaged-record"),
        (removed("cases.json"), "damaged-record"),
        (replaced("run.json", '"seed": 5', '"seed": 6'), "damaged-record"),
        (replaced("run.json", '"tune": "all"', '"tune": 3'), "damaged-record"),
        (replaced("config.toml", "epochs = 3", "epochs = 4"), "damaged-record"),
        (replaced("plan.json", '"mean": ', '"mean": 1'), "damaged-record"),
        (replaced("cases.json", "ellipse_003", "ellipse_002"), "damaged-record"),
        (replaced("log.jsonl", '"val_score": 0.', '"val_score": 0.1'), "damaged-log"),
        (cut("log.jsonl"), "damaged-log"),
        (cut("run.json"), "damaged-record"),
        (lambda run: (run / "log.jsonl").write_text("[]\n"), "damaged-log"),
        (lambda run: (run / "log.jsonl").write_bytes(b"\xff\xfe"), "damaged-log"),
        (lambda run: (run / "run.json").write_text("{}"), "damaged-record"),
        (lambda run: (run / "run.json").write_text("[" * 9999), "damaged-record"),
    ],
)
def test_a_run_with_missing_or_altered_files_is_never_a_fresh_start(
    data: Path, broken: Path, damage: Callable[[Path], None], code: str
) -> None:
    damage(broken)
    with pytest.raises(ModelError) as error:
        train(data, broken, resume=True, device="cpu")
    assert (error.value.code, error.value.exit_code) == (code, 6)
    assert error.value.next_step and error.value.path
    assert not (broken / "model.safetensors").exists()


@pytest.mark.ci
@pytest.mark.fault("damaged state or model")
def test_the_state_of_another_run_is_refused(data: Path, stopped: Path, broken: Path) -> None:
    """Also one of the same network, and of another stage of this run."""
    for name in ("state-pose.safetensors", "state-segment.safetensors"):
        shutil.copyfile(stopped / "state-pose.safetensors", broken / "state-segment.safetensors")
        with pytest.raises(ModelError) as error:
            train(data, broken, resume=True, device="cpu")
        assert error.value.code == "state-of-another-run", name
    with pytest.raises(KeyboardInterrupt):
        quick(data, broken.with_name("other"), progress=stopped_after("segment", 1), seed=5)
    shutil.copyfile(
        broken.with_name("other") / "state-segment.safetensors",
        broken / "state-segment.safetensors",
    )
    with pytest.raises(ModelError) as error:
        train(data, broken, resume=True, device="cpu")
    assert error.value.code == "state-of-another-run"


@pytest.mark.ci
def test_a_log_that_lacks_the_last_line_is_completed(
    data: Path, stopped: Path, broken: Path
) -> None:
    """A kill may come between the state and its line."""
    lines = (broken / "log.jsonl").read_text().splitlines(keepends=True)
    (broken / "log.jsonl").write_text("".join(lines[:-1]))
    train(data, broken, resume=True, device="cpu")
    found, whole = (
        [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
        for run in (broken, stopped.with_name("whole"))
    )
    assert [(line["stage"], line["epoch"], line["loss"]) for line in found] == [
        (line["stage"], line["epoch"], line["loss"]) for line in whole
    ]


@pytest.mark.ci
@pytest.mark.fault("damaged state or model")
def test_the_previous_state_is_used_loudly(data: Path, stopped: Path, broken: Path) -> None:
    cut("state-segment.safetensors")(broken)
    with pytest.warns(match="previous one is used"):
        train(data, broken, resume=True, device="cpu")
    whole = stopped.with_name("whole")
    assert weights_of(broken / "model.safetensors") == weights_of(whole / "model.safetensors")


def test_a_finished_run_resumed_is_the_same(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = quick(data, out)
    again = quick(data, out, resume=True)
    assert first["model"] == again["model"]
    assert first["validation"] == again["validation"]


@pytest.mark.ci
@pytest.mark.fault("resumed by another version")
def test_only_software_that_trained_an_epoch_has_continued_a_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not if its resume failed, nor if there was nothing left to train."""
    out = tmp_path / "run"

    def is_said() -> bool:
        summary = quick(data, out, resume=True)
        said = "other-software" in {finding["code"] for finding in summary["findings"]}
        assert (out / RESUMED).exists() == said
        return said

    with pytest.raises(KeyboardInterrupt):
        quick(data, out, progress=stopped_after("segment", 1))
    begun = dict(software())
    monkeypatch.setattr(software_module, "software", lambda: {**begun, "torch": "9.9"})
    states = {path: path.read_bytes() for path in out.glob("state-*")}
    for path in states:
        path.write_bytes(b"damaged")
    with pytest.raises(ModelError):
        is_said()
    assert states and not (out / RESUMED).exists()
    for path, content in states.items():
        path.write_bytes(content)
    finished = shutil.copytree(out, tmp_path / "finished")
    assert is_said()
    monkeypatch.setattr(software_module, "software", lambda: begun)
    out = finished
    assert not is_said()
    monkeypatch.setattr(software_module, "software", lambda: {**begun, "torch": "9.9"})
    assert not is_said()


@pytest.mark.fault("two jobs, one folder")
def test_two_trainings_never_share_a_folder(data: Path, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "run"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError) as error:
            quick(data, out)
    assert error.value.code == "in-use"


@pytest.mark.fault("SIGTERM")
def test_stopped_while_its_folder_is_locked_it_leaves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = fcntl.flock

    def stopped(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        locks(*arguments)

    monkeypatch.setattr(fcntl, "flock", stopped)
    # In the background of a shell SIGINT is ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            quick(data, tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "run").exists()


@pytest.mark.fault("damaged state or model")
def test_a_damaged_state_is_never_a_fresh_start(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    quick(data, out)
    for state in out.glob("state-*.safetensors"):
        state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(ModelError) as error:
        quick(data, out, resume=True)
    assert error.value.code == "damaged-state"


# Folders that are no run


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["data set", "store", "letters", "file"])
def test_nothing_is_written_into_a_folder_of_another_kind(
    data: Path, tmp_path: Path, kind: str, overwrite: bool
) -> None:
    out = tmp_path / "out"
    if kind == "data set":
        shutil.copytree(data, out)
    elif kind == "store":
        make_store(data, out, Setup(method="plain", overrides=TINY))
    elif kind == "letters":
        out.mkdir()
        (out / "letter.txt").write_text("dear")
        (out / "config.toml").write_text("mine = 1")
    else:
        out.write_text("dear")
    before = {file: file.stat().st_mtime_ns for file in [out, *out.rglob("*")]}
    with pytest.raises(UsageError) as error:
        quick(data, out, overwrite=overwrite)
    assert error.value.code == ("output-exists" if kind == "file" else "other-folder")
    assert before == {file: file.stat().st_mtime_ns for file in [out, *out.rglob("*")]}


@pytest.mark.ci
def test_what_else_is_in_the_folder_of_a_run_stays(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    quick(data, out)
    (out / "notes.txt").write_text("mine")
    quick(data, out, overwrite=True)
    assert (out / "notes.txt").read_text() == "mine"


def test_a_run_that_was_refused_leaves_nothing(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        quick(data, tmp_path / "new", validation=["nobody"])
    with pytest.raises(KeyboardInterrupt):
        quick(data, tmp_path / "new", progress=stopped_after("planning", 2))
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys
from pathlib import Path
import torch
from kidseg.train import Setup, make_store, train

torch.set_num_threads(1)
overrides = sys.argv[3:]
train(Path(sys.argv[1]), Path(sys.argv[2]), Setup(method="homogenized", overrides=overrides),
      device="cpu", resume=(Path(sys.argv[2]) / "run.json").exists(),
      progress=lambda *a: print(*a[:3], flush=True))
"""


@pytest.mark.slow
@pytest.mark.requirement("same bits")
@pytest.mark.fault("kill -9 while training")
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
    setup = Setup(method="homogenized", overrides=overrides)
    train(data, whole, setup, device="cpu")
    for moment in ("pose 1", "segment 1"):
        process = start(broken)
        assert process.stdout is not None
        assert any(line.startswith(moment) for line in process.stdout)
        time.sleep(0.01)
        process.kill()
        process.wait()
    assert not (broken / "model.safetensors").exists()
    train(data, broken, setup, device="cpu", resume=True)
    weights = [weights_of(out / "model.safetensors") for out in (whole, broken)]
    assert weights[0] == weights[1]
    figures = [json.loads((out / "summary.json").read_text()) for out in (whole, broken)]
    assert figures[0]["validation"] == figures[1]["validation"]
