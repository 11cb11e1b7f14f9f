"""Back end 1: the command `kidseg` on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .command import find_program, segment_by_command
from .job import Found, Job
from .problems import KidSegError
from .watch import Watch

__all__ = ["LocalCommand", "check_model"]


@dataclass(frozen=True)
class LocalCommand:
    """Run kidseg on this machine.

    Attributes:
        environment: in which other programs start: without the libraries of 3D Slicer, which
            would take the place of those of kidseg.
        command: path of the program or of its virtual environment; "": found.
        within_slicer: command line of the kidseg that is installed in the Python of 3D Slicer, and
            its environment; () where it is not.
    """

    environment: Mapping[str, str] = field(repr=False)
    command: str = ""
    within_slicer: tuple[Sequence[str], Mapping[str, str]] | tuple[()] = field(
        default=(), repr=False
    )
    compress: bool = False

    def check(self, job: Job) -> None:
        """Raise KidSegError: "no-program", "no-model"."""
        self._start()
        check_model(job.model)

    def segment(self, job: Job, watch: Watch) -> Found:
        """Segment; see `segment_by_command`."""
        start, environment = self._start()
        return segment_by_command(
            job,
            watch,
            argv=lambda words: [*start, *words],
            inside=str(job.inside),
            outside=str(job.outside),
            model=None if job.model is None else str(job.model),
            environment=environment,
        )

    def _start(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """How the command line begins, and its environment."""
        search = self.environment.get("PATH")
        try:
            found = find_program(
                self.command, ["kidseg"], lambda name: shutil.which(name, path=search)
            )
        except KidSegError as error:
            if self.within_slicer and not self.command:
                return self.within_slicer
            raise KidSegError(
                error.cause,
                "Install kidseg (see the documentation), and give the path of its program or of"
                " its virtual environment under 'Where kidseg runs'.",
                code=error.code,
            ) from error
        return [str(found)], self.environment


def check_model(model: Path | None) -> None:
    """Raise KidSegError: "no-model" if there is no such file or folder."""
    if model is not None and not model.exists():
        raise KidSegError(
            f"there is no model {model}",
            "Choose a model file (.safetensors) or a run folder, or none for kidseg's own.",
            code="no-model",
        )
