"""A finished store, read with torch, numpy and pydantic alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kidseg.errors import InputError, ModelError
from kidseg.geometry import Grid, Volume
from kidseg.io.content import sha256_of
from kidseg.plan.rules import Plan
from kidseg.store.files import (
    CASE,
    CASES,
    PLAN,
    STORE,
    Entry,
    Head,
    Identity,
    Source,
    damaged,
    read_plan,
    read_sealed,
    source_files,
    to_json,
)
from kidseg.store.recipe import Recipe

if TYPE_CHECKING:
    from kidseg.cases import Dataset

__all__ = ["Store", "StoredCase", "open_store", "verify_case"]


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """One case; arrays are memory-mapped on first use and shared between processes.

    Attributes:
        folder: of its files.
        id: of the case.
        patient: splits are by patient.
        age_years: if known.
        side: of the tumour, if known.
        grid: of the stored image.
        labels_grid: of the stored labels; usually the same.
        original: canonical grid of the scan, on which metrics are computed.
        spacing_mm: of the stored voxels, (slice, row, column).
        voxels_per_slice: {label: {slice: voxels}} on `grid`, without slices that do not contain it.
        findings: of the readers, as plain data.
        facts: further plain data of the recipe.
        image_sha256: of the file of the stored image; equal for equal scans.
        sources: the files the case was prepared from.
    """

    folder: Path
    id: str
    patient: str
    age_years: float | None
    side: str | None
    grid: Grid
    labels_grid: Grid
    original: Grid
    spacing_mm: tuple[float, float, float]
    voxels_per_slice: Mapping[int, Mapping[int, int]]
    findings: tuple[Mapping[str, Any], ...]
    facts: Mapping[str, Any]
    image_sha256: str
    sources: tuple[Source, ...]

    @cached_property
    def image(self) -> Volume:
        """(channels, slices, rows, columns), int16 HU or float32; writes do not reach the file."""
        return Volume(self.array("image"), self.grid)

    @cached_property
    def labels(self) -> Volume:
        """(1, slices, rows, columns) uint8."""
        return Volume(self.array("labels"), self.labels_grid)

    def has(self, name: str) -> bool:
        """Does the case have an array of this name?"""
        return (self.folder / f"{name}.npy").is_file()

    def array(self, name: str) -> torch.Tensor:
        """An array of this name, memory-mapped; writes do not reach the file."""
        return mapped(self.folder / f"{name}.npy")

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling, without the arrays: each process maps them itself."""
        return {field.name: self.__dict__[field.name] for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Store:
    """A complete, verified store.

    Attributes:
        path: its folder.
        content: name of the recipe's result.
        settings: of the recipe.
        plan: the plan it was built with.
        cases: in the order of the data set.
        digest: SHA-256 of the contents, independent of the location; identifies the training set
            in a model file.
    """

    path: Path
    content: str
    settings: Mapping[str, Any]
    plan: Plan
    cases: tuple[StoredCase, ...]
    digest: str

    @property
    def by_id(self) -> Mapping[str, StoredCase]:
        """The cases by their id."""
        return {case.id: case for case in self.cases}


def open_store(
    path: Path,
    *,
    dataset: Dataset | None = None,
    plan: Plan | None = None,
    recipe: Recipe | None = None,
    verify: bool = True,
) -> Store:
    """Open a store that `build_store` has written.

    Args:
        path: its folder.
        dataset: if given, the store must have been built from it, and its files be unchanged.
        plan: if given, the store must have been built with it.
        recipe: if given, the store must have been built with it.
        verify: compare every array with its SHA-256. If False, only file names, file sizes and
            the checksums of the JSON files are verified: for further processes on the same store.

    Raises:
        ModelError: "no-store"; "unfinished-store": the build was interrupted and can resume;
            "damaged-store"; "store-version", "store-of-another-content", "store-of-other-settings",
            "store-of-another-plan", "store-of-another-dataset".
    """
    path = Path(path)
    head = _read_head(path)
    written = read_plan(path / PLAN)
    if written.digest != head.plan_sha256:
        raise damaged(path / PLAN, "is not the plan that the store was built with")
    wanted = Identity(
        content=head.content if recipe is None else recipe.content,
        settings=head.settings if recipe is None else recipe.settings,
        plan=head.plan_sha256 if plan is None else plan.digest,
        dataset=head.dataset
        if dataset is None
        else Identity.of(dataset, written, head.content, {}).dataset,
    )
    wanted.check(head, path)

    order = head.order
    with ThreadPoolExecutor(4) as pool:  # hashing releases the GIL
        entries = list(
            pool.map(
                lambda name: verify_case(path / CASES / name, head.cases[name], arrays=verify),
                order,
            )
        )
    cases = tuple(_stored(path / CASES / e.id, e) for e in entries)
    if dataset is not None:
        _check_sources(dataset, path)
    return Store(
        path=path,
        content=head.content,
        settings=head.settings,
        plan=written,
        cases=cases,
        digest=_content_digest(head, entries),
    )


def verify_case(folder: Path, sha256: str | None = None, *, arrays: bool = True) -> Entry:
    """The entry of a case, after verifying its files.

    Args:
        folder: of the case.
        sha256: of its case.json, if known.
        arrays: verify the checksums of the arrays, not only their sizes.

    Raises:
        ModelError: "damaged-store".
    """
    file = folder / CASE
    entry = read_sealed(file, Entry)
    if entry.id != folder.name:
        raise damaged(file, f"is of case '{entry.id}'")
    if sha256 is not None and sha256_of(file) != sha256:
        raise damaged(file, "was modified")
    known_names = {f"{name}.npy" for name in entry.arrays}
    for array in folder.glob("*.npy"):
        if array.name not in known_names:
            raise damaged(array, "does not belong to this case")
    for name, known in entry.arrays.items():
        array = folder / f"{name}.npy"
        if not array.is_file() or array.stat().st_size != known.size:
            raise damaged(array, "is missing or truncated")
        if arrays and sha256_of(array) != known.sha256:
            raise damaged(array, "was modified")
    return entry


def _read_head(path: Path) -> Head:
    if not (path / STORE).is_file():
        if (path / CASES).is_dir():
            raise ModelError(
                "the store is not finished",
                path=path,
                code="unfinished-store",
                next_step="Run the build again to finish it.",
            )
        raise ModelError(
            "the folder does not contain a store",
            path=path,
            code="no-store",
            next_step="Build the store first.",
        )
    return read_sealed(path / STORE, Head)


def _content_digest(head: Head, entries: Sequence[Entry]) -> str:
    kept = ("id", "grid", "labels_grid", "original", "arrays", "facts")
    content = [
        {key: value for key, value in asdict(entry).items() if key in kept} for entry in entries
    ]
    known = {
        key: getattr(head, key)
        for key in ("format", "content", "settings", "plan_sha256", "dataset")
    }
    return hashlib.sha256(to_json({"head": known, "cases": content})).hexdigest()


def _stored(folder: Path, entry: Entry) -> StoredCase:
    try:
        grids = [box.grid for box in (entry.grid, entry.labels_grid, entry.original)]
    except ValueError as error:
        raise damaged(folder / CASE, f"has an invalid grid ({error})") from error
    return StoredCase(
        folder=folder,
        id=entry.id,
        patient=entry.patient,
        age_years=entry.age_years,
        side=entry.side,
        grid=grids[0],
        labels_grid=grids[1],
        original=grids[2],
        spacing_mm=entry.spacing_mm,
        voxels_per_slice={label: dict(counts) for label, counts in entry.voxels_per_slice.items()},
        findings=entry.findings,
        facts=entry.facts,
        image_sha256=entry.arrays["image"].sha256,
        sources=entry.sources,
    )


def _check_sources(dataset: Dataset, path: Path) -> None:
    """Check that the data set's files have not changed since the store was built."""
    for case in dataset.cases:
        entry = read_sealed(path / CASES / case.id / CASE, Entry)
        if not sources_unchanged(entry, source_files(case), dataset.root):
            raise ModelError(
                f"the files of case '{case.id}' have changed since the store was built",
                path=path,
                code="store-of-another-dataset",
                next_step="Choose another folder, or delete this one to rebuild the store.",
            )


def sources_unchanged(entry: Entry, files: list[Path], root: Path) -> bool:
    """Are these the files that the entry was prepared from, unchanged?"""
    known = entry.sources
    if len(known) != len(files):
        return False
    try:
        return all(s.is_file(f, root) for s, f in zip(known, files, strict=True))
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})",
            path=error.filename,
            code="unreadable",
            next_step="Check its name and permissions.",
        ) from error


def mapped(path: Path) -> torch.Tensor:
    """The array of an .npy file, memory-mapped; writes do not reach the file.

    `numpy.memmap` would keep a file open for each array; systems usually allow about a thousand.

    Raises:
        ModelError: "damaged-store".
    """
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                raise ValueError("another version of the format")
            shape, fortran_order, kind = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
            size = file.seek(0, 2)
        if fortran_order or size != start + kind.itemsize * prod(shape):
            raise ValueError("another size or order")
    except (ValueError, OSError) as error:
        raise damaged(path, f"is not an array of a store ({error})") from error
    # Copy on write, so that a bug in a training process cannot modify the file.
    raw = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    element = torch.from_numpy(np.empty(0, kind)).dtype
    return raw[start:].view(element).view(shape)
