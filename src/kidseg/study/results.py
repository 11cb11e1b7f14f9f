"""The results of a study: scores per method and seed, averages over seeds, time and memory.

The variation between patients and that between seeds are reported separately. Each patient's
figures are first averaged over the seeds, so that means, SD and paired tests count each patient
once, independent of the number of seeds. The spread of the seeds' means is reported as well.
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

__all__ = ["Scores", "average", "gather", "method_figures", "spread", "write_average"]


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
    averaged = []
    for key, first in tables[0].items():
        rows = [table[key] for table in tables]
        figures: dict[str, float | None] = {}
        for metric in METRICS:
            known = [value for row in rows if (value := row.figures[metric]) is not None]
            figures[metric] = float(np.mean(known)) if known else None
        predicted_ml = float(np.mean([row.predicted_ml for row in rows]))
        averaged.append(replace(first, predicted_ml=predicted_ml, figures=figures))
    return tuple(averaged)


def write_average(runs: Sequence[StudyRun], tested: Partition, out: Path) -> Mapping[str, Any]:
    """Average an arm's runs over the seeds into a folder for `compare`; returns the summary."""
    rows = average([read_run(run.scores(tested)).rows for run in runs])
    summary = {
        **summarise(rows, tested.protocol),
        "averaged_over_seeds": [run.seed for run in runs],
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
            "dice": _dice_of(run, design.main),
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
        "rules": {
            "dice": "each patient's mean over the seeds; then mean and sample SD over patients",
            "hd95": "as Dice; undefined, and left out, where prediction or reference is empty",
            "between_seeds": "mean and sample SD over the seeds of a seed's mean over patients",
            "comparisons": "of these averages, paired by patient (see compared/)",
            "seconds": "mean and sample SD over the seeds. Training by stage: 'prepare' is reading "
            "and planning, 'set-up' everything outside the stages (start of the program, "
            "registration of the training patients), by the clock stated above. Process: wall time "
            "from start to end, unless it was interrupted. Segmentation: wall time from reading a "
            "scan to writing its labels",
            "memory": "peak of the process, including libraries, mean and sample SD over the seeds",
            "parameters": "of all networks of the method, those that few scans need included",
        },
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
        own = [_dice_of(run, scores.tested) for run in runs if run.arm.name == arm.name]
        methods[arm.name] = _scores(own, scores.averages.get(arm.name))
    return {
        "data": scores.tested.as_dict(),
        "methods": methods,
        "comparisons": scores.comparisons,
    }


def _dice_of(run: StudyRun, tested: Partition) -> dict[str, Any]:
    """Dice of a run by structure, over the patients."""
    structures = read_run(run.scores(tested)).summary["structures"]
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
