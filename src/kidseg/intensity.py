"""Intensity statistics of a dataset, and intensity normalisation for the networks.

The rules are nnU-Net's. Hounsfield units are comparable between scanners, so CT is clipped to the
range of the labelled tissue and standardised with the mean and standard deviation of that tissue,
the same for all patients. Other modalities are standardised per image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from kidseg.records import Record

__all__ = [
    "AIR_HU",
    "Normalisation",
    "Sample",
    "Scaling",
    "Scheme",
    "Statistics",
    "as_input",
    "normalise",
    "pool",
    "rescaled",
    "sample",
    "scalings",
]

Scheme = Literal["ct", "zscore", "rescale_to_0_1", "rgb_to_0_1", "nonorm"]
"""Normalisation of one channel; the names are valid channel names of a dataset.

Source: nnU-Net v2, "How to set up dataset.json", channel_names.
"""

AIR_HU = -1024.0
"""Value outside a CT. Source: air is -1000 on the Hounsfield scale; -1024 is its usual minimum."""

# Lower limit of the standard deviation, which avoids a division by zero for constant images.
# Source: nnU-Net v2, default_normalization_schemes.
_MIN_SD = 1e-8
# Maximum number of distinct values per case and channel. CT has a few thousand, which all stay.
_MAX_VALUES = 2**16


@dataclass(frozen=True, kw_only=True)
class Statistics(Record):
    """Foreground intensities of one channel over a dataset; all cases have the same weight."""

    mean: float
    sd: float
    median: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, kw_only=True)
class Normalisation(Record):
    """Normalisation of one channel.

    Attributes:
        channel: its name in the dataset.
        scheme: see `Scheme`.
        statistics: used by "ct"; only for information in other schemes.
        inside_only: compute mean and SD inside the non-zero region, and keep 0 outside it (only
            used by "zscore").
        clip: range to which values are clipped (only used by "ct"); None: the percentiles 0.5 to
            99.5 of the statistics.
    """

    channel: str
    scheme: Scheme
    statistics: Statistics
    inside_only: bool = False
    clip: tuple[float, float] | None = None

    @property
    def padding_value(self) -> float:
        """Value outside the image: air in CT, 0 in other modalities."""
        return AIR_HU if self.scheme == "ct" else 0.0

    @classmethod
    def of_channel(
        cls, channel: str, statistics: Statistics, *, inside_only: bool = False
    ) -> Normalisation:
        """The scheme of a channel's name; "zscore" for other names."""
        name = channel.strip().casefold()
        scheme = cast("Scheme", name if name in get_args(Scheme) else "zscore")
        return cls(
            channel=channel,
            scheme=scheme,
            statistics=statistics,
            inside_only=inside_only and scheme == "zscore",
        )

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Normalisation:
        """Inverse of `as_dict`."""
        clip = None if data.get("clip") is None else tuple(data["clip"])
        return cls(**{**data, "statistics": Statistics(**data["statistics"]), "clip": clip})


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Normalisation of one channel of one case: clip, subtract `shift`, divide by `scale`.

    Attributes:
        low: lower limit for clipping; None: no limit.
        high: upper limit for clipping; None: no limit.
        shift: the value that becomes 0.
        scale: `shift` + `scale` becomes 1.
        inside_only: the result is 0 where all channels are 0.
    """

    low: float | None = None
    high: float | None = None
    shift: float = 0.0
    scale: float = 1.0
    inside_only: bool = False


def scalings(
    image: Tensor, channels: Sequence[Normalisation], inside: Tensor | None = None
) -> tuple[Scaling, ...]:
    """The scalings of the channels of one case: CT by the dataset, others by their own values.

    Args:
        image: (channels, ...) of any dtype, the complete case; HU for CT.
        channels: one per channel.
        inside: (...) bool, the non-zero region; required if a channel is normalised `inside_only`.

    Raises:
        ValueError: the number of channels differs; `inside` is required but missing; or values are
            outside 0..255 for "rgb_to_0_1".

    Source: nnU-Net v2, default_normalization_schemes.
    """
    if len(image) != len(channels):
        raise ValueError(f"the image has {len(image)} channels, but the plan {len(channels)}")
    return tuple(
        _scaling(values, channel, inside) for values, channel in zip(image, channels, strict=True)
    )


def rescaled(own: Sequence[Scaling], channels: Sequence[Normalisation]) -> tuple[Scaling, ...]:
    """The scalings of a case under another plan: CT by that plan, other channels unchanged."""
    pairs = zip(own, channels, strict=True)
    return tuple(
        _scaling(torch.empty(0), channel, None) if channel.scheme == "ct" else scaling
        for scaling, channel in pairs
    )


def normalise(
    image: Tensor, channels: Sequence[Normalisation], inside: Tensor | None = None
) -> Tensor:
    """Normalise a complete case for a network: float32, mean about 0, SD about 1.

    Args:
        image: (channels, ...) of any dtype; HU for CT.
        channels: one per channel.
        inside: as in `scalings`.

    Returns:
        (channels, ...) float32, a new tensor on the same device. An image without voxels inside is
        unchanged.

    Raises:
        ValueError: as `scalings`.
    """
    return _scaled(image, scalings(image, channels, inside), inside)


def as_input(image: Tensor, each: Sequence[Sequence[Scaling]]) -> Tensor:
    """Normalise slices (channels, slices, rows, columns) to (slices, channels, rows, columns).

    Args:
        image: HU for CT.
        each: the scalings for each slice, by its case; or a single one for all slices.
    """
    kinds = list(dict.fromkeys(tuple(one) for one in each))
    if len(kinds) == 1:
        return _scaled(image, kinds[0]).transpose(0, 1)
    parts, rows = [], []
    for kind in kinds:
        own = [row for row, one in enumerate(each) if tuple(one) == kind]
        parts.append(_scaled(image[:, own], kind))
        rows += own
    order = torch.tensor(rows).argsort().to(image.device)
    return torch.cat(parts, dim=1)[:, order].transpose(0, 1)


def _scaling(values: Tensor, channel: Normalisation, inside: Tensor | None) -> Scaling:
    if channel.scheme == "ct":
        known = channel.statistics
        low, high = channel.clip or (known.percentile_00_5, known.percentile_99_5)
        return Scaling(
            low=low,
            high=high,
            shift=known.mean,
            scale=max(known.sd, _MIN_SD),
        )
    if channel.scheme == "zscore":
        if channel.inside_only and inside is None:
            raise ValueError(f"channel '{channel.channel}' requires the non-zero region")
        chosen = values[inside] if channel.inside_only else values
        if not chosen.numel():
            return Scaling()
        wide = chosen.to(torch.float32 if values.device.type == "mps" else torch.float64)
        mean, sd = float(wide.mean()), float(wide.std(correction=0))
        return Scaling(shift=mean, scale=max(sd, _MIN_SD), inside_only=channel.inside_only)
    low, high = float(values.min()), float(values.max())
    if channel.scheme == "rescale_to_0_1":
        return Scaling(shift=low, scale=max(high - low, _MIN_SD))
    if channel.scheme == "rgb_to_0_1":
        if low < 0 or high > 255:
            raise ValueError(f"channel '{channel.channel}' has values outside 0..255")
        return Scaling(scale=255.0)
    return Scaling()


def _scaled(image: Tensor, channels: Sequence[Scaling], inside: Tensor | None = None) -> Tensor:
    """(channels, ...) float32; by default, `inside` is where any channel is not 0."""
    out = image.to(torch.float32, copy=True)
    for k, scaling in enumerate(channels):
        values = out[k]  # unlike iteration, indexing gives a view with gradients
        if scaling.low is not None or scaling.high is not None:
            values.clamp_(scaling.low, scaling.high)
        if scaling != Scaling():
            values.sub_(scaling.shift).div_(scaling.scale)
        if scaling.inside_only:
            outside = (image == 0).all(0) if inside is None else ~inside
            values.masked_fill_(outside, 0.0)
    return out


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The foreground values of one case in one channel: distinct values in ascending order.

    Attributes:
        values: (n,) float64.
        counts: (n,) voxels with this value.
        mean: of all voxels.
        mean_square: of all voxels.
    """

    values: np.ndarray
    counts: np.ndarray
    mean: float
    mean_square: float


def sample(foreground: np.ndarray) -> Sample | None:
    """Summarise the foreground voxels (n,) of a case for `pool`; None if there are none.

    More than 65536 distinct values (images other than CT) are reduced to that number by merging
    neighbouring values; mean and standard deviation stay exact.
    """
    if not foreground.size:
        return None
    values, counts = np.unique(foreground.astype(np.float64).ravel(), return_counts=True)
    total = counts.sum()
    mean = float(values @ counts / total)
    mean_square = float(values**2 @ counts / total)
    if len(values) > _MAX_VALUES:
        edges = np.linspace(0, len(values), _MAX_VALUES, endpoint=False).astype(np.int64)
        merged = np.add.reduceat(counts, edges)
        ends = values[0], values[-1]
        merged_values: np.ndarray = np.add.reduceat(values * counts, edges) / merged
        merged_values[[0, -1]] = ends
        values, counts = merged_values, merged
    return Sample(values=values, counts=counts, mean=mean, mean_square=mean_square)


def pool(samples: Sequence[Sample | None]) -> Statistics | None:
    """Statistics over all cases, with the same weight for each case regardless of organ size.

    nnU-Net draws the same number of foreground voxels from each case, with replacement, 10^8 in
    total, and computes the statistics of these. This function computes the limit of infinitely many
    draws: it is deterministic and differs from nnU-Net only by its sampling error (10^-4 SD for the
    mean).

    Returns:
        None if no case has foreground.

    Source: nnU-Net v2, fingerprint_extractor.
    """
    known = [s for s in samples if s is not None]
    if not known:
        return None
    values = np.concatenate([s.values for s in known])
    weights = np.concatenate([s.counts / s.counts.sum() for s in known]) / len(known)
    order = np.argsort(values, kind="stable")
    values, shares = values[order], np.cumsum(weights[order])
    mean = float(np.mean([s.mean for s in known]))
    variance = float(np.mean([s.mean_square for s in known])) - mean**2

    def quantile(share: float) -> float:
        return float(values[min(int(np.searchsorted(shares, share)), len(values) - 1)])

    return Statistics(
        mean=mean,
        sd=max(variance, 0.0) ** 0.5,
        median=quantile(0.5),
        min=float(values[0]),
        max=float(values[-1]),
        percentile_00_5=quantile(0.005),
        percentile_99_5=quantile(0.995),
    )
