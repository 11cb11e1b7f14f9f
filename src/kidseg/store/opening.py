"""Reading a store: torch and numpy are all it takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
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
    Identity,
    Source,
    check_version,
    damaged,
    grid_from_json,
    read_json,
    source_files,
    to_json,
)
from kidseg.store.recipe import Content, Recipe, recipe_of

if TYPE_CHECKING:
    from kidseg.cases import Dataset

__all__ = ["Store", "StoredCase", "open_store", "verify_case"]


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """One case; its arrays are mapped into memory on first use and shared between processes.

    Attributes:
        folder: of its files.
        id: of the case.
        patient: splits are by patient.
        age_years: if known.
        side: of the tumour, if known.
        grid: of the stored image.
        labels_grid: of the stored labels; mostly the same.
        original: of the scan itself, canonical: where figures are taken.
        spacing_mm: of the stored voxels, (slice, row, column).
        voxels_per_slice: {label: {slice: voxels}} on `grid`, slices without the label left out.
        findings: what the readers noticed, as plain data.
        facts: what else the recipe says of the case.
        sources: the files it was made from.
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
    sources: tuple[Source, ...]

    @cached_property
    def image(self) -> Volume:
        """(channels, slices, rows, columns), int16 HU or float32; changes stay in memory."""
        return Volume(self.array("image"), self.grid)

    @cached_property
    def labels(self) -> Volume:
        """(1, slices, rows, columns) uint8."""
        return Volume(self.array("labels"), self.labels_grid)

    @cached_property
    def reference(self) -> Volume:
        """(1, slices, rows, columns) uint8 labels on the original grid, as the file has them."""
        return Volume(self.array("reference" if self.has("reference") else "labels"), self.original)

    def slices_with(self, *labels: int) -> np.ndarray:
        """(n,) ascending indices of the slices that show any of these labels; maybe none."""
        found = set().union(*(self.voxels_per_slice.get(label, {}) for label in labels))
        return np.array(sorted(found), dtype=np.int64)

    def has(self, name: str) -> bool:
        """Is there an array of this name?"""
        return (self.folder / f"{name}.npy").is_file()

    def array(self, name: str) -> torch.Tensor:
        """An array of the recipe's, mapped into memory; changes stay in memory."""
        return mapped(self.folder / f"{name}.npy")

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: without the arrays, which they map on their own."""
        return {field.name: self.__dict__[field.name] for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Store:
    """A whole store, verified.

    Attributes:
        path: its folder.
        content: what the arrays are.
        settings: with which they were made.
        plan: that it was made with.
        cases: in the order of the data set.
        digest: SHA-256 over what is stored, wherever it lies; names the training set in a model.
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
    content: Content | Recipe | None = None,
    verify: bool = True,
) -> Store:
    """Open a store that `build_store` has written.

    Args:
        path: its folder.
        dataset: if given, the store must have been made from it and its files be unchanged.
        plan: if given, the store must have been made with it.
        content: if given, the store must hold it.
        verify: compare every array with its SHA-256. Off, only names and sizes of the files and
            the digests of the JSON files are checked: for further processes on the same store.

    Raises:
        ModelError: "no-store"; "unfinished-store": the work was interrupted and can go on;
            "damaged-store"; "store-version", "store-of-another-content", "store-of-other-settings",
            "store-of-another-plan", "store-of-another-dataset".
    """
    path = Path(path)
    head = _read_head(path)
    written = Plan.from_dict(read_json(path / PLAN))
    if written.digest != head["plan_sha256"]:
        raise damaged(path / PLAN, "is not the plan that the store was made with")
    recipe = None if content is None else recipe_of(content, plan or written)
    wanted = Identity(
        content=head["content"] if recipe is None else recipe.content,
        settings=head["settings"] if recipe is None else recipe.settings,
        plan=head["plan_sha256"] if plan is None else plan.digest,
        dataset=head["dataset"]
        if dataset is None
        else Identity.of(dataset, written, head["content"], {}).dataset,
    )
    wanted.check(head, path)

    order = head["order"]
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        entries = list(
            pool.map(
                lambda name: verify_case(path / CASES / name, head["cases"][name], arrays=verify),
                order,
            )
        )
    cases = tuple(_stored(path / CASES / e["id"], e) for e in entries)
    if dataset is not None:
        _check_sources(dataset, path)
    return Store(
        path=path,
        content=head["content"],
        settings=head["settings"],
        plan=written,
        cases=cases,
        digest=_content_digest(head, entries),
    )


def verify_case(folder: Path, sha256: str | None = None, *, arrays: bool = True) -> dict[str, Any]:
    """The entry of a case whose files are as they were written.

    Args:
        folder: of the case.
        sha256: of its case.json, if known from elsewhere.
        arrays: compare the arrays' digests too, not only their sizes.

    Raises:
        ModelError: "damaged-store".
    """
    file = folder / CASE
    entry = read_json(file)
    if sha256 is not None and sha256_of(file) != sha256:
        raise damaged(file, "was altered")
    known_names = {f"{name}.npy" for name in entry["arrays"]}
    for array in folder.glob("*.npy"):
        if array.name not in known_names:
            raise damaged(array, "does not belong here")
    for name, known in entry["arrays"].items():
        array = folder / f"{name}.npy"
        if not array.is_file() or array.stat().st_size != known["size"]:
            raise damaged(array, "is missing or cut short")
        if arrays and sha256_of(array) != known["sha256"]:
            raise damaged(array, "was altered")
    return entry


def _read_head(path: Path) -> dict[str, Any]:
    if not (path / STORE).is_file():
        begun = (path / CASES).is_dir()
        raise ModelError(
            "the store is not finished" if begun else "there is no store",
            path=path,
            code="unfinished-store" if begun else "no-store",
            next_step="Build it; what is there already is kept." if begun else "Build it first.",
        )
    head = read_json(path / STORE)
    check_version(head, path)
    names = {"format", "content", "settings", "plan_sha256", "dataset", "cases", "order"}
    missing = names - set(head)
    if missing:
        raise damaged(path / STORE, f"lacks {', '.join(sorted(missing))}")
    return head


def _content_digest(head: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> str:
    kept = ("id", "grid", "labels_grid", "original", "arrays", "facts")
    content = [{key: entry[key] for key in kept} for entry in entries]
    known = {key: head[key] for key in ("format", "content", "settings", "plan_sha256", "dataset")}
    return hashlib.sha256(to_json({"head": known, "cases": content})).hexdigest()


def _stored(folder: Path, entry: Mapping[str, Any]) -> StoredCase:
    dz, dy, dx = entry["spacing_mm"]
    return StoredCase(
        folder=folder,
        id=entry["id"],
        patient=entry["patient"],
        age_years=entry["age_years"],
        side=entry["side"],
        grid=grid_from_json(entry["grid"]),
        labels_grid=grid_from_json(entry["labels_grid"]),
        original=grid_from_json(entry["original"]),
        spacing_mm=(dz, dy, dx),
        voxels_per_slice={
            int(label): {int(k): int(n) for k, n in counts}
            for label, counts in entry["voxels_per_slice"].items()
        },
        findings=tuple(entry["findings"]),
        facts=entry["facts"],
        sources=tuple(Source(**source) for source in entry["sources"]),
    )


def _check_sources(dataset: Dataset, path: Path) -> None:
    """Are the data set's files those that the store was made from?"""
    for case in dataset.cases:
        entry = read_json(path / CASES / case.id / CASE)
        if not sources_unchanged(entry, source_files(case), dataset.root):
            raise ModelError(
                f"the files of case '{case.id}' have changed since the store was made",
                path=path,
                code="store-of-another-dataset",
                next_step="Choose another folder, or delete this one to make it anew.",
            )


def sources_unchanged(entry: Mapping[str, Any], files: list[Path], root: Path) -> bool:
    """Are these the files that the entry was made from?"""
    known = [Source(**source) for source in entry["sources"]]
    if len(known) != len(files):
        return False
    try:
        return all(s.is_file(f, root) for s, f in zip(known, files, strict=True))
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})", path=error.filename, code="unreadable"
        ) from error


def mapped(path: Path) -> torch.Tensor:
    """The array of an .npy file, mapped into memory; changes stay in memory.

    `numpy.memmap` would keep a file open for each: a thousand arrays are a usual system's limit.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        assert version == (1, 0), version
        shape, fortran_order, kind = np.lib.format.read_array_header_1_0(file)
        assert not fortran_order, path
        start = file.tell()
        size = file.seek(0, 2)
    # Copy on write: a slip in a training process must not reach the file.
    raw = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    element = torch.from_numpy(np.empty(0, kind)).dtype
    return raw[start:].view(element).view(shape)
