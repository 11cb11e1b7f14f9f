"""HU of kidneys and tumours of the broad cohort, as rendered, before kernel and noise.

    python benchmarks/phantom_hu.py [-n 40] [--seed 880055] [--ages 0-90]

Digital patients with a tumour, in slices of 5 mm. A kidney is its median, which cysts and a wide
renal pelvis take part in, a tumour its mean, its structure the standard deviation; voxels at
borders in a slice are left out. Prints the 5, 50 and 95 percentile over patients with contrast
agent.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import ndimage

from kidseg.config import PhantomConfig
from kidseg.phantom.patient import draw_patient

KIDNEY, TUMOUR, ADULT_YEARS = 1, 2, 16.0
IN_PLANE = np.ones((1, 3, 3))
FEWEST_VOXELS = 30
NAMES = ("kidney", "tumour", "kidney minus tumour", "structure of the tumour, SD")


def figures(config: PhantomConfig, seed: int, index: int) -> tuple[float, tuple[float, ...]] | None:
    """(age, a number for each of `NAMES`, NaN where too little is seen); None without contrast."""
    patient = draw_patient(config, seed=seed, index=index)
    if patient.phase == "unenhanced":
        return None
    rendering = patient.rendered(patient.scanner.grid())
    values = []
    for number in (KIDNEY, TUMOUR):
        inside = ndimage.binary_erosion(rendering.labels == number, IN_PLANE)
        found = np.asarray(rendering.hu)[inside]
        values.append(found if len(found) > FEWEST_VOXELS else np.array([np.nan]))
    kidney, tumour = float(np.median(values[0])), float(values[1].mean())
    return patient.age_years, (kidney, tumour, kidney - tumour, float(values[1].std()))


def summary(values: np.ndarray) -> str:
    seen = values[np.isfinite(values)]
    if not len(seen):
        return "-"
    low, middle, high = np.percentile(seen, [5, 50, 95])
    return f"{low:.0f}, {middle:.0f}, {high:.0f} ({len(seen)})"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=40, help="digital patients")
    parser.add_argument("--seed", type=int, default=880055)
    parser.add_argument("--ages", default="0-90")
    options = parser.parse_args()
    low, high = (float(age) for age in options.ages.split("-"))
    config = PhantomConfig(
        size=112,
        slice_mm=(5.0, 5.0),
        max_slices=36,
        ages_years=(low, high),
        variety="broad",
        tumour_share=1.0,
    )
    found = [figures(config, options.seed, index) for index in range(options.n)]
    seen = [one for one in found if one is not None]
    grown = np.array([age > ADULT_YEARS for age, _ in seen])
    numbers = np.array([row for _, row in seen])
    print(f"| HU | all {len(seen)} | {grown.sum()} adults | {(~grown).sum()} children |")
    print("| --- | --- | --- | --- |")
    for k, name in enumerate(NAMES):
        groups = (numbers[:, k], numbers[grown, k], numbers[~grown, k])
        print(f"| {name} | {' | '.join(map(summary, groups))} |")


if __name__ == "__main__":
    main()
