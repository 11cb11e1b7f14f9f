"""Intervals of volumes that contain the true one in nine of ten scans.

Calibrated: split conformal prediction. On labelled scans that the model was not trained on, the
error of each volume is divided by its scale, what the segmentation itself says of its doubt; the
interval of a new scan reaches from the 5th to the 95th percentile of these scores (with the
correction for their finite number), times its own scale. It holds the level for scans like those of
the calibration, whatever the model, on average over scans; not for others.

Not calibrated: the volume plus and minus its scale, as if everything in doubt were wrong, and to
the same side. Too wide where probabilities are true, and too narrow where they are too sure.

Source: Papadopoulos et al., Inductive confidence machines for regression, ECML 2002; Lei et al.,
Distribution-free predictive inference for regression, JASA 2018, 2.2 and 5.2 (split conformal,
locally weighted).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kidseg.errors import Finding
from kidseg.records import checked

__all__ = [
    "FLOOR_ML",
    "INTERVALS",
    "LEAST_CASES",
    "LEVEL",
    "Calibrated",
    "conformal_ends",
    "doubt_interval",
    "scale_ml",
    "scaled_interval",
    "unused_calibration",
]

LEVEL = 0.9

INTERVALS = "intervals"
"""Entry of a model's header."""

LEAST_CASES = 19
"""Fewer scores have no 95th percentile that holds for the next one: ceil(0.95 (n + 1)) > n."""

FLOOR_ML = 1.0
"""Of a scale: volumes are not known better than this, and what is not there has no doubt."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The calibration of a model's intervals, as in its header.

    Attributes:
        level: that they hold.
        ends: {structure: (low, high)}: multiples of the scale that are added to the volume.
        cases: how many scans they were chosen on.
        adapt: what was adapted to each scan; with another setting, probabilities are others.
        temperature: of the probabilities that the doubt is taken from; see
            `kidseg.segment.review.tempered`.
        scans: what they were, in words; "" if it was not said.
    """

    level: float
    ends: Mapping[str, tuple[float, float]]
    cases: int
    adapt: str
    temperature: float
    scans: str = ""

    @classmethod
    def from_header(cls, header: Mapping[str, Any]) -> Calibrated | None:
        """That of a model; None if it has none.

        Raises:
            LookupError, TypeError, ValueError: it is damaged.
        """
        found = header.get(INTERVALS)
        if found is None:
            return None
        ends = checked(dict[str, tuple[float, float]], found["ends"])
        level, temperature = float(found["level"]), float(found["temperature"])
        sound = all(-math.inf < low <= high < math.inf for low, high in ends.values())
        if not sound or not 0 < level < 1 or not 0 < temperature < math.inf:
            raise ValueError(f"impossible intervals: {level}, {temperature}, {ends}")
        return cls(
            level=level,
            ends=ends,
            cases=len(found["cases"]),
            adapt=str(found["adapt"]),
            temperature=temperature,
            scans=str(found.get("scans", "")),
        )


def scale_ml(doubtful_ml: float, opinions_ml: Sequence[float]) -> float:
    """How far a volume may be wrong, up to a factor that a calibration finds.

    Args:
        doubtful_ml: see `kidseg.segment.review.Doubt`.
        opinions_ml: the volume by each opinion; their standard deviation counts.
    """
    spread = statistics.pstdev(opinions_ml) if len(opinions_ml) > 1 else 0.0
    return FLOOR_ML + doubtful_ml + spread


def conformal_ends(scores: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The outer percentiles of scores, each of which the next score exceeds in (1 - level) / 2.

    Args:
        scores: (true - found volume) / scale, of at least `LEAST_CASES` scans at `LEVEL`.
        level: of the interval.

    Raises:
        ValueError: too few scores.
    """
    ordered, n = sorted(scores), len(scores)
    rank = math.ceil((n + 1) * (1 + level) / 2 - 1e-9)
    if rank > n:
        raise ValueError(f"{n} scores are too few for a level of {level}")
    return ordered[n - rank], ordered[rank - 1]


def scaled_interval(
    volume_ml: float, scale: float, ends: tuple[float, float]
) -> tuple[float, float]:
    """The calibrated interval; it contains the volume itself, and nothing below 0."""
    low, high = (volume_ml + end * scale for end in ends)
    return max(0.0, min(low, volume_ml)), max(high, volume_ml)


def doubt_interval(volume_ml: float, scale: float) -> tuple[float, float]:
    """The interval without calibration: everything in doubt is wrong, and to the same side."""
    return max(0.0, volume_ml - scale), volume_ml + scale


def unused_calibration(
    intervals: Calibrated | None, decided_for: str | None, adapt: str, path: str
) -> tuple[Finding, ...]:
    """A finding if a model was calibrated with another adaptation to scans.

    Args:
        intervals: of the model, if they were calibrated.
        decided_for: the adaptation with which its decision was calibrated; None: it was not.
        adapt: the adaptation to this scan.
        path: of the scan.
    """
    effects = {
        "intervals": "the interval of its volumes is not calibrated",
        "decision": "the weights of its outputs are those of other probabilities",
    }
    known = {"intervals": intervals and intervals.adapt, "decision": decided_for}
    others = {what: for_ for what, for_ in known.items() if for_ not in (None, adapt)}
    if not others:
        return ()
    usual = next(iter(others.values()))
    return (
        Finding(
            code="other-adaptation",
            path=path,
            cause=f"the model's {' and '.join(others)} were calibrated with --adapt {usual}, and"
            f" the scan was segmented with {adapt}: {'; '.join(effects[what] for what in others)}",
            next_step=f"Segment with --adapt {usual}, or calibrate again.",
        ),
    )
