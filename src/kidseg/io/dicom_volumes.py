"""Separate the volumes that one series contains: contrast phases, echoes, reconstructions.

Two stacks of slices that overlap are two volumes, even if their slices interleave so that together
they are evenly spaced. Stacks that follow each other along the table are one volume: step-and-shoot
scanners count an acquisition for each step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np

from kidseg.io.dicom_frames import Plane
from kidseg.io.dicom_header import numbers

__all__ = ["differences", "split_volumes"]

# Elements that are the same in all slices of one volume.
_SETTINGS = {
    "FrameOfReferenceUID": "frame of reference",
    "Rows": "rows",
    "Columns": "columns",
    "SeriesNumber": "series number",
    "StackID": "stack",
    "TemporalPositionIdentifier": "temporal position",
    "TemporalPositionIndex": "temporal position",
    "TemporalPositionTimeOffset": "time offset",
    "NominalPercentageOfCardiacPhase": "cardiac phase",
    "NominalCardiacTriggerDelayTime": "trigger delay",
    "EchoNumbers": "echo",
    "EchoTime": "echo time",
    "EffectiveEchoTime": "echo time",
    "InversionTime": "inversion time",
    "DiffusionBValue": "b-value",
    "DiffusionGradientOrientation": "diffusion direction",
    "KVP": "kVp",
    "ConvolutionKernel": "kernel",
    "ReconstructionAlgorithm": "reconstruction",
    "ContrastBolusAgent": "contrast agent",
    "ContrastBolusAgentNumber": "contrast agent",
    "ContrastBolusAgentAdministered": "contrast agent administered",
    "FilterType": "filter",
    "ScanOptions": "scan options",
    "ImageType": "image type",
    "FrameType": "frame type",
    "SliceThickness": "slice thickness",
    "ReconstructionDiameter": "field of view",
    "SeriesDescription": "description",
    "ProtocolName": "protocol",
}
# Elements that may grow from slice to slice; within one volume they grow along the table.
_COUNTERS = {
    "AcquisitionNumber": "acquisition",
    "FrameAcquisitionNumber": "acquisition",
    "AcquisitionDateTime": "acquisition time",
    "FrameAcquisitionDateTime": "acquisition time",
    "FrameReferenceDateTime": "acquisition time",
    "AcquisitionTime": "acquisition time",
    "TriggerTime": "trigger time",
    "ContentTime": "content time",
    "InstanceCreationTime": "creation time",
    "InstanceNumber": "images",
}
_RANKED = ("AcquisitionNumber", "AcquisitionTime", "ContentTime", "InstanceNumber")
_DATED = {name for name in _COUNTERS if name.endswith("Time") and name != "TriggerTime"}
_SAME_PLACE_MM = 0.011
_SAME_DIRECTION = 0.02  # about one degree
_MAX_VOLUMES = 8  # that are told apart by the gaps in a series of times
_MULTIPLE_TOLERANCE = 0.05
_LABELS = 3

Part = list[int]


def split_volumes(planes: Sequence[Plane]) -> list[tuple[tuple[Plane, ...], str]]:
    """Split the planes of a series into volumes.

    Returns:
        For each volume its planes and what distinguishes it from the others ("acquisition 2,
        kernel B70f"). One volume, with "", unless several stacks of slices overlap.
    """
    directions = [p.directions for p in planes if p.directions is not None]
    positions = [p.position_mm for p in planes if p.position_mm is not None]
    if len(planes) < 4 or len(directions) < len(planes) or len(positions) < len(planes):
        return [(tuple(planes), "")]
    turned = _classes(np.array(directions).reshape(-1, 6), _SAME_DIRECTION)
    if len(turned) > 1:
        if min(map(len, turned)) < 3:
            return [(tuple(planes), "")]
        parts = [
            [part[k] for k in inner]
            for part in turned
            for inner in _split([planes[k] for k in part])
        ]
        labels = [f"orientation {n + 1}" for n in range(len(parts))]
    else:
        parts = _split(planes)
        labels = _labels(planes, parts)
    return [
        (tuple(planes[k] for k in part), label) for part, label in zip(parts, labels, strict=True)
    ]


def differences(planes: Sequence[Plane]) -> list[str]:
    """The settings that differ between the planes of one volume, with the number of planes."""
    found = []
    for name, label in _SETTINGS.items():
        if name in ("FrameOfReferenceUID", "SeriesNumber"):
            continue  # identifiers are checked elsewhere
        counts: dict[str, int] = {}
        for plane in planes:
            value = _normal(plane.fields.get(name, ""))
            counts[value] = counts.get(value, 0) + 1
        if len(counts) > 1:
            shown = ", ".join(f"{_shown(v)} ({n}x)" for v, n in list(counts.items())[:4])
            found.append(f"{label}: {shown}" + (", ..." if len(counts) > 4 else ""))
    return found


# ---- splitting ---------------------------------------------------------------------------------


def _split(planes: Sequence[Plane]) -> list[Part]:
    """Split planes of one orientation; each volume sorted by position."""
    positions = np.array([plane.position_mm for plane in planes])
    normal = np.cross(*planes[0].directions) if planes[0].directions is not None else positions[0]
    depth = positions @ normal
    everything = [int(k) for k in np.argsort(depth, kind="stable")]
    return _split_part(planes, depth, everything)


def _split_part(planes: Sequence[Plane], depth: np.ndarray, part: Part) -> list[Part]:
    for name in ("PixelSpacing", *_SETTINGS, *_COUNTERS):
        texts = [planes[k].fields.get(name, "") for k in part]
        if len(set(texts)) < 2:
            continue
        if name == "PixelSpacing":
            found = _by_spacing(planes, depth, part)
        elif name in _SETTINGS:
            found = _by_value(texts, depth, part)
        else:
            found = _by_counter(name, texts, depth, part)
        if found:
            return [leaf for one in found for leaf in _split_part(planes, depth, one)]
    return _by_rank(planes, depth, part) or [part]


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
        ranks = [[_count(name, planes[k].fields.get(name, "")) for k in place] for place in places]
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
        groups.setdefault(_normal(text), []).append(k)
    parts = [groups[value] for value in sorted(groups, key=_order)]
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
    counts = np.array([_count(name, text) for text in texts])
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


# ---- values ------------------------------------------------------------------------------------


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


def _normal(text: str) -> str:
    """The text; numbers without their way of writing, so that 5 and 5.000 are the same."""
    parts = numbers(text, text.count("\\") + 1)
    return text if parts is None else "\\".join(f"{v:.5g}" for v in parts)


def _order(text: str) -> tuple[bool, list[float], str]:
    """Sorts numbers by value, other texts by letters."""
    values = numbers(text, text.count("\\") + 1)
    return values is None, values or [], text


def _count(name: str, text: str) -> float:
    """A counter as a number, a time as seconds; -1 if it is missing or unreadable.

    Source: DICOM PS3.5, 6.2: TM is HHMMSS.FFFFFF, DT is YYYYMMDDHHMMSS.FFFFFF&ZZXX.
    """
    if name not in _DATED:
        values = numbers(text, 1)
        return values[0] if values and math.isfinite(values[0]) else -1.0
    digits, _, fraction = text.replace(":", "").partition("+")[0].partition(".")
    day, clock = (digits[:8], digits[8:]) if name.endswith("DateTime") else ("0", digits)
    if not (day + clock).isdecimal() or not (fraction or "0").isdecimal():
        return -1.0
    hours, minutes, seconds = (int(clock[k : k + 2] or 0) for k in (0, 2, 4))
    clock_s = 3600 * hours + 60 * minutes + seconds + float(f"0.{fraction or 0}")
    return 86400.0 * (int(day) % 100 + 31 * (int(day) // 100)) + clock_s


def _shown(value: str) -> str:
    return value.replace("\\", "/")[:40] or "none"


def _labels(planes: Sequence[Plane], parts: Sequence[Part]) -> list[str]:
    """What distinguishes each part from the others."""
    if len(parts) == 1:
        return [""]
    found: list[list[str]] = [[] for _ in parts]
    names = ["AcquisitionNumber", *_SETTINGS, *_COUNTERS, "PixelSpacing"]
    for name in dict.fromkeys(names):
        texts = [[planes[k].fields.get(name, "") for k in part] for part in parts]
        values = texts if name in _COUNTERS else [[_normal(t) for t in part] for part in texts]
        spans = [_span(name, one) for one in values]
        single = all(len(set(one)) == 1 for one in values)
        if len(set(spans)) == len(spans) or (single and len(set(spans)) > 1):
            label = {**_SETTINGS, **_COUNTERS}.get(name, "pixel spacing")
            for said, span in zip(found, spans, strict=True):
                if len(said) < _LABELS and all(not one.startswith(label) for one in said):
                    said.append(f"{label} {span}")
    return [", ".join(said) for said in found]


def _span(name: str, texts: Sequence[str]) -> str:
    distinct = sorted(set(texts), key=lambda text: (_count(name, text), text))
    if len(distinct) == 1:
        return _shown(distinct[0])
    return f"{_shown(distinct[0])} to {_shown(distinct[-1])}"
