"""Evaluate predictions against references, in millimetres on the scan's own grid.

`kidseg.evaluate.protocols` defines structures and rules, `kidseg.metrics` the metrics, and
`kidseg.evaluate.pairs` matches predictions with references.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kidseg.errors import Finding, InputError
from kidseg.evaluate.pairs import Missing, Pair, Pairing, pair
from kidseg.evaluate.protocols import (
    KITS_TOLERANCE_MM,
    Protocol,
    ProtocolName,
    Structure,
    protocol_named,
)
from kidseg.evaluate.summary import (
    COLUMNS,
    METRICS,
    Row,
    Run,
    prepare_output,
    read_run,
    write_csv,
)
from kidseg.geometry import Grid
from kidseg.io import ReadOptions, read
from kidseg.io.atomic import write_json
from kidseg.labels import CystAs, unclear_labels
from kidseg.metrics import Measures, measure, union_box
from kidseg.provenance import provenance

__all__ = [
    "KITS_TOLERANCE_MM",
    "METRICS",
    "Protocol",
    "ProtocolName",
    "Row",
    "Run",
    "Structure",
    "evaluate",
    "protocol_named",
    "read_run",
    "score",
    "summarise",
]

Progress = Callable[[int, int], None]

# Grids that differ by more are different grids.
_SAME_GRID_MM = 1e-3
_OUTPUTS = ("summary.json", "cases.csv")
_NAMED = 8


def evaluate(
    pred: Path,
    ref: Path,
    out: Path,
    *,
    protocol: ProtocolName = "native",
    cyst: CystAs | None = None,
    missing: Missing = "error",
    cases: Collection[str] | None = None,
    overwrite: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score predicted label volumes and write `summary.json` and `cases.csv`.

    All problems of all cases are collected before anything is written. One case per job is in
    memory at a time.

    Args:
        pred: a folder of label volumes, or one label volume.
        ref: a data set, a folder of label volumes, or one label volume.
        out: folder for the results; created if it is missing.
        protocol: see `kidseg.evaluate.protocols`.
        cyst: what a cyst counts as; see `protocol_named`.
        missing: a reference without a prediction is an "error", or scored as "empty".
        cases: ids of the cases to score; all references by default.
        overwrite: replace existing results.
        jobs: threads.
        progress: called with (cases done, total cases).

    Returns:
        The content of `summary.json`; see `summarise` and `kidseg.provenance`. Its findings include
        those of `kidseg.labels.unclear_labels`.

    Raises:
        UsageError: "output-exists", an unknown protocol or setting.
        InputError: predictions and references do not match (see `pair`); "grid-mismatch",
            "unexpected-labels", "fractional-labels" or what `kidseg.io.read` refuses, for a single
            invalid case; "bad-cases" for several, each named.
        ResourceError: not enough memory or disk space.
    """
    pred, ref, out = Path(pred), Path(ref), Path(out)
    pairing = pair(pred, ref, missing=missing, cases=cases)
    rules = protocol_named(protocol, pairing.schema, cyst)
    prepare_output(out, _OUTPUTS, overwrite=overwrite)
    scored = _score_all(pairing, rules, jobs, progress, pred)
    rows = [row for case in scored for row in case.rows]
    unclear = () if pairing.schema is None else unclear_labels(pairing.schema, ref)
    of_cases = (finding for case in scored for finding in case.findings)
    findings = [*unclear, *pairing.findings, *of_cases]
    summary = summarise(rows, rules, findings) | provenance()
    if overwrite:
        (out / "summary.json").unlink(missing_ok=True)
    write_csv(out / "cases.csv", COLUMNS, (row.values() for row in rows), overwrite=overwrite)
    write_json(out / "summary.json", summary, overwrite=overwrite)
    return summary


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One evaluated case: a row per structure, and the findings of the readers."""

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]


def score(case: Pair, protocol: Protocol, ignore_label: int | None = None) -> Scored:
    """Read and evaluate one case.

    Voxels with `ignore_label` in the reference count as background in both.

    Raises:
        InputError: see `evaluate`.
    """
    known = dict(protocol.known)
    marked = known if ignore_label is None else known | {ignore_label: "ignored"}
    reference, grid, findings = _read_labels(case.reference, marked)
    if case.predicted is None:
        predicted = np.zeros_like(reference)
        note = f"case '{case.id}' has no prediction; it was scored as an empty prediction"
        findings += (Finding(code="missing-prediction", path=str(case.reference), cause=note),)
    else:
        predicted, found_grid, more = _read_labels(case.predicted, known)
        _check_same_grid(found_grid, grid, case)
        findings += more
    if ignore_label is not None:
        ignored = reference == ignore_label
        predicted, reference = (np.where(ignored, 0, labels) for labels in (predicted, reference))
    box = union_box(predicted, reference) or (slice(0, 1),) * 3
    predicted, reference = predicted[box], reference[box]
    grid = grid.crop([side.start for side in box], reference.shape)
    rows = []
    for structure in protocol.structures:
        found, wanted = _mask(predicted, structure), _mask(reference, structure)
        figures = measure(found, wanted, grid, structure.tolerance_mm)
        rows.append(_row(case, structure, figures, protocol))
    return Scored(rows=tuple(rows), findings=findings)


def summarise(
    rows: Sequence[Row], protocol: Protocol, findings: Sequence[Finding] = ()
) -> dict[str, Any]:
    """Means over cases, as plain data.

    For each structure and metric: "mean" and "sd" over "n" cases (null if there are too few);
    "n_empty", cases in which both masks are empty; "n_undefined", cases in which the metric is
    undefined although not both masks are empty (HD95 if one mask is empty). "sd" is the sample
    standard deviation, with n - 1. Volume errors are signed; "mean_absolute" is reported as well.
    """
    return {
        "protocol": protocol.name,
        "n_cases": len({row.case for row in rows}),
        "structures": {
            structure.name: {
                metric: _statistics([r for r in rows if r.structure == structure.name], metric)
                for metric in METRICS
            }
            for structure in protocol.structures
        },
        "rules": {
            "labels": {s.name: list(s.labels) for s in protocol.structures},
            "tolerance_mm": {s.name: s.tolerance_mm for s in protocol.structures},
            "both_empty": "dice and surface_dice are 1 and enter the mean"
            if protocol.empty_scores_one
            else "left out of the mean, counted in n_empty",
            "one_empty": "dice and surface_dice are 0; hd95_mm is left out, counted in n_undefined",
            "sd": "sample standard deviation (n - 1)",
        },
        "findings": [finding.as_dict() for finding in findings],
    }


def _score_all(
    pairing: Pairing, protocol: Protocol, jobs: int, progress: Progress | None, pred: Path
) -> list[Scored]:
    pairs = pairing.pairs
    done: dict[str, Scored] = {}
    failed: dict[str, InputError] = {}
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        waiting = {
            pool.submit(score, case, protocol, pairing.ignore_label): case.id for case in pairs
        }
        try:
            for count, future in enumerate(as_completed(waiting), start=1):
                try:
                    done[waiting[future]] = future.result()
                except InputError as error:
                    failed[waiting[future]] = error
                if progress:
                    progress(count, len(pairs))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        raise _all_failed([failed[case.id] for case in pairs if case.id in failed], pred)
    return [done[case.id] for case in pairs]


def _all_failed(errors: Sequence[InputError], pred: Path) -> InputError:
    if len(errors) == 1:
        return errors[0]
    more = f"; and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
    return InputError(
        f"{len(errors)} cases cannot be evaluated: " + "; ".join(map(str, errors[:_NAMED])) + more,
        path=pred,
        code="bad-cases",
        next_step="Nothing was written. Fix these files, or evaluate only the other cases.",
    )


def _read_labels(
    path: Path, known: Mapping[int, str]
) -> tuple[np.ndarray, Grid, tuple[Finding, ...]]:
    """Read labels (slices, rows, columns) as uint8, in canonical order; all must be known."""
    scan = read(path, ReadOptions(values="labels", nonfinite="refuse"))
    values = scan.volume.data[0].numpy()
    counts = _counts(values, path)
    unknown = {v: n for v, n in counts.items() if v != 0 and v not in known}
    if unknown:
        found = ", ".join(f"{v} in {n} voxels" for v, n in sorted(unknown.items())[:_NAMED])
        names = ", ".join(f"{i} {name}" for i, name in sorted(known.items()))
        raise InputError(
            f"unexpected labels: {found}; known labels are 0 background, {names}",
            path=path,
            code="unexpected-labels",
            next_step="Renumber the labels, or evaluate against the data set that defines them.",
        )
    return values.astype(np.uint8, copy=False), scan.volume.grid, scan.findings


def _counts(values: np.ndarray, path: Path) -> dict[int, int]:
    """{label: voxels}, counted slice by slice to save memory."""
    counts: dict[int, int] = {}
    for plane in values:
        if values.dtype == np.uint8:
            tally = np.bincount(plane.ravel())
            found = {int(v): int(tally[v]) for v in np.flatnonzero(tally)}
        else:
            labels, tally = np.unique(plane, return_counts=True)
            fractional = labels != np.rint(labels)
            if fractional.any():
                raise InputError(
                    f"contains fractional values, for example {labels[fractional][0]:g} in "
                    f"{tally[fractional][0]} voxels of a slice",
                    path=path,
                    code="fractional-labels",
                    next_step="Provide label volumes, not probabilities or interpolated labels.",
                )
            found = {int(v): int(n) for v, n in zip(labels, tally, strict=True)}
        for label, n in found.items():
            counts[label] = counts.get(label, 0) + n
    return counts


def _check_same_grid(found: Grid, wanted: Grid, case: Pair) -> None:
    if found.same_as(wanted, _SAME_GRID_MM):
        return
    cause = f"its grid is {found}, but that of the reference {case.reference} is {wanted}"
    if found.shape == wanted.shape:
        apart = float((found.centre_mm - wanted.centre_mm).norm())
        cause = f"its grid is displaced from that of {case.reference}: centres {apart:.4g} mm apart"
    raise InputError(
        cause,
        path=case.predicted,
        code="grid-mismatch",
        next_step="Save the prediction on the grid of its scan.",
    )


def _mask(labels: np.ndarray, structure: Structure) -> np.ndarray:
    belongs = np.zeros(256, bool)
    belongs[list(structure.labels)] = True
    mask: np.ndarray = belongs[labels]
    return mask


def _row(case: Pair, structure: Structure, found: Measures, protocol: Protocol) -> Row:
    figures: dict[str, float | None] = {metric: getattr(found, metric) for metric in METRICS}
    if found.both_empty:
        empty = 1.0 if protocol.empty_scores_one else None
        figures = {"dice": empty, "hd95_mm": None, "surface_dice": empty, "volume_error_ml": None}
    return Row(
        case=case.id,
        patient=case.patient,
        age_years=case.age_years,
        structure=structure.name,
        reference_ml=found.reference_ml,
        predicted_ml=found.predicted_ml,
        figures=figures,
    )


def _statistics(rows: Sequence[Row], metric: str) -> Mapping[str, float | int | None]:
    values = np.array([v for row in rows if (v := row.figures[metric]) is not None])
    statistics: dict[str, float | int | None] = {
        "mean": float(values.mean()) if values.size else None,
        "sd": float(values.std(ddof=1)) if values.size > 1 else None,
        "n": int(values.size),
        "n_empty": sum(row.both_empty for row in rows),
        "n_undefined": sum(row.figures[metric] is None and not row.both_empty for row in rows),
    }
    if metric == "volume_error_ml":
        statistics["mean_absolute"] = float(np.abs(values).mean()) if values.size else None
    return statistics
