"""nnU-Net's networks with nnU-Net's own inference: what an imported model is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from kidseg.augment import MIN_SIDE, Augmentation
from kidseg.cohort.batch import Patches
from kidseg.cohort.block import draw_blocks
from kidseg.cohort.body_grid import body_grid, finest_mm
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Material, Subject
from kidseg.cohort.training_range import Placement, figures_of
from kidseg.config import BodyConfig, NnUnetConfig
from kidseg.device import Device
from kidseg.errors import UsageError
from kidseg.geometry import Grid, Slices, Volume, resample, sampled
from kidseg.intensity import Scaling, as_input
from kidseg.io.orientation import facing, reorient
from kidseg.labels import Target
from kidseg.losses import probabilities
from kidseg.methods.patches import drawn_patches, patch_stage
from kidseg.nets import build
from kidseg.pipeline import OnProgress, Progress, Region, Step
from kidseg.pipeline.mirrored_windows import Box, mean_logits
from kidseg.pipeline.opinions import Predicted, Row, Tally
from kidseg.plan import Configuration, Plan, network_input, resized, spline, thick_axis
from kidseg.plan.nonzero import nonzero_box
from kidseg.stage import Stage, TrainStep

__all__ = ["NnUnet"]


class NnUnet:
    """The scan is cropped to its non-zero voxels, normalised, then resampled; the logits of a
    sliding window, averaged over mirrored inputs and over networks, are resampled to the scan.

    So images and logits are interpolated as in nnU-Net, and the labels are nnU-Net's. On request
    bodies are brought to a size and pose first, or the scan is interpolated once. Training draws
    patches that are interpolated once, as `plain3d` does.

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
        """Any channels, without masks; the scan's own values, or averaged to the network's size."""
        if not config.interpolates_once:
            return Material(exact=True)
        planned = _configuration(config, plan)
        known = (0.0, *planned.spacing_mm)[-3:]  # in 2D, the slices are the scan's
        pixel_mm = max(known[axis] for axis in config.canonical_axes[1:])
        return Material(pixel_mm=finest_mm(config.body, pixel_mm))

    @classmethod
    def build(
        cls, config: NnUnetConfig, target: Target, plan: Plan, *, seed: int = 0, device: Device
    ) -> Self:
        """See `Method.build`.

        Raises:
            UsageError: "no-configuration": the plan has no such configuration; "body-not-ct":
                bodies are to be resized, and the data set is not CT.
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

        over: Literal["batch", "sample"] = "batch" if self.planned.dimensions == 2 else "sample"
        yield patch_stage(self, config, cohort, batch, over)

    def steps(self, subject: Subject) -> list[Step]:
        """A single step, "segment": in the scan's non-zero voxels, or on the network's."""
        once = self.config.interpolates_once
        grid = subject.image.grid.crop(*nonzero_box(subject.image))
        if once:
            grid = self._canonical_grid(subject)
        return [
            Step(
                name="segment",
                locate=lambda _: [Region(grid=grid)],
                segment=partial(self._segment_once, subject.scalings) if once else self._segment,
                target=self.target,
            )
        ]

    def report(self, subject: Subject, progress: Progress) -> Placement:
        """The sizes of the body and of the voxels; and the pose, if bodies are resized."""
        scanned, grid = subject.image.grid, None
        if self.config.body != BodyConfig():
            scanned = _in_order_of(scanned, self.planned.grid(_in_order_of(self.axes, scanned)))
            grid = self._canonical_grid(subject)
        return Placement(figures=figures_of(subject, grid, scanned), overlap={})

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
        logits, rows = self._logits(seen.data, seen.grid, progress.on_progress)
        found = Volume(logits.float(), seen.grid)
        scan_mm = scan.grid.spacing_mm.tolist()
        axis = thick_axis(planned.spacing_of(scan_mm), scan_mm, settings.by_slice)
        found = resized(found, scan.grid, spline(settings.logits_order), axis)
        values = probabilities(found.data.half()[None], self.target)[0]
        return Predicted(reorient(Volume(values, scan.grid), region.grid).data, region.grid, rows)

    def _segment_once(
        self, scalings: Sequence[Scaling], progress: Progress, region: Region
    ) -> Volume:
        """The same on a grid of the network's voxels, where the scan's values are interpolated."""
        grid = _in_order_of(self.axes, region.grid)
        image = self._sampled(scalings, progress.image, grid)
        logits, rows = self._logits(image, grid, progress.on_progress)
        values = Volume(probabilities(logits[None], self.target)[0], grid)
        return Predicted(reorient(values, region.grid).data, region.grid, rows)

    def _logits(
        self, image: Tensor, grid: Grid, on_progress: OnProgress
    ) -> tuple[Tensor, tuple[Row, ...]]:
        """The mean logits of all networks and mirrorings, and what volumes each gives."""
        axes = self._mirror_axes()
        count = len(self.parts) * 2 ** len(axes)
        tallies = [Tally(self.target, grid) for _ in range(count if count > 1 else 0)]

        def hear(number: int, logits: Tensor, box: Box, share: Tensor) -> None:
            values = probabilities(logits[None], self.target)[0]
            if share.ndim == 2:  # windows of a slice
                tallies[number].add(values[:, None], box[0], share[None])
            else:
                tallies[number].add(values, box[0].start, share)

        logits = mean_logits(
            list(self.parts.values()),
            image,
            self.planned.patch_size,
            overlap=self.config.overlap,
            mirror_axes=axes,
            device=self.device,
            hear=hear if tallies else None,
            on_progress=on_progress,
        )
        return logits, tuple(tally.row for tally in tallies)

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
        """The network's voxels, in the order of its axes: of the scan, or of the resized body."""
        scan = _in_order_of(self.axes, subject.image.grid)
        if self.config.body == BodyConfig():
            return self.planned.grid(scan)
        spacing_mm = self.planned.spacing_of(scan.spacing_mm.tolist())
        order = self.config.canonical_axes
        grid = body_grid(subject, self.config.body, tuple(spacing_mm[axis] for axis in order))
        if self.planned.dimensions == 2 and order[0] == 0:  # the slices of the scan stay
            grid = grid.resized((subject.slices, *grid.shape[1:]))
        return _in_order_of(self.axes, grid)

    def _canonical_grid(self, subject: Subject) -> Grid:
        """The same voxels in the order of the scan's axes."""
        return _in_order_of(subject.image.grid, self._grid(subject))

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
    """Raises UsageError: "no-configuration", "bad-setting", "body-not-ct"."""
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
    if config.body != BodyConfig() and any(each.scheme != "ct" for each in plan.channels):
        raise UsageError(
            "bodies are found in CT, and the data set is not CT",
            code="body-not-ct",
            next_step="Leave out the settings of 'body'.",
        )
    return found
