"""The pictures in phantom_broad.md: writes docs/phantom_NAME.png, a row for each digital patient.

python docs/phantom_pictures.py [displaced|implants|lean|neighbours|pelvis]...
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import ndimage

from kidseg.config import PhantomConfig
from kidseg.phantom import DigitalPatient, make_patient

COLOURS = {1: "lime", 2: "red"}
HERE = Path(__file__).parent
Make = Callable[[PhantomConfig], DigitalPatient]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Slices of digital patients.

    Attributes:
        seed, patients: of `make_patient`.
        columns: images in a row.
        inches: width, and height of a row.
        dpi: of the picture.
        show: draws the row of a patient, given by its config.
    """

    seed: int
    patients: tuple[int, ...]
    columns: int
    inches: tuple[float, float]
    dpi: int
    show: Callable[[Sequence[Axes], Make], None]

    def draw(self, path: Path) -> None:
        width, height = self.inches
        size = (width, height * len(self.patients))
        figure = Figure(figsize=size, dpi=self.dpi, facecolor="black")
        axes = figure.subplots(len(self.patients), self.columns, squeeze=False)
        for row, index in zip(axes, self.patients, strict=True):
            self.show(row, partial(make_patient, seed=self.seed, index=index))
        figure.subplots_adjust(0, 0, 1, 1, 0.01, 0.01)
        figure.savefig(path)


def image(
    axis: Axes,
    values: np.ndarray,
    window: tuple[float, float],
    *,
    aspect: float = 1.0,
    labels: np.ndarray | None = None,
) -> None:
    """Show (rows, columns) HU in a window, with the outlines of kidneys and tumours, if given."""
    axis.imshow(values, cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect)
    for value, colour in COLOURS.items():
        if labels is not None and (labels == value).any():
            axis.contour(labels == value, [0.5], colors=colour, linewidths=0.7)
    axis.axis("off")


def displaced(row: Sequence[Axes], make: Make) -> None:
    """Moved kidneys: slices upwards through the tumour and its kidney."""
    config = PhantomConfig(ages_years=(40, 90), size=256, slice_mm=(4.0, 4.0), displaced_share=1.0)
    patient = make(config)
    scan, labels = (volume.data[0].numpy() for volume in (patient.scan, patient.labels))
    shown = np.flatnonzero((labels > 0).any(axis=(1, 2)))
    for axis, height in zip(row, (0.15, 0.3, 0.45, 0.6, 0.75), strict=True):
        number = shown[int(height * (len(shown) - 1))]
        image(axis, scan[number], (-160.0, 300.0), labels=labels[number])


def neighbours(row: Sequence[Axes], make: Make) -> None:
    """What lies beside kidneys: slices from the lowest with a kidney or tumour to the highest."""
    config = PhantomConfig(ages_years=(0, 90), size=256, slice_mm=(3.0, 5.0), neighbour_share=1.0)
    upwards(row, make(config))


def lean(row: Sequence[Axes], make: Make) -> None:
    """Liver and spleen at the kidneys, in the early arterial phase; slices as in `neighbours`."""
    config = PhantomConfig(
        ages_years=(0, 90),
        size=256,
        slice_mm=(3.0, 5.0),
        phase="early-arterial",
        tumour_share=0.0,
        apposed_share=1.0,
    )
    upwards(row, make(config))


def upwards(row: Sequence[Axes], patient: DigitalPatient) -> None:
    """Slices from the lowest with a kidney or tumour to the highest."""
    scan, labels = (volume.data[0].numpy() for volume in (patient.scan, patient.labels))
    shown = np.flatnonzero((labels > 0).any(axis=(1, 2)))
    for axis, height in zip(row, (0.0, 0.2, 0.4, 0.6, 0.8, 0.97), strict=True):
        window = (shown[round(height * (len(shown) - 1))], *around_body(patient))
        image(axis, scan[window], (-150.0, 250.0), labels=labels[window])


def implants(row: Sequence[Axes], make: Make) -> None:
    """The brightest of all coronal planes, then axial slices upwards through the implants."""
    plain, patient = (
        make(
            PhantomConfig(
                ages_years=(0, 90),
                variety="broad",
                size=288,
                slice_mm=(4.0, 4.0),
                trunk_share=1.0,
                implant_share=share,
            )
        )
        for share in (0.0, 1.0)
    )
    scan = patient.scan
    changed = (scan.data - plain.scan.data)[0].numpy() > 250.0
    heights = np.nonzero(changed.any(axis=(1, 2)))[0]
    values = scan.data[0].numpy()[:, *around_body(patient)]
    deep, _, wide = scan.grid.spacing_mm.tolist()
    image(row[0], values[::-1].max(axis=1), (-200.0, 1600.0), aspect=deep / wide)
    for axis, height in zip(
        row[1:], np.quantile(heights, (0.06, 0.3, 0.5, 0.7, 0.94)), strict=True
    ):
        image(axis, values[round(height)], (-250.0, 450.0))


def pelvis(row: Sequence[Axes], make: Make) -> None:
    """A coronal and a sagittal plane through the body's middle, then axial slices upwards."""
    patient = make(
        PhantomConfig(
            ages_years=(0, 90), variety="broad", size=256, slice_mm=(4.0, 4.0), trunk_share=1.0
        )
    )
    scan, window = patient.scan.data[0].numpy(), (-160.0, 300.0)
    body = np.argwhere(patient.organs.data[0].numpy() > 0)
    _, y, x = (int(n) for n in body.mean(axis=0))
    deep, high, wide = patient.scan.grid.spacing_mm.tolist()
    image(row[0], scan[::-1, y], window, aspect=deep / wide)
    image(row[1], scan[::-1, :, x], window, aspect=deep / high)
    for axis, height in zip(row[2:], (0.02, 0.08, 0.15, 0.22, 0.32), strict=True):
        image(axis, scan[int(height * len(scan))], window)


def around_body(patient: DigitalPatient) -> tuple[slice, slice]:
    """Rows and columns of the body."""
    (_, rows, columns) = ndimage.find_objects((patient.organs.data[0] > 0).int().numpy())[0]
    return rows, columns


PICTURES = {
    "displaced": Picture(
        seed=77, patients=(6, 8, 10, 13), columns=5, inches=(12, 2.0), dpi=90, show=displaced
    ),
    "implants": Picture(
        seed=9, patients=(9, 3, 12, 21, 18, 8), columns=6, inches=(14, 2.1), dpi=80, show=implants
    ),
    "lean": Picture(seed=31, patients=(2, 3, 8), columns=6, inches=(14, 1.8), dpi=90, show=lean),
    "neighbours": Picture(
        seed=31, patients=(2, 3, 8), columns=6, inches=(14, 1.8), dpi=90, show=neighbours
    ),
    "pelvis": Picture(
        seed=5, patients=(1, 4, 6, 9), columns=7, inches=(14, 2.2), dpi=80, show=pelvis
    ),
}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name].draw(HERE / f"phantom_{name}.png")
