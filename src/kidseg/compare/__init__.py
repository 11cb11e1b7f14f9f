"""Compare evaluated runs by paired statistics.

For every pair of runs, structure and metric: the mean difference with a bootstrap interval, wins,
ties and losses, and the Wilcoxon signed-rank test. Pairs are patients: both runs' figures are
averaged over the cases of a patient for which both have a figure, so that each patient counts once.
A difference is the first run's figure minus the second's; volume errors are compared by absolute
value. Age bands are reported with intervals and counts, but not tested.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import combinations
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from kidseg.compare.compare_page import comparison_page
from kidseg.compare.compare_text import ALL, as_markdown
from kidseg.compare.statistics import (
    CONFIDENCE,
    FEWEST_PAIRS,
    N_RESAMPLES,
    bootstrap_interval,
    holm,
    signed_rank,
)
from kidseg.csv_table import csv_text
from kidseg.errors import InputError, UsageError, quoted
from kidseg.evaluate import METRICS, Row, Run, read_run
from kidseg.evaluate.score_page import PAGE
from kidseg.evaluate.summary import prepare_output, write_outputs
from kidseg.io.output import check_output_folder
from kidseg.provenance import provenance
from kidseg.splits import age_band

__all__ = ["Comparison", "compare", "holm"]

_OUTPUTS = ("compare.json", "compare.csv", "compare.md", "compare.html")
_LARGER_IS_BETTER = {"dice": True, "hd95_mm": False, "surface_dice": True, "volume_error_ml": False}
# Figures are rounded to this: far above rounding errors of a mean, far below relevance.
_DECIMALS = 10
# Reference volumes of a case with a larger relative difference are different references.
_SAME_VOLUME = 1e-6

_RULES = {
    "patients": "each counts once: both runs' figures are averaged over those of its cases that "
    "both have a figure for",
    "difference": "first run minus second; volume errors by absolute value",
    "interval": f"{CONFIDENCE:.0%} bootstrap of the mean difference, {N_RESAMPLES} resamples of "
    f"patients, bias-corrected and accelerated (BCa); none for fewer than {FEWEST_PAIRS}, "
    "which cannot determine one",
    "p": "Wilcoxon signed-rank test, two-sided; zero differences ranked, then dropped (Pratt)",
    "p_holm": "Holm's correction over pairs of runs and structures, for each metric",
    "strata": "described, not tested; a patient is in that of its youngest case",
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison of two runs by one metric of one structure, in one stratum of patients.

    Attributes:
        a: name of the first run.
        b: name of the second.
        metric: "volume_error_ml" means its absolute value.
        structure: as the protocol names it.
        stratum: "all", or an age band.
        n: pairs, one per patient.
        n_left_out: patients without a case for which both runs have a figure.
        mean_a: mean over the pairs; None without pairs, like the next five.
        mean_b: likewise.
        mean_difference: of a minus b.
        median_difference: likewise.
        low: end of the interval of the mean difference; None for fewer than `FEWEST_PAIRS` pairs.
        high: likewise.
        wins: pairs in which a is better.
        ties: pairs in which they are equal.
        losses: pairs in which b is better.
        p: of the signed-rank test; None if not tested.
        p_holm: p corrected for multiple testing.
        why_no_p: the reason if p is None.
    """

    a: str
    b: str
    metric: str
    structure: str
    stratum: str
    n: int
    n_left_out: int
    mean_a: float | None = None
    mean_b: float | None = None
    mean_difference: float | None = None
    median_difference: float | None = None
    low: float | None = None
    high: float | None = None
    wins: int = 0
    ties: int = 0
    losses: int = 0
    p: float | None = None
    p_holm: float | None = None
    why_no_p: str = ""


def compare(
    runs: Sequence[Path], out: Path, *, seed: int = 0, overwrite: bool = False
) -> dict[str, Any]:
    """Compare evaluated runs pair by pair; write `compare.json`, `.csv`, `.md` and `.html`.

    Patients and ages of the cases are taken from the first run of each pair.

    Args:
        runs: at least two output folders of `evaluate`, with the same protocol and references.
        out: folder for the results; created if it is missing.
        seed: of the bootstrap; equal seeds give equal bytes, but for the date.
        overwrite: replace existing results.

    Returns:
        The content of `compare.json`: "protocol", "runs", "pairs" (with the cases of only one run,
        and the number of patients of the common cases), "comparisons" (each a
        `Comparison`), "seed", "rules", and the versions, host and date of `provenance`.

    Raises:
        UsageError: "too-few-runs", "same-run", "output-exists".
        InputError: "not-evaluated", "damaged-table"; "different-protocols",
            "different-references" or "no-common-cases": the runs cannot be compared.
    """
    paths, out = [Path(run) for run in runs], Path(out)
    _check_distinct(paths)
    check_output_folder(out, "scores")
    prepare_output(out, _OUTPUTS, overwrite=overwrite)
    read = [read_run(path) for path in paths]
    _check_same_protocol(read)
    named = dict(zip(_names(paths), read, strict=True))
    found: list[Comparison] = []
    pairs = []
    for a, b in combinations(named.items(), 2):
        pairs.append(_common(a, b))
        found += _compare_pair(a, b, seed)
    result = {
        "protocol": read[0].summary["protocol"],
        "runs": [_described(name, run) for name, run in named.items()],
        "pairs": pairs,
        "comparisons": [asdict(one) for one in _corrected(found)],
        "seed": seed,
        "rules": _RULES,
        **provenance(),
    }
    pages = {name: run.path / PAGE for name, run in named.items()}
    about = [f"{result['protocol']} protocol. Paired statistics: compare.md."]
    page = comparison_page("Comparison", named, pages, out, about=about)
    _write(out, result, page, overwrite=overwrite)
    return result


def _described(name: str, run: Run) -> dict[str, Any]:
    """A run, with its cases that could not be evaluated, and how many findings of each code."""
    failed = list(run.summary.get("not_evaluated", ()))
    findings = Counter(one["code"] for one in run.summary.get("findings", ()))
    path = str(run.path)
    return {"name": name, "path": path, "not_evaluated": failed, "findings": dict(findings)}


def _common(a: tuple[str, Run], b: tuple[str, Run]) -> dict[str, Any]:
    """The cases of a pair of runs.

    Raises:
        InputError: "no-common-cases".
    """
    in_a, in_b = ({row.case for row in run.rows} for _, run in (a, b))
    if not in_a & in_b:
        raise InputError(
            f"no case in common with {a[1].path}",
            path=b[1].path,
            code="no-common-cases",
            next_step="Compare runs that were evaluated on the same cases.",
        )
    return {
        "a": a[0],
        "b": b[0],
        "n_common": len(in_a & in_b),
        "n_patients": len({_patient(row) for row in a[1].rows if row.case in in_b}),
        "only_a": sorted(in_a - in_b),
        "only_b": sorted(in_b - in_a),
    }


def _compare_pair(a: tuple[str, Run], b: tuple[str, Run], seed: int) -> list[Comparison]:
    rows_b = {(row.case, row.structure): row for row in b[1].rows}
    both = [(row, rows_b[k]) for row in a[1].rows if (k := (row.case, row.structure)) in rows_b]
    _check_same_references(both, a[1], b[1])
    found = []
    for metric in METRICS:
        for structure in a[1].summary["structures"]:
            here = [(p, q) for p, q in both if p.structure == structure]
            for stratum, members in _strata(here).items():
                key = (a[0], b[0], metric, structure, stratum)
                found.append(_compared(key, members, seed))
    return found


def _compared(
    key: tuple[str, str, str, str, str], members: Sequence[tuple[Row, Row]], seed: int
) -> Comparison:
    a, b, metric, structure, stratum = key
    pairs = _by_patient(members, metric)
    empty = Comparison(
        a=a,
        b=b,
        metric=metric,
        structure=structure,
        stratum=stratum,
        n=len(pairs),
        n_left_out=len({_patient(row) for row, _ in members}) - len(pairs),
        why_no_p="no pairs" if stratum == ALL else "strata are not tested",
    )
    if not len(pairs):
        return empty
    difference = np.round(pairs[:, 0] - pairs[:, 1], _DECIMALS)
    better = difference if _LARGER_IS_BETTER[metric] else -difference
    names = "\n".join(key).encode(errors="surrogateescape")
    low, high = bootstrap_interval(difference, [seed, crc32(names)])
    p, why = signed_rank(difference) if stratum == ALL else (None, empty.why_no_p)
    return replace(
        empty,
        mean_a=float(pairs[:, 0].mean()),
        mean_b=float(pairs[:, 1].mean()),
        mean_difference=float(difference.mean()),
        median_difference=float(np.median(difference)),
        low=low,
        high=high,
        wins=int((better > 0).sum()),
        ties=int((better == 0).sum()),
        losses=int((better < 0).sum()),
        p=p,
        why_no_p=why,
    )


def _by_patient(members: Sequence[tuple[Row, Row]], metric: str) -> np.ndarray:
    """(patients, 2): mean of each patient in each run, over the cases with figures in both."""
    known: dict[str, list[tuple[float, float]]] = {}
    for row, other in members:
        a, b = row.figures[metric], other.figures[metric]
        if a is not None and b is not None:
            pair = (abs(a), abs(b)) if metric == "volume_error_ml" else (a, b)
            known.setdefault(_patient(row), []).append(pair)
    return np.array([np.mean(pairs, axis=0) for pairs in known.values()]).reshape(-1, 2)


def _patient(row: Row) -> str:
    """The patient of a case; a case without one is its own patient."""
    return row.patient or row.case


def _corrected(found: Sequence[Comparison]) -> list[Comparison]:
    """Add Holm's correction over all tests of a metric."""
    corrected = list(found)
    for metric in METRICS:
        tested = [i for i, one in enumerate(found) if one.metric == metric and one.p is not None]
        for i, p in zip(tested, holm([found[i].p or 0.0 for i in tested]), strict=True):
            corrected[i] = replace(found[i], p_holm=p)
    return corrected


def _strata(members: Sequence[tuple[Row, Row]]) -> dict[str, list[tuple[Row, Row]]]:
    """All cases, and if ages are known the cases of each age band, youngest first.

    All cases of a patient are in the band of the youngest one, so that bands do not share patients.
    """
    strata = {ALL: list(members)}
    youngest: dict[str, float] = {}
    for row, _ in members:
        if row.age_years is not None:
            known = youngest.get(_patient(row), row.age_years)
            youngest[_patient(row)] = min(known, row.age_years)
    if youngest:
        for pair in sorted(members, key=lambda m: youngest.get(_patient(m[0]), np.inf)):
            strata.setdefault(age_band(youngest.get(_patient(pair[0]))), []).append(pair)
    return strata


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest distinct endings of the paths."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _check_distinct(paths: Sequence[Path]) -> None:
    if len(paths) < 2:
        raise UsageError(
            "a comparison requires at least two evaluated folders",
            code="too-few-runs",
            next_step="Provide two or more output folders of kidseg evaluate.",
        )
    resolved = [path.resolve() for path in paths]
    for path in paths:
        if resolved.count(path.resolve()) > 1:
            raise UsageError(
                "listed twice",
                path=path,
                code="same-run",
                next_step="Name each evaluated folder once, at least two different ones.",
            )


def _check_same_protocol(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for key in ("protocol", "rules"):
            found = _difference(key, first.summary[key], run.summary[key])
            if found is not None:
                name, was, now = found
                raise InputError(
                    f"evaluated with {name} {now}, but {first.path} with {was}",
                    path=run.path,
                    code="different-protocols",
                    next_step="Evaluate both with the same protocol and settings.",
                )


def _difference(name: str, a: Any, b: Any) -> tuple[str, str, str] | None:
    """(name, text of a, text of b) of the first rule that differs; None if all are equal."""
    if a == b:
        return None
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in (*a, *(key for key in b if key not in a)):
            if found := _difference(f"{name}.{key}", a.get(key), b.get(key)):
                return found
    was, now = ("nothing" if one is None else quoted(json.dumps(one)) for one in (a, b))
    return name, was, now


def _check_same_references(both: Sequence[tuple[Row, Row]], a: Run, b: Run) -> None:
    for p, q in both:
        if not np.isclose(p.reference_ml, q.reference_ml, rtol=_SAME_VOLUME, atol=0.0):
            raise InputError(
                f"the reference of case '{p.case}' has {q.reference_ml:.6g} ml of {p.structure}, "
                f"but {p.reference_ml:.6g} ml in {a.path}: the references differ",
                path=b.path,
                code="different-references",
                next_step="Evaluate both runs against the same references.",
            )


def _write(out: Path, result: Mapping[str, Any], page: str, *, overwrite: bool) -> None:
    columns = [field.name for field in fields(Comparison)]
    rows = ([one[name] for name in columns] for one in result["comparisons"])
    texts = {
        "compare.csv": csv_text(columns, rows),
        "compare.md": as_markdown(result),
        "compare.html": page,
    }
    write_outputs(out / "compare.json", result, texts, overwrite=overwrite)
