"""Many clients at a real server: nothing lost, nothing twice, bounded memory, a clear 429.

    python benchmarks/serve_load.py SCAN -m MODEL [--clients 50] [--jobs 2]
                                    [--pad-mb 0] [--kill] [--patience-s 900]

Each client uploads the scan, follows the events of its job, downloads the labels, and does so
--jobs times; where the server says 429, it comes again as the server says. With --pad-mb the scan
is sent in a zip with so many MB of noise beside it, to see the memory of large uploads: such a zip
is refused by the reader, and so each job must fail with its code. With --kill the server is killed
(SIGKILL) in the middle and started again: clients go on, and every job that was accepted ends.
Clients and server share the machine: a client that could send nothing for the time after which
the server gives up is told 408, and uploads again; one that never paused so long must not be told.
Prints one JSON object; exit code 1 if anything was lost, ran to double results or answered 5xx.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx

from kidseg.serve.policy import Limits

ENDED = ("done", "failed", "cancelled")
STALL_S = Limits().stall_s


class Body(io.BytesIO):
    """What a client sends, and for how long it sent nothing.

    Attributes:
        pause_s: the longest time between two blocks, the server's answer included.
    """

    pause_s, _last = 0.0, 0.0

    def begin(self) -> None:
        """It is sent from now on."""
        self.pause_s, self._last = 0.0, time.monotonic()

    def read(self, size: int | None = -1) -> bytes:
        """The next block."""
        self.end()
        return super().read(size)

    def end(self) -> None:
        """A block was sent, or the answer has come."""
        now = time.monotonic()
        self.pause_s, self._last = max(self.pause_s, now - self._last), now


@dataclass
class Tally:
    """What the clients saw."""

    accepted: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    ended: dict[str, str] = field(default_factory=dict)
    sizes: set[int] = field(default_factory=set)
    waits_s: list[float] = field(default_factory=list)
    pauses_s: list[float] = field(default_factory=list)
    unjust: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def start(
    arguments: argparse.Namespace,
    folder: Path,
    port: int,
    *more: str | Path,
    log: IO[str] | None = None,
) -> subprocess.Popen[str]:
    """A server process that answers; its standard error goes to the log, if there is one."""
    command = [sys.executable, "-m", "kidseg", "serve", "-m", arguments.model, "--folder", folder]
    command += ["--port", str(port), "--device", "cpu", "--json", *more]
    server = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=log, text=True
    )
    deadline = time.monotonic() + 300
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/api/v1/health").json()["status"] == "ok":
                return server
        except (httpx.HTTPError, KeyError, ValueError):
            pass
        time.sleep(0.1)
    server.kill()
    said = "" if log is None else Path(log.name).read_text()
    raise SystemExit(f"the server does not start\n{said}")


def peak_mb(pid: int) -> float:
    """Largest resident memory of a process so far."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that run."""
    tasks = list(Path(f"/proc/{pid}/task").glob("*/children"))
    return [int(child) for task in tasks for child in task.read_text().split()]


def largest_child_mb(pid: int) -> float:
    """Peak of the process that segments: of what the server has started, the largest."""
    return max(map(peak_mb, children_of(pid)), default=0.0)


def client(url: str, body: bytes, jobs: int, tally: Tally, patience_s: float) -> None:
    """One client, with several jobs one after the other."""
    for _ in range(jobs):
        begun = time.monotonic()
        job = upload(url, body, tally, begun + patience_s)
        state = follow(url, job, begun + patience_s)
        with tally.lock:
            tally.ended[job] = state
            tally.waits_s.append(time.monotonic() - begun)
        if state == "done":
            download(f"{url}/api/v1/jobs/{job}/results/scan_seg.nii.gz", tally, begun + patience_s)


def download(url: str, tally: Tally, deadline: float) -> None:
    """Download the labels, also from a server that is killed meanwhile."""
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(url, timeout=60)
        except httpx.HTTPError:
            time.sleep(1)
            continue
        with tally.lock:
            tally.statuses[answer.status_code] += 1
            tally.sizes.add(len(answer.content))
        return
    raise SystemExit("labels were never sent")


def upload(url: str, body: bytes, tally: Tally, deadline: float) -> str:
    """Upload until it is accepted; the id of the job."""
    sent = Body(body)
    while time.monotonic() < deadline:
        sent.begin()
        try:
            answer = httpx.post(f"{url}/api/v1/jobs", files={"file": sent}, timeout=120)
        except httpx.HTTPError:  # killed
            time.sleep(1)
            continue
        sent.end()
        with tally.lock:
            tally.statuses[answer.status_code] += 1
            tally.pauses_s.append(sent.pause_s)
            tally.unjust += answer.status_code == 408 and sent.pause_s < STALL_S
        if answer.status_code == 201:
            job: str = answer.json()["id"]
            with tally.lock:
                tally.accepted.append(job)
            return job
        if answer.status_code not in (408, 429):
            raise SystemExit(f"{answer.status_code}: {answer.text}")
        time.sleep(min(5.0, float(answer.headers.get("Retry-After", 1))))
    raise SystemExit("an upload was never accepted")


def follow(url: str, job: str, deadline: float) -> str:
    """Follow the events of a job to its end; its state."""
    while time.monotonic() < deadline:
        try:
            with httpx.stream("GET", f"{url}/api/v1/jobs/{job}/events", timeout=60) as answer:
                for line in answer.iter_lines():
                    if (
                        line.startswith("data: ")
                        and (state := json.loads(line[6:])["state"]) in ENDED
                    ):
                        return str(state)
        except (httpx.HTTPError, KeyError):
            time.sleep(1)
    return "lost"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scan", type=Path)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--pad-mb", type=int, default=0)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--patience-s", type=float, default=900)
    arguments = parser.parse_args()
    body = arguments.scan.read_bytes()
    if arguments.pad_mb:
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("noise.bin", secrets.token_bytes(arguments.pad_mb * 2**20))
        body = data.getvalue()
    with tempfile.TemporaryDirectory() as name:
        result = load(arguments, Path(name) / "server", body)
    print(json.dumps(result, indent=2))
    return 0 if result["sound"] else 1


def load(arguments: argparse.Namespace, folder: Path, body: bytes) -> dict[str, Any]:
    """Run the clients; what came of it."""
    port = 20000 + os.getpid() % 20000
    url, tally = f"http://127.0.0.1:{port}", Tally()
    server = start(arguments, folder, port)
    idle, begun, peak, segmenting = peak_mb(server.pid), time.monotonic(), 0.0, 0.0
    try:
        with ThreadPoolExecutor(arguments.clients) as pool:
            running = [
                pool.submit(client, url, body, arguments.jobs, tally, arguments.patience_s)
                for _ in range(arguments.clients)
            ]
            if arguments.kill:
                while len(tally.ended) < arguments.clients // 4:
                    time.sleep(0.1)
                peak, segmenting = peak_mb(server.pid), largest_child_mb(server.pid)
                server.send_signal(signal.SIGKILL)
                server.wait()
                server = start(arguments, folder, port)
            for each in running:
                each.result()
        seconds = time.monotonic() - begun
        peak = max(peak, peak_mb(server.pid))
        segmenting = max(segmenting, largest_child_mb(server.pid))
    finally:
        server.terminate()
        server.wait()
    events = [json.loads(x) for x in (folder / "audit.jsonl").read_text().splitlines()]
    ends = Counter(e["job"] for e in events if e["event"] in ("job-done", "job-failed"))
    wanted = "failed" if arguments.pad_mb else "done"
    states = Counter(tally.ended.values())
    whole = set(tally.accepted) == set(tally.ended) and set(ends.values()) == {1}
    return {
        "clients": arguments.clients,
        "accepted": len(tally.accepted),
        "ended": dict(states),
        "answers": dict(sorted(tally.statuses.items())),
        "upload_mb": round(len(body) / 2**20, 2),
        "seconds": round(seconds, 1),
        "jobs_per_s": round(len(tally.ended) / seconds, 2),
        "slowest_job_s": round(max(tally.waits_s), 1),
        "longest_pause_s": round(max(tally.pauses_s), 1),
        "server_mb": {"idle": round(idle), "peak": round(peak)},
        "segmenting_mb": {"peak": round(segmenting)},
        "sound": whole
        and set(states) == {wanted}
        and len(tally.sizes) <= 1
        and not tally.unjust
        and not [status for status in tally.statuses if status >= 500],
    }


if __name__ == "__main__":
    sys.exit(main())
