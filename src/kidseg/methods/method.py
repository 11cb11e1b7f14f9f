"""What a method is: networks, stages to train them, and steps to use them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

from torch import nn

from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Material, Subject
from kidseg.cohort.training_range import Placement
from kidseg.config import MethodConfig
from kidseg.device import Device
from kidseg.labels import Target
from kidseg.pipeline import Progress, Step
from kidseg.plan import Plan
from kidseg.stage import Stage

__all__ = ["Method"]


class Method(Protocol):
    """A method bound to its networks; every method is a class of this form, and extends none.

    Attributes:
        name: as the command line says it.
        config: its settings.
        target: what the channels of the labels it finds mean.
        plan: of the training set.
        parts: networks and what else a model file holds, by name.
        device: where networks run.
    """

    name: ClassVar[str]

    def __init__(
        self,
        config: Any,
        target: Target,
        plan: Plan,
        parts: Mapping[str, nn.Module],
        device: Device,
    ) -> None: ...

    @property
    def config(self) -> MethodConfig:
        """See the class."""
        ...

    @property
    def target(self) -> Target:
        """See the class."""
        ...

    @property
    def plan(self) -> Plan:
        """See the class."""
        ...

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """See the class."""
        ...

    @property
    def device(self) -> Device:
        """See the class."""
        ...

    @classmethod
    def material(cls, config: Any, plan: Plan) -> Material:
        """What it asks of subjects."""
        ...

    @classmethod
    def build(
        cls, config: Any, target: Target, plan: Plan, *, seed: int = 0, device: Device
    ) -> Self:
        """A method with fresh networks, on the device."""
        ...

    def stages(self, cohort: Cohort) -> Iterator[Stage]:
        """What to train, in turn. A stage is asked for once the one before it is trained, and may
        rest on it.
        """
        ...

    def steps(self, subject: Subject) -> Sequence[Step]:
        """What to do with a scan; the image to advance is `subject.image`."""
        ...

    def report(self, subject: Subject, progress: Progress) -> Placement:
        """How a patient lies before the method.

        Args:
            subject: with labels that are known, or those that were found.
            progress: what the steps located; those that segment need not have run.
        """
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """Plain data about the trained method, for the model file."""
        ...
