"""System A: homogenize pose and size, crop, segment.

Source: La Barbera et al., Automatic size and pose homogenization with spatial transformer network
to improve and accelerate pediatric segmentation, ISBI 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from kidseg.cohort.batch import Labelled, drawn_grid, drawn_labels
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.frame import frame, pixel_mm
from kidseg.cohort.items import draw, steps_per_epoch
from kidseg.cohort.subject import BodyMasks, Material, Subject
from kidseg.cohort.training_range import Placement
from kidseg.config import HomogenizedConfig
from kidseg.device import Device
from kidseg.geometry import Grid, Slices
from kidseg.intensity import Scaling
from kidseg.labels import Target
from kidseg.methods.homogenized.crop_stage import CropTransformer
from kidseg.methods.homogenized.placement import reference_placement
from kidseg.methods.homogenized.pose_stage import PoseTransformer
from kidseg.methods.homogenized.reference import Reference, choose_reference
from kidseg.methods.homogenized.scene import MASKS, Scene
from kidseg.methods.segmentation import (
    StageGrids,
    augmentation_of,
    gathered_restored_loss,
    segmentation_stage,
    validation,
)
from kidseg.nets import build
from kidseg.nets.stn import CROP_OUTPUTS, pose_outputs
from kidseg.pipeline import Planes, Progress, Region, Step, advance
from kidseg.plan import Plan
from kidseg.stage import Stage, TrainStep

__all__ = ["Homogenized"]


class Homogenized:
    """STN pose, optional STN crop and U-Net, slice by slice."""

    name: ClassVar[str] = "homogenized"

    def __init__(
        self,
        config: HomogenizedConfig,
        target: Target,
        plan: Plan,
        parts: Mapping[str, nn.Module],
        device: Device,
    ) -> None:
        self.config, self.target, self.plan = config, target, plan
        self.parts, self.device = parts, device
        self.reference = cast("Reference", parts["reference"])
        self.pose = PoseTransformer(
            net=parts["pose"],
            config=config.pose,
            reference=self.reference,
            base=self._base,
        )
        self.crop: CropTransformer | None = None
        if config.crop is not None:
            self.crop = CropTransformer(
                net=parts["crop"],
                config=config.crop,
                masks=MASKS[config.pose.target],
                size=config.view.size // config.divisor,
                device=device.torch,
            )

    @classmethod
    def material(cls, config: HomogenizedConfig, plan: Plan) -> Material:
        """One channel of CT, with body and bone masks."""
        view = config.view
        masks = BodyMasks(
            bone_hu=view.bone_hu,
            bone_least_ml=view.bone_min_volume_ml,
            bone_blur_mm=view.bone_blur_mm,
        )
        return Material(pixel_mm=pixel_mm(view, plan), masks=masks)

    @classmethod
    def build(
        cls, config: HomogenizedConfig, target: Target, plan: Plan, *, seed: int = 0, device: Device
    ) -> Self:
        """See `Method.build`."""
        inputs = 1 + MASKS[config.pose.target]
        outputs = pose_outputs(config.pose.localizer)
        parts: dict[str, nn.Module] = {
            "reference": Reference(config.pose),
            "pose": build(config.pose.localizer, inputs, outputs, seed=seed),
            "segment": build(config.network, 2 * config.reach + 1, target.outputs, seed=seed),
        }
        if config.crop is not None:
            parts["crop"] = build(config.crop.localizer, inputs, CROP_OUTPUTS, seed=seed)
        for part in parts.values():
            part.to(device.torch)
        return cls(config, target, plan, parts, device)

    def stages(self, cohort: Cohort) -> Iterator[Stage]:
        """ "pose", "crop" if configured, "segment", and "joint" with that schedule.

        A reference that was loaded from a model is kept, because its networks are trained on it.
        """
        config = self.config
        bases = [self._base(subject) for subject in cohort.training]
        if not self.reference.is_known:
            number = choose_reference(cohort.training, bases, config.pose.reference)
            self.reference.adopt(cohort.training[number], bases[number], config.pose)
        yield self.pose.stage(cohort)
        if self.crop is not None:
            yield self.crop.stage(
                cohort,
                [self._grid(subject, "pose") for subject in cohort.training],
                [(self.pose.scene(s), self._grid(s, "pose")) for s in cohort.validation],
            )
        last = "pose" if self.crop is None else "crop"
        yield segmentation_stage(
            self.parts["segment"],
            config.segment,
            cohort,
            StageGrids(
                training=[self._grid(subject, last) for subject in cohort.training],
                validation=[self._grid(subject, last) for subject in cohort.validation],
                original=bases if config.loss_space == "original" else None,
                supervision=config.supervision,
                dice_over=config.dice_over,
            ),
            target=self.target,
            view=self._view,
            augmentation=augmentation_of(config, self.plan, config.view.size // config.divisor),
        )
        if config.schedule == "joint":
            yield self._joint_stage(cohort)

    def steps(self, subject: Subject) -> list[Step]:
        """ "pose", "crop" if configured, and "segment"."""
        return self._steps(self.pose.scene(subject))

    def report(self, subject: Subject, progress: Progress) -> Placement:
        """Size and position of the patient, and its overlap with the reference."""
        (region,) = progress.steps["pose"]
        return reference_placement(
            subject, self._base(subject), region.grid, self.config.pose, self.reference
        )

    @property
    def facts(self) -> Mapping[str, Any]:
        """The reference patient: case, radii of the body, and field of view."""
        return {
            "reference": {
                "case": self.reference.case,
                "radii_mm": self.reference.radii_mm.tolist(),
                "field_mm": float(self.reference.field_mm),
            }
        }

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

    def _base(self, subject: Subject) -> Grid:
        """The base grid, centred on the body."""
        return frame(subject, self.config.view, self.plan, self.config.network.multiple).base

    def _steps(self, scene: Scene) -> list[Step]:
        """The steps for a patient or the slices of a batch."""
        steps = [Step(name="pose", locate=lambda _: [Region(grid=self.pose.locate(scene))])]
        if (crop := self.crop) is not None:

            def locate(progress: Progress) -> list[Region]:
                return [Region(grid=crop.locate(scene, progress.last[0].grid))]

            steps.append(Step(name="crop", locate=locate))
        view = self._view(scene.scalings)
        segment = Step(
            name="segment",
            locate=lambda progress: progress.last,
            segment=partial(view.predict, self.parts["segment"], self.target),
            target=self.target,
            adapt=partial(view.adapt, self.parts["segment"]),
        )
        return [*steps, segment]

    @torch.no_grad()
    def _grid(self, subject: Subject, step: str) -> Grid:
        """The grid that a locating step produces."""
        steps = self.steps(subject)
        names = [each.name for each in steps]
        return advance(subject.image, steps[: names.index(step) + 1]).last[0].grid

    def _joint_stage(self, cohort: Cohort) -> Stage:
        """The stage that trains all networks end to end, with the loss on the original grid."""
        config = self.config.joint
        starts = [self.pose.start(subject) for subject in cohort.training]
        base = [self._base(subject).slicewise() for subject in cohort.training]

        def batch(step: TrainStep) -> _JointBatch:
            drawn = draw(cohort.index, step, config.batch_size)
            scene = Scene(
                image=Slices.of([subject.image for subject in cohort.training], drawn),
                masks=Slices.of(cohort.masks, drawn),
                start=drawn_grid(starts, drawn),
                scalings=cohort.scalings(drawn),
            )
            reference = drawn_labels(cohort.training, drawn, drawn_grid(base, drawn))
            return _JointBatch(names=cohort.names(drawn), scene=scene, reference=reference)

        def loss(called: nn.Module, batch: _JointBatch) -> dict[str, Tensor]:
            levels, grid = called(batch.scene)
            value = gathered_restored_loss(
                levels,
                grid,
                batch.reference,
                self.target,
                self.config.supervision,
                self.config.dice_over,
            )
            return {"loss": value}

        def predict(case: int) -> Sequence[Region]:
            subject = cohort.validation[case]
            return advance(subject.image, self.steps(subject)).found

        return Stage(
            name="joint",
            net=_Chain(self),
            config=config,
            steps=config.steps or steps_per_epoch(cohort.index, config.batch_size),
            batch=batch,
            loss=loss,
            validate=validation(cohort, predict, self.target),
        )


class _Chain(nn.Module):
    """All networks as one module; gradients of the segmentation loss reach the transformers.

    Args:
        method: whose networks are used; they are shared, not copied.
    """

    def __init__(self, method: Homogenized) -> None:
        super().__init__()
        parts = method.parts
        self.nets = nn.ModuleDict({name: parts[name] for name in parts if name != "reference"})
        self.chain, self.view = method._steps, method._view

    def forward(self, scene: Scene) -> tuple[list[Tensor], Grid]:
        """Logits of the slices at each level, and their grid."""
        grid = advance(scene.image, self.chain(scene)[:-1]).last[0].grid
        image = self.view(scene.scalings).image(scene.image, grid)
        return self.nets["segment"](image.contiguous(memory_format=torch.channels_last)), grid


@dataclass(frozen=True, kw_only=True, eq=False)
class _JointBatch:
    """A training batch of slices on their start grids, and their labels on the base grid."""

    names: tuple[str, ...]
    scene: Scene
    reference: Labelled

    def to(self, device: torch.device) -> _JointBatch:
        return replace(self, scene=self.scene.to(device), reference=self.reference.to(device))
