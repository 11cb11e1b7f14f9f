"""The results of a study: scores per method and seed, averages over seeds, time and memory.

The variation between patients and that between seeds are reported separately. Each patient's
figures are first averaged over its scans and the seeds, so that means, SD and paired tests count
each patient once, independent of the number of scans and seeds. The spread of the seeds' means is
reported as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kidseg.evaluate import METRICS, Row, read_run, summarise
from kidseg.evaluate.summary import COLUMNS, write_csv
from kidseg.io.atomic import write_json
from kidseg.provenance import provenance
from kidseg.study.design import Arm, Design
from kidseg.study.partition import Partition
from kidseg.study.runs import StudyRun

__all__ = [
    "Scores",
    "average",
    "dice_of",
    "gather",
    "method_figures",
    "of_patients",
    "spread",
    "write_average",
]

_RULES = {
    "dice": "each patient's mean over its scans and the seeds; then mean and sample SD "
    "over patients",
    "hd95": "as Dice, over the scans and seeds in which it is defined: left out where "
    "prediction or reference is empty, so that a structure that was missed counts in Dice "
    "alone",
    "between_seeds": "mean and sample SD over the seeds of a seed's mean over patients",
    "comparisons": "of these averages, paired by patient (see compared/). Where a patient "
    "lacks a structure and a method rightly found none, the pair is left out, also if the "
    "other found one: false structures count in the means alone",
    "seconds": "mean and sample SD over the seeds. Training by stage: 'prepare' is reading "
    "and planning, 'set-up' everything outside the stages (start of the program, "
    "registration of the training patients), by the clock stated above. Process: wall time "
    "from start to end, unless it was interrupted. Segmentation: wall time from reading a "
    "scan to writing its labels",
    "memory": "peak of the process, including libraries, mean and sample SD over the seeds",
    "parameters": "of all networks of the method, those that few scans need included",
}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of all arms on a data set.

    Attributes:
        tested: the data set.
        averages: {arm: summary of its average over seeds}, of arms with complete runs.
        compared: result of `compare` for these averages, if there are at least two.
    """

    tested: Partition
    averages: Mapping[str, Mapping[str, Any]]
    compared: Mapping[str, Any] | None

    @property
    def comparisons(self) -> list[Any]:
        """The comparisons over all patients."""
        found = [] if self.compared is None else self.compared["comparisons"]
        return [one for one in found if one["stratum"] == "all"]


def average(runs: Sequence[Sequence[Row]]) -> tuple[Row, ...]:
    """Average the rows of several runs per case and structure.

    A figure is the mean over the runs in which it is defined, None if there are none. So a false
    positive tumour of one seed in a healthy patient scores 0, although the other seeds correctly
    found nothing. Volumes are means over all runs.

    Raises:
        ValueError: no runs, or different cases or structures.
    """
    tables = [{(row.case, row.structure): row for row in rows} for rows in runs]
    if not tables or any(table.keys() != tables[0].keys() for table in tables):
        raise ValueError("runs must have the same cases and structures to be averaged")
    return tuple(_mean_row([table[key] for table in tables]) for key in tables[0])


def of_patients(rows: Sequence[Row]) -> tuple[Row, ...]:
    """One row for each patient and structure: the means over the patient's cases.

    A figure is the mean over the cases in which it is defined. A patient is as old as in the first
    case. A case without a patient is its own.
    """
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((row.patient or row.case, row.structure), []).append(row)
    return tuple(
        replace(
            _mean_row(own),
            case=patient,
            reference_ml=float(np.mean([row.reference_ml for row in own])),
        )
        for (patient, _), own in cases.items()
    )


def _mean_row(rows: Sequence[Row]) -> Row:
    """The first row, with the means of the predicted volumes and of what figures are defined."""
    figures: dict[str, float | None] = {}
    for metric in METRICS:
        known = [value for row in rows if (value := row.figures[metric]) is not None]
        figures[metric] = float(np.mean(known)) if known else None
    predicted_ml = float(np.mean([row.predicted_ml for row in rows]))
    return replace(rows[0], predicted_ml=predicted_ml, figures=figures)


def write_average(
    scores: Sequence[Path], tested: Partition, out: Path, seeds: Sequence[int]
) -> Mapping[str, Any]:
    """Average an arm's evaluations over the seeds into a folder for `compare`; gives the summary.

    The table has a row for each case; the means of the summary are over patients.

    Args:
        scores: folders of the evaluations.
        tested: data set.
        out: folder to write.
        seeds: of the evaluations.
    """
    rows = average([read_run(folder).rows for folder in scores])
    summary = {
        **summarise(of_patients(rows), tested.protocol),
        "n_cases": len({row.case for row in rows}),
        "averaged_over_seeds": list(seeds),
        **provenance(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").unlink(missing_ok=True)
    write_csv(out / "cases.csv", COLUMNS, (row.values() for row in rows), overwrite=True)
    write_json(out / "summary.json", summary, overwrite=True)
    return summary


def spread(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean (None without values), sample SD (n - 1; None for fewer than two) and n."""
    return {
        "mean": float(np.mean(values)) if len(values) else None,
        "sd": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "n": len(values),
    }


def gather(
    design: Design,
    runs: Sequence[StudyRun],
    failed: Mapping[str, str],
    scores: Sequence[Scores],
) -> dict[str, Any]:
    """The content of study.json.

    Args:
        design: of the study.
        runs: complete runs.
        failed: {run: cause of failure}.
        scores: on each data set, the study's own first.
    """
    main, *others = scores
    single = {
        run.name: {
            "method": run.arm.name,
            "seed": run.seed,
            "dice": dice_of(run.scores(design.main), design.main),
            **run.costs(),
        }
        for run in runs
    }
    methods = {}
    for arm in design.arms:
        own = [run.name for run in runs if run.arm.name == arm.name]
        methods[arm.name] = {
            "method": arm.method,
            "preset": arm.preset,
            "overrides": list(arm.overrides),
            "remarks": list(arm.remarks),
            **{key: value for key, value in _origin(arm).items() if value is not None},
            "seeds": [run.seed for run in runs if run.arm.name == arm.name],
            "failed": {
                name: cause
                for name, cause in failed.items()
                if name in {f"{arm.name}-{seed}" for seed in design.config.seeds}
            },
            **method_figures([single[name] for name in own], main.averages.get(arm.name)),
        }
    return {
        **provenance(),
        "data": design.main.as_dict(),
        "protocol": design.config.protocol,
        "seeds": list(design.config.seeds),
        "methods": methods,
        "runs": single,
        "comparisons": main.comparisons,
        "others": {one.tested.name: _on_other(design, runs, one) for one in others},
        "rules": _RULES,
    }


def _origin(arm: Arm) -> dict[str, Any]:
    """What an arm starts from and is trained on, where it is not from scratch on all patients."""
    model = None if arm.model is None else str(arm.model)
    tune = arm.tune or "all"
    return {
        "start": arm.start or model,
        "tune": None if arm.start is None and model is None else tune,
        "trained_on": arm.data or None,
        "patients": arm.patients,
    }


def method_figures(
    runs: Sequence[Mapping[str, Any]], averaged: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Figures of one method over its complete runs; empty if there are none.

    Args:
        runs: scores and `StudyRun.costs` of each.
        averaged: summary of their average over seeds.
    """
    return {**_scores([run["dice"] for run in runs], averaged), **_costs(runs)}


def _on_other(design: Design, runs: Sequence[StudyRun], scores: Scores) -> dict[str, Any]:
    """The scores of all arms on another data set, as plain data."""
    methods = {}
    for arm in design.arms:
        own = [
            dice_of(run.scores(scores.tested), scores.tested)
            for run in runs
            if run.arm.name == arm.name
        ]
        methods[arm.name] = _scores(own, scores.averages.get(arm.name))
    return {
        "data": scores.tested.as_dict(),
        "methods": methods,
        "comparisons": scores.comparisons,
    }


def dice_of(scores: Path, tested: Partition) -> dict[str, Any]:
    """Dice of an evaluation by structure, over the patients."""
    rows = of_patients(read_run(scores).rows)
    structures = summarise(rows, tested.protocol)["structures"]
    return {name: figures["dice"] for name, figures in structures.items()}


def _scores(
    runs: Sequence[Mapping[str, Any]], averaged: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Scores of one arm, averaged over its complete runs and between them; empty without runs."""
    if not runs or averaged is None:
        return {}
    structures = averaged["structures"]
    means = {
        name: [run[name]["mean"] for run in runs if run[name]["mean"] is not None]
        for name in structures
    }
    return {
        "dice": {name: figures["dice"] for name, figures in structures.items()},
        "hd95_mm": {name: figures["hd95_mm"] for name, figures in structures.items()},
        "between_seeds": {name: spread(values) for name, values in means.items()},
    }


def _costs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Time and memory of one arm over its complete runs; empty without runs."""
    if not runs:
        return {}
    stages = list(dict.fromkeys(name for run in runs for name in run["training_seconds"]))
    memory = list(dict.fromkeys(name for run in runs for name in run["training_peak_memory_mb"]))
    once = [run for run in runs if run["training_attempts"] == 1]
    return {
        "training_seconds": {
            **{
                stage: spread([run["training_seconds"].get(stage, 0.0) for run in runs])
                for stage in stages
            },
            "set-up": spread(
                [s for run in once if (s := run["training_set_up_seconds"]) is not None]
            ),
            "whole process": spread([run["training_process_seconds"] for run in once]),
        },
        "training_peak_memory_mb": {
            name: spread([run["training_peak_memory_mb"].get(name, 0.0) for run in runs])
            for name in memory
        },
        "segmentation_seconds_per_scan": spread(
            [run["segmentation_seconds_per_scan"] for run in runs]
        ),
        "segmentation_peak_memory_mb": spread([run["segmentation_peak_memory_mb"] for run in runs]),
        "parameters": runs[0]["parameters"],
    }
