"""Run a command; write its exit code, wall and processor time and peak memory to a file.

    python -I measured.py RESULT.json COMMAND... < PIPE

The command is ended when the pipe on standard input closes, which the system does when the process
at its other end ends, even if it is killed.

It runs as a small process of its own, because on Linux a process inherits the peak memory of its
parent: a child of a large process would be measured as at least as large. Signals are handled by
the command; this script waits for it to exit.

Source: getrusage(2); `exec_mmap` in Linux's fs/exec.c keeps the old image's peak.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 30.0


def main() -> int:
    """Always return 0; RESULT.json contains the exit code of the command."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A handler, not SIG_IGN, which the command would inherit.
        signal.signal(number, lambda *_: None)
    result, command = sys.argv[1], sys.argv[2:]
    start = time.perf_counter()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603
    threading.Thread(target=follow, args=(child,), daemon=True).start()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    content = {
        "exit_code": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_mb": usage.ru_maxrss * unit / 2**20,
    }
    with open(result, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(content, file)
    return 0


def follow(child: subprocess.Popen[bytes]) -> None:
    """Wait until standard input closes, then end the command: first it may save its state."""
    while os.read(0, 1):  # not by sys.stdin, whose lock Python needs at its end
        pass
    child.terminate()
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
