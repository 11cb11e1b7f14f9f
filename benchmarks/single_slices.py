"""Cut labelled volumes into single slices, as scans of their own that benchmarks/real_ct.py scores.

    python benchmarks/single_slices.py DATA OUT [--apart-mm 30]
    python benchmarks/real_ct.py OUT -m MODEL -o RESULT

A model between neighbouring slices must do without them here. Only slices that show kidney or
tumour are written, the first of each volume 15 mm above its lowest section.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kidseg.cases import open_dataset
from kidseg.io import ReadOptions, load, read, save

AS_LABELS = ReadOptions(values="labels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--apart-mm", type=float, default=30.0)
    given = parser.parse_args()
    folder = given.out / "kits19_slices"
    folder.mkdir(parents=True)
    for case in open_dataset(given.data).cases:
        if case.labels is None:
            continue
        image, labels = load(case.images[0]), read(case.labels, AS_LABELS).volume
        shown = (labels.data[0] > 0).flatten(1).any(1).nonzero()[:, 0].tolist()
        step = max(1, round(given.apart_mm / float(labels.grid.spacing_mm[0])))
        for k in shown[step // 2 :: step]:
            for volume, mark in ((image, "ct"), (labels, "seg")):
                save(volume.slices(k, k + 1), folder / f"{case.id}_s{k}_{mark}.nii.gz")


if __name__ == "__main__":
    main()
