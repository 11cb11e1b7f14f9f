"""The intervals of volumes that the segmentation itself gave, for the measures of each side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kidseg.errors import Finding, InputError
from kidseg.meaning import Meaning, Side
from kidseg.measure.quantity import Quantity
from kidseg.records import PartialRecord, checked

__all__ = ["Reviewed", "read_review", "with_review"]

_NAMES: Mapping[Meaning, str] = {"kidney": "kidney volume", "tumour": "tumour volume"}
_SAME = 1e-3  # volumes of the same labels, by rounding and by the voxel size as float32


@dataclass(frozen=True, kw_only=True)
class _Structure(PartialRecord):
    """As in result.json; it may have more entries."""

    volume_ml: float
    interval_ml: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """The review of a segmentation.

    Attributes:
        path: of the labels, for findings.
        intervals_ml: {"kidney", "tumour": (volume, low, high)}, both sides together.
        because: how the intervals came about.
    """

    path: Path
    intervals_ml: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    because: str = ""


def read_review(record: Mapping[str, Any], path: Path) -> Reviewed:
    """The review in the entry of a label file in result.json; empty if there is none.

    Args:
        record: the entry; {} if there is none.
        path: of the label file.

    Raises:
        InputError: "bad-json".
    """
    review = record.get("review")
    if review is None:
        return Reviewed(path=path)
    try:
        structures = checked(dict[str, _Structure], review["structures"])
        how, level, count = review["interval"], float(review["level"]), int(review["opinions"])
        intervals = {
            name: (each.volume_ml, *each.interval_ml)
            for name, each in structures.items()
            if name in _NAMES and each.interval_ml is not None
        }
        if any(not 0 <= low <= value <= high for value, low, high in intervals.values()):
            raise ValueError("an interval does not contain its volume")
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"the review of {path.name} in it is damaged: {error}",
            path=path.parent / "result.json",
            code="bad-json",
            next_step="Restore the file, or measure a copy of the labels in another folder.",
        ) from error
    scans = str(review.get("calibrated_scans", ""))
    of = f"of {count} opinions, not calibrated"
    if how == "conformal":
        of = f"calibrated on {scans}" if scans else "calibrated"
    return Reviewed(
        path=path, intervals_ml=intervals, because=f"{level:.0%} interval of the model, {of}"
    )


def with_review(
    sides: Mapping[Side, Mapping[str, Quantity]], review: Reviewed
) -> tuple[dict[Side, dict[str, Quantity]], tuple[Finding, ...]]:
    """Volumes of each side whose intervals contain those of the review; and findings.

    An interval of both sides together is shared out as the error of independent sides is: each
    gets its margin times the square root of its share of the volume. A side that has all of it
    gets all of the margin.

    Returns:
        The measures; "other-volumes" if the labels are no longer those of the review, which then
        is not used.
    """
    widened = {side: dict(measures) for side, measures in sides.items()}
    findings = []
    for meaning, (volume, low, high) in review.intervals_ml.items():
        name = _NAMES[meaning]  # type: ignore[index]
        found = {side: measures[name] for side, measures in sides.items() if name in measures}
        total = math.fsum(quantity.value for quantity in found.values())
        if not math.isclose(total, volume, rel_tol=_SAME, abs_tol=_SAME):
            findings.append(_other_volumes(review.path, meaning, total, volume))
            continue
        for side, quantity in found.items():
            share = math.sqrt(quantity.value / total) if total else 0.0
            ends = (
                max(0.0, quantity.value - share * (volume - low)),
                quantity.value + share * (high - volume),
            )
            widened[side][name] = quantity.widened(ends, review.because)
    return widened, tuple(findings)


def _other_volumes(path: Path, meaning: str, total: float, volume: float) -> Finding:
    return Finding(
        code="other-volumes",
        path=str(path),
        cause=f"its {meaning} has {total:.2f} ml, and had {volume:.2f} ml when it was segmented;"
        " the interval of that volume is not used",
        next_step="",
    )
