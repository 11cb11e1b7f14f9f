"""What the header states about each plane: the settings and counters that tell volumes apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise

import numpy as np

from kidseg.io.dicom_frames import Plane
from kidseg.io.dicom_header import numbers

__all__ = ["COUNTERS", "SETTINGS", "count", "differences", "is_strong", "keys", "labels", "order"]

# Elements that are the same in all slices of one volume.
SETTINGS = {
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
COUNTERS = {
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
# Measured settings may vary a little within one volume; a fraction of the largest.
_TOLERANCE = {"SliceThickness": 0.01, "ReconstructionDiameter": 0.01, "KVP": 0.01}
# Two phases, echoes or diffusion weightings by definition, whatever their pixels look like.
_STRONG = {
    "StackID",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "TemporalPositionTimeOffset",
    "NominalPercentageOfCardiacPhase",
    "NominalCardiacTriggerDelayTime",
    "TriggerTime",
    "EchoNumbers",
    "EchoTime",
    "EffectiveEchoTime",
    "InversionTime",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
}
# Strong evidence only together: another acquisition, or another contrast, at another time.
_ACQUISITIONS = {
    "AcquisitionNumber",
    "FrameAcquisitionNumber",
    "ContrastBolusAgent",
    "ContrastBolusAgentNumber",
    "ContrastBolusAgentAdministered",
}
_DATED = {name for name in COUNTERS if name.endswith("Time") and name != "TriggerTime"}
_TIMES = _DATED - {"ContentTime", "InstanceCreationTime"}
_LABELS = 3


def differences(planes: Sequence[Plane]) -> list[str]:
    """The settings that differ between the planes of one volume, with the number of planes."""
    found = []
    for name, label in SETTINGS.items():
        if name in ("FrameOfReferenceUID", "SeriesNumber"):
            continue  # identifiers are checked elsewhere
        texts = [plane.fields.get(name, "") for plane in planes]
        alike = keys(name, texts)
        counts = Counter(alike)
        written = dict(zip(reversed(alike), reversed(texts), strict=True))
        if len(counts) > 1:
            shown = ", ".join(f"{_shown(written[v])} ({n}x)" for v, n in list(counts.items())[:4])
            found.append(f"{label}: {shown}" + (", ..." if len(counts) > 4 else ""))
    return found


def is_strong(parts: Sequence[Sequence[Plane]]) -> bool:
    """Whether the header says clearly that these parts are different volumes."""
    apart = {name for name in (*_STRONG, *_ACQUISITIONS, *_TIMES) if _are_apart(name, parts)}
    return bool(apart & _STRONG or (apart & _TIMES and apart & _ACQUISITIONS))


def _are_apart(name: str, parts: Sequence[Sequence[Plane]]) -> bool:
    """Whether no two parts share a value of a setting, or overlap in that of a counter."""
    texts = [[plane.fields.get(name, "") for plane in part] for part in parts]
    if name in COUNTERS:
        counts = [[count(name, text) for text in one] for one in texts]
        spans = sorted((min(one), max(one)) for one in counts)
        return spans[0][0] >= 0 and all(a[1] < b[0] for a, b in pairwise(spans))
    alike = keys(name, list(chain(*texts)))
    sets = [set(alike[a:b]) for a, b in pairwise(np.cumsum([0, *map(len, texts)]))]
    return sum(map(len, sets)) == len(set().union(*sets))


# ---- values ------------------------------------------------------------------------------------


def keys(name: str, texts: Sequence[str]) -> list[str]:
    """Equal texts for equal values: without spaces, case, way of writing numbers, and jitter."""
    plain = [_normal(text) for text in texts]
    if name not in _TOLERANCE:
        return plain
    known = {text: v[0] for text in set(plain) if (v := numbers(text, 1)) and math.isfinite(v[0])}
    if not known:
        return plain
    tolerance = _TOLERANCE[name] * max(map(abs, known.values()))
    first: dict[str, str] = {}
    start = ""
    for text in sorted(known, key=known.__getitem__):
        start = start if start and known[text] - known[start] <= tolerance else text
        first[text] = start
    return [first.get(text, text) for text in plain]


def _normal(text: str) -> str:
    """The text without case and outer spaces; numbers so that 5 and 5.000 are the same."""
    parts = numbers(text, text.count("\\") + 1)
    if parts is None:
        return "\\".join(" ".join(part.split()).casefold() for part in text.split("\\"))
    return "\\".join(f"{v:.5g}" for v in parts)


def order(text: str) -> tuple[bool, list[float], str]:
    """Sorts numbers by value, other texts by letters."""
    values = numbers(text, text.count("\\") + 1)
    return values is None, values or [], text


def count(name: str, text: str) -> float:
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


def _shown(text: str) -> str:
    """A value for messages; numbers without their way of writing."""
    is_number = numbers(text, text.count("\\") + 1) is not None
    return (_normal(text) if is_number else text.strip()).replace("\\", "/")[:40] or "none"


def labels(planes: Sequence[Plane], parts: Sequence[Sequence[int]]) -> list[str]:
    """What distinguishes each part from the others."""
    if len(parts) == 1:
        return [""]
    found: list[list[str]] = [[] for _ in parts]
    names = ["AcquisitionNumber", *SETTINGS, *COUNTERS, "PixelSpacing"]
    for name in dict.fromkeys(names):
        texts = [[planes[k].fields.get(name, "") for k in part] for part in parts]
        every = list(chain(*texts))
        alike = keys(name, every)
        written = dict(zip(reversed(alike), reversed(every), strict=True))
        values = texts
        if name not in COUNTERS:
            ends = np.cumsum([0, *map(len, texts)])
            values = [[written[v] for v in alike[a:b]] for a, b in pairwise(ends)]
        spans = [_span(name, one) for one in values]
        single = all(len(set(one)) == 1 for one in values)
        if len(set(spans)) == len(spans) or (single and len(set(spans)) > 1):
            label = {**SETTINGS, **COUNTERS}.get(name, "pixel spacing")
            for said, span in zip(found, spans, strict=True):
                if len(said) < _LABELS and all(not one.startswith(label) for one in said):
                    said.append(f"{label} {span}")
    return [", ".join(said) for said in found]


def _span(name: str, texts: Sequence[str]) -> str:
    distinct = sorted(set(texts), key=lambda text: (count(name, text), text))
    if len(distinct) == 1:
        return _shown(distinct[0]) if name not in COUNTERS else _counted(distinct[0])
    return f"{_counted(distinct[0])} to {_counted(distinct[-1])}"


def _counted(text: str) -> str:
    return text.replace("\\", "/")[:40] or "none"
