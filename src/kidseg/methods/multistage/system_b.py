"""System B: find the kidneys in small slices, segment each with two networks, average them.

Source: Santini et al., Kidney tumor segmentation using an ensembling multi-stage deep learning
approach, KiTS19.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from kidseg.cohort.batch import Patches
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import steps_per_epoch
from kidseg.cohort.subject import Material, Subject
from kidseg.cohort.training_range import Placement, figures_of
from kidseg.config import MultistageConfig, PostprocessConfig, StagedNetConfig
from kidseg.device import Device
from kidseg.distributed import all_gather
from kidseg.errors import InputError, UsageError
from kidseg.geometry import Grid, Volume, binned_grid, resample
from kidseg.labels import LabelSchema, Target
from kidseg.losses import weighted_cross_entropy
from kidseg.measure import Midline
from kidseg.methods.multistage.balanced import BalancedSlices, groups_of, slice_index
from kidseg.methods.multistage.kidney_regions import Kidney, kidneys_in, without_small
from kidseg.methods.multistage.notes import stage_1_note, stage_2_note
from kidseg.methods.segmentation import validation
from kidseg.nets import build
from kidseg.pipeline import (
    Locate,
    Note,
    Planes,
    Predicted,
    Progress,
    Region,
    Step,
    advance,
    decide,
    rows_of,
)
from kidseg.plan import Plan
from kidseg.postprocess import Piece, min_volume_ml
from kidseg.stage import Stage, shares

__all__ = ["Multistage"]

_COARSE, _KIDNEYS, _ENSEMBLE = "coarse", "kidneys", "ensemble"


class Multistage:
    """Res-UNet on all slices; Res-UNet and ResNet around each kidney; mean of their probabilities.

    Steps: "coarse"; "kidneys", which removes small components from its result; each network of
    stage 2 around each kidney, without small components; "ensemble".
    """

    name: ClassVar[str] = "multistage"

    def __init__(
        self,
        config: MultistageConfig,
        target: Target,
        plan: Plan,
        parts: Mapping[str, nn.Module],
        device: Device,
    ) -> None:
        self.config, self.target, self.plan = config, target, plan
        # The weights of a decision belong to the result, not to the steps before it.
        self.undecided = replace(target, weights=())
        self.parts, self.device = parts, device

    @classmethod
    def material(cls, config: MultistageConfig, plan: Plan) -> Material:
        """Any channels, without masks."""
        return Material(pixel_mm=config.pixel_mm)

    @classmethod
    def build(
        cls, config: MultistageConfig, target: Target, plan: Plan, *, seed: int = 0, device: Device
    ) -> Self:
        """See `Method.build`; each network starts with weights of its own."""
        channels = len(plan.channels) * (2 * config.reach + 1)
        parts = {}
        for number, name in enumerate((_COARSE, *config.ensemble)):
            net = build(_of(config, name).net, channels, target.outputs, seed=3 * seed + number)
            parts[name] = net.to(device.torch)
        return cls(config, target, plan, parts, device)

    def stages(self, cohort: Cohort) -> Iterator[Stage]:
        """ "coarse", then each network of stage 2.

        The validation of stage 2 sees the regions that stage 1 finds.

        Raises:
            InputError: "no-kidney-shown": no training case has a kidney.
            UsageError: "no-cyst-label": `hard_negatives` requires one.
        """
        if not any(subject.renal_voxels.any() for subject in cohort.training):
            raise InputError(
                "no training case shows kidney or tumour",
                path=cohort.training[0].id,
                code="no-kidney-shown",
                next_step="Train with more cases, or check that these are the correct label files.",
            )
        if self.config.hard_negatives and not groups_of(cohort.schema)[2]:
            raise UsageError(
                "hard_negatives draws slices with cysts, and the data set has no label for them",
                code="no-cyst-label",
                next_step="Set hard_negatives=0, or cohort.cyst=null if the data set has cysts.",
            )
        training = [[self._trained_slices(subject)] for subject in cohort.training]
        names = (_COARSE, *self.config.ensemble)
        share = shares([_of(self.config, name).stage for name in names])

        def found(case: int) -> Sequence[Region]:
            subject = cohort.validation[case]
            return advance(subject.image, self._steps_of_stage_1(subject)).found

        yield replace(self._stage(_COARSE, cohort, training, found), share=share[0])
        regions, known = self._regions(cohort)
        for name, part in zip(self.config.ensemble, share[1:], strict=True):

            def predict(case: int, name: str = name) -> Sequence[Region]:
                subject = cohort.validation[case]
                step = self._step_of_stage_2(name, subject, lambda _: known[case])
                return advance(subject.image, [step]).found

            yield replace(self._stage(name, cohort, regions, predict), share=part)

    def steps(self, subject: Subject) -> list[Step]:
        """See the class; without a kidney, the steps after "kidneys" have no regions."""
        first, *others = self.config.ensemble

        def locate(progress: Progress) -> list[Region]:
            return [Region(grid=k.grid, name=k.name) for k in self._kidneys(subject, progress)]

        def same(progress: Progress) -> list[Region]:
            return [Region(grid=each.grid, name=each.name) for each in progress.steps[first]]

        return [
            *self._steps_of_stage_1(subject),
            self._step_of_stage_2(first, subject, locate),
            *(self._step_of_stage_2(name, subject, same) for name in others),
            Step(name=_ENSEMBLE, locate=same, segment=self._mean, target=self.target),
        ]

    def report(self, subject: Subject, progress: Progress) -> Placement:
        """The sizes of the body and of the voxels."""
        return Placement(figures=figures_of(subject), overlap={})

    @property
    def facts(self) -> Mapping[str, Any]:
        """None."""
        return {}

    # Grids

    def _full(self, subject: Subject) -> Grid:
        """The scan at the distance of slices and the pixel size of stage 2."""
        grid = subject.image.grid
        slice_mm, row_mm, column_mm = grid.spacing_mm.tolist()
        pixel_mm = self.config.pixel_mm
        return grid.with_spacing(
            (self.config.slice_mm or slice_mm, pixel_mm or row_mm, pixel_mm or column_mm)
        )

    def _slices(self, subject: Subject) -> Grid:
        """The scan at the pixel size of stage 1; a pixel is the mean of those of the full grid."""
        return binned_grid(self._full(subject), self.config.reduction)

    def _trained_slices(self, subject: Subject) -> Grid:
        """The part of `_slices` that stage 1 is trained on, cut or extended around its centre."""
        grid, side = self._slices(subject), self.config.coarse_size
        slices, rows, columns = grid.shape
        return grid.crop((0, (rows - side) // 2, (columns - side) // 2), (slices, side, side))

    def _kidneys(self, subject: Subject, progress: Progress) -> list[Kidney]:
        """The kidneys that stage 1 found."""
        (region,) = progress.steps[_KIDNEYS]
        assert region.found is not None
        labels = decide(region.found, self.undecided)
        return self._kidneys_in(subject, labels, self.config.reduction)

    def _true_kidneys(self, subject: Subject) -> list[Kidney]:
        """The kidneys of the reference labels."""
        assert subject.labels is not None
        labels = resample(subject.labels, self._full(subject), mode="nearest")
        return self._kidneys_in(subject, labels, 1)

    def _kidneys_in(self, subject: Subject, labels: Volume, reduction: int) -> list[Kidney]:
        """The kidneys in labels whose pixels are so many times larger than those of stage 2."""
        body = subject.body
        return kidneys_in(
            subject.is_renal(labels)[0],
            labels.grid,
            self._full(subject),
            reduction=reduction,
            box=self.config.box,
            midline=Midline.of(subject.image.grid, None if body is None else body.per_slice),
        )

    @torch.no_grad()
    def _regions(self, cohort: Cohort) -> tuple[list[list[Grid]], list[list[Region]]]:
        """The regions of stage 2: in training and in validation; stage 1 is trained."""
        self.parts[_COARSE].eval()
        training = []
        for subject in cohort.training:
            kidneys: list[Kidney] = []
            if self.config.regions == "predicted":
                kidneys = self._found(subject)
            kidneys = kidneys or self._true_kidneys(subject)
            training.append([kidney.grid for kidney in kidneys])
        validated = [
            [Region(grid=kidney.grid, name=kidney.name) for kidney in self._found(subject)]
            for subject in cohort.validation
        ]
        return training, validated

    def _found(self, subject: Subject) -> list[Kidney]:
        progress = advance(subject.image, self._steps_of_stage_1(subject))
        return self._kidneys(subject, progress)

    # Steps

    def _view(self, subject: Subject) -> Planes:
        return Planes(
            scalings=[subject.scalings],
            padding=self.plan.padding,
            device=self.device,
            reach=self.config.reach,
            flip=self.config.test_time_flip,
            resliced=self._full(subject),
        )

    def _steps_of_stage_1(self, subject: Subject) -> list[Step]:
        """The network on all slices, and the removal of small components from its result."""
        grid, settings = self._slices(subject), self.config.kidneys
        limit_ml = _limit_ml(subject, grid, settings)

        def cleaned(progress: Progress) -> tuple[Volume, tuple[Piece, ...]]:
            (coarse,) = progress.steps[_COARSE]
            assert coarse.found is not None
            return without_small(
                coarse.found, self.undecided, settings, limit_ml, counted=subject.is_renal
            )

        def note(progress: Progress) -> Note:
            kidneys = self._kidneys(subject, progress)
            return stage_1_note(subject.id, kidneys, limit_ml, cleaned(progress)[1])

        coarse = Step(
            name=_COARSE,
            locate=lambda _: [Region(grid=grid)],
            segment=partial(self._view(subject).predict, self.parts[_COARSE], self.undecided),
            target=self.undecided,
        )
        kidneys = Step(
            name=_KIDNEYS,
            locate=lambda _: [Region(grid=grid)],
            segment=lambda progress, _: cleaned(progress)[0],
            target=self.undecided,
            note=note,
        )
        return [coarse, kidneys]

    def _step_of_stage_2(self, name: str, subject: Subject, locate: Locate) -> Step:
        """A network around each kidney, and the removal of small components from its result."""
        view, net, settings = self._view(subject), self.parts[name], self.config.postprocess
        limit_ml = _limit_ml(subject, self._full(subject), settings)
        dropped: list[Piece] = []

        def located(progress: Progress) -> Sequence[Region]:
            dropped.clear()
            return locate(progress)

        def segment(progress: Progress, region: Region) -> Volume:
            found = view.predict(net, self.undecided, progress, region)
            found, small = without_small(found, self.undecided, settings, limit_ml)
            dropped.extend(small)
            return found

        def note(progress: Progress) -> Note:
            where = [region.name for region in progress.steps[name]]
            return stage_2_note(where, dropped, limit_ml)

        return Step(name=name, locate=located, segment=segment, target=self.undecided, note=note)

    def _mean(self, progress: Progress, region: Region) -> Volume:
        """The mean probability of the networks of stage 2 in a region, and their opinions."""
        found = [
            each.found
            for name in self.config.ensemble
            for each in progress.steps[name]
            if each.name == region.name and each.found is not None
        ]
        rows = tuple(row for each in found for row in rows_of(each, self.undecided))
        return Predicted(torch.stack([each.data for each in found]).mean(0), region.grid, rows)

    # Training

    def _stage(
        self,
        name: str,
        cohort: Cohort,
        grids: Sequence[Sequence[Grid]],
        predict: Any,
    ) -> Stage:
        """The stage of a network that is trained on the slices of these grids."""
        known, config = _of(self.config, name), _of(self.config, name).stage
        weights = label_weights(cohort.schema, self.undecided, known)
        places = BalancedSlices.places_of(cohort, grids)
        index = slice_index(
            places, background=name == _COARSE, hard_negatives=self.config.hard_negatives
        )

        def loss(called: nn.Module, batch: Patches) -> dict[str, Tensor]:
            (logits,) = called(batch.image.contiguous(memory_format=torch.channels_last))
            value = weighted_cross_entropy(
                all_gather(logits),
                all_gather(batch.labels),
                weights,
                target=self.undecided,
                valid=None if batch.valid is None else all_gather(batch.valid),
            )
            return {"loss": value}

        return Stage(
            name=name,
            net=self.parts[name],
            config=config,
            steps=config.steps or steps_per_epoch(index, config.batch_size),
            batch=BalancedSlices(
                cohort=cohort,
                places=places,
                index=index,
                view=self._view,
                augmentation=known.augmentation,
                batch_size=config.batch_size,
                multiple=known.net.multiple,
            ),
            loss=loss,
            validate=validation(cohort, predict, self.undecided),
        )


def label_weights(schema: LabelSchema, target: Target, config: StagedNetConfig) -> Tensor:
    """(256,) weight of each label: tumour; others that are learned as kidney; else background."""
    background, kidney, tumour = config.weights
    weights = torch.full((256,), background)
    weights[list(target.learned)] = kidney
    weights[[label for label in schema.ids_of("tumour") if label in target.learned]] = tumour
    return weights


def _limit_ml(subject: Subject, grid: Grid, settings: PostprocessConfig) -> float:
    """The smallest component on a grid that is kept."""
    radius = None if subject.body is None else subject.body.radius_mm
    return min_volume_ml(settings, radius, float(grid.voxel_ml))


def _of(config: MultistageConfig, name: str) -> StagedNetConfig:
    known: StagedNetConfig = getattr(config, name)
    return known
