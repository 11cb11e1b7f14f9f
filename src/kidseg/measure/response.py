"""Two scans of one patient: change in volume of each kidney and tumour, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kidseg.labels import Meaning
from kidseg.meaning import Side
from kidseg.measure.matching import is_in_scan, match_tumours, shift_mm
from kidseg.measure.measurement import Measurement, Structure
from kidseg.measure.parts import SIDES, Part, Parts
from kidseg.measure.quantity import Quantity
from kidseg.measure.sizes import VOLUME, volume_of

__all__ = ["Change", "changes", "difference", "relative_change"]

_COMBINED = "both intervals, combined as independent"
_UNSEEN = "its place is not in this scan"


@dataclass(frozen=True, kw_only=True)
class Change:
    """The change of one structure.

    Attributes:
        subject: "right tumours", "left kidney", or the lesions that were matched; one that is not
            found again has the id of the earlier scan and "(before)".
        before: ids of the structures of the earlier scan; () if it is new.
        after: ids of those of the later scan; () if it is not found again.
        matched: how lesions were matched: "tracking id", "overlap", "overlap after aligning the
            kidneys", "only one on its side"; "side" for all tumours or the kidney of a side; "new",
            "not found again".
        volume_before: 0 if it is new.
        volume_after: 0 if it is not found again.
        change: after minus before.
        relative: in percent of the volume before; None if that is 0.
    """

    subject: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    matched: str
    volume_before: Quantity
    volume_after: Quantity
    change: Quantity
    relative: Quantity | None

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "subject": self.subject,
            "before": list(self.before),
            "after": list(self.after),
            "matched": self.matched,
            "volume_before": self.volume_before.as_dict(),
            "volume_after": self.volume_after.as_dict(),
            "change": self.change.as_dict(),
            "relative": None if self.relative is None else self.relative.as_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class _Time:
    """One of the two times.

    Attributes:
        parts: that were found.
        measured: of them.
        move_mm: (3,) from the other time to this one.
    """

    parts: Parts
    measured: Measurement
    move_mm: np.ndarray

    def lesions(self, parts: Sequence[Part], others: Sequence[Part]) -> Quantity:
        """The volume of matched lesions together; see `absent` if there are none."""
        known = {each.id: each for each in self.measured.structures}
        return _sum([_volume(known[part.id]) for part in parts]) if parts else self.absent(others)

    def absent(self, others: Sequence[Part]) -> Quantity:
        """The volume of what is not there, as `others` of the other time are: 0.

        It may be among the specks of its side; nothing is known if the scan does not show its
        place.
        """
        if not is_in_scan(others, self.parts.scanned, self.move_mm):
            return Quantity(name=VOLUME, value=0.0, unit="mL", low=0.0, high=None, note=_UNSEEN)
        sides = {part.side for part in others if part.meaning == "tumour"}
        specks = [speck for side, speck in self.parts.specks.items() if side in sides]
        most = _sum([volume_of(speck) for speck in specks]).high
        return Quantity(name=VOLUME, value=0.0, unit="mL", low=0.0, high=most)

    def total(self, side: Side, meaning: Meaning, other: _Time, *, is_seen: bool) -> Quantity:
        """The volume of the kidney or of all tumours of a side."""
        found = self.measured.sides.get(side, {}).get(f"{meaning} volume")
        if found is not None:
            unseen = meaning == "tumour" and not is_seen
            return replace(found, high=None, note=_UNSEEN) if unseen else found
        kidneys, masses = other.parts.kidneys, other.parts.masses
        whole = kidneys.get(side) if meaning == "kidney" else masses.get((meaning, side))
        return self.absent([] if whole is None else [whole])


_KINDS: tuple[tuple[Meaning, str], ...] = (("tumour", "tumours"), ("kidney", "kidney"))


def changes(
    before: tuple[Parts, Measurement], after: tuple[Parts, Measurement]
) -> tuple[Change, ...]:
    """Changes by side: kidney, all tumours; then of each lesion.

    Only of what labels stand for at both times. What is not there at one time has a volume of 0;
    the upper end is that of the specks of its side, or open if its place is not in that scan.
    """
    shift = shift_mm(before[0], after[0])
    shift = np.zeros(3) if shift is None else shift
    earlier = _Time(parts=before[0], measured=before[1], move_mm=-shift)
    later = _Time(parts=after[0], measured=after[1], move_mm=shift)
    known = earlier.parts.meanings & later.parts.meanings
    lesions = []
    unseen: tuple[set[Side | None], ...] = (set(), set())
    for match in match_tumours(earlier.parts, later.parts) if "tumour" in known else []:
        both = (match.before, match.after)
        volumes = (earlier.lesions(*both), later.lesions(*reversed(both)))
        for lost, volume, found in zip(unseen, volumes, both, strict=True):
            if not found and volume.high is None:
                lost.update(part.side for part in (*match.before, *match.after))
        old, new = (tuple(part.id for part in parts) for parts in both)
        subject = ", ".join(new) or f"{', '.join(old)} (before)"
        lesions.append(_change(subject, old, new, match.matched, *volumes))
    totals = [
        _change(
            f"{side} {subject}",
            (),
            (),
            "side",
            earlier.total(side, meaning, later, is_seen=side not in unseen[0]),
            later.total(side, meaning, earlier, is_seen=side not in unseen[1]),
        )
        for side in SIDES
        for meaning, subject in _KINDS
        if meaning in known
        and any(f"{meaning} volume" in t.measured.sides.get(side, {}) for t in (earlier, later))
    ]
    return (*totals, *lesions)


def difference(before: Quantity, after: Quantity) -> Quantity:
    """After minus before; the ends of both intervals are combined as independent errors.

    Source: propagation of errors, JCGM 100:2008, 5.1, with each side of the interval for itself.
    """
    value = after.value - before.value
    return Quantity(
        name="change in volume",
        value=value,
        unit=before.unit,
        low=_away(value, -1, _gap(after.value, after.low), _gap(before.high, before.value)),
        high=_away(value, 1, _gap(after.high, after.value), _gap(before.value, before.low)),
        interval=_COMBINED,
    )


def relative_change(before: Quantity, after: Quantity) -> Quantity | None:
    """The same in percent of the volume before; None if that is 0."""
    if before.value <= 0:
        return None

    def percent(b: float | None, a: float | None) -> float | None:
        return None if a is None or not b else 100 * (a / b - 1)

    value = percent(before.value, after.value)
    assert value is not None
    shrunk = (percent(before.value, after.low), percent(before.high, after.value))
    grown = (percent(before.value, after.high), percent(before.low, after.value))
    low = _away(value, -1, *(_gap(value, end) for end in shrunk))
    return Quantity(
        name="relative change in volume",
        value=value,
        unit="%",
        low=-100.0 if low is None else max(low, -100.0),
        high=_away(value, 1, *(_gap(end, value) for end in grown)),
        interval=_COMBINED,
    )


def _change(
    subject: str,
    before: tuple[str, ...],
    after: tuple[str, ...],
    matched: str,
    old: Quantity,
    new: Quantity,
) -> Change:
    return Change(
        subject=subject,
        before=before,
        after=after,
        matched=matched,
        volume_before=old,
        volume_after=new,
        change=difference(old, new),
        relative=relative_change(old, new),
    )


def _volume(structure: Structure) -> Quantity:
    found = structure.quantity("volume")
    assert found is not None
    return found


def _sum(volumes: Sequence[Quantity]) -> Quantity:
    """The total volume; 0 of nothing. One contour, moved, moves all: the ends add up."""
    if len(volumes) == 1:
        return volumes[0]

    def total(ends: Iterator[float | None]) -> float | None:
        known = list(ends)
        return None if None in known else sum(end for end in known if end is not None)

    return Quantity(
        name="volume",
        value=sum(each.value for each in volumes),
        unit="mL",
        low=total(each.low for each in volumes),
        high=total(each.high for each in volumes),
    )


def _gap(high: float | None, low: float | None) -> float | None:
    return None if high is None or low is None else high - low


def _away(value: float, sign: int, *errors: float | None) -> float | None:
    """The value moved by independent errors; None if one is not known."""
    known = [error for error in errors if error is not None]
    return value + sign * math.hypot(*known) if len(known) == len(errors) else None
