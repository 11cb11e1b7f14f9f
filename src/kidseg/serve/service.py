"""A server's parts, put together: jobs, the process that runs them, uploads, the audit log."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from kidseg.errors import ResourceError
from kidseg.header import read_header
from kidseg.io.atomic import link_or_copy, make_folder
from kidseg.labels import LabelSchema
from kidseg.serve.audit_log import AuditLog
from kidseg.serve.dispatcher import Dispatcher
from kidseg.serve.folder_lock import locked_folder
from kidseg.serve.guard import Tickets
from kidseg.serve.images import FINAL, ORIGINAL, Image, ImageStore, LabelEntry
from kidseg.serve.incoming import Doorkeeper
from kidseg.serve.job import Job, Kind, Request, new_id
from kidseg.serve.jobs import JobTable
from kidseg.serve.learned_from import names_said, read_submitted
from kidseg.serve.learning import Learner
from kidseg.serve.next_sample import choose_next
from kidseg.serve.policy import SERVER, Serving
from kidseg.serve.refusals import RefusedError
from kidseg.serve.sessions import SessionStore
from kidseg.serve.watchers import Watchers

__all__ = ["Service", "open_service"]


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
        tickets: addresses without token.
        images: to be labelled.
        learner: trains on the labels.
        reading: held while labels are read into memory: one after the other.
    """

    serving: Serving
    jobs: JobTable
    audit: AuditLog
    dispatcher: Dispatcher
    door: Doorkeeper
    watchers: Watchers
    tickets: Tickets
    images: ImageStore
    sessions: SessionStore
    learner: Learner
    reading: Lock = field(default_factory=Lock)

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

    # ---- images --------------------------------------------------------------------------------

    def public(self, image: Image) -> str:
        """The name by which clients know an image; with tokens its id, which cannot be guessed."""
        return image.id if self.serving.tokens else image.name

    def add_image(self, name: str | None, scan: Path, info: Mapping[str, Any]) -> Image:
        """Add an image, and let the model look at it when there is nothing else to do."""
        image = self.images.add(name, scan, info)
        self.audit.write("image-added", image=image.id)
        self._look_at(image)
        return image

    def save_label(
        self, image: Image, tag: str, labels: Path, params: Mapping[str, Any]
    ) -> LabelEntry:
        """Save labels of an image, if a model can learn from them.

        Raises:
            InputError: see `kidseg.serve.learned_from`.
            RefusedError: 413 "too-large": reading them would take too much memory.
        """
        schema = LabelSchema.from_dict(read_header(self.model())["labels"])
        limit = self.serving.limits.label_bytes
        try:
            with self.reading:
                read_submitted(image.path, labels, names_said(params), schema, limit)
        except ResourceError as error:
            if error.code != "not-enough-memory":
                raise
            raise RefusedError(
                413,
                f"the labels, or their image, have too many voxels: {error.cause}",
                code="too-large",
                next_step="Save the labels as whole numbers of 8 bits, or crop the scan.",
            ) from error
        entry = self.images.save_label(image, tag, labels, params)
        self.audit.write("label-saved", image=image.id, final=tag == FINAL)
        return entry

    def image_counts(self) -> dict[str, Any]:
        """How many images there are, and how many are labelled."""
        images = self.images.all()
        tags = Counter(tag for image in images for tag in image.labels)
        return {"total": len(images), "completed": tags[FINAL], "label_tags": dict(tags)}

    def image_info(self, image: Image) -> dict[str, Any]:
        """What is said of an image."""
        return {
            **image.info,
            "id": self.public(image),
            "name": f"{image.id}{''.join(image.path.suffixes)}",
            "ts": int(image.created),
            "checksum": f"SHA256:{image.sha256}",
            "uncertainty": image.uncertainty,
            "distance_sd": image.distance_sd,
        }

    def next_sample(self, strategy: str) -> dict[str, Any]:
        """The image to label next, which may be downloaded for a while; {} if there is none."""
        image = choose_next(strategy, self.images.all())
        if image is None:
            return {}
        if self.serving.tokens:
            self.tickets.give(f"/datastore/image?image={image.id}")
        return self.image_info(image)

    def look_again(self) -> None:
        """The model has changed: let it look at the images that are not labelled."""
        for image in self.images.all():
            if FINAL not in image.labels:
                self._look_at(image)
        self.dispatcher.wake()

    def model(self) -> Path:
        """The file of the current model."""
        return self.images.model() or self.serving.model

    def _look_at(self, image: Image) -> None:
        place = self.door.folder / new_id()
        place.mkdir(mode=0o700)
        scan = place / f"scan{''.join(image.path.suffixes)}"
        try:
            with suppress(FileNotFoundError):  # the image was removed meanwhile
                link_or_copy(image.path, scan)
                self.queue(SERVER, "score", scan, Request(scan=scan.name, image=image.id))
        finally:
            self.door.clear(place)

    def done(self, job: Job, result: Mapping[str, Any]) -> None:
        """A job is done: keep what the model found in an image."""
        if job.request.image is None:
            return
        try:
            image = self.images.get(job.request.image)
            self.images.judge(
                image.id, result["model"]["sha256"], result["uncertainty"], result["distance_sd"]
            )
            if job.kind == "score":
                names = {name: int(number) for number, name in result["labels"].items()}
                file = self.jobs.results(job) / result["outputs"][0]
                self.images.save_label(image, ORIGINAL, file, {"label_names": names})
        except RefusedError:  # the image was removed meanwhile
            return


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
        with locked_folder(folder, "server"):
            audit = AuditLog.opened(folder / "audit.jsonl")
            service = _service(serving, folder, audit)
            audit.write("server-started")
            service.dispatcher.start()
            try:
                yield service
            finally:
                service.learner.stop()
                service.dispatcher.stop()
                audit.write("server-stopped")
    finally:
        os.umask(before)


def _service(serving: Serving, folder: Path, audit: AuditLog) -> Service:
    jobs = JobTable.opened(folder, serving.limits)
    images, sessions = ImageStore.opened(folder), SessionStore.opened(folder)
    watchers = Watchers(serving.limits.gone_s)

    def model() -> Path:
        return images.model() or serving.model

    def keep_house(set_s: float) -> None:
        for _ in range(sessions.expire(serving.limits.session_s, set_s)):
            audit.write("session-expired")

    service = Service(
        serving=serving,
        jobs=jobs,
        audit=audit,
        dispatcher=Dispatcher(
            table=jobs,
            audit=audit,
            device=serving.device,
            model=model,
            watchers=watchers,
            done=lambda job, result: service.done(job, result),
            housekeeping=keep_house,
        ),
        door=Doorkeeper(folder / "incoming", serving.limits),
        watchers=watchers,
        tickets=Tickets(),
        images=images,
        sessions=sessions,
        learner=Learner(
            folder=folder,
            images=images,
            audit=audit,
            device=serving.device,
            options=serving.training,
            model=model,
            changed=lambda: service.look_again(),
        ),
    )
    return service
