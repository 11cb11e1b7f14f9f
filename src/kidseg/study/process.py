"""Run kidseg commands in separate processes, measure them and stop them together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from kidseg.study.measured import GRACE_S

__all__ = ["Completed", "Launcher"]

_MEASURED = Path(__file__).with_name("measured.py")


@dataclass(frozen=True, kw_only=True)
class Completed:
    """The result of a command.

    Attributes:
        exit_code: negative for a signal.
        seconds: wall time, including the start of Python.
        processor_seconds: processor time of all its threads and child processes.
        peak_memory_mb: peak resident memory of the process.
        stderr: its standard error.
    """

    exit_code: int
    seconds: float
    processor_seconds: float
    peak_memory_mb: float
    stderr: str

    @property
    def cause(self) -> str:
        """Exit code and last line of the error output, for a message."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        messages = [line for line in lines if line.startswith("kidseg: ")]
        last = (messages or lines or ["no error output"])[-1].removeprefix("kidseg: ")
        return f"exit code {self.exit_code}: {last}"


@dataclass(kw_only=True)
class Launcher:
    """Starts commands, also in parallel, and can stop all of them.

    They end with this process, however it ends: see `kidseg.study.measured`.

    Attributes:
        threads: of each process; None: the process decides.
    """

    threads: int | None = None
    _groups: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def kidseg(self, *arguments: str | Path, log: Path) -> Completed:
        """Run a kidseg command and wait for it; append its error output to the file `log`."""
        return self.run([sys.executable, "-m", "kidseg", *map(str, arguments)], log=log)

    def run(self, command: Sequence[str], *, log: Path) -> Completed:
        """Run a command and wait for it.

        Raises:
            KeyboardInterrupt: the launcher was stopped.
        """
        env = dict(os.environ)
        if self.threads is not None:
            env["OMP_NUM_THREADS"] = str(self.threads)
        log.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, log.open("ab+") as file:
            result = Path(folder) / "result.json"
            before = file.seek(0, os.SEEK_END)
            wrapper = self._start(
                [sys.executable, "-I", str(_MEASURED), str(result), *command], env, file
            )
            code = wrapper.wait()
            assert wrapper.stdin is not None
            wrapper.stdin.close()
            if code < 0:  # the wrapper itself was killed, not the command
                _signal(wrapper.pid, signal.SIGTERM)
            with self._lock:
                self._groups.discard(wrapper.pid)
            if self._stopped:
                raise KeyboardInterrupt
            file.seek(before)
            stderr = file.read().decode(errors="replace")
            if code != 0 or not result.exists():
                return Completed(
                    exit_code=code or 1,
                    seconds=0.0,
                    processor_seconds=0.0,
                    peak_memory_mb=0.0,
                    stderr=stderr,
                )
            return Completed(**json.loads(result.read_text()), stderr=stderr)

    def stop(self) -> None:
        """Terminate all running commands and start no more; `run` raises when they have exited."""
        with self._lock:
            self._stopped = True
            for group in self._groups:
                _signal(group, signal.SIGTERM)
        end = threading.Timer(GRACE_S, self._kill)
        end.daemon = True
        end.start()

    def _kill(self) -> None:
        """Kill the commands that have not ended."""
        with self._lock:
            for group in self._groups:
                _signal(group, signal.SIGKILL)

    def _start(
        self, command: Sequence[str], env: dict[str, str], file: BinaryIO
    ) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            process = subprocess.Popen(  # noqa: S603
                command,
                env=env,
                stdin=subprocess.PIPE,  # kept open as long as this process lives
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )
            self._groups.add(process.pid)
        return process


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has just exited
        os.killpg(group, number)
