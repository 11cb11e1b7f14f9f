"""The picture of implants in phantom_broad.md: writes docs/phantom_implants.png.

python docs/phantom_implants.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from phantom_picture import picture
from scipy import ndimage

from kidseg.config import PhantomConfig
from kidseg.phantom import make_patient

SEED = 9
PATIENTS = (9, 3, 12, 21, 18, 8)
WINDOW_HU = (-250.0, 450.0)
# Heights of the axial slices: quantiles of where the implants are.
QUANTILES = (0.06, 0.3, 0.5, 0.7, 0.94)
DIFFERENCE_HU = 250.0
CONFIG = PhantomConfig(
    ages_years=(0, 90), variety="broad", size=288, slice_mm=(4.0, 4.0), trunk_share=1.0
)


def draw(path: Path, patients: tuple[int, ...] = PATIENTS) -> None:
    figure = Figure(figsize=(14, 2.1 * len(patients)), dpi=80, facecolor="black")
    axes = figure.subplots(len(patients), 1 + len(QUANTILES), squeeze=False)
    for row, index in zip(axes, patients, strict=True):
        show(row, index)
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    figure.savefig(path)


def show(row: np.ndarray, index: int) -> None:
    """The brightest of all coronal planes, then axial slices upwards through the implants."""
    plain, patient = (
        make_patient(replace(CONFIG, implant_share=share), seed=SEED, index=index)
        for share in (0.0, 1.0)
    )
    scan = patient.scan
    changed = (scan.data - plain.scan.data)[0].numpy() > DIFFERENCE_HU
    heights = np.nonzero(changed.any(axis=(1, 2)))[0]
    (_, rows, columns) = ndimage.find_objects((patient.organs.data[0] > 0).int().numpy())[0]
    values = scan.data[0].numpy()[:, rows, columns]
    deep, _, wide = scan.grid.spacing_mm.tolist()
    picture(row[0], values[::-1].max(axis=1), (-200.0, 1600.0), aspect=deep / wide)
    for axis, height in zip(row[1:], np.quantile(heights, QUANTILES), strict=True):
        picture(axis, values[round(height)], WINDOW_HU)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
