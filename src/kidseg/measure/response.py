"""Two scans of one patient: change in volume of each kidney and tumour, with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kidseg.geometry import Volume, resample
from kidseg.meaning import Side
from kidseg.measure.mask import Mask
from kidseg.measure.measurement import Measurement, Structure
from kidseg.measure.parts import SIDES, Part, Parts
from kidseg.measure.quantity import Quantity

__all__ = ["Change", "changes", "difference", "match_tumours", "relative_change"]

_COMBINED = "both intervals, combined as independent"
# Lesions overlap if they share at least this part of the smaller one.
_OVERLAP = 0.1

NEW = "new"
GONE = "not found again"


@dataclass(frozen=True, kw_only=True)
class Change:
    """The change of one structure.

    Attributes:
        subject: "right tumours", "left kidney", or the lesions that were matched.
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
class Match:
    """Lesions of an earlier scan that are those of a later one: mostly one each.

    Several if lesions have merged or come apart.
    """

    before: tuple[Part, ...]
    after: tuple[Part, ...]
    matched: str


def changes(
    before: tuple[Parts, Measurement], after: tuple[Parts, Measurement]
) -> tuple[Change, ...]:
    """Changes by side: kidney, all tumours; then of each lesion."""
    found = []
    (parts_before, earlier), (parts_after, later) = before, after
    for side in SIDES:
        for name, subject in (("tumour volume", "tumours"), ("kidney volume", "kidney")):
            pair = [measured.sides.get(side, {}).get(name) for measured in (earlier, later)]
            if any(pair):
                found.append(_change(f"{side} {subject}", (), (), "side", *map(_or_none, pair)))
    ids = [{one.id: one for one in measured.structures} for measured in (earlier, later)]
    for match in match_tumours(parts_before, parts_after):
        sums = []
        for lesions, known in zip((match.before, match.after), ids, strict=True):
            sums.append(_sum([_volume(known[lesion.id]) for lesion in lesions]))
        old, new = (tuple(part.id for part in parts) for parts in (match.before, match.after))
        found.append(_change(", ".join(new or old), old, new, match.matched, *sums))
    return tuple(found)


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


def match_tumours(before: Parts, after: Parts) -> list[Match]:
    """Match the lesions of two scans: by tracking id, overlap, or as the only ones on their side.

    Lesions overlap in patient space; or, if none of a side do, after the kidneys of both scans were
    brought to the same position, as patients lie differently each time.
    """
    matches = []
    left, right = list(before.tumours), list(after.tumours)
    for one in tuple(left):
        same = [other for other in right if one.tracking and other.tracking == one.tracking]
        if same:
            matches.append(Match(before=(one,), after=tuple(same), matched="tracking id"))
            left.remove(one)
            right = [other for other in right if other not in same]
    shift = _shift_mm(before, after)
    for side in SIDES:
        olds = [one for one in left if one.side == side]
        news = [one for one in right if one.side == side]
        groups = _groups(olds, news, np.zeros(3))
        matched = "overlap"
        if not any(old and new for old, new in groups) and shift is not None:
            groups = _groups(olds, news, shift)
            matched = "overlap after aligning the kidneys"
        if len(olds) == len(news) == 1 and len(groups) == 2:
            groups, matched = [((olds[0],), (news[0],))], "only one on its side"
        for old, new in groups:
            how = matched if old and new else (NEW if new else GONE)
            matches.append(Match(before=old, after=new, matched=how))
    return matches


def _groups(
    olds: Sequence[Part], news: Sequence[Part], shift_mm: np.ndarray
) -> list[tuple[tuple[Part, ...], tuple[Part, ...]]]:
    """Connected groups of lesions that overlap, where each lesion is in one group."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    count = len(olds) + len(news)
    links = np.zeros((count, count))
    for i, old in enumerate(olds):
        for j, new in enumerate(news):
            links[i, len(olds) + j] = _overlap(old.mask, new.mask, shift_mm)
    number, group = connected_components(csr_array(links), directed=False)
    return [
        (
            tuple(old for i, old in enumerate(olds) if group[i] == k),
            tuple(new for j, new in enumerate(news) if group[len(olds) + j] == k),
        )
        for k in range(number)
    ]


def _overlap(old: Mask, new: Mask, shift_mm: np.ndarray) -> bool:
    """Whether two lesions overlap if the old one is moved by (3,) mm."""
    move = np.eye(4)
    move[:3, 3] = shift_mm
    volume = Volume(torch.from_numpy(old.data[None].astype(np.uint8)), old.grid)
    moved = Volume(volume.data, volume.grid.moved(torch.from_numpy(move)))
    shared = resample(moved, new.grid, mode="nearest").data[0].numpy().astype(bool) & new.data
    volume_ml = np.count_nonzero(shared) * float(new.grid.voxel_ml)
    return bool(volume_ml > 0 and volume_ml >= _OVERLAP * min(old.volume_ml, new.volume_ml))


def _shift_mm(before: Parts, after: Parts) -> np.ndarray | None:
    """From the kidneys of the earlier scan to those of the later one; None without any in both."""
    sides: list[Side] = [side for side in SIDES if side in before.kidneys and side in after.kidneys]
    if not sides:
        return None
    centres = [
        np.mean([parts.kidneys[side].mask.points_mm().mean(0) for side in sides], axis=0)
        for parts in (before, after)
    ]
    return np.asarray(centres[1] - centres[0])


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


def _or_none(quantity: Quantity | None) -> Quantity:
    return _sum([]) if quantity is None else quantity


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
