"""A real SLURM on this machine: munge, the controller and one node, all of this user, on loopback.

Debian: apt-get install --no-install-recommends slurm-wlm munge
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from test_workers import within

DAEMONS = ("munged", "slurmctld", "slurmd")
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=2
MinJobAge=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=scans Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no SLURM here; "" if there can."""
    absent = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=PATH) is None]
    return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)" if absent else ""


@dataclass(frozen=True)
class Slurm:
    """A running SLURM.

    Attributes:
        environment: variables by which its commands find it.
    """

    environment: Mapping[str, str]

    def __call__(self, *words: object) -> str:
        """What a command of SLURM prints."""
        done = subprocess.run(
            [str(word) for word in words],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()

    def jobs(self, state: str = "running") -> list[str]:
        """The numbers of the jobs in a state, in their order."""
        return sorted(self("squeue", "--noheader", "--format=%A", f"--states={state}").split())


@contextmanager
def slurm(folder: Path) -> Iterator[Slurm]:
    """Start SLURM, with its files in a folder, and stop it with its jobs in the end."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config, key = folder / "slurm.conf", folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    user, host = _word("id", "-un"), _word("hostname", "-s")
    config.write_text(CONFIG.format(folder=folder, user=user, host=host, ports=_free_ports(2)))
    ready = Slurm({"SLURM_CONF": str(config), "PATH": PATH})
    at = ("--socket", folder / "munge.socket", "--pid-file", folder / "munge.pid")
    files = ("--key-file", key, "--log-file", folder / "munge.log", "--seed-file", folder / "seed")
    with ExitStack() as stack:
        stack.enter_context(_daemon(ready, "munged", "--foreground", "--force", *at, *files))
        assert within(20, (folder / "munge.socket").exists)
        stack.enter_context(_daemon(ready, "slurmctld", "-D", "-i"))
        stack.enter_context(_daemon(ready, "slurmd", "-D", "-N", host))
        assert within(60, lambda: _is_idle(ready)), (folder / "slurmctld.log").read_text()
        yield ready
        ready("scancel", "--user", user)
        within(30, lambda: not ready("squeue", "--noheader"))


@contextmanager
def _daemon(slurm: Slurm, *words: object) -> Iterator[None]:
    process = subprocess.Popen(
        [str(word) for word in words],
        env={**os.environ, **slurm.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_idle(slurm: Slurm) -> bool:
    time.sleep(0.5)
    try:
        return slurm("sinfo", "--noheader", "--format=%t") == "idle"
    except subprocess.CalledProcessError:
        return False


def _word(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
