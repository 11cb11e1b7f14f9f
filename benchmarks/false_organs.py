"""What a model takes for kidney or tumour that is neither, by organ, on digital patients.

    kidseg phantom held/ --patients 12 --ages 0-90 --size 192 --seed 8123 \
        --set "slice_mm=[4.0,5.0]" --set trunk_share=1.0
    kidseg segment held/imagesTr -o labels/
    python benchmarks/false_organs.py held/ labels/

Prints a line per patient (Dice of kidney+tumour and of tumour, volume that is neither, and the
three organs that most of it lies in), the means with their spread, and the mean volume by organ.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kidseg.io import ReadOptions, read

AS_LABELS = ReadOptions(values="labels")
TUMOUR = 2


@dataclass(frozen=True)
class Found:
    """One patient: Dice (None: no reference), and ml outside kidney and tumour by organ."""

    name: str
    both: float
    tumour: float | None
    false_ml: Counter[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="digital patients, with their truth")
    parser.add_argument("labels", type=Path, help="result of kidseg segment")
    options = parser.parse_args()
    names = json.loads((options.data / "truth" / "organs.json").read_text())
    patients = [
        compared(
            options.data,
            options.labels,
            path,
            {int(number): name for number, name in names.items()},
        )
        for path in sorted((options.data / "labelsTr").glob("*.nii.gz"))
        if (options.labels / path.name.replace(".nii", "_seg.nii")).exists()
    ]
    if not patients:
        parser.error(f"{options.labels} has no labels named like phantom_0000_seg.nii.gz")
    for found in patients:
        most = ", ".join(f"{name} {ml:.1f}" for name, ml in found.false_ml.most_common(3))
        tumour = "-" if found.tumour is None else f"{found.tumour:.3f}"
        print(f"{found.name} {found.both:.3f} {tumour} {found.false_ml.total():.1f} ml: {most}")
    total: Counter[str] = Counter()
    for found in patients:
        total.update(found.false_ml)
    print(f"kidney+tumour {spread([f.both for f in patients])}")
    print(f"tumour {spread([f.tumour for f in patients if f.tumour is not None])}")
    print(f"neither, ml {spread([f.false_ml.total() for f in patients])}")
    for name, ml in total.most_common(10):
        print(f"  {name} {ml / len(patients):.1f}")


def compared(data: Path, labels: Path, reference: Path, names: dict[int, str]) -> Found:
    """Compare the result of one patient with its truth."""
    name = reference.name.removesuffix(".nii.gz")
    truth, result, organs = (
        read(path, AS_LABELS).volume
        for path in (
            reference,
            labels / f"{name}_seg.nii.gz",
            data / "truth" / f"{name}_organs.nii.gz",
        )
    )
    real, found = truth.data[0].numpy(), result.data[0].numpy()
    number, count = np.unique(organs.data[0].numpy()[(found > 0) & (real == 0)], return_counts=True)
    ml = float(truth.grid.voxel_ml)
    return Found(
        name,
        dice(found > 0, real > 0),
        dice(found == TUMOUR, real == TUMOUR) if (real == TUMOUR).any() else None,
        Counter(
            {names.get(int(n), "air"): int(c) * ml for n, c in zip(number, count, strict=True)}
        ),
    )


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} (SD {statistics.stdev(values):.3f}, n = {len(values)})"


if __name__ == "__main__":
    main()
