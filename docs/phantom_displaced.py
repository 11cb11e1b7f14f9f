"""The picture of moved kidneys in phantom_broad.md: writes docs/phantom_displaced.png.

python docs/phantom_displaced.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from phantom_picture import picture

from kidseg.config import PhantomConfig
from kidseg.phantom import make_patient

SEED = 77
PATIENTS = (6, 8, 10, 13)
WINDOW_HU = (-160.0, 300.0)
# Heights within the tumour and its kidney, from the lowest slice upwards.
HEIGHTS = (0.15, 0.3, 0.45, 0.6, 0.75)


def draw(path: Path) -> None:
    config = PhantomConfig(ages_years=(40, 90), size=256, slice_mm=(4.0, 4.0), displaced_share=1.0)
    figure = Figure(figsize=(12, 2.0 * len(PATIENTS)), dpi=90, facecolor="black")
    for row, index in zip(figure.subplots(len(PATIENTS), len(HEIGHTS)), PATIENTS, strict=True):
        patient = make_patient(config, seed=SEED, index=index)
        scan, labels = (volume.data[0].numpy() for volume in (patient.scan, patient.labels))
        shown = np.flatnonzero((labels > 0).any(axis=(1, 2)))
        for axis, height in zip(row, HEIGHTS, strict=True):
            number = shown[int(height * (len(shown) - 1))]
            picture(axis, scan[number], WINDOW_HU, labels=labels[number])
    figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
    figure.savefig(path)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
