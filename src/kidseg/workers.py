"""The same work on many cases, in one process or several."""

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
"""Called with (cases done, cases in all)."""


class Named(Protocol):
    """A case, or what stands for one."""

    @property
    def id(self) -> str:
        """Its name in messages."""
        ...


Item = TypeVar("Item", bound=Named)
Result = TypeVar("Result")


class _Alone(Generic[Item, Result]):
    """The task as a worker runs it: one thread; errors in the input are kept for a common report.

    One thread, because the order in which several add up is not the same everywhere, and results
    must not depend on the number of jobs.
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
    """The results of `task` for all items, in their order, the same for any number of jobs.

    Args:
        task: can be pickled (a function of a module, or an instance) where `jobs` > 1.
        items: what it is called with.
        jobs: processes; each holds one case at a time.
        progress: told after each case.

    Raises:
        InputError: what the task raised; "unsound-cases" names all if several cases were unsound.
            The other cases are worked off first.
        ResourceError: "worker-killed": a process died, as the system's memory killer does it.
    """
    alone = _Alone(task)
    found: dict[int, Result | InputError] = {}
    if jobs <= 1 or len(items) <= 1:
        for k, item in enumerate(items):
            found[k] = alone(item)
            if progress:
                progress(len(found), len(items))
    else:
        pool = ProcessPoolExecutor(min(jobs, len(items)), mp_context=get_context("spawn"))
        try:
            futures = {pool.submit(alone, item): k for k, item in enumerate(items)}
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                if progress:
                    progress(len(found), len(items))
        except BrokenProcessPool as error:
            names = ", ".join(item.id for k, item in enumerate(items) if k not in found)
            raise ResourceError(
                f"a worker process was killed; not done: {names}",
                next_step="Most often memory ran out: use fewer jobs.",
                code="worker-killed",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)
    return _all_sound(items, [found[k] for k in range(len(items))])


def _all_sound(items: Sequence[Item], results: Sequence[Result | InputError]) -> list[Result]:
    sound: list[Result] = []
    errors: list[tuple[str, InputError]] = []
    for item, result in zip(items, results, strict=True):
        if isinstance(result, InputError):
            errors.append((item.id, result))
        else:
            sound.append(result)
    if len(errors) == 1:
        raise errors[0][1]
    if errors:
        raise InputError(
            f"{len(errors)} cases are unsound: " + "; ".join(f"{i}: {e}" for i, e in errors),
            code="unsound-cases",
            next_step="'kidseg check' names every problem.",
        )
    return sound


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
