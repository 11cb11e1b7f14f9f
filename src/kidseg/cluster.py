"""Apply a function to many items on the workers of a cluster, by dask distributed.

Each worker is a process of its own, here or on other machines. One that is killed costs only the
item it was working on. Workers of this machine end with this process, however that ends.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import signal
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
from kidseg.workers import without_ctrl_c

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["KINDS", "Workers", "check_workers", "over_cluster"]

Item = TypeVar("Item")
Result = TypeVar("Result")

KINDS = ("local", "slurm", "kubernetes")
"""Clusters that can be started; any other text is the address of one that is there."""

_POLL_S = 1.0
_START_S = 120.0
_CLOSE_S = 10
_IDLE_S = 600
_LOST = 20
"""A task that loses its worker so often without having started is given up."""

_ANY_FAILURES = 1_000_000
"""Attempts are counted in `kidseg.attempts`: dask also counts tasks that had only been waiting."""

_SETTINGS = {
    "distributed.scheduler.allowed-failures": _ANY_FAILURES,
    # A worker that is paused because of its memory would wait forever.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # Before each worker starts. Without dask's own settings of the allocator, which slow torch.
    "distributed.nanny.pre-spawn-environ": {
        "OMP_WAIT_POLICY": "PASSIVE",
        "DASK_LOGGING__DISTRIBUTED": "critical",
    },
}

_NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


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
    _imported("distributed", "pip install 'kidseg[cluster]'")
    if workers.cluster in required:
        package = required[workers.cluster]
        _imported(package, f"pip install {package.replace('_', '-')}")
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
        limits = Limits(
            retries=workers.retries,
            seconds=workers.limit_s,
            threads=max(1, torch.get_num_threads() // jobs) if is_here else None,
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
        attended = monotonic()
        told = False
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
            if done or _worker_count(self.client):
                attended = monotonic()
            elif monotonic() - attended > _START_S:
                if self.workers.cluster == "local":
                    raise _no_workers()
                if not told:
                    told = True
                    text = f"no worker of '{self.workers.cluster}' is there yet; waiting for one"
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
        stack.enter_context(dask.config.set(_SETTINGS))
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
            cluster = _start(workers, Path(scratch), shared)
        stack.callback(_remove_keys, cluster)
        stack.callback(cluster.close, timeout=_CLOSE_S)
        stack.push(partial(_kill_if_stopped, cluster))
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
        client.close(timeout=_CLOSE_S)


def _start(workers: Workers, scratch: Path, shared: Path) -> Any:
    """Start a cluster; its scheduler is in this process, but on Kubernetes."""
    start = {"local": _local, "slurm": _slurm, "kubernetes": _kubernetes}[workers.cluster]
    try:
        return start(workers.jobs, scratch, shared)
    except KidsegError:
        raise
    except Exception as error:  # of the cluster's own library, of any kind
        raise _no_workers(str(error)) from error


def _local(jobs: int, scratch: Path, shared: Path) -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=jobs,
        threads_per_worker=1,
        host="127.0.0.1",
        scheduler_kwargs=_NO_DASHBOARD,
        dashboard_address=None,
        memory_limit=0,
        local_directory=str(scratch),
        silence_logs=logging.CRITICAL,
        security=_security(),
    )


def _slurm(jobs: int, scratch: Path, shared: Path) -> Any:
    """Workers that are jobs of SLURM, as dask's configuration `jobqueue.slurm` describes them."""
    import dask

    cluster = importlib.import_module("dask_jobqueue").SLURMCluster
    own = dask.config.get("jobqueue.slurm")
    if own["cores"] is None or own["memory"] is None:
        raise UsageError(
            "dask's configuration does not say what a job of SLURM may use",
            code="no-resources",
            next_step="Set jobqueue.slurm.cores and jobqueue.slurm.memory, for example by the"
            " variables DASK_JOBQUEUE__SLURM__CORES=8 and DASK_JOBQUEUE__SLURM__MEMORY=16GB; see"
            " docs/cohort.md.",
        )
    return cluster(
        n_workers=jobs,
        processes=1,
        worker_extra_args=[*own["worker-extra-args"], "--nthreads", "1", "--no-dashboard"],
        job_script_prologue=[*own["job-script-prologue"], *_exports()],
        scheduler_options={**_NO_DASHBOARD, **own["scheduler-options"]},
        shared_temp_directory=own["shared-temp-directory"] or str(shared.absolute()),
        security=_security(),
        silence_logs=logging.CRITICAL,
    )


def _kubernetes(jobs: int, scratch: Path, shared: Path) -> Any:
    """Pods of the Dask operator, as dask's configuration `kubernetes` describes them."""
    import dask

    cluster = importlib.import_module("dask_kubernetes.operator").KubeCluster
    return cluster(
        n_workers=jobs,
        worker_command=["dask", "worker", "--nthreads", "1", "--no-dashboard"],
        env={**dask.config.get("kubernetes.env", {}), **_environment()},
        idle_timeout=dask.config.get("kubernetes.idle-timeout", None) or _IDLE_S,
        quiet=True,
    )


def _security() -> Any:
    """Keys for this cluster alone, so that no other user reaches it; None without cryptography."""
    from distributed import Security

    try:
        import cryptography  # noqa: F401
    except ImportError:
        return None
    return Security.temporary()


def _remove_keys(cluster: Any) -> None:
    """Remove the files by which dask-jobqueue gives keys to workers; it leaves them to Python."""
    for value in vars(cluster).values():
        if isinstance(value, tempfile._TemporaryFileWrapper):
            value.close()


def _environment() -> dict[str, str]:
    """The settings of dask for workers on other machines."""
    return {
        f"DASK_{name.upper().replace('.', '__').replace('-', '_')}": str(value)
        for name, value in _SETTINGS.items()
        if isinstance(value, bool | int | str)
    }


def _exports() -> list[str]:
    return [f"export {name}={value}" for name, value in _environment().items()]


def _kill_if_stopped(cluster: Any, kind: type[BaseException] | None, *_: object) -> None:
    """After an interruption, do not wait for the tasks of local workers."""
    if kind is None or issubclass(kind, Exception):
        return
    for nanny in getattr(cluster, "workers", {}).values():
        if (process := getattr(nanny, "pid", None)) is not None:
            nanny.auto_restart = False
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


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


def _worker_count(client: Client) -> int:
    return len(client.scheduler_info()["workers"])


def _no_workers(why: str = "") -> ResourceError:
    return ResourceError(
        "no worker could be started" + (f" ({why.splitlines()[0]})" if why else ""),
        code="no-workers",
        next_step="Check the memory of this machine and the settings of the cluster.",
    )


def _imported(package: str, how: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise UsageError(
            f"several workers need the package {package.replace('_', '-')} ({error})",
            code="missing-extra",
            next_step=f"Install it: {how}",
        ) from error
