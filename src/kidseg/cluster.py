"""Apply a function to many items on the workers of a cluster, by dask distributed.

Each worker is a process of its own, here or on other machines. One that is killed costs only the
item it was working on. Workers of this machine end with this process, however that ends.
"""

from __future__ import annotations

import logging
import secrets
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from kidseg.attempts import Limits, Raised, attempt, unfit
from kidseg.errors import KidsegError, KidsegWarning, ResourceError, UsageError
from kidseg.extras import check_installed
from kidseg.launch import (
    CLOSE_S,
    KINDS,
    SETTINGS,
    are_waiting,
    close_cluster,
    close_keys,
    kill_if_stopped,
    no_workers,
    renew_jobs,
    start_cluster,
    threads_of_job,
)
from kidseg.workers import without_ctrl_c

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["KINDS", "Workers", "check_workers", "over_cluster"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_POLL_S = 1.0
_START_S = 120.0
_ASK_S = 60.0
_LOST = 20
"""A task that loses its worker so often without having started is given up."""

_RENEWED = 3
"""Times that each job is submitted again, on average, while nothing gets done."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The workers of a call.

    Attributes:
        jobs: processes to start.
        cluster: one of `KINDS`, or the address of a dask scheduler ("tcp://host:8786", or the path
            of its scheduler file, .json).
        retries: further attempts at an item whose worker was killed.
        limit_s: for an item; None: no limit.
    """

    jobs: int = 1
    cluster: str = "local"
    retries: int = 1
    limit_s: float | None = None

    @property
    def are_started(self) -> bool:
        """Are they started by this process, not there already?"""
        return self.cluster in KINDS


def check_workers(workers: Workers) -> None:
    """Check that such workers are possible, before any work.

    Raises:
        UsageError: "missing-extra": a package is not installed; "bad-workers".
    """
    required = {"slurm": "dask_jobqueue", "kubernetes": "dask_kubernetes"}
    check_installed("a call of several workers", ["distributed"], "kidseg[cluster]")
    if workers.cluster in required:
        package = required[workers.cluster]
        check_installed(f"--cluster {workers.cluster}", [package], package.replace("_", "-"))
    problem = None
    if not workers.are_started and not workers.cluster.strip():
        problem = "the cluster has no address"
    elif not workers.are_started and workers.jobs > 1:
        problem = "the number of jobs is that of the workers at the address"
    elif workers.limit_s is not None and workers.limit_s <= 0:
        problem = "the time limit must be positive"
    if problem:
        raise UsageError(
            problem,
            code="bad-workers",
            next_step=f"--cluster is one of {', '.join(KINDS)}, or the address of a dask scheduler"
            " (then without --jobs).",
        )


def over_cluster(
    task: Callable[[Item, Path], Result],
    items: Sequence[Item],
    workers: Workers,
    folder: Path,
) -> Generator[tuple[int, Result | KidsegError], None, None]:
    """Apply `task` to all items; each worker process does one at a time.

    Args:
        task: picklable; gets an item and an empty folder for its files. It returns the failure of
            an item: an exception ends all.
        items: arguments of the task.
        workers: that do it.
        folder: exists, and is shared with the workers; gets a folder for each item, by its index.

    Yields:
        (index, result) of each item when it is done; the result is an error if its worker was
        killed too often or it took too long: see `kidseg.attempts.attempt`.

    Raises:
        UsageError: see `check_workers`; "no-resources": SLURM must know what a job may use.
        ResourceError: "no-scheduler", "scheduler-lost", "no-workers", "unfit-workers".
        KidsegError: that the task raised.
    """
    check_workers(workers)
    if not items:
        return
    jobs, is_here = min(workers.jobs, len(items)), workers.cluster == "local"
    with _client(replace(workers, jobs=jobs), folder) as client:
        threads = threads_of_job() if workers.cluster == "slurm" else None
        limits = Limits(
            retries=workers.retries,
            seconds=workers.limit_s,
            threads=max(1, torch.get_num_threads() // jobs) if is_here else threads,
            sharing=_sharing(client),
            folder=Path.cwd(),
        )
        run = _Run(client=client, workers=workers, limits=limits)
        for k in range(len(items)):
            (folder / str(k)).mkdir()
        with _lost_means(workers):
            yield from run.results(task, items, folder)


@dataclass(kw_only=True)
class _Run:
    """The tasks of a call on a cluster."""

    client: Client
    workers: Workers
    limits: Limits

    def results(
        self, task: Callable[[Item, Path], Result], items: Sequence[Item], folder: Path
    ) -> Generator[tuple[int, Result | KidsegError], None, None]:
        """See `over_cluster`."""
        from distributed import wait
        from distributed.scheduler import KilledWorker

        def submitted(k: int) -> Future[Any]:
            # The key is logged by workers; nothing about the item is.
            key = f"kidseg-{secrets.token_hex(8)}-{k}"
            place = (folder / str(k)).absolute()
            return self.client.submit(
                attempt, task, items[k], place, self.limits, key=key, pure=False, priority=-k
            )

        left = {submitted(k): k for k in range(len(items))}
        lost = dict.fromkeys(range(len(items)), 0)
        presence = _Presence(self.client, self.workers)
        while left:
            done: set[Future[Any]] = set()
            with suppress(TimeoutError):
                done = wait(list(left), timeout=_POLL_S, return_when="FIRST_COMPLETED").done
            for future in done:
                k = left.pop(future)
                error = future.exception()
                if isinstance(error, KilledWorker) and lost[k] < _LOST:
                    lost[k] += 1
                    left[submitted(k)] = k
                    continue
                if error is not None:
                    raise unfit(error) from error
                result = future.result()
                if isinstance(result, Raised):
                    raise result.error
                yield k, result
            presence.attend(len(left), is_going_on=bool(done))


class _Presence:
    """Sees to it that there are workers, as long as there is work."""

    def __init__(self, client: Client, workers: Workers) -> None:
        self._client, self._workers = client, workers
        self._seen = monotonic()
        self._renewed = 0
        self._told = False

    def attend(self, left: int, *, is_going_on: bool) -> None:
        """Submit jobs again that ended; without any worker for long, warn or give up.

        Args:
            left: tasks to do.
            is_going_on: has a task been done since the last call?

        Raises:
            ResourceError: "no-workers": there is none, and none can come.
        """
        count = len(self._client.scheduler_info()["workers"])
        is_slurm = self._workers.cluster == "slurm"
        if is_going_on:
            self._renewed = 0
        if count or is_going_on:
            self._seen = monotonic()
        if is_slurm and count < left and self._renewed < _RENEWED * self._workers.jobs:
            self._renewed += renew_jobs(self._client.cluster)
        if monotonic() - self._seen < (_ASK_S if is_slurm else _START_S):
            return
        self._seen = monotonic()
        if self._workers.cluster == "local":
            raise no_workers()
        if is_slurm and not are_waiting(self._client.cluster):
            raise no_workers(
                "its jobs ended before they reached the scheduler, or again and again",
                "Set jobqueue.slurm.log-directory in dask's configuration, and read there why.",
            )
        if not self._told:
            self._told = True
            text = f"no worker of '{self._workers.cluster}' is there yet; waiting for one"
            warnings.warn(text, KidsegWarning, stacklevel=2)


def _sharing(client: Client) -> int:
    """How many workers share the cores of a machine, at most, as far as they are there."""
    known = client.scheduler_info()["workers"].values()
    return max(Counter(worker["host"] for worker in known).values(), default=1)


@contextmanager
def _client(workers: Workers, shared: Path) -> Iterator[Client]:
    """Connect to a cluster, and start it if necessary; it ends with the block.

    Args:
        workers: of the cluster.
        shared: a folder that all machines have, for certificates.
    """
    import dask
    from distributed import Client

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS))
        if not workers.are_started:
            where = {"address": workers.cluster}
            if workers.cluster.endswith(".json"):
                if not Path(workers.cluster).is_file():  # dask would wait for it
                    raise _no_scheduler(workers)
                where = {"scheduler_file": workers.cluster}
            yield stack.enter_context(_connected(lambda: Client(**where), workers))
            return
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="kidseg-"))
        with without_ctrl_c():
            cluster = start_cluster(workers.cluster, workers.jobs, Path(scratch), shared)
        stack.callback(close_keys, cluster)
        stack.callback(close_cluster, cluster)
        stack.push(partial(kill_if_stopped, cluster))
        yield stack.enter_context(_connected(lambda: Client(cluster), workers))


@contextmanager
def _connected(connect: Callable[[], Client], workers: Workers) -> Iterator[Client]:
    try:
        client = connect()
    except (OSError, TimeoutError) as error:
        raise _no_scheduler(workers) from error
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"'{workers.cluster}' is neither a cluster nor the address of a dask scheduler"
            f" ({error})",
            code="bad-workers",
            next_step=f"Choose one of {', '.join(KINDS)}, or an address such as tcp://host:8786.",
        ) from error
    try:
        yield client
    finally:
        with suppress(TimeoutError):  # on a busy machine; it ends with this process
            client.close(timeout=CLOSE_S)


@contextmanager
def _lost_means(workers: Workers) -> Iterator[None]:
    """Convert the loss of the scheduler."""
    from distributed.client import FutureCancelledError, FuturesCancelledError
    from distributed.comm.core import CommClosedError

    try:
        yield
    except (FutureCancelledError, FuturesCancelledError, CommClosedError) as error:
        raise ResourceError(
            f"the scheduler of the cluster '{workers.cluster}' was lost",
            code="scheduler-lost",
            next_step="What was done is recorded. Start it again, then go on with --resume.",
        ) from error


def _no_scheduler(workers: Workers) -> ResourceError:
    return ResourceError(
        f"the dask scheduler '{workers.cluster}' does not answer",
        code="no-scheduler",
        next_step="Check its address, and that it is running.",
    )
