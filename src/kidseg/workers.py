"""Apply a function to many cases, in one or several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Generic, Protocol, TypeVar

import torch

from kidseg.errors import InputError, ResourceError

__all__ = ["Named", "Progress", "over_cases"]

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
        pool = ProcessPoolExecutor(min(jobs, len(items)), mp_context=get_context("spawn"))
        try:
            futures = {pool.submit(run, item): k for k, item in enumerate(items)}
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                if progress:
                    progress(len(found), len(items))
        except BrokenProcessPool as error:
            names = ", ".join(item.id for k, item in enumerate(items) if k not in found)
            raise ResourceError(
                f"a worker process was killed; incomplete cases: {names}",
                next_step="The usual cause is a lack of memory: use fewer jobs.",
                code="worker-killed",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return _raise_errors(items, [found[k] for k in range(len(items))])


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
