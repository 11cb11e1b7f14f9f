"""Runs the jobs one after the other in a process of their own, and ends what has to be ended."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from kidseg.errors import Finding, ResourceError
from kidseg.serve.audit_log import AuditLog
from kidseg.serve.job import ACTIVE, Job
from kidseg.serve.jobs import JobTable
from kidseg.serve.refusals import RefusedError
from kidseg.serve.scan_process import run_scans
from kidseg.serve.set_clock import SetClock
from kidseg.serve.watchers import Watchers

__all__ = ["Dispatcher"]

_TICK_S = 0.05
_LOAD_S = 300.0
_HOUSEKEEPING_S = 30.0
_RESTART_S, _LONGEST_S = 5.0, 80.0

_log = logging.getLogger("kidseg.serve")


@dataclass(frozen=True)
class _Worker:
    """A running process, and what it says of its model."""

    process: SpawnProcess
    connection: Connection
    model: Path
    facts: Mapping[str, Any]

    def end(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.join()
        if not self.connection.closed:
            self.connection.close()


@dataclass(eq=False)
class Dispatcher:
    """A thread that runs the jobs.

    Attributes:
        table: of the jobs.
        audit: log.
        device: see `kidseg.device.choose_device`.
        model: returns the file of the current model.
        watchers: clients that follow jobs.
        done: called with each job that is done, before others can see it, and its result.
        housekeeping: called from time to time, with the seconds by which the clock was set
            forward.
    """

    table: JobTable
    audit: AuditLog
    device: str
    model: Callable[[], Path]
    watchers: Watchers
    done: Callable[[Job, Mapping[str, Any]], None] = lambda job, result: None
    housekeeping: Callable[[float], None] = lambda set_s: None
    facts: Mapping[str, Any] = field(default_factory=dict)
    problem: Finding | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _work: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _worker: _Worker | None = None
    _cleaned: float = 0.0
    _clock: SetClock = field(default_factory=SetClock)
    _unusable: int = 0

    def start(self) -> None:
        """Recover the jobs of an earlier server, and begin."""
        self._recover()
        self.table.sweep()
        for job in self.table.waiting():
            if job.request.stay:
                self.watchers.require(job.id)
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End; a job that is running is queued again."""
        self._stopping.set()
        self._work.set()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """There may be something to do."""
        self._work.set()

    @property
    def is_alive(self) -> bool:
        """Does it run?"""
        return self._thread is not None and self._thread.is_alive()

    def _run(self) -> None:
        failed: Exception | None = None
        while not self._stopping.is_set():
            try:
                if failed is not None:
                    self._recover(blameless=isinstance(failed, ResourceError))
                failed = None
                self._step()
            except Exception as error:  # such as a full disk; jobs wait until it is over
                failed = error
                _log.error("the dispatcher failed: %s", type(error).__name__)
                self._end_worker()
                self._stopping.wait(_RESTART_S)
        self._end_worker()

    def _recover(self, *, blameless: bool = False) -> None:
        for job in self.table.recover(blameless=blameless):
            self.audit.write("job-recovered", job=job.id, attempt=job.attempt)

    def _step(self) -> None:
        """Run the next job, or wait for one."""
        self._work.clear()
        self._keep_house()
        worker = self._ready_worker()
        if worker is None:
            self._stopping.wait(min(_RESTART_S * 2.0**self._unusable, _LONGEST_S))
            self._unusable += 1
            return
        self._unusable = 0
        job = self.table.claim()
        if job is None:
            self._work.wait(0.5)
            return
        self.audit.write("job-started", job=job.id, attempt=job.attempt)
        self._run_job(job, worker)

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None

    def _keep_house(self) -> None:
        """Clean up; what goes wrong there concerns no job."""
        try:
            self._clean()
        except Exception as error:
            _log.error("cleaning up failed: %s", type(error).__name__)

    def _clean(self) -> None:
        """Remove what has expired; cancel jobs whose clients are gone."""
        for job in self.watchers.abandoned():
            with suppress(RefusedError):  # it was removed
                before = self.table.cancel(job)
                if before == "queued":
                    shutil.rmtree(self.table.place(job), ignore_errors=True)
                if before in ACTIVE:
                    self.audit.write("job-abandoned", job=job)
        if time.monotonic() - self._cleaned < _HOUSEKEEPING_S:
            return
        self._cleaned = time.monotonic()
        set_s = self._clock.forward_s()
        for expired in self.table.expire(set_s=set_s):
            self.audit.write("job-expired", job=expired.id)
        self.housekeeping(set_s)

    # ---- the process ---------------------------------------------------------------------------

    def _ready_worker(self) -> _Worker | None:
        """The process with the current model; started if there is none. None if it cannot."""
        wanted, worker = self.model(), self._worker
        if worker is not None and worker.model == wanted and worker.process.is_alive():
            return worker
        self._end_worker()
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=run_scans, args=(theirs, wanted, self.device), name="kidseg-scans"
        )
        process.start()
        theirs.close()
        kind, content = self._first_word(process, ours)
        if kind != "ready":
            process.kill()
            process.join()
            ours.close()
            if not self._stopping.is_set():
                known, self.problem = self.problem, Finding(**content)
                if self.problem != known:
                    self.audit.write("model-unusable", code=self.problem.code)
                    _log.error("no scan is segmented: %s", self.problem)
            return None
        self.facts, self.problem = content, None
        self.audit.write("model-loaded", model=content["sha256"])
        self._worker = _Worker(process, ours, wanted, content)
        return self._worker

    def _first_word(self, process: SpawnProcess, connection: Connection) -> tuple[str, Any]:
        deadline = time.monotonic() + _LOAD_S
        while time.monotonic() < deadline and not self._stopping.is_set():
            try:
                if connection.poll(_TICK_S):
                    word: tuple[str, Any] = connection.recv()
                    return word
            except (EOFError, OSError):
                break
            if not process.is_alive():
                break
        return "unusable", _lost(process, "the model was not loaded").as_dict()

    # ---- one job -------------------------------------------------------------------------------

    def _run_job(self, job: Job, worker: _Worker) -> None:
        folder = self.table.place(job.id)
        for earlier in folder.glob("results-*"):
            shutil.rmtree(earlier, ignore_errors=True)
        ending, content = self._followed(job, worker)
        if ending == "done":
            self._finish(job, content)
        elif ending == "failed":
            self._fail(job, Finding(**content))
        elif ending == "cancelled":
            ended = self.table.end(job, "cancelled")
            self._remove_files(job)
            if ended:
                self.audit.write("job-cancelled", job=job.id)
        else:
            self.table.requeue(job)
        shutil.rmtree(folder / "temporary", ignore_errors=True)

    def _followed(self, job: Job, worker: _Worker) -> tuple[str, Any]:
        """Follow a job to its end.

        Returns:
            ("done", result), ("failed", finding), ("cancelled", None) or ("stopped", None): the
            server stops. Unless the process said the former two, it has ended: what it would say
            later is never taken for the answer to another job.
        """
        with suppress(OSError):  # the process is gone, which is noticed below
            worker.connection.send((self.table.place(job.id), job.attempt, job.request.as_json()))
        deadline = time.monotonic() + self.table.limits.job_s
        while True:
            kind, content = self._word(worker)
            if kind == "stage":
                self.table.advance(job, *content)
            elif kind:
                return kind, content
            elif self._stopping.is_set():
                self._end_worker()
                return "stopped", None
            elif not self.table.is_wanted(job):
                self._end_worker()
                return "cancelled", None
            elif time.monotonic() > deadline:
                self._end_worker()
                return "failed", _too_slow(self.table.limits.job_s).as_dict()
            else:
                self._keep_house()

    def _word(self, worker: _Worker) -> tuple[str, Any]:
        """What the process says; ("", None) if it says nothing for a moment."""
        try:
            if not worker.connection.poll(_TICK_S):
                return "", None
            word: tuple[str, Any] = worker.connection.recv()
            return word
        except (EOFError, OSError):  # the process is gone
            worker.process.join(5)
            lost = _lost(worker.process, "the job was not completed")
            self._end_worker()
            return "failed", lost.as_dict()

    def _finish(self, job: Job, result: Mapping[str, Any]) -> None:
        self.done(job, result)
        ended = self.table.end(job, "done", result=result)  # before its scan goes: it may fail
        (self.table.place(job.id) / job.request.scan).unlink(missing_ok=True)
        if ended:
            self.audit.write("job-done", job=job.id, attempt=job.attempt)
        if job.kind == "score":
            self.table.remove(self.table.get(job.id))

    def _fail(self, job: Job, error: Finding) -> None:
        ended = self.table.end(job, "failed", error=error)
        self._remove_files(job)
        if ended:
            self.audit.write("job-failed", job=job.id, attempt=job.attempt, code=error.code)

    def _remove_files(self, job: Job) -> None:
        """Remove the scan and whatever was written of it."""
        shutil.rmtree(self.table.place(job.id), ignore_errors=True)


def _lost(process: SpawnProcess, what: str) -> Finding:
    """The error of a process that was killed or has crashed."""
    code = process.exitcode
    number = -code if code is not None and code < 0 else 0
    names = {signal.SIGKILL: "killed, as the system does when memory runs out"}
    how = names.get(number) or (f"ended by signal {number}" if number else "ended")  # type: ignore[call-overload]
    return Finding(
        code="worker-killed",
        path="",
        cause=f"the process was {how}; {what}",
        next_step="Other jobs go on. If it is killed again, use a machine with more memory.",
        severity="error",
    )


def _too_slow(seconds: float) -> Finding:
    return Finding(
        code="job-timeout",
        path="",
        cause=f"the job took longer than {seconds:.0f} s, the limit of this server",
        next_step="Use a smaller scan or a faster device, or ask for a higher limit.",
        severity="error",
    )
