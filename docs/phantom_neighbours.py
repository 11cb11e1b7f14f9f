"""The picture of what lies beside kidneys in phantom_broad.md: writes docs/phantom_neighbours.png.

python docs/phantom_neighbours.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from phantom_picture import picture
from scipy import ndimage

from kidseg.config import PhantomConfig
from kidseg.phantom import make_patient

SEED = 31
PATIENTS = (2, 3, 8)
WINDOW_HU = (-150.0, 250.0)
# Heights from the lowest slice with a kidney or tumour to the highest.
HEIGHTS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.97)


def draw(path: Path) -> None:
    config = PhantomConfig(ages_years=(0, 90), size=256, slice_mm=(3.0, 5.0), neighbour_share=1.0)
    figure = Figure(figsize=(14, 1.8 * len(PATIENTS)), dpi=90, facecolor="black")
    for row, index in zip(figure.subplots(len(PATIENTS), len(HEIGHTS)), PATIENTS, strict=True):
        patient = make_patient(config, seed=SEED, index=index)
        scan, labels = (volume.data[0].numpy() for volume in (patient.scan, patient.labels))
        (_, *plane) = ndimage.find_objects((patient.organs.data[0] > 0).int().numpy())[0]
        shown = np.flatnonzero((labels > 0).any(axis=(1, 2)))
        for axis, height in zip(row, HEIGHTS, strict=True):
            window = (shown[round(height * (len(shown) - 1))], *plane)
            picture(axis, scan[window], WINDOW_HU, labels=labels[window])
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    figure.savefig(path)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
