"""The stamp of a step of a study: its inputs, whether it is complete, and what it took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kidseg import new_folders
from kidseg.errors import ModelError, UsageError
from kidseg.io.atomic import write_json
from kidseg.records import SEAL, Record, checked, read_file, sealed, unsealed
from kidseg.study.partition import digest
from kidseg.study.process import Completed

__all__ = [
    "MEANING",
    "STAMP",
    "check_inputs",
    "done_stamp",
    "measured_stamp",
    "new_stamp",
    "other_inputs",
    "read_stamp",
    "write_stamp",
]

STAMP = "stamp.json"
MEANING = "meaning of the labels"
_AGAIN = "Remove this folder; the study creates it again."


@dataclass(frozen=True, kw_only=True)
class _Stamp(Record):
    """stamp.json: a digest of the inputs, the inputs, and what was measured."""

    key: str
    done: bool
    inputs: dict[str, Any]
    sha256: str
    attempts: int | None = None
    jobs: int | None = None
    process_seconds: float | None = None
    processor_seconds: float | None = None
    peak_memory_mb: float | None = None


def check_inputs(folder: Path, inputs: Mapping[str, Any], *, more: Sequence[str] = ()) -> None:
    """Check that results in a folder have these inputs, and none of `more` that these lack.

    Results of earlier versions do not say the meaning of their labels.
    """
    stamp = read_stamp(folder)
    if not stamp:
        return
    was, wanted = stamp["inputs"], json.loads(json.dumps(inputs))
    known = {*wanted, *more} - ({MEANING} - was.keys())
    changed = sorted(name for name in known if was.get(name) != wanted.get(name))
    if changed:
        raise other_inputs(folder, changed)


def other_inputs(folder: Path, changed: list[str]) -> UsageError:
    """The error for results with other inputs than those of the study; `changed` names them."""
    return UsageError(
        f"existing results differ from the study in: {', '.join(changed)}",
        path=folder,
        code="other-settings",
        next_step="Choose another output folder, or remove this run's folders in runs, labels and "
        "scores.",
    )


def new_stamp(inputs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """The stamp of a step that begins, with more facts about it."""
    return {"key": digest(inputs), "done": False, **more, "inputs": inputs}


def done_stamp(stamp: Mapping[str, Any], completed: Completed) -> dict[str, Any]:
    """The stamp of a complete step, with what was measured of its process."""
    measured = {
        "process_seconds": round(completed.seconds, 3),
        "processor_seconds": round(completed.processor_seconds, 3),
        "peak_memory_mb": round(completed.peak_memory_mb, 1),
    }
    return {**stamp, "done": True, **measured}


def read_stamp(folder: Path) -> dict[str, Any]:
    """The stamp of a folder; {} if there is none.

    Raises:
        ModelError: "damaged-stamp".
    """
    file = folder / STAMP
    if not file.exists():
        return {}
    try:
        stamp = unsealed(read_file(file, code="damaged-stamp", next_step=_AGAIN))
        return {k: v for k, v in asdict(checked(_Stamp, stamp)).items() if v is not None}
    except ValueError as error:
        raise ModelError(
            f"not a valid stamp of a study: {error}",
            path=file,
            code="damaged-stamp",
            next_step=_AGAIN,
        ) from error


def measured_stamp(folder: Path) -> dict[str, Any]:
    """The stamp of a completed step, with what was measured of its process.

    Raises:
        ModelError: "damaged-stamp".
    """
    stamp = read_stamp(folder)
    lacks = [name for name in ("jobs", "process_seconds", "peak_memory_mb") if name not in stamp]
    if lacks:
        raise ModelError(
            f"it lacks {', '.join(lacks)}; it was not written by this version of kidseg",
            path=folder / STAMP,
            code="damaged-stamp",
            next_step=_AGAIN,
        )
    return stamp


def write_stamp(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the stamp of a folder, sealed; the folder is created if it is missing."""
    new_folders.create(folder)
    plain = {key: value for key, value in content.items() if key != SEAL}
    write_json(folder / STAMP, sealed(plain), overwrite=True)
