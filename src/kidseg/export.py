"""A data set as nnU-Net v2's raw folder: `Dataset042_Name`, ready for its planning.

    dataset.json, imagesTr/, labelsTr/, imagesTs/    as nnU-Net wants them, all .nii.gz
    splits_final.json                                our folds; see `export_nnunet`
    patients.csv                                     patient, age and side, for kidseg

Voxels are never interpolated nor put in another order. A file that fits is hard-linked, or copied
where that cannot be; others (another format, other label numbers, labels stored in another order
than the image) are written anew. The folder takes its name only when it is whole.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kidseg.cases import (
    DATASET_JSON,
    Case,
    Dataset,
    case_paths,
    learned_labels,
    relabelled,
    write_dataset_json,
    write_patients_csv,
)
from kidseg.errors import DISK_FULL, Finding, InputError, ResourceError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, Scan, kind_of, read, read_grid, save
from kidseg.io.checks import orthogonal_grid
from kidseg.io.payload import head
from kidseg.labels import CystAs
from kidseg.splits import Split, write_splits_json

__all__ = ["Exported", "export_nnunet"]

Progress = Callable[[int, int], None]

_NAME = re.compile(r"Dataset\d{3}_.+")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        root: the folder.
        new_from_old: {label number in the data set: in the export}, without those that stay.
        linked: files that are links to, or copies of, those of the data set.
        written: files that were written anew.
        findings: what was noticed on the way.
    """

    root: Path
    new_from_old: Mapping[int, int]
    linked: int
    written: int
    findings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "root": str(self.root),
            "new_from_old": {str(old): new for old, new in self.new_from_old.items()},
            "linked": self.linked,
            "written": self.written,
            "findings": [finding.as_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        said = [f"{finding.severity}: {finding}" for finding in self.findings]
        files = f"{self.linked} file(s) linked, {self.written} written"
        return "\n".join([*said, f"{self.root}: {files}."])


@dataclass(frozen=True)
class _Files:
    linked: int
    written: int
    findings: tuple[Finding, ...]


def export_nnunet(
    dataset: Dataset,
    out: str | Path,
    *,
    cyst: CystAs | None = None,
    splits: Sequence[Split] = (),
    options: ReadOptions | None = None,
    overwrite: bool = False,
    jobs: int = 2,
    progress: Progress | None = None,
) -> Exported:
    """Write a data set as an nnU-Net v2 raw folder.

    Args:
        dataset: in any layout.
        out: folder to make, named as nnU-Net wants it, `Dataset042_Name`, in its folder nnUNet_raw.
        cyst: what a cyst is to count as; it stays a label of its own by default.
        splits: folds for splits_final.json. nnU-Net's planner copies that file to its folder of
            preprocessed data, where its training looks for it; versions that do not need it copied
            there by hand.
        options: how to read the files that are not linked.
        overwrite: replace an nnU-Net data set that is at `out`.
        jobs: cases written at the same time.
        progress: called with (done, all) after each case.

    Raises:
        UsageError: "bad-dataset-name"; "output-exists"; "not-a-dataset": `out` is there and is no
            nnU-Net data set, so it is not replaced; "export-into-itself";
            "unknown-case": `splits` name one that is not there; and as `count_cyst`.
        InputError: a file cannot be read, or labels do not lie on their image ("grid-mismatch").
        ResourceError: "disk-full". Nothing is left at `out` then, and what was there stays.
    """
    out = Path(out)
    _check_out(out, dataset, overwrite)
    _check_splits(splits, dataset)
    learned = learned_labels(dataset, cyst)
    moved = {old: new for old, new in learned.new_from_old.items() if old != new}
    aside = _aside(out)
    try:
        files = _write_cases(dataset, aside, moved, options or ReadOptions(), jobs, progress)
        _write_tables(dataset, aside, splits)
        write_dataset_json(
            aside,
            channels=dataset.channels,
            schema=learned.schema,
            n_training=len(dataset.cases),
            name=out.name,
            region_order=learned.target.writes if dataset.region_order else (),
            ignore_label=learned.ignore,
        )
        _put(aside, out)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise ResourceError(
            "the disk is full; nothing was exported",
            path=out,
            code="disk-full",
            next_step="Free some space, or export elsewhere.",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(
        root=out,
        new_from_old=moved,
        linked=sum(one.linked for one in files),
        written=sum(one.written for one in files),
        findings=tuple(finding for one in files for finding in one.findings),
    )


def _check_out(out: Path, dataset: Dataset, overwrite: bool) -> None:
    if not _NAME.fullmatch(out.name):
        raise UsageError(
            "nnU-Net does not find a data set of this name",
            path=out,
            code="bad-dataset-name",
            next_step="Name it like Dataset042_Kidney: three digits and a name.",
        )
    here, there = out.resolve(), dataset.root.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UsageError(
            f"it is, or lies in, or holds the data set itself ({dataset.root})",
            path=out,
            code="export-into-itself",
            next_step="Choose a folder apart from it.",
        )
    if not (out.exists() or out.is_symlink()):
        return
    if not overwrite:
        raise UsageError(
            "it exists already",
            path=out,
            code="output-exists",
            next_step="Choose another name, or --overwrite.",
        )
    if out.is_symlink() or not (out / DATASET_JSON).is_file():
        raise UsageError(
            "it is no nnU-Net data set, so it is not replaced",
            path=out,
            code="not-a-dataset",
            next_step="Choose another name, or remove it.",
        )


def _check_splits(splits: Sequence[Split], dataset: Dataset) -> None:
    named = {case for fold in splits for case in (*fold.train, *fold.validation)}
    if unknown := sorted(named - set(dataset.by_id)):
        raise UsageError(
            f"the splits name case '{unknown[0]}', which is no training case",
            path=dataset.root,
            code="unknown-case",
            next_step="Make the splits from this data set.",
        )


def _aside(out: Path) -> Path:
    """A new folder beside `out`, on the same disk."""
    folder = _beside(out)
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceError(
                "the disk is full; nothing was exported", path=out, code="disk-full"
            ) from error
        raise InputError(
            f"its folder cannot be written to ({error.strerror})",
            path=out,
            code="not-writable",
            next_step="Choose a folder that you may write to.",
        ) from error
    return folder


def _beside(out: Path) -> Path:
    return out.parent / f".kidseg-{secrets.token_hex(8)}"


def _put(aside: Path, out: Path) -> None:
    """Give the whole folder its name; what had it goes, last."""
    if not out.exists():
        aside.rename(out)
        return
    old = _beside(out)
    out.rename(old)
    try:
        aside.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _write_tables(dataset: Dataset, root: Path, splits: Sequence[Split]) -> None:
    rows = [
        {"case": c.id, "patient": c.patient, "age_years": c.age_years, "side": c.side}
        for c in (*dataset.cases, *dataset.unlabelled)
    ]
    write_patients_csv(root, rows)
    if splits:
        write_splits_json(splits, root / "splits_final.json")


def _write_cases(
    dataset: Dataset,
    root: Path,
    moved: Mapping[int, int],
    options: ReadOptions,
    jobs: int,
    progress: Progress | None,
) -> list[_Files]:
    for folder in ("imagesTr", "labelsTr", *(["imagesTs"] if dataset.unlabelled else [])):
        (root / folder).mkdir()
    cases = [*dataset.cases, *dataset.unlabelled]
    done: list[_Files] = []
    pool = ThreadPoolExecutor(max(1, jobs))
    try:
        for files in pool.map(lambda c: _write_case(c, dataset, root, moved, options), cases):
            done.append(files)
            if progress is not None:
                progress(len(done), len(cases))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return done


def _write_case(
    case: Case, dataset: Dataset, root: Path, moved: Mapping[int, int], options: ReadOptions
) -> _Files:
    targets, labels_target = case_paths(root, "nnunet", case.id, len(dataset.channels))
    if case.labels is None:
        targets = tuple(root / "imagesTs" / target.name for target in targets)
    linked, findings = 0, list[Finding]()
    native: Grid | None = None
    for channel, (source, target) in enumerate(zip(case.images, targets, strict=True)):
        volume = case.volume_of(channel)
        if volume is None and _fits(source, options):
            _link(source, target)
            linked += 1
        else:
            is_ct = dataset.holds_ct(channel)
            asked = replace(options, values="ct" if is_ct else "any", volume=volume)
            scan = read(source, asked)
            findings += scan.findings
            _save(scan, scan.volume, target)
        native = read_grid(target) if native is None else native
    if case.labels is not None and native is not None:
        fits = not moved and _fits(case.labels, options)
        if fits and read_grid(case.labels, options).same_as(native):
            _link(case.labels, labels_target)
            linked += 1
        else:
            findings += _write_labels(case.labels, labels_target, targets[0], moved, options)
    total = len(targets) + (case.labels is not None)
    return _Files(linked, total - linked, tuple(findings))


def _write_labels(
    source: Path, target: Path, image: Path, moved: Mapping[int, int], options: ReadOptions
) -> tuple[Finding, ...]:
    """The labels as uint8 with their new numbers, voxel by voxel as the written image."""
    scan = read(source, replace(options, values="labels"))
    try:
        save(relabelled(scan.volume, moved), target, like=image)
    except InputError as error:
        cause = error.cause
        if error.code == "grid-mismatch":
            cause = "its labels do not lie on the voxels of the image"
        raise InputError(
            cause,
            path=source,
            code=error.code,
            next_step="'kidseg check' says more about it.",
        ) from error
    return scan.findings


def _fits(path: Path, options: ReadOptions) -> bool:
    """May nnU-Net have the file as it is: upright gzip NIfTI, named so, its header believed?"""
    if options.trust is not None or options.spacing_mm is not None:
        return False
    if not (path.is_file() and path.name.endswith(".nii.gz") and kind_of(path) == "nifti"):
        return False
    grid = read_grid(path, options)
    return head(path)[1] == "gzip" and orthogonal_grid(grid, path)[0] is grid


def _link(source: Path, target: Path) -> None:
    """A hard link; a copy on another disk or where links are not allowed."""
    source = source.resolve()
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        shutil.copyfile(source, target)


def _save(scan: Scan, volume: Volume, target: Path) -> None:
    """In the voxel order of the file, unless its voxels had to be resampled to be upright."""
    resampled = any(finding.code == "slightly-sheared" for finding in scan.findings)
    save(volume, target, like=None if resampled else scan.native)
