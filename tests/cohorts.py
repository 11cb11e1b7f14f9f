"""A cohort of ellipse patients in memory."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ellipses import make_ellipse_patient
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.frame import Frame, frame, pixel_mm
from kidseg.cohort.subject import BodyMasks, Material, Subject, prepare
from kidseg.config import CohortConfig, PoseConfig, ViewConfig
from kidseg.geometry import Grid
from kidseg.intensity import Normalisation, Statistics
from kidseg.labels import KIDNEY_TUMOUR, Target
from kidseg.methods.homogenized import scene
from kidseg.methods.homogenized.reference import Reference, start_grid
from kidseg.plan import Configuration, Plan, Topology

VIEW = ViewConfig(size=48)
MULTIPLE = 8
TARGET = Target.of_labels(KIDNEY_TUMOUR)

PLAN = Plan(
    channels=(
        Normalisation.of_channel(
            "CT",
            Statistics(
                mean=130.0,
                sd=50.0,
                median=130.0,
                min=40.0,
                max=230.0,
                percentile_00_5=40.0,
                percentile_99_5=230.0,
            ),
        ),
    ),
    labels={1: "kidney", 2: "tumour"},
    cyst=None,
    median_spacing_mm=(10.0, 4.0, 4.0),
    configurations={
        "2d": Configuration(
            spacing_mm=(4.0, 4.0),
            median_shape=(64.0, 64.0),
            patch_size=(64, 64),
            batch_size=2,
            topology=Topology(features=(8,), kernels=((3, 3),), strides=((1, 1),)),
        )
    },
    training=(),
)


VOLUMES = replace(
    PLAN,
    configurations={
        **PLAN.configurations,
        "3d_fullres": Configuration(
            spacing_mm=(10.0, 4.0, 4.0),
            median_shape=(8.0, 64.0, 64.0),
            patch_size=(8, 32, 32),
            batch_size=2,
            topology=Topology(
                features=(4, 8, 8),
                kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
                strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)),
            ),
        ),
    },
)
"""With a three-dimensional network, on the patients' own voxels."""


def material_of(view: ViewConfig = VIEW, plan: Plan = PLAN) -> Material:
    """What a slice-wise method asks for, with masks of body and bone."""
    masks = BodyMasks(
        bone_hu=view.bone_hu,
        bone_least_ml=view.bone_min_volume_ml,
        bone_blur_mm=view.bone_blur_mm,
    )
    return Material(pixel_mm=pixel_mm(view, plan), masks=masks)


def frame_of(subject: Subject, view: ViewConfig = VIEW, plan: Plan = PLAN) -> Frame:
    return frame(subject, view, plan, MULTIPLE)


def base_of(subject: Subject, view: ViewConfig = VIEW, plan: Plan = PLAN) -> Grid:
    return frame_of(subject, view, plan).base


def whole_of(subject: Subject, view: ViewConfig = VIEW, plan: Plan = PLAN) -> Grid:
    return frame_of(subject, view, plan).whole


def start_of(subject: Subject, config: PoseConfig, reference: Reference) -> Grid:
    return start_grid(subject, base_of(subject), config, reference)


def make_cohort(training: int = 5, validation: int = 2, view: ViewConfig = VIEW) -> Cohort:
    subjects = []
    for seed in range(training + validation):
        patient = make_ellipse_patient(seed)
        subjects.append(
            prepare(
                patient.image,
                material_of(view),
                PLAN.channels,
                name=f"ellipse_{seed:03d}",
                labels=patient.labels,
            )
        )
    return Cohort(
        training=tuple(subjects[:training]),
        validation=tuple(subjects[training:]),
        schema=KIDNEY_TUMOUR,
        target=TARGET,
        plan=PLAN,
        config=CohortConfig(),
    )


def masks_on(subject: Subject, grid: Grid) -> Tensor:
    """(slices, 2, rows, columns) float 0..1: the masks of body and bone on a grid."""
    assert subject.masks is not None
    return scene.masks_on(subject.masks, grid, 2)
