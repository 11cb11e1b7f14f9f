"""Write a store case by case, each case atomically, so that an interrupted build can resume."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kidseg import new_folders
from kidseg.errors import InputError, ModelError, ResourceError, UsageError, is_disk_full
from kidseg.io.content import sha256_of
from kidseg.plan import Plan
from kidseg.records import sealed
from kidseg.store.files import (
    BEGUN,
    CASE,
    CASES,
    PLAN,
    STORE,
    Begun,
    Identity,
    Source,
    grid_to_json,
    read_sealed,
    source_files,
    to_json,
    write_array,
)
from kidseg.store.recipe import Recipe
from kidseg.store.store import Store, open_store, sources_unchanged, verify_case
from kidseg.workers import Progress, over_cases

if TYPE_CHECKING:
    from kidseg.cases import Case, Dataset
    from kidseg.cases.reading import CaseReader

__all__ = ["build_store"]

_LOCK, _UNFINISHED = "lock", ".unfinished"


def build_store(
    dataset: Dataset,
    plan: Plan,
    path: Path,
    *,
    recipe: Recipe,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Store:
    """Build a store of the labelled cases of a data set; resume or open an existing one.

    The result is bit-identical for any number of jobs and interruptions. Processes that build the
    same store wait for one another.

    Args:
        dataset: what to store.
        plan: of the data set; it also decides what cysts count as.
        path: the store's folder; created if it is missing.
        recipe: prepares each case.
        jobs: processes; each holds one case at a time.
        progress: called after each case that had to be written.

    Raises:
        InputError: as `CaseReader.read` and `over_cases`; "bad-case-name"; "not-writable".
        ModelError: the folder holds a damaged or different store; see `open_store`.
        UsageError: "not-a-store": the folder holds something else.
        ResourceError: "disk-full"; "worker-killed". Finished cases are kept.
    """
    from kidseg.cases.reading import CaseReader

    path = Path(path)
    _check_names(dataset)
    identity = Identity.of(dataset, plan, recipe.content, recipe.settings)
    with _locked(path):
        if not (path / STORE).is_file():
            _begin(path, identity, plan)
            task = _CaseWriter(
                root=dataset.root,
                cases=path / CASES,
                reader=CaseReader.of_dataset(dataset, cyst=plan.cyst),
                recipe=recipe,
            )
            remaining = [case for case in dataset.cases if not task.is_done(case)]
            over_cases(task, remaining, jobs=jobs, progress=progress)
            _finish(path, identity, dataset)
    return open_store(path, dataset=dataset, plan=plan, recipe=recipe)


def _check_names(dataset: Dataset) -> None:
    for case in dataset.cases:
        if Path(case.id).name != case.id or case.id.startswith("."):
            raise InputError(
                f"'{case.id}' is not a valid folder name",
                path=dataset.root,
                code="bad-case-name",
                next_step="Rename the case.",
            )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock the folder for one builder; the system releases the lock of a killed process."""
    if path.exists() and not (path / _LOCK).exists() and any(path.iterdir()):
        raise UsageError(
            "the folder is not empty and does not contain a store",
            path=path,
            code="not-a-store",
            next_step="Choose a new folder for the store.",
        )
    try:
        new_folders.create(path)
        lock = (path / _LOCK).open("ab")
    except OSError as error:
        if (path / STORE).is_file():  # a finished store on read-only media needs no lock
            yield
            return
        raise InputError(
            f"cannot write the store ({error.strerror})",
            path=path,
            code="not-writable",
            next_step="Choose a writable folder.",
        ) from error
    import fcntl

    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _begin(path: Path, identity: Identity, plan: Plan) -> None:
    """Record what is being built; an unfinished build in this folder must match it."""
    from kidseg.io.atomic import remove_leftovers

    remove_leftovers(path)
    if (path / BEGUN).is_file():
        identity.check(read_sealed(path / BEGUN, Begun), path)
    else:
        _write_json(path / PLAN, plan.as_dict())
        _write_json(path / BEGUN, sealed(identity.as_dict()))
    (path / CASES).mkdir(exist_ok=True)
    for folder in (path / CASES).glob(f"*{_UNFINISHED}"):
        shutil.rmtree(folder)


def _finish(path: Path, identity: Identity, dataset: Dataset) -> None:
    digests = {case.id: sha256_of(path / CASES / case.id / CASE) for case in dataset.cases}
    order = [case.id for case in dataset.cases]
    head = {**identity.as_dict(), "order": order, "cases": digests}
    _write_json(path / STORE, sealed(head))


def _write_json(path: Path, data: dict[str, Any]) -> None:
    from kidseg.io.atomic import writing

    with writing(path, overwrite=True) as file:
        file.write(to_json(data))


@dataclass(frozen=True, kw_only=True)
class _CaseWriter:
    """Reads, prepares and writes one case."""

    root: Path
    cases: Path
    reader: CaseReader
    recipe: Recipe

    def is_done(self, case: Case) -> bool:
        """Is the case complete from an earlier run, with unchanged source files?"""
        folder = self.cases / case.id
        if not folder.exists():
            return False
        try:
            entry = verify_case(folder)
        except ModelError:
            entry = None
        if entry is not None and sources_unchanged(entry, source_files(case), self.root):
            return True
        shutil.rmtree(folder)
        return False

    def __call__(self, case: Case) -> None:
        from kidseg.io.atomic import writing

        sources = [Source.of_file(path, self.root) for path in source_files(case)]
        voxels = self.reader.read(case)
        prepared = self.recipe(case, voxels)
        image, labels = prepared.image, prepared.labels
        arrays = {"image": image.data.numpy(), "labels": labels.data.numpy(), **prepared.arrays}
        folder = self.cases / f"{case.id}{_UNFINISHED}"
        try:
            folder.mkdir()
            files = {}
            for name, array in arrays.items():
                with writing(folder / f"{name}.npy") as file:
                    sha256 = write_array(file, array)
                size = (folder / f"{name}.npy").stat().st_size
                files[name] = {"sha256": sha256, "size": size}
            entry = {
                "id": case.id,
                "patient": case.patient,
                "age_years": case.age_years,
                "side": case.side,
                "grid": grid_to_json(image.grid),
                "labels_grid": grid_to_json(labels.grid),
                "original": grid_to_json(voxels.image.grid),
                "spacing_mm": image.grid.spacing_mm.tolist(),
                "voxels_per_slice": _voxels_per_slice(labels.data[0].numpy()),
                "findings": [finding.as_dict() for finding in voxels.findings],
                "facts": dict(prepared.facts),
                "arrays": files,
                "sources": [asdict(source) for source in sources],
            }
            _write_json(folder / CASE, sealed(entry))
            folder.replace(self.cases / case.id)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if is_disk_full(error):
                raise ResourceError(
                    f"the disk is full; case '{case.id}' was not stored, earlier cases are kept",
                    path=folder.parent,
                    code="disk-full",
                    next_step="Free some disk space and run the command again.",
                ) from error
            raise


def _voxels_per_slice(labels: np.ndarray) -> dict[str, list[list[int]]]:
    """{label: [[slice, voxels], ...]} of the slices that contain it, without background."""
    counts = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in labels])
    present = np.flatnonzero(counts.any(axis=0))
    return {
        str(label): [[int(k), int(counts[k, label])] for k in np.flatnonzero(counts[:, label])]
        for label in present.tolist()
        if label != 0
    }
