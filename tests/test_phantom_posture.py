"""Pose: a rigid map with the right sense, and draws within their range."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from kidseg.phantom.posture import ARMS_DOWN_SHARE, SCOLIOSIS_SHARE, Pose, draw_pose


def test_straight_patient_is_the_identity() -> None:
    assert torch.equal(Pose().scanner_from_anatomy(), torch.eye(4, dtype=torch.float64))


def test_quarter_turn_lifts_the_right_side() -> None:
    right = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    turned = Pose(angle_deg=90.0).scanner_from_anatomy() @ right
    assert torch.allclose(
        turned[:3], torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), atol=1e-12
    )


def test_tilt_leans_the_head_to_the_right_and_offset_shifts() -> None:
    head = torch.tensor([0.0, 0.0, 10.0, 1.0], dtype=torch.float64)
    pose = Pose(tilt_deg=30.0, offset_mm=(3.0, -4.0))
    x, y, z = (pose.scanner_from_anatomy() @ head)[:3].tolist()
    assert x == pytest.approx(3.0 + 5.0) and y == pytest.approx(-4.0)
    assert z == pytest.approx(10.0 * np.cos(np.deg2rad(30.0)))


def test_map_is_rigid() -> None:
    pose = draw_pose(np.random.default_rng(1), max_angle_deg=90.0)
    turn = pose.scanner_from_anatomy()[:3, :3]
    assert torch.allclose(turn @ turn.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert float(torch.linalg.det(turn)) == pytest.approx(1.0)


def test_draws_stay_in_range_and_reach_it() -> None:
    rng = np.random.default_rng(2)
    poses = [draw_pose(rng, max_angle_deg=25.0) for _ in range(2000)]
    angles = np.array([p.angle_deg for p in poses])
    assert np.abs(angles).max() <= 25.0 and angles.max() > 22.0 and angles.min() < -22.0
    assert abs(angles.mean()) < 1.5
    assert np.mean([p.arms for p in poses]) == pytest.approx(ARMS_DOWN_SHARE, abs=0.03)
    curved = np.mean([p.scoliosis_mm != 0 for p in poses])
    assert curved == pytest.approx(SCOLIOSIS_SHARE, abs=0.03)
    assert draw_pose(rng, max_angle_deg=0.0).angle_deg == 0.0


def test_same_seed_same_pose_and_plain_data() -> None:
    one, two = (draw_pose(np.random.default_rng(5)) for _ in range(2))
    assert one == two
    assert json.loads(json.dumps(one.as_dict()))["angle_deg"] == one.angle_deg
