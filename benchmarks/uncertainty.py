"""Measure whether the doubt of a segmentation is true: probabilities, intervals, slices to review.

    kidseg phantom calibration --patients 60 --seed 3101 --size 128
    kidseg phantom held_out --patients 60 --seed 3102 --size 128
    python benchmarks/uncertainty.py OUT --calibration calibration --held-out held_out
    python benchmarks/uncertainty.py OUT --held-out held_out    # the calibration in the model file

Both data sets are segmented with a model (the starter: two models, each with a mirrored image, so
four opinions), a line per case in OUT/<set>.jsonl; a run that was stopped goes on. Then the
calibration chooses temperature and ends as `kidseg calibrate --intervals` does, and the held-out
patients tell whether they hold: OUT/uncertainty.md, OUT/uncertainty.json, and a picture,
OUT/reliability.png or `--picture`.
Digital patients of up to 16 years and adults are counted apart, too, if there are both.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kidseg.cases import open_dataset
from kidseg.geometry import Volume
from kidseg.measure import Midline, measure_sides
from kidseg.pipeline.windows import Window, part_of
from kidseg.segment import Predictor, load_predictor
from kidseg.segment.calibration import labelled_cases, read_case
from kidseg.segment.interval_calibration import (
    TEMPERATURES,
    Likelihood,
    Seen,
    Volumes,
    chosen,
    volumes_at,
)
from kidseg.segment.intervals import LEVEL, doubt_interval, scaled_interval
from kidseg.segment.review import Observer, Review, region_probabilities, structures_of, tempered

BINS = 15
SHARE = 0.1
CHILD_YEARS = 16.0
Record = dict[str, Any]


class Reliability:
    """Counts voxels, their probability and their truth by bins of probability.

    Source: Guo et al., On calibration of modern neural networks, ICML 2017 (15 bins).
    """

    def __init__(self, predictor: Predictor, target: Any, labels: Volume, temperature: float):
        self.target, self.temperature = target, temperature
        self.structures = structures_of(target, predictor.schema)
        self.truth = {
            name: torch.isin(labels.data[0], torch.tensor(predictor.schema.regions[name]))
            for name in self.structures
        }
        self.bins = {name: np.zeros((3, BINS)) for name in self.structures}

    def __call__(self, k: int, window: Window, probabilities: Tensor) -> None:
        values = tempered(probabilities, self.target, self.temperature)
        for name, structure in self.structures.items():
            p = region_probabilities(values, structure, self.target).numpy().ravel()
            truth = part_of(self.truth[name][k], window).numpy().ravel()
            number = np.minimum((p * BINS).astype(int), BINS - 1)
            for row, weight in enumerate((None, p, truth)):
                self.bins[name][row] += np.bincount(number, weight, minlength=BINS)


def record_of(predictor: Predictor, scan: Volume, labels: Volume, name: str) -> Record:
    """All that is compared in one patient."""
    found = predictor.find(scan, name)
    target, schema = predictor.target_of(found), predictor.schema
    observers = {each: Observer(scan.grid, target, schema, each) for each in TEMPERATURES}
    bins = {each: Reliability(predictor, target, labels, each) for each in TEMPERATURES}
    likelihood = Likelihood(target, labels, None)

    def watch(k: int, window: Window, probabilities: Tensor) -> None:
        likelihood(k, window, probabilities)
        for each in (*observers.values(), *bins.values()):
            each(k, window, probabilities)

    decided = predictor.decide(found, scan.grid, None, watch).labels
    reviews = {
        each: Review.of(observer.doubt, found.regions, decided, target, schema)
        for each, observer in observers.items()
    }
    body = found.subject.body
    middle = Midline.of(found.subject.image.grid, None if body is None else body.per_slice)
    true_sides, found_sides = (
        measure_sides(each, schema, middle) for each in (Volume(labels.data, scan.grid), decided)
    )
    return {
        "id": name,
        "log_loss": {str(each): value for each, value in likelihood.log_loss.items()},
        "volumes": {
            str(each): {
                structure: asdict(volumes)
                for structure, volumes in volumes_at(review, decided, labels, None).items()
            }
            for each, review in reviews.items()
        },
        "opinions": {name: reviews[1.0].opinions_ml(name) for name in reviews[1.0].volumes_ml},
        "bins": {
            str(each): {name: counts.tolist() for name, counts in one.bins.items()}
            for each, one in bins.items()
        },
        "sides": [
            [side.volumes_ml for side in (sides.right, sides.left)] if sides is not None else []
            for sides in (true_sides, found_sides)
        ],
        "errors": (decided.data[0] != labels.data[0]).sum((1, 2)).tolist(),
        "labelled": (decided.data[0] > 0).sum((1, 2)).tolist(),
        "entropy": {str(t): review.doubt.entropy_cm2.tolist() for t, review in reviews.items()},
    }


def records(predictor: Predictor, dataset: Path, file: Path) -> list[Record]:
    """The records of all labelled cases; those in the file are kept."""
    data = open_dataset(dataset)
    lines = file.read_text().splitlines() if file.exists() else []
    known = {record["id"]: record for record in map(json.loads, lines)}
    cases = labelled_cases(data, None)
    for case in cases:
        if case.id in known:
            continue
        scan, labels, _ = read_case(predictor, data, case)
        known[case.id] = record_of(predictor, scan, labels, case.id)
        with file.open("a") as opened:
            opened.write(json.dumps(known[case.id]) + "\n")
    return [known[case.id] for case in cases]


def seen_of(record: Mapping[str, Any]) -> Seen:
    """A record as the calibration takes it."""
    return Seen(
        volumes={
            float(each): {name: Volumes(**values) for name, values in one.items()}
            for each, one in record["volumes"].items()
        },
        log_loss={float(each): value for each, value in record["log_loss"].items()},
    )


def binomial(held: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of a proportion. Source: Clopper and Pearson, Biometrika 1934."""
    from scipy import stats

    outside = (1 - level) / 2
    low = stats.beta.ppf(outside, held, n - held + 1) if held else 0.0
    high = stats.beta.ppf(1 - outside, held + 1, n - held) if held < n else 1.0
    return float(low), float(high)


def coverage(pairs: Sequence[tuple[float, tuple[float, float] | None]]) -> dict[str, Any]:
    """How many intervals contain the truth, and how wide they are."""
    known = [(truth, ends) for truth, ends in pairs if ends is not None]
    held = sum(low <= truth <= high for truth, (low, high) in known)
    widths = [high - low for _, (low, high) in known]
    relative = [w / truth for w, (truth, _) in zip(widths, known, strict=True) if truth > 0]
    return {
        "n": len(known),
        "held": held,
        "interval": binomial(held, len(known)) if known else None,
        "median_width_ml": statistics.median(widths) if widths else None,
        "median_relative_width": statistics.median(relative) if relative else None,
        "too_low": sum(truth > high for truth, (_, high) in known),
        "too_high": sum(truth < low for truth, (low, _) in known),
    }


def student(volume_ml: float, opinions_ml: Sequence[float]) -> tuple[float, float] | None:
    """The prediction interval of one more opinion, as if opinions were independent.

    Source: Hahn and Meeker, Statistical intervals, 1991, 4.6.
    """
    from scipy import stats

    n = len(opinions_ml)
    if n < 2:
        return None
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
    margin = quantile * statistics.stdev(opinions_ml) * math.sqrt(1 + 1 / n)
    return max(0.0, volume_ml - margin), volume_ml + margin


def covered(held_out: Sequence[Record], choice: Mapping[str, Any]) -> dict[str, Any]:
    """The coverage of each kind of interval, for each structure and for the kidney of each side."""
    at = str(choice["temperature"])
    found: dict[str, Any] = {}
    for name, ends in choice["ends"].items():
        volumes = [Volumes(**record["volumes"][at][name]) for record in held_out]
        opinions = [record["opinions"][name] for record in held_out]
        each = list(zip(volumes, opinions, strict=True))
        plain = [Volumes(**record["volumes"]["1.0"][name]) for record in held_out]
        scaled = [scaled_interval(v.found_ml, v.scale_ml, ends) for v in volumes]
        found[name] = {
            "calibrated": coverage([(v.true_ml, e) for v, e in zip(volumes, scaled, strict=True)]),
            "doubt": coverage([(v.true_ml, doubt_interval(v.found_ml, v.scale_ml)) for v in plain]),
            "Student": coverage([(v.true_ml, student(v.found_ml, o)) for v, o in each]),
            "range": coverage(
                [
                    (v.true_ml, (min(v.found_ml, *o), max(v.found_ml, *o)) if len(o) > 1 else None)
                    for v, o in each
                ]
            ),
        }
        if name in ("kidney", "tumour"):
            found[name]["sides"] = coverage(_by_side(held_out, name, scaled))
    return found


def by_age(held_out: Sequence[Record], dataset: Path) -> dict[str, list[Record]]:
    """All patients; and children and adults, if the data set tells the ages and has both."""
    groups = {"all": list(held_out)}
    table = dataset / "patients.csv"
    if not table.is_file():
        return groups
    with table.open(newline="") as file:
        ages = {row["case"]: float(row["age_years"]) for row in csv.DictReader(file)}
    children = [record for record in held_out if ages[record["id"]] <= CHILD_YEARS]
    adults = [record for record in held_out if ages[record["id"]] > CHILD_YEARS]
    return {**groups, "children": children, "adults": adults} if children and adults else groups


def _by_side(
    held_out: Sequence[Record], name: str, scaled: Sequence[tuple[float, float]]
) -> list[tuple[float, tuple[float, float]]]:
    """The truth of each side with the structure, and its share of the interval as in `measure`."""
    pairs = []
    for record, (low, high) in zip(held_out, scaled, strict=True):
        true_sides, sides = record["sides"]
        total = sum(side[name] for side in sides)
        for truth, side in zip(true_sides, sides, strict=True):
            if side[name] > 0:
                share = math.sqrt(side[name] / total)
                margins = (share * (total - low), share * (high - total))
                ends = (max(0.0, side[name] - margins[0]), side[name] + margins[1])
                pairs.append((truth[name], ends))
    return pairs


def calibration_error(records: Sequence[Record], temperature: float) -> dict[str, Any]:
    """Expected calibration error: all voxels, and mean over patients; and the diagram."""
    found = {}
    for name in records[0]["bins"][str(temperature)]:
        each = [np.array(record["bins"][str(temperature)][name]) for record in records]
        pooled = np.sum(each, axis=0)
        per_patient = [_ece(one) for one in each if one[0].sum()]
        found[name] = {
            "ece": _ece(pooled),
            "patients": statistics.fmean(per_patient),
            "sd": statistics.stdev(per_patient),
            "voxels": pooled[0].tolist(),
            "probability": (pooled[1] / np.maximum(pooled[0], 1)).tolist(),
            "truth": (pooled[2] / np.maximum(pooled[0], 1)).tolist(),
        }
    return found


def _ece(bins: np.ndarray) -> float:
    return float(np.abs(bins[1] - bins[2]).sum() / bins[0].sum())


def listed(records: Sequence[Record], temperature: float) -> dict[str, Any]:
    """The share of all wrong voxels in the first tenth of the slices, by several lists."""
    shares: dict[str, list[float]] = {
        name: [] for name in ("entropy", "labelled", "random", "best")
    }
    for record in records:
        errors = np.array(record["errors"], dtype=float)
        if not errors.sum():
            continue
        count = math.ceil(SHARE * len(errors))
        orders = {
            "entropy": np.array(record["entropy"][str(temperature)]),
            "labelled": np.array(record["labelled"], dtype=float),
            "best": errors,
        }
        for name, values in orders.items():
            first = np.argsort(-values, kind="stable")[:count]
            shares[name].append(float(errors[first].sum() / errors.sum()))
        shares["random"].append(count / len(errors))
    better = [a - b for a, b in zip(shares["entropy"], shares["random"], strict=True)]
    return {
        **{
            name: {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}
            for name, values in shares.items()
        },
        "n": len(better),
        "better_than_random": sum(value > 0 for value in better),
    }


def draw(before: Mapping[str, Any], after: Mapping[str, Any], path: Path) -> None:
    """The reliability diagram of each structure, before and after the calibration."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(before), figsize=(4 * len(before), 4.2), layout="constrained"
    )
    for axis, name in zip(np.atleast_1d(axes), before, strict=True):
        axis.plot([0, 1], [0, 1], "-", color="0.7", lw=1)
        for label, found, style in (("before", before, "o--"), ("after", after, "s-")):
            kept = np.array(found[name]["voxels"]) > 0
            axis.plot(
                np.array(found[name]["probability"])[kept],
                np.array(found[name]["truth"])[kept],
                style,
                ms=4,
                label=f"{label}: ECE {found[name]['ece']:.4f}",
            )
        axis.set(xlabel="probability", title=name, xlim=(0, 1), ylim=(0, 1))
        axis.legend(loc="upper left", frameon=False)
    np.atleast_1d(axes)[0].set_ylabel("share of voxels that are")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A markdown table."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)] + [""]


COVERAGE_HEAD = (
    "structure",
    "interval",
    "held",
    "95 %",
    "median width ml",
    "of the true volume",
    "truth above, below",
)


def _covered_row(name: str, kind: str, one: Mapping[str, Any]) -> list[str]:
    low, high = one["interval"]
    share = one["median_relative_width"]
    return [
        name,
        kind,
        f"{one['held']} of {one['n']}, {one['held'] / one['n']:.0%}",
        f"{low:.0%}-{high:.0%}",
        f"{one['median_width_ml']:.1f}",
        "-" if share is None else f"{share:.0%}",
        f"{one['too_low']}, {one['too_high']}",
    ]


def text_of(result: Mapping[str, Any]) -> str:
    """The tables."""
    lines = [
        f"{result['calibration']} patients to calibrate, {result['held_out']} held out;"
        f" temperature {result['temperature']:g}",
        "",
    ]
    for group, coverage_of in result["coverage"].items():
        lines += [f"{group}, n = {result['patients'][group]}", ""]
        rows = [
            _covered_row(name, kind, one)
            for name, kinds in coverage_of.items()
            for kind, one in kinds.items()
            if one["n"]
        ]
        lines += table(COVERAGE_HEAD, rows)
    rows = []
    for name in result["before"]:
        cells = [
            f"{found[name]['ece']:.4f}; {found[name]['patients']:.4f} (SD {found[name]['sd']:.4f})"
            for found in (result["before"], result["after"])
        ]
        rows.append([name, *cells])
    lines += table(["structure", "ECE before: pooled; per patient", "after"], rows)
    first = result["slices"]
    rows = [
        [name, f"{first[name]['mean']:.3f} (SD {first[name]['sd']:.3f})"]
        for name in ("entropy", "labelled", "random", "best")
    ]
    title = f"share of errors in the first tenth of slices, n = {first['n']}"
    lines += table(["slices by", title], rows)
    lines.append(f"Better than random in {first['better_than_random']} of {first['n']}.")
    return "\n".join(lines) + "\n"


def choice_of(predictor: Predictor, calibration: Sequence[Record] | None) -> dict[str, Any]:
    """Temperature and ends by the patients of a calibration; None: those in the model file."""
    if calibration is not None:
        return {**chosen(list(map(seen_of, calibration))), "calibration": len(calibration)}
    known = predictor.intervals
    if known is None:
        raise SystemExit(f"{predictor.path} has no calibrated intervals: give --calibration")
    return {
        "temperature": known.temperature,
        "ends": known.ends,
        "calibration": known.cases,
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--calibration", type=Path, help="else that in the model file counts")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--picture", type=Path, help="else OUT/reliability.png")
    parser.add_argument("--only", choices=("calibration", "held_out"), help="segment these alone")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    predictor = load_predictor(asked.model, "cpu")
    both = {
        name: records(predictor, folder, asked.out / f"{name}.jsonl")
        for name, folder in (("calibration", asked.calibration), ("held_out", asked.held_out))
        if asked.only in (None, name) and folder is not None
    }
    if asked.only:
        return
    held_out = both["held_out"]
    choice = choice_of(predictor, both.get("calibration"))
    groups = by_age(held_out, asked.held_out)
    result = {
        "model": predictor.sha256,
        "level": LEVEL,
        **choice,
        "held_out": len(held_out),
        "patients": {name: len(group) for name, group in groups.items()},
        "coverage": {name: covered(group, choice) for name, group in groups.items()},
        "before": calibration_error(held_out, 1.0),
        "after": calibration_error(held_out, choice["temperature"]),
        "slices": listed(held_out, choice["temperature"]),
    }
    (asked.out / "uncertainty.json").write_text(json.dumps(result, indent=1))
    (asked.out / "uncertainty.md").write_text(text_of(result))
    picture = asked.picture or asked.out / "reliability.png"
    draw(result["before"], result["after"], picture)
    print(text_of(result))


if __name__ == "__main__":
    main()
