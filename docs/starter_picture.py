"""The picture of starter.md: writes docs/starter.png.

kidseg segment held/imagesTr -m starter -o labels && kidseg evaluate labels held -o scores
python docs/starter_picture.py held/ labels/ scores/

Five patients each with the lowest, the median and the highest Dice of kidney+tumour.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from real_ct import Real, draw

EACH = 5


def main(data: Path, labels: Path, scores: Path) -> None:
    with (scores / "cases.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["structure"] == "kidney+tumour"]
    dice = {row["case"]: float(row["dice"]) for row in rows if row["dice"]}
    ranked = sorted(dice, key=dice.__getitem__)
    middle = (len(ranked) - EACH) // 2
    shown = {*ranked[:EACH], *ranked[middle : middle + EACH], *ranked[-EACH:]}
    real = [
        Real(data / "imagesTr" / f"{case}_0000.nii.gz", data / "labelsTr" / f"{case}.nii.gz")
        for case in sorted(shown)
    ]
    draw(
        real,
        labels,
        {r.patient: dice[r.patient] for r in real},
        Path(__file__).with_name("starter.png"),
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
