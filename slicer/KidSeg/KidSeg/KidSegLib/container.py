"""Back end 3: kidseg in a container, without network, in an image named by its digest."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from .command import find_program, segment_by_command
from .job import Found, Job
from .local_command import check_model
from .problems import KidSegError
from .watch import Watch

__all__ = ["Container", "check_image"]

_IN, _OUT = "/in", "/out"
_BY_DIGEST = re.compile(r"(?:[a-z0-9][a-z0-9._:/-]*@)?sha256:[0-9a-f]{64}", re.ASCII)
_MODEL = "model.safetensors"
_REMOVE_S = 60.0
# What podman and docker say of an image that is not there, and their own exit code.
_NO_IMAGE, _NO_START = ("image not known", "no such image"), "exit code 125"


def check_image(image: str) -> None:
    """Raise KidSegError: "no-digest" unless the image is named by its digest.

    A tag can point to another image tomorrow; a digest is the SHA-256 of what is run.
    """
    if not _BY_DIGEST.fullmatch(image):
        raise KidSegError(
            f"'{image}' does not name an image by its digest" if image else "no image is named",
            "Give NAME@sha256:... as 'podman images --digests' lists it.",
            code="no-digest",
        )


@dataclass(frozen=True)
class Container:
    """Run kidseg in a container of podman or docker.

    The container has no network, no right on the system, and sees nothing but the folders of the
    job. Images are never downloaded here.

    Attributes:
        environment: of the engine; see `LocalCommand`.
        image: NAME@sha256:DIGEST.
        engine: path or name of the engine; "": podman, else docker.
    """

    environment: Mapping[str, str] = field(repr=False)
    image: str = ""
    engine: str = ""
    compress: bool = False

    def check(self, job: Job) -> None:
        """Raise KidSegError: "no-digest", "no-program", "no-model"."""
        check_image(self.image)
        self._engine()
        check_model(job.model)

    def segment(self, job: Job, watch: Watch) -> Found:
        """Segment; see `segment_by_command`."""
        self.check(job)
        engine, name = str(self._engine()), f"kidseg-{uuid.uuid4().hex}"
        if job.model is not None:
            source = job.model / _MODEL if job.model.is_dir() else job.model
            shutil.copyfile(source, job.inside / _MODEL)
        if (
            _is_root()
        ):  # the user of the image reads and writes; nobody else enters the folder around
            job.outside.chmod(0o777)
            job.inside.chmod(0o755)
            for path in job.inside.iterdir():
                path.chmod(0o644)
        try:
            return segment_by_command(
                job,
                watch,
                argv=lambda words: self.argv(job, engine, name, words),
                inside=_IN,
                outside=_OUT,
                model=None if job.model is None else f"{_IN}/{_MODEL}",
                environment=self.environment,
            )
        except KidSegError as error:
            self._remove(engine, name)
            if error.code == "command-failed":
                raise _explained(error, self.image) from error
            raise

    def _remove(self, engine: str, name: str) -> None:
        """Remove the container, if it is still there: the engine may have ended without it."""
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(  # noqa: S603
                [engine, "rm", "--force", name],
                check=False,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                env=dict(self.environment),
                timeout=_REMOVE_S,
            )

    def argv(self, job: Job, engine: str, name: str, words: Sequence[str]) -> list[str]:
        """The command line that runs kidseg with these arguments."""
        return [
            *(engine, "run", "--rm", "--pull=never", f"--name={name}"),
            *("--network=none", "--read-only", "--tmpfs=/tmp:rw,mode=1777", "--env=HOME=/tmp"),
            *("--cap-drop=ALL", "--security-opt=no-new-privileges", *_user(engine)),
            f"--volume={job.inside}:{_IN}:ro,Z",
            f"--volume={job.outside}:{_OUT}:Z",
            *(self.image, *words),
        ]

    def _engine(self) -> Path:
        search = self.environment.get("PATH")
        return find_program(
            self.engine, ["podman", "docker"], lambda name: shutil.which(name, path=search)
        )


def _explained(error: KidSegError, image: str) -> KidSegError:
    """The error of an engine that could not start the container, with a next step."""
    log = error.details.lower()
    if any(words in log for words in _NO_IMAGE):
        return KidSegError(
            f"the image {image} is not on this machine",
            "Load it first, with 'podman load' or 'podman pull'.",
            code="no-image",
            details=error.details,
        )
    if _NO_START in error.cause:
        return KidSegError(
            error.cause.replace("kidseg ended", "the container was not started"),
            "Try in a terminal whether podman or docker runs a container for you.",
            code="no-container",
            details=error.details,
        )
    return error


def _is_root() -> bool:
    return hasattr(os, "getuid") and os.getuid() == 0


def _user(engine: str) -> list[str]:
    """Options so that the files belong to the user who runs 3D Slicer.

    Windows has no such users, and root needs none: the image has one of its own.
    """
    if not hasattr(os, "getuid") or _is_root():
        return []
    mapped = ["--userns=keep-id"] if "podman" in Path(engine).name else []
    return [*mapped, f"--user={os.getuid()}:{os.getgid()}"]
