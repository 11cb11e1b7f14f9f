"""The baseline: a U-Net on the scan as it lies, with or without augmentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kidseg.augment import Augmentation
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Subject
from kidseg.cohort.training_range import training_range
from kidseg.config import PlainConfig
from kidseg.device import Device
from kidseg.geometry import Grid
from kidseg.methods.homogenized.placement import Placement, figures_of
from kidseg.methods.method import Method, Nets
from kidseg.methods.segmentation import segmentation_stage, segmenter
from kidseg.nets import build
from kidseg.pipeline import Step
from kidseg.plan import Plan
from kidseg.stage import Stage

__all__ = ["PLAIN"]


def _networks(config: PlainConfig, classes: int, seed: int) -> Nets:
    return {"segment": build(config.unet, 1, classes, seed=seed)}


def _stages(config: PlainConfig, nets: Nets, cohort: Cohort, device: Device) -> Iterator[Stage]:
    augmentation = Augmentation(config.view.size) if config.augment == "nnunet" else None
    yield segmentation_stage(
        nets["segment"],
        config.segment,
        cohort,
        training=[subject.base for subject in cohort.training],
        validation=[subject.whole for subject in cohort.validation],
        device=device,
        augmentation=augmentation,
    )


def _steps(
    config: PlainConfig, nets: Nets, plan: Plan, subject: Subject, device: Device
) -> list[Step]:
    segment = segmenter(nets["segment"], plan, device)
    return [Step(name="segment", locate=lambda *_: subject.whole, segment=segment)]


def _multiple(config: PlainConfig) -> int:
    return config.unet.size // config.unet.bottleneck


def _place(
    config: PlainConfig, nets: Nets, subject: Subject, grids: Mapping[str, Grid]
) -> Placement:
    return Placement(figures=figures_of(subject), overlap={})


def _facts(config: PlainConfig, nets: Nets, cohort: Cohort) -> Mapping[str, Any]:
    return {"training_range": training_range([figures_of(case) for case in cohort.training])}


PLAIN = Method(
    name="plain",
    config=PlainConfig,
    networks=_networks,
    stages=_stages,
    steps=_steps,
    multiple=_multiple,
    place=_place,
    facts=_facts,
)
"""Trains on the base grid, centred on the body; segments on as much as it takes to see it whole."""
