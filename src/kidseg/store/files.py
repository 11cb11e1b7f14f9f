"""The file format of a store: names, identity, JSON and arrays.

store.json          written last: format, content, digest of the plan, digest of every case
plan.json
cases/<id>/
    case.json       grids, facts, label counts per slice, SHA-256 of the arrays and the sources
    image.npy       (channels, slices, rows, columns) int16 or float32
    labels.npy      (1, slices, rows, columns) uint8, on the image's grid or on their own
    <other>.npy     further arrays of the recipe
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
"""Version of the file format and of the computation; other versions are refused."""

STORE, PLAN, CASES, CASE = "store.json", "plan.json", "cases", "case.json"
BEGUN = "begun.json"
_REBUILD = "Choose another folder, or delete this one to rebuild the store."


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source file of a case: path relative to the data set, size, modification time, SHA-256."""

    name: str
    size: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of_file(cls, path: Path, root: Path) -> Source:
        """Describe a file; computes its checksum."""
        found = path.stat()
        return cls(
            name=_relative(path, root),
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            sha256=sha256_of(path),
        )

    def is_file(self, path: Path, root: Path) -> bool:
        """Is `path` this file, unchanged? Hashed only if the modification time differs (a copy)."""
        found = path.stat()
        if self.name != _relative(path, root) or self.size != found.st_size:
            return False
        return self.mtime_ns == found.st_mtime_ns or self.sha256 == sha256_of(path)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What determines a store: two builds with the same identity are bit-identical.

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
        """The identity of the store that these inputs produce."""
        return cls(
            content=content, plan=plan.digest, dataset=_dataset_to_json(dataset), settings=settings
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
        """Compare with the head of an existing store.

        Raises:
            ModelError: "store-version", "store-of-another-content", "store-of-other-settings",
                "store-of-another-plan", "store-of-another-dataset".
        """
        check_version(found, path)
        expected = self.as_dict()
        reasons = {
            "content": ("store-of-another-content", f"the store does not contain '{self.content}'"),
            "settings": ("store-of-other-settings", "the store was built with other settings"),
            "plan_sha256": ("store-of-another-plan", "the store was built with another plan"),
            "dataset": ("store-of-another-dataset", "the store was built from another data set"),
        }
        for key, (code, cause) in reasons.items():
            if found.get(key) != expected[key]:
                raise ModelError(cause, path=path, code=code, next_step=_REBUILD)


def check_version(head: Mapping[str, Any], path: Path) -> None:
    """Check that this version supports the format of a store, finished or unfinished.

    Raises:
        ModelError: "store-version".
    """
    if head.get("format", FORMAT) != FORMAT:
        cause = "the store was built by another version of kidseg"
        raise ModelError(cause, path=path, code="store-version", next_step=_REBUILD)


def is_store(path: Path) -> bool:
    """Does the folder contain a store, finished or unfinished?"""
    return (path / STORE).is_file() or (path / BEGUN).is_file()


def source_files(case: Case) -> list[Path]:
    """All files of a case in a fixed order; a DICOM folder is expanded into its files."""
    files: list[Path] = []
    for path in [*case.images, *([] if case.labels is None else [case.labels])]:
        inner = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        files += [p for p in inner if p not in files]
    return files


def to_json(data: Any) -> bytes:
    """Plain data as JSON; equal data give equal bytes."""
    return (json.dumps(data, sort_keys=True, indent=1) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: "damaged-store": the file is missing or invalid.
    """
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise damaged(path, f"cannot be read ({error})") from error
    if not isinstance(data, dict):
        raise damaged(path, "is not a JSON object")
    return data


def damaged(path: Path, cause: str) -> ModelError:
    """The error for a store whose files have changed."""
    return ModelError(
        cause,
        path=path,
        code="damaged-store",
        next_step="Delete the store's folder and build it again.",
    )


def write_array(file: BinaryIO, array: np.ndarray) -> str:
    """Write an .npy file; returns the SHA-256 of its bytes."""
    digest = _HashingFile(file)
    np.save(digest, np.ascontiguousarray(array), allow_pickle=False)
    return digest.sha256.hexdigest()


def grid_to_json(grid: Grid) -> dict[str, Any]:
    """A volumetric grid as plain data, without loss."""
    return {"shape": list(grid.shape), "mm_from_index": grid.mm_from_index.tolist()}


def grid_from_json(data: Mapping[str, Any]) -> Grid:
    """Inverse of `grid_to_json`."""
    nz, ny, nx = data["shape"]
    return Grid((nz, ny, nx), torch.tensor(data["mm_from_index"], dtype=torch.float64))


class _HashingFile:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)


def _dataset_to_json(dataset: Dataset) -> dict[str, Any]:
    """What determines the stored data besides the files' contents; no absolute paths."""
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
                "files": [_relative(path, dataset.root) for path in case.images]
                + [None if case.labels is None else _relative(case.labels, dataset.root)],
            }
            for case in dataset.cases
        ],
    }


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
