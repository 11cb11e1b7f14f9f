"""How a patient lies among those of the training, by construction and by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cohorts import PLAN, VIEW, make_cohort
from ellipses import make_ellipse_patient
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Subject, masks_at, prepare
from kidseg.cohort.training_range import FAR_SD, distances, training_range
from kidseg.config import LocalizerConfig, PlainConfig, PoseConfig
from kidseg.geometry import Grid, resample
from kidseg.methods import method_named
from kidseg.methods.homogenized.placement import brought_to_reference, figures_of
from kidseg.methods.homogenized.pose_stage import overlap
from kidseg.methods.homogenized.reference import Reference, start_grid

POSE = PoseConfig(localizer=LocalizerConfig(size=32, pooled=8, hidden=(32, 16)))
SIZE = VIEW.size


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return make_cohort()


@pytest.fixture(scope="module")
def reference(cohort: Cohort) -> Reference:
    """One that lies straight in the usual size."""
    found = Reference(POSE)
    found.adopt(subject_of(0, angle_deg=0.0, size=1.0), POSE, VIEW)
    return found


def subject_of(seed: int, *, angle_deg: float, size: float) -> Subject:
    """An ellipse patient of this size, turned by up to this angle."""
    patient = make_ellipse_patient(seed, max_angle_deg=angle_deg, sizes=(size, size))
    return prepare(
        patient.image, VIEW, PLAN, name=f"patient {seed}", multiple=8, labels=patient.labels
    )


def upright(subject: Subject, reference: Reference) -> Grid:
    return start_grid(subject, POSE, reference, SIZE)


def test_figures_are_the_patients_own(reference: Reference) -> None:
    for seed, size in ((1, 0.8), (2, 1.0), (3, 1.2)):
        subject = subject_of(seed, angle_deg=20.0, size=size)
        patient = make_ellipse_patient(seed, max_angle_deg=20.0, sizes=(size, size))
        figures = figures_of(subject, upright(subject, reference))
        assert figures["radius_long_mm"] == pytest.approx(90 * size, rel=0.02)
        assert figures["radius_short_mm"] == pytest.approx(65 * size, rel=0.02)
        assert figures["pixel_mm"] == pytest.approx(4.0)
        assert figures["slice_mm"] == pytest.approx(10.0)
        assert figures["angle_deg"] == pytest.approx(math.degrees(patient.angle_rad), abs=2)
        sizes = [figures["scale_x"], figures["scale_y"]]
        own = upright(subject_of(0, angle_deg=0.0, size=1.0), reference)
        usual = float(own.spacing_mm[0, 1] / subject.base.spacing_mm[1])
        assert sizes == pytest.approx([size * usual] * 2, rel=0.03)


def test_a_turned_and_small_patient_is_brought_to_the_reference(reference: Reference) -> None:
    subject = subject_of(5, angle_deg=20.0, size=0.6)
    placed = brought_to_reference(subject, upright(subject, reference), POSE, reference, SIZE)
    before, after = placed.overlap["before"], placed.overlap["after"]
    assert set(after) == {"body", "bone"}
    assert after["body"] > 0.95 > 0.8 > before["body"]
    assert after["bone"] > before["bone"]
    assert placed.overlap["start"] == after, "the start was kept"
    assert placed.figures["overlap"] == pytest.approx((after["body"] + after["bone"]) / 2)


def test_one_that_lies_like_the_reference_overlaps_as_it_lies(reference: Reference) -> None:
    """The field of the reference, not the base grid's, so that sizes compare as they are."""
    subject = subject_of(0, angle_deg=0.0, size=1.0)
    placed = brought_to_reference(subject, upright(subject, reference), POSE, reference, SIZE)
    assert placed.overlap["before"]["body"] > 0.97


def test_identity_start_is_the_scan_as_it_lies(cohort: Cohort) -> None:
    config = replace(POSE, start="identity")
    own = Reference(config)
    own.adopt(cohort.training[0], config, VIEW)
    grid = start_grid(cohort.training[1], config, own, SIZE)
    placed = brought_to_reference(cohort.training[1], grid, config, own, SIZE)
    assert placed.overlap["before"] == placed.overlap["start"]


@pytest.mark.parametrize("target", ["body", "body+bone"])
def test_it_is_the_overlap_that_the_training_reports(cohort: Cohort, target: str) -> None:
    config = replace(POSE, target=target)
    own = Reference(config)
    own.adopt(cohort.training[0], config, VIEW)
    for subject in cohort.training[1:3]:
        grid = start_grid(subject, config, own, SIZE)
        placed = brought_to_reference(subject, grid, config, own, SIZE)
        expected = overlap(subject, grid, config, own).tolist()
        assert list(placed.overlap["after"].values()) == pytest.approx(expected, abs=1e-5)


def test_without_labels_all_slices_are_compared(reference: Reference) -> None:
    subject = replace(subject_of(1, angle_deg=5.0, size=1.0), labels=None)
    placed = brought_to_reference(subject, upright(subject, reference), POSE, reference, SIZE)
    assert placed.compared == (0, subject.image.grid.shape[0] - 1)


def test_the_references_body_lies_on_the_homogenized_grid(reference: Reference) -> None:
    subject = subject_of(2, angle_deg=20.0, size=1.25)
    grid = upright(subject, reference)
    body = brought_to_reference(subject, grid, POSE, reference, SIZE).reference_body
    assert body is not None
    a = resample(body, grid).data[0] > 0.5
    b = masks_at(subject, grid).data[0] > 0.5
    assert 2 * float((a & b).sum()) / float(a.sum() + b.sum()) > 0.95


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
    ],
)
def test_distances_by_hand(name: str, value: float, expected: float | None) -> None:
    """Beyond the range in SDs; these no less than 1 deg, 0.1 mm, 0.01; one patient has none."""
    ranges = {
        "a_mm": {"min": 1.0, "max": 5.0, "sd": 2.0},
        "alone": {"min": 4.0, "max": 4.0, "sd": None},
        "same_deg": {"min": 10.0, "max": 10.0, "sd": 0.0},
        "same_mm": {"min": 10.0, "max": 10.0, "sd": 0.0},
        "same": {"min": 10.0, "max": 10.0, "sd": 0.0},
        "overlap": {"min": 0.8, "max": 0.9, "sd": 0.1},
    }
    found = distances({name: value, "unheard of": 3.0}, ranges)
    assert set(found) == {name}
    assert found[name]["value"] == value
    assert found[name]["distance_sd"] == (None if expected is None else pytest.approx(expected))


def test_one_of_the_training_is_near_and_one_of_another_size_is_far(cohort: Cohort) -> None:
    config = PlainConfig(view=VIEW)
    ranges = method_named("plain").facts(config, {}, cohort)["training_range"]
    assert ranges["radius_long_mm"]["n"] == len(cohort.training)
    for subject in cohort.training:
        near = distances(figures_of(subject), ranges)
        assert {known["distance_sd"] for known in near.values()} == {0.0}
    giant = distances(figures_of(subject_of(9, angle_deg=20.0, size=1.4)), ranges)
    far = [name for name, known in giant.items() if (known["distance_sd"] or 0) > FAR_SD]
    assert far == ["radius_long_mm", "radius_short_mm"]


def test_no_body_has_no_radii(cohort: Cohort) -> None:
    image = make_ellipse_patient(0).image
    air = replace(image, data=torch.full_like(image.data, -1000))
    figures = figures_of(prepare(air, VIEW, PLAN, name="air", multiple=8))
    assert set(figures) == {"pixel_mm", "slice_mm"}
