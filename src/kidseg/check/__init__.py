"""Check a data set or a scan and report every problem, not only the first.

`kidseg.io` reports problems of single files and `kidseg.cases` those of folders and tables. This
package reads each case and compares cases with one another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from kidseg.cases import DATASET_JSON, Case, Dataset, Survey, survey_dataset
from kidseg.cases.annotated import UNCLEAR, UNUSED
from kidseg.cases.roi_rules import RoiRules, unused_rules
from kidseg.cases.same_images import same_image_findings, same_label_findings
from kidseg.check.cases import Examined, examine
from kidseg.check.report import Report
from kidseg.errors import Finding, InputError, ResourceError
from kidseg.io import ReadOptions, read
from kidseg.labels import LabelSchema, unclear_labels

__all__ = ["Report", "check"]

Progress = Callable[[int, int], None]

_SAID = {UNUSED: "no label", UNCLEAR: "unclear"}
_DEFAULT = ReadOptions()
_OTHER_KINDS = ("no-dicom", "no-volume")  # it may have been meant as a data set


def check(
    path: str | Path,
    *,
    options: ReadOptions = _DEFAULT,
    jobs: int = 2,
    progress: Progress | None = None,
    rules: RoiRules | None = None,
) -> Report:
    """Check a data set in any layout, or a single scan (a file, a DICOM folder or a zip).

    Findings of a data set besides those of `kidseg.cases.survey_dataset` and
    `kidseg.check.cases.examine`: errors "same-image" (between training and test, or between
    patients) and "label-never-used"; warnings "same-image" (two cases of one patient),
    "same-labels", "label-never-used" for tumour and cyst, and those of
    `kidseg.labels.unclear_labels`.

    Args:
        path: what to check.
        options: how to read it. In a data set, NaN voxels are always errors, as in training.
        jobs: cases read in parallel, each with one image in memory.
        progress: called with (done, total) after each case.
        rules: for the structures of DICOM annotations; by default the data set's, or the usual.

    Returns:
        The report. A path that does not exist, or is neither, is a finding too.
    """
    path = Path(path)
    try:
        survey = survey_dataset(path, rules)
    except InputError as error:
        if error.code == "not-a-dataset":
            unused_rules(rules, path)
            return _check_scan(path, options, error)
        return Report(
            path=path, kind="dataset", n_cases=0, findings=(error.as_finding(),), facts={}
        )
    return _check_dataset(path, survey, options, jobs, progress)


def _check_scan(path: Path, options: ReadOptions, not_a_dataset: InputError) -> Report:
    findings: tuple[Finding, ...]
    facts: dict[str, Any] = {}
    try:
        scan = read(path, options)
    except (InputError, ResourceError) as error:
        finding = error.as_finding()
        if finding.code in _OTHER_KINDS:
            step = f"{finding.next_step} Not a data set either. {not_a_dataset.next_step}".strip()
            finding = replace(finding, next_step=step)
        findings = (finding,)
    else:
        findings = scan.findings
        low, high = scan.volume.data.aminmax()
        facts = {
            "format": scan.format,
            "modality": scan.modality,
            "shape": list(scan.volume.grid.shape),
            "spacing_mm": [round(s, 6) for s in scan.volume.grid.spacing_mm.tolist()],
            "values": [float(low), float(high)],
        }
    return Report(path=path, kind="scan", n_cases=1, findings=findings, facts=facts)


def _check_dataset(
    path: Path, survey: Survey, options: ReadOptions, jobs: int, progress: Progress | None
) -> Report:
    dataset = survey.dataset
    cases = [*dataset.cases, *dataset.unlabelled, *survey.incomplete]
    examined = []
    for one in _examined(cases, dataset, options, jobs):
        examined.append(one)
        if progress is not None:
            progress(len(examined), len(cases))
    training = examined[: len(dataset.cases)]
    findings = [
        *survey.findings,
        *_unclear_labels(dataset),
        *same_image_findings({e.case: e.digest for e in examined if e.digest is not None}),
        *same_label_findings(
            {e.case: e.digest for e in examined}, {e.case: e.labels_digest for e in examined}
        ),
        *_unused_labels(training, dataset),
        *(finding for one in examined for finding in one.findings),
    ]
    return Report(
        path=path,
        kind="dataset",
        n_cases=len(cases),
        findings=tuple(dict.fromkeys(findings)),  # of a series that is read for its labels, too
        facts=_facts(examined, dataset) | _structure_facts(examined, survey),
    )


def _structure_facts(examined: Sequence[Examined], survey: Survey) -> dict[str, Any]:
    """Of DICOM annotations: which structures are which labels, and their volumes in each case."""
    if not survey.structures:
        return {}
    volumes = {one.case.id: [each.as_dict() for each in one.structures] for one in examined}
    return {
        "structures": {
            _SAID.get(label, label): dict(counts) for label, counts in survey.structures.items()
        },
        "structure_volumes": {case: each for case, each in volumes.items() if each},
        "case_files": {
            one.case.id: {
                "images": str(one.case.annotation.folder),
                "objects": [str(path) for path in one.case.annotation.objects],
            }
            for one in examined
            if one.case.annotation is not None
        },
    }


def _examined(
    cases: Sequence[Case], dataset: Dataset, options: ReadOptions, jobs: int
) -> Iterator[Examined]:
    """Examine the cases, in order. Threads suffice: decompression and hashing release the GIL."""
    if jobs <= 1:
        yield from (examine(case, dataset, options) for case in cases)
        return
    pool = ThreadPoolExecutor(jobs)
    try:
        yield from pool.map(lambda case: examine(case, dataset, options), cases)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _unclear_labels(dataset: Dataset) -> tuple[Finding, ...]:
    described = dataset.root / DATASET_JSON
    return unclear_labels(dataset.schema, described if described.is_file() else dataset.root)


def _unused_labels(training: Sequence[Examined], dataset: Dataset) -> Iterator[Finding]:
    read = [one for one in training if one.has_labels]
    if not read:  # what is wrong with their labels is said of each
        return
    used = {label for one in read for label in one.voxels}
    cases = f"{len(read)} training cases"
    cases += "" if len(read) == len(training) else " whose labels can be read"
    # Not every patient has a tumour or a cyst.
    lesions = dataset.schema.ids_of("tumour", "cyst")
    for label in dataset.schema.labels:
        if label.id not in used:
            yield Finding(
                code="label-never-used",
                path=str(dataset.root),
                cause=f"label {label.id} ({label.name}) occurs in none of the {cases}",
                next_step="Check that the labels are complete and their numbers correct.",
                severity="warning" if label.id in lesions else "error",
            )


def _facts(examined: Sequence[Examined], dataset: Dataset) -> dict[str, Any]:
    grids = [one.grid for one in examined if one.grid is not None]
    facts: dict[str, Any] = {
        "layout": dataset.layout,
        "name": dataset.name,
        "channels": list(dataset.channels),
        "n_training": len(dataset.cases),
        "n_unlabelled": len(dataset.unlabelled),
        "n_patients": len({case.patient for case in (*dataset.cases, *dataset.unlabelled)}),
        "findings": dict(Counter(f.code for one in examined for f in one.findings)),
    }
    if grids:
        shapes = list(zip(*(grid.shape for grid in grids), strict=True))
        spacings = zip(*(grid.spacing_mm.tolist() for grid in grids), strict=True)
        facts["median_spacing_mm"] = [round(median(s), 6) for s in spacings]
        facts["smallest_shape"] = [min(sizes) for sizes in shapes]
        facts["largest_shape"] = [max(sizes) for sizes in shapes]
    facts["labels"] = _label_facts(examined, dataset.schema)
    return facts


def _label_facts(examined: Sequence[Examined], schema: LabelSchema) -> dict[str, Any]:
    """Per label: number of cases, total voxels, and volumes in the cases that contain it."""
    facts = {}
    for number, name in schema.names.items():
        volumes = sorted(one.ml[number] for one in examined if number in one.ml)
        facts[name] = {
            "n_cases": len(volumes),
            "voxels": sum(one.voxels.get(number, 0) for one in examined),
            "median_ml": round(median(volumes), 3) if volumes else None,
            "range_ml": [round(volumes[0], 3), round(volumes[-1], 3)] if volumes else None,
        }
    return facts
