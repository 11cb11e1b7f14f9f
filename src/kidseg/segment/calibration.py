"""Calibrate a model's decision: weights of its output probabilities, chosen on labelled scans."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from kidseg.cases import Case, Dataset, learned_labels, open_dataset
from kidseg.cases.air import air_findings
from kidseg.checkpoint import load_model, save_model
from kidseg.cohort.cohort import patient_dice
from kidseg.errors import Finding, InputError, KidsegWarning, UsageError
from kidseg.geometry import Volume
from kidseg.header import FOREGROUND, decision_of, read_header
from kidseg.io.atomic import check_writable
from kidseg.io.content import joint_sha256, sha256_of
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.model_file import find_model
from kidseg.provenance import provenance
from kidseg.segment.decision import BACKGROUND, output_names
from kidseg.segment.intervals import INTERVALS
from kidseg.segment.model_loading import load_predictor
from kidseg.segment.predictor import Predictor
from kidseg.segment.scans import options_for, read_scan
from kidseg.segment.truth import reference_of
from kidseg.store.files import source_files

__all__ = [
    "Choice",
    "calibrate",
    "choose",
    "grid_of",
    "joint_digest",
    "labelled_cases",
    "read_case",
    "trained_on",
]

_HARMLESS = {"anisotropic-voxels", "thick-slices"}

BACKGROUND_WEIGHTS = (0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0)
"""Steps of a factor of 2: Dice is flat around its maximum, and a finer grid would fit noise."""

TUMOUR_WEIGHTS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6)

SMOOTH_ML = 1.0
"""Of the Dice that chooses; see `patient_dice`. Without it one false voxel in a healthy
patient would count as much as a missed tumour, and decide alone if the patients are few."""

Decision = Mapping[str, float]
Dice = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The Dice of one decision.

    Attributes:
        weights: {output: weight}.
        score: mean over the regions that count of `dice`.
        dice: {region: mean over the cases}, smoothed by `SMOOTH_ML`.
        cases: the score of each case.
    """

    weights: Mapping[str, float]
    score: float
    dice: Mapping[str, float]
    cases: tuple[float, ...]


def calibrate(
    model: str | Path,
    dataset: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    cases: Sequence[str] | None = None,
    weights_of: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Choose weights of background and tumour by the mean Dice, and write a model; see `choose`.

    The network runs once for each case. The new model differs from the old in the entries
    "decision" and "calibration" of its header; `kidseg.pipeline.restore` applies the weights.
    Intervals of volumes that were calibrated for the old decision are left out.

    Args:
        model: a model file or a run folder.
        dataset: labelled scans that the model was not trained on, in any layout of
            `kidseg.cases`.
        out: the model file to write.
        device: see `choose_device`.
        cases: ids of the cases to use; None: all.
        weights_of: a calibrated model, such as the one that this one was fine-tuned from: keep its
            weights unless the mean Dice is higher without any. A few cases tell that much.
        overwrite: replace an existing file.
        progress: called with (cases done, total cases).

    Returns:
        {"model": {"path", "sha256"}, "decision", "foreground", "regions", "cases", "before",
        "after", "gain", "curve", "findings"}; see `Choice`.

    Raises:
        UsageError: "overlapping-regions": the outputs of the model are not exclusive; "no-labels":
            no case has labels; "unknown-case"; "output-exists"; "no-weights": the model of
            `weights_of` was not calibrated; "other-outputs": they are of other outputs.
        InputError: see `open_dataset`, `read_scan`; "other-labels": not those of the model.
        ModelError: see `load_predictor`.
    """
    source, out = find_model(model), Path(out)
    check_writable(out, overwrite=overwrite)
    predictor = _calibratable(source, device)
    data = open_dataset(dataset)
    used = labelled_cases(data, cases)
    grid = grid_of(predictor) if weights_of is None else _known_grid(predictor, weights_of)
    choices = _choices(predictor, data, used, grid, progress)
    best = choose(choices) if weights_of is None else max(choices, key=lambda each: each.score)
    before = choices[grid.index(dict.fromkeys(grid[0], 1.0))]
    file = load_model(source)
    digests = {case.id: joint_sha256(map(sha256_of, source_files(case))) for case in used}
    decision = {name: weight for name, weight in best.weights.items() if weight != 1.0}
    record = {
        "decision": decision,
        "foreground": FOREGROUND,
        "regions": list(_regions(predictor)),
        "cases": [case.id for case in used],
        "before": _facts(before),
        "after": _facts(best),
        "gain": _gain(before, best),
        "curve": [_facts(choice) for choice in choices],
    }
    calibration = {**record, "digest": joint_digest(digests), "of": file.sha256, **provenance()}
    kept = {name: value for name, value in file.header.items() if name != INTERVALS}
    header = {**kept, "decision": decision, "calibration": calibration}
    sha256 = save_model(out, file.parts, header, overwrite=overwrite)
    return {
        "model": {"path": str(out), "sha256": sha256},
        **record,
        "findings": [
            found.as_dict()
            for found in (*trained_on(file.header, digests, data.root), *at_edge(best, data.root))
        ],
    }


def grid_of(predictor: Predictor) -> list[dict[str, float]]:
    """The weights to try: of the background, and of outputs that write a tumour, if there are."""
    target, schema = predictor.method.target, predictor.schema
    names = output_names(target, schema)
    tumours = [
        name
        for name, label in zip(names[1:], target.writes, strict=True)
        if schema.meaning[label] == "tumour" and len(names) > 2
    ]
    others = TUMOUR_WEIGHTS if tumours else (1.0,)
    return [
        {BACKGROUND: background, **dict.fromkeys(tumours, tumour)}
        for background, tumour in product(BACKGROUND_WEIGHTS, others)
    ]


def _known_grid(predictor: Predictor, model: str | Path) -> list[dict[str, float]]:
    """The weights of another model, and none, which a calibration may have left; raises as it."""
    path = find_model(model)
    header = read_header(path)
    known = decision_of(header, path)
    calibrated = dict(header.get("calibration") or {}).get("foreground") == FOREGROUND
    if not known and not calibrated:
        raise UsageError(
            "its decision was not calibrated",
            path=path,
            code="no-weights",
            next_step="Leave it out: the weights are then chosen from all that are tried.",
        )
    if unknown := set(known) - set(output_names(predictor.method.target, predictor.schema)):
        raise UsageError(
            f"it has weights of {', '.join(sorted(unknown))}, which the model to calibrate has not",
            path=path,
            code="other-outputs",
            next_step="Name the model that this one was fine-tuned from.",
        )
    none = dict.fromkeys({**grid_of(predictor)[0], **known}, 1.0)
    return [{**none, **known}, none] if known else [none]


def choose(choices: Sequence[Choice]) -> Choice:
    """The weights nearest to 1, on a logarithmic scale, that no others are clearly better than.

    Clearly: the best mean score is higher by more than the standard error of the difference, case
    by case. So a few cases do not move a decision by chance.

    Source: the one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984).
    """
    best = max(choices, key=lambda choice: round(choice.score, 9))

    def is_as_good(choice: Choice) -> bool:
        lost = _differences(choice, best)
        error = statistics.stdev(lost) / math.sqrt(len(lost)) if len(lost) > 1 else 0.0
        return statistics.fmean(lost) <= error + 1e-6

    def distance(choice: Choice) -> tuple[float, float]:
        away = sum(abs(math.log(weight)) for weight in choice.weights.values())
        return round(away, 9), -choice.score

    return min(filter(is_as_good, choices), key=distance)


def at_edge(choice: Choice, path: Path) -> tuple[Finding, ...]:
    """A finding if a chosen weight is the smallest or largest that is tried."""
    tried = {
        name: BACKGROUND_WEIGHTS if name == BACKGROUND else TUMOUR_WEIGHTS
        for name in choice.weights
    }
    ends = [
        f"{name} {weight:g} ({'smallest' if weight == min(tried[name]) else 'largest'})"
        for name, weight in choice.weights.items()
        if weight in (min(tried[name]), max(tried[name]))
    ]
    if not ends:
        return ()
    return (
        Finding(
            code="calibrated-at-edge",
            path=str(path),
            cause=f"the best weight is at the end of those that are tried: {', '.join(ends)}; one"
            " beyond may be better",
            next_step="Look at what the model misses or finds falsely in these scans: a weight so"
            " far from 1 makes up for a training on other ones.",
        ),
    )


def _calibratable(path: Path, device: str) -> Predictor:
    """The predictor of a model whose outputs are exclusive; raises as `calibrate`."""
    predictor = load_predictor(path, device)
    if not predictor.method.target.exclusive:
        raise UsageError(
            "its outputs are regions that overlap, each with a threshold of its own",
            path=path,
            code="overlapping-regions",
            next_step="Only models with exclusive labels can be calibrated.",
        )
    return predictor


def _choices(
    predictor: Predictor,
    data: Dataset,
    cases: Sequence[Case],
    grid: Sequence[Decision],
    progress: Callable[[int, int], None] | None,
) -> list[Choice]:
    """The Dice of each decision in the cases."""
    tables: list[list[Dice]] = []
    for k, case in enumerate(cases):
        tables.append(list(_dice_of_case(predictor, data, case, grid)))
        if progress is not None:
            progress(k + 1, len(cases))
    regions = _regions(predictor)
    return [
        _choice(weights, dice, regions)
        for weights, dice in zip(grid, zip(*tables, strict=True), strict=True)
    ]


def _dice_of_case(
    predictor: Predictor, data: Dataset, case: Case, grid: Sequence[Decision]
) -> Iterator[Dice]:
    """The Dice of each region in one case, for each decision."""
    scan, labels, ignore = read_case(predictor, data, case)
    found = predictor.find(scan, case.id)
    for decided in predictor.decide_by(found, scan.grid, grid):
        dice = patient_dice(decided.labels, labels, predictor.schema, ignore, smooth_ml=SMOOTH_ML)
        yield {name: value for name, value in dice.items() if value is not None}


def read_case(
    predictor: Predictor, data: Dataset, case: Case
) -> tuple[Volume, Volume, Volume | None]:
    """The scan, its reference labels with the numbers of the model, and the voxels to ignore.

    What the reader of the scan noticed becomes a `KidsegWarning`.

    Raises:
        InputError: see `read_scan`, `reference_of`.
    """
    channels = predictor.method.plan.channels
    options = options_for(channels, None)
    learned = learned_labels(data, predictor.method.config.cohort.cyst)
    reference = reference_of(case, data, learned, predictor.schema)
    files = read_scan(case.images[0], channels, options, case)
    scan = files.volume
    labels, ignore = reference.on(scan.grid, options)
    findings = [found for found in files.findings if found.code not in _HARMLESS]
    if options.values == "ct":
        findings += air_findings(labels, scan, predictor.schema, reference.path, files.first.path)
    for finding in findings:
        warnings.warn(str(finding), KidsegWarning, stacklevel=2)
    return scan, labels, ignore


def labelled_cases(data: Dataset, cases: Sequence[str] | None) -> list[Case]:
    """The cases with labels; of these ids, if they are given.

    Raises:
        UsageError: "unknown-case".
        InputError: "no-labels".
    """
    if unknown := set(cases or ()) - set(data.by_id):
        raise UsageError(
            f"there is no case {', '.join(sorted(unknown))}",
            path=data.root,
            code="unknown-case",
            next_step="Name cases of this data set, or leave --case out.",
        )
    used = [c for c in data.cases if c.labels is not None and (cases is None or c.id in cases)]
    if not used:
        raise InputError(
            "no case has labels",
            path=data.root,
            code="no-labels",
            next_step="Give labelled scans that the model was not trained on.",
        )
    return used


def _regions(predictor: Predictor) -> tuple[str, ...]:
    """Regions whose mean Dice chooses: as in training, those that select the best epoch."""
    known = [
        n for n, ids in predictor.schema.regions.items() if predictor.method.target.expresses(ids)
    ]
    usual = [name for name in KIDNEY_TUMOUR.regions if name != "kidney"]
    chosen = predictor.method.config.cohort.selection or usual
    return tuple(chosen) if set(chosen) <= set(known) else tuple(known)


def _choice(weights: Decision, cases: Sequence[Dice], regions: Sequence[str]) -> Choice:
    """The Dice of a decision over all cases."""
    dice = {name: statistics.fmean(case[name] for case in cases) for name in cases[0]}
    return Choice(
        weights=weights,
        score=statistics.fmean(dice[name] for name in regions),
        dice=dice,
        cases=tuple(statistics.fmean(case[name] for name in regions) for case in cases),
    )


def _facts(choice: Choice) -> dict[str, Any]:
    return {
        "weights": dict(choice.weights),
        "score": round(choice.score, 6),
        "dice": {name: round(value, 6) for name, value in choice.dice.items()},
    }


def _gain(before: Choice, after: Choice) -> dict[str, Any]:
    """The paired difference of the cases' scores: mean, sample standard deviation, n."""
    differences = _differences(before, after)
    return {
        "mean": round(statistics.fmean(differences), 6),
        "sd": round(statistics.stdev(differences), 6) if len(differences) > 1 else None,
        "n": len(differences),
    }


def _differences(before: Choice, after: Choice) -> list[float]:
    return [b - a for a, b in zip(before.cases, after.cases, strict=True)]


def joint_digest(digests: Mapping[str, str]) -> str:
    """As that of a training set; see `kidseg.train.record.Cases`."""
    return hashlib.sha256(json.dumps(list(digests.items())).encode()).hexdigest()


def trained_on(
    header: Mapping[str, Any], digests: Mapping[str, str], path: Path
) -> tuple[Finding, ...]:
    """The finding "calibrated-on-training" if the training cases are among the calibration's."""
    names = header.get("plan", {}).get("training", [])
    if not names or set(names) - set(digests):
        return ()
    if joint_digest({name: digests[name] for name in names}) != header["training_set"]["digest"]:
        return ()
    return (
        Finding(
            code="calibrated-on-training",
            path=str(path),
            cause="the cases contain those that the model was trained on, where it is surer than"
            " on others",
            next_step="Calibrate it on other patients.",
        ),
    )
