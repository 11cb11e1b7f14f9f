"""Commands for models: train, segment, evaluate, compare, info."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kidseg.cli.options import (
    CASES,
    RUNNING,
    Adapt,
    Annotation,
    AsJson,
    Cases,
    Cluster,
    Config,
    Cyst,
    Device,
    DryRun,
    Formats,
    Jobs,
    Method,
    Models,
    Overwrite,
    Preset,
    Quiet,
    Reference,
    Repair,
    Retries,
    RoiRules,
    ScanJobs,
    Seed,
    Series,
    Set,
    Spacing,
    Start,
    TimeLimit,
    TrainingSeed,
    Trust,
    Tune,
    Validation,
    argument,
    format_names,
    option,
)
from kidseg.cli.progress import show_progress, show_stages
from kidseg.cli.stopping import how_to_resume, stoppable
from kidseg.cli.summaries import (
    planned_text,
    preview_text,
    scores_text,
    training_notes,
    training_text,
)
from kidseg.cli.terminal import exit_with, print_result, tell_missing_gpu
from kidseg.errors import BatchError, KidsegError, KidsegWarning

__all__ = ["compare", "evaluate", "info", "segment", "train"]


def train(
    dataset: Annotated[Path, argument(help="A data set in any layout, or a store of one.")],
    out: Annotated[Path, option("--out", "-o", help="Folder of the run.")],
    method: Method = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    start: Start = None,
    tune: Tune = None,
    reference: Reference = None,
    cases: Cases = None,
    validation: Validation = None,
    roi_rules: RoiRules = None,
    annotation: Annotation = None,
    seed: TrainingSeed = None,
    device: Device = "auto",
    jobs: Jobs = 1,
    resume: Annotated[
        bool, option("--resume", help="Continue a stopped run.", rich_help_panel=RUNNING)
    ] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a method on a data set or a store (`kidseg store`), and write a model file.

    Example: kidseg train patients -o run --method homogenized --preset demo
    """
    from kidseg.cases.roi_rules import load_rules
    from kidseg.model_file import find_model
    from kidseg.train import Setup, planned_setup, preview, train

    setup = Setup(
        method=method,
        preset=preset,
        config_file=config,
        overrides=set_ or (),
        start=None if start is None else find_model(start),
        tune=tune,
        reference=reference,
        cases=cases,
        validation=validation,
        seed=seed,
        jobs=jobs,
        rules=load_rules(roi_rules, annotation),
    )
    if dry_run:
        would = preview(dataset, planned_setup(out, setup, resume=resume, overwrite=overwrite))
        print_result({"would_train": would}, preview_text(would, out), as_json, quiet)
        return
    go_on = partial(how_to_resume, dataset, out, device)
    tell_missing_gpu(device, quiet or as_json)
    with show_stages(quiet or as_json) as advance, stoppable(go_on):
        summary = train(
            dataset,
            out,
            setup,
            resume=resume,
            overwrite=overwrite,
            device=device,
            progress=advance,
        )
    if not quiet:
        for line in training_notes(summary, out):
            typer.echo(f"kidseg: {line}", err=True)
    print_result(summary, training_text(summary, out), as_json, quiet)


def segment(
    out: Annotated[Path, option("--out", "-o", help="Folder to write.")],
    scans: Annotated[
        list[Path] | None,
        argument(help="Files, DICOM folders, folders of scans, data sets, '*' patterns."),
    ] = None,
    model: Models = None,
    input_: Annotated[
        list[Path] | None, option("--input", "-i", help="The same as an option.")
    ] = None,
    formats: Formats = "nii",
    figures: Annotated[
        bool, option("--figures", help="Also draw the steps for each scan.")
    ] = False,
    reference_labels: Annotated[
        Path | None, option(help="For figures: reference labels, a file or a data set.")
    ] = None,
    trust: Trust = None,
    spacing: Spacing = None,
    series: Series = None,
    repair: Repair = False,
    device: Device = "auto",
    adapt: Adapt = None,
    jobs: ScanJobs = 1,
    cluster: Cluster = None,
    retries: Retries = 1,
    time_limit: TimeLimit = None,
    resume: Annotated[
        bool,
        option(
            "--resume",
            help="Leave out scans that this model has segmented.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    progress: Annotated[
        bool, option("--progress", help="Say on standard error how far each scan is.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Segment kidneys and tumours in scans; the labels are on each scan's own voxels.

    Without -m, the starter model segments: trained on digital patients only; see kidseg info
    starter.

    Where there is more than one opinion (mirroring, several networks or models) volumes get a 90 %
    interval. The slices to review first are listed; --formats nii,entropy adds a map.

    A folder of hundreds: whatever fails in one scan, the others go on; summary.csv lists all.

    Example: kidseg segment scan.nii.gz -o result
    """
    from kidseg.cli.scan_report import tell_starter
    from kidseg.io import ReadOptions
    from kidseg.model_file import find_model
    from kidseg.segment import Workers, segment

    found = [find_model(each) for each in model or (None,)]
    options = ReadOptions(trust=trust, spacing_mm=spacing, series=series, repair=repair)
    workers = None
    if jobs > 1 or cluster is not None or time_limit is not None:
        workers = Workers(
            jobs=jobs, cluster=cluster or "local", retries=retries, limit_s=time_limit
        )
    run = partial(
        segment,
        [*(scans or ()), *(input_ or ())],
        found,
        out,
        formats=format_names(formats),
        device=device,
        adapt=adapt,
        options=options,
        figures=figures,
        reference=reference_labels,
        overwrite=overwrite,
        resume=resume,
        workers=workers,
    )
    tell_starter(found, quiet or as_json)
    tell_missing_gpu(device, quiet or as_json)
    if dry_run:
        would = run(dry_run=True)
        print_result({"would_segment": would}, planned_text(would), as_json, quiet)
        return
    _segmented(run, out, said=progress, as_json=as_json, quiet=quiet)


def _segmented(
    run: Callable[..., Any], out: Path, *, said: bool, as_json: bool, quiet: bool
) -> None:
    """Segment with progress, and print what was done, also of a batch with failures."""
    from kidseg.cli.scan_report import ScanReport

    bar = sys.stderr.isatty()
    with (
        warnings.catch_warnings(),
        show_stages(quiet or as_json or not bar) as advance,
    ):
        if quiet:
            warnings.simplefilter("ignore", KidsegWarning)
        lines = not (quiet or as_json or bar)
        heard = ScanReport(advance, out, lines=lines, steps=said and not bar)
        error = None
        try:
            with stoppable(heard.kept):
                heard.done = run(report=heard.report, progress=heard.progress, within=heard.within)
        except KidsegError as ended:
            if not heard.done and len(heard.failed) < 2:
                raise
            error = ended
    print_result(heard.as_dict(error), heard.text(), as_json, quiet)
    if error is not None:
        exit_with(error)


def evaluate(
    pred: Annotated[Path, argument(help="Predicted labels: a folder or a file.")],
    ref: Annotated[Path, argument(help="Reference: a data set, a folder or a file.")],
    out: Annotated[Path, option("--out", "-o", help="Folder to write.")],
    protocol: Annotated[
        Literal["native", "kits19", "kits23"], option(help="Scoring protocol.")
    ] = "native",
    cyst: Cyst = None,
    missing: Annotated[
        Literal["error", "empty"],
        option(help="Treatment of cases without prediction.", rich_help_panel=CASES),
    ] = "error",
    cases: Cases = None,
    images: Annotated[
        Path | None,
        option(help="The scans, for the pictures of cohort.html: a data set or a folder."),
    ] = None,
    roi_rules: RoiRules = None,
    annotation: Annotation = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score predicted labels: Dice, HD95, surface Dice and volume error per structure.

    Example: kidseg evaluate result patients -o scores
    """
    from kidseg.cases.roi_rules import load_rules
    from kidseg.evaluate import evaluate, read_run

    error = None
    with show_progress("cases", quiet or as_json) as advance:
        try:
            summary = evaluate(
                pred,
                ref,
                out,
                protocol=protocol,
                cyst=cyst,
                missing=missing,
                cases=cases,
                images=images,
                rules=load_rules(roi_rules, annotation),
                overwrite=overwrite,
                jobs=jobs,
                progress=advance,
            )
        except BatchError as ended:
            summary = dict(read_run(out).summary)
            error = ended
    print_result(summary, scores_text(summary), as_json, quiet)
    if error is not None:
        exit_with(error)


def compare(
    runs: Annotated[list[Path], argument(help="Folders that `kidseg evaluate` wrote.")],
    out: Annotated[Path, option("--out", "-o", help="Folder to write.")],
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare evaluated runs case by case: paired tests, intervals, strata by age.

    Example: kidseg compare scores_a scores_b -o compared
    """
    from kidseg.compare import compare

    result = compare(runs, out, seed=seed, overwrite=overwrite)
    print_result(result, (out / "compare.md").read_text(encoding="utf-8"), as_json, quiet)


def info(
    path: Annotated[str, argument(help="A model file, a run's folder, a store, or 'starter'.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what a model is: method, training, labels, input, Dice. Also tells what a store holds.

    Example: kidseg info run
    """
    from kidseg.cli.about import model_text, read_model, read_store, store_text
    from kidseg.model_file import STARTER

    if (store := None if path == STARTER else read_store(Path(path))) is not None:
        print_result(store, store_text(store), as_json, quiet)
        return
    model, header, summary = read_model(path)
    print_result(header, model_text(model, header, summary), as_json, quiet)
