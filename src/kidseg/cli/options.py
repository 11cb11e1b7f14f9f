"""Options that several commands share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from kidseg.registry import METHODS, presets

__all__ = [
    "CASES",
    "READING",
    "RUNNING",
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
    "Label",
    "Method",
    "Models",
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
    "argument",
    "format_names",
    "option",
]

# Paths that cannot be read: who reads one says so, as bad input, and of a batch in its place. Typer
# would end the whole command with a usage error.
argument = partial(typer.Argument, readable=False)
option = partial(typer.Option, readable=False)

# Groups of options in --help; a command's own options come before them.
CASES, READING, RUNNING = "Cases and their labels", "Reading scans", "Running"
_setting = partial(option, rich_help_panel="Settings")
_tuning = partial(option, rich_help_panel="Fine-tuning")
_cases = partial(option, rich_help_panel=CASES)
_reading = partial(option, rich_help_panel=READING)
_patient = partial(option, rich_help_panel="The patient")
_running = partial(option, rich_help_panel=RUNNING)
_general = partial(option, rich_help_panel="General")

AsJson = Annotated[
    bool, _general("--json", help="Print one JSON object on standard output, nothing else.")
]
Method = Annotated[
    str | None,
    _setting(
        help=f"One of {', '.join(METHODS)}; by default the model's, or the first.",
        autocompletion=lambda: list(METHODS),
    ),
]
Preset = Annotated[
    str | None,
    _setting(
        help=f"Named settings: one of {', '.join(presets())}.",
        autocompletion=lambda: list(presets()),
    ),
]
Config = Annotated[Path | None, _setting(help="TOML file with settings; see kidseg config.")]
Set = Annotated[
    list[str] | None, _setting("--set", help="A setting, key=value; see kidseg config.")
]
Start = Annotated[
    str | None,
    _tuning("--from", help="A model file or run folder to fine-tune; starter: kidseg's own."),
]
Tune = Annotated[
    str | None,
    _tuning(help="With --from: all, decoder, ends, or patterns of parameter names."),
]
Reference = Annotated[
    str | None,
    _cases(help="Training case to whose pose and size 'homogenized' brings all others."),
]
Cases = Annotated[list[str] | None, _cases("--case", help="Use only this case.")]
Validation = Annotated[list[str] | None, _cases("--validation", help="Validate on this case.")]
Quiet = Annotated[bool, _general("--quiet", "-q", help="Print neither progress nor summary.")]
Seed = Annotated[int, option("--seed", min=0, help="Same seed, same result.")]
TrainingSeed = Annotated[int | None, option("--seed", min=0, help="Same seed, same result [0].")]
DryRun = Annotated[bool, _general("--dry-run", help="Print what would be done, and stop.")]
Overwrite = Annotated[bool, _general("--overwrite", help="Replace existing output.")]
Jobs = Annotated[int, _running("--jobs", "-j", min=1, help="Processes to use.")]
ScanJobs = Annotated[
    int,
    _running("--jobs", "-j", min=1, help="Scans to segment at a time, each by a process."),
]
Cluster = Annotated[
    str | None,
    _running(
        help="Where these processes run: local, slurm, kubernetes, or the address of a dask"
        " scheduler; local if --jobs is more than 1."
    ),
]
Retries = Annotated[
    int, _running(min=0, help="Further attempts at a scan whose process was killed.")
]
TimeLimit = Annotated[
    float | None,
    _running(metavar="SECONDS", help="End scans that take longer; in processes of their own."),
]
Adapt = Annotated[
    Literal["none", "norm"] | None,
    option(
        help="norm: adapt the statistics of the batch norms to each scan; none; by default as the"
        " model says."
    ),
]
Models = Annotated[
    list[str] | None,
    option(
        "--model",
        "-m",
        help="A model file or run folder; else kidseg's starter. Several are averaged.",
    ),
]
Device = Annotated[str, _running(help="auto, cpu, cuda, cuda:N or mps.")]
Label = Annotated[
    list[str] | None, option(help="The name of a label, NUMBER=NAME, such as 1=kidney.")
]
Trust = Annotated[
    Literal["sform", "qform"] | None, _reading(help="NIfTI transform to use if they differ.")
]
Spacing = Annotated[
    tuple[float, float, float] | None,
    _reading(metavar="SLICE ROW COLUMN", help="Voxel size in mm, three numbers."),
]
Series = Annotated[str | None, _reading(help="DICOM series: number, 3.2, or UID.")]
Repair = Annotated[bool, _reading("--repair", help="Fix DICOM geometry where safe.")]
RoiRules = Annotated[
    Path | None,
    _cases(help="TOML file: which structures of DICOM annotations are which labels."),
]
Annotation = Annotated[
    str | None,
    _cases(
        help="Of several DICOM annotations of a series: UID, number, label, creator; '*' for any."
    ),
]
Formats = Annotated[
    str,
    option(
        help="Formats of the labels, such as nii,seg.nrrd: nii, nrrd, mha, seg.nrrd (3D Slicer),"
        " dicomseg, labelmap, rtstruct, sr (of a DICOM series), stl, obj, glb (surfaces), html (a"
        " report that opens in a browser); of a segmentation also entropy, a map of doubt."
    ),
]
Height = Annotated[float | None, _patient(help="Height in cm.")]
Weight = Annotated[float | None, _patient(help="Weight in kg.")]
Age = Annotated[float | None, _patient(help="Age in years.")]
PatientSex = Annotated[Literal["female", "male"] | None, _patient("--sex", help="Sex.")]
Entered = Annotated[
    list[str] | None,
    _patient(help="A fact for the criteria, NAME=yes or NAME=no, such as thrombus=no."),
]
Cyst = Annotated[
    Literal["tumour", "kidney", "background"] | None, _cases(help="What a cyst counts as.")
]


def format_names(formats: str) -> tuple[str, ...]:
    """The names in a list such as "nii, seg.nrrd"."""
    return tuple(name for part in formats.split(",") if (name := part.strip()))
