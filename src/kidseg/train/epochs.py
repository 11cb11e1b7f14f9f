"""What an epoch tells: its validation metrics by region, and the time that is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kidseg.config import StageConfig

__all__ = ["group_metrics", "seconds_left"]

_DICE = "dice_"


def group_metrics(metrics: Mapping[str, float]) -> dict[str, Any]:
    """Validation metrics with those named "dice_<region>" by region under "dice"."""
    dice = {k.removeprefix(_DICE): value for k, value in metrics.items() if k.startswith(_DICE)}
    others = {name: value for name, value in metrics.items() if not name.startswith(_DICE)}
    return {**others, "dice": dice} if dice else others


def seconds_left(config: StageConfig, epochs: int, spent_s: float) -> float:
    """Seconds that a stage may still take: the rest of its budget, or of its epochs if shorter.

    Args:
        config: of the stage; its budget is what the run's budget leaves.
        epochs: trained so far, at least 1.
        spent_s: time of these.
    """
    rest = spent_s / epochs * (config.epochs - epochs)
    return max(0.0, rest if config.budget_s is None else min(rest, config.budget_s - spent_s))
