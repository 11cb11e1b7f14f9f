"""What the processes of a run wrote of themselves, checked: summary.json, result.json, log.jsonl.

A file of an earlier version, a damaged one and one of another program are errors that name the
file and the field, not failures somewhere in the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import NonNegativeFloat, NonNegativeInt

from kidseg.errors import ModelError
from kidseg.records import PartialRecord, checked, parsed, read_file

__all__ = ["Segmented", "Trained", "model_of", "read_curve", "read_segmented", "read_trained"]

CODE = "damaged-summary"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Stage(PartialRecord):
    epochs: NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class _File(PartialRecord):
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Trained(PartialRecord):
    """summary.json of a training, as far as a study reads it.

    Attributes:
        seconds: of each stage, and of "prepare".
        stages: how each stage was trained.
        peak_memory_mb: of the process, and of the device's allocations.
        device: that it ran on.
        precision: of the networks.
        parameters: of each network; None if they were not counted.
    """

    seconds: Mapping[str, NonNegativeFloat]
    stages: Mapping[str, _Stage]
    peak_memory_mb: Mapping[str, NonNegativeFloat]
    device: str
    precision: str
    parameters: Mapping[str, NonNegativeInt] | None = None


@dataclass(frozen=True, kw_only=True)
class _Written(PartialRecord):
    model: _File


@dataclass(frozen=True, kw_only=True)
class _Scan(PartialRecord):
    seconds: Mapping[str, NonNegativeFloat]


@dataclass(frozen=True, kw_only=True)
class Segmented(PartialRecord):
    """result.json of a segmentation, as far as a study reads it.

    Attributes:
        scans: at least one; with the seconds of each step.
    """

    scans: tuple[_Scan, ...]

    def __post_init__(self) -> None:
        if not self.scans:
            raise ValueError("it has no scans")

    @property
    def seconds_per_scan(self) -> float:
        """Mean over the scans."""
        return sum(sum(scan.seconds.values()) for scan in self.scans) / len(self.scans)


@dataclass(frozen=True, kw_only=True)
class _Epoch(PartialRecord):
    stage: str
    seconds: NonNegativeFloat
    val_score: float


def read_trained(run: Path) -> Trained:
    """What a training wrote into its folder.

    Raises:
        ModelError: "damaged-summary".
    """
    return _read(run / "summary.json", lambda text: checked(Trained, parsed(text)))


def model_of(run: Path) -> str | None:
    """SHA-256 of the model of a training; None before its end.

    Raises:
        ModelError: "damaged-summary".
    """
    file = run / "summary.json"
    if not file.exists():
        return None
    return _read(file, lambda text: checked(_Written, parsed(text))).model.sha256


def read_segmented(labels: Path) -> Segmented:
    """What a segmentation wrote into its folder.

    Raises:
        ModelError: "damaged-summary".
    """
    return _read(labels / "result.json", lambda text: checked(Segmented, parsed(text)))


def read_curve(log: Path) -> tuple[tuple[str, float, float], ...]:
    """(stage, its seconds, validation score) of each epoch of a training.

    Raises:
        ModelError: "damaged-summary".
    """

    def epochs(text: bytes) -> tuple[tuple[str, float, float], ...]:
        found = [checked(_Epoch, parsed(line)) for line in text.splitlines()]
        return tuple((each.stage, each.seconds, each.val_score) for each in found)

    return _read(log, epochs)


def _read(file: Path, understood: Callable[[bytes], T]) -> T:
    step = (
        "Remove this run's folders in runs, labels and scores, and run the study again: it makes"
        " them again."
    )
    try:
        return understood(read_file(file, code=CODE, next_step=step))
    except ValueError as error:
        raise ModelError(
            f"damaged, or written by another version of kidseg: {error}",
            path=file,
            code=CODE,
            next_step=step,
        ) from error
