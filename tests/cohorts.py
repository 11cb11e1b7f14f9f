"""A cohort of ellipse patients in memory."""

from __future__ import annotations

from ellipses import make_ellipse_patient
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import prepare
from kidseg.config import CohortConfig, ViewConfig
from kidseg.intensity import Normalisation, Statistics
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.plan import Configuration, Plan, Topology

VIEW = ViewConfig(size=48)

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


def make_cohort(training: int = 5, validation: int = 2, view: ViewConfig = VIEW) -> Cohort:
    subjects = []
    for seed in range(training + validation):
        patient = make_ellipse_patient(seed)
        subjects.append(
            prepare(
                patient.image,
                view,
                PLAN,
                name=f"ellipse_{seed:03d}",
                multiple=8,
                labels=patient.labels,
            )
        )
    return Cohort(
        training=tuple(subjects[:training]),
        validation=tuple(subjects[training:]),
        schema=KIDNEY_TUMOUR,
        plan=PLAN,
        config=CohortConfig(),
    )
