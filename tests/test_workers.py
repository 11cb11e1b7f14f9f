"""Processes: none hangs, none outlives its parent, and a killed one is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path

import pytest

from kidseg.errors import InputError, ResourceError
from kidseg.workers import in_processes, over_cases, signals_deferred


@dataclass(frozen=True)
class Item:
    id: str
    folder: Path


def killed(item: Item) -> str:
    if item.id == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return item.id


def slow(item: Item) -> str:
    (item.folder / f"{item.id}.pid").write_text(str(os.getpid()))
    time.sleep(60)
    return item.id


def refused(item: Item) -> str:
    if item.id in "bc":
        raise InputError(f"no {item.id}", code="none")
    return item.id


def items(folder: Path, names: str = "abcd") -> list[Item]:
    return [Item(name, folder) for name in names]


def pids(folder: Path) -> list[int]:
    return [int(text) for path in folder.glob("*.pid") if (text := path.read_text())]


def has_ended(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return status == "Z"


def within(seconds: float, happened: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if happened():
            return True
        time.sleep(0.02)
    return happened()


@pytest.mark.ci
@pytest.mark.fault("worker killed")
def test_a_killed_worker_is_noticed_and_its_cases_are_named(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ResourceError, match=r"incomplete cases: .*b") as error:
        over_cases(killed, items(tmp_path), jobs=2)
    assert (error.value.code, error.value.exit_code) == ("worker-killed", 5)
    assert time.monotonic() - start < 30
    with pytest.raises(ResourceError, match="and 15 more"):
        over_cases(killed, [Item("b", tmp_path)] * 20, jobs=1 + 1)


@pytest.mark.ci
@pytest.mark.fault("one bad case")
def test_errors_of_cases_are_collected(tmp_path: Path) -> None:
    for jobs in (1, 2):
        with pytest.raises(InputError, match="2 cases are invalid: b: no b; c: no c"):
            over_cases(refused, items(tmp_path), jobs=jobs)


@pytest.mark.ci
def test_an_interruption_ends_the_workers_at_once(tmp_path: Path) -> None:
    def interrupted() -> None:
        for _ in in_processes(slow_or_not, items(tmp_path), 2):
            assert within(30, lambda: bool(pids(tmp_path)))
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert within(30, lambda: all(map(has_ended, pids(tmp_path)))) and not active_children()
    assert time.monotonic() - start < 50


def slow_or_not(item: Item) -> str:
    return item.id if item.id == "a" else slow(item)


PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from kidseg.workers import over_cases
from test_workers import items, slow
if __name__ == "__main__":
    over_cases(slow, items(Path(sys.argv[1])), jobs=2)
"""


@pytest.mark.ci
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    process = subprocess.Popen([sys.executable, script, tmp_path, Path(__file__).parent])
    assert within(60, lambda: len(pids(tmp_path)) == 2)
    process.send_signal(number)
    process.wait(timeout=30)
    assert within(30, lambda: all(map(has_ended, pids(tmp_path))))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_may_wait_until_the_end_of_a_block(number: signal.Signals) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, stop)
    done = []
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            with signals_deferred():
                signal.raise_signal(number)
                done.append("whole")
            done.append("never")
        assert done == ["whole"] and signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
