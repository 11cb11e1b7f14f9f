"""Where a segmentation is unsure: entropy of each voxel, doubtful volume, slices to review first.

The entropy is that of the mean probability of all opinions (mirrored images, networks, models). It
contains both the doubt of each opinion and their disagreement: the mutual information of label and
opinion, which contains only the latter, misses the border that all opinions blur alike. The weights
of a model's decision are left out: they are chosen for Dice, and make probabilities less true (see
docs/review.md).

Source: Mehrtash et al., Confidence calibration and predictive uncertainty estimation for deep
medical image segmentation, IEEE TMI 2020 (entropy of the mean of an ensemble); Gal, Uncertainty in
deep learning, 2016, 3.3 (predictive entropy and mutual information).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kidseg.geometry import Grid, Volume
from kidseg.labels import LabelSchema, Target
from kidseg.pipeline import Region, opinions_of
from kidseg.pipeline.windows import Window, part_of
from kidseg.segment.intervals import (
    LEVEL,
    Calibrated,
    doubt_interval,
    scale_ml,
    scaled_interval,
)
from kidseg.segment.result_facts import volumes_of

__all__ = [
    "ENTROPY_STEP",
    "TINY",
    "Doubt",
    "Observer",
    "Review",
    "Structure",
    "entropy",
    "in_order_of",
    "region_probabilities",
    "structures_of",
    "tempered",
]

ENTROPY_STEP = 1 / 255
"""Unit of the entropy that is kept, 0 to 1, as uint8."""

TINY = 1e-6
"""The least probability, for logarithms."""

_SHARE = 0.1  # of the slices that are listed
_LEAST_LISTED = 5
_SAME_DOUBT = 0.5  # structures with this fraction of the doubt of the most doubtful one are named


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The channels of a target that tell of a region.

    Attributes:
        inside: where one of them is, the region is.
        outside: but not where one of these is.
    """

    inside: tuple[int, ...]
    outside: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Doubt:
    """How unsure a segmentation is, slice by slice.

    Attributes:
        grid: of the scan.
        entropy: (1, slices, rows, columns) uint8 in `ENTROPY_STEP`; see `entropy`. 0 where the
            background is (almost) certain, see `kidseg.pipeline.restore.FAINT`.
        entropy_cm2: (slices,) entropy, added up over the area of the slice.
        doubtful_ml: {structure: (slices,)}: the volume that is expected to be wrong, as far as the
            probability p of the structure can tell: min(p, 1 - p), added up.
    """

    grid: Grid
    entropy: Volume
    entropy_cm2: Tensor
    doubtful_ml: Mapping[str, Tensor]

    def slices(self) -> list[dict[str, Any]]:
        """The slices to review first: a tenth, at least five, those with the most entropy first.

        Returns:
            {"slice", "position_mm" (of its centre, superior), "entropy" (cm2), "structures" (in
            doubt there, the most doubtful first)}; no slice without entropy.
        """
        count = max(_LEAST_LISTED, math.ceil(_SHARE * self.grid.shape[0]))
        found = []
        for k in torch.argsort(self.entropy_cm2, descending=True, stable=True)[:count].tolist():
            if self.entropy_cm2[k] <= 0:
                break
            doubt = {name: float(values[k]) for name, values in self.doubtful_ml.items()}
            most = max(doubt.values(), default=0.0)
            named = sorted(doubt, key=lambda name: -doubt[name])
            found.append(
                {
                    "slice": k,
                    "position_mm": round(float(self.grid.slices(k, k + 1).centre_mm[2]), 3),
                    "entropy": round(float(self.entropy_cm2[k]), 4),
                    "structures": [n for n in named if 0 < doubt[n] >= _SAME_DOUBT * most],
                }
            )
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Review:
    """What is in doubt in a segmentation.

    Attributes:
        doubt: slice by slice.
        rows: of the opinions; see `kidseg.pipeline.opinions_of`.
        target: meaning of the channels.
        schema: of the labels.
        volumes_ml: {structure: volume}, as labelled.
    """

    doubt: Doubt
    rows: tuple[tuple[float, ...], ...]
    target: Target
    schema: LabelSchema
    volumes_ml: Mapping[str, float]

    @classmethod
    def of(
        cls,
        doubt: Doubt,
        regions: Sequence[Region],
        labels: Volume,
        target: Target,
        schema: LabelSchema,
    ) -> Review:
        """The review of labels that were restored from regions; see the attributes."""
        rows, volumes_ml = opinions_of(regions, target), volumes_of(labels, schema, target)
        return cls(doubt=doubt, rows=rows, target=target, schema=schema, volumes_ml=volumes_ml)

    def opinions_ml(self, name: str) -> list[float]:
        """The volume of a structure by each opinion."""
        members = self.schema.regions[name]
        writing = [i for i, label in enumerate(self.target.writes) if label in members]
        return [math.fsum(row[i] for i in writing) for row in self.rows]

    def scale_ml(self, name: str) -> float:
        """The scale of a structure's interval; see `kidseg.segment.intervals`."""
        doubtful_ml = float(self.doubt.doubtful_ml[name].sum())
        return scale_ml(doubtful_ml, self.opinions_ml(name))

    def facts(self, calibrated: Calibrated | None) -> dict[str, Any]:
        """As plain data: "opinions", "level", "interval", "structures", "slices".

        "interval" says how intervals came about: "conformal" (calibrated), "doubt" (by at least two
        opinions, not calibrated), None (one opinion: no interval is given).
        If calibrated, "calibrated_on" is the number of scans, "calibrated_scans" says what they
        were.

        Args:
            calibrated: of the model's intervals.
        """
        how = "doubt" if len(self.rows) > 1 else None
        return {
            "opinions": len(self.rows),
            "level": LEVEL if calibrated is None else calibrated.level,
            "interval": how if calibrated is None else "conformal",
            **({} if calibrated is None else _calibration_facts(calibrated)),
            "structures": {name: self._structure(name, calibrated) for name in self.volumes_ml},
            "slices": self.doubt.slices(),
        }

    def _structure(self, name: str, calibrated: Calibrated | None) -> dict[str, Any]:
        volume_ml, scale = self.volumes_ml[name], self.scale_ml(name)
        interval: tuple[float, float] | None = None
        if calibrated is None:
            if len(self.rows) > 1:
                interval = doubt_interval(volume_ml, scale)
        elif (ends := calibrated.ends.get(name)) is not None:
            interval = scaled_interval(volume_ml, scale, ends)
        return {
            "volume_ml": volume_ml,
            "interval_ml": None if interval is None else [round(end, 4) for end in interval],
            "doubtful_ml": round(float(self.doubt.doubtful_ml[name].sum()), 4),
            "opinions_ml": [round(volume, 4) for volume in sorted(self.opinions_ml(name))],
        }


def _calibration_facts(calibrated: Calibrated) -> dict[str, Any]:
    return {"calibrated_on": calibrated.cases, "calibrated_scans": calibrated.scans}


class Observer:
    """Adds up the doubt of a segmentation while it is restored to the scan; see `restore`.

    Args:
        scan: its grid.
        target: meaning of the channels.
        schema: names of the structures.
        temperature: see `tempered`.
    """

    def __init__(
        self, scan: Grid, target: Target, schema: LabelSchema, temperature: float = 1.0
    ) -> None:
        self._scan, self._target, self._temperature = scan, target, temperature
        self._structures = structures_of(target, schema)
        self._voxel_ml = float(scan.voxel_ml)
        _, row_mm, column_mm = scan.spacing_mm.tolist()
        self._pixel_cm2 = row_mm * column_mm / 100
        self._map = torch.zeros((1, *scan.shape), dtype=torch.uint8)
        self._entropy = torch.zeros(scan.shape[0], dtype=torch.float64)
        self._doubt = {name: torch.zeros_like(self._entropy) for name in self._structures}

    def __call__(self, k: int, window: Window, probabilities: Tensor) -> None:
        """Take the probabilities of a window of slice k, (channels, rows, columns)."""
        calibrated = tempered(probabilities, self._target, self._temperature)
        values = entropy(calibrated, self._target)
        part_of(self._map[0, k], window).copy_((values.clamp(0, 1) / ENTROPY_STEP).round())
        self._entropy[k] += values.sum(dtype=torch.float64) * self._pixel_cm2
        for name, structure in self._structures.items():
            p = region_probabilities(calibrated, structure, self._target)
            doubt = torch.minimum(p, 1 - p).sum(dtype=torch.float64)
            self._doubt[name][k] += doubt * self._voxel_ml

    @property
    def doubt(self) -> Doubt:
        """What was seen."""
        return Doubt(
            grid=self._scan,
            entropy=Volume(self._map, self._scan),
            entropy_cm2=self._entropy,
            doubtful_ml=self._doubt,
        )


def in_order_of(native: Grid, scan: Grid, facts: Mapping[str, Any]) -> dict[str, Any]:
    """A review whose slices have the numbers of the file's own order, and its "slice_axis".

    Args:
        native: grid of the file.
        scan: the same voxels in canonical order.
        facts: see `Review.facts`.

    Returns:
        The facts; "slice_axis" is "i", "j" or "k", the axis of the file along which slices count.
    """
    ends = native.index(scan.mm([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    step = (ends[1] - ends[0]).tolist()
    axis = max(range(3), key=lambda each: abs(step[each]))
    first, sign = round(float(ends[0, axis])), 1 if step[axis] > 0 else -1
    slices = [{**each, "slice": first + sign * each["slice"]} for each in facts["slices"]]
    return {**facts, "slice_axis": "kji"[axis], "slices": slices}


def structures_of(target: Target, schema: LabelSchema) -> dict[str, Structure]:
    """The channels of each region that the target can tell apart."""
    found = {}
    for name, members in schema.regions.items():
        if not target.expresses(members):
            continue
        sets = [set(labels) for labels in target.channels]
        inside = tuple(i for i, labels in enumerate(sets) if labels <= set(members))
        outside: tuple[int, ...] = ()
        if not inside:  # such as parenchyma: what is kidney with its tumour, and is not tumour
            inside = tuple(i for i, labels in enumerate(sets) if labels & set(members))
            outside = tuple(i for i, labels in enumerate(sets) if not labels & set(members))
        found[name] = Structure(inside=inside, outside=outside)
    return found


def tempered(probabilities: Tensor, target: Target, temperature: float) -> Tensor:
    """(channels, ...) float32 probabilities whose logits are divided by a temperature.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017, 4.2; of the mean of an
    ensemble: Rahaman and Thiery, Uncertainty quantification and deep ensembles, NeurIPS 2021.
    """
    values = probabilities.float()
    if temperature == 1:
        return values.clamp(0, 1)
    if target.exclusive:
        return torch.softmax(values.clamp(min=TINY).log() / temperature, dim=0)
    return torch.sigmoid(torch.logit(values, eps=TINY) / temperature)


def entropy(probabilities: Tensor, target: Target) -> Tensor:
    """(...) Shannon entropy of (channels, ...) probabilities, a fraction of the largest possible.

    Of exclusive channels -sum p ln p / ln n; of other channels the mean of those of each channel,
    present or not, over ln 2. 0: certain; 1: nothing is known.
    """
    if target.exclusive:
        return _entr(probabilities).sum(0) / math.log(target.outputs)
    each = _entr(probabilities) + _entr(1 - probabilities)
    return each.mean(0) / math.log(2)


def _entr(p: Tensor) -> Tensor:
    """-p ln p, 0 for 0: as `torch.special.entr`, which takes twice as long."""
    return p.clamp(min=TINY**2).log_().mul_(p).neg_()


def region_probabilities(probabilities: Tensor, region: Structure, target: Target) -> Tensor:
    """(...) probability of a region, from (channels, ...) probabilities.

    Args:
        probabilities: of all outputs.
        region: its channels.
        target: exclusive channels add up; of others the most probable one counts.
    """
    first = int(target.exclusive)

    def joined(channels: Sequence[int]) -> Tensor:
        found = probabilities[first + channels[0]]
        for channel in channels[1:]:
            other = probabilities[first + channel]
            found = found + other if target.exclusive else torch.maximum(found, other)
        return found

    found = joined(region.inside)
    return (found - joined(region.outside) if region.outside else found).clamp(0, 1)
