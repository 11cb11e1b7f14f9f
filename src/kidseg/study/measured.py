"""Run a command; write how it ended, its wall and processor time and its peak memory to a file.

    python -I measured.py RESULT.json COMMAND...

A script in a process of its own, and a small one: on Linux a process inherits the peak of the one
that started it, so that a child of a large process would be measured as at least as large.
Interrupts are left to the command; this waits for its end.

Source: getrusage(2); `exec_mmap` in Linux's fs/exec.c keeps the old image's peak.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time


def main() -> int:
    """Exit code 0 however the command ended; RESULT.json has its own."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A handler, not SIG_IGN, which the command would inherit.
        signal.signal(number, lambda *_: None)
    result, command = sys.argv[1], sys.argv[2:]
    start = time.perf_counter()
    child = subprocess.Popen(command)  # noqa: S603
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


if __name__ == "__main__":
    sys.exit(main())
