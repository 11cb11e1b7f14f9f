"""Figure of a study: Dice per patient and method, and validation score over training time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from kidseg.evaluate import read_run
from kidseg.io.atomic import writing
from kidseg.report.annotation import plain_text
from kidseg.study.results import of_patients
from kidseg.study.run_files import read_curve
from kidseg.study.runs import StudyRun

__all__ = ["draw", "validation_curve"]

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")
"""Distinguishable with any colour vision. Source: Okabe and Ito, Color Universal Design, 2008."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_NOTE = "Dots: patients, mean over seeds; lines: mean over patients. For research use only."
# Stages whose score is that of a result.
_SEGMENTING = ("segment", "joint", "resunet", "resnet", "refine")
_JITTER = 0.22
_GOLDEN = 0.618034  # multiples of it, modulo 1, fill an interval evenly


def validation_curve(log: Path) -> tuple[list[float], list[float]]:
    """(seconds since the start of the first stage, validation score) of segmentation epochs.

    Earlier stages, such as pose, count in the seconds but have no segmentation to score.

    Raises:
        ModelError: as `read_curve`.
    """
    epochs = read_curve(log)
    stages = list(dict.fromkeys(stage for stage, _, _ in epochs))
    ends = {each: max(end for stage, end, _ in epochs if stage == each) for each in stages}
    before = {stage: sum(ends[s] for s in stages[:k]) for k, stage in enumerate(stages)}
    kept = [epoch for epoch in epochs if epoch[0] in _SEGMENTING]
    return (
        [before[stage] + seconds for stage, seconds, _ in kept],
        [score for _, _, score in kept],
    )


@plain_text()
def draw(runs: Sequence[StudyRun], averages: Path, path: Path) -> None:
    """Draw a panel per structure with a dot per patient (mean over seeds), and validation curves.

    Args:
        runs: complete runs.
        averages: folder with the average of each arm over seeds.
        path: a .png file; replaced.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = list(dict.fromkeys(run.arm.name for run in runs))
    colours = {arm: _COLOURS[k % len(_COLOURS)] for k, arm in enumerate(arms)}
    tables = {arm: read_run(averages / arm) for arm in arms}
    structures = list(tables[arms[0]].summary["structures"])
    size = (max(7.0, 3.4 * len(structures)), 7.4)
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, len(structures), height_ratios=(1.15, 1))
    panels = [figure.add_subplot(grid[0, k]) for k in range(len(structures))]
    for panel, structure in zip(panels, structures, strict=True):
        for place, arm in enumerate(arms):
            rows = of_patients([row for row in tables[arm].rows if row.structure == structure])
            dice = [row.figures["dice"] for row in rows]
            _dots(panel, place, dice, colours[arm], _MARKERS[place % len(_MARKERS)])
        panel.set_title(structure, fontsize=10)
        panel.set_xticks(range(len(arms)), arms, rotation=25, ha="right", fontsize=8)
        panel.set_xlim(-0.6, len(arms) - 0.4)
        panel.set_ylim(-0.03, 1.03)
        panel.grid(axis="y", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
    panels[0].set_ylabel("Dice of a test patient")
    panel = figure.add_subplot(grid[1, :])
    for run in runs:
        seconds, scores = validation_curve(run.run / "log.jsonl")
        colour = colours[run.arm.name]
        panel.plot(seconds, scores, color=colour, linewidth=0.8, alpha=0.35)
        first = run.seed == min(r.seed for r in runs if r.arm.name == run.arm.name)
        best = list(accumulate(scores, max))
        label = run.arm.name if first else None
        panel.step(
            seconds, best, where="post", color=colour, linewidth=1.6, marker=".", label=label
        )
    panel.set(
        xlabel="time in training stages, without set-up (s)", ylabel="validation score (mean Dice)"
    )
    panel.set_xlim(left=0)
    panel.set_ylim(-0.03, 1.03)
    panel.grid(color="#dddddd", linewidth=0.6)
    panel.legend(
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        title="a line per seed:\neach epoch, and best so far",
        title_fontsize=8,
    )
    figure.supxlabel(_NOTE, fontsize=7, color="#444444")
    with writing(path, overwrite=True) as file:
        figure.savefig(file, format="png", dpi=130)


def _dots(panel: Any, place: int, values: Sequence[float | None], colour: str, marker: str) -> None:
    """Draw a dot per patient, at the same offset in every column, and the mean as a line."""
    known = [(k, value) for k, value in enumerate(values) if value is not None]
    if not known:
        return
    offsets = [(k * _GOLDEN % 1 - 0.5) * 2 * _JITTER for k, _ in known]
    dice = [value for _, value in known]
    panel.scatter(
        np.add(place, offsets), dice, s=16, color=colour, marker=marker, alpha=0.75, linewidths=0
    )
    panel.hlines(np.mean(dice), place - 0.32, place + 0.32, color=colour, linewidth=2.2)
