"""Attempts at a task that may end its process: killed, out of memory, crashed in a library, stuck.

Each attempt has a folder below that of its task, on a file system that all workers share, and
leaves a mark there when it returns. So the next attempt knows how many before it took their
process along, wherever they ran.
"""

from __future__ import annotations

import contextlib
import faulthandler
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from kidseg.errors import InputError, KidsegError, ResourceError, converted

__all__ = ["Limits", "Raised", "attempt", "unfit"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_RETURNED = ".returned"
_LATE = ".late"

_one_at_a_time = threading.Lock()
"""A worker of a cluster may have several threads; a task needs the memory of a process."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a task may use.

    Attributes:
        retries: further attempts after one that ended its process.
        seconds: of an attempt; a longer one is ended with its process, and not tried again.
        threads: of torch; None: the cores of the machine, shared by its workers.
        sharing: workers of a machine.
        folder: in which relative paths start.
    """

    retries: int = 1
    seconds: float | None = None
    threads: int | None = None
    sharing: int = 1
    folder: Path


@dataclass(frozen=True)
class Raised:
    """The error by which a task ended: all others would too."""

    error: KidsegError


def attempt(
    task: Callable[[Item, Path], Result], item: Item, folder: Path, limits: Limits
) -> Result | KidsegError | Raised:
    """Do a task in this process, unless it has ended too many processes before.

    Args:
        task: gets the folder of the attempt for its files.
        item: argument of the task.
        folder: of the task, on a file system that all workers share; has those of the attempts.
        limits: of the task.

    Returns:
        The result, or a ResourceError: "worker-killed", "time-limit", "disk-full"; or an
        InputError: "not-shared": this machine does not have the folder; "not-accessible". `Raised`
        if the task raised an error, which dask would log with all arguments.
    """
    from dask.system import CPU_COUNT

    with _one_at_a_time:
        try:
            earlier = [path for path in folder.iterdir() if path.is_dir()]
            place = folder / str(len(earlier))
            if (given_up := _given_up(earlier, limits)) is not None:
                return given_up
            place.mkdir()
            torch.set_num_threads(limits.threads or max(1, CPU_COUNT // limits.sharing))
            with contextlib.chdir(limits.folder), _no_longer_than(limits.seconds, place / _LATE):
                result = _returned(task, item, place)
                (place / _RETURNED).touch()
        except FileNotFoundError as error:
            return _not_shared(Path(error.filename or folder))
        except OSError as error:  # it cannot leave its mark, such as on a full disk
            return converted(error, folder) or unfit(error)
        return result


def _returned(
    task: Callable[[Item, Path], Result], item: Item, place: Path
) -> Result | KidsegError | Raised:
    try:
        return task(item, place)
    except Exception as error:
        return Raised(error if isinstance(error, KidsegError) else unfit(error))


def unfit(error: BaseException) -> ResourceError:
    """The error of workers that cannot do a task at all, such as those without kidseg."""
    while error.__cause__ is not None:  # such as of dask's "error during deserialization"
        error = error.__cause__
    text = str(error).splitlines()[0] if str(error) else ""
    return ResourceError(
        f"the workers cannot do this work ({type(error).__name__}{text and f': {text}'})",
        code="unfit-workers",
        next_step="Install the same version of kidseg where they run.",
    )


def _given_up(earlier: list[Path], limits: Limits) -> KidsegError | None:
    """Why a task is not attempted again; None if it is."""
    if any(_is_late(path / _LATE) for path in earlier):
        return ResourceError(
            f"it took longer than the limit of {limits.seconds:g} s",
            code="time-limit",
            next_step="Check it with 'kidseg check', or raise --time-limit.",
        )
    ended = sum(not (path / _RETURNED).exists() for path in earlier)
    if ended <= limits.retries:
        return None
    times = "once" if ended == 1 else f"{ended} times"
    return ResourceError(
        f"its worker process ended while it was in work, {times}: killed, out of memory, or"
        " crashed",
        code="worker-killed",
        next_step="Use fewer --jobs or more memory; if it is always this one, check it with"
        " 'kidseg check'.",
    )


@contextmanager
def _no_longer_than(seconds: float | None, mark: Path) -> Iterator[None]:
    """End this process, whatever it does, if the block takes longer; the mark then has content."""
    if seconds is None:
        yield
        return
    with mark.open("w") as file:
        faulthandler.dump_traceback_later(seconds, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def _is_late(mark: Path) -> bool:
    return mark.is_file() and mark.stat().st_size > 0


def _not_shared(folder: Path) -> InputError:
    return InputError(
        "the machine of the worker does not have this folder",
        path=folder,
        code="not-shared",
        next_step="Put scans, model and results on a file system that all machines share.",
    )
