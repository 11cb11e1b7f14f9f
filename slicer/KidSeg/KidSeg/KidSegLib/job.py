"""What a back end gets, and what it gives back. Files only: back ends know nothing of the scene."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from .watch import Watch

__all__ = ["LABELS", "BackEnd", "Found", "Job"]

LABELS = "seg.nrrd"
"""The format that the scene is filled from."""


@dataclass(frozen=True)
class Job:
    """A scan to segment.

    Attributes:
        folder: temporary; with `inside` for what kidseg reads and `outside` for what it writes.
        name: of the scan, for messages.
        formats: of the labels, besides `LABELS`.
        model: a model file or run folder; None: the model that comes with kidseg.
        cpu: use no graphics processor.
        drawn: name of the segmentation, in `drawn_slices`, that is to be completed; "": none.
    """

    folder: Path
    name: str
    formats: tuple[str, ...] = ()
    model: Path | None = None
    cpu: bool = False
    drawn: str = ""

    @property
    def inside(self) -> Path:
        """Folder that kidseg reads."""
        return self.folder / "in"

    @property
    def outside(self) -> Path:
        """Folder that kidseg writes."""
        return self.folder / "out"

    @property
    def scan(self) -> Path:
        """The exported scan. No patient's name is in its path."""
        return self.inside / "scan.nrrd"

    @property
    def drawn_slices(self) -> Path:
        """The exported labels that are drawn in some slices of the scan."""
        return self.inside / "drawn.seg.nrrd"

    @property
    def all_formats(self) -> str:
        """As an argument."""
        return ",".join(dict.fromkeys((LABELS, *self.formats)))


@dataclass(frozen=True)
class Found:
    """What a back end found.

    Attributes:
        labels: segmentation in the format of 3D Slicer.
        record: of the scan in kidseg's result.json.
        measures: of `kidseg measure`; None: only the volumes of the record are known.
        others: files in the other formats.
        notes: for the user, such as warnings.
    """

    labels: Path
    record: Mapping[str, Any]
    measures: Mapping[str, Any] | None = None
    others: tuple[Path, ...] = ()
    notes: list[str] = field(default_factory=list)


class BackEnd(Protocol):
    """Where kidseg runs."""

    @property
    def compress(self) -> bool:
        """Is a smaller file worth the time to compress it?"""

    def check(self, job: Job) -> None:
        """Raise KidSegError if it is plain before the start that it cannot work."""

    def segment(self, job: Job, watch: Watch) -> Found:
        """Segment; called in a thread. Raises KidSegError, CancelledError."""
