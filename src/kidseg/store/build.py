"""Writing a store: case by case, each whole or not at all, so that a killed build goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kidseg.errors import DISK_FULL, InputError, ModelError, ResourceError, UsageError
from kidseg.io.content import sha256_of
from kidseg.plan import Plan
from kidseg.store.files import (
    BEGUN,
    CASE,
    CASES,
    PLAN,
    STORE,
    Identity,
    Source,
    grid_to_json,
    read_json,
    source_files,
    to_json,
    write_array,
)
from kidseg.store.opening import Store, open_store, sources_unchanged, verify_case
from kidseg.store.recipe import Content, Recipe, recipe_of
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
    content: Content | Recipe = "voxels",
    jobs: int = 1,
    progress: Progress | None = None,
) -> Store:
    """Write a store of the labelled cases of a data set, or finish or open the one that is there.

    The bits are the same for any number of jobs and interruptions. Processes that build the same
    store wait for one another.

    Args:
        dataset: what to store.
        plan: of the data set; cysts are counted as it says.
        path: the store's folder; made if it is missing.
        content: "voxels" keeps the scans' own voxels (HU as int16 where that holds them), for
            methods that choose their grids; "2d" and "3d_fullres" what nnU-Net's preprocessing
            makes of them; a recipe what it makes of them.
        jobs: processes; each holds one case at a time.
        progress: told after each case that had to be written.

    Raises:
        InputError: as `CaseReader.read` and `over_cases`; "bad-case-name"; "not-writable".
        ModelError: a store is there, but damaged or not this one; see `open_store`.
        UsageError: "no-such-configuration"; "not-a-store": the folder holds something else.
        ResourceError: "disk-full"; "worker-killed". What was finished is kept.
    """
    from kidseg.cases.reading import CaseReader

    path = Path(path)
    recipe = recipe_of(content, plan)
    _check_names(dataset)
    identity = Identity.of(dataset, plan, recipe.content, recipe.settings)
    with _alone_in(path):
        if not (path / STORE).is_file():
            _begin(path, identity, plan)
            task = _Writing(
                root=dataset.root,
                cases=path / CASES,
                reader=CaseReader.of_dataset(dataset, cyst=plan.cyst),
                recipe=recipe,
            )
            left = [case for case in dataset.cases if not task.is_done(case)]
            over_cases(task, left, jobs=jobs, progress=progress)
            _finish(path, identity, dataset)
    return open_store(path, dataset=dataset, plan=plan, content=recipe)


def _check_names(dataset: Dataset) -> None:
    for case in dataset.cases:
        if Path(case.id).name != case.id or case.id.startswith("."):
            raise InputError(
                f"'{case.id}' cannot name a folder", path=dataset.root, code="bad-case-name"
            )


@contextmanager
def _alone_in(path: Path) -> Iterator[None]:
    """One builder per folder; the system frees the lock of a process that is killed."""
    if path.exists() and not (path / _LOCK).exists() and any(path.iterdir()):
        raise UsageError(
            "the folder is not empty and holds no store",
            path=path,
            code="not-a-store",
            next_step="Choose a new folder for the store.",
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / _LOCK).open("ab")
    except OSError as error:
        if (path / STORE).is_file():  # a finished store on read-only media needs no lock
            yield
            return
        raise InputError(
            f"the store cannot be written there ({error.strerror})",
            path=path,
            code="not-writable",
            next_step="Choose a folder that you may write to.",
        ) from error
    import fcntl

    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _begin(path: Path, identity: Identity, plan: Plan) -> None:
    """Note what is being built; what another build has begun here must be the same."""
    if (path / BEGUN).is_file():
        identity.check(read_json(path / BEGUN), path)
    else:
        _write_json(path / PLAN, plan.as_dict())
        _write_json(path / BEGUN, identity.as_dict())
    (path / CASES).mkdir(exist_ok=True)
    for folder in (path / CASES).glob(f"*{_UNFINISHED}"):
        shutil.rmtree(folder)


def _finish(path: Path, identity: Identity, dataset: Dataset) -> None:
    digests = {case.id: sha256_of(path / CASES / case.id / CASE) for case in dataset.cases}
    order = [case.id for case in dataset.cases]
    _write_json(path / STORE, {**identity.as_dict(), "order": order, "cases": digests})


def _write_json(path: Path, data: dict[str, Any]) -> None:
    from kidseg.io.atomic import writing

    with writing(path, overwrite=True) as file:
        file.write(to_json(data))


@dataclass(frozen=True, kw_only=True)
class _Writing:
    """Reads, prepares and writes one case."""

    root: Path
    cases: Path
    reader: CaseReader
    recipe: Recipe

    def is_done(self, case: Case) -> bool:
        """Is this case there from an earlier run, whole, and made from the same files?"""
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
        made = self.recipe(case, voxels)
        image, labels = made.image, made.labels
        arrays = {"image": image.data.numpy(), "labels": labels.data.numpy(), **made.arrays}
        folder = self.cases / f"{case.id}{_UNFINISHED}"
        try:
            folder.mkdir()
            described = {}
            for name, array in arrays.items():
                with writing(folder / f"{name}.npy") as file:
                    sha256 = write_array(file, array)
                size = (folder / f"{name}.npy").stat().st_size
                described[name] = {"sha256": sha256, "size": size}
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
                "facts": dict(made.facts),
                "arrays": described,
                "sources": [asdict(source) for source in sources],
            }
            _write_json(folder / CASE, entry)
            folder.replace(self.cases / case.id)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise ResourceError(
                    f"the disk is full; case '{case.id}' was not stored, those before it are",
                    path=folder.parent,
                    code="disk-full",
                    next_step="Free some space and start again.",
                ) from error
            raise


def _voxels_per_slice(labels: np.ndarray) -> dict[str, list[list[int]]]:
    """{label: [[slice, voxels], ...]} of the slices that show it, background left out."""
    counts = np.stack([np.bincount(plane.ravel(), minlength=256) for plane in labels])
    present = np.flatnonzero(counts.any(axis=0))
    return {
        str(label): [[int(k), int(counts[k, label])] for k in np.flatnonzero(counts[:, label])]
        for label in present.tolist()
        if label != 0
    }
