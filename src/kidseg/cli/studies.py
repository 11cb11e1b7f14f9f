"""The command `study`, which compares methods on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kidseg.cli.options import AsJson, Device, DryRun, Quiet, Seed
from kidseg.cli.stopping import stoppable
from kidseg.cli.terminal import print_result

__all__ = ["study"]


def study(
    file: Annotated[Path, typer.Argument(help="The study: methods, data set, seeds (TOML).")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the study, created or resumed.")
    ],
    dataset: Annotated[
        Path | None, typer.Option(help="A data set, instead of the one in the file.")
    ] = None,
    device: Device = "auto",
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Concurrent runs; they slow each other down.")
    ] = 1,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train, test and compare methods on a data set. Run again to continue a stopped study."""
    from kidseg.study import design, study, study_runs

    if dry_run:
        plan = design(file, dataset=dataset)
        runs = study_runs(plan, out, device=device)
        for run in runs:
            run.check()
        listed = [{"run": run.name, "state": run.state} for run in runs]
        lines = [f"{run['run']}: {run['state']}" for run in listed]
        for name in ("training", "validation", "test"):
            cases = getattr(plan, name)
            lines.append(f"{name}, {plan.n_patients(cases)} patients: {', '.join(cases)}")
        print_result({"data": plan.as_dict(), "runs": listed}, "\n".join(lines), as_json, quiet)
        return

    def progress(run: str, step: str, done: int, total: int) -> None:
        if not (quiet or as_json):
            typer.echo(f"[{done}/{total}] {run}: {step or 'ended'}", err=True)

    kept = "Its processes have ended, their states are saved. To go on, run the same command again."
    with stoppable(lambda: kept):
        result: dict[str, Any] = study(
            file, out, dataset=dataset, device=device, jobs=jobs, seed=seed, progress=progress
        )
    print_result(result, (out / "study.md").read_text(encoding="utf-8"), as_json, quiet)
