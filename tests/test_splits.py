from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kidseg.cases import Case, Side
from kidseg.errors import InputError, KidsegWarning, UsageError
from kidseg.splits import Split, age_band, holdout, split, stratum, write_splits_json


def case(number: int, **facts: object) -> Case:
    name = f"case_{number:04d}"
    return Case(**{"id": name, "images": (), "labels": None, "patient": name, **facts})


ages = st.one_of(st.none(), st.floats(0, 90))
sides = st.sampled_from([None, *get_args(Side)])


@st.composite
def cohorts(draw: Callable[..., object], most: int = 60) -> list[Case]:
    """Patients with one case, or a few."""
    patients = draw(st.lists(st.tuples(ages, sides, st.integers(1, 3)), min_size=2, max_size=most))
    cases: list[Case] = []
    for k, (age, side, count) in enumerate(patients):
        cases += [
            case(len(cases) + i, patient=f"p{k}", age_years=age, side=side) for i in range(count)
        ]
    return cases


def patients_of(cases: Iterable[Case], ids: Iterable[str]) -> set[str]:
    by_id = {c.id: c for c in cases}
    return {by_id[i].patient for i in ids}


def strata(cases: Iterable[Case]) -> dict[str, tuple[str, str]]:
    by_patient: dict[str, list[Case]] = {}
    for c in cases:
        by_patient.setdefault(c.patient, []).append(c)
    return {patient: stratum(of) for patient, of in by_patient.items()}


@pytest.mark.requirement("no leak")
@given(cases=cohorts(), folds=st.integers(2, 8), seed=st.integers(0, 2**40))
@pytest.mark.filterwarnings("ignore::kidseg.errors.KidsegWarning")
def test_folds_partition_patients_evenly_overall_and_in_each_stratum(
    cases: list[Case], folds: int, seed: int
) -> None:
    made = split(cases, folds=folds, seed=seed)
    stratum_of = strata(cases)
    assert len(made) == min(folds, len(stratum_of))
    validated = [i for fold in made for i in fold.validation]
    assert sorted(validated) == sorted(c.id for c in cases)
    held = [patients_of(cases, fold.validation) for fold in made]
    for fold, held_out in zip(made, held, strict=True):
        assert sorted((*fold.train, *fold.validation)) == sorted(c.id for c in cases)
        assert not held_out & patients_of(cases, fold.train)
        assert held_out and fold.train
    sizes = [len(h) for h in held]
    assert max(sizes) - min(sizes) <= 1
    for key in (lambda p: stratum_of[p], lambda p: stratum_of[p][0]):
        counts = [Counter(map(key, held_out)) for held_out in held]
        for group in set(map(key, stratum_of)):
            per_fold = [count[group] for count in counts]
            assert max(per_fold) - min(per_fold) <= 1


@given(cases=cohorts(), seed=st.integers(0, 2**40), data=st.data())
def test_a_test_set_has_its_size_and_each_stratum_its_share(
    cases: list[Case], seed: int, data: st.DataObject
) -> None:
    stratum_of = strata(cases)
    n_test = data.draw(st.integers(1, len(stratum_of) - 1))
    made = holdout(cases, n_test=n_test, seed=seed)
    tested = patients_of(cases, made.test)
    assert len(tested) == n_test
    assert sorted((*made.train, *made.test)) == sorted(c.id for c in cases)
    assert not tested & patients_of(cases, made.train)
    for key in (lambda p: stratum_of[p], lambda p: stratum_of[p][0]):
        everyone = Counter(map(key, stratum_of))
        taken = Counter(map(key, tested))
        for group, count in everyone.items():
            assert abs(taken[group] - count * n_test / len(stratum_of)) < 1


@settings(max_examples=30)
@given(cases=cohorts(), seed=st.integers(0, 2**40), shuffling=st.integers())
@pytest.mark.filterwarnings("ignore::kidseg.errors.KidsegWarning")
def test_the_order_of_the_cases_does_not_matter(
    cases: list[Case], seed: int, shuffling: int
) -> None:
    shuffled = random.Random(shuffling).sample(cases, len(cases))
    assert split(cases, seed=seed) == split(shuffled, seed=seed)
    assert holdout(cases, test_fraction=0.3, seed=seed) == holdout(
        shuffled, test_fraction=0.3, seed=seed
    )


def test_another_seed_gives_another_split_and_every_patient_can_be_tested() -> None:
    cases = [case(k, age_years=k % 15, side="left") for k in range(40)]
    assert split(cases, seed=0) != split(cases, seed=1)
    tested = {i for seed in range(60) for i in holdout(cases, n_test=8, seed=seed).test}
    assert tested == {c.id for c in cases}


def test_a_thousand_patients_in_five_folds() -> None:
    rng = random.Random(0)
    sides = [None, *get_args(Side)]
    cases = [case(k, age_years=rng.uniform(0, 17), side=rng.choice(sides)) for k in range(1000)]
    assert [len(fold.validation) for fold in split(cases, seed=3)] == [200] * 5


def test_two_patients_make_two_folds_and_that_is_said() -> None:
    cases = [case(0), case(1), case(2, patient="case_0001")]
    with pytest.warns(KidsegWarning, match="2 patients give 2 folds, not 5"):
        folds = split(cases, seed=0)
    assert {fold.validation for fold in folds} == {("case_0000",), ("case_0001", "case_0002")}


@pytest.mark.parametrize(
    ("age", "band"),
    [
        (0, "0-1 years"),
        (0.999, "0-1 years"),
        (1, "1-2 years"),
        (2, "2-5 years"),
        (4.99, "2-5 years"),
        (5, "5-10 years"),
        (10, "10-16 years"),
        (16, "16 years and over"),
        (77, "16 years and over"),
        (None, "unknown"),
    ],
)
def test_age_bands(age: float | None, band: str) -> None:
    assert age_band(age) == band


@pytest.mark.parametrize("age", [-0.1, float("nan")])
def test_an_impossible_age_has_no_band(age: float) -> None:
    with pytest.raises(ValueError, match="an age must be at least 0 years"):
        age_band(age)


def test_a_patient_is_as_old_as_at_the_first_scan_and_sides_add_up() -> None:
    scans = [
        case(0, age_years=5.5, side="left"),
        case(1, age_years=4.5, side=None),
        case(2, age_years=None, side="right"),
    ]
    assert stratum(scans) == ("2-5 years", "bilateral")
    assert stratum(scans[:2]) == ("2-5 years", "left")
    assert stratum([case(0)]) == ("unknown", "unknown")


def test_what_cannot_be_split_is_refused() -> None:
    one = [case(0), case(1, patient="case_0000")]
    for attempt in (lambda: split(one, seed=0), lambda: holdout(one, n_test=1, seed=0)):
        with pytest.raises(InputError) as caught:
            attempt()
        assert caught.value.code == "too-few-patients"
    with pytest.raises(InputError) as caught:
        split([case(0), case(0), case(1)], seed=0)
    assert caught.value.code == "duplicate-case"
    with pytest.raises(UsageError) as refused:
        split([case(0), case(1)], folds=1, seed=0)
    assert refused.value.code == "too-few-folds"


@pytest.mark.parametrize(
    "size",
    [
        {},
        {"n_test": 0},
        {"n_test": 3},
        {"test_fraction": 0.0},
        {"test_fraction": 1.0},
        {"test_fraction": 0.5, "n_test": 1},
    ],
)
def test_a_test_set_of_no_or_all_patients_is_refused(size: dict[str, float]) -> None:
    with pytest.raises(UsageError) as caught:
        holdout([case(k) for k in range(3)], seed=0, **size)
    assert caught.value.code == "bad-test-size"


def test_a_tiny_fraction_still_tests_one_patient_and_a_large_one_leaves_one() -> None:
    cases = [case(k) for k in range(5)]
    assert len(holdout(cases, test_fraction=0.01, seed=0).test) == 1
    assert len(holdout(cases, test_fraction=0.99, seed=0).train) == 1


def test_splits_are_written_as_nnunet_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "splits_final.json"
    folds = (Split(train=("a", "b"), validation=("c",)), Split(train=("c",), validation=("a", "b")))
    write_splits_json(folds, path)
    assert json.loads(path.read_text()) == [
        {"train": ["a", "b"], "val": ["c"]},
        {"train": ["c"], "val": ["a", "b"]},
    ]
    with pytest.raises(UsageError) as caught:
        write_splits_json(folds[:1], path)
    assert caught.value.code == "output-exists"
    write_splits_json(folds[:1], path, overwrite=True)
    assert len(json.loads(path.read_text())) == 1
