"""A server's parts, put together: jobs, the process that runs them, uploads, the audit log."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kidseg.errors import UsageError
from kidseg.io.atomic import make_folder
from kidseg.serve.audit_log import AuditLog
from kidseg.serve.dispatcher import Dispatcher
from kidseg.serve.guard import Tickets
from kidseg.serve.incoming import Doorkeeper
from kidseg.serve.jobs import Job, JobTable, Kind, Request, new_id
from kidseg.serve.policy import Serving
from kidseg.serve.watchers import Watchers

__all__ = ["Service", "open_service"]

_LOCK = ".lock"


@dataclass(frozen=True, eq=False)
class Service:
    """The parts that the routes work with.

    Attributes:
        serving: what is served, and the limits.
        jobs: the table of jobs.
        audit: log.
        dispatcher: runs the jobs.
        door: receives uploads.
        watchers: clients that follow jobs.
        tickets: for downloads.
    """

    serving: Serving
    jobs: JobTable
    audit: AuditLog
    dispatcher: Dispatcher
    door: Doorkeeper
    watchers: Watchers
    tickets: Tickets

    def queue(self, owner: str, kind: Kind, scan: Path, request: Request) -> Job:
        """Queue a job of a scan, which is moved into the folder of the job.

        Args:
            owner: name of the client.
            kind: of the job.
            scan: on the disk of the jobs.
            request: what to do; its `scan` is the name of the file.

        Raises:
            RefusedError: 429; nothing is moved.
        """
        job = new_id()
        place = self.jobs.place(job)
        place.mkdir(mode=0o700)
        scan.rename(place / request.scan)
        try:
            queued = self.jobs.add(job, owner, kind, request)
        except BaseException:
            (place / request.scan).rename(scan)
            shutil.rmtree(place, ignore_errors=True)
            raise
        if request.stay:
            self.watchers.require(job)
        self.audit.write("job-queued", job=job, kind=kind, client=owner)
        self.dispatcher.wake()
        return queued

    def cancel(self, job: str, why: str = "job-cancel-asked") -> None:
        """Cancel a job, if it has not ended."""
        before = self.jobs.cancel(job)
        self.watchers.release(job)
        if before == "queued":
            shutil.rmtree(self.jobs.place(job), ignore_errors=True)
            self.audit.write("job-cancelled", job=job)
        elif before == "running":
            self.audit.write(why, job=job)


@contextmanager
def open_service(serving: Serving) -> Iterator[Service]:
    """Open the folder of a server, recover its jobs, and run them within this block.

    Raises:
        UsageError: "folder-in-use": by another server; "output-exists".
        InputError: "not-writable".
        ModelError: "audit-altered".
        ResourceError: "disk-full".
    """
    folder = serving.folder.absolute()
    before = os.umask(0o077)  # for this process, and those that it starts
    try:
        make_folder(folder)
        with _locked(folder):
            audit = AuditLog.opened(folder / "audit.jsonl")
            service = _service(serving, folder, audit)
            audit.write("server-started")
            service.dispatcher.start()
            try:
                yield service
            finally:
                service.dispatcher.stop()
                audit.write("server-stopped")
    finally:
        os.umask(before)


def _service(serving: Serving, folder: Path, audit: AuditLog) -> Service:
    jobs = JobTable.opened(folder, serving.limits)
    watchers = Watchers(serving.limits.gone_s)
    dispatcher = Dispatcher(
        table=jobs,
        audit=audit,
        device=serving.device,
        model=lambda: serving.model,
        watchers=watchers,
    )
    return Service(
        serving=serving,
        jobs=jobs,
        audit=audit,
        dispatcher=dispatcher,
        door=Doorkeeper(folder / "incoming", serving.limits),
        watchers=watchers,
        tickets=Tickets(),
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other servers out of the folder; the system ends this when the process ends."""
    with (folder / _LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                "another server works in this folder",
                path=folder,
                code="folder-in-use",
                next_step="Stop it, or choose another folder.",
            ) from error
        yield
