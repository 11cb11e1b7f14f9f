"""What the review of a segmentation costs: CPU seconds and peak memory, with and without.

    git worktree add ../old COMMIT_BEFORE_THE_REVIEW
    python benchmarks/review_cost.py --old ../old [--slices 200] [-k 2] [--model RUN]

A digital patient is segmented, file to file, by a fresh process of each checkout on one thread,
turn by turn: before; with the review, which is always on; and with the map of entropy written. The
labels must be equal to the last voxel. A scan with fewer slices is continued by its mirror image.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from kidseg.geometry import Volume
from kidseg.io import load, save
from segment_old_new import labels, run


def lengthen(scan: Path, slices: int) -> None:
    """Continue a stack that has fewer slices by its mirror image."""
    volume = load(scan)
    data = volume.data
    while data.shape[1] < slices:
        data = torch.cat([data, data.flip(1)], dim=1)
    data = data[:, :slices].contiguous()
    save(Volume(data, volume.grid.crop((0, 0, 0), data.shape[1:])), scan, overwrite=True)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--model", default="starter")
    parser.add_argument("-k", type=int, default=2, help="times")
    asked = parser.parse_args()
    new = Path(__file__).parents[1]
    kinds = {
        "before": (asked.old, "nii"),
        "review": (new, "nii"),
        "review and map": (new, "nii,entropy"),
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run(new, "phantom", root / "data", "-n", 1, "--seed", 2, "--size", asked.size,
            "--set", f"max_slices={asked.slices}", "--set", "slice_mm=[1.0,1.0]")  # fmt: skip
        (scan,) = (root / "data" / "imagesTr").glob("*.nii.gz")
        lengthen(scan, asked.slices)
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
        for k in range(asked.k):
            for number, (name, (tree, formats)) in enumerate(kinds.items()):
                out = root / f"{number}-{k}"
                rows[name].append(
                    run(tree, "segment", scan, "-m", asked.model, "-o", out, "--formats", formats)
                )
        (first,) = labels(root / "0-0").values()
        for number in range(1, len(kinds)):
            (other,) = labels(root / f"{number}-0").values()
            if not np.array_equal(first, other):
                sys.exit("the labels differ")
    base = [statistics.median(values) for values in zip(*rows["before"], strict=True)]
    shape = " x ".join(map(str, first.shape))
    print(f"{shape} voxels, {asked.model}, median of {asked.k}; labels equal")
    print("| | CPU s | ratio | peak MB | ratio |\n|---|---|---|---|---|")
    for name, values in rows.items():
        seconds, peak = (statistics.median(each) for each in zip(*values, strict=True))
        print(f"| {name} | {seconds:.1f} | {seconds / base[0]:.3f} | {peak:.0f} |"
              f" {peak / base[1]:.3f} |")  # fmt: skip


if __name__ == "__main__":
    main()
