"""The jobs of a server, in an SQLite file: what is queued, running and done, whatever is killed.

A job's files are in a folder named by its id, which the server makes. A job that was running when
the server was killed is queued again, as a new attempt with an output folder of its own; only the
attempt that the table names can end it.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kidseg.errors import Finding
from kidseg.serve.database import Database
from kidseg.serve.job import STATES, Job, Kind, Request, State
from kidseg.serve.policy import Limits
from kidseg.serve.refusals import RefusedError, removed

__all__ = ["JobTable"]

_PRIORITY: Mapping[Kind, int] = {"infer": 0, "segment": 1, "score": 2}
_RETRY_S = 30.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    kind TEXT NOT NULL,
    priority INTEGER NOT NULL,
    request TEXT NOT NULL,
    state TEXT NOT NULL,
    stage TEXT NOT NULL,
    progress REAL NOT NULL,
    attempt INTEGER NOT NULL,
    wanted INTEGER NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    result TEXT,
    error TEXT
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, priority, number);
"""


@dataclass(frozen=True, kw_only=True)
class JobTable:
    """The jobs in a folder; for any number of threads.

    Attributes:
        folder: has jobs.sqlite and the folder of each job.
        limits: of the queue.
    """

    folder: Path
    limits: Limits

    @classmethod
    def opened(cls, folder: Path, limits: Limits) -> JobTable:
        """Open the table of a folder, or begin one."""
        (folder / "jobs").mkdir(parents=True, exist_ok=True, mode=0o700)
        table = cls(folder=folder, limits=limits)
        table.base.create(_SCHEMA)
        return table

    @property
    def base(self) -> Database:
        """The file of the table."""
        return Database(self.folder / "jobs.sqlite")

    def place(self, job: str) -> Path:
        """The folder of a job."""
        return self.folder / "jobs" / job

    def results(self, job: Job) -> Path:
        """The folder with the results of the last attempt."""
        return self.place(job.id) / f"results-{job.attempt}"

    def check_room(self, owner: str) -> None:
        """Check that the queue has room for a job of this client.

        Raises:
            RefusedError: 429 "queue-full", "too-many-jobs".
        """
        with self.base.connected() as base:
            _check_room(base, owner, self.limits)

    def add(self, job: str, owner: str, kind: Kind, request: Request) -> Job:
        """Queue a job whose scan is in its folder.

        Args:
            job: see `new_id`.
            owner: name of the client.
            kind: of the job.
            request: what to do.

        Raises:
            RefusedError: as `check_room`.
        """
        with self.base.writing() as base:
            if kind != "score":
                _check_room(base, owner, self.limits)
            base.execute(
                "INSERT INTO jobs (id, owner, kind, priority, request, state, stage, progress,"
                " attempt, wanted, created) VALUES (?, ?, ?, ?, ?, 'queued', 'queued', 0, 0, 1, ?)",
                (job, owner, kind, _PRIORITY[kind], request.as_json(), time.time()),
            )
        return self.get(job, owner)

    def get(self, job: str, owner: str | None = None) -> Job:
        """A job of this client; None: of any.

        Raises:
            RefusedError: 404 "not-found", also if it is another client's.
        """
        with self.base.connected() as base:
            row = base.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
        if row is None or (owner is not None and row["owner"] != owner):
            raise removed("job")
        return _job(row)

    def of_owner(self, owner: str, *, after: int = 0, limit: int = 100) -> list[Job]:
        """The jobs of a client, the oldest first, without those of the server for itself.

        Args:
            owner: name of the client.
            after: number of the last job that is known.
            limit: of the list.
        """
        with self.base.connected() as base:
            rows = base.execute(
                "SELECT * FROM jobs WHERE owner = ? AND number > ? AND kind != 'score'"
                " ORDER BY number LIMIT ?",
                (owner, after, limit),
            ).fetchall()
        return [_job(row) for row in rows]

    def ahead(self, job: Job) -> int:
        """The number of jobs that are run before this one."""
        if job.state != "queued":
            return 0
        with self.base.connected() as base:
            (count,) = base.execute(
                "SELECT COUNT(*) FROM jobs WHERE state = 'running' OR (state = 'queued' AND"
                " (priority, number) < (?, ?))",
                (_PRIORITY[job.kind], job.number),
            ).fetchone()
        return int(count)

    def counts(self) -> dict[str, int]:
        """{state: number of jobs}."""
        with self.base.connected() as base:
            rows = base.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetchall()
        return dict.fromkeys(STATES, 0) | {state: int(count) for state, count in rows}

    def claim(self) -> Job | None:
        """Begin the next job: a new attempt. None if there is none."""
        with self.base.writing() as base:
            row = base.execute(
                "SELECT id FROM jobs WHERE state = 'queued' ORDER BY priority, number LIMIT 1"
            ).fetchone()
            if row is None:
                return None
            base.execute(
                "UPDATE jobs SET state = 'running', stage = 'read', progress = 0,"
                " attempt = attempt + 1, started = ? WHERE id = ?",
                (time.time(), row["id"]),
            )
        return self.get(row["id"])

    def advance(self, job: Job, stage: str, progress: float) -> bool:
        """Record the progress of an attempt; False: it is to be cancelled, or is not the last."""
        with self.base.writing() as base:
            base.execute(
                "UPDATE jobs SET stage = ?, progress = MAX(progress, ?)"
                " WHERE id = ? AND attempt = ? AND state = 'running'",
                (stage, progress, job.id, job.attempt),
            )
        return self.is_wanted(job)

    def is_wanted(self, job: Job) -> bool:
        """Is this attempt running, and not to be cancelled?"""
        with self.base.connected() as base:
            row = base.execute(
                "SELECT wanted FROM jobs WHERE id = ? AND attempt = ? AND state = 'running'",
                (job.id, job.attempt),
            ).fetchone()
        return row is not None and bool(row["wanted"])

    def end(
        self,
        job: Job,
        state: State,
        *,
        result: Mapping[str, Any] | None = None,
        error: Finding | None = None,
    ) -> bool:
        """End an attempt; False if it is not the last one, or has ended."""
        with self.base.writing() as base:
            changed = base.execute(
                "UPDATE jobs SET state = ?, stage = ?, ended = ?, result = ?, error = ?,"
                " progress = CASE ? WHEN 'done' THEN 1 ELSE progress END"
                " WHERE id = ? AND attempt = ? AND state = 'running'",
                (
                    *(state, state, time.time()),
                    None if result is None else json.dumps(result),
                    None if error is None else json.dumps(error.as_dict()),
                    *(state, job.id, job.attempt),
                ),
            ).rowcount
        return bool(changed)

    def cancel(self, job: str) -> State:
        """Cancel a job: at once if it is queued, soon if it is running. Its state before."""
        with self.base.writing() as base:
            row = base.execute("SELECT state FROM jobs WHERE id = ?", (job,)).fetchone()
            if row is None:
                raise removed("job")
            base.execute(
                "UPDATE jobs SET wanted = 0,"
                " ended = CASE state WHEN 'queued' THEN ? ELSE ended END,"
                " stage = CASE state WHEN 'queued' THEN 'cancelled' ELSE stage END,"
                " state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END"
                " WHERE id = ? AND state IN ('queued', 'running')",
                (time.time(), job),
            )
        state: State = row["state"]
        return state

    def requeue(self, job: Job) -> None:
        """Queue a running job again, as if this attempt had not begun: the server stops."""
        with self.base.writing() as base:
            base.execute(
                "UPDATE jobs SET state = 'queued', stage = 'queued', attempt = attempt - 1"
                " WHERE id = ? AND attempt = ? AND state = 'running'",
                (job.id, job.attempt),
            )

    def recover(self, *, blameless: bool = False) -> list[Job]:
        """When no job runs: queue those that were running again, or end them as failed.

        A job that was running at each of several ends of the server is not tried again: it may be
        what ended it. Returns the jobs that were running.

        Args:
            blameless: no job ended it, but such as a full disk: the attempts do not count.
        """
        with self.base.connected() as base:
            rows = base.execute("SELECT * FROM jobs WHERE state = 'running'").fetchall()
        running = [_job(row) for row in rows]
        for job in running:
            if not job.wanted:
                self.end(job, "cancelled")
            elif job.attempt >= self.limits.attempts and not blameless:
                self.end(job, "failed", error=_interrupted(job))
            else:
                with self.base.writing() as base:
                    base.execute(
                        "UPDATE jobs SET state = 'queued', stage = 'queued',"
                        " attempt = attempt - ? WHERE id = ?",
                        (int(blameless), job.id),
                    )
        return running

    def sweep(self) -> None:
        """When nothing is received: remove folders without a job, and scans of ended ones."""
        with self.base.connected() as base:
            states = {row["id"]: row["state"] for row in base.execute("SELECT id, state FROM jobs")}
        for folder in (self.folder / "jobs").iterdir():
            state = states.get(folder.name)
            if state in (None, "failed", "cancelled"):
                shutil.rmtree(folder, ignore_errors=True)
            elif state == "done":
                for file in (*folder.glob("scan*"), folder / "temporary"):
                    _remove(file)

    def waiting(self) -> list[Job]:
        """The jobs that are queued, in the order in which they are run."""
        with self.base.connected() as base:
            rows = base.execute(
                "SELECT * FROM jobs WHERE state = 'queued' ORDER BY priority, number"
            ).fetchall()
        return [_job(row) for row in rows]

    def expire(self, now: float | None = None, set_s: float = 0.0) -> list[Job]:
        """Remove jobs that ended long ago, and as many more as the disk requires.

        A job that ended later than now, because the clock was set back, ends now.

        Args:
            now: seconds since 1970; None: by the clock.
            set_s: by which the clock was set forward; see `kidseg.serve.set_clock`.
        """
        now = time.time() if now is None else now
        with self.base.writing() as base:
            if set_s:
                base.execute("UPDATE jobs SET ended = ended + ?", (set_s,))
            base.execute("UPDATE jobs SET ended = ? WHERE ended > ?", (now, now))
            rows = base.execute(
                "SELECT * FROM jobs WHERE ended IS NOT NULL ORDER BY ended"
            ).fetchall()
        ended = [_job(row) for row in rows]
        old = [job for job in ended if (job.ended or now) + self.limits.keep_s <= now]
        size = _size(self.folder / "jobs")
        for job in ended[len(old) :]:
            if size <= self.limits.disk_bytes:
                break
            size -= _size(self.place(job.id))
            old.append(job)
        for job in old:
            self.remove(job)
        return old

    def remove(self, job: Job) -> bool:
        """Remove a job that has ended, with all its files; False if it has not, or is not there."""
        with self.base.writing() as base:
            gone = base.execute("DELETE FROM jobs WHERE id = ? AND ended IS NOT NULL", (job.id,))
        if gone.rowcount:
            shutil.rmtree(self.place(job.id), ignore_errors=True)
        return bool(gone.rowcount)


def _check_room(base: sqlite3.Connection, owner: str, limits: Limits) -> None:
    (every, own) = base.execute(
        "SELECT COUNT(*), COALESCE(SUM(owner = ?), 0) FROM jobs"
        " WHERE state IN ('queued', 'running') AND kind != 'score'",
        (owner,),
    ).fetchone()
    if every >= limits.waiting:
        raise _full(f"{every} jobs are waiting, as many as the server accepts", "queue-full")
    if own >= limits.waiting_of_one:
        raise _full(f"{own} of your jobs are waiting, as many as one client may", "too-many-jobs")


def _full(cause: str, code: str) -> RefusedError:
    return RefusedError(429, cause, code=code, next_step="Try again later.", retry_after_s=_RETRY_S)


def _interrupted(job: Job) -> Finding:
    return Finding(
        code="job-interrupted",
        path="",
        cause=f"the server ended {job.attempt} times while this job was running",
        next_step="Check the scan with 'kidseg check'; if it is sound, create the job again.",
        severity="error",
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _size(folder: Path) -> int:
    """Bytes of all files in a folder; files and folders may be removed meanwhile."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found += os.lstat(os.path.join(place, name)).st_size  # noqa: PTH118
    return found


def _job(row: sqlite3.Row) -> Job:
    content = dict(row)
    content.pop("priority")
    return Job(
        **{
            **content,
            "request": Request.from_json(content["request"]),
            "wanted": bool(content["wanted"]),
            "result": None if content["result"] is None else json.loads(content["result"]),
            "error": None if content["error"] is None else Finding(**json.loads(content["error"])),
        }
    )
