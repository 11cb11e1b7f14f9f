"""Stopped by SIGTERM or Ctrl-C: what is kept is said, and goes on to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ellipses import write_ellipse_dataset
from kidseg.cli.studies import _kept
from weights import weights_of

SETTINGS = (
    "view.size=32",
    "unet.size=32",
    "unet.features=4",
    "precision=fp32",
    "segment.epochs=40",
    "segment.min_epochs=0",
    "segment.patience=null",
    "segment.steps=2",
    "segment.batch_size=6",
)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "ellipses"
    write_ellipse_dataset(root, 8)
    return root


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kidseg", *map(str, arguments)],
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def training(data: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    settings = [word for text in (*SETTINGS, *more) for word in ("--set", text)]
    return start("train", data, "-o", out, "--method", "plain", "--device", "cpu", *settings)


def wait_until(happened: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert training(data, out).wait(timeout=120) == 0
    return weights_of(out / "model.safetensors")


@pytest.mark.slow
@pytest.mark.fault("SIGTERM")
@pytest.mark.parametrize(
    ("number", "workers", "group"),
    [(signal.SIGTERM, 0, False), (signal.SIGTERM, 2, True), (signal.SIGINT, 0, True)],
)
def test_a_stopped_training_says_how_to_resume_and_does(
    data: Path, tmp_path: Path, whole: str, number: signal.Signals, workers: int, group: bool
) -> None:
    """Also where the signal reaches all its processes, as from a terminal or a job system."""
    out = tmp_path / "my run"
    process = training(data, out, f"workers={workers}")
    wait_until((out / "state-segment-before.safetensors").exists, process)
    (os.killpg if group else os.kill)(process.pid, number)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == CODES[number], said
    assert printed == "" and "Traceback" not in said
    (line,) = [text for text in said.splitlines() if "Continue with" in text]
    epoch = len((out / "log.jsonl").read_text().splitlines())
    assert f"The state after epoch {epoch} of stage 'segment' is saved" in line
    assert f"kidseg train {data} -o '{out}' --resume --device cpu" in line
    assert not list(out.glob(".kidseg*")) and not (out / "model.safetensors").exists()
    again = start("train", data, "-o", out, "--resume", "--device", "cpu", "--quiet")
    assert again.wait(timeout=120) == 0
    assert weights_of(out / "model.safetensors") == whole


@pytest.mark.fault("SIGTERM")
def test_stopped_before_anything_is_trained_it_leaves_nothing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = training(data, out)
    wait_until((out / ".lock").exists, process)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in said
    if (out / "run.json").exists():  # it had planned by then, and was reading
        assert "--resume" in said
    else:
        assert "nothing is kept" in said and not out.exists()


@pytest.mark.slow
@pytest.mark.fault("SIGTERM")
def test_a_stopped_store_is_finished_by_the_same_command(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    arguments = ("store", data, "-o", out, "--method", "plain", "--set", "view.size=32")
    process = start(*arguments, "-j", "2")
    wait_until((out / "begun.json").exists, process)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "run the same command again" in said
    assert not (out / "store.json").exists() and not list(out.rglob(".kidseg*"))
    assert start(*arguments, "--quiet").wait(timeout=120) == 0
    assert (out / "store.json").exists()


@pytest.mark.slow
@pytest.mark.fault("SIGTERM")
def test_a_stopped_demo_says_how_to_make_it_again(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = ("demo", "-o", out, "-n", "5", "--held-out", "2", "--quiet")
    process = start(*arguments)
    wait_until((out / "patients").exists, process)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in said
    assert str(out) in said and "with --overwrite" in said
    assert start(*arguments, "--dry-run", "--overwrite").wait(timeout=60) == 0


def stopped_while(body: str) -> subprocess.CompletedProcess[str]:
    """Run statements in a process that listens as a command does; `stop()` sends it SIGTERM."""
    code = (
        "import os, signal, time\n"
        "from kidseg.cli import stopping\n"
        "stopping.listen()\n"
        "stop = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        f"try:\n    {body}\nexcept KeyboardInterrupt:\n    stopping.end(130, False)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


STOPPED_IN_AN_IMPORT = """
import os, runpy, signal, sys

class Stop:
    def find_spec(self, name, *rest):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Stop())
sys.argv = ["kidseg", "--version"]
runpy.run_module("kidseg", run_name="__main__")
"""


@pytest.mark.parametrize("apart", [[], ["unshare", "--pid", "--fork"]])
def test_it_is_stopped_while_it_imports(apart: list[str]) -> None:
    """Also as the first process of a container, which only signals that it handles can stop."""
    if apart and subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace of processes needs root")
    words = [*apart, sys.executable, "-c", STOPPED_IN_AN_IMPORT]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (143, ""), done
    assert "stopped by SIGTERM" in done.stderr


@pytest.mark.fault("SIGTERM")
def test_a_stop_that_a_library_discards_is_raised_again() -> None:
    """As hasattr() of compiled code does, with any exception."""
    discarded = "try: stop()\n    except KeyboardInterrupt: pass\n    time.sleep(30)"
    done = stopped_while(discarded)
    assert done.returncode == 143 and "stopped by SIGTERM" in done.stderr


@pytest.mark.fault("SIGTERM")
def test_a_stop_is_not_raised_again_while_the_command_cleans_up() -> None:
    cleaning = "try: stop()\n    finally:\n        time.sleep(1.2)\n        print('removed')"
    done = stopped_while(cleaning)
    assert done.returncode == 143 and done.stdout == "removed\n"


def test_a_stopped_study_claims_no_state_that_is_not_there(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "plain-0"
    run.mkdir(parents=True)
    (run / "stamp.json").touch()
    assert "nothing was trained yet" in _kept(tmp_path)
    (run / "state-segment-before.safetensors").touch()
    assert "states are saved" in _kept(tmp_path)
