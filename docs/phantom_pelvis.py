"""The picture of the pelvis in phantom_broad.md: writes docs/phantom_pelvis.png.

python docs/phantom_pelvis.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from phantom_picture import picture

from kidseg.config import PhantomConfig
from kidseg.phantom import DigitalPatient, make_patient

SEED = 5
WINDOW_HU = (-160.0, 300.0)
# Heights above the lowest slice, as fractions of the scan.
HEIGHTS = (0.02, 0.08, 0.15, 0.22, 0.32)


def draw(path: Path) -> None:
    config = PhantomConfig(
        ages_years=(0, 90), variety="broad", size=256, slice_mm=(4.0, 4.0), trunk_share=1.0
    )
    patients = [make_patient(config, seed=SEED, index=k) for k in (1, 4, 6, 9)]
    figure = Figure(figsize=(14, 2.2 * len(patients)), dpi=80, facecolor="black")
    axes = figure.subplots(len(patients), 2 + len(HEIGHTS), squeeze=False)
    for row, patient in zip(axes, patients, strict=True):
        show(row, patient)
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    figure.savefig(path)


def show(row: np.ndarray, patient: DigitalPatient) -> None:
    """A coronal and a sagittal plane through the body's middle, then axial slices upwards."""
    scan = patient.scan.data[0].numpy()
    body = np.argwhere(patient.organs.data[0].numpy() > 0)
    _, y, x = (int(n) for n in body.mean(axis=0))
    deep, high, wide = patient.scan.grid.spacing_mm.tolist()
    picture(row[0], scan[::-1, y], WINDOW_HU, aspect=deep / wide)
    picture(row[1], scan[::-1, :, x], WINDOW_HU, aspect=deep / high)
    for axis, height in zip(row[2:], HEIGHTS, strict=True):
        picture(axis, scan[int(height * len(scan))], WINDOW_HU)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
