"""Pose of a patient in the scanner: rotation, tilt, offset, scoliosis and position of the arms."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["ARMS_DOWN_BROAD_SHARE", "ARMS_DOWN_SHARE", "SCOLIOSIS_SHARE", "Pose", "draw_pose"]

ARMS_DOWN_SHARE = 0.15
"""Share of patients with arms next to the body and in view."""
ARMS_DOWN_BROAD_SHARE = 0.08
"""The same in the broad cohort: none of the 13 patients of the KiTS19 slices."""
SCOLIOSIS_SHARE = 0.12
"""Share of patients with a visible lateral curve of the spine, from posture or disease. Chosen.

Of people of 40 years and more, 8.9 % have a curve of 11 degrees or more, 3 % from 40 to 50 and half
of those of 90. Source: Kebaish et al., Spine 36 (2011) 731-736.
"""

# Standard deviations of uncorrected poses in practice, within the largest angle.
_ANGLE_SD = 0.4
_TILT_SD_DEG = 3.0
_OFFSET_SD_MM = (12.0, 12.0)


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Pose of the anatomy in the scanner.

    Attributes:
        angle_deg: rotation about the long axis; positive raises the patient's right side
            (towards lying on the left side).
        tilt_deg: rotation of the long axis in the coronal plane; positive tilts the head to the
            right.
        offset_mm: (x, y) of the anatomy's origin in the scanner.
        scoliosis_mm: largest lateral shift of the spine; positive to the right.
        scoliosis_length_mm: half the wavelength of the curve.
        arms: whether the arms are next to the body.
    """

    angle_deg: float = 0.0
    tilt_deg: float = 0.0
    offset_mm: tuple[float, float] = (0.0, 0.0)
    scoliosis_mm: float = 0.0
    scoliosis_length_mm: float = 200.0
    arms: bool = False

    def scanner_from_anatomy(self) -> Tensor:
        """(4, 4) float64: scanner mm from anatomy mm, RAS+; a rotation and a shift."""
        turn, lean = np.deg2rad(self.angle_deg), np.deg2rad(self.tilt_deg)
        about_z = np.eye(4)
        about_z[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        about_y = np.eye(4)
        about_y[0, [0, 2]] = np.cos(lean), np.sin(lean)
        about_y[2, [0, 2]] = -np.sin(lean), np.cos(lean)
        shift = np.eye(4)
        shift[:2, 3] = self.offset_mm
        return torch.from_numpy(shift @ about_y @ about_z)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


def draw_pose(
    rng: np.random.Generator,
    *,
    max_angle_deg: float = 25.0,
    segment_mm: float = 20.0,
    arms_share: float = ARMS_DOWN_SHARE,
) -> Pose:
    """Draw a realistic pose: mostly almost straight, sometimes rotated up to the largest angle.

    Args:
        rng: random generator.
        max_angle_deg: largest rotation about the long axis in either direction.
        segment_mm: height of a lumbar segment, for the curve of a scoliosis.
        arms_share: share of patients with arms next to the body.
    """
    wide = rng.random() < 0.35
    angle = rng.uniform(-1.0, 1.0) if wide else np.clip(rng.normal(0.0, _ANGLE_SD), -1.0, 1.0)
    tilt = np.clip(rng.normal(0.0, _TILT_SD_DEG), -9.0, 9.0)
    offset = rng.normal(0.0, _OFFSET_SD_MM)
    curved = rng.random() < SCOLIOSIS_SHARE
    bend = rng.choice([-1.0, 1.0]) * rng.uniform(0.2, 0.7) * segment_mm
    length = rng.uniform(7.0, 11.0) * segment_mm
    arms = rng.random() < arms_share
    return Pose(
        angle_deg=float(angle * max_angle_deg),
        tilt_deg=float(tilt),
        offset_mm=(float(offset[0]), float(offset[1])),
        scoliosis_mm=float(bend) if curved else 0.0,
        scoliosis_length_mm=float(length),
        arms=bool(arms),
    )
