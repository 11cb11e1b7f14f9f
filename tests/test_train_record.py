"""The record of a run keeps the rules for structures that were named for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cohorts import PLAN
from kidseg.cases.roi_rules import ROI_RULES, RoiRules, load_rules
from kidseg.errors import ModelError, UsageError
from kidseg.train.record import Cases, read_record, resumed_setup, write_record
from kidseg.train.setup import Setup, resolve

USED = Cases(training=("a", "b"), validation=("c",), sha256={"a": "0", "b": "1", "c": "2"})


def started(out: Path, rules: RoiRules | None) -> Setup:
    """The setup of a run that starts."""
    out.mkdir()
    setup = Setup(method="plain", rules=rules)
    write_record(out, setup, resolve(setup), USED, PLAN)
    return setup


def rules_in(folder: Path, text: str) -> RoiRules:
    (folder / "given.toml").write_text(text)
    found = load_rules(folder / "given.toml")
    assert found is not None
    return found


def test_a_run_resumes_with_its_rules(tmp_path: Path) -> None:
    rules = rules_in(tmp_path, 'annotation = "B"\n[labels]\ntumour = "x.*"\n')
    started(tmp_path / "run", rules)
    record = read_record(tmp_path / "run")
    assert ROI_RULES in record.files
    for given in (None, rules, RoiRules(is_default=True, annotation="B")):
        found = resumed_setup(tmp_path / "run", record, Setup(rules=given)).rules
        assert found is not None and found.agrees(rules) and found.annotation == "B"


def test_other_rules_are_refused(tmp_path: Path) -> None:
    started(tmp_path / "run", rules_in(tmp_path, '[labels]\ntumour = "x.*"\n'))
    record = read_record(tmp_path / "run")
    for other in (rules_in(tmp_path, '[labels]\ntumour = "y.*"\n'), RoiRules(annotation="B")):
        with pytest.raises(UsageError) as caught:
            resumed_setup(tmp_path / "run", record, Setup(rules=other))
        assert caught.value.code == "other-settings" and "rules" in caught.value.cause


def test_a_run_without_rules_has_none(tmp_path: Path) -> None:
    started(tmp_path / "run", None)
    record = read_record(tmp_path / "run")
    assert ROI_RULES not in record.files
    assert resumed_setup(tmp_path / "run", record, Setup()).rules is None
    with pytest.raises(UsageError):
        resumed_setup(tmp_path / "run", record, Setup(rules=RoiRules(annotation="B")))


def test_altered_rules_are_noticed(tmp_path: Path) -> None:
    started(tmp_path / "run", rules_in(tmp_path, '[labels]\ntumour = "x.*"\n'))
    (tmp_path / "run" / ROI_RULES).write_text('[labels]\ntumour = ".*"\n')
    with pytest.raises(ModelError) as caught:
        read_record(tmp_path / "run")
    assert caught.value.code == "damaged-record"


def test_a_choice_alone_is_kept_too(tmp_path: Path) -> None:
    setup = started(tmp_path / "run", RoiRules(annotation="B", is_default=True))
    assert setup.rules is not None
    assert (tmp_path / "run" / ROI_RULES).read_text() == 'annotation = "B"\n'
