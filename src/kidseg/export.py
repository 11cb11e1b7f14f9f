"""Export a data set as an nnU-Net v2 raw folder, `Dataset042_Name`.

    dataset.json, imagesTr/, labelsTr/, imagesTs/    in nnU-Net's format, all .nii.gz
    splits_final.json                                kidseg's folds; see `export_nnunet`
    patients.csv                                     patient, age and side, for kidseg

Every file is first read whole and checked as by `kidseg check`; what it calls an error is refused.
Voxels are never interpolated or reordered. Files in the required format are hard-linked, or copied
if links are not possible. Others (another format, other label numbers, labels that are not stored
as integers, or in another order than the image) are written as new files. The folder is renamed to
its final name when it is complete.
"""

from __future__ import annotations

import os
import re
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
from kidseg.cases.label_values import known_labels
from kidseg.cases.same_images import check_apart, same_image_findings
from kidseg.check.cases import Examined, examine
from kidseg.errors import Finding, UsageError, first_error
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, Scan, kind_of, read, read_grid, save
from kidseg.io.atomic import link_or_copy, make_folder, writing_folder
from kidseg.io.checks import orthogonal_grid
from kidseg.io.payload import head
from kidseg.labels import CystAs
from kidseg.splits import Split, write_splits_json

__all__ = ["Exported", "export_nnunet", "planned_export"]

Progress = Callable[[int, int], None]

_NAME = re.compile(r"Dataset\d{3}_.+")
_LONGEST = 255  # bytes of a name, on all usual file systems
# Labels that are not stored as integers, and how `examine` names them.
_INEXACT = {"float-labels", "rounded-labels"}
# Findings about the source that do not hold for the export.
_RESOLVED = {"float-labels", "voxel-order-differs"}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export.

    Attributes:
        root: the folder.
        new_from_old: {label in the data set: label in the export}, changed labels only.
        linked: number of files linked to, or copied from, the data set.
        written: number of new files.
        findings: warnings about the files.
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
        lines = [f"{finding.severity}: {finding}" for finding in self.findings]
        files = f"{self.linked} file(s) linked, {self.written} written"
        return "\n".join([*lines, f"{self.root}: {files}."])


@dataclass(frozen=True)
class _Files:
    """What became of a case; nothing was written if there are errors among the findings."""

    examined: Examined
    linked: int = 0
    written: int = 0


def planned_export(
    dataset: Dataset,
    out: Path,
    *,
    cyst: CystAs | None = None,
    splits: Sequence[Split] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """What `export_nnunet` would write, after the checks that need no voxels; plain data.

    Raises:
        UsageError: as `export_nnunet`.
    """
    _check_out(out, dataset, overwrite)
    learned = learned_labels(dataset, cyst)
    _check_splits(splits, dataset)
    return {
        "root": str(out),
        "cases": [case.id for case in dataset.cases],
        "labels": {str(number): name for number, name in learned.schema.names.items()},
        "new_from_old": {str(o): n for o, n in learned.new_from_old.items() if o != n},
        "folds": len(splits),
    }


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
        out: folder to create, with nnU-Net's naming, `Dataset042_Name`, in its folder nnUNet_raw.
        cyst: what a cyst counts as; None: its own label.
        splits: folds for splits_final.json. nnU-Net's planner copies this file to the folder of
            preprocessed data, where training reads it. With versions that do not, copy it manually.
        options: how to read the files.
        overwrite: replace an nnU-Net data set at `out`.
        jobs: cases written in parallel.
        progress: called with (done, total) after each case.

    Raises:
        UsageError: "bad-dataset-name"; "output-exists"; "not-a-dataset": `out` exists and is not an
            nnU-Net data set, so it is not replaced; "export-into-itself"; "unknown-case": in
            `splits`; and as `count_cyst`.
        InputError: the first error of `kidseg.check.cases.examine`, with the number of further
            errors; "same-image": in training and test, of two patients, or in two parts of a fold;
            "not-writable".
        ResourceError: "disk-full"; `out` is unchanged.
    """
    out = Path(out)
    _check_out(out, dataset, overwrite)
    _check_splits(splits, dataset)
    learned = learned_labels(dataset, cyst)
    changed = {old: new for old, new in learned.new_from_old.items() if old != new}
    make_folder(out.parent)
    with writing_folder(out) as temporary:
        files = _write_cases(dataset, temporary, changed, options or ReadOptions(), jobs, progress)
        findings = _accepted([one.examined for one in files], dataset, splits)
        _write_tables(dataset, temporary, splits)
        write_dataset_json(
            temporary,
            channels=dataset.channels,
            schema=learned.schema,
            n_training=len(dataset.cases),
            name=out.name,
            region_order=learned.target.writes if dataset.region_order else (),
            ignore_label=learned.ignore,
        )
    return Exported(
        root=out,
        new_from_old=changed,
        linked=sum(one.linked for one in files),
        written=sum(one.written for one in files),
        findings=findings,
    )


def _check_out(out: Path, dataset: Dataset, overwrite: bool) -> None:
    if not _NAME.fullmatch(out.name) or len(os.fsencode(out.name)) > _LONGEST:
        raise UsageError(
            "not a valid name of an nnU-Net data set",
            path=out,
            code="bad-dataset-name",
            next_step="Use a name such as Dataset042_Kidney: three digits and a short name.",
        )
    here, there = out.resolve(), dataset.root.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UsageError(
            f"the output is, contains or is inside the data set itself ({dataset.root})",
            path=out,
            code="export-into-itself",
            next_step="Choose a folder outside the data set.",
        )
    if not (out.exists() or out.is_symlink()):
        return
    if not overwrite:
        raise UsageError(
            "already exists",
            path=out,
            code="output-exists",
            next_step="Choose another name, or use --overwrite.",
        )
    if out.is_symlink() or not (out / DATASET_JSON).is_file():
        raise UsageError(
            "not an nnU-Net data set, so it is not replaced",
            path=out,
            code="not-a-dataset",
            next_step="Choose another name, or remove it.",
        )


def _check_splits(splits: Sequence[Split], dataset: Dataset) -> None:
    named = {case for fold in splits for case in (*fold.train, *fold.validation)}
    if unknown := sorted(named - set(dataset.by_id)):
        raise UsageError(
            f"the splits contain case '{unknown[0]}', which is not a training case",
            path=dataset.root,
            code="unknown-case",
            next_step="Create the splits from this data set.",
        )


def _accepted(
    examined: Sequence[Examined], dataset: Dataset, splits: Sequence[Split]
) -> tuple[Finding, ...]:
    """The warnings about all cases; raises the first error."""
    digests = {one.case: one.digest for one in examined if one.digest is not None}
    findings = [finding for one in examined for finding in one.findings]
    findings += same_image_findings(digests)
    if (error := first_error(findings, "'kidseg check' lists every problem.")) is not None:
        raise error
    by_id = {case.id: digest for case, digest in digests.items() if case.labels is not None}
    for fold in splits:
        check_apart(by_id, fold.train, fold.validation, dataset.root)
    return tuple(finding for finding in findings if finding.code not in _RESOLVED)


def _write_tables(dataset: Dataset, root: Path, splits: Sequence[Split]) -> None:
    rows = [
        {
            "case": c.id,
            "patient": c.patient,
            "age_years": c.age_years,
            "side": c.side,
            "time_point": c.time_point,
        }
        for c in (*dataset.cases, *dataset.unlabelled)
    ]
    write_patients_csv(root, rows)
    if splits:
        write_splits_json(splits, root / "splits_final.json")


def _write_cases(
    dataset: Dataset,
    root: Path,
    changed: Mapping[int, int],
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
        for files in pool.map(lambda c: _write_case(c, dataset, root, changed, options), cases):
            done.append(files)
            if progress is not None:
                progress(len(done), len(cases))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return done


def _write_case(
    case: Case, dataset: Dataset, root: Path, changed: Mapping[int, int], options: ReadOptions
) -> _Files:
    examined = examine(case, dataset, options, anatomy=False)
    if first_error(examined.findings) is not None:
        return _Files(examined)
    targets, labels_target = case_paths(root, "nnunet", case.id, len(dataset.channels))
    if case.labels is None:
        targets = tuple(root / "imagesTs" / target.name for target in targets)
    linked = 0
    native: Grid | None = None
    for channel, (source, target) in enumerate(zip(case.images, targets, strict=True)):
        volume = case.volume_of(channel)
        if volume is None and _fits(source, options):
            link_or_copy(source, target)
            linked += 1
        else:
            is_ct = dataset.holds_ct(channel)
            scan_options = replace(options, values="ct" if is_ct else "any")
            scan = read(source, case.reading(scan_options, channel))
            _save(scan, scan.volume, target)
        native = read_grid(target) if native is None else native
    if case.labels is not None and native is not None:
        exact = not _INEXACT & {finding.code for finding in examined.findings}
        fits = exact and not changed and _fits(case.labels, options)
        if fits and read_grid(case.labels, options).same_as(native):
            link_or_copy(case.labels, labels_target)
            linked += 1
        else:
            scan = read(case.labels, case.reading(replace(options, values="labels")))
            labels = known_labels(scan, dataset.schema.names, dataset.ignore_label)
            save(relabelled(labels.volume, changed), labels_target, like=targets[0])
    total = len(targets) + (case.labels is not None)
    return _Files(examined, linked, total - linked)


def _fits(path: Path, options: ReadOptions) -> bool:
    """Can nnU-Net use the file unchanged: upright .nii.gz, with a header read without overrides?"""
    if options.trust is not None or options.spacing_mm is not None:
        return False
    if not (path.is_file() and path.name.endswith(".nii.gz") and kind_of(path) == "nifti"):
        return False
    grid = read_grid(path, options)
    return head(path)[1] == "gzip" and orthogonal_grid(grid, path)[0] is grid


def _save(scan: Scan, volume: Volume, target: Path) -> None:
    """Write in the voxel order of the source file, unless the reader resampled a sheared grid."""
    resampled = any(finding.code == "slightly-sheared" for finding in scan.findings)
    save(volume, target, like=None if resampled else scan.native)
