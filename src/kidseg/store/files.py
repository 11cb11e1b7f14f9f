"""What lies in a store, and how it is named and checked.

store.json          written last: format, content, plan's digest, digest of every case
plan.json
cases/<id>/
    case.json       grids, facts, label counts per slice, SHA-256 of the arrays and the sources
    image.npy       (channels, slices, rows, columns) int16 or float32
    labels.npy      (1, slices, rows, columns) uint8, on the image's grid or one of their own
    reference.npy   labels on the scan's own grid, where that is another
    <other>.npy     what a method's recipe makes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch

from kidseg.errors import ModelError
from kidseg.geometry import Grid
from kidseg.io.content import sha256_of
from kidseg.plan.rules import Plan

if TYPE_CHECKING:
    from kidseg.cases import Case, Dataset

__all__ = ["CASES", "FORMAT", "PLAN", "STORE", "Identity", "Source", "is_store"]

FORMAT = 3
"""Number of the file format and of what is computed; a store of another number is refused."""

STORE, PLAN, CASES, CASE = "store.json", "plan.json", "cases", "case.json"
BEGUN = "begun.json"
_ANOTHER = "Choose another folder, or delete this one to make it anew."


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that a case was made from: path below the data set, bytes, time of change, SHA-256."""

    name: str
    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of_file(cls, path: Path, root: Path) -> Source:
        """Reads the whole file."""
        found = path.stat()
        return cls(
            name=_below(path, root),
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            sha256=sha256_of(path),
        )

    def is_file(self, path: Path, root: Path) -> bool:
        """Is it that file, unchanged? Read only if its time of change differs (a copy)."""
        found = path.stat()
        if self.name != _below(path, root) or self.size != found.st_size:
            return False
        return self.mtime_ns == found.st_mtime_ns or self.sha256 == sha256_of(path)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a store is of: two builds with the same identity give the same bits.

    Attributes:
        content: of the recipe.
        plan: digest of the plan.
        dataset: name, channels, labels, and per case its id, patient and number of images.
        settings: of the recipe.
    """

    content: str
    plan: str
    dataset: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, dataset: Dataset, plan: Plan, content: str, settings: Mapping[str, Any]
    ) -> Identity:
        """The identity of a store to be built, or to be found."""
        return cls(
            content=content, plan=plan.digest, dataset=_described(dataset), settings=settings
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "format": FORMAT,
            "content": self.content,
            "settings": dict(self.settings),
            "plan_sha256": self.plan,
            "dataset": dict(self.dataset),
        }

    def check(self, found: Mapping[str, Any], path: Path) -> None:
        """Is a store with this head the one that is meant?

        Raises:
            ModelError: "store-version", "store-of-another-content", "store-of-other-settings",
                "store-of-another-plan", "store-of-another-dataset".
        """
        check_version(found, path)
        mine = self.as_dict()
        reasons = {
            "content": ("store-of-another-content", f"it does not hold '{self.content}'"),
            "settings": ("store-of-other-settings", "it was made with other settings"),
            "plan_sha256": ("store-of-another-plan", "it was made with another plan"),
            "dataset": ("store-of-another-dataset", "it was made from another data set"),
        }
        for key, (code, cause) in reasons.items():
            if found.get(key) != mine[key]:
                raise ModelError(cause, path=path, code=code, next_step=_ANOTHER)


def check_version(head: Mapping[str, Any], path: Path) -> None:
    """Was the store, or what was begun of it, made by a version that this one understands?

    Raises:
        ModelError: "store-version".
    """
    if head.get("format", FORMAT) != FORMAT:
        cause = "it was made by another version of kidseg"
        raise ModelError(cause, path=path, code="store-version", next_step=_ANOTHER)


def is_store(path: Path) -> bool:
    """Is there a store, or one that was begun?"""
    return (path / STORE).is_file() or (path / BEGUN).is_file()


def source_files(case: Case) -> list[Path]:
    """All files of a case, in a fixed order; those of a DICOM folder one by one."""
    files: list[Path] = []
    for path in [*case.images, *([] if case.labels is None else [case.labels])]:
        inner = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        files += [p for p in inner if p not in files]
    return files


def to_json(data: Any) -> bytes:
    """The same data, the same bytes."""
    return (json.dumps(data, sort_keys=True, indent=1) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelError: "damaged-store": it is missing or none.
    """
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(path, f"cannot be read ({error})") from error
    if not isinstance(data, dict):
        raise damaged(path, "is no JSON object")
    return data


def damaged(path: Path, cause: str) -> ModelError:
    """The error for a store that is not as it was written."""
    return ModelError(
        cause,
        path=path,
        code="damaged-store",
        next_step="Delete the store's folder and make it anew.",
    )


def write_array(file: BinaryIO, array: np.ndarray) -> str:
    """Write an .npy file; returns the SHA-256 of its bytes."""
    digest = _Digest(file)
    np.save(digest, np.ascontiguousarray(array), allow_pickle=False)
    return digest.sha256.hexdigest()


def grid_to_json(grid: Grid) -> dict[str, Any]:
    """A volumetric grid as plain data, exactly."""
    return {"shape": list(grid.shape), "mm_from_index": grid.mm_from_index.tolist()}


def grid_from_json(data: Mapping[str, Any]) -> Grid:
    """Inverse of `grid_to_json`."""
    nz, ny, nx = data["shape"]
    return Grid((nz, ny, nx), torch.tensor(data["mm_from_index"], dtype=torch.float64))


class _Digest:
    """A file that hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)


def _described(dataset: Dataset) -> dict[str, Any]:
    """What of a data set decides what is stored, but for its files' bytes; no absolute paths."""
    return {
        "name": dataset.name,
        "channels": list(dataset.channels),
        "labels": {str(number): name for number, name in dataset.schema.names.items()},
        "ignore_label": dataset.ignore_label,
        "cases": [
            {
                "id": case.id,
                "patient": case.patient,
                "age_years": case.age_years,
                "side": case.side,
                "files": [_below(path, dataset.root) for path in case.images]
                + [None if case.labels is None else _below(case.labels, dataset.root)],
            }
            for case in dataset.cases
        ],
    }


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
