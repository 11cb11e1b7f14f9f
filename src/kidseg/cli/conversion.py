"""The command convert: labels in other formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from kidseg.cli.options import (
    Age,
    AsJson,
    DryRun,
    Entered,
    Formats,
    Height,
    Overwrite,
    PatientSex,
    Quiet,
    Repair,
    Weight,
    format_names,
)
from kidseg.cli.progress import show_progress
from kidseg.cli.several import end_of_several, is_several, one_only, scans_of
from kidseg.cli.terminal import print_result
from kidseg.errors import Finding, UsageError
from kidseg.table import text_table, wrapped

__all__ = ["convert"]


def convert(
    labels: Annotated[
        list[Path],
        typer.Argument(help="Label volumes, also of 3D Slicer, or folders of them."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    formats: Formats = "seg.nrrd",
    series: Annotated[
        Path | None, typer.Option(help="The DICOM series on which the labels lie: folder or zip.")
    ] = None,
    ct: Annotated[
        Path | None,
        typer.Option(help="The scan of the labels, for html, or the folder of scans of several."),
    ] = None,
    number: Annotated[
        str | None, typer.Option(help="Of the series, if there are several: 3, 3.2, or UID.")
    ] = None,
    repair: Repair = False,
    label: Annotated[
        list[str] | None, typer.Option(help="Name of a value, such as '1=left kidney'.")
    ] = None,
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
    from kidseg.convert import convert
    from kidseg.io import ReadOptions
    from kidseg.measure.measuring import Request
    from kidseg.measure.person import Patient

    convert_one = partial(
        convert,
        out=out,
        formats=format_names(formats),
        series=series,
        options=ReadOptions(series=number, repair=repair, values="any"),
        names=parse_names(label or ()),
        known=Request(
            person=Patient(height_cm=height, weight_kg=weight, age_years=age, sex=sex),
            entered=tuple(entered or ()),
        ),
        overwrite=overwrite,
    )
    if is_several(labels):
        facts = {"--height": height, "--weight": weight, "--age": age, "--sex": sex}
        one_only({"--series": series, **facts, "--entered": entered})
        _convert_all(labels, ct, convert_one, dry_run=dry_run, as_json=as_json, quiet=quiet)
        return
    made = convert_one(labels[0], ct=ct, dry_run=dry_run)
    if dry_run:
        text = "\n".join(["Would write:", *made["outputs"]])
        print_result({"would_convert": made}, text, as_json, quiet)
        return
    print_result(made, conversion_text(made, out), as_json, quiet)


def _convert_all(
    labels: Sequence[Path],
    ct: Path | None,
    convert_one: Callable[..., dict[str, Any]],
    *,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert several label files; what is wrong with the call is said before any is read."""
    from kidseg.cases.label_files import attempt_each, find_label_files

    files = find_label_files(labels)
    scans = scans_of(files, ct)

    def attempt(path: Path, dry: bool) -> dict[str, Any]:
        return convert_one(path, ct=scans[path], dry_run=dry)

    _, refused = attempt_each(files, partial(attempt, dry=True))
    if wrong := [error for _, error in refused if isinstance(error, UsageError)]:
        raise wrong[0]
    with show_progress("label files", quiet or as_json) as advance:
        made, failed = attempt_each(files, partial(attempt, dry=dry_run), advance)
    rows = [
        [one["name"], str(len(one["outputs"])), str(len(one.get("warnings", ())))]
        for one in made.values()
    ]
    lines = text_table(["case", "files", "warnings"], rows) if rows else []
    done = {"would_convert" if dry_run else "converted": list(made.values())}
    end_of_several(done, lines, failed, total=len(files), as_json=as_json, quiet=quiet)


def conversion_text(made: Mapping[str, Any], out: Path) -> str:
    """What was written, and what is to be known of it."""
    names = ", ".join(f"{number} {name}" for number, name in made["labels"].items())
    lines = wrapped(f"Wrote {', '.join(made['outputs'])} into {out}. Labels: {names}.")
    for name, surface in made.get("surfaces", {}).items():
        lines += wrapped(
            f"Surface of {name}: {surface['volume_ml']:.2f} ml, {surface['change']:+.2%} from the"
            f" voxels ({surface['voxels_ml']:.2f} ml)."
        )
    for entry in made["warnings"]:
        lines += wrapped(f"warning: {Finding(**entry)}")
    return "\n".join([*lines, *wrapped(made["intended_use"])])
