"""A run that other software continues says so, in its folder, its summary and on the terminal."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cohorts import PLAN
from kidseg.cli.summaries import training_notes
from kidseg.errors import ModelError
from kidseg.io.atomic import write_json
from kidseg.records import sealed
from kidseg.train import software as module
from kidseg.train.record import RECORD, Cases, RunRecord, read_record, write_record
from kidseg.train.setup import Setup, resolve
from kidseg.train.software import RESUMED, check_software, note_software, software

USED = Cases(training=("a",), validation=("c",), sha256={"a": "0", "c": "2"})


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    setup = Setup(method="plain")
    return write_record(tmp_path, setup, resolve(setup), USED, PLAN)


def by(monkeypatch: pytest.MonkeyPatch, **other: str) -> None:
    changed = {**software(), **other}
    monkeypatch.setattr(module, "software", lambda: changed)


def test_the_same_software_is_silent(tmp_path: Path, record: RunRecord) -> None:
    assert read_record(tmp_path) == record and record.software == software()
    assert len(software()["code"]) == 12
    note_software(tmp_path, record)
    assert check_software(tmp_path, record) == () and not (tmp_path / RESUMED).exists()


@pytest.mark.fault("resumed by another version")
@pytest.mark.parametrize("name", ["kidseg", "torch", "code"])
def test_other_software_is_said_ever_after(
    name: str, tmp_path: Path, record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the software that started the run ends it."""
    was = software()[name]
    with monkeypatch.context() as patch:
        by(patch, **{name: "9.9"})
        assert check_software(tmp_path, record) == ()  # it has trained nothing
        note_software(tmp_path, record)
        (finding,) = check_software(tmp_path, record)
        note_software(tmp_path, record)
        assert check_software(tmp_path, record) == (finding,)
    assert f"started by {name} {was} and continued by {name} 9.9:" in finding.cause
    assert check_software(tmp_path, record) == (finding,)
    summary = {"findings": [finding.as_dict()], "start": None}
    assert list(training_notes(summary, tmp_path)) == [str(finding)]


def test_a_record_of_an_earlier_version_states_its_version_only(
    tmp_path: Path, record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {k: v for k, v in asdict(record).items() if k != "software"}
    write_json(tmp_path / RECORD, sealed(old), overwrite=True)
    found = read_record(tmp_path)
    assert found == replace(record, software={}) and found.digest == sealed(old)["sha256"]
    note_software(tmp_path, found)
    assert check_software(tmp_path, found) == ()
    by(monkeypatch, kidseg="9.9")
    note_software(tmp_path, found)
    assert check_software(tmp_path, found)[0].code == "other-software"


@pytest.mark.parametrize("text", ["", "{}", '{"with": 3}', '{"with": [3]}'])
def test_a_damaged_note_is_an_error(tmp_path: Path, record: RunRecord, text: str) -> None:
    (tmp_path / RESUMED).write_text(text)
    for act in (check_software, note_software):
        with pytest.raises(ModelError) as caught:
            act(tmp_path, record)
        assert caught.value.code == "damaged-record"
