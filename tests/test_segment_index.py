"""The index of results: no entry is lost, whoever else writes; what is not one is refused."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from folders import names_in
from kidseg.errors import ModelError, ResourceError, UsageError
from kidseg.io.atomic import json_bytes
from kidseg.segment.index import RESULT, read_index, record_failure, record_scan


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "outputs": [f"{name}_seg.nii.gz"], **more}


def add(folder: Path, name: str, content: bytes = b"labels", *, overwrite: bool = False) -> None:
    temporary = folder / f".{name}-{os.getpid()}"
    temporary.write_bytes(content)
    record_scan(
        folder, entry(name), {temporary: folder / f"{name}_seg.nii.gz"}, overwrite=overwrite
    )


def test_entries_of_several_runs_stay(tmp_path: Path) -> None:
    assert read_index(tmp_path / "none").scans == {}
    add(tmp_path, "a")
    add(tmp_path, "b")
    content = json.loads((tmp_path / RESULT).read_text())
    assert [scan["name"] for scan in content["scans"]] == ["a", "b"]
    assert "Not a medical device" in content["intended_use"]
    assert names_in(tmp_path) == {RESULT, "a_seg.nii.gz", "b_seg.nii.gz"}, "and no lock"


def test_a_name_is_replaced_only_if_asked(tmp_path: Path) -> None:
    add(tmp_path, "a", b"first")
    add(tmp_path, "b", b"other")
    with pytest.raises(UsageError) as error:
        add(tmp_path, "a", b"second")
    assert error.value.code == "output-exists"
    assert (tmp_path / "a_seg.nii.gz").read_bytes() == b"first"
    (tmp_path / "a_seg.nii.gz").unlink()  # its record is still there
    with pytest.raises(UsageError):
        add(tmp_path, "a", b"second")
    add(tmp_path, "a", b"second", overwrite=True)
    assert (tmp_path / "a_seg.nii.gz").read_bytes() == b"second"
    assert (tmp_path / "b_seg.nii.gz").read_bytes() == b"other"
    assert set(read_index(tmp_path).scans) == {"a", "b"}


def test_a_failure_leaves_when_the_scan_succeeds_and_keeps_an_earlier_result(
    tmp_path: Path,
) -> None:
    record_failure(tmp_path, {"name": "a", "code": "truncated-file"})
    assert set(read_index(tmp_path).failed) == {"a"}
    add(tmp_path, "a")
    assert not read_index(tmp_path).failed
    record_failure(tmp_path, {"name": "a", "code": "truncated-file"})
    index = read_index(tmp_path)
    assert set(index.scans) == set(index.failed) == {"a"}


def _add_many(folder: Path, prefix: str, count: int) -> None:
    for k in range(count):
        add(folder, f"{prefix}{k}")
        record_failure(folder, {"name": f"{prefix}{k}-bad"})


@pytest.mark.fault("two jobs, one folder")
def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_add_many, args=(tmp_path, prefix, 15)) for prefix in "abcd"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    index = read_index(tmp_path)
    expected = {f"{prefix}{k}" for prefix in "abcd" for k in range(15)}
    assert set(index.scans) == expected
    assert set(index.failed) == {f"{name}-bad" for name in expected}
    assert names_in(tmp_path) == {RESULT, *(f"{name}_seg.nii.gz" for name in expected)}


def _race(folder: Path, results: Any) -> None:
    try:
        add(folder, "same", str(os.getpid()).encode())
        results.put(os.getpid())
    except UsageError:
        results.put(0)


def test_of_two_processes_with_one_name_one_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_race, args=(tmp_path, results)) for _ in range(6)]
    for process in processes:
        process.start()
    told = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    (winner,) = [number for number in told if number]
    assert (tmp_path / "same_seg.nii.gz").read_bytes() == str(winner).encode()


def test_a_lock_that_a_killed_process_left_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / ".result.lock").touch()
    add(tmp_path, "a")
    assert set(read_index(tmp_path).scans) == {"a"}


GOOD = {"format": 1, "intended_use": "", "scans": [entry("a")], "failed": [{"name": "b"}]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "[" * 100_000,
        '{"scans": [], "failed": []}',
        json.dumps({**GOOD, "format": 2}),
        json.dumps({**GOOD, "scans": {}}),
        json.dumps({**GOOD, "scans": ["a"]}),
        json.dumps({**GOOD, "scans": [{"outputs": []}]}),
        json.dumps({**GOOD, "scans": [{"name": "a"}]}),
        json.dumps({**GOOD, "scans": [{"name": "a", "outputs": [1]}]}),
        json.dumps({**GOOD, "scans": [{"name": "a", "outputs": None}]}),
        json.dumps({**GOOD, "scans": [entry("a"), entry("a")]}),
        json.dumps({**GOOD, "scans": [entry("a", review={"structures": 1})]}),
        json.dumps({**GOOD, "scans": [entry("a", warnings=[{"code": "x"}])]}),
        json.dumps({**GOOD, "scans": [entry("a", volumes_ml={"kidney": None})]}),
        json.dumps({**GOOD, "scans": [entry("a", sides={"left": {}})]}),
        json.dumps({**GOOD, "failed": None}),
        json.dumps({"format": 1, "scans": []}),
        json.dumps(GOOD)[:-20],
        "\x00\x01",
    ],
)
def test_what_is_not_an_index_is_refused_and_stays(text: str, tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text(text)
    for write in (
        lambda: read_index(tmp_path),
        lambda: add(tmp_path, "c"),
        lambda: record_failure(tmp_path, {"name": "c"}),
    ):
        with pytest.raises(ModelError) as error:
            write()
        assert error.value.code == "damaged-index" and RESULT in str(error.value.path)
    assert (tmp_path / RESULT).read_text() == text
    assert not (tmp_path / "c_seg.nii.gz").exists()


def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    (tmp_path / RESULT).write_bytes(b'{"format": 1, "scans": [], "failed": [], "x": "\xff"}')
    with pytest.raises(ModelError):
        read_index(tmp_path)


def test_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    odd = "k\udcfcnd"  # as the system names a file of other bytes
    add(tmp_path, odd)
    copy = tmp_path / "copy"  # of which nothing is remembered
    copy.mkdir()
    (copy / RESULT).write_bytes((tmp_path / RESULT).read_bytes())
    assert set(read_index(copy).scans) == {odd}


def test_a_good_one_is_read(tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text(json.dumps(GOOD))
    index = read_index(tmp_path)
    assert set(index.scans) == {"a"} and set(index.failed) == {"b"}


@pytest.mark.fault("disk full")
def test_a_full_disk_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path, "a")
    before = (tmp_path / RESULT).read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError):
        add(tmp_path, "b")
    assert (tmp_path / RESULT).read_bytes() == before
    assert not (tmp_path / "b_seg.nii.gz").exists()


def test_a_name_that_is_not_utf_8_comes_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    record_scan(tmp_path, {"name": name, "outputs": []}, {})
    assert set(read_index(tmp_path).scans) == {name}


ODD = {"text": 'line\nnext\u2028\x85 "failed": [] [] "scans": []', "none": None, "list": [1, [2]]}


def test_the_file_is_plain_json_whoever_wrote_it(tmp_path: Path) -> None:
    """Texts of entries are remembered; the file is that of all entries written anew."""
    for k in range(4):
        record_scan(tmp_path, {"name": f"{k}", "outputs": [], **ODD, "k": k}, {})
        record_failure(tmp_path, {"name": f"f{k % 2}", "code": "x", "k": k, **ODD})
        if k == 1:  # another process adds one
            index = read_index(tmp_path)
            index.scans["other"] = {"name": "other", "outputs": [], "k": -1}
            (tmp_path / "new").write_bytes(json_bytes(index.as_dict()))
            (tmp_path / "new").replace(tmp_path / RESULT)
    written = (tmp_path / RESULT).read_bytes()
    content = json.loads(written)
    assert [scan["name"] for scan in content["scans"]] == ["0", "1", "other", "2", "3"]
    assert [(one["name"], one["k"]) for one in content["failed"]] == [("f0", 2), ("f1", 3)]
    assert written == json_bytes(content) == json_bytes(read_index(tmp_path).as_dict())


def test_changing_what_was_read_or_given_changes_no_record(tmp_path: Path) -> None:
    mine = {"name": "a", "outputs": [], "facts": {"x": 1}}
    record_scan(tmp_path, mine, {})
    mine["facts"] = {"x": 2}
    read_index(tmp_path).scans.clear()
    record_scan(tmp_path, entry("b"), {})
    assert read_index(tmp_path).scans["a"]["facts"] == {"x": 1}
    assert json.loads((tmp_path / RESULT).read_text())["scans"][0]["facts"] == {"x": 1}
