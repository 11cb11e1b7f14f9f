"""Judge whether the values of a CT are Hounsfield units (HU).

By the definition of the scale, air is at -1000 HU and water at 0. What is judged are the values of
the tissues that stand out in the histogram of any body: air around it, fat, and soft tissue (muscle
and organs, without or with contrast agent). Values that were shifted or scaled move all of them;
noise has no neighbours that resemble each other. A scan is refused if all signs agree; otherwise
the finding says what was seen. Scans in which neither air nor fat can be seen (windowed, or a small
crop) cannot be judged so, and a shift of their values is not noticed.

Source: air -1000, fat -150 to -50, muscle 10 to 40, liver 40 to 60 and spleen 45 HU without
contrast agent, organs up to 130 HU with it (Bushberg et al., The Essential Physics of Medical
Imaging; Lamba et al., AJR 2014, 10.2214/AJR.13.11553). The limits below leave room for low tube
voltages, at which fat is darker and contrast agent brighter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kidseg.errors import Finding, InputError

__all__ = ["check_intensities"]

_MAX_SAMPLED_VOXELS = 2**20
_MAX_SAMPLED_SLICES = 16
_NEXT_STEP = "Check the export: kidseg expects unclipped Hounsfield units."

# Twelve bits: more is only metal, of which no scan is a tenth.
_MAX_HU, _MOST_DENSE = 4096.0, 0.1
# Usual values of air, fat and soft tissue.
_AIR_HU, _FAT_HU, _SOFT_HU = -1000.0, -95.0, 55.0
# Air of scanners and of bowel gas is within this distance; fat and soft tissue are in these ranges.
_AIR_TOLERANCE_HU = 35.0
_FAT_RANGE_HU = (-140.0, -57.0)
_SOFT_RANGE_HU = (25.0, 85.0)
# Usual ratios of (soft tissue - air) and (soft tissue - fat) to that of the values above.
_SCALE_RANGE = (0.8, 1.25)
_CONTRAST_RANGE = (0.63, 1.66)
# Correlation of neighbouring voxels: over 0.9 in CT, 0.5 in crops with much noise, 0 in noise.
_DOUBTFUL_CORRELATION, _NO_CORRELATION = 0.3, 0.1
# A homogeneous crop may be mostly noise, but of less than this standard deviation.
_NOISE_HU, _CERTAIN_NOISE_HU = 80.0, 150.0

# Blocks of pixels with a larger standard deviation are at the edge of a tissue.
_EDGE_HU = 120.0
# Peaks below are air (or lungs), peaks of fat and soft tissue are in the range.
_LOWEST_TISSUE_HU = -350.0
_TISSUE_RANGE_HU = (-500.0, 500.0)
_HIGHEST_FLOOR_HU = -900.0
_LEAST_SOFT_HU = -75.0
_SHARP_HU = 60.0
# Shares of air to judge by in a scan, and in a crop of so few blocks that bowel gas may be most.
_LEAST_AIR, _MUCH_AIR, _MOST_AIR = 0.1, 0.15, 0.25
_LEAST_BLOCKS = 8000
# Air this close to the lowest value was clipped there, so its peak is not where it was.
_CLIPPED_HU = 10.0
# A peak this close to the lowest value may be partial volumes of what was clipped there.
_NEAR_FLOOR_HU = 75.0
# Above, a peak below soft tissue is water or muscle, not fat: between them is no scale to judge.
_BRIGHTEST_FAT_HU = -20.0
# Air and fat that were shifted alike agree within this distance.
_SAME_SHIFT_HU = 60.0


def check_intensities(
    data: Tensor, path: Path, stored: np.dtype | None = None
) -> tuple[Finding, ...]:
    """Check that the values can be Hounsfield units; findings if that is doubtful.

    Findings: "eight-bit-intensities", "windowed-intensities", "no-air", "no-soft-tissue",
    "shifted-hu", "scaled-hu", "no-structure".

    Args:
        data: (1, slices, rows, columns), finite values, after rescaling.
        path: the file, for messages.
        stored: data type in the file, if known.

    Raises:
        InputError: definitely not HU. "constant-image": a single value; "label-map": small
            integers from 0 upwards; "normalised-intensities": fractions within a range of under 50
            units; "eight-bit-intensities": 0..255 stored in eight bits; "shifted-hu": soft tissue
            at about 1000, so that air is at 0; "absurd-intensities": beyond 100 000, or a tenth of
            the voxels beyond 4096, as where bytes are in the wrong order; "scaled-hu": air, fat
            and soft tissue are all a multiple of their values; "no-structure": noise.
    """
    low, high = (float(v) for v in data.aminmax())
    flat = data.flatten() if data.is_contiguous() else data.reshape(-1)
    sample = flat[:: max(1, flat.numel() // _MAX_SAMPLED_VOXELS)].to(torch.float32)
    _refuse_non_hu(sample, low, high, path, stored)
    findings: list[Finding] = []
    if stored is not None and stored.itemsize == 1:
        cause = "it is stored in eight bits: at most 256 levels"
        findings.append(_doubt("eight-bit-intensities", cause, path))
    if low >= 0 and high <= 255:
        cause = f"values are in {low:g}..{high:g}: a window was applied, fat and air are lost"
        findings.append(_doubt("windowed-intensities", cause, path))
    elif low > -300:
        cause = (
            f"the lowest value is {low:g} HU: the scan contains no air, so it was cropped or "
            "windowed, or the values are not HU"
        )
        findings.append(_doubt("no-air", cause, path))
    elif low > -900 and float((sample == low).float().mean()) > 0.01:
        cause = f"values below {low:g} HU were clipped"
        findings.append(_doubt("windowed-intensities", cause, path))
    if _share(sample, -200, 300) < 0.005:
        cause = "almost no voxels are in the range of soft tissue, -200 to 300 HU"
        findings.append(_doubt("no-soft-tissue", cause, path))
    planes = _sampled_planes(data)
    findings += _noise(planes, path)
    findings += _shift_or_scale(_landmarks(planes), low, path)
    return tuple(findings)


def _doubt(code: str, cause: str, path: Path) -> Finding:
    return Finding(code=code, path=str(path), cause=cause, next_step=_NEXT_STEP)


def _refuse_non_hu(
    sample: Tensor, low: float, high: float, path: Path, stored: np.dtype | None
) -> None:
    is_integer = bool((sample == sample.round()).all())
    dense = sample > 300
    if low == high:
        raise _refused(f"every voxel is {low:g}", "constant-image", path)
    if is_integer and low >= 0 and high <= 40:
        cause = f"values are integers in {low:g}..{high:g}: this looks like a label map"
        raise InputError(
            cause,
            path=path,
            code="label-map",
            next_step="Name the scan here, not its labels.",
        )
    if not is_integer and high - low < 50 and max(-low, high) < 50:
        cause = f"values are in {low:.3g}..{high:.3g}: normalised, not Hounsfield units"
        raise _refused(cause, "normalised-intensities", path)
    if low >= 0 and high <= 255 and stored is not None and stored.itemsize == 1:
        cause = f"values are {low:g}..{high:g} in eight bits: a windowed image, not HU"
        raise _refused(cause, "eight-bit-intensities", path)
    if max(-low, high) > 100_000:
        cause = f"values are in {low:g}..{high:g}: not Hounsfield units"
        raise _refused(cause, "absurd-intensities", path)
    if (share := _share(sample, _MAX_HU, math.inf)) > _MOST_DENSE:
        cause = f"{share:.0%} of the voxels are above {_MAX_HU:g}, as only metal is: not HU"
        raise _refused(cause, "absurd-intensities", path)
    # In HU, values above 300 are bone and contrast agent, most of them below 850. If most of them
    # are in 850..1200 instead, they are soft tissue, and 1000 or 1024 was never subtracted; unless
    # air is where it belongs, as round a skull or a phantom of Teflon.
    if (
        float(dense.float().mean()) >= 0.02
        and _share(sample[dense], 850, 1200) >= 0.6
        and _share(sample, _AIR_HU - _AIR_TOLERANCE_HU, _AIR_HU + _AIR_TOLERANCE_HU) < _LEAST_AIR
    ):
        cause = "soft tissue is at about 1000: values are shifted from HU by 1000 or 1024"
        raise _refused(cause, "shifted-hu", path)


def _refused(cause: str, code: str, path: Path) -> InputError:
    return InputError(
        cause,
        path=path,
        code=code,
        next_step="Export the scan again in Hounsfield units (rescale slope and intercept "
        "applied, no window).",
    )


def _share(values: Tensor, low: float, high: float) -> float:
    return float(((values >= low) & (values <= high)).float().mean())


# ---- judgement ---------------------------------------------------------------------------------


def _noise(planes: Tensor, path: Path) -> list[Finding]:
    """Refuse or report values that do not depend on those of their neighbours."""
    low, high = np.percentile(planes.numpy(), (0.5, 99.5))  # metal and padding have no say
    values = planes.clamp(float(low), float(high))
    spread = float(values.std())
    if planes.numel() < 1000 or min(planes.shape[1:]) < 4 or spread < _NOISE_HU:
        return []
    alike = max(
        _correlation(values[:, 1:], values[:, :-1]), _correlation(values[..., 1:], values[..., :-1])
    )
    if alike >= _DOUBTFUL_CORRELATION:
        return []
    cause = (
        f"neighbouring voxels hardly resemble each other (correlation {alike:.2f}): this looks "
        "like noise, not like a CT"
    )
    if alike < _NO_CORRELATION and spread >= _CERTAIN_NOISE_HU:
        raise _refused(cause, "no-structure", path)
    return [_doubt("no-structure", cause, path)]


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).mean() / ((a * a).mean() * (b * b).mean()).sqrt().clamp(min=1e-6))


def _shift_or_scale(seen: _Landmarks, low: float, path: Path) -> list[Finding]:
    """Refuse or report landmarks that are not where they are in every CT."""
    if seen.has_air:
        findings = _by_air(seen, path)
        is_clipped = seen.air is not None and seen.air < low + _CLIPPED_HU
        return findings or (_by_tissue(seen, low, path) if is_clipped else [])
    # Tissue alone is less sure, and of no use without all fat.
    return (
        _by_tissue(seen, low, path)
        if seen.blocks >= _LEAST_BLOCKS and low < _FAT_RANGE_HU[0]
        else []
    )


def _by_air(seen: _Landmarks, path: Path) -> list[Finding]:
    assert seen.air is not None
    contrast = _contrast(seen)
    if seen.soft is not None:
        scale = (seen.soft - seen.air) / (_SOFT_HU - _AIR_HU)
        if not _SCALE_RANGE[0] <= scale <= _SCALE_RANGE[1]:
            agree = contrast is not None and 0.7 < contrast / scale < 1.4
            if agree and seen.air_share > _MUCH_AIR:
                raise _refused(_cause(f"multiplied by about {scale:.2g}", seen), "scaled-hu", path)
            return [
                _doubt("scaled-hu", _cause(f"perhaps multiplied by about {scale:.2g}", seen), path)
            ]
    shift = seen.air - _AIR_HU
    if abs(shift) <= _AIR_TOLERANCE_HU:
        return []
    if seen.fat is None:
        if seen.is_clipped:  # at -950 HU, for example
            return []
        if seen.blocks < _LEAST_BLOCKS and seen.air_share < _MOST_AIR:
            return []
        return [
            _doubt("shifted-hu", _cause(f"perhaps shifted by about {shift:+.0f} HU", seen), path)
        ]
    own = seen.fat - _FAT_HU
    if seen.is_clipped and abs(own - shift) > _SAME_SHIFT_HU:
        return []
    if own * shift <= 0 or abs(own) < _AIR_TOLERANCE_HU / 2:  # bright bowel gas, for example
        return []
    return [_doubt("shifted-hu", _cause(f"shifted by about {shift:+.0f} HU", seen), path)]


def _by_tissue(seen: _Landmarks, low: float, path: Path) -> list[Finding]:
    contrast = _contrast(seen)
    if contrast is None or seen.fat is None or seen.soft is None:
        return []
    is_weak, is_strong = contrast < _CONTRAST_RANGE[0], contrast > _CONTRAST_RANGE[1]
    if (is_weak and seen.fat > _BRIGHTEST_FAT_HU) or (
        is_strong and seen.fat < low + _NEAR_FLOOR_HU
    ):
        return []
    if is_weak or is_strong:
        return [
            _doubt("scaled-hu", _cause(f"perhaps multiplied by about {contrast:.2g}", seen), path)
        ]
    is_high = seen.fat > _FAT_RANGE_HU[1] and seen.soft > _SOFT_RANGE_HU[1]
    is_low = seen.fat < _FAT_RANGE_HU[0] and seen.soft < _SOFT_RANGE_HU[0]
    if not is_high and not is_low:
        return []
    shift = seen.fat - _FAT_HU
    return [_doubt("shifted-hu", _cause(f"perhaps shifted by about {shift:+.0f} HU", seen), path)]


def _contrast(seen: _Landmarks) -> float | None:
    """Difference of soft tissue and fat relative to the usual one."""
    if seen.fat is None or seen.soft is None:
        return None
    return (seen.soft - seen.fat) / (_SOFT_HU - _FAT_HU)


def _cause(change: str, seen: _Landmarks) -> str:
    landmarks = (
        ("air", seen.air, _AIR_HU),
        ("fat", seen.fat, _FAT_HU),
        ("soft tissue", seen.soft, _SOFT_HU),
    )
    places = [
        f"{name} is at {value:.0f} instead of {usual:.0f}"
        for name, value, usual in landmarks
        if value is not None
    ]
    return f"values are {change}: {', '.join(places)} HU"


# ---- landmarks ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Landmarks:
    """Values of the tissues that stand out in the histogram of a scan; None where none does.

    Attributes:
        air: sharp lowest peak, below which there is nothing.
        fat: peak below `soft`.
        soft: muscle and organs.
        is_clipped: much of the air is at or near the lowest value, which is brighter than air.
        is_padding: `air` is a single value, so it may be padding outside the field of view.
        air_share: of all blocks of pixels.
        blocks: number of blocks.
    """

    air: float | None
    fat: float | None
    soft: float | None
    is_clipped: bool = False
    is_padding: bool = False
    air_share: float = 0.0
    blocks: int = 0

    @property
    def has_air(self) -> bool:
        """Whether there is enough air to judge by: some bowel gas is brighter than air."""
        if self.air is None or self.is_padding:
            return False
        least = _LEAST_AIR if self.blocks >= _LEAST_BLOCKS else _MUCH_AIR
        return self.air_share >= least


def _sampled_planes(data: Tensor) -> Tensor:
    """Up to 16 slices of (1, slices, rows, columns), as float32."""
    count = data.shape[1]
    chosen = np.unique(np.linspace(0, count - 1, min(_MAX_SAMPLED_SLICES, count)).round())
    return data[0, torch.from_numpy(chosen.astype(np.int64))].to(torch.float32)


def _landmarks(planes: Tensor) -> _Landmarks:
    """Air, fat and soft tissue of sampled slices (slices, rows, columns) float32.

    Blocks of 3 x 3 pixels are averaged, which takes noise away; those at edges are left out.
    """
    size = (min(3, planes.shape[1]), min(3, planes.shape[2]))
    mean = functional.avg_pool2d(planes[:, None], size)
    square = functional.avg_pool2d((planes[:, None] - mean.mean()) ** 2, size)
    spread = (square - (mean - mean.mean()) ** 2).clamp(min=0).sqrt()
    lowest = float(planes.min())
    at_edge = spread > _EDGE_HU
    padded = mean <= lowest + 0.5
    flat = mean[~at_edge & ~padded]
    n_blocks = mean.numel()
    spike = float(padded.float().mean())
    air, is_padding = _air(flat, lowest, spike, n_blocks)
    share = 0.0 if air is None else float(((flat - air).abs() < _SHARP_HU).sum()) / n_blocks
    tissue = flat if air is None else flat[flat > air + 0.25 * abs(air)]
    fat, soft = _fat_and_soft(tissue)
    is_near = air is not None and air < lowest + 1.5 * _CLIPPED_HU
    return _Landmarks(
        air=air,
        fat=fat,
        soft=soft,
        is_clipped=lowest > _AIR_HU + 1 and spike >= (0.01 if is_near else max(0.01, share)),
        is_padding=is_padding,
        air_share=share,
        blocks=n_blocks,
    )


def _air(flat: Tensor, lowest: float, spike: float, n_blocks: int) -> tuple[float | None, bool]:
    """The value of air, and whether it may be padding. Lungs are not air: they are not sharp."""
    if spike >= 0.01 and lowest > _HIGHEST_FLOOR_HU:  # clipped to a window
        return None, False
    low = flat[flat < _LOWEST_TISSUE_HU]
    count, edges = _histogram(low, -3100, _LOWEST_TISSUE_HU)
    if low.numel() >= max(20, 0.01 * n_blocks):
        at = float(edges[int(count.argmax())])
        is_sharp = float((low < at - _SHARP_HU).sum()) < 0.05 * low.numel()
        if is_sharp and float(((low - at).abs() < _SHARP_HU).sum()) > 0.5 * low.numel():
            return at, False
        if spike < 0.01:
            return None, False
    if spike >= 0.01 and lowest < _LOWEST_TISSUE_HU:
        return lowest, True
    return None, False


def _fat_and_soft(tissue: Tensor) -> tuple[float | None, float | None]:
    count, centres = _histogram(tissue, *_TISSUE_RANGE_HU)
    total = float(count.sum())
    if total < 50:
        return None, None
    soft_at = int(np.where(centres > _LEAST_SOFT_HU, count, -1).argmax())
    soft = float(centres[soft_at])
    if count[np.abs(centres - soft) < 30].sum() < 0.1 * total:
        return None, None
    below = (centres > soft - 450) & (centres < soft - 50)
    is_peak = np.r_[False, (count[1:-1] >= count[:-2]) & (count[1:-1] > count[2:]), False]
    candidates = np.where(below & is_peak, count, -1)
    fat_at = int(candidates.argmax())
    valley = float(count[fat_at : soft_at + 1].min()) if candidates[fat_at] > 0 else 0.0
    fat = float(centres[fat_at])
    share = count[np.abs(centres - fat) < 30].sum() / total
    if candidates[fat_at] <= 0 or share < 0.05 or candidates[fat_at] < 1.5 * valley:
        return None, soft
    return fat, soft


def _histogram(values: Tensor, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Smooth histogram in bins of 5 HU, and their centres."""
    edges = np.arange(low, high + 5, 5.0)
    count, _ = np.histogram(values.numpy(), edges)
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2.0) ** 2)
    return np.convolve(count, kernel / kernel.sum(), mode="same"), (edges[:-1] + edges[1:]) / 2
