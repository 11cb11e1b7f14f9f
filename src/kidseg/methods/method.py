"""The protocol of a method: networks, training stages and inference steps."""

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
    """A method bound to its networks. Methods implement this protocol without inheritance.

    Attributes:
        name: on the command line.
        config: its settings.
        target: meaning of the output channels.
        plan: of the training set.
        parts: {name: module} of everything that a model file contains: networks, and the reference
            patient of `homogenized`.
        device: of the networks.
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
        """Requirements for preprocessed subjects."""
        ...

    @classmethod
    def build(
        cls, config: Any, target: Target, plan: Plan, *, seed: int = 0, device: Device
    ) -> Self:
        """Create the method with newly initialised networks on the device."""
        ...

    def stages(self, cohort: Cohort) -> Iterator[Stage]:
        """The training stages, in order.

        Each stage is requested after the previous one is trained, and may use its networks.
        """
        ...

    def steps(self, subject: Subject) -> Sequence[Step]:
        """The inference steps for a scan, to be run by `advance` on `subject.image`."""
        ...

    def report(self, subject: Subject, progress: Progress) -> Placement:
        """Size and position of a patient.

        Args:
            subject: with reference labels, or predicted labels.
            progress: result of the locating steps; segmenting steps may be missing.
        """
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """Plain data about the trained method, for the header of the model file."""
        ...
