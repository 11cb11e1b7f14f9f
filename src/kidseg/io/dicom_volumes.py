"""Separate the volumes that one series contains: contrast phases, echoes, reconstructions.

Two stacks of slices that overlap are two volumes, even if their slices interleave so that together
they are evenly spaced. Stacks that follow each other along the table are one volume: step-and-shoot
scanners count an acquisition for each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np

from kidseg.io.dicom_evidence import COUNTERS, SETTINGS, count, is_strong, keys, labels, order
from kidseg.io.dicom_frames import Plane

__all__ = ["Judge", "Piece", "split_volumes"]

_RANKED = ("AcquisitionNumber", "AcquisitionTime", "ContentTime", "InstanceNumber")
_SAME_PLACE_MM = 0.011
_SAME_DIRECTION = 0.02  # about one degree
_MAX_VOLUMES = 8  # that are told apart by the gaps in a series of times
_MULTIPLE_TOLERANCE = 0.05
# Elements that cannot differ within one grid.
_GRID = ("PixelSpacing", "Rows", "Columns", "FrameOfReferenceUID")
# How much more neighbours of two parts differ than the slices of one part (see `dicom_phases`).
_UNLIKE = 1.15
_ALIKE = 0.9

Part = list[int]
# How unlike neighbouring slices of different parts are: below 1 in one anatomy. The parts are given
# as planes in order of position and the part of each.
Judge = Callable[[Sequence[Plane], Sequence[int]], float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """One volume of a series.

    Attributes:
        planes: its planes.
        label: what distinguishes it from the others ("acquisition 2, kernel B70f").
        joined: what its interleaved parts differ in that were joined because they look alike.
        whole: all planes of the even stack that it is a part of, if the pixels do not contradict.
    """

    planes: tuple[Plane, ...]
    label: str = ""
    joined: str = ""
    whole: tuple[Plane, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Leaf:
    part: Part
    joined: str = ""
    whole: Part | None = None


def split_volumes(planes: Sequence[Plane], judge: Judge) -> list[Piece]:
    """Split the planes of a series into volumes.

    Parts of an even stack are volumes if each is a stack by itself, and either the header says so
    clearly or the pixels do not look like one anatomy.

    Args:
        planes: of one series.
        judge: looks at the pixels; called only where the header leaves doubt.

    Returns:
        One piece, with label "", unless several stacks of slices overlap.
    """
    directions = [p.directions for p in planes if p.directions is not None]
    positions = [p.position_mm for p in planes if p.position_mm is not None]
    if len(planes) < 4 or len(directions) < len(planes) or len(positions) < len(planes):
        return [Piece(planes=tuple(planes))]
    turned = _classes(np.array(directions).reshape(-1, 6), _SAME_DIRECTION)
    if len(turned) > 1:
        if min(map(len, turned)) < 3:
            return [Piece(planes=tuple(planes))]
        split = [leaf for part in turned for leaf in _split(planes, part, judge)]
        said = [f"orientation {n + 1}" for n in range(len(split))]
    else:
        split = _split(planes, turned[0], judge)
        said = labels(planes, [leaf.part for leaf in split])
    return [
        Piece(
            planes=tuple(planes[k] for k in leaf.part),
            label=label,
            joined=leaf.joined,
            whole=tuple(planes[k] for k in leaf.whole or ()),
        )
        for leaf, label in zip(split, said, strict=True)
    ]


# ---- splitting ---------------------------------------------------------------------------------


def _split(planes: Sequence[Plane], part: Part, judge: Judge) -> list[_Leaf]:
    """Split planes of one orientation; each volume sorted by position."""
    positions = np.array([plane.position_mm for plane in planes])
    directions = planes[part[0]].directions
    depth = positions @ (positions[0] if directions is None else np.cross(*directions))
    ordered = [part[k] for k in np.argsort(depth[part], kind="stable")]
    return _split_part(planes, depth, ordered, judge)


def _split_part(
    planes: Sequence[Plane], depth: np.ndarray, part: Part, judge: Judge
) -> list[_Leaf]:
    joined = ""
    for name in (*_GRID, *SETTINGS, *COUNTERS):
        texts = [planes[k].fields.get(name, "") for k in part]
        if len(set(texts)) < 2:
            continue
        if name == "PixelSpacing":
            found = _by_spacing(planes, depth, part)
        elif name in SETTINGS:
            found = _by_value(keys(name, texts), depth, part)
        else:
            found = _by_counter(name, texts, depth, part)
        if not found:
            continue
        is_apart, whole = True, None
        if name not in _GRID and _is_stack(part, depth):
            is_apart, alike = _decide(planes, depth, found, judge)
            whole = part if alike else None
        if is_apart:
            inner = [leaf for one in found for leaf in _split_part(planes, depth, one, judge)]
            return [
                _Leaf(part=leaf.part, joined=leaf.joined, whole=whole or leaf.whole)
                for leaf in inner
            ]
        if not joined and all(_is_stack(p, depth) for p in found):
            joined = "; ".join(labels(planes, found))
    parts = _by_rank(planes, depth, part) or [part]
    return [_Leaf(part=one, joined=joined) for one in parts]


def _decide(
    planes: Sequence[Plane], depth: np.ndarray, parts: Sequence[Part], judge: Judge
) -> tuple[bool, bool]:
    """Whether parts of an even stack are volumes, and whether they could still be one."""
    smallest = min(map(len, parts))
    sound = all(_is_stack(p, depth) for p in parts) or smallest == max(map(len, parts)) == 2
    if not sound and smallest < 3:
        return False, True
    part_of = sorted((float(depth[k]), n, k) for n, part in enumerate(parts) for k in part)
    unlike = judge([planes[k] for *_, k in part_of], [n for _, n, _ in part_of])
    if unlike > _UNLIKE:
        return True, False
    strong = is_strong([[planes[k] for k in part] for part in parts])
    return strong or (sound and unlike >= _ALIKE), True


def _by_rank(planes: Sequence[Plane], depth: np.ndarray, part: Part) -> list[Part] | None:
    """The first image of each position, the second, ..., if all have several that are counted."""
    places = [[part[0]]]
    for k in part[1:]:
        if depth[k] - depth[places[-1][0]] < _SAME_PLACE_MM:
            places[-1].append(k)
        else:
            places.append([k])
    size = len(places[0])
    if size < 2 or len(places) < 2 or any(len(place) != size for place in places):
        return None
    for name in _RANKED:
        ranks = [[count(name, planes[k].fields.get(name, "")) for k in place] for place in places]
        if all(len(set(rank)) == size for rank in ranks):
            ordered = [
                [place[i] for i in np.argsort(rank)]
                for place, rank in zip(places, ranks, strict=True)
            ]
            return [[place[r] for place in ordered] for r in range(size)]
    return None


def _by_spacing(planes: Sequence[Plane], depth: np.ndarray, part: Part) -> list[Part] | None:
    spacings = np.array([planes[k].spacing_mm or (0.0, 0.0) for k in part])
    parts = [[part[k] for k in one] for one in _classes(spacings, 1e-3 * spacings.max())]
    return parts if _overlap(parts, depth) else None


def _by_value(texts: Sequence[str], depth: np.ndarray, part: Part) -> list[Part] | None:
    """One part for each value, if they overlap. Where some state no value, all must be stacks."""
    groups: dict[str, Part] = {}
    for text, k in zip(texts, part, strict=True):
        groups.setdefault(text, []).append(k)
    parts = [groups[value] for value in sorted(groups, key=order)]
    if len(parts) < 2 or not _overlap(parts, depth):
        return None
    return parts if "" not in groups or all(_is_stack(p, depth) for p in parts) else None


def _by_counter(
    name: str, texts: Sequence[str], depth: np.ndarray, part: Part
) -> list[Part] | None:
    """Parts in each of which the counter grows along the table, if these are overlapping stacks.

    Counters with many values may be disordered within one volume (images that were reconstructed
    in parallel, heart beats): parts that are not stacks mean nothing then.
    """
    counts = np.array([count(name, text) for text in texts])
    values = sorted(set(counts))
    if len(values) < 2:
        return None
    groups = [[part[k] for k in np.flatnonzero(counts == value)] for value in values]
    candidates = [_sweeps(groups, depth)]
    gaps = np.argsort(-np.diff(values), kind="stable")
    for n in range(1, min(_MAX_VOLUMES, len(values))):
        edges = [0, *sorted(int(g) + 1 for g in gaps[:n]), len(groups)]
        candidates.append([list(chain(*groups[a:b])) for a, b in pairwise(edges)])
    few = "Acquisition" in name and 2 * len(values) <= len(part)
    for k, parts in enumerate(candidates):
        parts = [sorted(p, key=lambda index: depth[index]) for p in parts]
        if _overlap(parts, depth) and ((few and k == 0) or all(_is_stack(p, depth) for p in parts)):
            return parts
    return None


def _sweeps(groups: Sequence[Part], depth: np.ndarray) -> list[Part]:
    """Join groups that continue each other along the table."""
    sweeps: list[Part] = []
    for group in groups:
        if sweeps and not _interleave(sweeps[-1], group, depth):
            sweeps[-1] = sweeps[-1] + group
        else:
            sweeps.append(list(group))
    return sweeps


def _overlap(parts: Sequence[Part], depth: np.ndarray) -> bool:
    """Whether two of the parts overlap. A single slice cannot be a volume of its own."""
    stacks = sorted((p for p in parts if len(p) > 1), key=lambda p: float(depth[p].min()))
    furthest: Part | None = None
    for part in stacks:
        if furthest is not None and _interleave(furthest, part, depth, mutually=True):
            return True
        if furthest is None or depth[part].max() > depth[furthest].max():
            furthest = part
    return False


def _interleave(one: Part, other: Part, depth: np.ndarray, *, mutually: bool = False) -> bool:
    """Whether more than one slice, or half of a part, is within the extent of the other.

    A part that fills a gap in the other does not interleave mutually.
    """
    inside = _inside(one, other, depth)
    counts = zip(inside, (len(one), len(other)), strict=True)
    return any(n > 1 or 2 * n >= size for n, size in counts) and min(inside) >= int(mutually)


def _inside(one: Part, other: Part, depth: np.ndarray) -> tuple[int, int]:
    """Number of slices of each part that are within the extent of the other."""

    def count(part: Part, hull: Part) -> int:
        low, high = depth[hull].min() - _SAME_PLACE_MM, depth[hull].max() + _SAME_PLACE_MM
        return int(((depth[part] > low) & (depth[part] < high)).sum())

    return count(one, other), count(other, one)


def _is_stack(part: Part, depth: np.ndarray) -> bool:
    """Whether these are at least three evenly spaced slices, of which a fifth may be missing."""
    gaps = np.diff(np.sort(depth[part]))
    if len(part) < 3 or gaps.min() < _SAME_PLACE_MM:
        return False
    times = gaps / np.median(gaps)
    even = np.abs(times - times.round()).max() <= _MULTIPLE_TOLERANCE
    return bool(even) and 5 * (times.round().sum() - len(gaps)) <= len(part)


def _classes(rows: np.ndarray, tolerance: float) -> list[Part]:
    """Indices of equal rows, within a tolerance."""
    classes: list[Part] = []
    for k, row in enumerate(rows):
        for one in classes:
            if np.abs(rows[one[0]] - row).max() <= tolerance:
                one.append(k)
                break
        else:
            classes.append([k])
    return classes
