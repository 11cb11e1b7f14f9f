"""Attempts: a task that ends its process is tried again, so often and no more."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kidseg.attempts import Limits, Raised, attempt
from kidseg.errors import InputError, KidsegError, ModelError


@pytest.fixture
def limits(tmp_path: Path) -> Limits:
    return Limits(folder=tmp_path, threads=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "task").mkdir()
    return tmp_path / "task"


def in_a_process(task: Callable[[str, Path], str], folder: Path, limits: Limits) -> int | None:
    """Attempt in a process of its own; its exit code."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=attempt, args=(task, "x", folder, limits))
    process.start()
    process.join(30)
    return process.exitcode


def named(item: str, folder: Path) -> str:
    return f"{item} in {folder.name}"


def killed(item: str, folder: Path) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return item


def stuck_in_c(item: str, folder: Path) -> str:
    re.fullmatch(r"(a+)+b", "a" * 60)  # never returns, and never lets another thread run
    return item


def asleep(item: str, folder: Path) -> str:
    time.sleep(60)
    return item


def refused(item: str, folder: Path) -> str:
    raise ModelError(f"no {item}", code="none")


def broken(item: str, folder: Path) -> str:
    raise ZeroDivisionError(item)


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_task_that_ends_its_process_is_given_up_after_its_retries(
    folder: Path, limits: Limits, retries: int
) -> None:
    limits = replace(limits, retries=retries)
    for _ in range(retries + 1):
        assert in_a_process(killed, folder, limits) == -signal.SIGKILL
    error = attempt(named, "x", folder, limits)
    assert isinstance(error, KidsegError)
    assert (error.code, error.exit_code) == ("worker-killed", 5)
    times = "once" if retries == 0 else f"{retries + 1} times"
    assert times in error.cause
    assert attempt(named, "x", folder, replace(limits, retries=9)) == f"x in {retries + 1}"


def test_attempts_that_return_do_not_count(folder: Path, limits: Limits) -> None:
    """A result can be lost with the worker that had it; the task is no less sound for that."""
    for k in range(4):
        assert attempt(named, "x", folder, limits) == f"x in {k}"
        assert in_a_process(named, folder / "..", limits) == 0
    assert sorted(path.name for path in folder.iterdir()) == list("0123")


@pytest.mark.fault("scan that hangs")
@pytest.mark.parametrize("task", [asleep, stuck_in_c])
def test_a_task_that_takes_too_long_is_ended_and_not_tried_again(
    folder: Path, limits: Limits, task: Callable[[str, Path], str]
) -> None:
    limits = replace(limits, seconds=0.3, retries=5)
    start = time.monotonic()
    assert in_a_process(task, folder, limits) == 1
    assert time.monotonic() - start < 10
    error = attempt(named, "x", folder, limits)
    assert isinstance(error, KidsegError)
    assert error.code == "time-limit" and "0.3 s" in error.cause
    (folder.parent / "other").mkdir()
    assert attempt(named, "x", folder.parent / "other", limits) == "x in 0"
    time.sleep(0.5)  # the limit is of the task, not of what comes after


def test_errors_are_returned_so_that_no_worker_logs_the_arguments(
    folder: Path, limits: Limits
) -> None:
    found = attempt(refused, "x", folder, limits)
    assert isinstance(found, Raised) and found.error.code == "none"
    found = attempt(broken, "x", folder, limits)
    assert isinstance(found, Raised) and found.error.code == "unfit-workers"
    assert "ZeroDivisionError: x" in found.error.cause


def test_a_machine_without_the_folders_is_named(folder: Path, limits: Limits) -> None:
    error = attempt(named, "x", folder / "none", limits)
    assert isinstance(error, InputError) and error.code == "not-shared"
    assert str(error.path).endswith("none")
    error = attempt(named, "x", folder, replace(limits, folder=folder / "elsewhere"))
    assert isinstance(error, InputError) and error.code == "not-shared"


def where(item: str, folder: Path) -> str:
    return str(Path.cwd())


def test_relative_paths_start_where_the_command_was_given(folder: Path, limits: Limits) -> None:
    before = Path.cwd()
    assert attempt(where, "x", folder, limits) == str(limits.folder)
    assert Path.cwd() == before
