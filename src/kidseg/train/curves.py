"""Plot training curves from the log of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kidseg.io.atomic import writing

__all__ = ["draw_curves"]


def draw_curves(log: Path, path: Path) -> None:
    """Plot loss and validation metrics by epoch, one panel per stage.

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
    figure = Figure(figsize=(5.5 * len(stages), 3.6), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for panel, (stage, lines) in zip(panels, stages.items(), strict=True):
        epochs = [line["epoch"] for line in lines]
        panel.plot(epochs, [line["loss"] for line in lines], color="#555555", label="loss")
        panel.set(title=stage, xlabel="epoch", ylabel="loss")
        scores = panel.twinx()
        scores.set_ylabel("validation")
        names = sorted({name for line in lines for name in line if name.startswith("val_")})
        for name in names:
            values = [line.get(name) for line in lines]
            style = {"linewidth": 2.0} if name == "val_score" else {"linewidth": 0.9}
            scores.plot(epochs, values, label=name.removeprefix("val_"), **style)
        best = max(lines, key=lambda line: line["val_score"])
        panel.axvline(best["epoch"], color="#999999", linestyle=":", linewidth=1)
        handles = [*panel.get_legend_handles_labels()[0], *scores.get_legend_handles_labels()[0]]
        scores.legend(handles=handles, fontsize=7, loc="center right")
    with writing(path, overwrite=True) as file:
        figure.savefig(file, format="png", dpi=120)
