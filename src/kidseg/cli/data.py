"""Commands for data: phantom, check, export, store, demo."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kidseg.cli.options import (
    READING,
    Annotation,
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
    RoiRules,
    Seed,
    Series,
    Set,
    Spacing,
    Trust,
    Validation,
    argument,
    option,
)
from kidseg.cli.progress import show_progress, show_stages
from kidseg.cli.stopping import stoppable
from kidseg.cli.summaries import counted_findings, preview_text, structures_lines
from kidseg.cli.terminal import print_result
from kidseg.errors import InputError, KidsegWarning, UsageError

if TYPE_CHECKING:
    from kidseg.check import Report

__all__ = ["check", "demo", "export", "phantom", "store"]


def phantom(
    out: Annotated[Path, argument(help="Folder to write; must not exist.")],
    patients: Annotated[int, option("--patients", "-n", min=1, help="Number of patients.")] = 10,
    seed: Seed = 0,
    size: Annotated[int | None, option(help="Rows and columns of a slice [512].")] = None,
    layout: Annotated[
        Literal["nnunet", "kits19", "dicom"], option(help="Layout of the data set.")
    ] = "nnunet",
    ages: Annotated[str | None, option(help="Ages in years, 0-90 at most [0-16].")] = None,
    config: Config = None,
    set_: Set = None,
    jobs: Jobs = 1,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Create digital patients: CT scans with kidneys, tumours and reference labels.

    Example: kidseg phantom patients --patients 40 --ages 0-6 --seed 1
    """
    from kidseg.config import PhantomConfig, dump, load

    settings = list(set_ or [])
    if size is not None:
        settings.append(f"size={size}")
    if ages is not None:
        low, high = _ages(ages)
        settings.append(f"ages_years=[{low}, {high}]")
    chosen = load(PhantomConfig, file=config, overrides=settings)
    if dry_run:
        from kidseg.phantom.writing import check_output

        check_output(out, overwrite)
        print_result(
            {"out": str(out), "patients": patients, "layout": layout, "config": asdict(chosen)},
            f"Would create {patients} patients in {out} ({layout} layout), seed {seed}:\n"
            + dump(chosen),
            as_json,
            quiet,
        )
        return
    from kidseg.phantom import write_patients

    kept = "Complete patients are kept. To make all, run the command again with --overwrite."
    what = "scans" if chosen.timepoints > 1 else "patients"
    with show_progress(what, quiet or as_json) as advance, stoppable(lambda: kept):
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
    print_result(summary, f"{patients} digital patient(s) in {out}.", as_json, quiet)


def check(
    path: Annotated[Path, argument(help="A data set's folder, or a scan.")],
    trust: Trust = None,
    spacing: Spacing = None,
    series: Series = None,
    repair: Repair = False,
    values: Annotated[
        Literal["ct", "any"],
        option(help="Kind of values of a single scan.", rich_help_panel=READING),
    ] = "ct",
    roi_rules: RoiRules = None,
    annotation: Annotation = None,
    jobs: Jobs = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check that a data set or scan is valid; lists all problems. Exit code 3 on errors.

    Example: kidseg check patients
    """
    from kidseg.cases.roi_rules import load_rules
    from kidseg.check import check
    from kidseg.io import ReadOptions

    options = ReadOptions(
        trust=trust, spacing_mm=spacing, series=series, repair=repair, values=values
    )
    with show_progress("cases", quiet or as_json) as advance:
        rules = load_rules(roi_rules, annotation)
        report = check(path, options=options, jobs=jobs, progress=advance, rules=rules)
    print_result(report.as_dict(), _findings_text(report), as_json, quiet)
    if not report.ok:
        raise typer.Exit(InputError.exit_code)


def export(
    dataset: Annotated[Path, argument(help="A data set in any layout.")],
    out: Annotated[Path, argument(help="Folder to write, named like Dataset042_Name.")],
    cyst: Cyst = None,
    roi_rules: RoiRules = None,
    annotation: Annotation = None,
    folds: Annotated[int, option(min=2, help="Number of cross-validation folds.")] = 5,
    seed: Seed = 0,
    jobs: Jobs = 2,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write a data set as an nnU-Net v2 raw folder, with splits by patient.

    Example: kidseg export patients Dataset042_Patients
    """
    from kidseg.cases import open_dataset
    from kidseg.cases.roi_rules import load_rules
    from kidseg.export import export_nnunet, planned_export
    from kidseg.splits import split

    data = open_dataset(dataset, load_rules(roi_rules, annotation))
    patients = {case.patient for case in data.cases}
    splits = split(data.cases, folds=folds, seed=seed) if len(patients) > 1 else ()
    if not splits:
        cause = f"{len(patients)} patient(s) give no folds: splits_final.json is not written"
        warnings.warn(cause, KidsegWarning, stacklevel=2)
    if dry_run:
        would = planned_export(data, out, cyst=cyst, splits=splits, overwrite=overwrite)
        text = (
            f"Would write {len(would['cases'])} case(s) into {out}, with {would['folds']} fold(s) "
            f"and the labels {', '.join(would['labels'].values())}. No voxel was read."
        )
        print_result({"would_export": would}, text, as_json, quiet)
        return
    with show_progress("cases", quiet or as_json) as advance:
        exported = export_nnunet(
            data,
            out,
            cyst=cyst,
            splits=splits,
            overwrite=overwrite,
            jobs=jobs,
            progress=advance,
        )
    print_result(exported.as_dict(), str(exported), as_json, quiet)


def store(
    dataset: Annotated[Path, argument(help="A data set in any layout.")],
    out: Annotated[Path, option("--out", "-o", help="Folder of the store.")],
    method: Method = None,
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    cases: Cases = None,
    validation: Validation = None,
    seed: Annotated[int, option("--seed", min=0, help="Seed of the split.")] = 0,
    full: Annotated[
        bool, option("--full", help="Keep the original pixels, for all methods.")
    ] = False,
    roi_rules: RoiRules = None,
    annotation: Annotation = None,
    jobs: Jobs = 1,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Preprocess a data set once; `kidseg train STORE -o RUN` then trains from the store.

    For several runs on the same cases. The split is that of the store. Training requires the same
    pixels, masks and `cohort.cyst`; from a store with --full any pixels and masks.
    `kidseg.train.train` trains from it with only torch, numpy, safetensors, pydantic and tomli_w
    (and scipy, if masks or coarser pixels must be computed), on machines without scan readers.

    Example: kidseg store patients -o store --method homogenized
    """
    from kidseg.cases.roi_rules import load_rules
    from kidseg.io.output import check_output_folder
    from kidseg.train import Setup, make_store, preview

    setup = Setup(
        method=method,
        preset=preset,
        config_file=config,
        overrides=set_ or (),
        cases=cases,
        validation=validation,
        seed=seed,
        jobs=jobs,
        rules=load_rules(roi_rules, annotation),
    )
    if dry_run:
        check_output_folder(out, "a store")
        would = preview(dataset, setup)
        print_result({"would_store": would}, preview_text(would, out), as_json, quiet)
        return
    kept = "Complete cases are kept. To finish the store, run the same command again."
    with show_stages(quiet or as_json) as advance, stoppable(lambda: kept):
        summary = make_store(dataset, out, setup, full=full, progress=advance)
    counts = ", ".join(f"{len(ids)} {part}" for part, ids in summary["cases"].items() if ids)
    text = f"{counts} case(s), {summary['megabytes']} MB, in {out}."
    if remarks := counted_findings(summary["findings"]):
        text += f"\nRemarks on the data, told by kidseg check: {remarks}."
    print_result(summary, text, as_json, quiet)


def demo(
    out: Annotated[Path, option("--out", "-o", help="Folder to write.")] = Path("demo"),
    patients: Annotated[int, option("--patients", "-n", min=5, help="Number of patients.")] = 20,
    held_out: Annotated[
        int, option("--held-out", min=2, help="Number of test patients among them.")
    ] = 4,
    set_: Annotated[
        list[str] | None, option("--set", help="One setting of the training, key=value.")
    ] = None,
    seed: Seed = 6,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on digital patients, test it on others, and show the result.

    Before, the starter model segments one of them at once, if this kidseg was built with it.

    Example: kidseg demo -o demo
    """
    from kidseg.demo import planned, run

    if dry_run:
        would = planned(
            out, patients=patients, held_out=held_out, overrides=set_ or (), overwrite=overwrite
        )
        text = (
            f"Would make {patients} digital patients in {out}, train on {patients - held_out} of "
            f"them (method {would['method']}, preset {would['preset']}), test on {held_out}, and "
            f"write {', '.join(would['outputs'])}."
        )
        print_result({"would_run": would}, text, as_json, quiet)
        return
    silent = quiet or as_json
    kept = (
        f"What was made in {out} stays, but a demo is not continued. To make it from the start, "
        "run the command again with --overwrite."
    )
    with show_stages(silent) as advance, stoppable(lambda: kept):
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
    print_result(result.as_dict(), str(result), as_json, quiet)


def _ages(text: str) -> tuple[float, float]:
    low, dash, high = text.partition("-")
    try:
        youngest = float(low)
        return youngest, float(high) if dash else youngest
    except ValueError:
        raise UsageError(
            f"--ages '{text}' is not a range",
            next_step="Write it as 0-16, in years.",
            code="bad-ages",
        ) from None


def _findings_text(report: Report) -> str:
    lines = [f"{finding.severity}: {finding}" for finding in report.findings]
    lines += structures_lines(report.facts)
    errors = sum(finding.severity == "error" for finding in report.findings)
    warnings = len(report.findings) - errors
    lines.append(
        f"{report.path}: {report.kind} with {report.n_cases} case(s): "
        f"{errors} error(s), {warnings} warning(s)."
    )
    return "\n".join(lines)
