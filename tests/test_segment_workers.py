"""Scans segmented by workers: real processes are really killed, and nothing but their scan is lost.

The faults are loaded into the worker processes, as dask's preload module.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="the package distributed is not installed")

import psutil

from ellipses import make_ellipse_patient
from kidseg.io import save
from kidseg.segment.cohort_table import SUMMARY
from kidseg.segment.index import RESULT
from test_workers import has_ended, within
from trained import copied

pytestmark = pytest.mark.slow

SCANS = 6
FAULTS = """
import ctypes, os, signal, time
from pathlib import Path
from kidseg.segment.predictor import Predictor

if not hasattr(Predictor, "sound"):  # a preload module is loaded twice
    Predictor.sound = Predictor.__call__

def faulty(self, scan, name="scan"):
    file = Path(name).name
    if "kill" in file:
        os.kill(os.getpid(), signal.SIGKILL)
    if "crash" in file:
        ctypes.string_at(0)
    if "hang" in file:
        time.sleep(1000)
    if "memory" in file:
        raise MemoryError
    if "once" in file and not (Path(os.environ["MARKS"]) / file).exists():
        (Path(os.environ["MARKS"]) / file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(os.environ.get("SLOW", "0")))
    return self.sound(scan, name)

Predictor.__call__ = faulty
"""


@pytest.fixture(scope="module")
def root(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model in run/, scans/s0.nii.gz to s5, their labels by one process in alone/."""
    root = copied(trained, tmp_path_factory.mktemp("workers"))
    (root / "scans").mkdir()
    for k in range(SCANS):
        save(make_ellipse_patient(k).image, root / "scans" / f"s{k}.nii.gz")
    (root / "faults.py").write_text(FAULTS)
    assert start(root, root / "scans", root / "alone", jobs=1).wait(timeout=600) == 0
    return root


def start(
    root: Path, scans: Path, out: Path, *more: str, jobs: int = 2, **variables: str
) -> subprocess.Popen[str]:
    """`kidseg segment` as a process, whose workers have the faults."""
    words = ["segment", str(scans), "-m", str(root / "run"), "-o", str(out), "--device", "cpu"]
    faults = {"DASK_DISTRIBUTED__WORKER__PRELOAD": f'["{root / "faults.py"}"]'}
    return subprocess.Popen(
        [sys.executable, "-m", "kidseg", *words, "-j", str(jobs), *more],
        env={**os.environ, **faults, "MARKS": str(root), **variables},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def labels_in(out: Path) -> dict[str, str]:
    """SHA-256 of the labels of each scan."""
    found = {}
    for file in out.glob("*_seg.nii.gz"):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        found[file.name.removesuffix("_seg.nii.gz")] = digest
    return found


def record(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / RESULT).read_text())
    return content


def table(out: Path) -> dict[str, str]:
    """{scan: status or error}, of the table."""
    rows = csv.DictReader((out / SUMMARY).open(newline=""))
    return {row["name"]: row["error"] or row["status"] for row in rows}


def family_of(process: subprocess.Popen[str]) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


def is_clean(out: Path) -> bool:
    return not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.fault("worker killed")
def test_the_labels_are_those_of_one_process(root: Path, tmp_path: Path) -> None:
    process = start(root, root / "scans", tmp_path / "out")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert labels_in(tmp_path / "out") == labels_in(root / "alone") and is_clean(tmp_path / "out")
    for one, other in zip(
        sorted(record(tmp_path / "out")["scans"], key=lambda entry: entry["name"]),
        sorted(record(root / "alone")["scans"], key=lambda entry: entry["name"]),
        strict=True,
    ):
        assert {k: v for k, v in one.items() if k not in ("seconds", "date")} == {
            k: v for k, v in other.items() if k not in ("seconds", "date")
        }


@pytest.mark.fault("one bad case", "worker killed", "scan that hangs")
def test_whatever_a_scan_does_to_its_process_the_others_are_segmented(
    root: Path, tmp_path: Path
) -> None:
    scans = tmp_path / "scans"
    shutil.copytree(root / "scans", scans)
    for k, name in enumerate(("kill-DOE^JANE", "crash", "hang", "memory", "once")):
        shutil.copy(root / "scans" / f"s{k}.nii.gz", scans / f"{name}.nii.gz")
    (scans / "short.nii.gz").write_bytes((scans / "s0.nii.gz").read_bytes()[:900])
    out = tmp_path / "out"
    process = start(root, scans, out, "--time-limit", "8", "--json")
    printed, said = process.communicate(timeout=240)
    assert process.returncode == 4, said
    errors = {
        "kill-DOE^JANE": "worker-killed",
        "crash": "worker-killed",
        "hang": "time-limit",
        "memory": "out-of-memory",
        "short": "truncated-file",
    }
    done = dict.fromkeys(("once", *(f"s{k}" for k in range(SCANS))), "done")
    assert table(out) == {**done, **errors} and is_clean(out)
    assert {entry["name"]: entry["code"] for entry in record(out)["failed"]} == errors
    summary = json.loads(printed)["summary"]
    assert summary["done"] == SCANS + 1 and summary["failed"]["worker-killed"] == 2
    own = {name: labels_in(root / "alone")[name] for name in labels_in(root / "alone")}
    assert labels_in(out) == {**own, "once": own["s4"]}
    assert not [line for line in said.splitlines() if "distributed" in line]
    assert [line for line in said.splitlines() if "DOE" in line] == said.splitlines()[-1:]


@pytest.mark.parametrize("retries", [0, 2])
def test_a_scan_is_retried_as_often_as_asked(root: Path, tmp_path: Path, retries: int) -> None:
    (tmp_path / "scans").mkdir()
    for k, name in enumerate(("kill", "a")):
        shutil.copy(root / "scans" / f"s{k}.nii.gz", tmp_path / "scans" / f"{name}.nii.gz")
    process = start(root, tmp_path / "scans", tmp_path / "out", "--retries", str(retries))
    process.communicate(timeout=120)
    assert process.returncode == 4
    (failed,) = record(tmp_path / "out")["failed"]
    assert ("once" if retries == 0 else f"{retries + 1} times") in failed["cause"]


@pytest.mark.fault("kill -9 while segmenting", "SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_stopped_run_goes_on_where_it_was(
    root: Path, tmp_path: Path, number: signal.Signals, jobs: int
) -> None:
    out = tmp_path / "out"
    process = start(root, root / "scans", out, "--cluster", "local", jobs=jobs, SLOW="0.7")
    assert within(90, (out / "s1_seg.nii.gz").exists)
    family = family_of(process)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    codes = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
    assert process.returncode == codes[number], said
    assert within(20, lambda: all(map(has_ended, family)))
    if number != signal.SIGKILL:
        assert "--resume" in said and "Traceback" not in said and is_clean(out)
    known = {entry["name"]: entry["date"] for entry in record(out)["scans"]}
    assert known and len(known) < SCANS and set(known) == set(labels_in(out))
    again = start(root, root / "scans", out, "--resume", jobs=jobs)
    again.communicate(timeout=120)
    assert again.returncode == 0 and is_clean(out)
    assert labels_in(out) == labels_in(root / "alone")
    dates = {entry["name"]: entry["date"] for entry in record(out)["scans"]}
    assert {name: dates[name] for name in known} == known, "none is done again"
    assert table(out) == {f"s{k}": "done" for k in range(SCANS)}


@pytest.mark.fault("SIGTERM")
def test_a_signal_to_all_processes_stops_as_one_to_the_first(root: Path, tmp_path: Path) -> None:
    """As Ctrl-C in a terminal, or the end of a job's time."""
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        out = tmp_path / str(code)
        process = start(root, root / "scans", out, SLOW="0.7")
        assert within(90, (out / RESULT).exists)
        family = family_of(process)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == code and "Traceback" not in said, said
        assert within(20, lambda family=family: all(map(has_ended, family)))
        assert is_clean(out)


@pytest.mark.fault("two jobs, one folder")
def test_a_second_run_of_the_same_scans_is_refused(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(root, root / "scans", out, SLOW="4")
    assert within(90, (out / RESULT).exists)
    second = start(root, root / "scans", out, "--resume", jobs=1)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 2 and "another run is segmenting" in said
    _, said = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert labels_in(out) == labels_in(root / "alone") and not record(out)["failed"]


@pytest.fixture
def scheduler(tmp_path: Path) -> Any:
    started = []
    file = tmp_path / "scheduler.json"

    def run(*words: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-m", *map(str, words)], stderr=-3)
        started.append(process)
        return process

    options = ("--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file)
    first = run("distributed.cli.dask_scheduler", *options, "--port", "0")
    assert within(60, file.exists)
    where = ("--scheduler-file", file, "--nworkers", "2", "--nthreads", "1")
    run("distributed.cli.dask_worker", *where, "--no-dashboard", "--local-directory", tmp_path)
    yield first, file
    for process in reversed(started):
        process.terminate()
        process.wait(30)


@pytest.mark.fault("scheduler lost")
def test_a_lost_scheduler_ends_with_what_is_done(
    root: Path, tmp_path: Path, scheduler: tuple[subprocess.Popen[bytes], Path]
) -> None:
    first, file = scheduler
    scans = tmp_path / "scans"
    scans.mkdir()
    for k in range(60):
        shutil.copy(root / "scans" / f"s{k % SCANS}.nii.gz", scans / f"s{k}.nii.gz")
    out = tmp_path / "out"
    process = start(root, scans, out, "--cluster", str(file), jobs=1)
    assert within(120, (out / "s4_seg.nii.gz").exists)
    first.send_signal(signal.SIGKILL)
    start_s = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 5 and "Traceback" not in said, said
    assert "was lost" in said and "--resume" in said and time.monotonic() - start_s < 40
    known = {entry["name"] for entry in record(out)["scans"]}
    assert known == set(labels_in(out)) and is_clean(out)
    again = start(root, scans, out, "--resume")
    again.communicate(timeout=240)
    assert again.returncode == 0 and len(labels_in(out)) == 60


def test_no_worker_can_be_started(root: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('no start')")
    process = start(
        root,
        root / "scans",
        tmp_path / "out",
        DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON="{}",
        DASK_DISTRIBUTED__WORKER__PRELOAD=f'["{tmp_path / "broken.py"}"]',
    )
    _, said = process.communicate(timeout=200)
    assert process.returncode == 5 and "Traceback" not in said, said
