"""Plot training curves from the log of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kidseg.io.atomic import writing
from kidseg.report.annotation import plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curves"]

_DICE = "val_dice_"
_VALIDATION = "val_"
# Metrics of the pose and the crop stage.
_MEANINGS = {
    "start": "score without the network",
    "body": "Dice of the body's outline",
    "bone": "Dice of bone",
    "kept": "share of patients with a better pose",
    "covered": "share of labels in the crop",
}
_FEW = 40
_BEST = "#999999"
# Source: Okabe and Ito, Color Universal Design, 2008: distinguishable with any colour vision.
_COLOURS = ("#009E73", "#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00")
_STYLES = ("-", "--", "-.", ":")
_NOTE = "Validation patients, which chose the best epoch: no test. For research use only."


@plain_text()
def draw_curves(log: Path, path: Path) -> None:
    """Plot loss and validation metrics by epoch, one panel per stage.

    The left axis is the loss, the right one Dice per structure, or what the stage is scored by.

    Args:
        log: log.jsonl of a run.
        path: a .png file; replaced if it exists.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages: dict[str, list[dict[str, Any]]] = {}
    for text in log.read_text().splitlines():
        line = json.loads(text)
        stages.setdefault(line["stage"], []).append(line)
    size = (5.5 * len(stages), 4.2)
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for panel, (stage, lines) in zip(panels, stages.items(), strict=True):
        _draw_stage(panel, stage, lines)
    figure.supxlabel(_NOTE, fontsize=7, color="#444444")
    with writing(path, overwrite=True) as file:
        figure.savefig(file, format="png", dpi=120)


def _draw_stage(panel: Axes, stage: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw loss and metrics of one stage, with a dot for each epoch if they are few.

    Epoch 0 is what the network had learned before.
    """
    from matplotlib.ticker import MaxNLocator

    marker = "." if len(lines) <= _FEW else ""
    trained = [line["epoch"] + 1 for line in lines]
    panel.plot(trained, [x["loss"] for x in lines], "#555555", marker=marker, label="loss (left)")
    if start := lines[0].get("start"):
        before = {f"{_VALIDATION}{name}": value for name, value in start.items()}
        lines = [{"epoch": -1, **before}, *lines]
    epochs = [line["epoch"] + 1 for line in lines]
    panel.set_title(f"stage {stage}", fontsize=10)
    panel.set_xlabel("epoch")
    panel.set_ylabel("loss in training")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    scores = panel.twinx()
    names = _metrics(lines)
    for k, (key, name) in enumerate(names.items()):
        scores.plot(
            epochs,
            [float("nan") if x.get(key) is None else x[key] for x in lines],
            label=name,
            color=_COLOURS[k % len(_COLOURS)],
            linestyle=_STYLES[k % len(_STYLES)],
            marker=marker,
            linewidth=1.4,
        )
    of_dice = all(key.startswith(_DICE) for key in names)
    shown = [x[key] for key in names for x in lines if x.get(key) is not None]
    if all(0 <= value <= 1 for value in shown):
        scores.set_ylim(-0.02, 1.02)
    scores.set_ylabel("Dice in validation" if of_dice else "score in validation")
    best = max(lines, key=lambda x: x["val_score"])["epoch"] + 1
    panel.axvline(best, color=_BEST, linestyle=":", linewidth=1.2, label=f"best epoch: {best}")
    handles = [*panel.get_legend_handles_labels()[0], *scores.get_legend_handles_labels()[0]]
    panel.legend(
        handles=handles,
        fontsize=7,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=min(4, len(handles)),
        frameon=False,
    )


def _metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{key in the log: name in the legend}: Dice per structure, or else every metric."""
    keys = list(dict.fromkeys(key for x in lines for key in x if key.startswith(_VALIDATION)))
    dice = {key: f"Dice, {key.removeprefix(_DICE)}" for key in keys if key.startswith(_DICE)}
    others = {key: key.removeprefix(_VALIDATION) for key in keys}
    return dice or {key: _MEANINGS.get(name, name) for key, name in others.items()}
