"""Measure the reference labels of digital patients, and compare with what is true of them.

    python benchmarks/measure_phantoms.py OUT.jsonl --children 6 --adults 4 --pairs 1 --size 256
    python benchmarks/measure_phantoms.py OUT.jsonl --report

True are the sides and the volumes that were drawn, and diameters and contacts of the surfaces as
drawn (`drawn_truth`), which no labels go into. Where a tumour stretches its kidney, no label shows
all of it: so there the truth is also that of the parenchyma

* "of 0.2 mm": that is at least as thick, the size of a glomerulus;
* "without gaps": so thick that labels show it without gaps, wherever their voxels lie: as thick
  along its normal as the widest step between voxels in this direction.

The contact is measured, too, in labels with "all pieces": a digital patient gives small pieces of
kidney on a tumour to the tumour, which are a part of what was drawn.

With `--finer`, all other measures are compared with those of the same person in voxels of half the
spacing, which have the same limits as the labels, only smaller.
Patients that are in OUT.jsonl already are not made again.
"""

from __future__ import annotations

import argparse
import json
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

from drawn_truth import (
    ALL_PIECES,
    FINE_MM,
    RENDER,
    Shares,
    Surface,
    contact_cm2,
    diameters_mm,
)
from kidseg.config import PhantomConfig
from kidseg.geometry import Grid, Volume
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.measure.contact import contact_area
from kidseg.measure.mask import Mask
from kidseg.measure.measurement import Measurement, Structure
from kidseg.measure.measuring import Request, measure_labelled
from kidseg.measure.midline import Midline
from kidseg.measure.parts import Labelled, Part, Parts
from kidseg.measure.quantity import Quantity
from kidseg.measure.response import changes
from kidseg.metrics import union_box
from kidseg.phantom import DrawnPatient, draw_patient
from kidseg.phantom.render import KIDNEY, TUMOUR

SEED = 3111
SLICES_MM = (1.5, 5.0)
COHORTS = {
    "children": PhantomConfig(tumour_share=1.0, slice_mm=SLICES_MM),
    "adults": PhantomConfig(tumour_share=1.0, slice_mm=SLICES_MM, ages_years=(17.0, 90.0)),
    "pairs": PhantomConfig(tumour_share=1.0, slice_mm=SLICES_MM, timepoints=2),
}
CONTACT, STRETCHED = "contact with the kidney", "kidney with a tumour"
SIDES, UNMATCHED = "sides", "found in finer voxels"
DIAMETERS = ("longest diameter", "longest axial diameter", "height")
OF_THIN, WITHOUT_GAPS, ALL = ", of 0.2 mm", ", without gaps", ", all pieces"
THIN_MM = 0.2
RATIOS = {  # and their limits; other measures are compared by difference
    "volume": 0.02,
    "volume as drawn": 0.02,
    "ellipsoid volume": None,
    CONTACT: 0.05,
    **{CONTACT + each: 0.05 for each in (OF_THIN, ALL, ALL + OF_THIN)},
}
_SCOUT_MM = (4.0, 3.0, 3.0)
_MARGIN_MM = 10.0
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Shown:
    """A patient on voxels, and what was measured there."""

    grid: Grid
    parts: Parts
    measured: Measurement


def shown(drawn: DrawnPatient, grid: Grid) -> Shown:
    """The labels of a patient on voxels, measured as `kidseg measure` does."""
    labels = Volume(torch.from_numpy(drawn.rendered(grid).labels)[None], grid)
    middle = Midline.at(float(drawn.pose.scanner_from_anatomy()[0, 3]), "body")
    labelled = Labelled(labels=labels, schema=KIDNEY_TUMOUR, midline=middle)
    return Shown(grid, *measure_labelled(labelled, Request()))


def finer(drawn: DrawnPatient, scan: Shown) -> Shown:
    """The same in voxels of half the spacing."""
    return shown(drawn, scan.grid.with_spacing([float(s) / 2 for s in scan.grid.spacing_mm]))


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


def patient_rows(task: tuple[str, int, int, bool]) -> list[Row]:
    """What was found in a patient, beside the truth.

    Args:
        task: cohort, number, size, and whether it is measured in finer voxels, too.
    """
    torch.set_num_threads(1)
    cohort, index, size, is_finer = task
    config = replace(COHORTS[cohort], size=size)
    times = [draw_patient(config, seed=SEED, index=index, timepoint=0)]
    if config.timepoints == 2:
        times.append(draw_patient(config, seed=SEED, index=index, timepoint=1))
    scans = [shown(drawn, around_kidneys(drawn)) for drawn in times]
    rows = [row for pair in zip(times, scans, strict=True) for row in drawn_rows(*pair)]
    if config.timepoints == 2:
        rows += change_rows(times[1], *scans)
    else:
        rows += surface_rows(times[0], scans[0])
    if is_finer:
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


def surface_rows(drawn: DrawnPatient, scan: Shown) -> Iterator[Row]:
    """Diameters and contacts of the surfaces as drawn.

    Not of a horseshoe kidney, which has no two sides, nor of several tumours, whose surfaces are
    drawn as one.
    """
    if drawn.anatomy.form == "horseshoe":
        return
    shares = Shares.of(drawn, scan.grid.with_spacing((FINE_MM,) * 3))
    measured = {each.id: each for each in scan.measured.structures}
    ill = {tumour.side for tumour in scan.parts.tumours}
    for side, part in scan.parts.kidneys.items():
        drawn_as = [shares.kidney[side], 1 - shares.tumour]
        yield from diameter_rows(kind_of(part, ill), measured[part.id], drawn_as, scan.grid)
    if len(drawn.anatomy.tumours) == len(scan.parts.tumours) == 1:
        (tumour,) = scan.parts.tumours
        structure = measured[tumour.id]
        yield from diameter_rows("tumour", structure, [shares.tumour], scan.grid)
        written = structure.quantity(CONTACT)
        if written is not None and tumour.side is not None:
            true = contact_cm2(shares.tumour, shares.kidney[tumour.side], (0.0, THIN_MM))
            yield from contact_rows(drawn, scan.grid, written, true)


def contact_rows(
    drawn: DrawnPatient, grid: Grid, written: Quantity, true_cm2: list[float]
) -> Iterator[Row]:
    """The contact as drawn, in the labels as written, and in those with all pieces of kidney."""
    with patch.multiple(RENDER, **ALL_PIECES):
        labels = drawn.rendered(grid).labels
    whole = contact_area(*(Mask(labels == each, grid) for each in (TUMOUR, KIDNEY)))
    for name, found in ((CONTACT, written), (CONTACT + ALL, whole)):
        for part, cm2 in zip(("", OF_THIN), true_cm2, strict=True):
            yield row("tumour", name + part, found.value, cm2, found, float(grid.spacing_mm.max()))


def diameter_rows(
    kind: str, structure: Structure, drawn_as: list[np.ndarray], scan: Grid
) -> Iterator[Row]:
    """Diameters of a structure: of all, and, of stretched kidneys, of what is not too thin."""
    spacing_mm, voxel_mm = scan.spacing_mm.numpy(), float(scan.spacing_mm.max())
    surface = Surface.of(drawn_as, FINE_MM, most_mm=voxel_mm + FINE_MM)
    parts = {"": surface.thickness_mm >= 0}
    if kind == STRETCHED:
        parts[OF_THIN] = surface.thickness_mm >= THIN_MM
        parts[WITHOUT_GAPS] = surface.thickness_mm >= (abs(surface.inward) * spacing_mm).max(1)
    for part, kept in parts.items():
        for name, true_mm in diameters_mm(surface.index[kept], FINE_MM).items():
            found = structure.quantity(name)
            assert found is not None
            yield row(kind, name + part, found.value, true_mm, found, voxel_mm)


def kind_of(part: Part, ill: set[Any]) -> str:
    """The name of a structure in the table."""
    if part.meaning != "kidney":
        return str(part.meaning)
    return STRETCHED if part.side in ill else "other kidney"


def finer_rows(scan: Shown, smaller: Shown) -> Iterator[Row]:
    """Every other quantity in the scan's voxels, and in finer ones."""
    fine = {structure.id: structure for structure in smaller.measured.structures}
    parts = (*scan.parts.kidneys.values(), *scan.parts.tumours)
    ill = {tumour.side for tumour in scan.parts.tumours}
    kinds = {part.id: kind_of(part, ill) for part in parts}
    for structure in scan.measured.structures:
        name = kinds.get(structure.id, str(structure.meaning))
        if structure.id not in fine:
            yield row(name, UNMATCHED, 0.0, 1.0)
            continue
        for found in structure.quantities:
            true = fine[structure.id].quantity(found.name)
            if true is not None and found.name not in (*DIAMETERS, CONTACT):
                yield row(name, found.name, found.value, true.value, found)


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
    if each["voxel_mm"] is not None:
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
    parser.add_argument("--finer", action="store_true", help="also in voxels of half the spacing")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="only the table of what is there")
    args = parser.parse_args()
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(each["cohort"], each["patient"]) for each in rows}
    wanted = [(cohort, k) for cohort in COHORTS for k in range(getattr(args, cohort))]
    left = (
        []
        if args.report
        else [(*task, args.size, args.finer) for task in wanted if task not in done]
    )
    with ProcessPoolExecutor(args.jobs, get_context("spawn")) as pool:
        for found in pool.map(patient_rows, left):
            rows += found
            with args.out.open("a") as file:
                file.writelines(json.dumps(each) + "\n" for each in found)
    print(report(rows))


if __name__ == "__main__":
    main()
