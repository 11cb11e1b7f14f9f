"""The check-up of a machine: what is installed, what works, and the first thing that does not."""

from __future__ import annotations

import json
import shutil
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import test_architecture
from kidseg import doctor
from kidseg.doctor import DECODERS, EXTRAS, examine
from kidseg.errors import InputError, ResourceError

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def test_a_sound_machine_has_no_problem(tmp_path: Path) -> None:
    found = examine("cpu", folders=[tmp_path])
    facts = json.loads(json.dumps(found.as_dict()))
    assert facts["sound"] and facts["problems"] == []
    assert facts["versions"]["torch"] == metadata.version("torch")
    assert [test["passed"] for test in facts["tests"]] == [True] * 4
    assert facts["folders"][0]["free_gb"] > 0
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def test_the_extras_and_decoders_are_those_of_the_project() -> None:
    extras = PROJECT["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"dev", "docs"}
    for extra, (packages, purpose) in EXTRAS.items():
        parts = ("dicom", "mesh", "pacs") if extra == "clinic" else (extra,)
        lines = [line for part in parts for line in extras[part]]
        assert purpose and all(any(p in line for line in lines) for p in packages)
    assert set(DECODERS) == test_architecture.DECODERS
    for package in (*DECODERS, *doctor.LIBRARIES):
        assert any(line.startswith(package) for line in PROJECT["dependencies"]), package


def test_a_missing_decoder_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "DECODERS", {**DECODERS, "kidseg-no-such-decoder": "nothing"})
    (problem,) = examine("cpu", folders=[tmp_path]).problems
    assert problem.code == "decoder-missing" and problem.exit_code == 5
    assert "pip install kidseg-no-such-decoder" in problem.next_step


def test_without_pytorch_lossless_jpeg_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/container.md says; any other decoder is missed."""
    found = {**dict.fromkeys(DECODERS, "1"), "python-gdcm": None}
    with pytest.raises(ResourceError, match="python-gdcm"):
        doctor._check_decoders(found)
    monkeypatch.setattr(doctor, "has_pytorch", lambda: False)
    doctor._check_decoders(found)
    with pytest.raises(ResourceError, match="pyjpegls is not"):
        doctor._check_decoders({**found, "pyjpegls": None})


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (problem,) = examine("cpu", folders=[tmp_path / "none"]).problems
    assert isinstance(problem, InputError) and problem.path == str(tmp_path / "none")


@pytest.mark.parametrize("name", ["TMPDIR", "TEMP", "TMP"])
def test_a_folder_of_temporary_files_that_is_not_there(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Python would silently use another."""
    for other in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(InputError, match=name) as raised:
        doctor._check_temporary()
    assert raised.value.path == str(tmp_path / "none")
    assert examine("cpu", folders=[tmp_path]).problems[0].path == str(tmp_path / "none")
    (tmp_path / "none").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", None)
    doctor._check_temporary()


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: used._replace(free=5 * 2**20))
    with pytest.raises(ResourceError, match="only 5 MiB"):
        doctor._free_gb(tmp_path)


def test_a_device_that_is_not_there_is_said_and_the_rest_still_tested(tmp_path: Path) -> None:
    found = examine("cuda:7", folders=[tmp_path])
    assert [problem.code for problem in found.problems] == ["no-such-device"]
    assert found.facts["device"]["name"] == "cpu" and len(found.facts["tests"]) == 4


def test_a_failing_self_test_is_a_problem_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(doctor, "UNet", broken)
    monkeypatch.setattr(doctor, "body_mask", broken)
    found = examine("cpu", folders=[tmp_path])
    assert [problem.code for problem in found.problems] == ["self-test-failed"] * 2
    assert "illegal instruction" in found.problems[0].cause
    assert [test["passed"] for test in found.facts["tests"]] == [True, True, False, False]
