"""The 3D baseline: nnU-Net's 3d_fullres network, trained on patches (blocks) of the scan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from kidseg.augment import MIN_SIDE, Augmentation
from kidseg.cohort.batch import Patches
from kidseg.cohort.block import draw_blocks
from kidseg.cohort.body_grid import body_grid, finest_mm
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Material, Subject
from kidseg.cohort.training_range import Placement, figures_of
from kidseg.config import BodyConfig, Plain3dConfig
from kidseg.device import Device
from kidseg.errors import UsageError
from kidseg.geometry import Grid
from kidseg.labels import Target
from kidseg.methods.patches import drawn_patches, patch_stage
from kidseg.nets import build
from kidseg.pipeline import Blocks, Progress, Region, Step
from kidseg.plan import Configuration, Plan, adapted
from kidseg.stage import Stage, TrainStep

__all__ = ["Plain3d"]


class Plain3d:
    """Trains on blocks at the plan's spacing; predicts with a sliding window over the scan.

    On request bodies are brought to a size and pose first; blocks are then blocks of such bodies.
    """

    name: ClassVar[str] = "plain3d"

    def __init__(
        self,
        config: Plain3dConfig,
        target: Target,
        plan: Plan,
        parts: Mapping[str, nn.Module],
        device: Device,
    ) -> None:
        self.config, self.target, self.plan = config, target, plan
        self.parts, self.device = parts, device
        self.planned = _configuration(config, plan)
        slices, rows, columns = self.planned.patch_size
        self.patch = (slices, rows, columns)

    @classmethod
    def material(cls, config: Plain3dConfig, plan: Plan) -> Material:
        """Any channels, without masks."""
        pixel_mm = max(_configuration(config, plan).spacing_mm[1:])
        return Material(pixel_mm=finest_mm(config.body, pixel_mm))

    @classmethod
    def build(
        cls, config: Plain3dConfig, target: Target, plan: Plan, *, seed: int = 0, device: Device
    ) -> Self:
        """See `Method.build`.

        Raises:
            UsageError: "no-volumes": the plan has no 3D configuration; "body-not-ct": bodies are to
                be resized, and the data set is not CT.
        """
        topology = _configuration(config, plan).topology
        net = build(topology, len(plan.channels), target.outputs, seed=seed)
        return cls(config, target, plan, {"segment": net.to(device.torch)}, device)

    def stages(self, cohort: Cohort) -> Iterator[Stage]:
        """A single stage, "segment".

        The score is the mean Dice per patient, computed on the slices of the stored scans.
        """
        config = self.config.segment
        grids = [self._grid(subject) for subject in cohort.training]
        augmentation = None
        if self.config.augment == "nnunet":
            augmentation = Augmentation(self.patch)

        def batch(step: TrainStep) -> Patches:
            drawn = draw_blocks(
                cohort.training,
                grids,
                self.patch,
                step,
                batch_size=config.batch_size,
                foreground_share=self.config.blocks.foreground_share,
            )
            return drawn_patches(cohort, drawn, self._image, augmentation, step)

        yield patch_stage(self, config, cohort, batch, "sample")

    def steps(self, subject: Subject) -> list[Step]:
        """A single step, "segment"."""
        view = self._view(subject)
        return [
            Step(
                name="segment",
                locate=lambda _: [Region(grid=self._grid(subject))],
                segment=partial(view.predict, self.parts["segment"], self.target),
                target=self.target,
            )
        ]

    def report(self, subject: Subject, progress: Progress) -> Placement:
        """The sizes of the body and of the voxels; and the pose, if bodies are resized."""
        scanned, grid = self.planned.grid(subject.image.grid), None
        if self.config.body != BodyConfig():
            grid = self._grid(subject)
        return Placement(figures=figures_of(subject, grid, scanned), overlap={})

    @property
    def facts(self) -> Mapping[str, Any]:
        """Spacing and patch size of the network."""
        return {
            "blocks": {
                "spacing_mm": list(self.planned.spacing_mm),
                "patch": list(self.planned.patch_size),
            }
        }

    def _view(self, subject: Subject) -> Blocks:
        return Blocks(
            patch=self.patch,
            overlap=self.config.blocks.overlap,
            scalings=[subject.scalings],
            padding=self.plan.padding,
            device=self.device,
            flip=self.config.test_time_flip,
        )

    def _image(self, subject: Subject, grid: Grid) -> Tensor:
        return self._view(subject).image(subject.image, grid)[0]

    def _grid(self, subject: Subject) -> Grid:
        """The full scan at the network's spacing; or the body, if bodies are resized."""
        if self.config.body == BodyConfig():
            return self.planned.grid(subject.image.grid)
        return body_grid(subject, self.config.body, self.planned.spacing_mm)


def _configuration(config: Plain3dConfig, plan: Plan) -> Configuration:
    if "3d_fullres" not in plan.configurations:
        raise UsageError(
            "the scans are single slices; a 3D network cannot be planned",
            code="no-volumes",
            next_step="Train with method 'plain'.",
        )
    blocks = config.blocks
    found = adapted(
        plan.configurations["3d_fullres"],
        spacing_mm=blocks.spacing_mm,
        patch=blocks.patch,
        features=blocks.features,
        max_features=blocks.max_features,
    )
    if len(found.topology.features) < 2:
        raise UsageError(
            f"blocks of {' x '.join(map(str, found.patch_size))} voxels are too small to be halved"
            " along any axis",
            code="small-blocks",
            next_step="Set larger blocks.patch, or smaller blocks.spacing_mm; or train with method"
            " 'plain'.",
        )
    if config.augment == "nnunet" and min(found.patch_size) < MIN_SIDE:
        enough = [max(MIN_SIDE, side) for side in found.patch_size]
        raise UsageError(
            f"augment 'nnunet' needs blocks of at least {MIN_SIDE} voxels along each axis; these"
            f" are of {' x '.join(map(str, found.patch_size))}",
            code="small-blocks",
            next_step=f"Set blocks.patch={enough}, or augment=none; or train with method 'plain'.",
        )
    if config.body != BodyConfig() and any(each.scheme != "ct" for each in plan.channels):
        raise UsageError(
            "bodies are found in CT, and the data set is not CT",
            code="body-not-ct",
            next_step="Leave out the settings of 'body'.",
        )
    return found
