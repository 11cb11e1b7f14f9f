"""Quantities with intervals, criteria from a cited file, and three answers: no treatment."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kidseg.errors import InputError, UsageError
from kidseg.measure.criteria import (
    DEFAULT,
    Criterion,
    answered,
    entered_facts,
    read_criteria,
)
from kidseg.measure.person import Patient
from kidseg.measure.quantity import Quantity, Verdict, all_of, any_of, compared, counted, spanned

VERDICTS: tuple[Verdict, ...] = ("met", "not met", "cannot tell")
CRITERIA = read_criteria()
BY_ID = {criterion.id: criterion for criterion in CRITERIA.criterion}


def volume(value: float, low: float | None, high: float | None) -> Quantity:
    return Quantity(name="tumour volume", value=value, unit="mL", low=low, high=high)


@pytest.mark.requirement("cannot tell")
@pytest.mark.parametrize(
    ("quantity", "verdict"),
    [
        (volume(600, 520, 690), "met"),
        (volume(500, 500, 690), "met"),
        (volume(520, 480, 560), "cannot tell"),
        (volume(480, 440, 520), "cannot tell"),
        (volume(400, 350, 460), "not met"),
        (volume(600, 520, None), "met"),  # a lower bound is enough
        (volume(400, 350, None), "cannot tell"),  # cut off by the scan
        (volume(600, None, 700), "cannot tell"),
    ],
)
def test_a_threshold_is_told_only_if_the_whole_interval_agrees(
    quantity: Quantity, verdict: str
) -> None:
    assert compared(quantity, ">=", 500.0) == verdict
    opposite = {"met": "not met", "not met": "met"}.get(verdict, verdict)
    assert compared(quantity, "<", 500.0) == opposite


@given(st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=5))
def test_three_valued_logic(verdicts: list[Verdict]) -> None:
    """As if "cannot tell" could be either: only what holds in all cases is told."""
    worlds = [
        [v == "met" if v != "cannot tell" else bit >> k & 1 for k, v in enumerate(verdicts)]
        for bit in range(2 ** len(verdicts))
    ]
    for combine, truth in ((all_of, all), (any_of, any)):
        answers = {bool(truth(world)) for world in worlds}
        told = {True: "met", False: "not met"}
        assert combine(verdicts) == (told[answers.pop()] if len(answers) == 1 else "cannot tell")


@given(st.floats(-1e6, 1e6), st.lists(st.floats(-1e6, 1e6)))
def test_a_span_contains_all_its_values(value: float, others: list[float]) -> None:
    found = spanned("x", "mm", value, others)
    assert found.low == min([value, *others]) and found.high == max([value, *others])
    wider = found.widened([value + 1e7], "other opinions")
    assert wider.high == value + 1e7 and wider.low == found.low
    assert spanned("x", "mm", value, [math.inf]).high is None


@pytest.mark.requirement("cannot tell")
def test_the_file_of_the_package_cites_every_criterion() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", CRITERIA.version)
    text = DEFAULT.read_text(encoding="utf-8")
    for criterion in CRITERIA.criterion:
        assert criterion.source and criterion.about and criterion.conditions
        # A claim without a source is shown as such.
        assert criterion.confirmed or "to be confirmed" in criterion.source
    assert "recommended" not in text and "should" not in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("threshold = 500.0", "threshold = nan"), "finite"),
        (("threshold = 500.0", 'threshold = "500"'), "valid number"),
        (('unit = "mL"', 'unit = "mm"'), "is none of"),
        (("threshold = 500.0, ", ""), "measure, comparison, threshold and unit"),
        (('comparison = ">="', 'comparison = "=>"'), "comparison"),
        (('entered = "nodes"', 'entered = "metastases"'), "does not explain metastases"),
        (('id = "kidney-asymmetry"', 'id = "parenchyma-two-thirds"'), "not unique"),
        (('per = "patient"', 'per = "family"'), "per"),
        (("margin_mm", "margin"), "margin"),
        (("[settings]", "[settings"), "not valid TOML"),
        (('version = "2026-11-26"', "version = 2026-11-26"), "not valid TOML"),
    ],
)
def test_a_file_of_criteria_with_a_mistake_is_refused(
    tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    text = DEFAULT.read_text(encoding="utf-8")
    assert change[0] in text
    path = tmp_path / "own.toml"
    path.write_text(text.replace(*change, 1), encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        read_criteria(path)
    assert caught.value.code == "bad-criteria" and str(path) in str(caught.value)


def test_a_file_of_criteria_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_criteria(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not valid TOML"):
        read_criteria(tmp_path / "bytes.toml")


def answer(criterion: Criterion, value: Quantity, **entered: bool) -> Verdict:
    facts = {name.replace("_", "-"): fact for name, fact in entered.items()}
    measures = {
        value.name: value,
        "sides with a tumour": counted("sides with a tumour", 1),
        "number of tumours": counted("number of tumours", 1),
    }
    return answered(criterion, "right", measures, facts, CRITERIA.entered).verdict


@pytest.mark.requirement("cannot tell")
def test_500_ml_after_chemotherapy_needs_what_masks_do_not_tell() -> None:
    large, small = volume(620, 570, 670), volume(420, 390, 450)
    criterion = BY_ID["volume-500-ml-after-chemotherapy"]
    assert answer(criterion, large) == "cannot tell"
    assert answer(criterion, small) == "not met"
    known = {"preoperative_chemotherapy": True, "high_risk_histology_or_stage": True}
    assert answer(criterion, large, **known) == "met"
    assert answer(criterion, large, preoperative_chemotherapy=False) == "not met"


def test_300_ml_at_diagnosis_and_contraindications() -> None:
    criterion = BY_ID["volume-300-ml-at-diagnosis"]
    small = volume(200, 180, 220)
    assert answer(criterion, small, preoperative_chemotherapy=False) == "cannot tell"
    assert answer(criterion, small, preoperative_chemotherapy=False, predisposition=False) == "met"
    assert answer(criterion, small, predisposition=True) == "not met"
    contra = BY_ID["nephron-sparing-contraindication"]
    assert answer(contra, small) == "cannot tell"
    assert answer(contra, small, thrombus=True) == "met"
    none = dict.fromkeys(("thrombus", "nodes", "rupture", "extrarenal_spread"), False)
    assert answer(contra, small, **none) == "not met"
    several = counted("number of tumours", 3)
    assert answered(contra, "left", {several.name: several}, {}, CRITERIA.entered).verdict == "met"


@pytest.mark.requirement("cannot tell")
def test_what_was_not_measured_cannot_be_told_and_says_so() -> None:
    found = answered(BY_ID["kidney-asymmetry"], "patient", {}, {}, CRITERIA.entered)
    assert found.verdict == "cannot tell" and found.conditions[0].reason == "not measured"


@pytest.mark.parametrize(("is_so", "words"), [(True, "yes"), (False, "no")])
def test_a_condition_on_a_fact_says_what_was_entered(is_so: bool, words: str) -> None:
    contra = BY_ID["nephron-sparing-contraindication"]
    found = answered(contra, "right", {}, {"thrombus": is_so}, CRITERIA.entered).conditions[1]
    assert found.text.endswith("the vena cava = yes") and found.reason == f"entered: {words}"
    assert found.verdict == ("met" if is_so else "not met")


@pytest.mark.parametrize(
    "text", ["thrombus", "thrombus=", "thrombus=maybe", "fever=yes", "=yes", "thrombus=yes=no"]
)
def test_a_fact_that_cannot_be_entered_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="one of the facts"):
        entered_facts([text], CRITERIA)


def test_facts_are_entered_once() -> None:
    assert entered_facts(["thrombus=No", "nodes=yes"], CRITERIA) == {
        "thrombus": False,
        "nodes": True,
    }
    with pytest.raises(UsageError):
        entered_facts(["thrombus=no", "thrombus=yes"], CRITERIA)


def test_body_surface() -> None:
    surface = Patient(height_cm=100.0, weight_kg=16.0).body_surface
    assert surface is not None and surface.value == pytest.approx(2 / 3)
    assert surface.low is not None and surface.high is not None
    assert surface.low < surface.value < surface.high
    assert Patient(height_cm=100.0).body_surface is None


@given(st.floats(allow_nan=True), st.sampled_from(["height_cm", "weight_kg", "age_years"]))
def test_implausible_patients_are_refused(value: float, name: str) -> None:
    low, high = {"height_cm": (20, 250), "weight_kg": (0.3, 400), "age_years": (0, 130)}[name]
    assume(not low <= value <= high)
    with pytest.raises(UsageError, match="is not within"):
        Patient(**{name: value})
