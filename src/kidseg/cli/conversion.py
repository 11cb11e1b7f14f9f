"""The command convert: labels in other formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from kidseg.cli.old_options import chosen_series
from kidseg.cli.options import (
    Age,
    AsJson,
    DryRun,
    Entered,
    Formats,
    Height,
    Label,
    Overwrite,
    PatientSex,
    Quiet,
    Repair,
    RoiRules,
    Series,
    Weight,
    argument,
    format_names,
    option,
)
from kidseg.cli.progress import show_progress
from kidseg.cli.several import KEPT, end_of_several, is_several, one_only, scans_of
from kidseg.cli.stopping import stoppable
from kidseg.cli.terminal import print_result
from kidseg.errors import Finding, UsageError
from kidseg.table import text_table, wrapped

if TYPE_CHECKING:
    from kidseg.convert import Conversion

__all__ = ["convert"]


def convert(
    labels: Annotated[
        list[Path],
        argument(
            help="Label volumes, also of 3D Slicer, or folders of them; or a DICOM SEG or RTSTRUCT."
        ),
    ],
    out: Annotated[Path, option("--out", "-o", help="Folder to write.")],
    formats: Formats = "seg.nrrd",
    ct: Annotated[
        Path | None,
        option(
            help="The scan of the labels, for html; for DICOM objects, their series, a folder or"
            " zip. Of several, the folder of their scans. For a DICOM SEG or RTSTRUCT, the folder"
            " of its series."
        ),
    ] = None,
    label: Label = None,
    roi_rules: RoiRules = None,
    series: Series = None,
    repair: Repair = False,
    height: Height = None,
    weight: Weight = None,
    age: Age = None,
    sex: PatientSex = None,
    entered: Entered = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write labels in other formats: 3D Slicer, DICOM SEG and RTSTRUCT, STL, OBJ, GLB, a report.

    Names of labels are taken from --label, the file, result.json or dataset.json. What is known of
    the patient (--height, --entered ...) goes into the report, html.

    Of several files or a folder, each is converted for itself: a bad one does not stop the others.

    Example: kidseg convert result/child_seg.nii.gz -o models --formats seg.nrrd,stl,glb
    """
    from kidseg.cases.label_names import parse_names
    from kidseg.cases.roi_rules import load_rules
    from kidseg.convert import plan_conversion
    from kidseg.io import ReadOptions
    from kidseg.measure.measuring import Request
    from kidseg.measure.person import Patient

    plan = partial(
        plan_conversion,
        out=out,
        formats=format_names(formats),
        options=ReadOptions(series=chosen_series(series), repair=repair, values="any"),
        names=parse_names(label or ()),
        rules=load_rules(roi_rules),
        known=Request(
            person=Patient(height_cm=height, weight_kg=weight, age_years=age, sex=sex),
            entered=tuple(entered or ()),
        ),
        overwrite=overwrite,
    )
    if is_several(labels):
        facts = {"--height": height, "--weight": weight, "--age": age, "--sex": sex}
        one_only({"--series": series, **facts, "--entered": entered})
        _convert_all(labels, ct, plan, dry_run=dry_run, as_json=as_json, quiet=quiet)
        return
    planned = plan(labels[0], ct=ct)
    if dry_run:
        would = planned.as_dict()
        text = "\n".join(["Would write:", *would["outputs"]])
        print_result({"would_convert": would}, text, as_json, quiet)
        return
    made = planned.write()
    print_result(made, conversion_text(made, out), as_json, quiet)


def _convert_all(
    labels: Sequence[Path],
    ct: Path | None,
    plan: Callable[..., Conversion],
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert several label files; what is wrong with the call is said before any is read."""
    from kidseg.cases.label_files import attempt_each, check_copies, find_label_files

    files = find_label_files(labels)
    scans = scans_of(files, ct)

    def attempt(path: Path) -> Conversion:
        check_copies(path, files[path])
        return plan(path, ct=scans[path])

    planned, failed = attempt_each(files, attempt)
    if wrong := [error for _, error in failed if isinstance(error, UsageError)]:
        raise wrong[0]
    warned: list[Finding] = []
    if dry_run:
        would = [one.as_dict() for one in planned.values()]
        rows = [[one["name"], str(len(one["outputs"]))] for one in would]
        done, head = {"would_convert": would}, ["case", "files"]
    else:
        with show_progress("label files", quiet or as_json) as advance, stoppable(lambda: KEPT):
            made, unwritten = attempt_each(
                list(planned), lambda path: planned[path].write(), advance
            )
        failed = [*failed, *unwritten]
        converted = list(made.values())
        rows = [
            [one["name"], str(len(one["outputs"])), str(len(one["warnings"]))] for one in converted
        ]
        warned = [Finding(**entry) for one in converted for entry in one["warnings"]]
        done, head = {"converted": converted}, ["case", "files", "warnings"]
    lines = text_table(head, rows) if rows else []
    end_of_several(
        done, lines, failed, warned=warned, total=len(files), as_json=as_json, quiet=quiet
    )


def conversion_text(made: Mapping[str, Any], out: Path) -> str:
    """What was written, and what is to be known of it."""
    names = ", ".join(f"{number} {name}" for number, name in made["labels"].items())
    written = ", ".join(made["outputs"]) or "nothing but its record"
    lines = wrapped(f"Wrote {written} into {out}. Labels: {names}.")
    for name, surface in made.get("surfaces", {}).items():
        lines += wrapped(
            f"Surface of {name}: {surface['volume_ml']:.2f} ml, {surface['change']:+.2%} from the"
            f" voxels ({surface['voxels_ml']:.2f} ml)."
        )
    for entry in made["warnings"]:
        lines += wrapped(f"warning: {Finding(**entry)}")
    return "\n".join([*lines, *wrapped(made["intended_use"])])
