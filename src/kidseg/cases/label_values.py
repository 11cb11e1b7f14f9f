"""Judge the values of a label volume: the only place that decides what is a label.

Checking, training, evaluating, exporting and the references of figures all use it, so they accept
and refuse the same files, in the same words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kidseg.errors import Finding, InputError, first_error
from kidseg.geometry import Volume
from kidseg.io import Scan, kind_of

__all__ = [
    "ROUNDING",
    "LabelValues",
    "judge_labels",
    "known_labels",
    "labels_of_file",
    "values_and_counts",
]

ROUNDING = 1e-4
"""Values that are closer to an integer are that integer.

float32 rounds values up to 255 by at most 1.6e-5 (2**-16). nibabel saves floating-point labels
0..n in 16 bits with a slope of n / 65535, which rounds them by at most half of it: 1e-4 for n = 13.
Interpolation gives values anywhere between labels, so some are farther from an integer.
"""

_NAMED = 6
# Of a volume that contains no labels at all, only so many different values are counted.
_MAX_VALUES = 4096


@dataclass(frozen=True, kw_only=True)
class LabelValues:
    """A label volume and what was found in it.

    Attributes:
        volume: (1, slices, rows, columns) uint8; values that are not labels have become 0.
        voxels: {label: number of voxels}, of those that occur, without background.
        is_exact: the file contains these values as they are: as integers, unscaled.
        findings: errors "fractional-labels", "unexpected-labels"; warnings "rounded-labels",
            "float-labels".
    """

    volume: Volume
    voxels: Mapping[int, int]
    is_exact: bool
    findings: tuple[Finding, ...]


def judge_labels(
    scan: Scan, names: Mapping[int, str], ignore_label: int | None = None
) -> LabelValues:
    """Judge the values of a label volume; every problem becomes a finding.

    Args:
        scan: read with values "labels".
        names: {label: name} of the labels that the data set defines, without background.
        ignore_label: another value that is allowed.
    """
    data = scan.volume.data
    counts = values_and_counts(data)
    known = {0, *names} if ignore_label is None else {0, *names, ignore_label}
    whole = {value: n for value, n in counts.items() if value.is_integer()}
    fractional = {value: n for value, n in counts.items() if not value.is_integer()}
    unexpected = {value: n for value, n in whole.items() if value not in known}
    findings = []
    if fractional:
        findings.append(_fractional(scan, fractional))
    if unexpected:
        findings.append(_unexpected(scan, unexpected, names, ignore_label))
    is_exact = not data.is_floating_point()
    valid = data.to(torch.uint8) if is_exact and not unexpected else _valid(data, sorted(known))
    if not findings and not is_exact:
        findings.append(_stored_as_float(scan))
    return LabelValues(
        volume=Volume(valid, scan.volume.grid),
        voxels={int(value): n for value, n in whole.items() if value and value in known},
        is_exact=is_exact,
        findings=tuple(findings),
    )


def known_labels(
    scan: Scan, names: Mapping[int, str], ignore_label: int | None = None
) -> LabelValues:
    """Judge the values of a label volume, which may contain labels only.

    Raises:
        InputError: "fractional-labels", "unexpected-labels".
    """
    judged = judge_labels(scan, names, ignore_label)
    if (error := first_error(judged.findings)) is not None:
        raise error
    return judged


def labels_of_file(
    scan: Scan, names: Mapping[int, str], ignore_label: int | None = None
) -> LabelValues:
    """The same of a single file, whose user may name its labels.

    Raises:
        InputError: as `known_labels`.
    """
    try:
        return known_labels(scan, names, ignore_label)
    except InputError as error:
        if error.code != "unexpected-labels":
            raise
        step = "Give a label volume; if its labels are others, name each: --label NUMBER=NAME."
        raise InputError(error.cause, path=error.path, code=error.code, next_step=step) from error


def values_and_counts(data: Tensor) -> dict[float, int]:
    """{value: number of voxels}, in ascending order; values within `ROUNDING` are integers.

    Of more than 4096 different values only the lowest are listed.

    Args:
        data: (1, slices, rows, columns); counted slice by slice to save memory.
    """
    counts: dict[float, int] = {}
    for plane in data.flatten(0, 1):
        values, numbers = _count(plane.numpy())
        for value, n in zip(values.tolist(), numbers.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + n
        if len(counts) > _MAX_VALUES:
            counts = dict(sorted(counts.items())[: _MAX_VALUES // 2])
    return {value + 0.0: counts[value] for value in sorted(counts)}  # -0.0 + 0.0 is 0.0


def _valid(data: Tensor, known: Sequence[int]) -> Tensor:
    """The labels as uint8; other values become 0."""
    numbers = torch.tensor(known, dtype=data.dtype)
    out = torch.empty(data.shape, dtype=torch.uint8)
    for target, plane in zip(out.flatten(0, 1), data.flatten(0, 1), strict=True):
        whole = plane.round() if plane.is_floating_point() else plane
        is_label = torch.isin(whole, numbers) & ((plane - whole).abs() <= ROUNDING)
        target[:] = torch.where(is_label, whole, 0).to(torch.uint8)
    return out


def _count(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of a slice, and how often each occurs."""
    if plane.dtype.kind == "f":
        whole = np.rint(plane)
        plane = np.where(np.abs(plane - whole) <= ROUNDING, whole, plane)
    if plane.size and plane.min() >= 0 and plane.max() <= 255:
        small = plane.astype(np.uint8)
        if plane.dtype.kind != "f" or np.array_equal(small, plane):
            tally = np.bincount(small.ravel())
            return np.flatnonzero(tally).astype(np.float64), tally[tally > 0]
    values, numbers = np.unique(plane, return_counts=True)
    return values.astype(np.float64), numbers


def _fractional(scan: Scan, fractional: Mapping[float, int]) -> Finding:
    scaling = _scaling(scan)
    return Finding(
        code="fractional-labels",
        path=str(scan.path),
        cause=f"{sum(fractional.values())} voxels have fractional values: {_counted(fractional)}"
        + (f"; they are {scaling}" if scaling else ""),
        next_step="Save the labels as unscaled integers."
        if scaling
        else "Provide label volumes, not probabilities; resample labels with nearest-neighbour "
        "interpolation only.",
        severity="error",
    )


def _unexpected(
    scan: Scan, unexpected: Mapping[float, int], names: Mapping[int, str], ignore_label: int | None
) -> Finding:
    known = [f"{number} {name}" for number, name in sorted(names.items())]
    known += [] if ignore_label is None else [f"{ignore_label} ignore"]
    return Finding(
        code="unexpected-labels",
        path=str(scan.path),
        cause=f"{sum(unexpected.values())} voxels have values that are not labels: "
        f"{_counted(unexpected)}; the labels are {', '.join(['0 background', *known])}",
        next_step="Fix the file, or define the label in the data set's description.",
        severity="error",
    )


def _stored_as_float(scan: Scan) -> Finding:
    """Integers that are not stored as such: rounded, or only of another type."""
    data = scan.volume.data
    rounding = max(float((plane - plane.round()).abs().max()) for plane in data.flatten(0, 1))
    scaling = _scaling(scan)
    stored = scaling or "stored as floating-point numbers"
    if rounding == 0:
        return Finding(
            code="float-labels",
            path=str(scan.path),
            cause=f"the labels are integers, but {stored}",
        )
    return Finding(
        code="rounded-labels",
        path=str(scan.path),
        cause=f"the labels are up to {rounding:.2g} away from integers, because they are {stored}; "
        "they were rounded",
        next_step="Save the labels as unscaled integers.",
    )


def _scaling(scan: Scan) -> str:
    """How a NIfTI file stores scaled values; "" if it does not."""
    from kidseg.io.nifti_header import parse
    from kidseg.io.payload import open_payload

    if scan.format != "nifti" or kind_of(scan.path) != "nifti":  # in a zip
        return ""
    with open_payload(scan.path) as payload:
        header = parse(payload)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope) or (slope, intercept) == (1.0, 0.0):
        return ""
    kind = header.get_data_dtype().name
    return f"stored scaled, as {kind} with slope {slope:.6g} and intercept {intercept:.6g}"


def _counted(counts: Mapping[float, int]) -> str:
    named = [f"{value:.10g} ({n} voxels)" for value, n in list(counts.items())[:_NAMED]]
    return ", ".join(named) + (" and more" if len(counts) > _NAMED else "")
