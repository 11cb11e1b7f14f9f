"""Split patients into folds or a test set, stratified by age and side.

Patients are sorted by stratum (age band, then side of the tumour; unknown is a separate stratum),
in random order within each stratum. They are then assigned in this order: to the folds in turn, or
every n-th to the test set. This guarantees:

- the folds partition the patients, and their sizes differ by at most one patient;
- the number of patients of a stratum, or of an age band, differs between folds by at most one;
- in a test set it differs from its proportional share by less than one;
- the result depends only on the seed, the patients and their metadata: not on the order of the
  cases, the machine or the version of a random number generator.

The unit is the patient. Cases of one patient stay together, so folds may differ more in cases.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kidseg.cases import Case
from kidseg.errors import InputError, KidsegWarning, UsageError

__all__ = [
    "AGE_BANDS_YEARS",
    "Holdout",
    "Split",
    "age_band",
    "holdout",
    "split",
    "stratum",
    "write_splits_json",
]

AGE_BANDS_YEARS = (0.0, 1.0, 2.0, 5.0, 10.0, 16.0)
"""Lower limits of the age bands; the last band is open.

The bands widen with age because growth slows down: a kidney grows 1.9 cm in the first year and
0.22 cm in each further year (Rosenbaum 1984), and most Wilms tumours are found before 5 years.
From 16 years the body is that of an adult.
"""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Case ids of one fold, sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """Case ids for development and for testing, sorted."""

    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True)
class _Patient:
    id: str
    cases: tuple[str, ...]
    stratum: tuple[str, str]


def age_band(age_years: float | None) -> str:
    """The band of an age, such as "2-5 years"; "unknown" for None.

    Raises:
        ValueError: negative or NaN.
    """
    if age_years is None:
        return "unknown"
    if not age_years >= 0:
        raise ValueError(f"an age must be at least 0 years, not {age_years}")
    ends = (*AGE_BANDS_YEARS[1:], math.inf)
    low, high = next(
        (low, high) for low, high in zip(AGE_BANDS_YEARS, ends, strict=True) if age_years < high
    )
    return f"{low:g} years and over" if high == math.inf else f"{low:g}-{high:g} years"


def stratum(cases: Iterable[Case]) -> tuple[str, str]:
    """(age band, side) of a patient, from all its cases.

    The age is that of the first scan; tumours on different sides count as bilateral.
    """
    cases = tuple(cases)
    ages = [case.age_years for case in cases if case.age_years is not None]
    sides = {case.side for case in cases if case.side is not None}
    side = sides.pop() if len(sides) == 1 else "bilateral" if sides else "unknown"
    return age_band(min(ages, default=None)), side


def split(cases: Sequence[Case], *, folds: int = 5, seed: int) -> tuple[Split, ...]:
    """Split cases into cross-validation folds; the module docstring lists the guarantees.

    With fewer patients than folds there is one fold per patient, with a `KidsegWarning`.

    Args:
        cases: of at least two patients.
        folds: number of folds, at least 2.
        seed: of the random assignment.

    Raises:
        UsageError: "too-few-folds".
        InputError: "too-few-patients", "duplicate-case".
    """
    if folds < 2:
        raise UsageError(
            f"at least 2 folds are needed, not {folds}",
            code="too-few-folds",
            next_step="Ask for at least 2.",
        )
    patients = _sorted_patients(cases, seed)
    if len(patients) < folds:
        warnings.warn(
            f"{len(patients)} patients give {len(patients)} folds, not {folds}",
            KidsegWarning,
            stacklevel=2,
        )
        folds = len(patients)
    # The seed decides the first fold, and thus which folds are larger.
    start = _draw(seed, "folds") % folds
    fold_of = {patient.id: (start + k) % folds for k, patient in enumerate(patients)}
    return tuple(
        Split(
            train=_ids(p for p in patients if fold_of[p.id] != fold),
            validation=_ids(p for p in patients if fold_of[p.id] == fold),
        )
        for fold in range(folds)
    )


def holdout(
    cases: Sequence[Case],
    *,
    test_fraction: float | None = None,
    n_test: int | None = None,
    seed: int,
) -> Holdout:
    """Split cases into training and test set by patient; see the module docstring.

    Args:
        cases: of at least two patients.
        test_fraction: fraction of the patients; rounded, with at least one patient in each set.
        n_test: number of patients, instead of a fraction.
        seed: of the random assignment.

    Raises:
        UsageError: "bad-test-size": not exactly one of the two is given, or it is out of range.
        InputError: "too-few-patients", "duplicate-case".
    """
    patients = _sorted_patients(cases, seed)
    count = len(patients)
    if test_fraction is not None and n_test is None and 0 < test_fraction < 1:
        n_test = min(max(1, round(test_fraction * count)), count - 1)
    elif test_fraction is not None or n_test is None or not 1 <= n_test < count:
        raise UsageError(
            f"a test set of {n_test if test_fraction is None else test_fraction} "
            f"of {count} patients is not possible",
            code="bad-test-size",
            next_step="Specify either a fraction between 0 and 1, or a number of patients that "
            "leaves some for training.",
        )
    # Every (count / n_test)-th patient, in exact integer arithmetic. As the start is below `count`,
    # the first is before count / n_test and the last before `count`.
    start = _draw(seed, "holdout") % count
    tested = {(start + k * count) // n_test for k in range(n_test)}
    return Holdout(
        train=_ids(p for k, p in enumerate(patients) if k not in tested),
        test=_ids(p for k, p in enumerate(patients) if k in tested),
    )


def write_splits_json(splits: Sequence[Split], path: Path, *, overwrite: bool = False) -> Path:
    """Write splits_final.json, which nnU-Net reads from its folder of preprocessed data.

    Raises:
        UsageError, InputError, ResourceError: as `kidseg.io.atomic.writing`.

    Source: `nnUNetTrainer.do_split`: a list of {"train": [...], "val": [...]}.
    """
    from kidseg.io.atomic import write_json

    content = [{"train": list(s.train), "val": list(s.validation)} for s in splits]
    write_json(path, content, overwrite=overwrite)
    return path


def _sorted_patients(cases: Sequence[Case], seed: int) -> list[_Patient]:
    """The patients by stratum, youngest first, in random order within each stratum."""
    by_patient: dict[str, list[Case]] = {}
    for case in cases:
        by_patient.setdefault(case.patient, []).append(case)
    ids = [case.id for case in cases]
    if len(set(ids)) != len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InputError(
            f"case '{twice}' occurs twice",
            code="duplicate-case",
            next_step="Give each case a unique name.",
        )
    if len(by_patient) < 2:
        raise InputError(
            f"{len(by_patient)} patient(s) cannot be split",
            code="too-few-patients",
            next_step="Add patients; scans of one patient always stay together.",
        )
    bands = [age_band(low) for low in AGE_BANDS_YEARS] + ["unknown"]
    patients = [
        _Patient(id=name, cases=tuple(c.id for c in of_patient), stratum=stratum(of_patient))
        for name, of_patient in by_patient.items()
    ]
    return sorted(
        patients, key=lambda p: (bands.index(p.stratum[0]), p.stratum[1], _draw(seed, "", p.id))
    )


def _draw(seed: int, *words: str) -> int:
    """A pseudo-random number that depends only on its arguments."""
    text = json.dumps([seed, *words])
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def _ids(patients: Iterable[_Patient]) -> tuple[str, ...]:
    return tuple(sorted(case for patient in patients for case in patient.cases))
