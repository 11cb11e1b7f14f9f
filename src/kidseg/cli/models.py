"""Commands for models: train, segment, evaluate, compare, info."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kidseg.cli.options import (
    AsJson,
    Cases,
    Config,
    Cyst,
    Device,
    Jobs,
    Method,
    Overwrite,
    Preset,
    Quiet,
    Repair,
    Seed,
    Series,
    Set,
    Spacing,
    Start,
    Trust,
    Tune,
    Validation,
)
from kidseg.cli.terminal import print_result, show_progress, show_stages
from kidseg.errors import KidsegError, KidsegWarning

__all__ = ["compare", "evaluate", "info", "segment", "train"]


def train(
    dataset: Annotated[Path, typer.Argument(help="A data set in any layout, or a store of one.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    method: Method = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    start: Start = None,
    tune: Tune = "all",
    cases: Cases = None,
    validation: Validation = None,
    seed: Seed = 0,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue a stopped run.")] = False,
    overwrite: Overwrite = False,
    jobs: Jobs = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a method on a data set or a store (`kidseg store`), and write a model file."""
    from kidseg.train import Setup, train

    setup = Setup(
        method=method,
        preset=preset,
        config_file=config,
        overrides=set_ or (),
        start=start,
        tune=tune,
        cases=cases,
        validation=validation,
        seed=seed,
        jobs=jobs,
    )
    with show_stages(quiet or as_json) as advance:
        summary = train(
            dataset,
            out,
            setup,
            resume=resume,
            overwrite=overwrite,
            device=device,
            progress=advance,
        )
    for finding in summary["findings"]:
        if (
            finding["code"] in ("label-not-understood", "no-kidney-label", "no-curves")
            and not quiet
        ):
            text = f"kidseg: {finding['path']}: {finding['cause']}. {finding['next_step']}"
            typer.echo(text, err=True)
    if summary["start"] is not None and not quiet:
        typer.echo(f"kidseg: {summary['start']['text']}", err=True)
    print_result(
        summary, f"{out / 'model.safetensors'}\n{json.dumps(summary, indent=2)}", as_json, quiet
    )


def segment(
    model: Annotated[Path, typer.Option("--model", "-m", help="A model file or a run folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    scans: Annotated[
        list[Path] | None,
        typer.Argument(help="Files, DICOM folders, folders of scans, data sets, '*' patterns."),
    ] = None,
    input_: Annotated[
        list[Path] | None, typer.Option("--input", "-i", help="The same as an option.")
    ] = None,
    formats: Annotated[str, typer.Option(help="Formats of the labels: nii,nrrd,mha.")] = "nii",
    figures: Annotated[
        bool, typer.Option("--figures", help="Also draw the steps for each scan.")
    ] = False,
    reference: Annotated[
        Path | None, typer.Option(help="Reference labels for figures: a file, or a data set.")
    ] = None,
    trust: Trust = None,
    spacing: Spacing = None,
    series: Series = None,
    repair: Repair = False,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave out scans that this model has segmented.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Segment kidneys and tumours in scans; the labels are on each scan's own voxels."""
    from kidseg.cli.volumes import ScanReport
    from kidseg.io import ReadOptions
    from kidseg.segment import segment

    options = ReadOptions(trust=trust, spacing_mm=spacing, series=series, repair=repair)
    bar = sys.stderr.isatty()
    with (
        warnings.catch_warnings(),
        show_progress("scans", quiet or as_json or not bar) as advance,
    ):
        if quiet:
            warnings.simplefilter("ignore", KidsegWarning)
        heard = ScanReport(advance, lines=not (quiet or as_json or bar))
        error = None
        try:
            heard.done = segment(
                [*(scans or ()), *(input_ or ())],
                model,
                out,
                formats=tuple(formats.split(",")),
                device=device,
                options=options,
                figures=figures,
                reference=reference,
                overwrite=overwrite,
                resume=resume,
                report=heard.report,
                progress=heard.progress,
            )
        except KidsegError as ended:
            if not heard.done and len(heard.failed) < 2:
                raise
            error = ended
        except KeyboardInterrupt:
            typer.echo(f"kidseg: {heard.interrupted(out)}", err=True)
            raise
    print_result(heard.as_dict(error), heard.text(out), as_json, quiet)
    if error is not None:
        typer.echo(f"kidseg: {error}", err=True)
        raise typer.Exit(error.exit_code)


def evaluate(
    pred: Annotated[Path, typer.Argument(help="Predicted labels: a folder or a file.")],
    ref: Annotated[Path, typer.Argument(help="Reference: a data set, a folder or a file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    protocol: Annotated[
        Literal["native", "kits19", "kits23"], typer.Option(help="Scoring protocol.")
    ] = "native",
    cyst: Cyst = None,
    missing: Annotated[
        Literal["error", "empty"], typer.Option(help="Treatment of cases without prediction.")
    ] = "error",
    cases: Annotated[list[str] | None, typer.Option("--case", help="Score only this case.")] = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score predicted labels: Dice, HD95, surface Dice and volume error per structure."""
    from kidseg.evaluate import evaluate

    with show_progress("cases", quiet or as_json) as advance:
        summary = evaluate(
            pred,
            ref,
            out,
            protocol=protocol,
            cyst=cyst,
            missing=missing,
            cases=cases,
            overwrite=overwrite,
            jobs=jobs,
            progress=advance,
        )
    print_result(summary, _scores_text(summary), as_json, quiet)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `kidseg evaluate` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare evaluated runs case by case: paired tests, intervals, strata by age."""
    from kidseg.compare import compare

    result = compare(runs, out, seed=seed, overwrite=overwrite)
    print_result(result, (out / "compare.md").read_text(encoding="utf-8"), as_json, quiet)


def info(
    model: Annotated[Path, typer.Argument(help="A model file (.safetensors).")],
    as_json: AsJson = False,
) -> None:
    """Show a model's method, input, training and validation."""
    from kidseg.header import read_header

    header = read_header(model)
    lines = [f"{key}: {json.dumps(value)}" for key, value in header.items()]
    print_result(header, "\n".join(lines), as_json, quiet=False)


def _scores_text(summary: dict[str, Any]) -> str:
    lines = [f"{summary['n_cases']} case(s), protocol {summary['protocol']}; mean (SD) of Dice:"]
    for name, figures in summary["structures"].items():
        dice = figures["dice"]
        if dice["mean"] is None:
            lines.append(f"  {name:14} not present in any case")
        else:
            spread = "" if dice["sd"] is None else f" ({dice['sd']:.4f})"
            lines.append(f"  {name:14} {dice['mean']:.4f}{spread}, n = {dice['n']}")
    return "\n".join(lines)
