"""Mutated files of every kind that kidseg reads: only its own errors come out, at little memory.

`benchmarks/fuzz.py` does the same for millions of inputs; its own parts are tested here too.
"""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import fuzz
from fuzz_targets import TARGETS
from mutations import mutate, mutate_json, mutate_text

QUICK = ["nifti1", "nifti2-gz", "nrrd", "nhdr", "mha", "mhd", "zip", "patients-csv", "kits-table"]
SCANS = [name for name in TARGETS if not name.startswith(("model", "state", "store", "run"))]


@pytest.mark.parametrize("name", QUICK)
def test_a_few_mutations_of_each_kind(name: str) -> None:
    result = fuzz.read_many(TARGETS[name], 7, range(60))
    assert result.count == 60 and not result.faults, result.examples
    assert result.memory_mib < 300


@pytest.mark.parametrize("name", TARGETS)
def test_the_input_that_is_mutated_is_valid(name: str, tmp_path: Path) -> None:
    if TARGETS[name].cost > 100:
        pytest.skip("a training; see the slow test")
    corpus = fuzz.Corpus(TARGETS[name], tmp_path)
    assert corpus.names
    corpus.target.read(tmp_path, random.Random(7))  # options are the default ones with this seed
    corpus.restore()


def test_an_input_derives_from_its_number_alone(tmp_path: Path) -> None:
    corpus = fuzz.Corpus(TARGETS["nifti1-gz"], tmp_path)
    inputs = [corpus.mutated(3, number)[:2] for number in range(50)]
    assert inputs == [corpus.mutated(3, number)[:2] for number in range(50)]
    assert len(set(inputs)) > 40


@pytest.mark.parametrize("change", [mutate, mutate_text, mutate_json])
def test_mutations_take_any_bytes(change: fuzz.Any) -> None:
    for content in (b"", b"x", b"{}", b'{"a": [1, 2]}\n{"b": null}', b"\xff" * 40, b"NDims = 3\n"):
        results = {change(content, random.Random(seed), focus=10) for seed in range(60)}
        assert len(results) > 5 and all(isinstance(one, bytes) for one in results)


def _wrong(folder: Path, generator: random.Random) -> object:
    if any(byte % 3 == 0 for byte in (folder / "x.nii").read_bytes()[344:345]):
        raise ZeroDivisionError("a fault")
    return None


def test_faults_are_found_saved_and_repeatable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = replace(TARGETS["nifti1"], name="wrong", read=_wrong, focus=346)
    monkeypatch.setitem(TARGETS, "wrong", target)
    arguments = ["--targets", "wrong", "--n", "400", "--jobs", "1", "--out", str(tmp_path)]
    assert fuzz.main(arguments) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    assert "a fault" in (folder / "fault.txt").read_text()
    with pytest.raises(ZeroDivisionError):
        _wrong(folder, random.Random(0))


def _crash(folder: Path, generator: random.Random) -> object:
    if generator.random() < 0.02:
        fuzz.os._exit(41)
    return None


def test_a_crash_of_the_process_is_a_fault_and_the_rest_goes_on() -> None:
    target = replace(TARGETS["nifti1"], read=_crash)
    result = fuzz.read_in_child(target, 0, range(150), float("inf"))
    assert 0 < result.faults["crash of the process, exit code 41"] < 20
    assert "crash of the process, exit code 41" in result.examples


@pytest.mark.slow
@pytest.mark.parametrize("name", SCANS)
def test_thousands_of_mutations(name: str) -> None:
    result = fuzz.read_many(TARGETS[name], 11, range(4000 // TARGETS[name].cost))
    assert not result.faults, result.examples


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nifti1", "nifti2", "nrrd", "mha", "mhd", "toml", "dataset-json"])
@settings(max_examples=1500)
@given(edits=st.lists(st.tuples(st.integers(0, 600), st.binary(max_size=8)), max_size=4))
def test_any_bytes_anywhere(
    name: str, tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, bytes]]
) -> None:
    """As above, but with bytes that hypothesis chooses and, for a fault, reduces."""
    corpus = fuzz.Corpus(TARGETS[name], tmp_path_factory.mktemp("input"))
    (file, *_) = corpus.names
    content = corpus.files[file]
    for at, new in edits:
        content = content[:at] + new + content[at + len(new) :]
    (corpus.folder / file).write_bytes(content)
    try:
        corpus.target.read(corpus.folder, random.Random(7))
    except fuzz.KidsegError as error:
        str(error).encode("utf-8")
