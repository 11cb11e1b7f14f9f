"""Apply a function to many cases, in one or several processes.

Processes end with their parent, however that ends, and a killed one is noticed at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import Generic, Protocol, TypeVar

import torch

from kidseg.errors import InputError, ResourceError

__all__ = [
    "Named",
    "Progress",
    "end_with_parent",
    "in_processes",
    "over_cases",
    "signals_deferred",
    "without_ctrl_c",
]

_PR_SET_PDEATHSIG = 1

Progress = Callable[[int, int], None]
"""Called with (cases done, total cases)."""


class Named(Protocol):
    """A case, or another item with an id."""

    @property
    def id(self) -> str:
        """Name in messages."""
        ...


Item = TypeVar("Item", bound=Named)
Result = TypeVar("Result")


class _SingleThreaded(Generic[Item, Result]):
    """Runs the task in one thread and returns input errors, which are reported together.

    With several threads the order of summation may vary, but results must not depend on the number
    of jobs.
    """

    def __init__(self, task: Callable[[Item], Result]) -> None:
        self.task = task

    def __call__(self, item: Item) -> Result | InputError:
        with _one_thread():
            try:
                return self.task(item)
            except InputError as error:
                return error


def over_cases(
    task: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Result]:
    """Apply `task` to all items, in order; the results do not depend on `jobs`.

    Args:
        task: must be picklable if `jobs` > 1: a module-level function or an instance.
        items: arguments of the task.
        jobs: processes; each holds one case at a time.
        progress: called after each case.

    Raises:
        InputError: raised by the task; "unsound-cases" names all cases if several failed. The
            other cases are processed first.
        ResourceError: "worker-killed": a process was killed, for example for lack of memory.
    """
    run = _SingleThreaded(task)
    found: dict[int, Result | InputError] = {}
    if jobs <= 1 or len(items) <= 1:
        for k, item in enumerate(items):
            found[k] = run(item)
            if progress:
                progress(len(found), len(items))
    else:
        for k, result in in_processes(run, items, jobs):
            found[k] = result
            if progress:
                progress(len(found), len(items))
    return _raise_errors(items, [found[k] for k in range(len(items))])


def in_processes(
    task: Callable[[Item], Result], items: Sequence[Item], jobs: int
) -> Iterator[tuple[int, Result]]:
    """Apply `task` to all items in several processes of one thread each.

    If this process is interrupted, the others are ended at once.

    Args:
        task: picklable.
        items: arguments of the task.
        jobs: processes.

    Yields:
        (index, result) of each item when it is done.

    Raises:
        ResourceError: "worker-killed".
    """
    others = {child.pid for child in active_children()}
    pool = ProcessPoolExecutor(min(jobs, len(items)), get_context("spawn"), _start_worker)
    left = dict(enumerate(items))
    try:
        with without_ctrl_c():
            futures = {pool.submit(task, item): k for k, item in left.items()}
        for future in as_completed(futures):
            result = future.result()
            del left[futures[future]]
            yield futures[future], result
    except BrokenProcessPool as error:
        names = [item.id for item in left.values()]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ResourceError(
            f"a worker process was killed; incomplete cases: {', '.join(names[:5])}{more}",
            next_step="The usual cause is a lack of memory: use fewer jobs.",
            code="worker-killed",
        ) from error
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        for child in active_children():
            if child.pid not in others:
                child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Handle SIGINT and SIGTERM at the end, for a block that would be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in received:
            signal.raise_signal(late)


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: it is the parent's to handle, after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Prepare a process: one thread, and signals are the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    end_with_parent()


def end_with_parent() -> None:
    """Let the system end this process of multiprocessing when its parent ends, even if killed.

    Without this it would wait for work forever, or fail at the connection that broke.

    Source: prctl(2), PR_SET_PDEATHSIG; where it is missing, a thread waits for the parent.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = parent_process()
    assert parent is not None, "called in a process of multiprocessing"
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0:
            if os.getppid() != parent.pid:  # it ended before
                os._exit(1)
            return

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _raise_errors(items: Sequence[Item], results: Sequence[Result | InputError]) -> list[Result]:
    """The results; raises the input errors among them."""
    valid: list[Result] = []
    errors: list[tuple[str, InputError]] = []
    for item, result in zip(items, results, strict=True):
        if isinstance(result, InputError):
            errors.append((item.id, result))
        else:
            valid.append(result)
    if len(errors) == 1:
        raise errors[0][1]
    if errors:
        raise InputError(
            f"{len(errors)} cases are invalid: " + "; ".join(f"{i}: {e}" for i, e in errors),
            code="unsound-cases",
            next_step="'kidseg check' lists every problem.",
        )
    return valid


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
