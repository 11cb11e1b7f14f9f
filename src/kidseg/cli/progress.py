"""Progress on standard error: a bar on a terminal, elsewhere lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.text import Text

__all__ = ["AdvanceStage", "duration", "epoch_text", "show_progress", "show_stages"]

_PAUSE_S = 1.0
"""Lines about the same task have at least this pause between them; the last one is always shown."""

_DICE = "val_dice_"

Advance = Callable[[int, int], None]
AdvanceStage = Callable[[str, int, int, Mapping[str, Any]], None]


@contextmanager
def show_progress(what: str, silent: bool) -> Iterator[Advance]:
    """Show the progress of one task; yields (done, total) -> None."""
    with show_stages(silent) as advance:
        yield lambda done, total: advance(what, done, total, {})


@contextmanager
def show_stages(silent: bool) -> Iterator[AdvanceStage]:
    """Show the progress of several tasks and of training stages.

    On a terminal a bar each, with a line about the last epoch; elsewhere a line per epoch of
    training, and for other tasks at most a line per second.

    Yields (task or stage, done, total, log line of the epoch; {} for a task) -> None.
    """
    if silent:
        yield lambda *_: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    with _bars(console) as (bars, note):
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            note.plain = epoch_text(stage, done, total, figures) if figures else ""
            bars.update(tasks[stage], completed=done, total=total)

        yield advance


def epoch_text(stage: str, done: int, total: int, figures: Mapping[str, Any]) -> str:
    """The line about an epoch: loss, Dice by region (or the score), and the time left.

    None is done yet of a network that has learned before.
    """
    where = f"epoch {done} of {total}" if done else "before training"
    left = f", at most {duration(figures['left_s'])} left" if "left_s" in figures else ""
    return f"{stage}: {where}, {_figures(figures)}{left}"


def duration(seconds: float) -> str:
    """A duration in words: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class _Lines:
    """Write progress as lines."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int, figures: Mapping[str, Any]) -> None:
        if figures:
            typer.echo(epoch_text(stage, done, total, figures), err=True)
            return
        now = time.monotonic()
        if done == total or now - self.last.get(stage, -_PAUSE_S) >= _PAUSE_S:
            self.last[stage] = now
            typer.echo(f"{stage}: {done} of {total}", err=True)


@contextmanager
def _bars(console: Any) -> Iterator[tuple[Progress, Text]]:
    """A bar per task, and a line below them whose text can be set."""
    from rich.console import Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bars, note = Progress(*columns, TimeElapsedColumn(), console=console), Text()
    with Live(Group(bars, note), console=console, refresh_per_second=10):
        yield bars, note


def _figures(figures: Mapping[str, Any]) -> str:
    """Loss, and Dice by region; without regions the score."""
    named = {key.removeprefix(_DICE): x for key, x in figures.items() if key.startswith(_DICE)}
    dice = ", ".join(f"{name} {value:.3f}" for name, value in named.items())
    found = f"Dice {dice}" if dice else f"score {figures['val_score']:.3f}"
    return f"loss {figures['loss']:.4f}, {found}" if "loss" in figures else found
