"""The file format of a store: names, identity, JSON and arrays.

store.json          written last: format, content, digest of the plan, digest of every case
begun.json          the same without the cases: what is being built
plan.json
cases/<id>/
    case.json       grids, facts, label counts per slice, SHA-256 of the arrays and the sources
    image.npy       (channels, slices, rows, columns) int16 or float32
    labels.npy      (1, slices, rows, columns) uint8, on the image's grid or on their own
    <other>.npy     further arrays of the recipe

All JSON but the plan, whose digest is in the others, is sealed; see `kidseg.records`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, TypeVar

import numpy as np
import torch
from pydantic import ConfigDict, FiniteFloat, PositiveFloat, PositiveInt

from kidseg.errors import ModelError
from kidseg.geometry import Grid
from kidseg.io.content import sha256_of
from kidseg.plan.rules import Plan
from kidseg.records import Record, checked, parsed, read_file, unsealed

if TYPE_CHECKING:
    from kidseg.cases import Case, Dataset

__all__ = ["CASES", "FORMAT", "PLAN", "STORE", "Identity", "Source", "is_store"]

FORMAT = 4
"""Version of the file format and of the computation; other versions are refused."""

STORE, PLAN, CASES, CASE = "store.json", "plan.json", "cases", "case.json"
BEGUN = "begun.json"
_DELETE = "Delete the store's folder and build it again."
_REBUILD = "Choose another folder, or delete this one to rebuild the store."


@dataclass(frozen=True, kw_only=True)
class Source(Record):
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
            content=content, plan=plan.digest, dataset=dataset_facts(dataset), settings=settings
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

    def check(self, found: Begun, path: Path) -> None:
        """Compare with the head of an existing store.

        Raises:
            ModelError: "store-version", "store-of-another-content", "store-of-other-settings",
                "store-of-another-plan", "store-of-another-dataset".
        """
        expected = self.as_dict()

        def compare(name: str, code: str, cause: str) -> None:
            if getattr(found, name) != expected[name]:
                raise ModelError(cause, path=path, code=code, next_step=_REBUILD)

        compare(
            "content", "store-of-another-content", f"the store does not contain '{self.content}'"
        )
        compare("settings", "store-of-other-settings", "the store was built with other settings")
        compare("plan_sha256", "store-of-another-plan", "the store was built with another plan")
        compare("dataset", "store-of-another-dataset", "the store was built from another data set")


def check_version(head: Mapping[str, Any], path: Path) -> None:
    """Check that this version supports the format of a store, finished or unfinished.

    Raises:
        ModelError: "store-version".
    """
    if head.get("format") != FORMAT:
        cause = "the store was built by another version of kidseg"
        raise ModelError(cause, path=path, code="store-version", next_step=_REBUILD)


def is_store(path: Path) -> bool:
    """Does the folder contain a store, finished or unfinished?"""
    return (path / STORE).is_file() or (path / BEGUN).is_file()


def source_files(case: Case) -> list[Path]:
    """All files of a case in a fixed order; a DICOM folder is expanded into its files."""
    if case.annotation is not None:
        objects = () if case.labels is None else case.annotation.objects
        return [*case.annotation.images, *objects]
    files: list[Path] = []
    for path in [*case.images, *([] if case.labels is None else [case.labels])]:
        inner = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        files += [p for p in inner if p not in files]
    return files


def to_json(data: Any) -> bytes:
    """Plain data as JSON; equal data give equal bytes."""
    return (json.dumps(data, sort_keys=True, indent=1) + "\n").encode()


@dataclass(frozen=True, kw_only=True)
class Box(Record):
    """A grid as plain data."""

    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    mm_from_index: tuple[tuple[FiniteFloat, ...], ...]

    @property
    def grid(self) -> Grid:
        """The grid.

        Raises:
            ValueError: see `Grid`.
        """
        return Grid(self.shape, torch.tensor(self.mm_from_index, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class ArrayFile(Record):
    """The file of an array: its digest and size."""

    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Begun(Record):
    """begun.json; see `Identity`."""

    format: int
    content: str
    settings: dict[str, Any]
    plan_sha256: str
    dataset: dict[str, Any]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Head(Begun):
    """store.json: also the order of the cases, and the SHA-256 of each case.json."""

    order: tuple[str, ...]
    cases: dict[str, str]

    def __post_init__(self) -> None:
        unsafe = any(Path(name).name != name for name in self.order)
        if unsafe or sorted(self.order) != sorted(self.cases):
            raise ValueError("other cases are listed than ordered, or one is not a name")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """case.json; see `kidseg.store.store.StoredCase`."""

    # The facts of a recipe may be NaN, where a slice shows no body.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: str
    patient: str
    age_years: FiniteFloat | None
    side: str | None
    grid: Box
    labels_grid: Box
    original: Box
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    voxels_per_slice: dict[int, tuple[tuple[int, int], ...]]
    findings: tuple[dict[str, Any], ...]
    facts: dict[str, Any]
    arrays: dict[str, ArrayFile]
    sources: tuple[Source, ...]
    sha256: str


T = TypeVar("T", Begun, Head, Entry)


def read_sealed(path: Path, kind: type[T]) -> T:
    """Read a sealed JSON file of a store.

    Raises:
        ModelError: "damaged-store": the file is missing, altered or invalid; "store-version".
    """
    text = read_file(path, code="damaged-store", next_step=_DELETE)
    try:
        if kind is not Entry:
            check_version(parsed(text), path)
        return checked(kind, unsealed(text))
    except ValueError as error:
        raise damaged(path, str(error)) from error


def read_plan(path: Path) -> Plan:
    """Read the plan of a store; its digest must be compared.

    Raises:
        ModelError: "damaged-store".
    """
    text = read_file(path, code="damaged-store", next_step=_DELETE)
    try:
        return Plan.from_dict(parsed(text))
    except (ValueError, ModelError) as error:
        raise damaged(path, str(error)) from error


def damaged(path: Path, cause: str) -> ModelError:
    """The error for a store whose files have changed."""
    return ModelError(
        cause,
        path=path,
        code="damaged-store",
        next_step=_DELETE,
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


def dataset_facts(dataset: Dataset) -> dict[str, Any]:
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
                **_structures_to_json(case, dataset.root),
            }
            for case in dataset.cases
        ],
    }


def _structures_to_json(case: Case, root: Path) -> dict[str, Any]:
    """Which structures of DICOM objects are which labels."""
    if case.annotation is None:
        return {}
    parts = case.annotation.parts
    return {"structures": [[_relative(p.path, root), p.number, p.label] for p in parts]}


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
