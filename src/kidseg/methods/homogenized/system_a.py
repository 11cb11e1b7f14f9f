"""System A: pose and size homogenized, cropped, segmented.

Source: La Barbera et al., Automatic size and pose homogenization with spatial transformer network
to improve and accelerate pediatric segmentation, ISBI 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from kidseg.augment import Augmentation
from kidseg.cohort.batch import drawn_labels, join, slices_of
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import Drawn, draw, steps_per_epoch
from kidseg.cohort.subject import Subject, gather
from kidseg.cohort.training_range import training_range
from kidseg.config import HomogenizedConfig
from kidseg.device import Device
from kidseg.geometry import Grid, resample
from kidseg.intensity import AIR_HU, as_input
from kidseg.methods.homogenized.crop_stage import crop_stage, cropped
from kidseg.methods.homogenized.placement import Placement, brought_to_reference
from kidseg.methods.homogenized.pose_stage import located, outputs_of, pose_inputs, pose_stage, seen
from kidseg.methods.homogenized.reference import MASKS, Reference, chosen, start_grid
from kidseg.methods.method import Method, Nets
from kidseg.methods.segmentation import segmentation_stage, segmenter, whole_restored_loss
from kidseg.nets import build
from kidseg.nets.stn import (
    CROP_OUTPUTS,
    crop_from,
    crop_grid,
    pose_from,
    pose_grid,
    pose_outputs,
    widened,
)
from kidseg.pipeline import Step, restore
from kidseg.plan import Plan
from kidseg.stage import Moment, Stage

__all__ = ["HOMOGENIZED"]


def _networks(config: HomogenizedConfig, classes: int, seed: int) -> Nets:
    inputs = pose_inputs(config.pose)
    outputs = pose_outputs(config.pose.localizer)
    nets: dict[str, nn.Module] = {
        "reference": Reference(config.pose),
        "pose": build(config.pose.localizer, inputs, outputs, seed=seed),
        "segment": build(config.unet, 1, classes, seed=seed),
    }
    if config.crop is not None:
        nets["crop"] = build(config.crop.localizer, inputs, CROP_OUTPUTS, seed=seed)
    return nets


def _stages(
    config: HomogenizedConfig, nets: Nets, cohort: Cohort, device: Device
) -> Iterator[Stage]:
    reference = _reference(nets)
    reference.adopt(chosen(cohort.training, config.pose.reference), config.pose, config.view)
    yield pose_stage(nets["pose"], config.pose, cohort, reference, config.view.size)

    def pose(subject: Subject) -> Grid:
        return _pose(config, nets, cohort.plan, subject)

    if config.crop is not None:
        training = [pose(subject) for subject in cohort.training]
        validation = [pose(subject) for subject in cohort.validation]
        masks = MASKS[config.pose.target]
        yield crop_stage(nets["crop"], config.crop, cohort, training, validation, masks)

    augmentation = None
    if config.augment == "nnunet":
        augmentation = Augmentation(config.view.size // config.divisor)
    yield segmentation_stage(
        nets["segment"],
        config.segment,
        cohort,
        training=[_final(config, nets, cohort.plan, subject) for subject in cohort.training],
        validation=[_final(config, nets, cohort.plan, subject) for subject in cohort.validation],
        device=device,
        loss_space=config.loss_space,
        augmentation=augmentation,
    )
    if config.schedule == "joint":
        yield _joint_stage(config, nets, cohort, device)


def _steps(
    config: HomogenizedConfig, nets: Nets, plan: Plan, subject: Subject, device: Device
) -> list[Step]:
    steps = [Step(name="pose", locate=lambda *_: _pose(config, nets, plan, subject))]
    if config.crop is not None:
        steps.append(
            Step(
                name="crop",
                locate=lambda _scan, grid, _found: _crop(config, nets, plan, subject, grid),
            )
        )
    segment = segmenter(nets["segment"], plan, device)
    steps.append(Step(name="segment", locate=lambda _scan, grid, _found: grid, segment=segment))
    return steps


def _pose(config: HomogenizedConfig, nets: Nets, plan: Plan, subject: Subject) -> Grid:
    net, reference = nets["pose"], _reference(nets)
    return located(net, config.pose, reference, subject, plan, config.view.size)


def _crop(config: HomogenizedConfig, nets: Nets, plan: Plan, subject: Subject, grid: Grid) -> Grid:
    assert config.crop is not None
    size = config.view.size // config.divisor
    masks = MASKS[config.pose.target]
    return cropped(nets["crop"], config.crop, subject, grid, plan, masks, size)


def _final(config: HomogenizedConfig, nets: Nets, plan: Plan, subject: Subject) -> Grid:
    grid = _pose(config, nets, plan, subject)
    return grid if config.crop is None else _crop(config, nets, plan, subject, grid)


class _Chain(nn.Module):
    """All networks in a row: gradients of the segmentation reach the transformers.

    Args:
        config: of the method.
        nets: its networks; they are shared, not copied.
        cohort: the cases whose slices `forward` is given.
    """

    def __init__(self, config: HomogenizedConfig, nets: Nets, cohort: Cohort) -> None:
        super().__init__()
        self.config = config
        self.cohort = cohort
        self.nets = nn.ModuleDict({name: nets[name] for name in nets if name != "reference"})

    def forward(self, drawn: Drawn, start: Grid) -> tuple[list[Tensor], Grid]:
        """Logits of the drawn slices, by level, and the grid they are on."""
        config, cohort = self.config, self.cohort
        masks = MASKS[config.pose.target]
        grid = start
        for _ in range(config.pose.iterations):
            side = config.pose.localizer.size
            view = seen(cohort, drawn, grid.resized((len(drawn), side, side)), masks)
            grid = pose_grid(
                grid, pose_from(outputs_of(self.nets["pose"], view), config.pose.localizer)
            )
        if config.crop is not None:
            side = config.crop.localizer.size
            view = seen(cohort, drawn, grid.resized((len(drawn), side, side)), masks)
            crop = crop_from(outputs_of(self.nets["crop"], view), config.crop.localizer)
            size = config.view.size // config.divisor
            grid = crop_grid(grid, widened(crop, config.crop.localizer), size)
        hu = gather(slices_of(cohort.training, drawn), grid, fill=AIR_HU)
        image = as_input(hu.data, cohort.plan.channels).contiguous(
            memory_format=torch.channels_last
        )
        return self.nets["segment"](image), grid


def _joint_stage(config: HomogenizedConfig, nets: Nets, cohort: Cohort, device: Device) -> Stage:
    """All networks trained end to end, by the segmentation loss on the original grid."""
    reference = _reference(nets)
    starts = [
        start_grid(subject, config.pose, reference, config.view.size) for subject in cohort.training
    ]

    def loss(called: nn.Module, now: Moment) -> dict[str, Tensor]:
        drawn = draw(cohort.index, now, config.joint.batch_size)
        levels, grid = called(drawn, join([starts[case].slices(k, k + 1) for case, k in drawn]))
        base = join([cohort.training[case].base.slices(k, k + 1) for case, k in drawn])
        labels = drawn_labels(cohort, drawn, base)
        return {"loss": whole_restored_loss(levels, grid, labels)}

    def validate() -> dict[str, float]:
        segment = segmenter(nets["segment"], cohort.plan, device)
        found = []
        for subject in cohort.validation:
            grid = _final(config, nets, cohort.plan, subject)
            probabilities = segment(resample(subject.image, grid, fill=AIR_HU))
            found.append(restore(probabilities, subject.whole))
        return cohort.score(found)

    return Stage(
        name="joint",
        net=_Chain(config, nets, cohort),
        config=config.joint,
        steps=config.joint.steps or steps_per_epoch(cohort.index, config.joint.batch_size),
        loss=loss,
        validate=validate,
    )


def _reference(nets: Nets) -> Reference:
    return cast("Reference", nets["reference"])


def _multiple(config: HomogenizedConfig) -> int:
    return config.unet.size // config.unet.bottleneck


def _place(
    config: HomogenizedConfig, nets: Nets, subject: Subject, grids: Mapping[str, Grid]
) -> Placement:
    reference, size = _reference(nets), config.view.size
    return brought_to_reference(subject, grids["pose"], config.pose, reference, size)


def _facts(config: HomogenizedConfig, nets: Nets, cohort: Cohort) -> Mapping[str, Any]:
    reference = _reference(nets)
    placed = [
        _place(config, nets, subject, {"pose": _pose(config, nets, cohort.plan, subject)})
        for subject in cohort.training
    ]
    return {
        "training_range": training_range([patient.figures for patient in placed]),
        "reference": {
            "case": reference.case,
            "radii_mm": reference.radii_mm.tolist(),
            "field_mm": float(reference.field_mm),
        },
    }


HOMOGENIZED = Method(
    name="homogenized",
    config=HomogenizedConfig,
    networks=_networks,
    stages=_stages,
    steps=_steps,
    multiple=_multiple,
    place=_place,
    facts=_facts,
)
"""STN pose; STN crop, if there is one, and U-Net; slice by slice."""
