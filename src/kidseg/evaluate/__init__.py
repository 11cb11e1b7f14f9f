"""Evaluate predictions against references, in millimetres on the scan's own grid.

`kidseg.evaluate.protocols` defines structures and rules, `kidseg.metrics` the metrics;
`kidseg.evaluate.pairs` matches predictions with references, `kidseg.evaluate.volumes` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from kidseg.cases.roi_rules import RoiRules
from kidseg.cases.scan_files import scans_of_cases
from kidseg.csv_table import csv_text
from kidseg.errors import BatchError, Finding, InputError
from kidseg.evaluate.pairs import Missing, Pair, Pairing, pair
from kidseg.evaluate.protocols import (
    KITS_TOLERANCE_MM,
    Protocol,
    ProtocolName,
    Structure,
    protocol_named,
)
from kidseg.evaluate.score_page import PAGE, draw_pair, score_page
from kidseg.evaluate.summary import (
    COLUMNS,
    METRICS,
    Row,
    Run,
    prepare_output,
    read_run,
    write_outputs,
)
from kidseg.evaluate.volumes import KnownLabels, read_pair
from kidseg.io.output import check_output_folder
from kidseg.labels import CystAs, LabelSchema, unclear_labels
from kidseg.metrics import Measures, dice, measure, union_box
from kidseg.provenance import provenance
from kidseg.report.cohort_page import Picture

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

_OUTPUTS = ("summary.json", "cases.csv", PAGE)
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
    images: Path | None = None,
    rules: RoiRules | None = None,
    overwrite: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score predicted label volumes; write `summary.json`, `cases.csv` and `cohort.html`.

    A case whose files cannot be scored does not stop the others: all is written without it, the
    summary names it, and the call ends with an error. One case per job is in memory at a time.

    Args:
        pred: a folder of label volumes, or one label volume.
        ref: a data set, a folder of label volumes, or one label volume.
        out: folder for the results; created if it is missing.
        protocol: see `kidseg.evaluate.protocols`.
        cyst: what a cyst counts as; see `protocol_named`.
        missing: a reference without a prediction is an "error", or scored as "empty".
        cases: ids of the cases to score; all references by default.
        images: a data set or a folder with the scans of the cases, for the pictures in
            `cohort.html`; by default those of the reference, if it is a data set.
        rules: for the structures of DICOM annotations; by default the data set's, or the usual.
        overwrite: replace existing results.
        jobs: threads.
        progress: called with (cases done, total cases).

    Returns:
        The content of `summary.json`; see `summarise` and `kidseg.provenance`. Its findings include
        the errors of cases, and those of `kidseg.labels.unclear_labels`.

    Raises:
        UsageError: "output-exists", "other-folder" (`out` is a data set, a run, ...), an unknown
            protocol or setting.
        InputError: predictions and references do not match (see `pair`); see `scans_of_cases`; no
            case can be scored: see `read_pair`, or for several "bad-cases", which names each.
        BatchError: "cases-failed": some cases could not be scored; the others are written.
        ResourceError: not enough memory or disk space.
    """
    pred, ref, out = Path(pred), Path(ref), Path(out)
    pairing = pair(pred, ref, missing=missing, cases=cases, rules=rules)
    if images is not None:
        pairing = _with_images(pairing, Path(images))
    schema = pairing.numbering.schema
    scoring = protocol_named(protocol, schema, cyst)
    check_output_folder(out, "scores")
    prepare_output(out, _OUTPUTS, overwrite=overwrite)
    scored, failed = _score_all(pairing, scoring, jobs, progress)
    if not scored:
        raise _all_failed(list(failed.values()), pred)
    rows = [row for case in scored for row in case.rows]
    unclear = () if schema is None else unclear_labels(schema, ref)
    of_cases = (finding for case in scored for finding in case.findings)
    errors = [error.as_finding() for error in failed.values()]
    findings = [*errors, *unclear, *pairing.findings, *of_cases]
    summary = summarise(rows, scoring, findings) | {"not_evaluated": list(failed)} | provenance()
    pictures = {case.rows[0].case: case.picture for case in scored if case.rows}
    _write(out, rows, pictures, summary, overwrite=overwrite)
    if failed:
        raise _some_failed(failed, len(pairing.pairs), out)
    return summary


def _write(
    out: Path,
    rows: Sequence[Row],
    pictures: Mapping[str, Picture],
    summary: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Write the three files."""
    texts = {
        "cases.csv": csv_text(COLUMNS, (row.values() for row in rows)),
        PAGE: score_page(rows, pictures, summary),
    }
    write_outputs(out / "summary.json", summary, texts, overwrite=overwrite)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One evaluated case: a row per structure, the findings of the readers, and a picture."""

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    picture: Picture


def score(case: Pair, protocol: Protocol, known: KnownLabels) -> Scored:
    """Read and evaluate one case.

    Ignored voxels of the reference count as background in both.

    Raises:
        InputError: see `evaluate`.
    """
    labels = read_pair(case, known)
    reference, predicted, findings = labels.reference, labels.predicted, labels.findings
    if predicted is None:
        predicted = np.zeros_like(reference)
        note = f"case '{case.id}' has no prediction; it was scored as an empty prediction"
        findings += (Finding(code="missing-prediction", path=str(case.reference), cause=note),)
    if known.ignore_label is not None:
        ignored = reference == known.ignore_label
        predicted, reference = (np.where(ignored, 0, part) for part in (predicted, reference))
    picture = draw_pair(case, replace(labels, reference=reference), predicted, known.names)
    box = union_box(predicted, reference) or (slice(0, 1),) * 3
    predicted, reference = predicted[box], reference[box]
    grid = labels.grid.crop([side.start for side in box], reference.shape)
    findings += _exchanged(case, predicted, reference, known)
    rows = []
    for structure in protocol.structures:
        found, wanted = _mask(predicted, structure), _mask(reference, structure)
        figures = measure(found, wanted, grid, structure.tolerance_mm)
        rows.append(_row(case, structure, figures, protocol))
    return Scored(rows=tuple(rows), findings=findings, picture=picture)


def _exchanged(
    case: Pair, predicted: np.ndarray, reference: np.ndarray, known: KnownLabels
) -> tuple[Finding, ...]:
    """A finding if kidney and tumour agree better, and well, with the other one's reference."""
    masks = [
        [
            np.isin(part, [n for n, meaning in known.meanings.items() if meaning == one])
            for one in ("kidney", "tumour")
        ]
        for part in (predicted, reference)
    ]
    (kidney, tumour), (true_kidney, true_tumour) = masks
    crossed = min(_dice(kidney, true_tumour), _dice(tumour, true_kidney))
    if crossed < 0.5 or crossed <= max(_dice(kidney, true_kidney), _dice(tumour, true_tumour)):
        return ()
    cause = f"kidney and tumour of case '{case.id}' agree with tumour and kidney of the reference"
    step = "Check that the numbers of the labels are not exchanged in one of them."
    path = str(case.predicted or case.reference)
    return (Finding(code="exchanged-labels", path=path, cause=cause, next_step=step),)


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    """As `dice`; 0 if both masks are empty."""
    return dice(one, other) or 0.0


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


def _with_images(pairing: Pairing, folder: Path) -> Pairing:
    images = scans_of_cases(folder, {one.id for one in pairing.pairs})
    pairs = tuple(replace(one, image=images.get(one.id)) for one in pairing.pairs)
    return replace(pairing, pairs=pairs)


def _score_all(
    pairing: Pairing, protocol: Protocol, jobs: int, progress: Progress | None
) -> tuple[list[Scored], dict[str, InputError]]:
    """The scores of the cases, and {case: why it has none} of the others."""
    pairs, known = pairing.pairs, _known(pairing, protocol)
    done: dict[str, Scored] = {}
    failed: dict[str, InputError] = {}
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        waiting = {pool.submit(score, case, protocol, known): case.id for case in pairs}
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
    return (
        [done[case.id] for case in pairs if case.id in done],
        {case.id: failed[case.id] for case in pairs if case.id in failed},
    )


def _known(pairing: Pairing, protocol: Protocol) -> KnownLabels:
    numbering = pairing.numbering
    meanings = dict(LabelSchema.from_names(protocol.known).meaning)
    if numbering.schema is not None:
        meanings |= numbering.schema.meaning  # its regions may tell more than its names
    return KnownLabels(
        names=protocol.known,
        meanings=meanings,
        ignore_label=numbering.ignore_label,
        by_number=pairing.by_number,
        stated=numbering.stated,
    )


def _all_failed(errors: Sequence[InputError], pred: Path) -> InputError:
    if len(errors) == 1:
        return errors[0]
    return InputError(
        f"none of {len(errors)} cases can be evaluated: {_listed(errors)}",
        path=pred,
        code="bad-cases",
        next_step="Nothing was written. Fix these files.",
    )


def _some_failed(failed: Mapping[str, InputError], total: int, out: Path) -> BatchError:
    return BatchError(
        f"{len(failed)} of {total} cases could not be evaluated; the means are those of the others:"
        f" {_listed(list(failed.values()))}",
        path=out,
        code="cases-failed",
        next_step="Fix these files and evaluate again with --overwrite.",
    )


def _listed(errors: Sequence[InputError]) -> str:
    more = f"; and {len(errors) - _NAMED} more" if len(errors) > _NAMED else ""
    return "; ".join(map(str, errors[:_NAMED])) + more


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
        time_point=case.time_point,
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
