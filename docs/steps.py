"""The picture of the steps in README.md: `python docs/steps.py` writes docs/steps.png.

A digital patient; the crop and the labels are its known truth, in place of the networks'.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kidseg.body import body_mask, moments, normalized
from kidseg.config import PhantomConfig
from kidseg.geometry import Grid, Volume, resample
from kidseg.intensity import AIR_HU
from kidseg.labels import KIDNEY_TUMOUR, Target
from kidseg.phantom import make_patient
from kidseg.pipeline import Region, restore
from kidseg.report.annotation import edge_of_right
from kidseg.segment.figure import Panel, draw_panels, frame_of

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
    target = Target.of_labels(KIDNEY_TUMOUR)
    back = restore([Region(grid=crop, found=found)], scan.grid, target)

    panels = [
        panel("the scan", scan, middle),
        panel(
            "pose and size normalised",
            resample(scan, upright, fill=AIR_HU),
            middle,
            frames=(frame_of(crop.slices(middle, middle + 1), upright.slices(middle, middle + 1)),),
        ),
        panel("region cropped", resample(scan, crop, fill=AIR_HU), middle),
        panel(
            "labels found there", resample(scan, crop, fill=AIR_HU), middle, found.data.argmax(0)
        ),
        panel("back on the scan's own voxels", scan, middle, back.data[0]),
    ]
    draw_panels(path, panels, KIDNEY_TUMOUR, overwrite=True)


def panel(
    title: str,
    image: Volume,
    k: int,
    labels: Tensor | None = None,
    frames: tuple[np.ndarray, ...] = (),
) -> Panel:
    """Pixels are square in the scan and in the normalised frame."""
    place = image.grid.slices(k, k + 1)
    _, height, width = place.spacing_mm.reshape(-1, 3)[0].tolist()
    return Panel(
        title=title,
        values=image.data[0, k].numpy(),
        pixel=(1, 1),
        mm=(height, width),
        right=edge_of_right(place),
        labels=None if labels is None else labels[k].numpy(),
        frames=frames,
    )


def square_around(labels: Volume, grid: Grid) -> Grid:
    """The square of pixels around all labels, in every slice."""
    hit = (labels.data[0] > 0).any(0).nonzero()
    low, high = hit.amin(0), hit.amax(0)
    side = math.ceil(MARGIN * float((high - low).max()))
    start = ((low + high) / 2 - side / 2).round().int().tolist()
    return grid.crop((0, *start), (grid.shape[0], side, side))


if __name__ == "__main__":
    draw(Path(__file__).parent / "steps.png")
