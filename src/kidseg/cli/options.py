"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

__all__ = [
    "AsJson",
    "Cyst",
    "Device",
    "DryRun",
    "Jobs",
    "Overwrite",
    "Quiet",
    "Repair",
    "Seed",
    "Series",
    "Spacing",
    "Trust",
]

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same result.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at OUT.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes to use.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Trust = Annotated[
    Literal["sform", "qform"] | None, typer.Option(help="Which NIfTI position to believe.")
]
Spacing = Annotated[
    tuple[float, float, float] | None, typer.Option(help="Voxel size (slice row column), mm.")
]
Series = Annotated[str | None, typer.Option(help="DICOM series: its UID or number.")]
Repair = Annotated[bool, typer.Option("--repair", help="Mend DICOM geometry where safe.")]
Cyst = Annotated[
    Literal["tumour", "kidney", "background"] | None, typer.Option(help="What a cyst counts as.")
]
