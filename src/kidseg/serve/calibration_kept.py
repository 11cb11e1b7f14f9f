"""What becomes of the calibration of a model in the one that is fine-tuned from it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["NO_INTERVALS", "NO_WEIGHTS", "judges_of", "weights_told"]

NO_WEIGHTS = (
    "The weights of the calibrated decision were left out: a member of the ensemble has learned"
    " from each image that could say whether they still help. Calibrate again: kidseg calibrate."
)
NO_INTERVALS = (
    "The intervals of volumes are no longer calibrated: they were those of the old model."
    " Calibrate again: kidseg calibrate --intervals."
)


def judges_of(runs: Sequence[Path]) -> list[str]:
    """The cases that all of these trainings have validated on: no network has learned from them.

    Args:
        runs: folders of `kidseg train`, at least one.
    """
    splits = [json.loads((run / "cases.json").read_bytes()) for run in runs]
    return sorted(set.intersection(*(set(split["validation"]) for split in splits)))


def weights_told(found: Mapping[str, Any]) -> str:
    """What became of the weights of a decision, by `kidseg calibrate --weights-of`."""
    known, none = found["curve"]
    weights = ", ".join(f"{name} {w:g}" for name, w in known["weights"].items() if w != 1)
    what = "kept" if found["decision"] else "left out"
    return (
        f"The weights of the calibrated decision ({weights}) were {what}: Dice"
        f" {known['score']:.3f} with them, {none['score']:.3f} without, in {len(found['cases'])}"
        " image(s) that chose the best epoch."
    )
