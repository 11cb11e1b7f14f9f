"""Measured values with units and intervals, and what can be said when they meet a threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

__all__ = [
    "CONTOUR",
    "PARTIAL",
    "Comparison",
    "Quantity",
    "Unit",
    "Verdict",
    "all_of",
    "any_of",
    "compared",
    "counted",
    "spanned",
]

Unit = Literal["mL", "mm", "cm", "cm2", "m2", "mL/m2", "%", "1"]
"""Units in UCUM's notation, as DICOM writes them."""

Verdict = Literal["met", "not met", "cannot tell"]
Comparison = Literal["<", "<=", ">", ">="]

CONTOUR = "contour moved by one voxel either way"
"""How most intervals come about."""


PARTIAL = "a lower bound: it reaches the border of the scan"


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A measured value and the interval in which it lies.

    Attributes:
        name: what was measured, such as "volume".
        value: in `unit`.
        unit: in UCUM's notation; "1" for counts and ratios.
        low: lower end of the interval; None if nothing is known.
        high: upper end; None if nothing is known, as for a structure that the image cuts off.
        interval: how the interval came about. It is not a confidence interval.
        note: what else must be known to read the value.
    """

    name: str
    value: float
    unit: Unit
    low: float | None
    high: float | None
    interval: str = CONTOUR
    note: str = ""

    def __post_init__(self) -> None:
        for low, high in ((self.low, self.value), (self.value, self.high)):
            assert low is None or high is None or low <= high, self

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON; rounded to six significant digits."""
        numbers = {name: _rounded(getattr(self, name)) for name in ("value", "low", "high")}
        return asdict(self) | numbers

    def widened(self, others: Iterable[float], because: str) -> Quantity:
        """With an interval that includes further values, such as those of other opinions."""
        others = list(others)
        if not others:
            return self
        return replace(
            self,
            low=None if self.low is None else min(self.low, *others),
            high=None if self.high is None else max(self.high, *others),
            interval=f"{self.interval}; {because}",
        )

    def partly(self, is_partial: bool) -> Quantity:
        """As a lower bound, if the image cuts the structure off."""
        if not is_partial:
            return self
        return replace(self, high=None, note="; ".join(filter(None, (self.note, PARTIAL))))

    def unknown(self, because: str) -> Quantity:
        """Without any interval: the value is that of what the image shows."""
        return replace(
            self, low=None, high=None, note="; ".join(filter(None, (self.note, because)))
        )

    def mapped(self, name: str, unit: Unit, function: Callable[[float], float]) -> Quantity:
        """The value of an increasing function of this quantity."""
        low, high = (None if end is None else function(end) for end in (self.low, self.high))
        return replace(self, name=name, unit=unit, value=function(self.value), low=low, high=high)


def spanned(
    name: str, unit: Unit, value: float, others: Iterable[float], *, note: str = ""
) -> Quantity:
    """A quantity whose interval reaches from the least to the greatest of several values.

    Args:
        name: of the quantity.
        unit: of all values.
        value: finite.
        others: infinite ones leave the interval open.
        note: of the quantity.
    """
    low, high = min(ends := [value, *others]), max(ends)
    return Quantity(
        name=name,
        value=value,
        unit=unit,
        low=low if math.isfinite(low) else None,
        high=high if math.isfinite(high) else None,
        note=note,
    )


def counted(name: str, value: float, unit: Unit = "1") -> Quantity:
    """A number without an interval, such as a count or an entered value."""
    return Quantity(name=name, value=value, unit=unit, low=value, high=value, interval="none")


def compared(quantity: Quantity, comparison: Comparison, threshold: float) -> Verdict:
    """Whether a quantity is below or above a threshold.

    "cannot tell" if the answer is not the same in the whole interval.
    """
    low = -math.inf if quantity.low is None else quantity.low
    high = math.inf if quantity.high is None else quantity.high
    answers = {_holds(end, comparison, threshold) for end in (low, quantity.value, high)}
    if len(answers) > 1:
        return "cannot tell"
    return "met" if answers.pop() else "not met"


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Whether all conditions are met. Source: Kleene's three-valued logic."""
    verdicts = set(verdicts)
    if "not met" in verdicts:
        return "not met"
    return "cannot tell" if "cannot tell" in verdicts else "met"


def any_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Whether at least one condition is met; likewise."""
    verdicts = set(verdicts)
    if "met" in verdicts:
        return "met"
    return "cannot tell" if "cannot tell" in verdicts else "not met"


def _holds(value: float, comparison: Comparison, threshold: float) -> bool:
    if comparison in ("<", "<="):
        return value < threshold or (comparison == "<=" and value == threshold)
    return value > threshold or (comparison == ">=" and value == threshold)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
