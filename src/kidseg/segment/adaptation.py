"""Adapt the norm statistics of segmentation networks to a scan, before it is segmented."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch

from kidseg.cohort.subject import Subject
from kidseg.errors import Finding
from kidseg.geometry import Grid, Volume
from kidseg.methods import Method
from kidseg.nets.adaptive import AdaptiveNet
from kidseg.pipeline import Progress, Region, Step

__all__ = [
    "PRIOR_SLICES",
    "Adapt",
    "Adaptation",
    "adapted_facts",
    "checked_adapt",
    "checked_prior",
    "unadapted",
]

Adapt = Literal["none", "norm"]
"""What is adapted to each scan: nothing, or the statistics of the batch norms."""

PRIOR_SLICES = 4.0
"""The trained statistics count as so many slices of the scan.

A convention: few, because neighbouring slices show the same patient and scanner. Source of the
form: Schneider et al., NeurIPS 2020, eq. 1.
"""

# Evenly spaced slices of the body are enough for mean and variance over pixels: 32 of 192 x 192 are
# a million pixels at the finest level.
_MOST_SLICES = 32


def checked_adapt(value: str) -> Adapt:
    """The value, if it is one of `Adapt`.

    Raises:
        ValueError: it is not.
    """
    for known in get_args(Adapt):
        if value == known:
            found: Adapt = known
            return found
    raise ValueError(f"adapt is one of {', '.join(get_args(Adapt))}, not '{value}'")


def checked_prior(value: float) -> float:
    """The value, if it is a number of slices that is not negative.

    Raises:
        ValueError, TypeError: it is not.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"adapt_prior_slices is {value}")
    return float(value)


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Adapts the networks of a method to one scan.

    Attributes:
        networks: that can be adapted; 0 if no step of the method adapts them.
        slices: of the scan from which the statistics are taken, in order.
        weight: of these statistics, 0 to 1; the rest is that of the trained ones.
    """

    networks: int
    slices: tuple[int, ...]
    weight: float

    @classmethod
    def of(
        cls, method: Method, steps: Sequence[Step], subject: Subject, prior_slices: float
    ) -> Adaptation:
        """The adaptation of a method to a scan; no slices if it has nothing to adapt, or no body.

        Args:
            method: its networks are reset.
            steps: of the method for the scan.
            subject: the scan.
            prior_slices: see `PRIOR_SLICES`.
        """
        nets = [net for net in method.parts.values() if isinstance(net, AdaptiveNet)]
        for net in nets:
            net.reset()
        if all(step.adapt is None for step in steps):
            nets = []
        slices = _chosen(subject) if nets else ()
        count = len(slices)
        weight = count / (count + prior_slices) if count else 0.0
        return cls(networks=len(nets), slices=slices, weight=weight)

    def steps(self, steps: Sequence[Step]) -> list[Step]:
        """The steps, in which each network is adapted just before it segments."""
        return [self._adapting(step) for step in steps]

    def _adapting(self, step: Step) -> Step:
        segment, adapt = step.segment, step.adapt
        if segment is None or adapt is None or not self.slices:
            return step

        def adapted(progress: Progress, region: Region) -> Volume:
            adapt(progress, replace(region, grid=_of_slices(region.grid, self.slices)), self.weight)
            return segment(progress, region)

        return replace(step, segment=adapted)


def adapted_facts(adapt: Adapt, members: Sequence[Adaptation]) -> dict[str, Any]:
    """As plain data, for JSON: of the first member of an ensemble that was adapted."""
    first = next((each for each in members if each.slices), members[0])
    return {"by": adapt, "slices": len(first.slices), "weight": round(first.weight, 4)}


def unadapted(adapt: Adapt, members: Sequence[Adaptation], path: str) -> tuple[Finding, ...]:
    """ "nothing-to-adapt": why the trained statistics were used though others are wanted.

    Args:
        adapt: what is wanted.
        members: the adaptations of a model's members; one, if it is not an ensemble.
        path: of the scan.
    """
    kept = [number for number, each in enumerate(members) if not each.slices]
    if adapt == "none" or not kept:
        return ()
    able = [number for number in kept if members[number].networks]
    what = "the model was"
    if len(kept) < len(members):
        what = f"member {', '.join(map(str, kept))} of the model was"
    cause = (
        "no slice of the scan shows a body" if able else "the method has no batch norms that can be"
    )
    return (
        Finding(
            code="nothing-to-adapt",
            path=path,
            cause=f"{what} not adapted to the scan: {cause}",
            next_step="Check that the scan is CT." if able else "",
        ),
    )


def _chosen(subject: Subject) -> tuple[int, ...]:
    """At most `_MOST_SLICES` slices, evenly spaced among those that show body."""
    shown = list(range(subject.slices))
    if subject.body is not None:
        shown = subject.body.per_slice.radii_mm.isfinite().all(-1).nonzero()[:, 0].tolist()
    if len(shown) <= _MOST_SLICES:
        return tuple(shown)
    places = torch.linspace(0, len(shown) - 1, _MOST_SLICES, dtype=torch.float64).round()
    return tuple(shown[int(place)] for place in places)


def _of_slices(grid: Grid, slices: Sequence[int]) -> Grid:
    """These slices of a grid, which has the slices of the scan."""
    matrices = grid.slicewise().mm_from_index[list(slices)]
    return Grid((len(slices), *grid.shape[1:]), matrices)
