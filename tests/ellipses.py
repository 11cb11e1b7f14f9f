"""Patients made of ellipses: a body with a spine, two kidneys and a tumour, turned and scaled."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from kidseg.geometry import Grid, Volume
from kidseg.io import save

SIZE, SLICES = 64, 8
PIXEL_MM, SLICE_MM = 4.0, 10.0
LABELS = {"background": 0, "kidney": 1, "tumour": 2}


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


def in_fine_pixels(patient: EllipsePatient, times: int) -> EllipsePatient:
    """Each pixel as `times` x `times` of other values; their labels, too, are mixed at edges."""
    random = np.random.default_rng(times)
    fine = patient.image.data[0].numpy().repeat(times, 1).repeat(times, 2)
    fine = fine + random.normal(0, 20, fine.shape).round().astype(np.int16)
    labels = patient.labels.data[0].numpy().repeat(times, 1).repeat(times, 2)
    labels = np.roll(labels, 1, axis=(1, 2))
    pixel_mm = PIXEL_MM / times
    grid = Grid.from_spacing(fine.shape, (SLICE_MM, pixel_mm, pixel_mm))
    return replace(
        patient,
        image=Volume(torch.from_numpy(fine)[None], grid),
        labels=Volume(torch.from_numpy(labels.copy())[None], grid),
    )


def in_two_channels(patient: EllipsePatient, gain: float) -> EllipsePatient:
    """As if of an MR: 0 around the body, and two channels in units of the scanner's own."""
    hu = patient.image.data.float()
    inside = hu > -500
    t1, t2 = (hu + 400).clamp(50, 1000), (700 - hu).clamp(50, 1000)
    data = torch.cat([t1, t2]) * inside * gain
    return replace(patient, image=Volume(data.round().to(torch.int16), patient.image.grid))


def write_ellipse_dataset(
    root: Path,
    count: int,
    *,
    seed: int = 0,
    fine: int = 1,
    channels: Sequence[str] = ("CT",),
    tells: Mapping[str, Any] = MappingProxyType({"labels": LABELS}),
) -> dict[str, EllipsePatient]:
    """An nnU-Net data set of such patients; {case id: patient}.

    Args:
        root: folder to make.
        count: patients.
        seed: other patients.
        fine: pixels become so many along each side, with noise of their own.
        channels: "CT", or two of an MR, each patient with a gain of its own.
        tells: what dataset.json says beside; its labels.
    """
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    patients = {}
    for k in range(count):
        name = f"ellipse_{k:03d}"
        patient = make_ellipse_patient(1000 * seed + k)
        patient = in_fine_pixels(patient, fine) if fine > 1 else patient
        patient = in_two_channels(patient, 1.0 + 0.7 * k) if len(channels) > 1 else patient
        patients[name] = patient
        for number, data in enumerate(patient.image.data):
            channel = Volume(data[None], patient.image.grid)
            save(channel, root / "imagesTr" / f"{name}_{number:04d}.nii.gz")
        save(patient.labels, root / "labelsTr" / f"{name}.nii.gz")
    content = {
        "channel_names": {str(number): channel for number, channel in enumerate(channels)},
        "numTraining": count,
        "file_ending": ".nii.gz",
        **tells,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return patients
