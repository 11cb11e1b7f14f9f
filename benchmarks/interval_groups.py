"""Whether intervals of volumes hold in children and adults alike if calibrated by groups.

    python benchmarks/uncertainty.py OUT --held-out held_out
    python benchmarks/interval_groups.py OUT/held_out.jsonl --patients held_out/patients.csv

The patients that `uncertainty.py` segmented are divided at random, again and again: nine tenths
calibrate, the others tell whether the intervals hold. Compared are

* "pooled": one pair of ends for all scans, as `kidseg calibrate --intervals` chooses;
* "by size": one for scans in which less than `--split-ml` of kidney is found, and one for the
  others, so that each group holds by itself;

both with the scale as it is, and with 4 ml more, as if volumes were known to 5 ml at best. Ends are
interpolated between scores: taken outwards to whole ones, as `conformal_ends` does to be safe, they
would hold more often the smaller a group is, and groups could not be compared with all.

Source: Vovk, Conditional validity of inductive conformal predictors, Machine Learning 2013
(Mondrian: by groups).
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kidseg.segment.intervals import LEAST_CASES, LEVEL, scaled_interval
from uncertainty import CHILD_YEARS

SHARE, MORE_ML = 0.9, 4.0


@dataclass(frozen=True, eq=False)
class Found:
    """A structure in each patient: (patients,) true and found volumes, and the scale, ml."""

    true_ml: np.ndarray
    found_ml: np.ndarray
    scale_ml: np.ndarray


def ends_of(scores: np.ndarray) -> tuple[float, float]:
    """Between which the next score is with the probability `LEVEL`; see `conformal_ends`."""
    ranks = np.array([1 - LEVEL, 1 + LEVEL]) / 2 * (len(scores) + 1) - 1
    low, high = np.interp(ranks, np.arange(len(scores)), np.sort(scores))
    return float(low), float(high)


def intervals(
    found: Found, group: np.ndarray, calibrating: np.ndarray, tested: np.ndarray
) -> np.ndarray:
    """(tested, 2) ends in ml for these patients, from those of the others.

    Args:
        found: a structure in all patients.
        group: (patients,) int.
        calibrating: indices of patients, some of each group.
        tested: indices of others.
    """
    scores = (found.true_ml - found.found_ml) / found.scale_ml
    here = group[calibrating]
    ends = {k: ends_of(scores[calibrating][here == k]) for k in np.unique(here)}
    return np.array(
        [scaled_interval(found.found_ml[k], found.scale_ml[k], ends[group[k]]) for k in tested]
    )


def report(
    structures: Mapping[str, Found],
    is_large: np.ndarray,
    is_child: np.ndarray,
    times: int,
    seed: int = 0,
) -> list[str]:
    """A table in Markdown: how many hold, and how wide they are."""
    groups = {"pooled": np.zeros(len(is_child), int), "by size": is_large.astype(int)}
    lines = [
        "| structure | intervals | scale | children: held | median width | adults: held |"
        " median width |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    count = round(SHARE * len(is_child))
    for name, found in structures.items():
        for more_ml in (0.0, MORE_ML):
            scaled = Found(found.true_ml, found.found_ml, found.scale_ml + more_ml)
            for kind, group in groups.items():
                rng = np.random.default_rng(seed)
                held: list[np.ndarray] = []
                for _ in range(times):
                    order = rng.permutation(len(is_child))
                    first, rest = order[:count], order[count:]
                    low, high = intervals(scaled, group, first, rest).T
                    true = found.true_ml[rest]
                    held.append(
                        np.stack([is_child[rest], (low <= true) & (true <= high), high - low])
                    )
                child, holds, width = np.concatenate(held, 1)
                cells = [
                    cell
                    for which in (child == 1, child == 0)
                    for cell in (f"{holds[which].mean():.3f}", f"{np.median(width[which]):.0f} ml")
                ]
                scale = f"+ {more_ml:g} ml" if more_ml else "as it is"
                lines.append(f"| {name} | {kind} | {scale} | {' | '.join(cells)} |")
    return lines


def read(lines: Sequence[str], temperature: str) -> tuple[list[str], dict[str, Found]]:
    """The ids of the patients, and their structures."""
    records = [json.loads(line) for line in lines]
    names = records[0]["volumes"][temperature]
    of = {
        name: np.array([list(each["volumes"][temperature][name].values()) for each in records])
        for name in names
    }
    return [each["id"] for each in records], {name: Found(*of[name].T) for name in names}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--patients", type=Path, required=True)
    parser.add_argument("--temperature", default="0.6", help="that of the model [0.6]")
    parser.add_argument("--structure", default="kidney", help="by whose volume they are grouped")
    parser.add_argument("--split-ml", type=float, default=150.0)
    parser.add_argument("--times", type=int, default=300)
    args = parser.parse_args()
    ids, structures = read(args.records.read_text().splitlines(), args.temperature)
    with args.patients.open(newline="") as file:
        ages = {row["case"]: float(row["age_years"]) for row in csv.DictReader(file)}
    is_large = structures[args.structure].found_ml > args.split_ml
    if min(is_large.sum(), (~is_large).sum()) * SHARE < LEAST_CASES:
        raise SystemExit(f"{is_large.sum()} of {len(ids)} patients: too few in one of two groups")
    is_child = np.array([ages[each] <= CHILD_YEARS for each in ids])
    sizes = f"{is_large[is_child].sum()} and {is_large[~is_child].sum()} over {args.split_ml:g} ml"
    print(f"{is_child.sum()} children, {(~is_child).sum()} adults ({sizes}), {args.times} times\n")
    print("\n".join(report(structures, is_large, is_child, args.times)))


if __name__ == "__main__":
    main()
