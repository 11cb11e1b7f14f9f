"""Which lesions of an earlier scan are those of a later one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kidseg.geometry import Grid
from kidseg.meaning import Side
from kidseg.measure.mask import Mask
from kidseg.measure.parts import SIDES, Part, Parts

__all__ = ["GONE", "NEW", "Match", "is_in_scan", "match_tumours", "shift_mm"]

NEW = "new"
GONE = "not found again"

# Lesions overlap if they share at least this part of the smaller one.
_OVERLAP = 0.1
_SAMPLES = 20_000  # voxels of a lesion whose places are compared
# Moved lesions must share clearly more than those that are where they are.
_IN_PLACE = 1.25
_OVERLAPS = "overlap"

Lesions = tuple[Part, ...]
Naming = Callable[[Part], str | None]
"""The identifier of a lesion that is the same at both times; None if it has none."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """Lesions of an earlier scan that are those of a later one: mostly one each.

    Several if lesions have merged or come apart.
    """

    before: Lesions
    after: Lesions
    matched: str


def match_tumours(before: Parts, after: Parts) -> list[Match]:
    """Match the lesions of two scans: by tracking id, overlap, or as the only ones on their side.

    Lesions overlap in patient space, or after the kidneys of both scans were brought to the same
    position, as patients lie differently each time, if those of a side clearly overlap more then.
    Last, what is left of one side may overlap with what is left of the other, as the side of a
    tumour near the midline is not sure. If the scans have tracking ids in common, lesions with
    different ones are different lesions. Unique ids count before names, if any is in common.
    """
    naming = _naming(before.tumours, after.tumours)
    matches, olds, news = _tracked(before.tumours, after.tumours, naming)
    shift = shift_mm(before, after)
    shifts = {_OVERLAPS: np.zeros(3)}
    if shift is not None:
        shifts["overlap after aligning the kidneys"] = shift
    lost: list[Part] = []
    appeared: list[Part] = []
    for side in SIDES:
        here = [one for one in olds if one.side == side]
        there = [one for one in news if one.side == side]
        found, left, new = _overlapping(here, there, shifts, naming)
        if len(here) == len(there) == len(left) == 1 and not _are_apart(here[0], there[0], naming):
            found = [Match(before=tuple(left), after=tuple(new), matched="only one on its side")]
            left, new = [], []
        matches += found
        lost += left
        appeared += new
    found, lost, appeared = _overlapping(lost, appeared, shifts, naming)
    matches += found
    matches += [Match(before=(one,), after=(), matched=GONE) for one in lost]
    matches += [Match(before=(), after=(one,), matched=NEW) for one in appeared]
    return matches


def shift_mm(before: Parts, after: Parts) -> np.ndarray | None:
    """(3,) from the kidneys of the earlier scan to those of the later one.

    None without a kidney that both scans show as a whole.
    """
    sides: list[Side] = [
        side
        for side in SIDES
        if all(
            side in each.kidneys and not each.kidneys[side].is_partial for each in (before, after)
        )
    ]
    if not sides:
        return None
    centres = [
        np.mean([parts.kidneys[side].mask.points_mm().mean(0) for side in sides], axis=0)
        for parts in (before, after)
    ]
    return np.asarray(centres[1] - centres[0])


def is_in_scan(parts: Sequence[Part], scan: Grid | None, move_mm: np.ndarray) -> bool:
    """Whether structures, moved by (3,) mm, lie in a scan as a whole; True if it is not known."""
    return scan is None or all(
        bool(_inside(_places(part.mask, move_mm), scan).all()) for part in parts
    )


def _naming(olds: Sequence[Part], news: Sequence[Part]) -> Naming:
    """By what lesions are told from each other: unique ids, names, or nothing."""

    def unique(one: Part) -> str | None:
        return one.tracking_uid or one.tracking

    def name(one: Part) -> str | None:
        return one.tracking

    if {one.tracking_uid for one in olds} & {one.tracking_uid for one in news} - {None}:
        return unique
    if {one.tracking for one in olds} & {one.tracking for one in news} - {None}:
        return name
    return lambda _: None


def _tracked(
    olds: Sequence[Part], news: Sequence[Part], naming: Naming
) -> tuple[list[Match], list[Part], list[Part]]:
    """The matches by tracking id, and the lesions that are left."""
    shared = {naming(one) for one in olds} & {naming(one) for one in news} - {None}
    matches = [
        Match(
            before=tuple(one for one in olds if naming(one) == name),
            after=tuple(one for one in news if naming(one) == name),
            matched="tracking id",
        )
        for name in dict.fromkeys(naming(one) for one in olds)
        if name in shared
    ]
    left, new = ([one for one in lesions if naming(one) not in shared] for lesions in (olds, news))
    return matches, left, new


def _overlapping(
    olds: Sequence[Part],
    news: Sequence[Part],
    shifts: dict[str, np.ndarray],
    naming: Naming,
) -> tuple[list[Match], list[Part], list[Part]]:
    """Connected groups of lesions that overlap, and the lesions that are left."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    if not olds or not news:
        return [], list(olds), list(news)
    shared = {how: _shared(olds, news, shift, naming) for how, shift in shifts.items()}
    how = max(shared, key=lambda each: shared[each].sum() * (_IN_PLACE if each == _OVERLAPS else 1))
    count = len(olds) + len(news)
    links = np.zeros((count, count))
    links[: len(olds), len(olds) :] = shared[how] > 0
    number, group = connected_components(csr_array(links), directed=False)
    matches: list[Match] = []
    left: list[Part] = []
    new: list[Part] = []
    for k in range(number):
        old = tuple(one for i, one in enumerate(olds) if group[i] == k)
        later = tuple(one for j, one in enumerate(news) if group[len(olds) + j] == k)
        if old and later:
            matches.append(Match(before=old, after=later, matched=how))
        else:
            left += old
            new += later
    return matches, left, new


def _shared(
    olds: Sequence[Part], news: Sequence[Part], move_mm: np.ndarray, naming: Naming
) -> np.ndarray:
    """(olds, news) volumes in ml that lesions share if the old ones are moved; 0 if it is little.

    Voxels of each are looked up in the other, so that neither is lost between coarser voxels.
    """
    found = np.zeros((len(olds), len(news)))
    for i, old in enumerate(olds):
        for j, new in enumerate(news):
            if _are_apart(old, new, naming):
                continue
            there = _share(old.mask, new.mask, move_mm)
            back = _share(new.mask, old.mask, -move_mm)
            if max(there, back) >= _OVERLAP:
                found[i, j] = max(there * old.mask.volume_ml, back * new.mask.volume_ml)
    return found


def _are_apart(old: Part, new: Part, naming: Naming) -> bool:
    both = (naming(old), naming(new))
    return None not in both and both[0] != both[1]


def _share(one: Mask, other: Mask, move_mm: np.ndarray) -> float:
    """The share of the voxels of a structure, moved by (3,) mm, that lie in another one."""
    places = _places(one, move_mm)
    is_near = _inside(places, other.grid)
    index = np.rint(other.grid.index(places[is_near]).numpy()).astype(int)
    return float(np.count_nonzero(other.data[tuple(index.T)])) / len(places)


def _places(mask: Mask, move_mm: np.ndarray) -> np.ndarray:
    """(voxels, 3) moved centres of voxels, of a large structure evenly chosen ones."""
    index = np.argwhere(mask.data)
    return np.asarray(mask.mm(index[:: max(1, len(index) // _SAMPLES)]) + move_mm)


def _inside(places_mm: np.ndarray, grid: Grid) -> np.ndarray:
    """(places,) bool: in one of the voxels of a grid."""
    index = np.rint(grid.index(places_mm).numpy())
    return np.asarray(((index >= 0) & (index < np.array(grid.shape))).all(1))
