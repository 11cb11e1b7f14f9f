"""What a method is: a configuration, networks, stages to train them, and steps to use them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Subject
from kidseg.device import Device
from kidseg.geometry import Grid
from kidseg.methods.homogenized.placement import Placement
from kidseg.pipeline import Step
from kidseg.plan import Plan
from kidseg.stage import Stage

__all__ = ["Method", "Nets"]

Nets = Mapping[str, nn.Module]
"""Networks and what else a model file holds, by the names of its parts."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method.

    Attributes:
        name: as the command line says it.
        config: its configuration class.
        networks: (configuration, classes, seed) -> fresh networks.
        stages: (configuration, networks, cohort, device) -> what to train, in turn. A stage is
            asked for once the one before it is trained, and may rest on it.
        steps: (configuration, networks, plan, subject, device) -> what to do with a scan; the
            image to run them on is `subject.image`.
        multiple: (configuration) -> `multiple` for `kidseg.cohort.subject.prepare`.
        place: (configuration, networks, subject, grids of the steps) -> how the patient lies and
            meets the reference. The subject's labels are known or those that were found.
        facts: (configuration, networks, cohort) -> plain data about the model, for its header;
            "training_range" among them, of what `place` says of the training patients.
    """

    name: str
    config: type
    networks: Callable[[Any, int, int], Nets]
    stages: Callable[[Any, Nets, Cohort, Device], Iterator[Stage]]
    steps: Callable[[Any, Nets, Plan, Subject, Device], Sequence[Step]]
    multiple: Callable[[Any], int]
    place: Callable[[Any, Nets, Subject, Mapping[str, Grid]], Placement]
    facts: Callable[[Any, Nets, Cohort], Mapping[str, Any]]
