"""The command convert: labels in other formats."""

from __future__ import annotations

from collections.abc import Mapping
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
from kidseg.cli.terminal import print_result
from kidseg.errors import Finding
from kidseg.table import wrapped

__all__ = ["convert"]


def convert(
    labels: Annotated[Path, typer.Argument(help="A label volume, or one of 3D Slicer.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    formats: Formats = "seg.nrrd",
    series: Annotated[
        Path | None, typer.Option(help="The DICOM series on which the labels lie: folder or zip.")
    ] = None,
    ct: Annotated[
        Path | None, typer.Option(help="The scan of the labels, for html; else the series.")
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

    Example: kidseg convert result/child_seg.nii.gz -o models --formats seg.nrrd,stl,glb
    """
    from kidseg.cases.label_names import parse_names
    from kidseg.convert import convert
    from kidseg.io import ReadOptions
    from kidseg.measure.measuring import Request
    from kidseg.measure.person import Patient

    made = convert(
        labels,
        out,
        formats=format_names(formats),
        series=series,
        ct=ct,
        options=ReadOptions(series=number, repair=repair, values="any"),
        names=parse_names(label or ()),
        known=Request(
            person=Patient(height_cm=height, weight_kg=weight, age_years=age, sex=sex),
            entered=tuple(entered or ()),
        ),
        overwrite=overwrite,
        dry_run=dry_run,
    )
    if dry_run:
        text = "\n".join(["Would write:", *made["outputs"]])
        print_result({"would_convert": made}, text, as_json, quiet)
        return
    print_result(made, conversion_text(made, out), as_json, quiet)


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
