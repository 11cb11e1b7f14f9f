"""The 2D baseline: a U-Net without spatial transformers, with or without augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

from torch import nn

from kidseg.cohort.cohort import Cohort
from kidseg.cohort.frame import Frame, frame, pixel_mm
from kidseg.cohort.subject import Material, Subject
from kidseg.cohort.training_range import Placement, figures_of
from kidseg.config import PlainConfig
from kidseg.device import Device
from kidseg.intensity import Scaling
from kidseg.labels import Target
from kidseg.methods.segmentation import StageGrids, augmentation_of, segmentation_stage
from kidseg.nets import build
from kidseg.pipeline import Planes, Progress, Region, Step
from kidseg.plan import Plan
from kidseg.stage import Stage

__all__ = ["Plain"]


class Plain:
    """Trains on the base grid, centred on the body; predicts on a grid that contains the body."""

    name: ClassVar[str] = "plain"

    def __init__(
        self,
        config: PlainConfig,
        target: Target,
        plan: Plan,
        parts: Mapping[str, nn.Module],
        device: Device,
    ) -> None:
        self.config, self.target, self.plan = config, target, plan
        self.parts, self.device = parts, device

    @classmethod
    def material(cls, config: PlainConfig, plan: Plan) -> Material:
        """Any channels, without masks."""
        return Material(pixel_mm=pixel_mm(config.view, plan))

    @classmethod
    def build(
        cls, config: PlainConfig, target: Target, plan: Plan, *, seed: int = 0, device: Device
    ) -> Self:
        """See `Method.build`."""
        channels = len(plan.channels) * (2 * config.reach + 1)
        net = build(config.network, channels, target.outputs, seed=seed)
        return cls(config, target, plan, {"segment": net.to(device.torch)}, device)

    def stages(self, cohort: Cohort) -> Iterator[Stage]:
        """A single stage, "segment"."""
        config = self.config
        yield segmentation_stage(
            self.parts["segment"],
            config.segment,
            cohort,
            StageGrids(
                training=[self._frame(subject).base for subject in cohort.training],
                validation=[self._frame(subject).whole for subject in cohort.validation],
                dice_over=config.dice_over,
            ),
            target=self.target,
            view=self._view,
            augmentation=augmentation_of(config, self.plan, config.view.size),
        )

    def steps(self, subject: Subject) -> list[Step]:
        """A single step, "segment"."""
        view = self._view([subject.scalings])
        return [
            Step(
                name="segment",
                locate=lambda _: [Region(grid=self._frame(subject).whole)],
                segment=partial(view.predict, self.parts["segment"], self.target),
                target=self.target,
                adapt=partial(view.adapt, self.parts["segment"]),
            )
        ]

    def report(self, subject: Subject, progress: Progress) -> Placement:
        """The sizes of the body and of the voxels."""
        return Placement(figures=figures_of(subject), overlap={})

    def _view(self, scalings: Sequence[Sequence[Scaling]]) -> Planes:
        return Planes(
            scalings=scalings,
            padding=self.plan.padding,
            device=self.device,
            flip=self.config.test_time_flip,
            reach=self.config.reach,
            apart_mm=self.config.apart_mm,
            smooth_mm=self.config.smooth_mm,
        )

    def _frame(self, subject: Subject) -> Frame:
        return frame(subject, self.config.view, self.plan, self.config.network.multiple)

    @property
    def facts(self) -> Mapping[str, Any]:
        """None."""
        return {}
