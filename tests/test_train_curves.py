"""Training curves: axes and lines have names, also of the first epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kidseg.train.curves import draw_curves


def line(stage: str, epoch: int, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "epoch": epoch, "loss": 1.0 / (epoch + 1), "val_score": 0.5, **more}


def figure_of(lines: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The figure that was written."""
    from matplotlib.figure import Figure

    seen = []
    real = Figure.savefig

    def save(figure: Figure, *args: Any, **kwargs: Any) -> None:
        seen.append(figure)
        real(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save)
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(map(json.dumps, lines)))
    draw_curves(log, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
    (figure,) = seen
    return figure


def test_axes_are_named_and_each_structure_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = {"val_dice_kidney": 0.8, "val_dice_tumour": None}
    lines = [line("pose", k, val_body=0.9) for k in range(3)]
    lines += [line("segment", k, **dice) for k in range(2)]
    pose, segment, of_pose, of_segment = figure_of(lines, tmp_path, monkeypatch).axes
    assert pose.get_xlabel() == segment.get_xlabel() == "epoch"
    assert pose.get_ylabel() == "loss in training"
    assert (of_pose.get_ylabel(), of_segment.get_ylabel()) == (
        "score in validation",
        "Dice in validation",
    )
    names = [text.get_text() for text in segment.get_legend().get_texts()]
    assert {"Dice, kidney", "Dice, tumour", "loss (left)", "best epoch: 1"} == set(names)
    assert list(segment.lines[0].get_xdata()) == [1, 2], "epochs are counted from 1"
    low, high = of_segment.get_ylim()
    assert low < 0 and high > 1
    styles = {(x.get_color(), x.get_linestyle()) for x in of_segment.lines}
    assert len(styles) == len(of_segment.lines)


def test_a_single_epoch_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (panel, scores) = figure_of([line("segment", 0)], tmp_path, monkeypatch).axes
    assert panel.lines[0].get_marker() == "." and scores.lines[0].get_label() == "score"


def test_what_was_learned_before_is_epoch_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line("segment", 0, start={"score": 0.7}), line("segment", 1)]
    (panel, scores) = figure_of(lines, tmp_path, monkeypatch).axes
    assert list(panel.lines[0].get_xdata()) == [1, 2]
    assert list(scores.lines[0].get_xdata()) == [0, 1, 2]
    assert list(scores.lines[0].get_ydata()) == [0.7, 0.5, 0.5]
    names = [text.get_text() for text in panel.get_legend().get_texts()]
    assert "best epoch: 0" in names
