"""Start clusters of dask: on this machine, as jobs of SLURM, or as pods of Kubernetes.

What a job or a pod is, the user says in dask's own configuration; kidseg adds what it needs.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import shlex
import signal
import subprocess
import tempfile
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from kidseg.errors import KidsegError, ResourceError, UsageError

__all__ = [
    "CLOSE_S",
    "KINDS",
    "SETTINGS",
    "are_waiting",
    "close_cluster",
    "close_keys",
    "cluster_object",
    "kill_if_stopped",
    "no_workers",
    "renew_jobs",
    "start_cluster",
    "threads_of_job",
]

KINDS = ("local", "slurm", "kubernetes")
"""Clusters that can be started; any other text is the address of one that is there."""

CLOSE_S = 10
"""Seconds that a cluster, or the connection to it, has to end."""

_IDLE_S = 600
_TRY_S = 60

_ANY_FAILURES = 1_000_000
"""Attempts are counted in `kidseg.attempts`: dask also counts tasks that had only been waiting."""

SETTINGS: dict[str, Any] = {
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
"""Dask's settings for schedulers and workers that this package starts."""

_NO_WORKERS = "Check the memory of this machine and the settings of the cluster."

_ADDED = "worker-extra-args", "job-script-prologue", "scheduler-options", "shared-temp-directory"
"""Settings of jobs of SLURM to which kidseg adds."""

_NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}


def start_cluster(kind: str, jobs: int, scratch: Path, shared: Path) -> Any:
    """Start a cluster; its scheduler is in this process, but on Kubernetes.

    Args:
        kind: of `KINDS`.
        jobs: workers to start.
        scratch: a folder of this machine.
        shared: a folder that all machines have, for certificates.

    Raises:
        UsageError: "no-resources": SLURM must know what a job may use; "bad-workers": what
            Kubernetes is to start is not described.
        ResourceError: "no-workers".
    """
    try:
        if kind == "local":
            return _local(jobs, scratch)
        return _slurm(jobs, shared) if kind == "slurm" else _kubernetes(jobs)
    except KidsegError:
        raise
    except Exception as error:  # of the cluster's own library, of any kind
        raise no_workers(str(error)) from error


def no_workers(why: str = "", next_step: str = _NO_WORKERS) -> ResourceError:
    """The error of a cluster none of whose workers started."""
    return ResourceError(
        "no worker could be started" + (f" ({why.splitlines()[0]})" if why else ""),
        code="no-workers",
        next_step=next_step,
    )


def _local(jobs: int, scratch: Path) -> Any:
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


# SLURM


def _slurm(jobs: int, shared: Path) -> Any:
    """Workers that are jobs of SLURM, as dask's configuration `jobqueue.slurm` describes them."""
    kind = importlib.import_module("dask_jobqueue").SLURMCluster
    own = _described("cores", "memory", *_ADDED)
    if own["cores"] is None or own["memory"] is None:
        raise UsageError(
            "dask's configuration does not say what a job of SLURM may use",
            code="no-resources",
            next_step="Set jobqueue.slurm.cores and jobqueue.slurm.memory, for example by the"
            " variables DASK_JOBQUEUE__SLURM__CORES=8 and DASK_JOBQUEUE__SLURM__MEMORY=16GB; see"
            " docs/cohort.md.",
        )
    cluster = kind(
        processes=1,
        worker_extra_args=[*own["worker-extra-args"], "--nthreads", "1", "--no-dashboard"],
        job_script_prologue=[*own["job-script-prologue"], *_exports()],
        scheduler_options={**_NO_DASHBOARD, **own["scheduler-options"]},
        shared_temp_directory=own["shared-temp-directory"] or str(shared.absolute()),
        security=_security(),
        silence_logs=logging.CRITICAL,
    )
    try:
        _check_job(cluster.job_script())
        cluster.scale(jobs)
    except BaseException:
        close_keys(cluster)
        cluster.close()
        raise
    return cluster


def _check_job(script: str) -> None:
    """Let SLURM check a job without submitting it; dask would say nothing of what is wrong.

    Raises:
        ResourceError: "no-workers", with the words of SLURM.
    """
    with tempfile.NamedTemporaryFile("w", prefix="kidseg-", suffix=".sh") as file:
        file.write(script)
        file.flush()
        found = _said("sbatch", "--test-only", file.name)
    if found.returncode:
        said = found.stderr.strip().splitlines() or [f"sbatch ended with {found.returncode}"]
        raise no_workers(said[-1], "Correct jobqueue.slurm in dask's configuration; see --cluster.")


def renew_jobs(cluster: Any) -> int:
    """Submit those jobs of SLURM again whose workers were lost; their number.

    Dask leaves it at that when a job ends: at its time limit, by scancel, with its machine.
    """
    ended = len(set(cluster.worker_spec) - set(cluster.workers))
    if ended:
        cluster.scale(len(cluster.worker_spec))
    return ended


def are_waiting(cluster: Any) -> bool:
    """Does SLURM have a job of this cluster that waits or runs? True if it cannot be asked."""
    numbers = [job.job_id for job in cluster.workers.values() if job.job_id]
    if not numbers:
        return False
    try:
        found = _said("squeue", "--noheader", "--format=%A", f"--jobs={','.join(numbers)}")
    except (OSError, subprocess.TimeoutExpired):
        return True
    is_unknown = "Invalid job id" in found.stderr
    return bool(found.stdout.strip()) or (found.returncode != 0 and not is_unknown)


def threads_of_job() -> int:
    """The cores that a job of SLURM asks for: not all that it sees need be its own."""
    own = _described("job-cpu", "cores")
    return int(own["job-cpu"] or own["cores"])


def _described(*names: str) -> dict[str, Any]:
    """What dask's configuration says of jobs; variables of the environment have "_" for "-"."""
    import dask

    return {name: dask.config.get(f"jobqueue.slurm.{name}") for name in names}


def _said(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - of SLURM
        command, capture_output=True, text=True, check=False, timeout=_TRY_S
    )


# Kubernetes


def _kubernetes(jobs: int) -> Any:
    """Pods of the Dask operator, as dask's configuration `kubernetes` describes them."""
    operator = importlib.import_module("dask_kubernetes.operator")
    return operator.KubeCluster(
        custom_cluster_spec=cluster_object(jobs), create_mode="CREATE_ONLY", quiet=True
    )


def cluster_object(jobs: int) -> dict[str, Any]:
    """The DaskCluster that the operator of Kubernetes is to start.

    It is `kubernetes.custom-cluster-spec` of dask's configuration, or one with the image,
    resources and variables that are set there. Either gets the number of workers, dask's settings,
    a name of its own, and an idle time after which it is removed, should this process be killed.

    Args:
        jobs: workers, one in each pod.

    Raises:
        UsageError: "bad-workers": the configuration has no description of a cluster.
    """
    import dask

    yaml = importlib.import_module("yaml")  # of dask
    operator = importlib.import_module("dask_kubernetes.operator")
    own = dask.config.get("kubernetes.custom-cluster-spec", None)
    try:
        if isinstance(own, str):
            own = yaml.safe_load(Path(own).read_text(encoding="utf-8"))
        found = deepcopy(own) if own else _usual_object(operator)
        name = f"{found['metadata']['name']}-{secrets.token_hex(4)}"
        found["metadata"]["name"] = name
        spec = found["spec"]
        spec["worker"]["replicas"] = jobs
        spec.setdefault("idleTimeout", dask.config.get("kubernetes.idle-timeout", None) or _IDLE_S)
        spec["scheduler"]["service"]["selector"]["dask.org/cluster-name"] = name
        # Kubernetes asks the scheduler for its health by HTTP.
        needed = {k: v for k, v in _environment().items() if "HTTP" not in k}
        for container in (
            *spec["scheduler"]["spec"]["containers"],
            *spec["worker"]["spec"]["containers"],
        ):
            known = container.get("env") or []
            more = needed.keys() - {each["name"] for each in known}
            container["env"] = known + [{"name": k, "value": needed[k]} for k in sorted(more)]
    except (OSError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UsageError(
            f"kubernetes.custom-cluster-spec does not describe a cluster ({error!r})",
            path=own if isinstance(own, str) else None,
            code="bad-workers",
            next_step="Give a DaskCluster object, or the path of one as YAML; see docs/cohort.md.",
        ) from error
    return dict(found)


def _usual_object(operator: Any) -> Any:
    """A DaskCluster of the image, resources and variables of dask's configuration."""
    import dask

    set_ = {str(k): str(v) for k, v in dask.config.get("kubernetes.env", {}).items()}
    found = operator.make_cluster_spec(
        name="kidseg",
        image=dask.config.get("kubernetes.image"),
        resources=dask.config.get("kubernetes.resources"),
        env=set_,
        worker_command=["dask", "worker", "--nthreads", "1"],
    )
    found["spec"].pop("idleTimeout")
    for container in found["spec"]["worker"]["spec"]["containers"]:
        container["args"].append("--no-dashboard")  # the operator's own "--dashboard" is before it
    return found


# All of them


def _security() -> Any:
    """Keys for this cluster alone, so that no other user reaches it; None without cryptography."""
    from distributed import Security

    try:
        import cryptography  # noqa: F401
    except ImportError:
        return None
    return Security.temporary()


def close_keys(cluster: Any) -> None:
    """Remove the files by which dask-jobqueue gives keys to workers; it leaves them to Python."""
    for value in vars(cluster).values():
        if isinstance(value, tempfile._TemporaryFileWrapper):
            value.close()


def _environment() -> dict[str, str]:
    """The settings of dask for workers on other machines, as variables."""
    return {
        f"DASK_{name.upper().replace('.', '__').replace('-', '_')}": str(value)
        for name, value in SETTINGS.items()
    }


def _exports() -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in _environment().items()]


def close_cluster(cluster: Any) -> None:
    """End a cluster; local workers that take too long on a busy machine are killed."""
    try:
        cluster.close(timeout=CLOSE_S)
    except TimeoutError:
        _kill(cluster)


def kill_if_stopped(cluster: Any, kind: type[BaseException] | None, *_: object) -> None:
    """After an interruption, do not wait for the tasks of local workers."""
    if kind is not None and not issubclass(kind, Exception):
        _kill(cluster)


def _kill(cluster: Any) -> None:
    for nanny in getattr(cluster, "workers", {}).values():
        if (process := getattr(nanny, "pid", None)) is not None:
            nanny.auto_restart = False
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
