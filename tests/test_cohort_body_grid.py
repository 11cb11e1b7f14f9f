"""Bodies of one size and pose: how large voxels are, where they lie, and that all is there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cohorts import PLAN
from ellipses import EllipsePatient, make_ellipse_patient
from kidseg.cohort.body_grid import body_grid, finest_mm
from kidseg.cohort.subject import Material, Subject, prepare
from kidseg.config import BodyConfig, Plain3dConfig, load
from kidseg.errors import UsageError
from kidseg.geometry import Grid, Volume, in_plane_pose, resample

VOXEL_MM = (10.0, 4.0, 4.0)
RADIUS_MM = math.sqrt(90 * 65)
"""Of an ellipse patient of size 1."""


def subject_of(patient: EllipsePatient) -> Subject:
    return prepare(patient.image, Material(), PLAN.channels, name="e", labels=patient.labels)


@settings(max_examples=12)
@given(
    seed=st.integers(0, 10_000),
    least=st.none() | st.floats(40.0, 90.0),
    more=st.none() | st.floats(0.0, 40.0),
)
def test_voxels_are_scaled_as_far_as_the_body_is_out_of_the_range(
    seed: int, least: float | None, more: float | None
) -> None:
    """True size from 0.75 to 1.25 of 76 mm; voxels along all three axes by one factor."""
    patient = make_ellipse_patient(seed)
    subject = subject_of(patient)
    most = None if more is None else (least or 60.0) + more
    grid = body_grid(subject, BodyConfig(min_radius_mm=least, max_radius_mm=most), VOXEL_MM)
    radius = RADIUS_MM * patient.size
    wanted = min(max(radius, least or 0), most or math.inf)
    voxel = torch.tensor(VOXEL_MM) * radius / wanted
    # Whole voxels fill the extent, so that they differ by half of one over all of it.
    assert torch.allclose(grid.spacing_mm.float(), voxel, rtol=0.03 + 0.5 / min(grid.shape))
    body = torch.nonzero(patient.image.data[0] > -500).double()
    at = grid.index(patient.image.grid.mm(body))
    assert bool((at > -1.0).all() and (at < torch.tensor(grid.shape)).all()), "cut off"


@pytest.mark.parametrize("seed", range(4))
def test_an_upright_body_lies_upright_and_in_the_middle(seed: int) -> None:
    patient = make_ellipse_patient(seed, max_angle_deg=40.0)
    subject = subject_of(patient)
    turned = body_grid(subject, BodyConfig(upright=True), VOXEL_MM)
    found = in_plane_pose(turned, subject.image.grid)
    assert float(found.angle_rad) == pytest.approx(patient.angle_rad, abs=math.radians(2.5))
    kept = body_grid(subject, BodyConfig(), VOXEL_MM)
    assert float(in_plane_pose(kept, subject.image.grid).angle_rad) == pytest.approx(0, abs=1e-6)


def test_patients_of_other_size_and_pose_look_the_same() -> None:
    """Their labels lie upon each other, which they do not in the scans."""
    config = BodyConfig(min_radius_mm=80.0, max_radius_mm=80.0, upright=True)
    field = Grid.from_spacing((8, 60, 60), VOXEL_MM)
    seen = []
    for seed in (2, 3):
        patient = make_ellipse_patient(seed, sizes=((0.75, 0.8), (1.2, 1.25))[seed - 2])
        grid = body_grid(subject_of(patient), config, VOXEL_MM)
        kidneys = Volume((patient.labels.data == 1).float(), patient.labels.grid)
        centred = grid.crop(
            [(n - m) / 2 for n, m in zip(grid.shape, field.shape, strict=True)], field.shape
        )
        planes = slice(2, 6)  # the ends are at other heights: a trunk's length is not in the scan
        seen.append([resample(kidneys, each).data[0, planes] for each in (centred, field)])
    scaled, scanned = (2 * (a * b).sum() / (a + b).sum() for a, b in zip(*seen, strict=True))
    assert scaled > scanned + 0.15 and scaled > 0.6, (scaled, scanned)


def test_a_trunk_deeper_than_wide_is_not_laid_on_its_side() -> None:
    patient = make_ellipse_patient(0, max_angle_deg=0.0)
    image = Volume(patient.image.data.transpose(2, 3).contiguous(), patient.image.grid)
    subject = prepare(image, Material(), PLAN.channels, name="deep")
    assert subject.body is not None
    assert abs(float(subject.body.whole.angle_rad)) == pytest.approx(math.pi / 2, abs=0.05)
    grid = body_grid(subject, BodyConfig(upright=True), VOXEL_MM)
    assert abs(float(in_plane_pose(grid, image.grid).angle_rad)) < 0.05


def test_without_a_body_the_whole_scan_is_seen() -> None:
    patient = make_ellipse_patient(1)
    empty = replace(patient, image=Volume(patient.image.data * 0 - 1000, patient.image.grid))
    config = BodyConfig(min_radius_mm=150.0, upright=True)
    grid = body_grid(subject_of(empty), config, (10.0, 8.0, 8.0))
    assert grid.same_as(patient.image.grid.with_spacing((10.0, 8.0, 8.0)))


def test_small_bodies_keep_the_pixels_that_they_are_enlarged_from() -> None:
    """A newborn of 50 mm enlarged to 150 mm is sampled at a third of the voxel."""
    assert finest_mm(BodyConfig(), 4.5) == finest_mm(BodyConfig(max_radius_mm=80.0), 4.5) == 4.5
    assert finest_mm(BodyConfig(min_radius_mm=150.0), 4.5) == pytest.approx(1.5)
    assert finest_mm(BodyConfig(min_radius_mm=150.0, max_radius_mm=300.0), 4.5) == 1.5
    assert finest_mm(BodyConfig(min_radius_mm=20.0), 4.5) == 4.5


def test_a_range_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match="min_radius_mm must not be larger"):
        load(Plain3dConfig, overrides=["body.min_radius_mm=90", "body.max_radius_mm=80"])
    with pytest.raises(UsageError, match=r"body\.min_radius_mm"):
        load(Plain3dConfig, overrides=["body.min_radius_mm=0"])
