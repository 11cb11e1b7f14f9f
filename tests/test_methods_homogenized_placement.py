"""How a patient lies among those of the training, by construction and by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from cohorts import PLAN, base_of, make_cohort, masks_on, material_of, start_of
from ellipses import make_ellipse_patient
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Subject, prepare
from kidseg.cohort.training_range import Placement, figures_of
from kidseg.config import LocalizerConfig, PoseConfig
from kidseg.geometry import Grid, posed, resample
from kidseg.methods.homogenized.placement import reference_placement
from kidseg.methods.homogenized.pose_stage import overall_agreement, overlap
from kidseg.methods.homogenized.reference import Reference

POSE = PoseConfig(localizer=LocalizerConfig(size=32, pooled=8, hidden=(32, 16)))


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return make_cohort()


@pytest.fixture(scope="module")
def reference(cohort: Cohort) -> Reference:
    """One that lies straight in the usual size."""
    found = Reference(POSE)
    subject = subject_of(0, angle_deg=0.0, size=1.0)
    found.adopt(subject, base_of(subject), POSE)
    return found


def subject_of(seed: int, *, angle_deg: float, size: float, labelled: bool = True) -> Subject:
    """An ellipse patient of this size, turned by up to this angle."""
    patient = make_ellipse_patient(seed, max_angle_deg=angle_deg, sizes=(size, size))
    return prepare(
        patient.image,
        material_of(),
        PLAN.channels,
        name=f"patient {seed}",
        labels=patient.labels if labelled else None,
    )


def upright(subject: Subject, reference: Reference) -> Grid:
    return start_of(subject, POSE, reference)


def placed_by(subject: Subject, grid: Grid, config: PoseConfig, reference: Reference) -> Placement:
    return reference_placement(subject, base_of(subject), grid, config, reference)


def test_figures_are_the_patients_own(reference: Reference) -> None:
    for seed, size in ((1, 0.8), (2, 1.0), (3, 1.2)):
        subject = subject_of(seed, angle_deg=20.0, size=size)
        patient = make_ellipse_patient(seed, max_angle_deg=20.0, sizes=(size, size))
        figures = figures_of(subject, upright(subject, reference), base_of(subject))
        assert figures["radius_long_mm"] == pytest.approx(90 * size, rel=0.02)
        assert figures["radius_short_mm"] == pytest.approx(65 * size, rel=0.02)
        assert figures["pixel_mm"] == pytest.approx(4.0)
        assert figures["slice_mm"] == pytest.approx(10.0)
        assert figures["angle_deg"] == pytest.approx(math.degrees(patient.angle_rad), abs=2)
        sizes = [figures["scale_x"], figures["scale_y"]]
        own = upright(subject_of(0, angle_deg=0.0, size=1.0), reference)
        usual = float(own.spacing_mm[0, 1] / base_of(subject).spacing_mm[1])
        assert sizes == pytest.approx([size * usual] * 2, rel=0.03)


def test_a_turned_and_small_patient_is_brought_to_the_reference(reference: Reference) -> None:
    subject = subject_of(5, angle_deg=20.0, size=0.6)
    placed = placed_by(subject, upright(subject, reference), POSE, reference)
    before, after = placed.overlap["before"], placed.overlap["after"]
    assert set(after) == {"body", "bone"}
    assert after["body"] > 0.95 > 0.8 > before["body"]
    assert after["bone"] > before["bone"]
    assert placed.overlap["start"] == after and not placed.corrected, "the start was kept"
    assert placed.agreement["start"] == placed.agreement["after"] > placed.agreement["before"]
    assert placed.figures["overlap"] == pytest.approx((after["body"] + after["bone"]) / 2)


def test_the_agreement_reported_is_what_the_pose_was_chosen_by(reference: Reference) -> None:
    """With labels or without: at inference the choice is made before there are any."""
    for labelled in (True, False):
        subject = subject_of(3, angle_deg=20.0, size=1.1, labelled=labelled)
        start = upright(subject, reference)
        for angle_deg in (0.0, 15.0):
            grid = posed(start, angle_rad=torch.full((8,), math.radians(angle_deg)).double())
            placed = placed_by(subject, grid if angle_deg else start, POSE, reference)
            assert placed.corrected == (angle_deg > 0)
            assert subject.masks is not None
            for name, place in (("start", start), ("after", grid)):
                expected = overall_agreement(subject.masks, place, POSE, reference)
                assert placed.agreement[name] == pytest.approx(expected, abs=1e-6)
        assert placed.agreement["after"] < placed.agreement["start"]


def test_one_that_lies_like_the_reference_overlaps_as_it_lies(reference: Reference) -> None:
    """The field of the reference, not the base grid's, so that sizes compare as they are."""
    subject = subject_of(0, angle_deg=0.0, size=1.0)
    placed = placed_by(subject, upright(subject, reference), POSE, reference)
    assert placed.overlap["before"]["body"] > 0.97


def test_identity_start_is_the_scan_as_it_lies(cohort: Cohort) -> None:
    config = replace(POSE, start="identity")
    own = Reference(config)
    own.adopt(cohort.training[0], base_of(cohort.training[0]), config)
    grid = start_of(cohort.training[1], config, own)
    placed = placed_by(cohort.training[1], grid, config, own)
    assert placed.overlap["before"] == placed.overlap["start"]


@pytest.mark.parametrize("target", ["body", "body+bone"])
def test_it_is_the_overlap_that_the_training_reports(cohort: Cohort, target: str) -> None:
    config = replace(POSE, target=target)
    own = Reference(config)
    own.adopt(cohort.training[0], base_of(cohort.training[0]), config)
    for subject in cohort.training[1:3]:
        grid = start_of(subject, config, own)
        placed = placed_by(subject, grid, config, own)
        expected = overlap(subject, grid, config, own).tolist()
        assert list(placed.overlap["after"].values()) == pytest.approx(expected, abs=1e-5)


def test_without_labels_all_slices_are_compared(reference: Reference) -> None:
    subject = subject_of(1, angle_deg=5.0, size=1.0, labelled=False)
    placed = placed_by(subject, upright(subject, reference), POSE, reference)
    assert placed.compared == (0, subject.image.grid.shape[0] - 1)


def test_the_references_body_lies_on_the_homogenized_grid(reference: Reference) -> None:
    subject = subject_of(2, angle_deg=20.0, size=1.25)
    grid = upright(subject, reference)
    outlines = placed_by(subject, grid, POSE, reference).outlines
    assert set(outlines) == {"pose"}
    body = outlines["pose"]
    a = resample(body, grid).data[0] > 0.5
    b = masks_on(subject, grid)[:, 0] > 0.5
    assert 2 * float((a & b).sum()) / float(a.sum() + b.sum()) > 0.95
