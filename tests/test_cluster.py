"""Workers: a killed one costs only its item, none is left running, none is open to others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="the package distributed is not installed")

import psutil

from kidseg.cluster import Workers, check_workers, over_cluster
from kidseg.errors import KidsegError, ModelError, ResourceError, UsageError
from test_workers import has_ended, within

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Deed:
    """What a task does, and the folder in which it says so."""

    what: str
    at: Path


def do(deed: Deed, folder: Path) -> int:
    (folder / "own").write_text(deed.what)
    mark = deed.at / f"{deed.what}.pid"
    was_here = mark.exists()
    mark.write_text(str(os.getpid()))
    if deed.what == "kill" or (deed.what.startswith("once") and not was_here):
        os.kill(os.getpid(), signal.SIGKILL)
    if deed.what == "crash":
        os.abort()
    if deed.what == "sleep":
        time.sleep(300)
    if deed.what == "raise":
        raise ModelError("no model", code="none")
    time.sleep(0.1)
    return os.getpid()


def deeds(folder: Path, *what: str) -> list[Deed]:
    return [Deed(each, folder) for each in what]


def results_of(
    folder: Path, what: tuple[str, ...], workers: Workers
) -> dict[str, int | KidsegError]:
    (folder / "work").mkdir(exist_ok=True)
    found = over_cluster(do, deeds(folder, *what), workers, folder / "work")
    return {what[k]: result for k, result in found}


def listening(process: psutil.Process) -> set[str]:
    """The addresses at which a process and its children listen; at none, if they end meanwhile."""
    found = []
    for each in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            found += [c.laddr.ip for c in each.net_connections() if c.status == "LISTEN"]
    return set(found)


@pytest.mark.ci
@pytest.mark.fault("worker killed")
def test_a_killed_worker_costs_only_its_item(tmp_path: Path) -> None:
    me = psutil.Process()
    before = {child.pid for child in me.children(recursive=True)}
    work = tmp_path / "work"
    work.mkdir()
    items = deeds(tmp_path, "a", "kill", "once", "b", "c", "d")
    found: dict[str, int | KidsegError] = {}
    addresses: set[str] = set()
    for k, result in over_cluster(do, items, Workers(jobs=2), work):
        found[items[k].what] = result
        addresses |= listening(me)
    assert addresses == {"127.0.0.1"}
    error = found.pop("kill")
    assert isinstance(error, ResourceError) and error.code == "worker-killed"
    assert set(found) == {"a", "once", "b", "c", "d"}
    assert all(isinstance(pid, int) and pid != os.getpid() for pid in found.values())
    tried = [path.parent for path in work.glob("*/*/own") if path.read_text() == "kill"]
    assert len(tried) == 2, "once, and once again"
    left = {child.pid for child in me.children(recursive=True)} - before
    left -= {pid for pid in left if "resource_tracker" in " ".join(psutil.Process(pid).cmdline())}
    assert within(20, lambda: all(map(has_ended, left)))


@pytest.mark.slow
def test_what_a_task_may_do_to_its_process(tmp_path: Path) -> None:
    workers = Workers(jobs=1, retries=0, limit_s=5)
    found = results_of(tmp_path, ("a", "crash", "sleep", "b"), workers)
    codes = {what: r.code for what, r in found.items() if isinstance(r, KidsegError)}
    assert codes == {"crash": "worker-killed", "sleep": "time-limit"}


@pytest.mark.slow
def test_an_error_of_a_task_ends_all_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match="no model"):
        results_of(tmp_path, ("raise", "sleep", "sleep2"), Workers(jobs=2))
    assert time.monotonic() - start < 60
    pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
    assert within(20, lambda: all(map(has_ended, pids)))


MAIN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from kidseg.cluster import Workers
from test_cluster import results_of
if __name__ == "__main__":
    results_of(Path(sys.argv[1]), ("sleep", "sleep"), Workers(jobs=2))
"""


@pytest.mark.slow
@pytest.mark.fault("launcher killed")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_client(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    process = subprocess.Popen([sys.executable, script, tmp_path, HERE])
    assert within(90, (tmp_path / "sleep.pid").exists)
    family = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    assert len(family) >= 2
    process.send_signal(number)
    process.wait(timeout=30)
    assert within(30, lambda: all(map(has_ended, family)))


# A scheduler of its own, as at an address


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Callable[[], tuple[str, list[subprocess.Popen[bytes]]]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> tuple[str, list[subprocess.Popen[bytes]]]:
        file = tmp_path / "scheduler.json"
        options = ("--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", file)
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
        environment = {**os.environ, "PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{HERE}"}
        first = [*command, *options, "--port", "0"]
        started.append(subprocess.Popen(first, env=environment, stderr=-3))
        assert within(60, file.exists)
        where = ("--scheduler-file", file, "--nthreads", "4", "--host", "127.0.0.1")
        command = [sys.executable, "-m", "distributed.cli.dask_worker"]
        worker = [*command, *where, "--no-dashboard", "--local-directory", tmp_path]
        started.append(subprocess.Popen(worker, env=environment, stderr=-3))
        return str(file), started

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.fault("scheduler lost")
def test_a_scheduler_that_is_there_and_then_lost(
    scheduler: Callable[[], tuple[str, list[subprocess.Popen[bytes]]]], tmp_path: Path
) -> None:
    """A worker of several threads has one item at a time; its process is the limit of memory."""
    file, processes = scheduler()
    found = results_of(tmp_path, ("a", "b", "kill", "c"), Workers(cluster=file, retries=0))
    assert isinstance(found["kill"], ResourceError) and found["kill"].code == "worker-killed"
    assert {what for what, r in found.items() if isinstance(r, int)} == {"a", "b", "c"}
    work = tmp_path / "second"
    work.mkdir()
    results = over_cluster(do, deeds(tmp_path, "d", "sleep"), Workers(cluster=file), work)
    next(results)
    assert within(30, (tmp_path / "sleep.pid").exists)
    processes[0].kill()
    with pytest.raises(ResourceError) as error:
        next(results)
    assert error.value.code == "scheduler-lost" and "--resume" in error.value.next_step


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        with pytest.raises(ResourceError) as error:
            results_of(tmp_path, ("a",), Workers(cluster="tcp://127.0.0.1:9"))
        assert error.value.code == "no-scheduler"
    for wrong in ("nonsense://x", "here be dragons", "none.json"):
        with pytest.raises(KidsegError) as refused:
            results_of(tmp_path, ("a",), Workers(cluster=wrong))
        assert refused.value.code in ("bad-workers", "no-scheduler")


@pytest.mark.parametrize(
    "workers",
    [
        Workers(cluster="tcp://host:1", jobs=2),
        Workers(cluster=" "),
        Workers(limit_s=0),
        Workers(limit_s=-1),
    ],
)
def test_impossible_workers_are_refused_before_the_work(workers: Workers) -> None:
    with pytest.raises(UsageError) as error:
        check_workers(workers)
    assert error.value.code == "bad-workers"


def test_a_package_that_is_missing_is_named() -> None:
    """In an interpreter without them; dask's job systems are installed by who needs them."""
    for kind, package in (("local", "distributed"), ("slurm", "dask_jobqueue")):
        code = (
            f"import sys; sys.modules[{package!r}] = None\n"
            "from kidseg.cluster import Workers, check_workers\n"
            f"check_workers(Workers(cluster={kind!r}))"
        )
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_refused_for, args=(code, package.replace("_", "-")))
        process.start()
        process.join(30)
        assert process.exitcode == 0


def _refused_for(code: str, package: str) -> None:
    with pytest.raises(UsageError, match=package) as error:
        exec(code)
    assert error.value.code == "missing-extra"
