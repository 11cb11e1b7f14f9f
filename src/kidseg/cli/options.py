"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kidseg.registry import METHODS, presets

__all__ = [
    "Adapt",
    "Age",
    "Annotation",
    "AsJson",
    "Cases",
    "Cluster",
    "Config",
    "Cyst",
    "Device",
    "DryRun",
    "Entered",
    "Formats",
    "Height",
    "Jobs",
    "Method",
    "Overwrite",
    "PatientSex",
    "Preset",
    "Quiet",
    "Reference",
    "Repair",
    "Retries",
    "RoiRules",
    "ScanJobs",
    "Seed",
    "Series",
    "Set",
    "Spacing",
    "Start",
    "TimeLimit",
    "TrainingSeed",
    "Trust",
    "Tune",
    "Validation",
    "Weight",
    "format_names",
]

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
Method = Annotated[
    str | None,
    typer.Option(
        help=f"One of {', '.join(METHODS)}; by default the model's, or the first.",
        autocompletion=lambda: list(METHODS),
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help=f"Named settings: one of {', '.join(presets())}.",
        autocompletion=lambda: list(presets()),
    ),
]
Config = Annotated[Path | None, typer.Option(help="TOML file with settings; see kidseg config.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A setting, key=value; see kidseg config.")
]
Start = Annotated[
    str | None,
    typer.Option("--from", help="A model file or run folder to fine-tune; starter: kidseg's own."),
]
Tune = Annotated[
    str | None,
    typer.Option(help="With --from: all, decoder, ends, or patterns of parameter names."),
]
Reference = Annotated[
    str | None,
    typer.Option(help="Training case to whose pose and size 'homogenized' brings all others."),
]
Cases = Annotated[list[str] | None, typer.Option("--case", help="Use only this case.")]
Validation = Annotated[
    list[str] | None, typer.Option("--validation", help="Validate on this case.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print neither progress nor summary.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same result.")]
TrainingSeed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Same seed, same result [0].")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and stop.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes to use.")]
ScanJobs = Annotated[
    int,
    typer.Option("--jobs", "-j", min=1, help="Scans to segment at a time, each by a process."),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="Where these processes run: local, slurm, kubernetes, or the address of a dask"
        " scheduler; local if --jobs is more than 1."
    ),
]
Retries = Annotated[
    int, typer.Option(min=0, help="Further attempts at a scan whose process was killed.")
]
TimeLimit = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="End scans that take longer; in processes of their own."),
]
Adapt = Annotated[
    Literal["none", "norm"] | None,
    typer.Option(
        help="norm: adapt the statistics of the batch norms to each scan; none; by default as the"
        " model says."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Trust = Annotated[
    Literal["sform", "qform"] | None, typer.Option(help="NIfTI transform to use if they differ.")
]
Spacing = Annotated[
    tuple[float, float, float] | None,
    typer.Option(metavar="SLICE ROW COLUMN", help="Voxel size in mm, three numbers."),
]
Series = Annotated[str | None, typer.Option(help="DICOM series: number, 3.2, or UID.")]
Repair = Annotated[bool, typer.Option("--repair", help="Fix DICOM geometry where safe.")]
RoiRules = Annotated[
    Path | None,
    typer.Option(help="TOML file: which structures of DICOM annotations are which labels."),
]
Annotation = Annotated[
    str | None,
    typer.Option(
        help="Of several DICOM annotations of a series: UID, number, label, creator; '*' for any."
    ),
]
Formats = Annotated[
    str,
    typer.Option(
        help="Formats of the labels, such as nii,seg.nrrd: nii, nrrd, mha, seg.nrrd (3D Slicer),"
        " dicomseg, labelmap, rtstruct, sr (of a DICOM series), stl, obj, glb (surfaces), html (a"
        " report that opens in a browser); of a segmentation also entropy, a map of doubt."
    ),
]
Height = Annotated[float | None, typer.Option(help="Height in cm.")]
Weight = Annotated[float | None, typer.Option(help="Weight in kg.")]
Age = Annotated[float | None, typer.Option(help="Age in years.")]
PatientSex = Annotated[Literal["female", "male"] | None, typer.Option("--sex", help="Sex.")]
Entered = Annotated[
    list[str] | None,
    typer.Option(help="A fact for the criteria, NAME=yes or NAME=no, such as thrombus=no."),
]
Cyst = Annotated[
    Literal["tumour", "kidney", "background"] | None, typer.Option(help="What a cyst counts as.")
]


def format_names(formats: str) -> tuple[str, ...]:
    """The names in a list such as "nii, seg.nrrd"."""
    return tuple(name for part in formats.split(",") if (name := part.strip()))
