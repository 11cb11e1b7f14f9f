"""What the review of a segmentation costs: CPU seconds and peak memory, with and without.

    python benchmarks/review_cost.py [--slices 200] [-k 2] [--model RUN] [--old CHECKOUT]

A digital patient is segmented, file to file, by fresh processes on one thread, turn by turn:
without the review (nothing sees the probabilities, and no opinion is counted); with it, as it
always is; and with the map of entropy written. With --old another checkout does the same. The
labels must be equal to the last voxel. A scan with fewer slices is continued by its mirror image.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from kidseg.geometry import Volume
from kidseg.io import load, save
from segment_old_new import labels, run

WITHOUT = "without the review"
KIDSEG = ("-m", "kidseg")


def lengthen(scan: Path, slices: int) -> None:
    """Continue a stack that has fewer slices by its mirror image."""
    volume = load(scan)
    data = volume.data
    while data.shape[1] < slices:
        data = torch.cat([data, data.flip(1)], dim=1)
    data = data[:, :slices].contiguous()
    save(Volume(data, volume.grid.crop((0, 0, 0), data.shape[1:])), scan, overwrite=True)


def segment_without(arguments: Sequence[str]) -> None:
    """The command segment, with nothing that only the review needs."""
    from kidseg.cli import main
    from kidseg.pipeline import views
    from kidseg.segment.predictor import Predictor
    from kidseg.segment.review import Observer, Review

    def reviewed(self: Predictor, found: Any, scan: Any, clock: Any) -> Any:
        target = self.target_of(found)
        decided = self.decide(found, scan, clock)
        doubt = Observer(scan, target, self.schema).doubt
        return decided, Review(
            doubt=doubt, rows=(), target=target, schema=self.schema, volumes_ml={}
        )

    with patch.object(Predictor, "reviewed", reviewed), patch.object(views.Tally, "add"):
        main(list(arguments))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", type=Path)
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--model", default="starter")
    parser.add_argument("-k", type=int, default=2, help="times")
    asked = parser.parse_args()
    new = Path(__file__).parents[1]
    kinds = {
        WITHOUT: (new, "nii", (__file__, WITHOUT)),
        "review": (new, "nii", KIDSEG),
        "review and map": (new, "nii,entropy", KIDSEG),
    }
    if asked.old:
        kinds["old"] = (asked.old, "nii", KIDSEG)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run(new, "phantom", root / "data", "-n", 1, "--seed", 2, "--size", asked.size,
            "--set", f"max_slices={asked.slices}", "--set", "slice_mm=[1.0,1.0]")  # fmt: skip
        (scan,) = (root / "data" / "imagesTr").glob("*.nii.gz")
        lengthen(scan, asked.slices)
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
        for k in range(asked.k):
            for number, (name, (tree, formats, program)) in enumerate(kinds.items()):
                words = (
                    scan,
                    "-m",
                    asked.model,
                    "-o",
                    root / f"{number}-{k}",
                    "--formats",
                    formats,
                )
                rows[name].append(run(tree, "segment", *words, program=program))
        (first,) = labels(root / "0-0").values()
        for number in range(1, len(kinds)):
            (other,) = labels(root / f"{number}-0").values()
            if not np.array_equal(first, other):
                sys.exit("the labels differ")
    base = [statistics.median(values) for values in zip(*rows[WITHOUT], strict=True)]
    shape = " x ".join(map(str, first.shape))
    print(f"{shape} voxels, {asked.model}, median of {asked.k}; labels equal")
    print("| | CPU s | ratio (of each turn) | peak MB | ratio |\n|---|---|---|---|---|")
    for name, values in rows.items():
        seconds, peak = (statistics.median(each) for each in zip(*values, strict=True))
        turns = zip(values, rows[WITHOUT], strict=True)
        ratios = ", ".join(f"{mine[0] / other[0]:.3f}" for mine, other in turns)
        print(f"| {name} | {seconds:.1f} | {seconds / base[0]:.3f} ({ratios}) | {peak:.0f} |"
              f" {peak / base[1]:.3f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    if WITHOUT in sys.argv[1:2]:
        segment_without(sys.argv[2:])
    main()
