"""Measure a label file, compare it with an earlier one, and record what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kidseg.cases.naming import label_name
from kidseg.cases.roi_rules import RoiRules, unused_rules
from kidseg.errors import Finding, UsageError
from kidseg.io import ReadOptions
from kidseg.io.atomic import check_writable, make_folder, write_json
from kidseg.io.content import sha256_of_all
from kidseg.io.output import check_output_folder
from kidseg.measure.annotated_labels import is_annotated
from kidseg.measure.criteria import DEFAULT, entered_facts, read_criteria
from kidseg.measure.label_reading import read_labelled, read_opinion
from kidseg.measure.measurement import Measurement, measure_parts
from kidseg.measure.parts import Labelled, Parts, find_parts
from kidseg.measure.person import Patient
from kidseg.measure.response import Change, changes
from kidseg.measure.reviewed import read_review
from kidseg.measure.same_person import pair_findings, person_findings
from kidseg.provenance import provenance

__all__ = [
    "ENDING",
    "INTENDED_USE",
    "Measured",
    "Request",
    "check_target",
    "measure",
    "measure_labelled",
    "parts_of",
]

FORMAT = 1
ENDING = "_measurements.json"
"""Ending of the file that is written, after the name of the case."""

INTENDED_USE = "For research use only. Not a medical device. No treatment is recommended."

_WIDEST_MARGIN_MM = 50.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure, and what is known besides.

    Attributes:
        ct: the scan of the labels, for the midline and the border.
        before: an earlier label file of the same patient.
        before_ct: the scan of that.
        opinions: other segmentations of the same scan, such as of other models or observers.
        names: {number: name} of the labels of all these files; {}: as the files say.
        rules: for the structures of DICOM objects; by default their codes and names.
        person: for growth.
        entered: facts for the criteria, NAME=yes or NAME=no.
        margin_mm: of parenchyma that is removed with a tumour; None: as the criteria say.
        criteria: their file.
        options: of reading scans.
    """

    ct: Path | None = None
    before: Path | None = None
    before_ct: Path | None = None
    opinions: tuple[Path, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    rules: RoiRules | None = None
    person: Patient = field(default_factory=Patient)
    entered: Sequence[str] = ()
    margin_mm: float | None = None
    criteria: Path = DEFAULT
    options: ReadOptions = field(default_factory=ReadOptions)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The result.

    Attributes:
        labels: the file.
        measurement: of the labels.
        earlier: of the earlier labels; None without.
        changes: since then.
        files: {role: files that were read}.
    """

    labels: Path
    measurement: Measurement
    earlier: Measurement | None
    changes: tuple[Change, ...]
    files: Mapping[str, tuple[Path, ...]]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Warnings about all files."""
        both = (self.measurement, *([] if self.earlier is None else [self.earlier]))
        return tuple(dict.fromkeys(finding for one in both for finding in one.findings))

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON; docs/measure.md explains it."""
        response = None
        if self.earlier is not None:
            response = {
                "before": self.earlier.as_dict(),
                "changes": [change.as_dict() for change in self.changes],
            }
        return {
            "format": FORMAT,
            "intended_use": INTENDED_USE,
            "labels": str(self.labels),
            "files": {
                role: [{"path": str(path), "sha256": sha256_of_all([path])} for path in paths]
                for role, paths in self.files.items()
            },
            **self.measurement.as_dict(),
            "response": response,
            **provenance(),
        }


def measure(
    labels: Path, request: Request, *, out: Path | None = None, overwrite: bool = False
) -> Measured:
    """Measure a label file.

    Args:
        labels: a label volume in any format, or a DICOM Segmentation or RT Structure Set.
        request: what else is known.
        out: folder to write <case>_measurements.json into; None: nothing is written.
        overwrite: replace it.

    Raises:
        UsageError: "bad-margin", "no-before": a scan, but no labels, of the earlier time;
            "bad-entered"; "output-exists", "other-folder"; "named-structures": numbers of labels,
            but DICOM objects; "no-annotations": rules, but no DICOM object.
        InputError: see `read_labelled`, `read_opinion`, `read_review`, `read_criteria`.
        ResourceError: "disk-full".
    """
    _check(request)
    _check_names(labels, request)
    target = check_target(labels, out, overwrite=overwrite)
    labelled, parts, measurement = _measured(labels, request)
    earlier: Measurement | None = None
    changed: tuple[Change, ...] = ()
    if request.before is not None:
        # What is known of the patient is known of the later time.
        then = replace(request, ct=request.before_ct, opinions=(), person=Patient(), entered=())
        labelled_before, parts_before, earlier = _measured(request.before, then)
        changed = changes((parts_before, earlier), (parts, measurement))
        pair = (labelled_before, parts_before), (labelled, parts)
        doubts = (*_same(labels, request.before), *pair_findings(*pair, changed))
        measurement = replace(measurement, findings=(*measurement.findings, *doubts))
    roles = {
        "labels": (labels,),
        "ct": (request.ct,),
        "before": (request.before,),
        "before_ct": (request.before_ct,),
        "opinions": request.opinions,
        "criteria": (request.criteria,),
    }
    files = {
        role: known
        for role, paths in roles.items()
        if (known := tuple(path for path in paths if path is not None))
    }
    measured = Measured(
        labels=labels, measurement=measurement, earlier=earlier, changes=changed, files=files
    )
    if out is not None and target is not None:
        make_folder(out)
        write_json(target, measured.as_dict(), overwrite=overwrite)
    return measured


def check_target(labels: Path, out: Path | None, *, overwrite: bool) -> Path | None:
    """The file to write for a label file, which may be written; None without a folder.

    Raises:
        UsageError: "output-exists", "other-folder".
        InputError: "not-writable".
    """
    if out is None:
        return None
    target = out / f"{label_name(labels)}{ENDING}"
    check_output_folder(out, "results")
    if out.is_dir():
        check_writable(target, overwrite=overwrite)
    return target


def parts_of(labelled: Labelled, criteria: Path = DEFAULT) -> Parts:
    """The structures of labels; which pieces are specks, the criteria say.

    Raises:
        InputError: see `read_criteria`.
    """
    return find_parts(labelled, read_criteria(criteria).settings.smallest_tumour_ml)


def measure_labelled(
    labelled: Labelled,
    request: Request,
    others: Sequence[Labelled] = (),
    parts: Parts | None = None,
) -> tuple[Parts, Measurement]:
    """Measure labels that were read.

    Args:
        labelled: the labels.
        request: of which the person, the criteria, the facts and the margin are used.
        others: opinions; see `measure_parts`.
        parts: of the labels, if they are known; see `parts_of`.

    Raises:
        UsageError: "bad-entered".
        InputError: see `read_criteria`.
    """
    criteria = read_criteria(request.criteria)
    entered = entered_facts(request.entered, criteria)
    parts = parts or parts_of(labelled, request.criteria)
    margin_mm = request.margin_mm
    measurement = measure_parts(
        labelled,
        parts,
        criteria,
        person=request.person,
        margin_mm=criteria.settings.margin_mm if margin_mm is None else margin_mm,
        entered=entered,
        opinions=others,
        review=read_review(labelled.record, labelled.path),
    )
    doubts = person_findings(labelled, request.person)
    return parts, replace(measurement, findings=(*measurement.findings, *doubts))


def _measured(path: Path, request: Request) -> tuple[Labelled, Parts, Measurement]:
    read_criteria(request.criteria)  # before anything is read
    labelled = read_labelled(
        path, ct=request.ct, names=request.names, rules=request.rules, options=request.options
    )
    others = [
        read_opinion(opinion, labelled, request.names, ct=request.ct, rules=request.rules)
        for opinion in request.opinions
    ]
    of_others = [finding for other in others for finding in other.findings]
    labelled = replace(labelled, findings=(*labelled.findings, *of_others))
    return labelled, *measure_labelled(labelled, request, others)


def _same(labels: Path, before: Path) -> list[Finding]:
    """A finding if the labels of both times are one file."""
    if sha256_of_all([labels]) != sha256_of_all([before]):
        return []
    cause = "these labels are those of the earlier scan, too: nothing can have changed"
    step = "Name the labels of the earlier scan: --before."
    return [Finding(code="same-labels", path=str(labels), cause=cause, next_step=step)]


def _check_names(labels: Path, request: Request) -> None:
    """Refuse numbers of labels for DICOM objects, and rules for other files."""
    before = () if request.before is None else (request.before,)
    objects = [path for path in (labels, *before, *request.opinions) if is_annotated(path)]
    if objects and request.names:
        raise UsageError(
            "the structures of a DICOM object have names, and no numbers that could be named",
            path=objects[0],
            code="named-structures",
            next_step="Say which are which labels in a rule file, --roi-rules, without --label.",
        )
    if not objects:
        unused_rules(request.rules, labels)


def _check(request: Request) -> None:
    if request.margin_mm is not None and not 0 <= request.margin_mm <= _WIDEST_MARGIN_MM:
        raise UsageError(
            f"a margin of {request.margin_mm:g} mm is not within 0 to {_WIDEST_MARGIN_MM:g} mm",
            code="bad-margin",
            next_step="Give a margin in this range.",
        )
    if request.before_ct is not None and request.before is None:
        raise UsageError(
            "an earlier scan was named, but not its labels",
            path=request.before_ct,
            code="no-before",
            next_step="Name them: --before.",
        )
