"""How far a patient is from those of the training: ranges and distances by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cohorts import PLAN, VIEW, make_cohort, material_of
from ellipses import make_ellipse_patient
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import prepare
from kidseg.cohort.training_range import (
    FAR_SD,
    distances,
    figures_of,
    renal_numbers,
    training_range,
    values_of,
)
from kidseg.config import PlainConfig, UNetConfig
from kidseg.device import choose_device
from kidseg.geometry import Grid, Volume
from kidseg.labels import KIDNEY_TUMOUR, LabelSchema, Target
from kidseg.methods.plain import Plain
from kidseg.pipeline import Progress


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return make_cohort()


def test_ranges_by_hand() -> None:
    ranges = training_range([{"a_mm": 1.0, "b": 4.0}, {"a_mm": 3.0}, {"a_mm": 5.0}])
    assert ranges == {
        "a_mm": {"n": 3, "min": 1.0, "max": 5.0, "mean": 3.0, "sd": 2.0},
        "b": {"n": 1, "min": 4.0, "max": 4.0, "mean": 4.0, "sd": None},
    }
    assert training_range([]) == {}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("a_mm", 1.0, 0.0),
        ("a_mm", 5.0, 0.0),
        ("a_mm", 9.0, 2.0),
        ("a_mm", -1.0, 1.0),
        ("alone", 4.0, 0.0),
        ("alone", 4.1, None),
        ("same_deg", 12.0, 2.0),
        ("same_mm", 10.05, 0.5),
        ("same", 10.02, 2.0),
        ("overlap", 1.0, 0.0),
        ("overlap", 0.7, 1.0),
        ("bright_hu", 10.0, 0.0),
        ("bright_hu", 215.0, 3.0),
    ],
)
def test_distances_by_hand(name: str, value: float, expected: float | None) -> None:
    """Beyond the range in SDs; these no less than 1 deg, 0.1 mm, 5 HU, 0.01; one has none."""
    ranges = {
        "a_mm": {"min": 1.0, "max": 5.0, "sd": 2.0},
        "alone": {"min": 4.0, "max": 4.0, "sd": None},
        "same_deg": {"min": 10.0, "max": 10.0, "sd": 0.0},
        "same_mm": {"min": 10.0, "max": 10.0, "sd": 0.0},
        "same": {"min": 10.0, "max": 10.0, "sd": 0.0},
        "overlap": {"min": 0.8, "max": 0.9, "sd": 0.1},
        "bright_hu": {"min": 100.0, "max": 200.0, "sd": 1.0},
    }
    found = distances({name: value, "unheard of": 3.0}, ranges)
    assert set(found) == {name}
    assert found[name]["value"] == value
    assert found[name]["distance_sd"] == (None if expected is None else pytest.approx(expected))


def test_one_of_the_training_is_near_and_one_of_another_size_is_far(cohort: Cohort) -> None:
    config = PlainConfig(view=VIEW, unet=UNetConfig(size=32, bottleneck=4, features=4))
    method = Plain.build(config, cohort.target, cohort.plan, device=choose_device("cpu", "fp32"))
    ranges = training_range(
        [
            method.report(subject, Progress(image=subject.image)).figures
            for subject in cohort.training
        ]
    )
    assert ranges["radius_long_mm"]["n"] == len(cohort.training)
    for subject in cohort.training:
        near = distances(figures_of(subject), ranges)
        assert {known["distance_sd"] for known in near.values()} == {0.0}
    patient = make_ellipse_patient(9, sizes=(1.4, 1.4))
    large = prepare(patient.image, material_of(), PLAN.channels, name="large")
    giant = distances(figures_of(large), ranges)
    far = [name for name, known in giant.items() if (known["distance_sd"] or 0) > FAR_SD]
    assert far == ["radius_long_mm", "radius_short_mm"]


def test_no_body_has_no_radii(cohort: Cohort) -> None:
    image = make_ellipse_patient(0).image
    air = replace(image, data=torch.full_like(image.data, -1000))
    figures = figures_of(prepare(air, material_of(), PLAN.channels, name="air"))
    assert set(figures) == {"pixel_mm", "slice_mm"}


# Values


def ct(hu: torch.Tensor, spacing_mm: float = 4.0) -> Volume:
    grid = Grid.from_spacing(hu.shape, (10.0, spacing_mm, spacing_mm))
    return Volume(hu[None].to(torch.int16), grid)


def test_values_by_hand() -> None:
    """Body of 50 HU; 100 of 3000 voxels above 0 are kidneys of 1 to 100 HU, 100 are a mass of 40.

    The 95th percentile of these 200 is that of 1 to 100 in its upper tenth: about 90.
    """
    hu = torch.full((40, 20, 20), -1000.0)
    labels = torch.zeros(40, 20, 20, dtype=torch.uint8)
    hu[:, 5:15, 5:15] = 50
    hu[20, 5:15, 5:15], labels[20, 5:15, 5:15] = torch.arange(1.0, 101).reshape(10, 10), 1
    hu[21, 5:15, 5:15], labels[21, 5:15, 5:15] = 40, 2
    image = ct(hu)
    subject = prepare(image, material_of(), PLAN.channels, name="a")
    values = values_of(subject, Volume(labels[None], image.grid), (1, 2))
    assert values["renal_hu"] == pytest.approx(90, abs=1.5)
    assert values["bright_hu"] == 50.0
    assert set(values_of(subject, None, (1, 2))) == {"bright_hu"}
    assert set(values_of(subject, Volume(labels[None], image.grid), ())) == {"bright_hu"}
    assert set(values_of(subject, Volume(labels[None], image.grid), (3,))) == {"bright_hu"}


def test_air_and_other_images_have_no_values() -> None:
    air = prepare(ct(torch.full((4, 20, 20), -1000.0)), material_of(), PLAN.channels, name="air")
    assert values_of(air, None, (1,)) == {}
    mr = replace(air, body=None)
    assert values_of(mr, None, (1,)) == {}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Target.of_labels(KIDNEY_TUMOUR), (1, 2)),
        (Target.merged(KIDNEY_TUMOUR), (1, 2)),
        (Target.alone(KIDNEY_TUMOUR, "tumour"), ()),
    ],
)
def test_kidneys_and_masses_as_far_as_networks_tell_them(
    target: Target, expected: tuple[int, ...]
) -> None:
    assert renal_numbers(KIDNEY_TUMOUR, target) == expected


def test_a_schema_without_kidneys_has_no_numbers() -> None:
    liver = LabelSchema.from_names({1: "liver"})
    assert renal_numbers(liver, Target.of_labels(liver)) == ()
