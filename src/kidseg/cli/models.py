"""Commands on models: trained, used, measured, compared."""

from __future__ import annotations

import json
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
from kidseg.cli.terminal import progress, say, stages

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
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    overwrite: Overwrite = False,
    jobs: Jobs = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a method on a data set, or on a store of it (`kidseg store`); gives a model file."""
    from kidseg.train import Setup
    from kidseg.train import train as fit

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
    with stages(quiet or as_json) as advance:
        summary = fit(
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
    say(summary, f"{out / 'model.safetensors'}\n{json.dumps(summary, indent=2)}", as_json, quiet)


def segment(
    scans: Annotated[list[Path], typer.Argument(help="Scans: files or DICOM folders.")],
    model: Annotated[Path, typer.Option("--model", "-m", help="A model file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    formats: Annotated[str, typer.Option(help="Of the labels: nii,nrrd,mha.")] = "nii",
    figures: Annotated[
        bool, typer.Option("--figures", help="Draw the steps of each scan, too.")
    ] = False,
    reference: Annotated[
        Path | None, typer.Option(help="Labels to show there: a file, or a data set.")
    ] = None,
    trust: Trust = None,
    spacing: Spacing = None,
    series: Series = None,
    repair: Repair = False,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Find kidneys and tumours in scans; labels come out on each scan's own voxels."""
    from kidseg.io import ReadOptions
    from kidseg.segment import segment as find

    options = ReadOptions(trust=trust, spacing_mm=spacing, series=series, repair=repair)
    with progress("scans", quiet or as_json) as advance:
        results = find(
            scans,
            model,
            out,
            formats=tuple(formats.split(",")),
            device=device,
            options=options,
            figures=figures,
            reference=reference,
            overwrite=overwrite,
            progress=advance,
        )
    lines = [f"{len(results)} scan(s) segmented in {out}."]
    for result in results:
        lines += [
            f"{result['name']}: {finding['cause']}. {finding['next_step']}"
            for finding in result["warnings"]
            if finding["code"] in ("outside-training-range", "no-figure")
        ]
    say({"results": results}, "\n".join(lines), as_json, quiet)


def evaluate(
    pred: Annotated[Path, typer.Argument(help="Predicted labels: a folder or a file.")],
    ref: Annotated[Path, typer.Argument(help="Reference: a data set, a folder or a file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    protocol: Annotated[
        Literal["native", "kits19", "kits23"], typer.Option(help="Whose rules to score by.")
    ] = "native",
    cyst: Cyst = None,
    missing: Annotated[
        Literal["error", "empty"], typer.Option(help="A case without prediction.")
    ] = "error",
    cases: Annotated[list[str] | None, typer.Option("--case", help="Score only this case.")] = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score predicted labels: Dice, HD95, surface Dice and volume error per structure."""
    from kidseg.evaluate import evaluate as score

    with progress("cases", quiet or as_json) as advance:
        summary = score(
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
    say(summary, _scores_text(summary), as_json, quiet)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `kidseg evaluate` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare evaluated runs case by case: paired tests, intervals, strata by age."""
    from kidseg.compare import compare as pair

    result = pair(runs, out, seed=seed, overwrite=overwrite)
    say(result, (out / "compare.md").read_text(encoding="utf-8"), as_json, quiet)


def info(
    model: Annotated[Path, typer.Argument(help="A model file (.safetensors).")],
    as_json: AsJson = False,
) -> None:
    """What a model is, what it takes, how it was trained and measured."""
    from kidseg.header import read_header

    header = read_header(model)
    lines = [f"{key}: {json.dumps(value)}" for key, value in header.items()]
    say(header, "\n".join(lines), as_json, quiet=False)


def _scores_text(summary: dict[str, Any]) -> str:
    lines = [f"{summary['n_cases']} case(s), protocol {summary['protocol']}; mean (SD) of Dice:"]
    for name, figures in summary["structures"].items():
        dice = figures["dice"]
        if dice["mean"] is None:
            lines.append(f"  {name:14} no case has it")
        else:
            spread = "" if dice["sd"] is None else f" ({dice['sd']:.4f})"
            lines.append(f"  {name:14} {dice['mean']:.4f}{spread}, n = {dice['n']}")
    return "\n".join(lines)
