"""The table of a cohort: a row for each scan of the folder, whenever it was segmented."""

from __future__ import annotations

import csv
import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kidseg.cli.scan_report import ScanReport, cohort_lines
from kidseg.csv_table import original_text
from kidseg.errors import ResourceError
from kidseg.io.atomic import json_bytes
from kidseg.segment.cohort_table import SUMMARY, cohort_facts, cohort_rows, write_summary
from kidseg.segment.index import RESULT, Index, read_index, record_failure, record_scan


def entry(name: str, kidney: float = 100.0, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "outputs": [],
        "volumes_ml": {"kidney": kidney, "tumour": kidney / 2},
        "warnings": [{"code": "x"}],
        "seconds": {"read": 0.25, "segment": 1.5},
        **more,
    }


def judged(low: float, high: float) -> dict[str, Any]:
    figures = {
        "kidney": {"interval_ml": [low, high], "volume_ml": 100.0},
        "tumour": {"interval_ml": None},
    }
    return {"review": {"opinions": 2, "structures": figures}}


def table_in(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / SUMMARY).open(newline="", encoding="utf-8")))


def test_no_name_is_a_formula(tmp_path: Path) -> None:
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "a;=1", "anna"]
    record_failure(tmp_path, {"name": names[0], "code": "truncated-file"})
    for name in names[1:]:
        record_scan(tmp_path, entry(name), {})
    write_summary(tmp_path)
    cells = [row["name"] for row in table_in(tmp_path)]
    assert not any(cell.startswith(tuple("=+-@\t")) for cell in cells)
    assert list(map(original_text, cells)) == sorted(names)


def test_the_table_has_all_scans_of_the_folder(tmp_path: Path) -> None:
    record_scan(tmp_path, entry("b"), {})
    write_summary(tmp_path)
    assert not (tmp_path / SUMMARY).exists(), "one scan is no cohort"
    record_failure(tmp_path, {"name": "a", "code": "truncated-file"})
    record_scan(tmp_path, entry("c", 30.0, **judged(25.0, 36.5)), {})
    write_summary(tmp_path)
    first, second, third = table_in(tmp_path)
    assert first == {
        **dict.fromkeys(first, ""),
        "name": "a",
        "status": "failed",
        "error": "truncated-file",
    }
    assert second == {
        **{"name": "b", "status": "done", "error": "", "kidney_ml": "100.0", "tumour_ml": "50.0"},
        **{"kidney_ml_from": "", "kidney_ml_to": "", "warnings": "1", "seconds": "1.75"},
    }
    assert (third["kidney_ml_from"], third["kidney_ml_to"]) == ("25.0", "36.5")
    assert list(first)[:3] == ["name", "status", "error"], "the columns are in order"
    record_scan(tmp_path, entry("a"), {})
    write_summary(tmp_path)
    assert [row["status"] for row in table_in(tmp_path)] == ["done"] * 3


def test_a_scan_that_failed_again_has_no_figures_of_its_earlier_result(tmp_path: Path) -> None:
    record_scan(tmp_path, entry("a"), {})
    record_failure(tmp_path, {"name": "a", "code": "worker-killed"})
    (row,) = cohort_rows(read_index(tmp_path))
    assert (row.status, row.error, dict(row.volumes_ml)) == ("failed", "worker-killed", {})


def test_the_cohort_in_a_few_numbers() -> None:
    scans = {name: entry(name, volume) for name, volume in (("a", 10.0), ("b", 0.0), ("c", 40.0))}
    facts = cohort_facts(cohort_rows(Index(scans, {"d": {"name": "d", "code": "x"}})))
    assert (facts["scans"], facts["done"], facts["failed"], facts["warned"]) == (4, 3, {"x": 1}, 3)
    assert facts["volumes_ml"]["kidney"] == {"n": 2, "median": 25.0, "least": 10.0, "most": 40.0}
    none = cohort_facts(cohort_rows(Index({"b": entry("b", 0.0)}, {})))
    assert none["volumes_ml"]["tumour"] == {"n": 0, "median": None, "least": None, "most": None}
    assert cohort_facts([])["scans"] == 0
    assert json_bytes(facts) and json_bytes(none)


def test_what_is_said_of_a_cohort() -> None:
    scans = {f"s{k}": entry(f"s{k}", 10.0 + k) for k in range(50)}
    rows = cohort_rows(Index(scans, {"d": {"name": "d", "code": "time-limit"}}))
    lines = cohort_lines(rows, Path("out"))
    text = " ".join(lines)
    assert "50 of 51 scans" in text and "1 time-limit" in text and "out/summary.csv" in text
    assert len(lines) < 8 and all(len(line) <= 80 for line in lines)


def test_a_long_batch_is_said_briefly(tmp_path: Path) -> None:
    heard = ScanReport(lambda *_: None, tmp_path, lines=False)
    for k in range(60):
        one = entry(f"s{k}", sides=None)
        record_scan(tmp_path, one, {})
        heard.report(one)
    failed = {"name": "bad", "code": "x", "cause": "it is bad", "next_step": "Mend it."}
    record_failure(tmp_path, failed)
    heard.report(failed)
    text = heard.text()
    assert text.count("\n") < 20 and "bad: it is bad. Mend it." in text and "60 of 61" in text
    said = heard.as_dict(None)
    assert said["summary"]["done"] == 60 and len(said["summary"]["rows"]) == 61
    assert json.loads(json_bytes(said)) == said


@pytest.mark.parametrize("name", ['a,"b"', "a;b\tc", os.fsdecode(b"caf\xe9"), "Łukasz 子"])
def test_odd_names_stay_one_cell(tmp_path: Path, name: str) -> None:
    record_scan(tmp_path, entry(name), {})
    record_scan(tmp_path, entry("z"), {})
    write_summary(tmp_path)
    rows = {row["name"] for row in table_in(tmp_path)}
    assert rows == {name.encode("utf-8", "backslashreplace").decode(), "z"}


@pytest.mark.fault("disk full")
def test_a_full_disk_leaves_the_earlier_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        record_scan(tmp_path, entry(name), {})
    write_summary(tmp_path)
    before = (tmp_path / SUMMARY).read_bytes()
    record_scan(tmp_path, entry("d"), {})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError):
        write_summary(tmp_path)
    assert (tmp_path / SUMMARY).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {RESULT, SUMMARY}
