"""The results of a study as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kidseg.table import markdown_table, wrapped

__all__ = ["markdown"]


def markdown(study: Mapping[str, Any]) -> str:
    """The content of study.md, from the content of study.json."""
    methods, runs = study["methods"], study["runs"]
    done = {name: figures for name, figures in methods.items() if "dice" in figures}
    structures = list(next(iter(done.values()))["dice"]) if done else []
    lines = ["# Study", "", *_about(study), ""]
    lines += ["## Methods: mean (SD over patients), averaged over seeds", ""]
    lines += [*_methods(methods, structures), *_between_seeds(done)]
    lines += ["## Time and memory: mean (SD between seeds)", "", *_costs(done)]
    lines += ["## Paired differences of Dice (first minus second)", "", *_compared(study)]
    lines += ["## Each run: Dice, mean (SD over patients)", "", *_each_run(runs, structures)]
    for name, other in study["others"].items():
        lines += [f"# The same models on {name}", "", *wrapped(_parts(other["data"]) + "."), ""]
        lines += _dice_tables(other["methods"])
        lines += ["## Paired differences of Dice (first minus second)", "", *_compared(other)]
    for name, rule in study["rules"].items():
        lines += wrapped(f"- {name}: {rule}", indent="  ")
    return "\n".join(lines) + "\n"


def _dice_tables(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Dice over patients and between seeds."""
    done = {name: figures for name, figures in methods.items() if "dice" in figures}
    structures = list(next(iter(done.values()))["dice"]) if done else []
    rows = [
        [name, *(_score(figures, "dice", structure, 3) for structure in structures)]
        for name, figures in methods.items()
    ]
    lines = ["## Dice, averaged over seeds: mean (SD over patients)", ""]
    return [*lines, *markdown_table(["method", *structures], rows), *_between_seeds(done)]


def _between_seeds(done: Mapping[str, Mapping[str, Any]]) -> list[str]:
    structures = list(next(iter(done.values()))["dice"]) if done else []
    lines = ["## Dice between seeds: mean of the seeds' means (SD between seeds)", ""]
    return lines + markdown_table(
        ["method", *structures],
        [
            [name, *(_pair(figures["between_seeds"][s], 4) for s in structures)]
            for name, figures in done.items()
        ],
    )


def _methods(methods: Mapping[str, Mapping[str, Any]], structures: Sequence[str]) -> list[str]:
    """The overview: scores and costs of each method."""
    head = ["method", "seeds", *(f"Dice: {structure}" for structure in structures)]
    head += [f"HD95 mm: {structure}" for structure in structures]
    head += ["s per scan", "training MB", "segmentation MB", "parameters"]
    rows = []
    for name, figures in methods.items():
        row = [name, _seeds(figures)]
        row += [_score(figures, "dice", structure, 3) for structure in structures]
        row += [_score(figures, "hd95_mm", structure, 1) for structure in structures]
        rows.append([*row, *_summed_costs(figures)])
    return markdown_table(head, rows)


def _summed_costs(figures: Mapping[str, Any]) -> list[str]:
    """Time per scan, memory in training and segmentation, and parameters."""
    if "dice" not in figures:
        return ["-"] * 4
    count = figures["parameters"]
    return [
        f"{figures['segmentation_seconds_per_scan']['mean']:.2f}",
        f"{figures['training_peak_memory_mb']['process']['mean']:.0f}",
        f"{figures['segmentation_peak_memory_mb']['mean']:.0f}",
        "-" if count is None else f"{count / 1e6:.2f} M",
    ]


def _each_run(runs: Mapping[str, Mapping[str, Any]], structures: Sequence[str]) -> list[str]:
    by_length = sorted(runs.values(), key=lambda run: -len(run["training_seconds"]))
    stages = list(dict.fromkeys(stage for run in by_length for stage in run["training_seconds"]))
    trained = [stage for stage in stages if any(stage in r["training_epochs"] for r in by_length)]
    head = ["run", *structures, *(f"training s: {stage}" for stage in stages)]
    head += [f"epochs: {stage}" for stage in trained]
    rows = [
        [
            name,
            *(_pair(run["dice"][structure], 4) for structure in structures),
            *(_decimal(run["training_seconds"].get(stage)) for stage in stages),
            *(str(run["training_epochs"].get(stage, "-")) for stage in trained),
        ]
        for name, run in runs.items()
    ]
    return markdown_table(head, rows)


def _about(study: Mapping[str, Any]) -> list[str]:
    """Data set, conditions and warnings, before the tables."""
    lines = [f"{_parts(study['data'])}; {study['protocol']} protocol."]
    runs = study["runs"].values()
    for what, title in (
        ("device", "Device"),
        ("precision", "Precision"),
        ("jobs", "Runs at a time"),
        ("training_clock", "Clock of training stages and set-up"),
    ):
        found = sorted({str(run[what]) for run in runs})
        differ = " (runs differ: times are not comparable)" if len(found) > 1 else ""
        lines[0] += f" {title}: {' and '.join(found)}{differ}." if found else ""
    lines += _budgets(list(runs))
    if any(run["jobs"] > 1 for run in runs):
        lines.append("Several runs at a time shared the machine: times are under contention.")
    again = [name for name, run in study["runs"].items() if run["training_attempts"] > 1]
    if again:
        lines.append(
            f"Training was interrupted and resumed: {', '.join(again)}; set-up and whole process "
            "exclude these runs, and 'prepare' is that of their last attempt."
        )
    for figures in study["methods"].values():
        lines += [f"**Note**: {text}." for text in figures["remarks"]]
        lines += [f"**Failed: {name}**: {cause}" for name, cause in figures["failed"].items()]
    return "\n\n".join("\n".join(wrapped(line)) for line in lines).split("\n")


def _budgets(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The time that the settings give a whole training; by method, if it differs.

    Nothing if none has a limit as a whole; its stages may have limits of their own.
    """
    methods: dict[float | None, list[str]] = {}
    for run in runs:
        of_same = methods.setdefault(run["training_budget_s"], [])
        of_same += [] if run["method"] in of_same else [run["method"]]
    text = {s: "none" if s is None else f"{s:g} s" for s in methods}
    if len(methods) < 2:
        return [f"Budget of each training: {text[s]}." for s in methods if s is not None]
    listed = "; ".join(f"{text[s]} ({', '.join(own)})" for s, own in methods.items())
    return [f"Budgets of the trainings differ: {listed}."]


def _parts(data: Mapping[str, Any]) -> str:
    """A data set and the sizes of its parts."""
    parts = ", ".join(
        f"{part} {data[part]['patients']} patient(s) in {len(data[part]['cases'])} case(s)"
        for part in ("training", "validation", "test")
    )
    return f"{data['dataset']}: {parts}"


def _seeds(figures: Mapping[str, Any]) -> str:
    failed = f", {len(figures['failed'])} failed" if figures["failed"] else ""
    return f"{len(figures['seeds'])}{failed}"


def _score(figures: Mapping[str, Any], metric: str, structure: str, decimals: int) -> str:
    if "dice" not in figures:
        return "-"
    found = figures[metric][structure]
    empty = f", {found['n_empty']} empty" if metric == "dice" and found["n_empty"] else ""
    return f"{_pair(found, decimals)}, n {found['n']}{empty}"


def _costs(done: Mapping[str, Mapping[str, Any]]) -> list[str]:
    by_length = sorted(done.values(), key=lambda figures: -len(figures["training_seconds"]))
    stages = list(dict.fromkeys(s for figures in by_length for s in figures["training_seconds"]))
    stages.sort(key=lambda stage: (stage == "whole process", stage == "set-up"))
    device = any("device" in figures["training_peak_memory_mb"] for figures in done.values())
    rows = []
    for name, figures in done.items():
        seconds, memory = figures["training_seconds"], figures["training_peak_memory_mb"]
        cells = [_pair(seconds[stage], 1) if stage in seconds else "-" for stage in stages]
        cells.append(_pair(figures["segmentation_seconds_per_scan"], 2))
        cells.append(_pair(memory["process"], 0))
        cells += [_pair(memory["device"], 0) if "device" in memory else "-"] if device else []
        cells.append(_pair(figures["segmentation_peak_memory_mb"], 0))
        rows.append([name, *cells])
    return markdown_table(
        [
            "method",
            *(f"training s: {stage}" for stage in stages),
            "segmentation s per scan",
            "training peak MB",
            *(["on the GPU"] if device else []),
            "segmentation peak MB",
        ],
        rows,
    )


def _compared(study: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            f"{one['a']} - {one['b']}",
            one["structure"],
            str(one["n"]),
            f"{_number(one['mean_difference'])} [{_number(one['low'])}, {_number(one['high'])}]",
            f"{one['wins']}, {one['ties']}, {one['losses']}",
            _p(one["p"]),
            _p(one["p_holm"]),
        ]
        for one in study["comparisons"]
        if one["metric"] == "dice"
    ]
    if not rows:
        return ["Fewer than two methods to compare.", ""]
    head = ["methods", "structure", "n", "mean [95 %]", "wins, ties, losses", "p", "p (Holm)"]
    return markdown_table(head, rows, keys=2)


def _pair(figures: Mapping[str, Any], decimals: int) -> str:
    if figures["mean"] is None:
        return "-"
    sd = "-" if figures["sd"] is None else f"{figures['sd']:.{decimals}f}"
    return f"{figures['mean']:.{decimals}f} ({sd})"


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
