"""Measure the reference labels of digital patients, and compare with what is true of them.

    python benchmarks/measure_phantoms.py OUT.jsonl --children 6 --adults 4 --pairs 1 --size 256
    python benchmarks/measure_phantoms.py OUT.jsonl --report

True are the volumes that were drawn, the sides, and, for all other measures, those of the same
person in voxels of half the spacing. In both, the same parenchyma is kidney: a digital patient
gives small pieces of it on a tumour to the tumour, and which are that small depends on the voxels,
so in the smaller voxels those are tumour that are so in the scan. "Same labels" are every second
of the smaller voxels in each direction, which shows what their size takes away.
Patients that are in OUT.jsonl already are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import kidseg.phantom.render  # noqa: F401
from kidseg.config import PhantomConfig
from kidseg.geometry import Grid, Volume
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.measure.contact import contact_area
from kidseg.measure.mask import Mask
from kidseg.measure.measurement import Measurement
from kidseg.measure.measuring import Request, measure_labelled
from kidseg.measure.midline import Midline
from kidseg.measure.parts import Labelled, Parts
from kidseg.measure.quantity import Quantity
from kidseg.measure.response import changes
from kidseg.metrics import union_box
from kidseg.phantom import DrawnPatient, draw_patient
from kidseg.phantom.render import KIDNEY

SEED = 3111
SLICES_MM = (1.5, 5.0)
COHORTS = {
    "children": PhantomConfig(tumour_share=1.0, slice_mm=SLICES_MM),
    "adults": PhantomConfig(tumour_share=1.0, slice_mm=SLICES_MM, ages_years=(17.0, 90.0)),
    "pairs": PhantomConfig(tumour_share=1.0, slice_mm=SLICES_MM, timepoints=2),
}
CONTACT, SAME_LABELS = "contact with the kidney", "contact, same labels"
SIDES, UNMATCHED = "sides", "found in finer voxels"
DIAMETERS = ("longest diameter", "longest axial diameter", "width across it", "height")
RATIOS = {  # and their limits; other measures are compared by difference
    "volume": 0.02,
    "volume as drawn": 0.02,
    "ellipsoid volume": None,
    CONTACT: 0.05,
    SAME_LABELS: 0.05,
}
_SCOUT_MM = (4.0, 3.0, 3.0)
_MARGIN_MM = 10.0
RENDER = sys.modules["kidseg.phantom.render"]
ALL_PIECES = {"_absorb_shreds": lambda organs, voxel_ml: None}
"""In place of the rule of `RENDER` that gives small pieces of kidney on a tumour to the tumour."""
_AROUND = 16  # voxels around a tumour that its contact is measured in
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Shown:
    """A patient on voxels, and what was measured there."""

    grid: Grid
    parts: Parts
    measured: Measurement


def shown(drawn: DrawnPatient, grid: Grid) -> Shown:
    """The labels of a patient on voxels, measured as `kidseg measure` does."""
    return labels_shown(drawn, grid, drawn.rendered(grid).labels)


def labels_shown(drawn: DrawnPatient, grid: Grid, data: np.ndarray) -> Shown:
    """These labels of a patient, measured as `kidseg measure` does."""
    labels = Volume(torch.from_numpy(data)[None], grid)
    middle = Midline.at(float(drawn.pose.scanner_from_anatomy()[0, 3]), "body")
    labelled = Labelled(labels=labels, schema=KIDNEY_TUMOUR, midline=middle)
    return Shown(grid, *measure_labelled(labelled, Request()))


def finer(drawn: DrawnPatient, scan: Shown) -> Shown:
    """The same in voxels of half the spacing, with the pieces of kidney that the scan has."""
    grid = scan.grid.with_spacing([float(s) / 2 for s in scan.grid.spacing_mm])
    written = drawn.rendered(scan.grid).labels
    with patch.multiple(RENDER, **ALL_PIECES):
        whole, labels = (drawn.rendered(each).labels for each in (scan.grid, grid))
    place = scan.grid.index(grid.mm(np.argwhere(labels == KIDNEY).astype(float))).numpy()
    spacing_mm = scan.grid.spacing_mm.tolist()
    labels[labels == KIDNEY] = of_nearest_piece(whole == KIDNEY, written, place, spacing_mm)
    return labels_shown(drawn, grid, labels)


def of_nearest_piece(
    kidney: np.ndarray, written: np.ndarray, place: np.ndarray, spacing_mm: list[float]
) -> np.ndarray:
    """(points,) labels as written of the voxels of a kidney next to (points, 3) indices."""
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(
        ~kidney, sampling=spacing_mm, return_distances=False, return_indices=True
    )
    index = np.clip(np.rint(place).astype(int), 0, np.array(kidney.shape) - 1)
    return np.asarray(written[tuple(nearest[:, *index.T])])


def around_kidneys(drawn: DrawnPatient) -> Grid:
    """The voxels of the scan around kidneys and tumours."""
    scan = drawn.scanner.grid()
    scout = scan.with_spacing(_SCOUT_MM)
    box = union_box(drawn.rendered(scout).labels > 0)
    assert box is not None
    ends = np.array([[side.start - 1, side.stop] for side in box]) + 0.5
    index = scan.index(scout.mm(ends.T)).numpy()
    margin = np.ceil(_MARGIN_MM / scan.spacing_mm.numpy())
    low = np.maximum(np.floor(index.min(0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(index.max(0) + margin), scan.shape).astype(int)
    return scan.crop(low.tolist(), (high - low).tolist())


def patient_rows(task: tuple[str, int, int]) -> list[Row]:
    """Everything that was found in a patient (cohort, number, size), beside the truth."""
    torch.set_num_threads(1)
    cohort, index, size = task
    config = replace(COHORTS[cohort], size=size)
    times = [draw_patient(config, seed=SEED, index=index, timepoint=0)]
    if config.timepoints == 2:
        times.append(draw_patient(config, seed=SEED, index=index, timepoint=1))
    scans = [shown(drawn, around_kidneys(drawn)) for drawn in times]
    rows = [row for pair in zip(times, scans, strict=True) for row in drawn_rows(*pair)]
    if config.timepoints == 2:
        rows += change_rows(times[1], *scans)
    else:
        rows += finer_rows(scans[0], finer(times[0], scans[0]))
    known = {
        "cohort": cohort,
        "patient": index,
        "age_years": times[0].age_years,
        "spacing_mm": [round(float(s), 4) for s in scans[0].grid.spacing_mm],
    }
    return [known | row for row in rows]


def drawn_rows(drawn: DrawnPatient, scan: Shown) -> Iterator[Row]:
    """Sides and volumes of the tumours as drawn."""
    tumours: dict[str, float] = defaultdict(float)
    for tumour in drawn.anatomy.tumours:
        tumours[tumour.side] += tumour.volume_ml
    sides = {side for side, found in scan.measured.sides.items() if "tumour volume" in found}
    yield row("tumour", SIDES, float(sides == set(tumours)), 1.0)
    for side in sides & set(tumours):
        found = scan.measured.sides[side]["tumour volume"]
        yield row("tumour", "volume as drawn", found.value, tumours[side], found)


def change_rows(now: DrawnPatient, before: Shown, after: Shown) -> Iterator[Row]:
    """The change of the tumours of each side, as drawn."""
    found = {
        change.subject: change
        for change in changes((before.parts, before.measured), (after.parts, after.measured))
    }
    pairs = list(zip(now.earlier.tumours, now.anatomy.tumours, strict=True))
    for side in {old.side for old, _ in pairs}:
        old, new = (sum(t[k].volume_ml for t in pairs if t[0].side == side) for k in (0, 1))
        change = found[f"{side} tumours"].relative
        assert change is not None
        yield row("tumour", "change, %", change.value, 100 * (new / old - 1), change)


def finer_rows(scan: Shown, smaller: Shown) -> Iterator[Row]:
    """Every quantity in the scan's voxels, and in finer ones."""
    voxel_mm = float(scan.grid.spacing_mm.max())
    fine = {structure.id: structure for structure in smaller.measured.structures}
    ill = {tumour.side for tumour in smaller.parts.tumours}
    for structure in scan.measured.structures:
        name = str(structure.meaning)
        if name == "kidney":
            name = "kidney with a tumour" if structure.side in ill else "other kidney"
        if structure.id not in fine:
            yield row(name, UNMATCHED, 0.0, 1.0)
            continue
        for found in structure.quantities:
            true = fine[structure.id].quantity(found.name)
            if true is not None:
                yield row(name, found.name, found.value, true.value, found, voxel_mm)
                if found.name == CONTACT and true.value > 0:
                    same = same_labels(smaller.parts, structure.id)
                    yield row(name, SAME_LABELS, same.value, true.value, same)


def same_labels(parts: Parts, lesion: str) -> Quantity:
    """The contact of a lesion in every second of the voxels in each direction."""
    (tumour,) = (each for each in parts.tumours if each.id == lesion)
    assert tumour.side is not None
    (around,) = tumour.mask.cropped(margin=_AROUND)
    kidney = parts.kidneys[tumour.side].mask.onto(around)
    steps = torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64)
    matrix = around.grid.mm_from_index * steps
    every = (slice(None, None, 2),) * 3
    masks = [data[every] for data in (around.data, kidney)]
    return contact_area(*(Mask(data, Grid(data.shape, matrix)) for data in masks))


def row(
    structure: str,
    measure: str,
    found: float,
    true: float,
    interval: Any = None,
    voxel_mm: float | None = None,
) -> Row:
    """One comparison; `interval` is a Quantity."""
    low, high = (None, None) if interval is None else (interval.low, interval.high)
    return {
        "structure": structure,
        "measure": measure,
        "found": found,
        "true": true,
        "low": low,
        "high": high,
        "voxel_mm": voxel_mm,
    }


def compared(each: Row) -> tuple[float, bool | None]:
    """The ratio or the difference, and whether it is within the limit; None without one."""
    difference = each["found"] - each["true"]
    if each["measure"] in RATIOS:
        ratio = each["found"] / each["true"] if each["true"] else float("nan")
        limit = RATIOS[each["measure"]]
        return ratio, None if limit is None else abs(ratio - 1) <= limit
    if each["measure"] in DIAMETERS:
        return difference, abs(difference) <= each["voxel_mm"]
    is_judged = each["measure"] in (SIDES, UNMATCHED)
    return difference, difference == 0 if is_judged else None


def report(rows: list[Row]) -> str:
    """A table in Markdown."""
    groups: dict[tuple[str, str, str], list[Row]] = defaultdict(list)
    for each in rows:
        groups[each["cohort"], each["structure"], each["measure"]].append(each)
    lines = [
        "| patients | structure | measure | n | mean (SD) | worst | within | in the interval |",
        "|---|---|---|--:|---|--:|--:|--:|",
    ]
    for (cohort, structure, measure), group in groups.items():
        values = np.array([compared(each)[0] for each in group])
        centre = 1.0 if measure in RATIOS else 0.0
        worst = values[np.nanargmax(abs(values - centre))]
        judged = [ok for each in group if (ok := compared(each)[1]) is not None]
        spans = [each for each in group if each["low"] is not None and each["high"] is not None]
        held = sum(each["low"] <= each["true"] <= each["high"] for each in spans)
        lines.append(
            f"| {cohort} | {structure} | {measure} | {len(group)} |"
            f" {np.nanmean(values):.3f} ({np.nanstd(values):.3f}) | {worst:.3f} |"
            f" {f'{sum(judged)} of {len(judged)}' if judged else ''} |"
            f" {f'{held} of {len(spans)}' if spans else ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    for cohort in COHORTS:
        parser.add_argument(f"--{cohort}", type=int, default=0)
    parser.add_argument("--size", type=int, default=512, help="pixels along each side [512]")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="only the table of what is there")
    args = parser.parse_args()
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(each["cohort"], each["patient"]) for each in rows}
    wanted = [(cohort, k) for cohort in COHORTS for k in range(getattr(args, cohort))]
    left = [] if args.report else [(*task, args.size) for task in wanted if task not in done]
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        for found in pool.map(patient_rows, left):
            rows += found
            with args.out.open("a") as file:
                file.writelines(json.dumps(each) + "\n" for each in found)
    print(report(rows))


if __name__ == "__main__":
    main()
