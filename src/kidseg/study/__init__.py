"""Compare methods on one data set: train, segment and evaluate each method with each seed.

Each data set is split once, by patient, into test, validation and training cases, the same for all
methods and seeds. A method is trained on the study's own data set or on one of the others, from
scratch or from the model of another method, and tested on the test cases of each. Training and
segmentation run in separate processes, so that their time and memory are measured separately.
Completed steps are not repeated; see `kidseg.study.runs`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from kidseg.compare import compare
from kidseg.compare.compare_page import comparison_page
from kidseg.config import dump
from kidseg.errors import BatchError, KidsegError, ResourceError, UsageError
from kidseg.evaluate.score_page import PAGE
from kidseg.evaluate.summary import prepare_output, read_run
from kidseg.io.atomic import write_json, write_text
from kidseg.io.output import check_output_folder
from kidseg.study.chart import draw
from kidseg.study.design import Arm, Design, design
from kidseg.study.example import example
from kidseg.study.page import markdown
from kidseg.study.partition import Partition
from kidseg.study.process import Launcher
from kidseg.study.results import Scores, gather, write_average
from kidseg.study.runs import StudyRun, folder_of

__all__ = ["Arm", "Design", "Partition", "StudyRun", "design", "example", "study", "study_runs"]

Progress = Callable[[str, str, int, int], None]
"""Called with (run, step that starts or "", runs done, total runs)."""


def study(
    file: Path,
    out: Path,
    *,
    dataset: Path | None = None,
    others: Mapping[str, Path] | None = None,
    device: str = "auto",
    jobs: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run or resume a study and write its tables.

    Writes into `out`: study.toml (resolved), runs/, labels/ and scores/ with a folder for each
    method and seed, averaged/ with one for each method, compared/ (paired statistics of these),
    logs/ (output of the processes), study.json, study.md, study.html and study.png; in others/, for
    each other data set, its labels/, scores/, averaged/ and compared/.

    Args:
        file: see `kidseg.config.StudyConfig`.
        out: folder of the study; created, or resumed if it exists.
        dataset: overrides the data set in the file.
        others: override other data sets in the file, by name.
        device: of training and segmentation.
        jobs: parallel runs. With several, times are measured under contention.
        seed: of the bootstrap in the comparison; training seeds are in the file.
        progress: called at each step.

    Returns:
        The content of study.json.

    Raises:
        UsageError: as `design`; "other-settings": a run in `out` has other settings or data. Raised
            before any work. "other-folder": `out` contains something else.
        InputError: as `design`.
        ResourceError: the disk is full.
        BatchError: "runs-failed": some runs failed; the tables contain the others.
    """
    check_output_folder(out, "a study")
    plan = design(file, dataset=dataset, others=others)
    runs = study_runs(plan, out, device=device, jobs=jobs)
    for run in runs:
        run.check()
    prepare_output(out, (), overwrite=True)
    write_text(out / "study.toml", dump(plan.resolved), overwrite=True)
    failed = _perform(runs, jobs, progress or (lambda *_: None))
    complete = [run for run in runs if run.name not in failed]
    result = _write(plan, complete, failed, out, seed)
    if failed:
        raise BatchError(
            f"{len(failed)} of {len(runs)} runs failed: "
            + "; ".join(f"{name}: {cause}" for name, cause in failed.items()),
            path=out,
            code="runs-failed",
            next_step="The other runs are in study.md. Run the study again to resume these.",
        )
    return result


def study_runs(
    plan: Design, out: Path, *, device: str = "auto", jobs: int = 1
) -> tuple[StudyRun, ...]:
    """The runs of a study, in order of execution.

    Raises:
        UsageError: "output-exists": `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(
            "is a file, not a folder",
            path=out,
            code="output-exists",
            next_step="Choose another name.",
        )
    return tuple(
        StudyRun(arm=arm, seed=seed, design=plan, out=out, device=device, jobs=jobs)
        for arm, seed in plan.runs
    )


def _perform(runs: Sequence[StudyRun], jobs: int, progress: Progress) -> dict[str, str]:
    """Execute all runs, `jobs` in parallel; returns {run: cause of failure}."""
    launcher = Launcher(threads=_threads(jobs))
    failed: dict[str, str] = {}
    futures: dict[str, Future[None]] = {}
    done = 0

    def perform(run: StudyRun) -> None:
        if run.first is not None:  # submitted before, so this waits for no run behind it
            _wait_for(run.first, futures)
        run.perform(launcher, lambda step: progress(run.name, step, done, len(runs)))

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        for run in runs:
            futures[run.name] = pool.submit(perform, run)
        names = {future: name for name, future in futures.items()}
        try:
            for future in as_completed(names):
                name = names[future]
                try:
                    future.result()
                except ResourceError:
                    raise
                except KidsegError as error:
                    failed[name] = str(error)
                done += 1
                progress(name, "", done, len(runs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            launcher.stop()
            raise
    return {run.name: failed[run.name] for run in runs if run.name in failed}


def _wait_for(first: StudyRun, futures: Mapping[str, Future[None]]) -> None:
    """Wait for the run whose model another starts from.

    Raises:
        KidsegError: "no-start": it failed.
    """
    error = futures[first.name].exception()
    if isinstance(error, KidsegError):
        raise KidsegError(
            f"it starts from {first.name}, which failed",
            path=first.run,
            code="no-start",
            next_step="Run the study again to resume both.",
        )
    if error is not None:
        raise error


def _threads(jobs: int) -> int | None:
    """Threads per process: its share of the cores, since more would slow each other down."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, (os.cpu_count() or 1) // jobs)


def _write(
    plan: Design, runs: Sequence[StudyRun], failed: dict[str, str], out: Path, seed: int
) -> dict[str, Any]:
    _remove_written(plan, out)
    scores = [_scores(plan, one, runs, out, seed) for one in plan.partitions]
    result = gather(plan, runs, failed, scores)
    if runs:
        draw(runs, out / "averaged", out / "study.png")
        write_text(out / "study.html", _page(plan, runs, out), overwrite=True)
    write_text(out / "study.md", markdown(result), overwrite=True)
    write_json(out / "study.json", result, overwrite=True)
    return result


def _page(plan: Design, runs: Sequence[StudyRun], out: Path) -> str:
    """The cases of the study's own data set with all methods, and the pages of the evaluations.

    Dice is averaged over seeds; the pictures are of each method's first run.
    """
    averages = {run.arm.name: read_run(out / "averaged" / run.arm.name) for run in runs}
    first: dict[str, Path] = {}
    for run in runs:
        first.setdefault(run.arm.name, run.scores(plan.main) / PAGE)
    more = {
        **{run.name: run.scores(one) / PAGE for run in runs for one in plan.partitions},
        "paired statistics": out / "compared" / "compare.html",
        "all tables": out / "study.md",
    }
    known = {name: path for name, path in more.items() if path.is_file() or path.suffix == ".md"}
    about = ["Dice is the mean over seeds; a picture is that of the first seed."]
    return comparison_page("Study", averages, first, out, about=about, more=known)


def _scores(
    plan: Design, tested: Partition, runs: Sequence[StudyRun], out: Path, seed: int
) -> Scores:
    """Average the scores on a data set over the seeds, and compare the methods."""
    folder = folder_of(out, tested)
    averages = {}
    for arm in plan.arms:
        if own := [run for run in runs if run.arm.name == arm.name]:
            averages[arm.name] = write_average(
                [run.scores(tested) for run in own],
                tested,
                folder / "averaged" / arm.name,
                [run.seed for run in own],
            )
    compared = None
    if len(averages) > 1:
        folders = [folder / "averaged" / name for name in averages]
        compared = compare(folders, folder / "compared", seed=seed, overwrite=True)
    return Scores(tested=tested, averages=averages, compared=compared)


def _remove_written(plan: Design, out: Path) -> None:
    """Remove results of an earlier call, which may have had more runs; keep all other files."""
    for name in ("study.json", "study.md", "study.png", "study.html"):
        (out / name).unlink(missing_ok=True)
    for one in plan.partitions:
        folder = folder_of(out, one)
        tables = [
            (folder / "compared", ("compare.json", "compare.csv", "compare.md", "compare.html")),
            *((each, ("summary.json", "cases.csv")) for each in (folder / "averaged").glob("*")),
            (folder / "averaged", ()),
        ]
        for table, names in tables:
            for name in names:
                (table / name).unlink(missing_ok=True)
            if table.is_dir() and not any(table.iterdir()):
                table.rmdir()
