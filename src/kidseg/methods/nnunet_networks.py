"""nnU-Net's networks with nnU-Net's own inference: what an imported model is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from kidseg.augment import MIN_SIDE, Augmentation
from kidseg.cohort.batch import Patches
from kidseg.cohort.block import draw_blocks
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Material, Subject
from kidseg.cohort.training_range import Placement, figures_of
from kidseg.config import NnUnetConfig
from kidseg.device import Device
from kidseg.distributed import all_gather
from kidseg.errors import UsageError
from kidseg.geometry import Grid, Slices, Volume, resample, sampled
from kidseg.intensity import Scaling, as_input
from kidseg.io.orientation import facing, reorient
from kidseg.labels import Target
from kidseg.losses import probabilities, segmentation_loss
from kidseg.methods.patches import drawn_patches
from kidseg.methods.segmentation import validation
from kidseg.nets import build
from kidseg.pipeline import Progress, Region, Step, advance
from kidseg.pipeline.mirrored_windows import mean_logits
from kidseg.plan import Configuration, Plan, network_input, resized, spline, thick_axis
from kidseg.plan.nonzero import nonzero_box
from kidseg.stage import Stage, TrainStep

__all__ = ["NnUnet"]


class NnUnet:
    """The scan is cropped to its non-zero voxels, normalised, then resampled; the logits of a
    sliding window, averaged over mirrored inputs and over networks, are resampled to the scan.

    So images and logits are interpolated as in nnU-Net, and the labels are nnU-Net's. Training
    draws patches that are interpolated once, as `plain3d` does.

    The networks of one plan that `merged` joins are parts "segment", "segment1" and so on; only
    the first is trained.
    """

    name: ClassVar[str] = "nnunet"

    def __init__(
        self,
        config: NnUnetConfig,
        target: Target,
        plan: Plan,
        parts: Mapping[str, nn.Module],
        device: Device,
    ) -> None:
        self.config, self.target, self.plan = config, target, plan
        self.parts, self.device = parts, device
        self.planned = _configuration(config, plan)
        self.axes = facing(config.axes)

    @classmethod
    def material(cls, config: NnUnetConfig, plan: Plan) -> Material:
        """Any channels, with the scan's own pixels, without masks."""
        return Material()

    @classmethod
    def build(
        cls, config: NnUnetConfig, target: Target, plan: Plan, *, seed: int = 0, device: Device
    ) -> Self:
        """See `Method.build`.

        Raises:
            UsageError: "no-configuration": the plan has no such configuration.
        """
        topology = _configuration(config, plan).topology
        net = build(topology, len(plan.channels), target.outputs, seed=seed)
        return cls(config, target, plan, {"segment": net.to(device.torch)}, device)

    def merged(self, others: Sequence[Any]) -> Self | None:
        """This method with the networks of others, whose logits are averaged as in nnU-Net.

        None if they are not all of this method, with the same settings, plan and outputs.
        """
        if not all(isinstance(other, type(self)) and self._matches(other) for other in others):
            return None
        nets = [net for method in (self, *others) for net in method.parts.values()]
        parts = {f"segment{k or ''}": net for k, net in enumerate(nets)}
        return type(self)(self.config, self.target, self.plan, parts, self.device)

    def stages(self, cohort: Cohort) -> Iterator[Stage]:
        """A single stage, "segment"; the score is the mean Dice per patient."""
        config, window = self.config.segment, self._window
        grids = [self._grid(subject) for subject in cohort.training]
        augmentation = self._augmentation()

        def batch(step: TrainStep) -> Patches:
            drawn = draw_blocks(
                cohort.training,
                grids,
                window,
                step,
                batch_size=config.batch_size,
                foreground_share=self.config.foreground_share,
            )
            return drawn_patches(
                cohort, drawn, self._image, augmentation, step, flat=self.planned.dimensions == 2
            )

        def loss(called: nn.Module, batch: Patches) -> dict[str, Tensor]:
            levels = [all_gather(level) for level in called(batch.image)]
            labels = all_gather(batch.labels)
            valid = None if batch.valid is None else all_gather(batch.valid)
            value = segmentation_loss(
                levels,
                labels,
                target=self.target,
                valid=valid,
                over="batch" if self.planned.dimensions == 2 else "sample",
            )
            return {"loss": value}

        def predict(case: int) -> Sequence[Region]:
            subject = cohort.validation[case]
            return advance(subject.image, self.steps(subject)).found

        yield Stage(
            name="segment",
            net=self.parts["segment"],
            config=config,
            steps=config.steps or max(1, len(cohort.training) // config.batch_size),
            batch=batch,
            loss=loss,
            validate=validation(cohort, predict, self.target),
        )

    def steps(self, subject: Subject) -> list[Step]:
        """A single step, "segment": in the scan's non-zero voxels, or on the network's."""
        scan, once = subject.image.grid, self.config.resizing is None
        grid = scan.crop(*nonzero_box(subject.image))
        if once:
            grid = _in_order_of(scan, self._grid(subject))
        return [
            Step(
                name="segment",
                locate=lambda _: [Region(grid=grid)],
                segment=partial(self._segment_once, subject.scalings) if once else self._segment,
                target=self.target,
            )
        ]

    def report(self, subject: Subject, progress: Progress) -> Placement:
        """The sizes of the body and of the voxels."""
        return Placement(figures=figures_of(subject), overlap={})

    @property
    def facts(self) -> Mapping[str, Any]:
        """None."""
        return {}

    def _segment(self, progress: Progress, region: Region) -> Volume:
        """(target.outputs, *region.grid.shape) float32: probabilities of the resampled logits."""
        assert isinstance(progress.image, Volume) and self.config.resizing is not None
        settings, planned = self.config.resizing, self.planned
        # The region's voxels are the scan's, so that they are copied.
        scan = reorient(resample(progress.image, region.grid), self.axes)
        seen = network_input(
            scan,
            self.plan.channels,
            planned,
            order=settings.image_order,
            by_slice=settings.by_slice,
        )
        found = Volume(self._logits(seen.data).float(), seen.grid)
        scan_mm = scan.grid.spacing_mm.tolist()
        axis = thick_axis(planned.spacing_of(scan_mm), scan_mm, settings.by_slice)
        found = resized(found, scan.grid, spline(settings.logits_order), axis)
        values = probabilities(found.data.half()[None], self.target)[0]
        return Volume(reorient(Volume(values, scan.grid), region.grid).data, region.grid)

    def _segment_once(
        self, scalings: Sequence[Scaling], progress: Progress, region: Region
    ) -> Volume:
        """The same on a grid of the network's voxels, where the scan's values are interpolated."""
        grid = _in_order_of(self.axes, region.grid)
        logits = self._logits(self._sampled(scalings, progress.image, grid))
        values = Volume(probabilities(logits[None], self.target)[0], grid)
        return Volume(reorient(values, region.grid).data, region.grid)

    def _logits(self, image: Tensor) -> Tensor:
        return mean_logits(
            list(self.parts.values()),
            image,
            self.planned.patch_size,
            overlap=self.config.overlap,
            mirror_axes=self._mirror_axes(),
            device=self.device,
        )

    def _mirror_axes(self) -> tuple[int, ...]:
        if not self.config.test_time_flip:
            return ()
        known = self.config.mirror_axes
        return tuple(range(self.planned.dimensions)) if known is None else known

    def _matches(self, other: NnUnet) -> bool:
        """Same inference; the settings of training may differ."""
        mine, theirs = (
            {**asdict(method.config), "segment": None, "target": method.target.as_dict()}
            for method in (self, other)
        )
        return mine == theirs and self.plan == other.plan

    @property
    def _window(self) -> tuple[int, int, int]:
        """Slices, rows and columns of the network's input."""
        slices, rows, columns = (1, 1, *self.planned.patch_size)[-3:]
        return slices, rows, columns

    def _grid(self, subject: Subject) -> Grid:
        """The full scan at the network's spacing, in the order of its axes."""
        return self.planned.grid(_in_order_of(self.axes, subject.image.grid))

    def _image(self, subject: Subject, grid: Grid) -> Tensor:
        return self._sampled(subject.scalings, subject.image, grid)

    def _sampled(self, scalings: Sequence[Scaling], image: Volume | Slices, grid: Grid) -> Tensor:
        """(channels, *grid.shape) float32: interpolated once, then normalised."""
        values = sampled(image, grid, fill=self.plan.padding).data
        return as_input(values, [tuple(scalings)]).transpose(0, 1)

    def _augmentation(self) -> Augmentation | None:
        """Raises UsageError: "small-blocks"."""
        if self.config.augment == "none":
            return None
        patch = self.planned.patch_size
        if min(patch) < MIN_SIDE:
            raise UsageError(
                f"augment 'nnunet' needs patches of at least {MIN_SIDE} voxels along each axis;"
                f" these are of {' x '.join(map(str, patch))}",
                code="small-blocks",
                next_step="Set augment=none.",
            )
        return Augmentation(patch)


def _in_order_of(axes: Grid, grid: Grid) -> Grid:
    """The voxels of a grid in the order of the axes of another."""
    return reorient(Volume(torch.empty((0, *grid.shape)), grid), axes).grid


def _configuration(config: NnUnetConfig, plan: Plan) -> Configuration:
    found = plan.configurations.get(config.configuration)
    if found is None:
        raise UsageError(
            f"the plan has no configuration '{config.configuration}'",
            code="no-configuration",
            next_step=f"Set configuration to one of {', '.join(plan.configurations)}.",
        )
    if max(config.mirror_axes or (0,)) >= found.dimensions:
        raise UsageError(
            f"mirror_axes {list(config.mirror_axes or ())} for a network in {found.dimensions}D",
            code="bad-setting",
            next_step="Its axes are counted from 0.",
        )
    return found
