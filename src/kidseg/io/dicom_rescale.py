"""Whether images state how stored values become Hounsfield units, and whether that can be true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch import Tensor

from kidseg.errors import Finding, InputError
from kidseg.io import checks
from kidseg.io.dicom_continuity import sampled
from kidseg.io.dicom_frames import Plane

__all__ = ["check_mixed", "check_stated", "check_valid", "rescaling"]

_NAMED = 3
_NOTICEABLE_HU = 10.0
"""Neighbouring slices of one scan differ by less in the median."""


def rescaling(plane: Plane) -> tuple[float, float]:
    """Slope and intercept; 1 and 0 where the file states none."""
    return 1.0 if plane.slope is None else plane.slope, plane.intercept or 0.0


def check_valid(planes: Sequence[Plane]) -> None:
    """Refuse numbers that cannot rescale anything.

    Raises:
        InputError: "bad-rescale": the slope is zero, or slope or intercept is not finite.
    """
    for plane in planes:
        scale = rescaling(plane)
        if scale[0] == 0 or not np.isfinite(scale).all():
            raise InputError(
                f"its rescaling is invalid: {_said(scale)}",
                path=plane.path,
                code="bad-rescale",
                next_step="The header is damaged: export the series again.",
            )


def check_stated(planes: Sequence[Plane], path: Path) -> Iterator[Finding]:
    """A finding if slope or intercept is missing.

    Raises:
        InputError: "bad-rescale": they are missing in some images where the others state others
            than 1 and 0.
    """
    missing = [plane for plane in planes if None in (plane.slope, plane.intercept)]
    stated = {(plane.slope, plane.intercept) for plane in planes if plane not in missing}
    if not missing:
        return
    where = f"rescale slope or intercept is missing in {len(missing)} of {len(planes)} images"
    if stated - {(1.0, 0.0)}:
        raise _wrong(f"{where}, first {missing[0].path.name}; the others state them", path)
    cause = f"{where}; 1 and 0 were used: stored values are assumed to be Hounsfield units"
    yield Finding(code="missing-rescale", path=str(path), cause=cause)


def check_mixed(values: Tensor, planes: Sequence[Plane], path: Path) -> tuple[Finding, ...]:
    """A finding if the images differ in slope or intercept; their values then still fit.

    Some scanners choose them for each image. Then neighbouring slices continue each other in
    Hounsfield units; if one would continue the other only with the other's rescaling, its own is
    wrong.

    Args:
        values: (1, planes, rows, columns) in Hounsfield units.
        planes: in the same order, neighbours beside each other.
        path: the series, for messages.

    Raises:
        InputError: "bad-rescale": a slice is off by what its rescaling differs from a neighbour's.
    """
    scales = [rescaling(plane) for plane in planes]
    images_of: dict[tuple[float, float], list[str]] = {}
    for plane, scale in zip(planes, scales, strict=True):
        images_of.setdefault(scale, []).append(plane.path.name)
    if len(images_of) == 1:
        return ()
    ordered = sorted(images_of.items(), key=lambda item: -len(item[1]))
    shown = [f"{_said(scale)} in {_files(names)}" for scale, names in ordered[:_NAMED]]
    more = f", and {len(ordered) - _NAMED} others" if len(ordered) > _NAMED else ""
    cause = f"its images differ in rescaling: {'; '.join(shown)}{more}"
    sample = sampled(values)
    for k, pair in enumerate(pairwise(scales)):
        off_hu = _off_by(sample[k], sample[k + 1], *pair) if pair[0] != pair[1] else 0.0
        if abs(off_hu) >= _NOTICEABLE_HU:
            counts = Counter(scales)
            odd, other = (k, k + 1) if counts[pair[0]] < counts[pair[1]] else (k + 1, k)
            raise _wrong(
                f"{cause}. {planes[odd].path.name} fits its neighbour {planes[other].path.name} "
                f"with the neighbour's; with its own it is off by {abs(off_hu):.0f} HU",
                path,
            )
    cause += "; each was rescaled with its own, and neighbours fit"
    step = "Compare neighbouring slices in a viewer."
    return (Finding(code="mixed-rescale", path=str(path), cause=cause, next_step=step),)


def _off_by(
    one: Tensor, other: Tensor, scale: tuple[float, float], own: tuple[float, float]
) -> float:
    """By how many HU the second slice is off in the median if it fits with the first's rescaling.

    0 if it fits as well with its own. What was clipped or set to air tells nothing, nor does the
    least value of a slice: that of what was masked, the same before rescaling.
    """
    again = (other - own[1]) / own[0] * scale[0] + scale[1]
    tells = again != other
    for values in (one, other):
        tells &= (values != checks.AIR_HU) & (values != values.min())
    if not bool(tells.any()):
        return 0.0
    a, b, c = one[tells], other[tells], again[tells]
    share = float(((a - b) / (c - b)).median())  # 0: its own rescaling fits; 1: the first's does
    return float((c - b).median()) if 0.5 < share < 1.5 else 0.0


def _files(names: Sequence[str]) -> str:
    return f"1 image ({names[0]})" if len(names) == 1 else f"{len(names)} images (first {names[0]})"


def _said(scale: tuple[float, float]) -> str:
    return f"slope {scale[0]:g}, intercept {scale[1]:g}"


def _wrong(cause: str, path: Path) -> InputError:
    return InputError(
        cause, path=path, code="bad-rescale", next_step="Export the complete series again."
    )
