"""How well a model finds small sections: the poles of kidneys, the ends of tumours, tumours alone.

    kidseg segment held/imagesTr -o labels/
    python benchmarks/small_sections.py held/ labels/ [MORE_DATA MORE_LABELS ...]

A Dice per patient hides them: they are few voxels of many. Prints, by the area of kidneys and
tumours in a slice, the number of slices, the mean Dice of kidney+tumour (SD) and the share of
slices that are missed (Dice below 0.1); for all slices, and for those with tumour and no kidney;
then what is found in slices without either.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from kidseg.io import ReadOptions, read

AS_LABELS = ReadOptions(values="labels")
KIDNEY = 1
EDGES_CM2 = (0.0, 2.0, 5.0, 10.0, 20.0, 50.0, np.inf)
MISSED = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="+", help="data set, result, and so on in turn")
    folders = parser.parse_args().data
    if len(folders) % 2:
        parser.error("give a data set and the labels found in it, in turn")
    pairs = zip(folders[::2], folders[1::2], strict=True)
    areas = np.array([area for pair in pairs for area in sections(*pair)])
    if not len(areas):
        parser.error("no labels are named like phantom_0000_seg.nii.gz")
    truth, found, _, alone = areas.T
    print_by_area("all slices", areas[truth > 0])
    print_by_area("tumour alone", areas[alone > 0])
    empty = found[truth == 0]
    print(f"neither: {len(empty)} slices, more than 1 cm2 found in {(empty > 1).mean():.1%}")


def sections(data: Path, labels: Path) -> Iterator[tuple[float, float, float, bool]]:
    """Areas in cm2 of each slice: reference, found, overlap; and whether it shows tumour alone."""
    for reference in sorted((data / "labelsTr").glob("*.nii.gz")):
        result = labels / reference.name.replace(".nii", "_seg.nii")
        if not result.exists():
            continue
        truth, found = (read(path, AS_LABELS).volume for path in (reference, result))
        cm2 = float(truth.grid.spacing_mm[1] * truth.grid.spacing_mm[2]) / 100.0
        for real, ours in zip(truth.data[0].numpy(), found.data[0].numpy(), strict=True):
            counts = ((real > 0).sum(), (ours > 0).sum(), ((real > 0) & (ours > 0)).sum())
            kidney = bool((real == KIDNEY).any())
            yield *(float(n) * cm2 for n in counts), bool((real > 0).any()) and not kidney


def print_by_area(title: str, areas: np.ndarray) -> None:
    for low, high in pairwise(EDGES_CM2):
        truth, found, both, _ = areas[(areas[:, 0] > low) & (areas[:, 0] <= high)].T
        if not len(truth):
            continue
        dice = 2 * both / (truth + found)
        print(
            f"{title}, {low:g} to {high:g} cm2: n {len(dice)}, Dice {dice.mean():.3f}"
            f" ({dice.std():.3f}), missed {(dice < MISSED).mean():.1%}"
        )


if __name__ == "__main__":
    main()
