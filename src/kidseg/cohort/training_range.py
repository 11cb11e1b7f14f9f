"""How far a patient is from those that a model was trained on."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["FAR_SD", "distances", "training_range"]

FAR_SD = 1.0
"""Beyond the training range by more standard deviations than this, a patient is far from it.

A convention: of 40 normally distributed patients the outermost lie at 2.2 SD, so that this is more
than 3 SD from their mean.
"""

# Standard deviations count as no less than these, or training scans that are all alike (one
# scanner, one slice distance) would make any difference an infinite one. By unit; a convention.
_LEAST_SD = {"_deg": 1.0, "_mm": 0.1}
_LEAST_SD_OF_RATIOS = 0.01
# More than in training is no trouble.
_ONLY_BELOW = {"overlap"}


def training_range(patients: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """Of each figure: "n" patients who have it, "min", "max", "mean" and "sd".

    The standard deviation is the sample's, with n - 1; None for one patient.
    """
    names = dict.fromkeys(name for figures in patients for name in figures)
    ranges: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = [figures[name] for figures in patients if name in figures]
        ranges[name] = {
            "n": len(values),
            "min": min(values),
            "max": max(values),
            "mean": statistics.fmean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else None,
        }
    return ranges


def distances(
    figures: Mapping[str, float], ranges: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float | None]]:
    """How far each figure lies from the training patients'.

    "distance_sd" is 0 from "min" to "max", else the way beyond, in their standard deviations, these
    counted as no less than a convention by unit (1 deg, 0.1 mm, 0.01). Outside the range of a
    single patient it is None: what is usual there cannot be told. An overlap is only ever too low.
    A figure that one side does not have is left out.
    """
    return {
        name: {
            "value": value,
            "min": ranges[name]["min"],
            "max": ranges[name]["max"],
            "distance_sd": _distance(name, value, ranges[name]),
        }
        for name, value in figures.items()
        if name in ranges
    }


def _distance(name: str, value: float, known: Mapping[str, Any]) -> float | None:
    above = 0.0 if name in _ONLY_BELOW else value - known["max"]
    beyond = max(known["min"] - value, above, 0.0)
    if beyond == 0.0:
        return 0.0
    if known["sd"] is None:
        return None
    least = next((sd for unit, sd in _LEAST_SD.items() if name.endswith(unit)), _LEAST_SD_OF_RATIOS)
    return float(beyond / max(known["sd"], least))
