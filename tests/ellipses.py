"""Patients made of ellipses: a body with a spine, two kidneys and a tumour, turned and scaled."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kidseg.geometry import Grid, Volume
from kidseg.io import save

SIZE, SLICES = 64, 8
PIXEL_MM, SLICE_MM = 4.0, 10.0


@dataclass(frozen=True)
class EllipsePatient:
    """True pose: `angle_rad` columns towards rows, `size` 1 is 90 mm half width."""

    image: Volume
    labels: Volume
    angle_rad: float
    size: float


def make_ellipse_patient(
    seed: int, *, max_angle_deg: float = 20.0, sizes: tuple[float, float] = (0.75, 1.25)
) -> EllipsePatient:
    random = np.random.default_rng(seed)
    angle = math.radians(random.uniform(-max_angle_deg, max_angle_deg))
    size = random.uniform(*sizes)
    shift = random.uniform(-15, 15, 2)
    grid = Grid.from_spacing((SLICES, SIZE, SIZE), (SLICE_MM, PIXEL_MM, PIXEL_MM))
    axis = (np.arange(SIZE) - (SIZE - 1) / 2) * PIXEL_MM
    x, y = np.meshgrid(axis - shift[0], axis - shift[1])
    # The patient's own axes: to its left, and to its back; half widths in units of its size.
    u = (x * math.cos(angle) + y * math.sin(angle)) / size
    v = (-x * math.sin(angle) + y * math.cos(angle)) / size

    def ellipse(cu: float, cv: float, ru: float, rv: float) -> np.ndarray:
        return ((u - cu) / ru) ** 2 + ((v - cv) / rv) ** 2 <= 1

    hu = np.full((SLICES, SIZE, SIZE), -1000.0)
    labels = np.zeros((SLICES, SIZE, SIZE), dtype=np.uint8)
    side = random.choice([-1, 1])
    for k in range(SLICES):
        height = (k - (SLICES - 1) / 2) / (SLICES / 2)
        hu[k][ellipse(0, 0, 90, 65)] = 30
        hu[k][ellipse(0, 40, 16, 14)] = 500
        if abs(height) < 0.8:
            reach = math.sqrt(1 - height**2)
            for where in (-1, 1):
                kidney = ellipse(45 * where, 20, 22 * reach, 16 * reach)
                hu[k][kidney], labels[k][kidney] = 180, 1
            if abs(height) < 0.6:
                tumour = ellipse(50 * side, 0, 26 * reach, 24 * reach)
                hu[k][tumour], labels[k][tumour] = 90, 2
    hu += random.normal(0, 12, hu.shape)
    return EllipsePatient(
        Volume(torch.from_numpy(hu.round().astype(np.int16))[None], grid),
        Volume(torch.from_numpy(labels)[None], grid),
        angle,
        size,
    )


def write_ellipse_dataset(root: Path, count: int, *, seed: int = 0) -> dict[str, EllipsePatient]:
    """An nnU-Net data set of such patients; {case id: patient}."""
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    patients = {}
    for k in range(count):
        name = f"ellipse_{k:03d}"
        patients[name] = make_ellipse_patient(1000 * seed + k)
        save(patients[name].image, root / "imagesTr" / f"{name}_0000.nii.gz")
        save(patients[name].labels, root / "labelsTr" / f"{name}.nii.gz")
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "kidney": 1, "tumour": 2},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return patients
