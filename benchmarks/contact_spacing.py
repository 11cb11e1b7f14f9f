"""Contact of tumour and kidney of digital children against the spacing of their labels.

    python benchmarks/contact_spacing.py OUT.jsonl --seed 3111 --children 6
    python benchmarks/contact_spacing.py OUT.jsonl --picture docs/contact_spacing.png

True is the part of the tumour's surface, as drawn, that the kidney lies on, as drawn: surfaces of
the painted shares of voxels of 0.8 mm, without labels. "0.2 mm" is its part before parenchyma of at
least 0.2 mm, the size of a glomerulus. Measured are the labels

* "0.8 mm" and wider: these voxels, and every second and fourth of them in each direction;
* "scan": the voxels of the child's scanner, from the same anatomy, on two shifted grids;
* "written": the same as the digital patient writes them, without the pieces of kidney under 0.3 ml
  on a tumour.

The first two show what spacing alone takes away, the third what the rule for pieces takes besides.
Children that are in OUT.jsonl already are not made again.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from drawn_truth import (
    ALL_PIECES,
    FINE_MM,
    RENDER,
    THICKNESSES_MM,
    Shares,
    contact_cm2,
    kidneys_alone,
)
from kidseg.geometry import Grid
from kidseg.measure.contact import contact_area
from kidseg.measure.mask import Mask
from kidseg.metrics import union_box
from kidseg.phantom import DrawnPatient, draw_patient
from measure_phantoms import COHORTS, SEED, around_kidneys

MARGIN_MM = 4.0
STEPS = (1, 2, 4)
SHIFTS = ((0.0, 0.0, 0.0), (0.5, 0.35, 0.2))
KIDNEY, TUMOUR = 1, 2
KINDS = ("0.8 mm", "1.6 mm", "3.2 mm", "scan", "written")
LIMIT = 0.05
Row = dict[str, Any]


def labelled(drawn: DrawnPatient, grid: Grid, *, written: bool = False) -> np.ndarray:
    """Labels of kidneys and tumours on these voxels; `written` as in a digital patient's file."""
    with patch.multiple(RENDER, _paint=kidneys_alone, **({} if written else ALL_PIECES)):
        return drawn.rendered(grid).labels


def pair(labels: np.ndarray, grid: Grid) -> tuple[Mask, Mask]:
    """The tumour and the kidney."""
    return Mask(labels == TUMOUR, grid), Mask(labels == KIDNEY, grid)


def shifted(grid: Grid, voxels: tuple[float, ...], step: int = 1) -> Grid:
    """The grid moved by a part of a voxel, or every `step`-th of its voxels from this one on."""
    matrix = grid.mm_from_index.clone()
    matrix[:3, 3] += matrix[:3, :3] @ torch.tensor(voxels, dtype=matrix.dtype)
    matrix[:3, :3] *= step
    shape = [-(-(n - int(v)) // step) for n, v in zip(grid.shape, voxels, strict=True)]
    return Grid(tuple(shape), matrix)


def one_side(grid: Grid, drawn: DrawnPatient, side: str) -> Grid:
    """The half of the voxels on one side of the body's middle, with all of a tumour."""
    middle = float(drawn.pose.scanner_from_anatomy()[0, 3])
    found = labelled(drawn, grid)
    x = grid.mm(np.stack([np.zeros(n := grid.shape[2]), np.zeros(n), np.arange(n)], 1))[:, 0]
    is_here = (x.numpy() > middle) == (side == "right")
    tumour = (found == TUMOUR).any(axis=(0, 1))
    box = union_box((found > 0) & (is_here | tumour))
    assert box is not None
    margin = np.ceil(MARGIN_MM / grid.spacing_mm.numpy()).astype(int)
    low = [extent.start - int(m) for extent, m in zip(box, margin, strict=True)]
    high = [extent.stop + int(m) for extent, m in zip(box, margin, strict=True)]
    return grid.crop(low, [b - a for a, b in zip(low, high, strict=True)])


def child_rows(seed: int, index: int, size: int = 256) -> Iterator[Row]:
    """Everything that was found in a child with tumours on one side; nothing of others."""
    config = replace(COHORTS["children"], size=size)
    drawn = draw_patient(config, seed=seed, index=index, timepoint=0)
    sides = {tumour.side for tumour in drawn.anatomy.tumours}
    if len(sides) > 1 or drawn.anatomy.form == "horseshoe":
        return
    side = sides.pop()
    scan = one_side(around_kidneys(drawn), drawn, side)
    grid = scan.with_spacing((FINE_MM,) * 3)
    shares = Shares.of(drawn, grid)
    inner, outer = shares.tumour, shares.kidney[side]
    known = {
        "seed": seed,
        "child": index,
        "age_years": drawn.age_years,
        "scan_mm": [round(float(s), 3) for s in scan.spacing_mm],
        "true_cm2": contact_cm2(inner, outer),
    }
    fine = np.where(inner >= 0.5, TUMOUR, KIDNEY * (outer >= 0.5))
    for step in STEPS:
        for k, start in enumerate(((0, 0, 0), (0, step // 2, step - 1))[: min(step, 2)]):
            every = tuple(slice(first, None, step) for first in start)
            place = shifted(grid, tuple(map(float, start)), step)
            yield known | measured("sampled", k, *pair(fine[every], place))
    for k, part in enumerate(SHIFTS):
        place = shifted(scan, part)
        for kind in ("scan", "written"):
            labels = labelled(drawn, place, written=kind == "written")
            yield known | measured(kind, k, *pair(labels, place))


def measured(kind: str, shift: int, tumour: Mask, kidney: Mask) -> Row:
    """The contact in these labels."""
    found = contact_area(tumour, kidney)
    return {
        "kind": kind,
        "shift": shift,
        "spacing_mm": round(float(tumour.grid.spacing_mm.max()), 3),
        "contact_cm2": found.value,
        "low_cm2": found.low,
        "high_cm2": found.high,
    }


def groups(rows: list[Row]) -> dict[tuple[int, str], list[Row]]:
    """{(seed, kind): rows}, the means over the shifts of each child; "sampled" by its spacing."""
    found: dict[tuple[int, str], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        kind = f"{round(row['spacing_mm'], 1):g} mm" if row["kind"] == "sampled" else row["kind"]
        found[row["seed"], kind][row["child"]].append(row)
    return {
        key: [
            shifts[0]
            | {
                "contact_cm2": float(np.mean([row["contact_cm2"] for row in shifts])),
                "held": sum(
                    row["low_cm2"] <= row["true_cm2"][0] <= row["high_cm2"] for row in shifts
                )
                / len(shifts),
            }
            for shifts in children.values()
        ]
        for key, children in found.items()
    }


def report(rows: list[Row]) -> str:
    """A table in Markdown, and the truth of each child."""
    lines = [
        "| seed | labels | n | contact, mean (SD) | worst | within 5 % | before 0.2 mm, mean (SD)"
        " | within 5 % | in the interval |",
        "|---|---|--:|---|--:|--:|---|--:|--:|",
    ]
    by_kind = groups(rows)
    for (seed, kind), children in by_kind.items():
        found = np.array([row["contact_cm2"] for row in children])
        first, second = (found / [row["true_cm2"][k] for row in children] for k in (0, 1))
        within = [int((abs(ratio - 1) <= LIMIT).sum()) for ratio in (first, second)]
        lines.append(
            f"| {seed} | {kind} | {len(children)} | {first.mean():.3f} ({first.std():.3f})"
            f" | {first[abs(first - 1).argmax()]:.3f} | {within[0]}"
            f" | {second.mean():.3f} ({second.std():.3f}) | {within[1]}"
            f" | {sum(row['held'] for row in children):g} |"
        )
    lines += ["", "| seed, child | age | scan, mm | contact before at least"
              f" {', '.join(f'{t:g}' for t in THICKNESSES_MM)} mm, cm2"
              f" | {' | '.join(KINDS)} |",
              "|---|--:|---|---" + "|--:" * len(KINDS) + "|"]  # fmt: skip
    for seed, child in dict.fromkeys((row["seed"], row["child"]) for row in rows):
        found_by = {
            kind: row
            for (other, kind), each in by_kind.items()
            for row in each
            if (other, row["child"]) == (seed, child)
        }
        row = found_by["scan"]
        shown = [f"{found_by[kind]['contact_cm2']:.1f}" for kind in KINDS]
        lines.append(
            f"| {seed}, {child} | {row['age_years']:.1f}"
            f" | {' x '.join(f'{s:.2g}' for s in row['scan_mm'])}"
            f" | {', '.join(f'{v:.1f}' for v in row['true_cm2'])}"
            f" | {' | '.join(shown)} |"
        )
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """The error of the contact of each child by the spacing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    axes.axhspan(-100 * LIMIT, 100 * LIMIT, color="0.9", label=f"within {LIMIT:.0%}")
    lines: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (seed, kind), children in groups(rows).items():
        for row in children:
            place = row["spacing_mm"], 100 * (row["contact_cm2"] / row["true_cm2"][0] - 1)
            if kind.endswith("mm"):
                lines[seed, row["child"]].append(place)
            else:
                points[kind].append(place)
    for k, line in enumerate(lines.values()):
        label = "sampled alike in all directions" if k == 0 else None
        axes.plot(*np.array(line).T, "-", color="tab:blue", linewidth=0.8, label=label)
    for (kind, each), mark in zip(points.items(), ("o", "x"), strict=True):
        label = {"scan": "scanner's voxels", "written": "the same without small pieces"}[kind]
        axes.plot(*np.array(each).T, mark, color="k", fillstyle="none", label=label)
    axes.set(xlabel="widest spacing, mm", ylabel="error of the contact, %", xlim=(0, None))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--children", type=int, default=0, help="with tumours on one side")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(each["seed"], each["child"]) for each in rows}
    for index in range(args.children):
        if (args.seed, index) not in done:
            found = list(child_rows(args.seed, index))
            rows += found
            with args.out.open("a") as file:
                file.writelines(json.dumps(each) + "\n" for each in found)
            print(f"seed {args.seed}, child {index}: {len(found)} rows", flush=True)
    print(report(rows))
    if args.picture:
        draw(rows, args.picture)


if __name__ == "__main__":
    main()
