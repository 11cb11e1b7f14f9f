"""Scans segmented by jobs of a real SLURM: jobs and processes are really killed.

SLURM runs on this machine: slurm.py. Skipped where it or dask-jobqueue is not installed.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="the package distributed is not installed")
pytest.importorskip("dask_jobqueue", reason="the package dask-jobqueue is not installed")

import psutil

import slurm as slurms
from test_segment_workers import SCANS, is_clean, labels_in, record, root, start
from test_workers import within

__all__ = ["root"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurms.missing()), reason=slurms.missing()),
]

MANY = 4 * SCANS
STARTED: list[subprocess.Popen[str]] = []
PATIENCE_S = 600.0  # on a machine that is busy


@pytest.fixture(scope="module")
def slurm() -> Iterator[slurms.Slurm]:
    with (
        tempfile.TemporaryDirectory(prefix="slurm-") as name,  # the path of a socket must be short
        slurms.slurm(Path(name)) as running,
    ):
        yield running
        for process in STARTED:
            process.kill()
            process.wait()


@pytest.fixture
def scans(root: Path, tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    for k in range(MANY):
        shutil.copy(root / "scans" / f"s{k % SCANS}.nii.gz", tmp_path / "scans" / f"t{k}.nii.gz")
    return tmp_path / "scans"


def submit(
    slurm: slurms.Slurm, root: Path, scans: Path, *more: str, jobs: int = 2, **variables: str
) -> subprocess.Popen[str]:
    """`kidseg segment --cluster slurm` into out/ beside the scans."""
    described = {
        "CORES": "1",
        "MEMORY": "2GB",
        "INTERFACE": "lo",
        "LOG_DIRECTORY": str(scans.parent / "logs"),
    }
    settings = {f"DASK_JOBQUEUE__SLURM__{name}": value for name, value in described.items()}
    settings["DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT"] = "2s"
    environment = {**slurm.environment, **settings, **variables}
    out = scans.parent / "out"
    process = start(root, scans, out, "--cluster", "slurm", *more, jobs=jobs, **environment)
    STARTED.append(process)
    return process


def check_done(root: Path, scans: Path) -> None:
    out = scans.parent / "out"
    own = labels_in(root / "alone")
    assert labels_in(out) == {f"t{k}": own[f"s{k % SCANS}"] for k in range(MANY)}
    assert len(record(out)["scans"]) == MANY and not record(out)["failed"] and is_clean(out)


def processes_of(job: str) -> list[psutil.Process]:
    """The processes that segment for a job, below the one that watches over them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("SLURM_JOB_ID") == job:
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if "spawn_main" in " ".join(process.cmdline())]


@pytest.mark.fault("worker killed")
def test_a_job_and_a_worker_that_are_killed_cost_only_their_scans(
    slurm: slurms.Slurm, root: Path, scans: Path
) -> None:
    out = scans.parent / "out"
    process = submit(slurm, root, scans, SLOW="0.7")
    assert within(PATIENCE_S, lambda: len(labels_in(out)) >= 2)
    first, second = slurm.jobs()
    slurm("scancel", first)
    assert within(PATIENCE_S, lambda: len(labels_in(out)) >= 6)
    (worker,) = processes_of(second)
    worker.kill()
    assert within(PATIENCE_S, lambda: any(int(job) > int(second) for job in slurm.jobs())), (
        "submitted anew"
    )
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    check_done(root, scans)
    assert within(30, lambda: not slurm("squeue", "--noheader")), "no job is left"


@pytest.mark.fault("worker killed")
def test_the_only_job_is_submitted_again(slurm: slurms.Slurm, root: Path, scans: Path) -> None:
    """As at its time limit, before all is done; the scan in work is tried again."""
    out = scans.parent / "out"
    process = submit(slurm, root, scans, jobs=1, SLOW="0.3")
    for done in (2, 8):
        assert within(PATIENCE_S, lambda done=done: len(labels_in(out)) >= done)
        (job,) = slurm.jobs()
        slurm("scancel", job)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said
    check_done(root, scans)


@pytest.mark.fault("launcher killed")
def test_jobs_end_with_their_command(slurm: slurms.Slurm, root: Path, scans: Path) -> None:
    out = scans.parent / "out"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        wait = {"DASK_JOBQUEUE__SLURM__DEATH_TIMEOUT": "120"}
        process = submit(slurm, root, scans, "--resume", SLOW="0.7", **wait)
        before = len(labels_in(out))
        assert within(PATIENCE_S, lambda before=before: len(labels_in(out)) > before + 1)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code and "Traceback" not in said, said
        assert within(PATIENCE_S, lambda: not slurm("squeue", "--noheader"))
    again = submit(slurm, root, scans, "--resume")
    _, said = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, said
    check_done(root, scans)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"QUEUE": "nowhere"}, "Invalid partition"),
        ({"JOB_SCRIPT_PROLOGUE": '["exit 3"]'}, "jobs ended before they reached the scheduler"),
    ],
)
def test_jobs_that_cannot_work_are_said(
    slurm: slurms.Slurm, root: Path, scans: Path, variables: dict[str, str], words: str
) -> None:
    own = {f"DASK_JOBQUEUE__SLURM__{name}": value for name, value in variables.items()}
    process = submit(slurm, root, scans, **own)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5 and words in said and "Traceback" not in said, said
    assert not slurm("squeue", "--noheader")
