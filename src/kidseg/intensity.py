"""Voxel values: what is known of them over a data set, and how a network gets to see them.

The rules are nnU-Net's. Hounsfield units mean the same in every scanner, so CT is clipped to the
range of the labelled tissue and standardised with that tissue's mean and spread, the same for all
patients. Any other modality is standardised image by image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

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
"""How one channel is normalised; the names are those that a channel of a data set may bear.

Source: nnU-Net v2, "How to set up dataset.json", channel_names.
"""

AIR_HU = -1024.0
"""What lies outside a CT. Source: the Hounsfield scale's -1000, and its usual floor."""

# A spread below this counts as this, so that a constant image is no division by zero.
# Source: nnU-Net v2, default_normalization_schemes.
_LEAST_SD = 1e-8
# Distinct values kept per case and channel. CT has some thousands, which are kept as they are.
_MOST_VALUES = 2**16


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Foreground intensities of one channel over a data set, each case with the same weight."""

    mean: float
    sd: float
    median: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, kw_only=True)
class Normalisation:
    """What is done to one channel.

    Attributes:
        channel: its name in the data set.
        scheme: see `Scheme`.
        statistics: used by "ct"; of the others, for the record.
        inside_only: mean and SD are taken inside the non-zero region alone, and values outside it
            stay 0 ("zscore" alone heeds it).
    """

    channel: str
    scheme: Scheme
    statistics: Statistics
    inside_only: bool = False

    @property
    def padding_value(self) -> float:
        """What lies outside of an image: air in a CT; no signal, 0, in any other."""
        return AIR_HU if self.scheme == "ct" else 0.0

    @classmethod
    def of_channel(
        cls, channel: str, statistics: Statistics, *, inside_only: bool = False
    ) -> Normalisation:
        """The scheme that a channel's name asks for; "zscore" if it asks for none."""
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
        return cls(**{**data, "statistics": Statistics(**data["statistics"])})


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What is done to one channel of one case: clip, subtract `shift`, divide by `scale`.

    Attributes:
        low: smaller values become this; None: none do.
        high: larger values become this.
        shift: becomes 0.
        scale: so far above `shift` becomes 1.
        inside_only: where all channels are 0, the result is 0.
    """

    low: float | None = None
    high: float | None = None
    shift: float = 0.0
    scale: float = 1.0
    inside_only: bool = False


def scalings(
    image: Tensor, channels: Sequence[Normalisation], inside: Tensor | None = None
) -> tuple[Scaling, ...]:
    """How the channels of one case are normalised: CT as all cases, others by their own values.

    Args:
        image: (channels, ...) of any type, the whole case; HU for CT.
        channels: one per channel.
        inside: (...) bool, the non-zero region, needed where a channel is normalised `inside_only`.

    Raises:
        ValueError: the number of channels differs, or `inside` is needed and missing; "rgb_to_0_1"
            and values outside 0..255.

    Source: nnU-Net v2, default_normalization_schemes.
    """
    if len(image) != len(channels):
        raise ValueError(f"{len(image)} channels where the plan has {len(channels)}")
    return tuple(
        _scaling(values, channel, inside) for values, channel in zip(image, channels, strict=True)
    )


def rescaled(own: Sequence[Scaling], channels: Sequence[Normalisation]) -> tuple[Scaling, ...]:
    """A case's scalings under another plan: CT as that says, other channels by their own values."""
    pairs = zip(own, channels, strict=True)
    return tuple(
        _scaling(torch.empty(0), channel, None) if channel.scheme == "ct" else scaling
        for scaling, channel in pairs
    )


def normalise(
    image: Tensor, channels: Sequence[Normalisation], inside: Tensor | None = None
) -> Tensor:
    """A whole case as networks see it: float32, about 0, spread about 1.

    Args:
        image: (channels, ...) of any type; HU for CT.
        channels: one per channel.
        inside: as in `scalings`.

    Returns:
        (channels, ...) float32, a new tensor on the same device. An image without a voxel inside
        stays as it is.

    Raises:
        ValueError: as `scalings`.
    """
    return _scaled(image, scalings(image, channels, inside), inside)


def as_input(image: Tensor, each: Sequence[Sequence[Scaling]]) -> Tensor:
    """(channels, slices, rows, columns) as networks take slices: (slices, channels, rows, columns).

    Args:
        image: HU for CT.
        each: the scalings of each slice's case; one for all, if all are of one case.
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
        return Scaling(
            low=known.percentile_00_5,
            high=known.percentile_99_5,
            shift=known.mean,
            scale=max(known.sd, _LEAST_SD),
        )
    if channel.scheme == "zscore":
        if channel.inside_only and inside is None:
            raise ValueError(f"channel '{channel.channel}' needs the non-zero region")
        chosen = values[inside] if channel.inside_only else values
        if not chosen.numel():
            return Scaling()
        wide = chosen.to(torch.float32 if values.device.type == "mps" else torch.float64)
        mean, sd = float(wide.mean()), float(wide.std(correction=0))
        return Scaling(shift=mean, scale=max(sd, _LEAST_SD), inside_only=channel.inside_only)
    low, high = float(values.min()), float(values.max())
    if channel.scheme == "rescale_to_0_1":
        return Scaling(shift=low, scale=max(high - low, _LEAST_SD))
    if channel.scheme == "rgb_to_0_1":
        if low < 0 or high > 255:
            raise ValueError(f"channel '{channel.channel}' has values outside 0..255")
        return Scaling(scale=255.0)
    return Scaling()


def _scaled(image: Tensor, how: Sequence[Scaling], inside: Tensor | None = None) -> Tensor:
    """(channels, ...) float32; `inside` is what is not 0 in all channels, if not given."""
    out = image.to(torch.float32, copy=True)
    for k, scaling in enumerate(how):
        values = out[k]  # a view that gradients pass through, unlike those of iteration
        if scaling.low is not None or scaling.high is not None:
            values.clamp_(scaling.low, scaling.high)
        if scaling != Scaling():
            values.sub_(scaling.shift).div_(scaling.scale)
        if scaling.inside_only:
            nothing = (image == 0).all(0) if inside is None else ~inside
            values.masked_fill_(nothing, 0.0)
    return out


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The foreground values of one case in one channel: distinct values, ascending, with counts.

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
    """What `pool` needs to know of the foreground voxels (n,) of a case; None if there are none.

    More than 65536 distinct values (images that are no CT) are merged to that many, neighbours
    with neighbours; mean and spread are kept exactly.
    """
    if not foreground.size:
        return None
    values, counts = np.unique(foreground.astype(np.float64).ravel(), return_counts=True)
    total = counts.sum()
    mean = float(values @ counts / total)
    mean_square = float(values**2 @ counts / total)
    if len(values) > _MOST_VALUES:
        edges = np.linspace(0, len(values), _MOST_VALUES, endpoint=False).astype(np.int64)
        merged = np.add.reduceat(counts, edges)
        ends = values[0], values[-1]
        merged_values: np.ndarray = np.add.reduceat(values * counts, edges) / merged
        merged_values[[0, -1]] = ends
        values, counts = merged_values, merged
    return Sample(values=values, counts=counts, mean=mean, mean_square=mean_square)


def pool(samples: Sequence[Sample | None]) -> Statistics | None:
    """Statistics over all cases, each with the same weight however large its organs are.

    nnU-Net draws the same number of foreground voxels from each case, with replacement, 10^8 in
    all, and takes the statistics of these. This is the limit of more and more draws: the values it
    gives are nnU-Net's up to its sampling error (of the mean, 10^-4 SD), without a random number.

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
