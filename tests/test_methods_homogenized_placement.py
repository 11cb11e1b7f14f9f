"""How a patient lies among those of the training, by construction and by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from cohorts import PLAN, VIEW, make_cohort
from ellipses import make_ellipse_patient
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Subject, masks_at, prepare
from kidseg.cohort.training_range import figures_of
from kidseg.config import LocalizerConfig, PoseConfig
from kidseg.geometry import Grid, resample
from kidseg.methods.homogenized.placement import brought_to_reference
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
    outlines = brought_to_reference(subject, grid, POSE, reference, SIZE).outlines
    assert set(outlines) == {"pose"}
    body = outlines["pose"]
    a = resample(body, grid).data[0] > 0.5
    b = masks_at(subject, grid).data[0] > 0.5
    assert 2 * float((a & b).sum()) / float(a.sum() + b.sum()) > 0.95
