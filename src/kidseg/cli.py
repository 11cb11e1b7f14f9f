"""The command line, thin: options in, one function called, its result said."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from kidseg.errors import InputError, KidsegError, ResourceError, UsageError

if TYPE_CHECKING:
    from kidseg.check import Report

__all__ = ["app", "main"]

RESEARCH_ONLY = "For research use only. Not a medical device."
_INTERRUPTED = 130

app = typer.Typer(
    name="kidseg",
    help=f"Kidneys and renal tumours in CT, of children first. {RESEARCH_ONLY}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same result.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and stop.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is at OUT.")]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes to use.")]


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    patients: Annotated[int, typer.Option("--patients", "-n", min=1, help="How many.")] = 10,
    seed: Seed = 0,
    size: Annotated[int | None, typer.Option(help="Pixels along a side of a slice [512].")] = None,
    layout: Annotated[
        Literal["nnunet", "kits19", "dicom"], typer.Option(help="How to lay out the files.")
    ] = "nnunet",
    ages: Annotated[str | None, typer.Option(help="Youngest-oldest, in years [0-16].")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="One setting, key=value.")] = None,
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
        _say(
            {"out": str(out), "patients": patients, "layout": layout, "config": dump(chosen)},
            f"Would make {patients} patients in {out} ({layout} layout), seed {seed}:\n"
            + dump(chosen),
            as_json,
            quiet,
        )
        return
    from kidseg.phantom import write_patients

    with _progress("patients", quiet or as_json) as advance:
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
    _say(summary, f"{patients} digital patients in {out}.", as_json, quiet)


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="A data set's folder, or a scan.")],
    trust: Annotated[
        Literal["sform", "qform"] | None, typer.Option(help="Which NIfTI position to believe.")
    ] = None,
    spacing: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Voxel size (slice row column), mm.")
    ] = None,
    series: Annotated[str | None, typer.Option(help="DICOM series: its UID or number.")] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend DICOM geometry where safe.")
    ] = False,
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
    with _progress("cases", quiet or as_json) as advance:
        report = examine(path, options=options, jobs=jobs, progress=advance)
    _say(report.as_dict(), _findings_text(report), as_json, quiet)
    if not report.ok:
        raise typer.Exit(InputError.exit_code)


@app.command()
def evaluate(
    pred: Annotated[Path, typer.Argument(help="Predicted labels: a folder or a file.")],
    ref: Annotated[Path, typer.Argument(help="Reference: a data set, a folder or a file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    protocol: Annotated[
        Literal["native", "kits19", "kits23"], typer.Option(help="Whose rules to score by.")
    ] = "native",
    cyst: Annotated[
        Literal["tumour", "kidney", "background"] | None,
        typer.Option(help="What a cyst counts as."),
    ] = None,
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

    with _progress("cases", quiet or as_json) as advance:
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
    _say(summary, _scores_text(summary), as_json, quiet)


@app.command()
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
    _say(result, (out / "compare.md").read_text(encoding="utf-8"), as_json, quiet)


@app.command()
def info(
    model: Annotated[Path, typer.Argument(help="A model file (.safetensors).")],
    as_json: AsJson = False,
) -> None:
    """What a model is, what it takes, how it was trained and measured."""
    from kidseg.header import read_header

    header = read_header(model)
    lines = [f"{key}: {json.dumps(value)}" for key, value in header.items()]
    _say(header, "\n".join(lines), as_json, quiet=False)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("demo"),
    patients: Annotated[int, typer.Option("--patients", "-n", min=2, help="How many.")] = 8,
    seed: Seed = 6,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make digital patients, check them, normalise their pose and size, draw the result."""
    from kidseg.demo import run

    with _progress("steps", quiet or as_json) as advance:
        result = run(out, patients=patients, seed=seed, overwrite=overwrite, progress=advance)
    _say(result.as_dict(), str(result), as_json, quiet)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(installed("kidseg"))
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 done, 2 usage, 3 bad input, 5 resources, 130 interrupted, ...

    The other codes stand on the classes in `kidseg.errors`. With --json an error is one JSON object
    too, {"error": {"code", "path", "cause", "next_step"}}.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    signal.signal(signal.SIGTERM, _terminate)
    # Where other work shares the cores, threads that spin while they wait make a run ten times
    # slower. To be set before torch starts its threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(arguments)
    except KidsegError as error:
        _refuse(error, "--json" in arguments)
    except MemoryError as error:
        _refuse(_out_of_memory(error), "--json" in arguments)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _refuse(_disk_full(error), "--json" in arguments)
    sys.exit(0)


def _terminate(number: int, frame: object) -> NoReturn:
    """Leave by an exception, so that temporary files go and nothing is half written."""
    raise KeyboardInterrupt


def _refuse(error: KidsegError, as_json: bool) -> NoReturn:
    finding = error.as_finding()
    if as_json:
        typer.echo(json.dumps({"error": finding.as_dict()}))
    typer.echo(f"kidseg: {error}", err=True)
    sys.exit(error.exit_code)


def _out_of_memory(error: MemoryError) -> ResourceError:
    return ResourceError(
        f"not enough memory: {error}" if str(error) else "not enough memory",
        next_step="Use fewer --jobs or a larger machine.",
        code="out-of-memory",
    )


def _disk_full(error: OSError) -> ResourceError:
    return ResourceError(
        "the disk is full",
        path=error.filename,
        next_step="Free some space and run again with --overwrite.",
        code="disk-full",
    )


def _say(result: dict[str, Any], text: str, as_json: bool, quiet: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
    elif not quiet:
        typer.echo(text)


@contextmanager
def _progress(what: str, silent: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal; call it with (done, total)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=console, disable=silent or not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


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
