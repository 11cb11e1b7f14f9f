"""The command `study`, which compares methods on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kidseg.cli.options import AsJson, Device, DryRun, Quiet, Seed, argument, option
from kidseg.cli.stopping import stoppable
from kidseg.cli.terminal import print_result
from kidseg.errors import UsageError
from kidseg.table import wrapped

if TYPE_CHECKING:
    from kidseg.study import Design

__all__ = ["study"]


def study(
    file: Annotated[
        Path | None, argument(help="The study: methods, data set, seeds (TOML).")
    ] = None,
    out: Annotated[
        Path | None, option("--out", "-o", help="Folder of the study, created or resumed.")
    ] = None,
    show_example: Annotated[
        bool,
        option("--example", help="Print an example of the file (or write it to FILE), and stop."),
    ] = False,
    dataset: Annotated[
        Path | None, option(help="A data set, instead of the one in the file.")
    ] = None,
    other: Annotated[
        list[str] | None,
        option(help="NAME=FOLDER: another data set of the study. Repeatable."),
    ] = None,
    device: Device = "auto",
    jobs: Annotated[
        int, option("--jobs", "-j", min=1, help="Concurrent runs; they slow each other down.")
    ] = 1,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train, test and compare methods on a data set. Run again to continue a stopped study.

    Example: kidseg study study.toml -o study
    """
    if show_example:
        _show_example(file, out, as_json, quiet)
        return
    if file is None or out is None:
        missing = "the study's file" if file is None else "the output folder, --out"
        raise UsageError(
            f"{missing} is missing",
            next_step="Write a file with: kidseg study --example > study.toml; then: kidseg study "
            "study.toml -o study",
            code="usage",
        )
    from kidseg.study import design, study

    others = _named_folders(other or [])
    if dry_run:
        _show_plan(design(file, dataset=dataset, others=others), out, as_json, quiet)
        return

    def progress(run: str, step: str, done: int, total: int) -> None:
        if not (quiet or as_json):
            typer.echo(f"[{done}/{total}] {run}: {step or 'ended'}", err=True)

    with stoppable(lambda: _kept(out)):
        result: dict[str, Any] = study(
            file,
            out,
            dataset=dataset,
            others=others,
            device=device,
            jobs=jobs,
            seed=seed,
            progress=progress,
        )
    print_result(result, (out / "study.md").read_text(encoding="utf-8"), as_json, quiet)


def _kept(out: Path) -> str:
    """What is kept of a study that was stopped, and the next step."""
    saved = ("state-*.safetensors", "model.safetensors")
    has_trained = any(any(out.glob(f"runs/*/{name}")) for name in saved)
    states = "their states are saved" if has_trained else "nothing was trained yet"
    return f"Its processes have ended; {states}. To go on, run the same command again."


def _named_folders(texts: Sequence[str]) -> dict[str, Path]:
    """{name: folder} of options NAME=FOLDER."""
    folders = {}
    for text in texts:
        name, found, folder = text.partition("=")
        if not (name and found and folder):
            raise UsageError(
                f"'{text}' is not NAME=FOLDER",
                next_step="Write it as --other NAME=FOLDER, with a name in 'others' of the file.",
                code="usage",
            )
        folders[name] = Path(folder)
    return folders


def _show_plan(plan: Design, out: Path, as_json: bool, quiet: bool) -> None:
    """Print the runs of a study and the parts of its data sets."""
    from kidseg.study import study_runs

    runs = study_runs(plan, out)
    for run in runs:
        run.check()
    listed = [{"run": run.name, "state": run.state} for run in runs]
    lines = [f"{run['run']}: {run['state']}" for run in listed]
    for one in plan.partitions:
        for part in ("training", "validation", "test"):
            cases = getattr(one, part)
            title = f"{one.name} {part}".lstrip()
            lines += wrapped(
                f"{title}, {one.n_patients(cases)} patients: {', '.join(cases)}", indent="  "
            )
    result = {
        "data": plan.main.as_dict(),
        "others": {one.name: one.as_dict() for one in plan.others},
        "runs": listed,
    }
    print_result(result, "\n".join(lines), as_json, quiet)


def _show_example(file: Path | None, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Print an example, or write it to the file if one is named."""
    from kidseg.study.example import EXAMPLE, example

    text = example()
    if file is not None:
        from kidseg.io.atomic import write_text

        if file.is_file():
            raise UsageError(
                "the file already exists",
                path=file,
                next_step="Choose another name, or delete it first.",
                code="output-exists",
            )
        write_text(file, text)
        text = f"{file}\nNext: kidseg study {file} -o {out or 'study'}"
    result = {"file": None if file is None else str(file), "settings": asdict(EXAMPLE)}
    print_result(result, text.rstrip("\n"), as_json, quiet)
