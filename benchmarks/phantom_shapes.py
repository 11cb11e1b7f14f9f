"""Compare the shapes of kidneys and tumours: label volumes of KiTS19 and of digital adults.

    python benchmarks/phantom_shapes.py LABELS [-n 40] [--jobs 1]

LABELS is a folder with label volumes (0, 1 kidney, 2 tumour), of which the 12 year old patient is
left out. The digital adults are those of `kidseg phantom --ages 17-90` with a tumour, in slices of
2 mm and pixels of about that. Prints the 5, 50 and 95 percentile of each figure, and of how many.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from kidseg.config import PhantomConfig
from kidseg.geometry import Volume
from kidseg.io import load
from kidseg.measure.diameters import longest_mm, surface_mm
from kidseg.measure.mask import Mask
from kidseg.phantom import make_patient

SEED = 2027
CONFIG = PhantomConfig(size=192, slice_mm=(2.0, 2.0), ages_years=(17.0, 90.0), tumour_share=1.0)
CHILD = "case_00031"
KIDNEY, TUMOUR = 1, 2
# Smaller parts are no kidney, or no tumour of their own.
KIDNEY_ML, TUMOUR_ML = 40.0, 0.3

DECIMALS = {
    "kidneys, ml": 0,
    "tumour, ml": 0,
    "kidneys and tumour, ml": 0,
    "healthy kidney, longest axis, mm": 0,
    "healthy kidney, ml": 0,
    "tumour's longest diameter, mm": 0,
    "tumour's volume / sphere of that diameter": 2,
    "share of the tumour's surface in contact with kidney": 2,
    "distance of the kidneys' centres from left to right, mm": 0,
}
Figures = dict[str, list[float]]


def real(path: Path) -> Figures:
    return measured(load(path, values="labels"))


def digital(index: int) -> Figures:
    return measured(make_patient(CONFIG, seed=SEED, index=index).labels)


def measured(volume: Volume) -> Figures:
    """Figures of one patient: one of each, or one per healthy kidney, or none."""
    labels = volume.data[0].numpy()
    grid = volume.grid
    whole, tumour = Mask(labels > 0, grid), Mask(labels == TUMOUR, grid)
    found: Figures = defaultdict(list)
    found["kidneys, ml"].append(Mask(labels == KIDNEY, grid).volume_ml)
    found["kidneys and tumour, ml"].append(whole.volume_ml)
    sides = components(whole, KIDNEY_ML)
    if len(sides) == 2:
        one, other = (float(part.points_mm()[:, 0].mean()) for part in sides)
        found["distance of the kidneys' centres from left to right, mm"].append(abs(one - other))
    for part in sides:
        cut = part.data[[0, -1]].any()
        if not cut and not (part.data & tumour.data).any():
            found["healthy kidney, longest axis, mm"].append(along_mm(part))
            found["healthy kidney, ml"].append(part.volume_ml)
    largest = components(tumour, TUMOUR_ML)[:1]
    if largest:
        found["tumour, ml"].append(tumour.volume_ml)
    for part in largest:
        longest = longest_mm(surface_mm(part))
        found["tumour's longest diameter, mm"].append(longest)
        sphere_ml = np.pi / 6 * longest**3 / 1000
        found["tumour's volume / sphere of that diameter"].append(part.volume_ml / sphere_ml)
        found["share of the tumour's surface in contact with kidney"].append(
            contact_share(part.data, labels == KIDNEY)
        )
    return dict(found)


def components(mask: Mask, least_ml: float) -> list[Mask]:
    """Connected parts of at least this volume, the largest first."""
    number, count = ndimage.label(mask.data)
    parts = [Mask(number == k, mask.grid) for k in range(1, count + 1)]
    kept = [part for part in parts if part.volume_ml >= least_ml]
    return sorted(kept, key=lambda part: -part.volume_ml)


def along_mm(part: Mask) -> float:
    """Extent along the longest principal axis."""
    mm = part.points_mm()
    axis = np.linalg.svd(mm - mm.mean(axis=0), full_matrices=False)[2][0]
    return float(np.ptp(mm @ axis))


def contact_share(tumour: np.ndarray, kidney: np.ndarray) -> float:
    """Fraction of the faces of the tumour's voxels behind which there is kidney."""
    touching = faces = 0
    for axis in range(3):
        a, b = (np.moveaxis(np.pad(mask, 1), axis, 0) for mask in (tumour, kidney))
        for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            faces += int((a[here] & ~a[there]).sum())
            touching += int((a[here] & b[there]).sum())
    return touching / max(1, faces)


def joined(patients: Iterable[Figures]) -> Figures:
    both: Figures = defaultdict(list)
    for figures in patients:
        for name, values in figures.items():
            both[name] += values
    return both


def summary(values: list[float], decimals: int) -> str:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"{low:.{decimals}f}, {middle:.{decimals}f}, {high:.{decimals}f} ({len(values)})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("labels", type=Path)
    parser.add_argument("-n", type=int, default=40, help="digital adults")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    paths = [p for p in sorted(options.labels.glob("*.nii.gz")) if not p.name.startswith(CHILD)]
    with ProcessPoolExecutor(
        options.jobs, get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        groups = [joined(pool.map(real, paths)), joined(pool.map(digital, range(options.n)))]
    print(f"| | {len(paths)} of KiTS19 | {options.n} digital adults |\n| --- | --- | --- |")
    for name, decimals in DECIMALS.items():
        print(f"| {name} | {' | '.join(summary(g[name], decimals) for g in groups)} |")


if __name__ == "__main__":
    main()
