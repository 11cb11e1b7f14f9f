"""The command complete: a few slices of a scan are drawn, the model does the others."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

from kidseg.cli.options import (
    AsJson,
    Device,
    DryRun,
    Formats,
    Models,
    Overwrite,
    Quiet,
    Repair,
    Seed,
    Series,
    Spacing,
    Trust,
    argument,
    format_names,
    option,
)
from kidseg.cli.progress import show_stages
from kidseg.cli.scan_report import ScanReport, tell_starter
from kidseg.cli.summaries import planned_text
from kidseg.cli.terminal import print_result, tell_missing_gpu
from kidseg.errors import KidsegWarning

__all__ = ["complete"]


def complete(
    scan: Annotated[Path, argument(help="A scan: a file, DICOM folder or zip.")],
    drawn: Annotated[Path, argument(help="Its labels, drawn in some slices.")],
    out: Annotated[Path, option("--out", "-o", help="Folder to write.")],
    model: Models = None,
    nothing_beyond: Annotated[
        bool,
        option(
            "--nothing-beyond",
            help="There is nothing below the lowest and above the uppermost drawn slice.",
        ),
    ] = False,
    steps: Annotated[
        int | None, option(min=1, help="Steps of training, for each network of the model [100].")
    ] = None,
    formats: Formats = "nii",
    seed: Seed = 0,
    trust: Trust = None,
    spacing: Spacing = None,
    series: Series = None,
    repair: Repair = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    progress: Annotated[
        bool, option("--progress", help="Say on standard error how much is done, in per cent.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Complete labels that are drawn in a few slices of a scan: the model learns from them.

    The drawn slices stay as they are. A slice with any label counts as drawn, so draw all kidneys
    and tumours in it; one slice in six is a good start. The model is trained further on these
    slices, some minutes on a CPU, segments the others, and is not kept.

    Example: kidseg complete scan.nii.gz drawn.nii.gz -o result
    """
    from kidseg.complete import complete
    from kidseg.io import ReadOptions
    from kidseg.model_file import find_model

    steps_said = progress and not sys.stderr.isatty()
    found = [find_model(each) for each in model or (None,)]
    tell_starter(found, quiet or as_json)
    tell_missing_gpu(device, quiet or as_json)
    with warnings.catch_warnings(), show_stages(quiet or as_json or steps_said) as advance:
        if quiet:
            warnings.simplefilter("ignore", KidsegWarning)
        heard = ScanReport(advance, out, lines=False, steps=steps_said)
        entry: dict[str, Any] = complete(
            scan,
            drawn,
            out,
            model=found,
            nothing_beyond=nothing_beyond,
            steps=steps,
            seed=seed,
            formats=format_names(formats),
            device=device,
            options=ReadOptions(trust=trust, spacing_mm=spacing, series=series, repair=repair),
            overwrite=overwrite,
            dry_run=dry_run,
            progress=advance,
            within=heard.within,
        )
    if dry_run:
        print_result({"would_complete": entry}, planned_text([entry]), as_json, quiet)
        return
    heard.report(entry)
    known = entry["completed"]
    kept = f"{known['slices']} of {known['of']} slices were drawn, and stay as they are."
    print_result(entry, "\n".join([kept, heard.text()]), as_json, quiet)
