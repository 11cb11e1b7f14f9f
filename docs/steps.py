"""The picture of the steps in README.md: `python docs/steps.py` writes docs/steps.png.

A digital patient; the crop and the labels are its known truth, in place of the networks'.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kidseg.body import body_mask, moments, normalized
from kidseg.config import PhantomConfig
from kidseg.geometry import Grid, Volume, resample
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.phantom import make_patient
from kidseg.pipeline import restore

SEED, INDEX = 6, 1
MARGIN = 1.05


def draw(path: Path) -> None:
    patient = make_patient(PhantomConfig(max_slices=24), seed=SEED, index=INDEX)
    scan, labels = patient.scan, patient.labels
    own = moments(body_mask(scan), per="volume")
    upright = normalized(scan.grid, own, radii_mm=(80.0, 61.0), field_mm=220.0, size=256)
    middle = int((labels.data[0] > 0).sum((1, 2)).argmax())
    posed_labels = resample(labels, upright, mode="nearest")
    crop = square_around(posed_labels, upright)
    hard = torch.stack([(labels.data[0] == n).float() for n in (0, *KIDNEY_TUMOUR.ids)])
    found = resample(Volume(hard, labels.grid), crop, fill=(1.0, 0.0, 0.0))
    back = restore(found, scan.grid)

    panels = [
        ("1  the scan", scan, None),
        ("2  pose and size normalised", resample(scan, upright, fill=-1024), crop),
        ("3  region cropped", resample(scan, crop, fill=-1024), None),
        ("4  labels found there", resample(scan, crop, fill=-1024), found.data.argmax(0)),
        ("5  back on the scan's own voxels", scan, back.data[0]),
    ]
    figure = Figure(figsize=(15, 3.3), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, image, found_labels) in zip(figure.subplots(1, 5), panels, strict=True):
        axes.imshow(image.data[0, middle], cmap="gray", vmin=-160, vmax=240)
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
        if isinstance(found_labels, Grid):
            last = (0.0, found_labels.shape[1] - 0.5, found_labels.shape[2] - 0.5)
            _, y0, x0 = upright.index(found_labels.mm((0.0, -0.5, -0.5))).tolist()
            _, y1, x1 = upright.index(found_labels.mm(last)).tolist()
            axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color="#56B4E9", linewidth=2)
        elif found_labels is not None:
            outline(axes, found_labels[middle].numpy())
    figure.savefig(path, dpi=80)


def square_around(labels: Volume, grid: Grid) -> Grid:
    """The square of pixels around all labels, in every slice."""
    hit = (labels.data[0] > 0).any(0).nonzero()
    low, high = hit.amin(0), hit.amax(0)
    side = math.ceil(MARGIN * float((high - low).max()))
    start = ((low + high) / 2 - side / 2).round().int().tolist()
    return grid.crop((0, *start), (grid.shape[0], side, side))


def outline(axes: Axes, labels: np.ndarray) -> None:
    for label in KIDNEY_TUMOUR.labels:
        if (labels == label.id).any():
            colour = tuple(channel / 255 for channel in label.rgb)
            axes.contour(labels == label.id, [0.5], colors=[colour], linewidths=1.5)


if __name__ == "__main__":
    draw(Path(__file__).parent / "steps.png")
