"""Commands of kidseg in processes of their own, timed, and stopped together."""

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

__all__ = ["Ended", "Launcher"]

_MEASURED = Path(__file__).with_name("measured.py")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended.

    Attributes:
        exit_code: negative for a signal.
        seconds: wall time, start of Python included.
        processor_seconds: the processor's time for it, in all its threads, and for the processes
            that it started.
        peak_memory_mb: largest resident memory of the process.
        said: what it wrote to standard error.
    """

    exit_code: int
    seconds: float
    processor_seconds: float
    peak_memory_mb: float
    said: str

    @property
    def cause(self) -> str:
        """The last thing it said, for a message."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("kidseg: ")]
        last = (told or lines or ["it said nothing"])[-1].removeprefix("kidseg: ")
        return f"exit code {self.exit_code}: {last}"


@dataclass(kw_only=True)
class Launcher:
    """Starts commands, several at a time, and can stop all of them.

    Attributes:
        threads: of each process; None leaves the choice to it.
    """

    threads: int | None = None
    _groups: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def kidseg(self, *arguments: str | Path, log: Path) -> Ended:
        """Run a command of kidseg and wait for it; what it says is added to the file `log`."""
        return self.run([sys.executable, "-m", "kidseg", *map(str, arguments)], log=log)

    def run(self, command: Sequence[str], *, log: Path) -> Ended:
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
            with self._lock:
                self._groups.discard(wrapper.pid)
            if self._stopped:
                raise KeyboardInterrupt
            file.seek(before)
            said = file.read().decode(errors="replace")
            if code != 0 or not result.exists():
                return Ended(
                    exit_code=code or 1,
                    seconds=0.0,
                    processor_seconds=0.0,
                    peak_memory_mb=0.0,
                    said=said,
                )
            return Ended(**json.loads(result.read_text()), said=said)

    def stop(self) -> None:
        """Ask all that run to end, and start no more; `run` raises once they have."""
        with self._lock:
            self._stopped = True
            for group in self._groups:
                with suppress(ProcessLookupError):  # it has just ended
                    os.killpg(group, signal.SIGTERM)

    def _start(
        self, command: Sequence[str], env: dict[str, str], file: BinaryIO
    ) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise KeyboardInterrupt
            process = subprocess.Popen(  # noqa: S603
                command,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )
            self._groups.add(process.pid)
        return process
