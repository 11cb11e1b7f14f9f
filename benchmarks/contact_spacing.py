"""Contact of tumour and kidney, and the kidney's diameter, of digital children against spacing.

    python benchmarks/contact_spacing.py OUT.jsonl --seed 3111 --children 6
    python benchmarks/contact_spacing.py OUT.jsonl --report --picture docs/contact_spacing.png

True are kidney and tumour on voxels of 0.4 mm, all parenchyma included. Measured are the labels

* "sampled": every second, fourth and eighth of these voxels in each direction;
* "scan": the voxels of the child's scanner, from the same anatomy, on two shifted grids;
* "written": the same as the digital patient writes them, without the pieces of kidney under 0.3 ml
  on a tumour.

The first two show what spacing alone takes away, the third what the rule for pieces takes besides.
Children that are in OUT.jsonl already are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import kidseg.phantom.render  # noqa: F401
from kidseg.geometry import Grid
from kidseg.measure.contact import contact_area, contact_of, thickness_mm
from kidseg.measure.diameters import longest_mm, surface_mm
from kidseg.measure.mask import Mask
from kidseg.metrics import union_box
from kidseg.phantom import DrawnPatient, draw_patient
from kidseg.phantom.kidneys import paint_cysts, paint_kidneys
from kidseg.phantom.mass import paint_masses
from kidseg.phantom.tumour import paint_tumours
from measure_phantoms import COHORTS, SEED, around_kidneys

FINE_MM, MARGIN_MM = 0.4, 4.0
STEPS = (2, 4, 8)
SHIFTS = ((0.0, 0.0, 0.0), (0.5, 0.35, 0.2))
THICKNESSES_MM = (0.0, 0.5, 1.0, 2.0)
KIDNEY, TUMOUR = 1, 2
LIMIT = 0.05
_RAYS = 40_000
RENDER = sys.modules["kidseg.phantom.render"]
Row = dict[str, Any]


def kidneys_alone(canvas: Any, anatomy: Any, pose: Any, details: Any, hu: Any, phase: Any) -> None:
    """Paint kidneys and tumours only, which takes a tenth of the time."""
    paint_kidneys(canvas, anatomy, hu)
    paint_cysts(canvas, anatomy.cysts, hu)
    paint_tumours(canvas, anatomy.tumours, hu, bright=False)
    paint_masses(canvas, anatomy.tumours, hu)


def labelled(drawn: DrawnPatient, grid: Grid, *, written: bool = False) -> np.ndarray:
    """Labels of kidneys and tumours on these voxels; `written` as in a digital patient's file."""
    rule = {} if written else {"_absorb_shreds": lambda organs, voxel_ml: None}
    with patch.multiple(RENDER, _paint=kidneys_alone, **rule):
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
    is_here = (x.numpy() < middle) == (side == "right")
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
    scan = one_side(around_kidneys(drawn), drawn, sides.pop())
    grid = scan.with_spacing((FINE_MM,) * 3)
    fine = labelled(drawn, grid)
    true = pair(fine, grid)
    whole = contact_of(*true)
    contact = whole.thinned(_RAYS)
    thickness = thickness_mm(contact, true[1])
    area = whole.area_cm2
    share = contact.areas_mm2 / contact.areas_mm2.sum()
    known = {
        "seed": seed,
        "child": index,
        "age_years": drawn.age_years,
        "scan_mm": [round(float(s), 3) for s in scan.spacing_mm],
        "true_cm2": area,
        "by_thickness_cm2": [
            area * float(share[thickness >= least].sum()) for least in THICKNESSES_MM
        ],
        "true_mm": longest_mm(surface_mm(true[1])),
    }
    for step in STEPS:
        for k, start in enumerate(((0, 0, 0), (0, step // 2, step - 1))[: step // 2]):
            every = tuple(slice(first, None, step) for first in start)
            place = shifted(grid, tuple(map(float, start)), step)
            yield known | measured("sampled", k, *pair(fine[every], place))
    for k, part in enumerate(SHIFTS):
        place = shifted(scan, part)
        for kind in ("scan", "written"):
            labels = labelled(drawn, place, written=kind == "written")
            yield known | measured(kind, k, *pair(labels, place))


def measured(kind: str, shift: int, tumour: Mask, kidney: Mask) -> Row:
    """The contact and the longest diameter of the kidney in these labels."""
    found = contact_area(tumour, kidney)
    return {
        "kind": kind,
        "shift": shift,
        "spacing_mm": round(float(tumour.grid.spacing_mm.max()), 3),
        "faces_cm2": contact_of(tumour, kidney).area_cm2,
        "contact_cm2": found.value,
        "low_cm2": found.low,
        "high_cm2": found.high,
        "longest_mm": longest_mm(surface_mm(kidney)),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--children", type=int, default=0, help="with tumours on one side")
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
            print(args.seed, index, len(found), flush=True)


if __name__ == "__main__":
    main()
