"""The command measure, and its result as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from kidseg.cli.options import (
    Age,
    AsJson,
    Entered,
    Height,
    Label,
    Overwrite,
    PatientSex,
    Quiet,
    Repair,
    RoiRules,
    Series,
    Trust,
    Weight,
    argument,
    option,
)
from kidseg.cli.progress import show_progress
from kidseg.cli.several import KEPT, end_of_several, is_several, one_only, scans_of
from kidseg.cli.stopping import stoppable
from kidseg.cli.terminal import print_result
from kidseg.table import ranged, text_table, wrapped

if TYPE_CHECKING:
    from kidseg.measure.criteria import Answer
    from kidseg.measure.measurement import Measurement, Structure
    from kidseg.measure.measuring import Measured, Request
    from kidseg.measure.quantity import Quantity

__all__ = ["measure", "measured_text"]

_DIAMETERS = ("longest diameter", "longest axial diameter", "width across it", "height")
_VOLUMES = ("volume", "ellipsoid volume")
_SIZES = {*_DIAMETERS, *_VOLUMES}
_UNITS = {"mL": "ml", "cm2": "cm2", "mL/m2": "ml/m2"}


def measure(
    labels: Annotated[
        list[Path],
        argument(
            help="Label volumes of kidneys and tumours, or folders of them; or a DICOM SEG or"
            " RTSTRUCT."
        ),
    ],
    ct: Annotated[
        Path | None,
        option(
            help="Its scan, for the midline and the scan's border; of several, their folder. For a"
            " DICOM SEG or RTSTRUCT, the folder of its series."
        ),
    ] = None,
    out: Annotated[
        Path | None, option("--out", "-o", help="Folder for NAME_measurements.json.")
    ] = None,
    height: Height = None,
    weight: Weight = None,
    age: Age = None,
    sex: PatientSex = None,
    before: Annotated[
        Path | None, option(help="Labels of an earlier scan, to compare with.")
    ] = None,
    before_ct: Annotated[Path | None, option(help="That earlier scan.")] = None,
    opinion: Annotated[
        list[Path] | None,
        option(help="Another segmentation of the scan, to widen the intervals."),
    ] = None,
    label: Label = None,
    roi_rules: RoiRules = None,
    margin: Annotated[
        float | None, option(help="Margin of a resection in mm, of parenchyma.")
    ] = None,
    entered: Entered = None,
    criteria: Annotated[
        Path | None, option(help="TOML file of criteria, instead of kidseg's own.")
    ] = None,
    trust: Trust = None,
    series: Series = None,
    repair: Repair = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure kidneys and tumours: volumes, diameters, contact, criteria, change since before.

    Every value has an interval: mostly what it would be if the contour moved by one voxel.
    Criteria are met, not met, or cannot be told. No treatment is recommended. Of several files or a
    folder, each is measured for itself, and a table shows them all: a bad one does not stop the
    others.

    Example: kidseg measure result/anna_seg.nii.gz --ct anna.nii.gz --height 92 --weight 13.5
    """
    from kidseg.cases.label_names import parse_names
    from kidseg.cases.roi_rules import load_rules
    from kidseg.io import ReadOptions
    from kidseg.measure.criteria import DEFAULT
    from kidseg.measure.measuring import Request, measure
    from kidseg.measure.person import Patient

    request = Request(
        ct=ct,
        before=before,
        before_ct=before_ct,
        opinions=tuple(opinion or ()),
        names=parse_names(label or ()),
        rules=load_rules(roi_rules),
        person=Patient(height_cm=height, weight_kg=weight, age_years=age, sex=sex),
        entered=tuple(entered or ()),
        margin_mm=margin,
        criteria=criteria or DEFAULT,
        options=ReadOptions(trust=trust, series=series, repair=repair),
    )
    if is_several(labels):
        facts = {"--height": height, "--weight": weight, "--age": age, "--sex": sex}
        pair = {"--before": before, "--before-ct": before_ct, "--opinion": opinion}
        one_only({**facts, **pair, "--entered": entered, "--series": series})
        _measure_all(labels, request, out, overwrite=overwrite, as_json=as_json, quiet=quiet)
        return
    measured = measure(labels[0], request, out=out, overwrite=overwrite)
    print_result(measured.as_dict(), measured_text(measured), as_json, quiet)


def _measure_all(
    labels: Sequence[Path],
    request: Request,
    out: Path | None,
    *,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure several label files, and print a table of all."""
    from kidseg.cases.label_files import attempt_each, check_copies, find_label_files
    from kidseg.cases.naming import label_name
    from kidseg.measure.measuring import INTENDED_USE, check_target, measure

    files = find_label_files(labels)
    scans = scans_of(files, request.ct)
    for path in files:
        check_target(path, out, overwrite=overwrite)

    def attempt(path: Path) -> Measured:
        check_copies(path, files[path])
        return measure(path, replace(request, ct=scans[path]), out=out, overwrite=overwrite)

    with show_progress("label files", quiet or as_json) as advance, stoppable(lambda: KEPT):
        done, failed = attempt_each(files, attempt, advance)
    rows = [_summary(label_name(path), one.measurement) for path, one in done.items()]
    head = ["case", *(f"{side} {what}" for side in ("right", "left") for what in _SUMMED)]
    lines = ["Volumes in ml (from-to):", ""] if rows else []
    lines += text_table([*head, "tumours", "warnings"], rows) if rows else []
    lines += ["", *wrapped(INTENDED_USE)]
    measured = {"measured": [one.as_dict() for one in done.values()]}
    end_of_several(
        measured,
        lines,
        failed,
        warned=[finding for one in done.values() for finding in one.findings],
        total=len(files),
        as_json=as_json,
        quiet=quiet,
    )


_SUMMED = ("kidney", "tumour")


def _summary(name: str, found: Measurement) -> list[str]:
    """A row of the table of several files."""
    volumes = [
        _cell(found.sides.get(side, {}).get(f"{what} volume"))
        for side in ("right", "left")
        for what in _SUMMED
    ]
    return [name, *volumes, str(len(found.tumours)), str(len(found.findings))]


def measured_text(measured: Measured) -> str:
    """The tables of a measurement, its warnings, and what it is for."""
    from kidseg.measure.measuring import INTENDED_USE

    found = measured.measurement
    lines = [
        *wrapped(f"{measured.labels}: value (from-to). {_intervals(found)}"),
        *_sizes(found),
        *(line for tumour in found.tumours for line in _tumour(tumour)),
        *_sides(found),
        *_response(measured),
        *_criteria(found),
    ]
    warned = [line for finding in measured.findings for line in wrapped(str(finding), indent="  ")]
    lines += ["", "Warnings:", *warned] if warned else []
    return "\n".join([*lines, "", *wrapped(INTENDED_USE)])


def _intervals(found: Measurement) -> str:
    sided = "" if found.midline == "body" else ", an estimate"
    return (
        "The interval is the value with the contour one voxel further in or out, unless said"
        f" otherwise. Right and left by the {_MIDLINES[found.midline]}{sided}."
    )


_MIDLINES = {
    "body": "middle of the body",
    "kidneys": "middle between the kidneys",
    "image": "middle of the image",
    "origin": "origin of patient space",
}


def _sizes(found: Measurement) -> list[str]:
    """Volumes and diameters of all structures."""
    head = ["", "volume ml", "ellipsoid ml", *(f"{name} mm" for name in _DIAMETERS)]
    rows = [
        [
            structure.id,
            *(_cell(structure.quantity(name)) for name in (*_VOLUMES, *_DIAMETERS)),
        ]
        for structure in found.structures
    ]
    if not rows:
        return ["", "Nothing was measured."]
    lines = ["", *text_table(head, rows)]
    if any(structure.borders for structure in found.structures):
        lines += wrapped(
            ">: it reaches the border of the scan: the value is a lower bound. ?: not known."
        )
    return lines


def _tumour(tumour: Structure) -> list[str]:
    """Where a tumour lies, and its score."""
    rows = [
        [quantity.name, _text(quantity), _noted(quantity)]
        for quantity in tumour.quantities
        if quantity.name not in _SIZES
    ]
    crosses = {"met": "yes", "not met": "no"}.get(tumour.crosses_midline or "", "cannot tell")
    rows.append(["crosses the midline", crosses, ""])
    for name, component in tumour.renal_score.items():
        points = " or ".join(map(str, component.points)) or "cannot tell"
        rows.append([f"R.E.N.A.L. {name}", points, component.reason])
    named = f" ({tumour.label})" if tumour.tracking else ""
    return ["", f"{tumour.id.capitalize()}{named}:", *_listed(rows)]


def _sides(found: Measurement) -> list[str]:
    lines: list[str] = []
    for side, measures in (*found.sides.items(), ("both sides", found.patient)):
        rows = [[name, _text(value), _noted(value)] for name, value in measures.items()]
        lines += ["", f"{side.capitalize()}:", *_listed(rows)] if rows else []
    return lines


def _response(measured: Measured) -> list[str]:
    if measured.earlier is None:
        return []
    rows = [
        [
            change.subject,
            _cell(change.volume_before),
            _cell(change.volume_after),
            _cell(change.change),
            "-" if change.relative is None else _cell(change.relative),
            _matched(change.matched, change.before),
        ]
        for change in measured.changes
    ]
    head = ["", "before ml", "now ml", "change ml", "change %", "matched by"]
    title = "Change since the earlier scan; intervals combined as independent errors:"
    return ["", title, *(text_table(head, rows) if rows else ["nothing to compare"])]


def _matched(how: str, before: tuple[str, ...]) -> str:
    return f"{how}: {', '.join(before)}" if before and how not in ("side",) else how


def _criteria(found: Measurement) -> list[str]:
    signed = found.criteria["signed_off"] or "not signed off by a clinician"
    lines = ["", f"Criteria, version {found.criteria['version']}, {signed}:"]
    for answer in found.answers:
        lines += _answer(answer)
    return lines


def _answer(answer: Answer) -> Iterator[str]:
    criterion = answer.criterion
    doubt = "" if criterion.confirmed else " [to be confirmed]"
    yield from wrapped(
        f"{answer.verdict.upper()} - {answer.subject}: {criterion.title}{doubt}", indent="  "
    )
    for each in answer.conditions:
        value = "" if each.quantity is None else f": {_text(each.quantity)}"
        reason = f" ({each.reason})" if each.reason else ""
        yield from wrapped(f"  {each.text}{value}: {each.verdict}{reason}", indent="    ")
    yield from wrapped(f"  {criterion.about} Source: {criterion.source}.", indent="    ")


def _listed(rows: list[list[str]]) -> list[str]:
    width = max((len(row[0]) for row in rows), default=0)
    lines = []
    for name, value, note in rows:
        text = f"{value}; {note}" if note else value
        lines += wrapped(f"  {name.ljust(width)}  {text}", indent=" " * (width + 4))
    return lines


def _text(quantity: Quantity) -> str:
    unit = "" if quantity.unit == "1" else f" {_UNITS.get(quantity.unit, quantity.unit)}"
    return f"{_cell(quantity)}{unit}"


def _noted(quantity: Quantity) -> str:
    from kidseg.measure.quantity import CONTOUR

    interval = "" if quantity.interval in (CONTOUR, "none") else quantity.interval
    return "; ".join(filter(None, (quantity.note, interval)))


def _cell(quantity: Quantity | None) -> str:
    """ "551 (520-585)", ">551" for a lower bound, "-" if it was not measured."""
    if quantity is None:
        return "-"
    is_count = quantity.unit == "1"
    is_sure = is_count and quantity.low == quantity.value == quantity.high
    is_exact = quantity.interval == "none" or is_sure
    low, high = quantity.low, quantity.high
    return ranged(quantity.value, low, high, exact=is_exact, whole=is_count)
