"""Commands on data: made, checked, exported, made ready for training, shown."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kidseg.cli.options import (
    AsJson,
    Cases,
    Config,
    Cyst,
    DryRun,
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
    Trust,
    Validation,
)
from kidseg.cli.terminal import progress, say, stages
from kidseg.errors import InputError, UsageError

if TYPE_CHECKING:
    from kidseg.check import Report

__all__ = ["check", "demo", "export", "phantom", "store"]


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    patients: Annotated[int, typer.Option("--patients", "-n", min=1, help="How many.")] = 10,
    seed: Seed = 0,
    size: Annotated[int | None, typer.Option(help="Pixels along a side of a slice [512].")] = None,
    layout: Annotated[
        Literal["nnunet", "kits19", "dicom"], typer.Option(help="How to lay out the files.")
    ] = "nnunet",
    ages: Annotated[str | None, typer.Option(help="Youngest-oldest, in years [0-16].")] = None,
    config: Config = None,
    set_: Set = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make digital patients: CT scans of children with kidneys and tumours, and their truth."""
    from kidseg.config import PhantomConfig, dump, load

    settings = list(set_ or [])
    if size is not None:
        settings.append(f"size={size}")
    if ages is not None:
        low, high = _ages(ages)
        settings.append(f"ages_years=[{low}, {high}]")
    chosen = load(PhantomConfig, file=config, overrides=settings)
    if dry_run:
        say(
            {"out": str(out), "patients": patients, "layout": layout, "config": asdict(chosen)},
            f"Would make {patients} patients in {out} ({layout} layout), seed {seed}:\n"
            + dump(chosen),
            as_json,
            quiet,
        )
        return
    from kidseg.phantom import write_patients

    with progress("patients", quiet or as_json) as advance:
        summary = write_patients(
            out,
            chosen,
            patients=patients,
            seed=seed,
            layout=layout,
            jobs=jobs,
            overwrite=overwrite,
            progress=advance,
        )
    say(summary, f"{patients} digital patient(s) in {out}.", as_json, quiet)


def check(
    path: Annotated[Path, typer.Argument(help="A data set's folder, or a scan.")],
    trust: Trust = None,
    spacing: Spacing = None,
    series: Series = None,
    repair: Repair = False,
    values: Annotated[
        Literal["ct", "any"], typer.Option(help="What a single scan's values are.")
    ] = "ct",
    jobs: Jobs = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Is this data set or scan sound? Names every problem; exit code 3 if there is an error."""
    from kidseg.check import check as examine
    from kidseg.io import ReadOptions

    options = ReadOptions(
        trust=trust, spacing_mm=spacing, series=series, repair=repair, values=values
    )
    with progress("cases", quiet or as_json) as advance:
        report = examine(path, options=options, jobs=jobs, progress=advance)
    say(report.as_dict(), _findings_text(report), as_json, quiet)
    if not report.ok:
        raise typer.Exit(InputError.exit_code)


def export(
    dataset: Annotated[Path, typer.Argument(help="A data set in any layout.")],
    out: Annotated[Path, typer.Argument(help="Folder to write, named like Dataset042_Name.")],
    cyst: Cyst = None,
    folds: Annotated[int, typer.Option(min=2, help="Splits to write beside it.")] = 5,
    seed: Seed = 0,
    jobs: Jobs = 2,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a data set as an nnU-Net v2 raw folder, with splits by patient."""
    from kidseg.cases import open_dataset
    from kidseg.export import export_nnunet
    from kidseg.splits import split

    data = open_dataset(dataset)
    splits = split(data.cases, folds=folds, seed=seed)
    with progress("cases", quiet or as_json) as advance:
        exported = export_nnunet(
            data,
            out,
            cyst=cyst,
            splits=splits,
            overwrite=overwrite,
            jobs=jobs,
            progress=advance,
        )
    say(exported.as_dict(), str(exported), as_json, quiet)


def store(
    dataset: Annotated[Path, typer.Argument(help="A data set in any layout.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the store.")],
    method: Method = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    cases: Cases = None,
    validation: Validation = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the split.")] = 0,
    full: Annotated[
        bool, typer.Option("--full", help="Keep the scans' own pixels: for all methods.")
    ] = False,
    jobs: Jobs = 1,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a data set ready once; `kidseg train STORE -o RUN` then trains from it.

    For several runs on the same cases. The split is the store's; training asks for the same
    pixels, masks and `cohort.cyst`, or of a store with --full for any pixels and masks.
    `kidseg.train.train` trains from it with torch, numpy, safetensors, pydantic and tomli_w alone
    (scipy too, where it has to make masks or coarser pixels), on machines that cannot read scans.
    """
    from kidseg.train import Setup, make_store

    setup = Setup(
        method=method,
        preset=preset,
        config_file=config,
        overrides=set_ or (),
        cases=cases,
        validation=validation,
        seed=seed,
        jobs=jobs,
    )
    with stages(quiet or as_json) as advance:
        summary = make_store(dataset, out, setup, full=full, progress=advance)
    counts = {name: len(ids) for name, ids in summary["cases"].items()}
    text = (
        f"{counts['training']} training and {counts['validation']} validation case(s), "
        f"{summary['megabytes']} MB, in {out}."
    )
    say(summary, text, as_json, quiet)


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("demo"),
    patients: Annotated[int, typer.Option("--patients", "-n", min=5, help="How many.")] = 20,
    held_out: Annotated[
        int, typer.Option("--held-out", min=2, help="How many the model never sees.")
    ] = 4,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="One setting of the training, key=value.")
    ] = None,
    seed: Seed = 6,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on digital patients, try it on others, show what came of it."""
    from kidseg.demo import run

    silent = quiet or as_json
    with stages(silent) as advance:
        result = run(
            out,
            patients=patients,
            held_out=held_out,
            seed=seed,
            overrides=set_ or (),
            overwrite=overwrite,
            say=None if silent else typer.echo,
            progress=advance,
        )
    say(result.as_dict(), str(result), as_json, quiet)


def _ages(text: str) -> tuple[float, float]:
    low, dash, high = text.partition("-")
    try:
        youngest = float(low)
        return youngest, float(high) if dash else youngest
    except ValueError:
        raise UsageError(
            f"--ages '{text}' is no range", next_step="Write it as 0-16, in years.", code="bad-ages"
        ) from None


def _findings_text(report: Report) -> str:
    lines = [f"{finding.severity}: {finding}" for finding in report.findings]
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = len(report.findings) - errors
    lines.append(
        f"{report.path}: {report.kind} with {report.n_cases} case(s): "
        f"{errors} error(s), {warnings} warning(s)."
    )
    return "\n".join(lines)
