"""The command line as a user meets it: real processes, exit codes, one JSON object."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import call_cli

KIDSEG = [sys.executable, "-m", "kidseg"]
SMALL = ["--size", "64", "--set", "max_slices=8", "--set", "slice_mm=[4, 5]"]


def run(*arguments: str | Path, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*KIDSEG, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if check is not None:
        assert done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def test_help_is_light_and_says_research_only() -> None:
    code = (
        "import sys; from kidseg.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'nibabel', 'SimpleITK'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "research use only" in " ".join(done.stdout.lower().split())


def test_version_and_no_command() -> None:
    assert run("--version").stdout.strip()
    assert "Usage" in run(check=None).stdout


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "patients with spaces é"
    done = run("phantom", out, "-n", "2", "--seed", "3", "--ages", "1-4", *SMALL, "--json")
    assert len(json.loads(done.stdout)["cases"]) == 2
    return out


def test_phantom_then_check(patients: Path) -> None:
    report = json.loads(run("check", patients, "--json").stdout)
    assert report["kind"] == "dataset"
    assert report["n_cases"] == 2
    assert not [f for f in report["findings"] if f["severity"] == "error"]
    assert "0 error(s)" in run("check", patients).stdout


def test_check_names_every_problem_and_exits_3(patients: Path, tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(patients, broken)
    images = sorted((broken / "imagesTr").glob("*.nii.gz"))
    images[0].write_bytes(images[0].read_bytes()[:1000])
    images[1].write_bytes(b"<html>not found</html>")
    done = run("check", broken, "--json", check=3)
    report = json.loads(done.stdout)
    errors = [f for f in report["findings"] if f["severity"] == "error"]
    assert {Path(f["path"]).name for f in errors} >= {image.name for image in images}
    assert all(f["cause"] for f in errors)


def test_check_of_one_scan(patients: Path) -> None:
    image = next((patients / "imagesTr").glob("*.nii.gz"))
    assert json.loads(run("check", image, "--json").stdout)["kind"] == "scan"


def test_bad_input_is_one_json_object_too(tmp_path: Path) -> None:
    done = run("check", tmp_path / "nothing.nii.gz", "--json", check=3)
    answer = json.loads(done.stdout)
    text = json.dumps(answer)
    assert "nothing.nii.gz" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["phantom"],
        ["phantom", "x", "--layout", "bids"],
        ["phantom", "x", "--ages", "old"],
        ["phantom", "x", "--ages", "9-3"],
        ["phantom", "x", "--set", "sizes=3"],
        ["phantom", "x", "-n", "0"],
        ["unknown"],
    ],
)
def test_wrong_usage_exits_2_and_writes_nothing(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [*KIDSEG, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [["check"], ["check", "x", "--trust", "me"], ["unknown"], ["phantom", "x", "-n", "0"]],
)
def test_wrong_usage_is_one_json_object_too(arguments: list[str]) -> None:
    answer = json.loads(run(*arguments, "--json", check=2).stdout)
    assert answer["error"]["code"] == "usage" and answer["error"]["cause"]


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("phantom x --ages old", "bad-ages"),
        ("config study --set seeds=[1]", "study-settings"),
        ("config study --config mine.toml", "study-settings"),
        ("calibrate run data -o x --intervals --weights-of kidney", "weights-unused"),
        ("measure a.nii.gz b.nii.gz --height 92", "one-file-only"),
        ("convert a.nii.gz b.nii.gz -o x --entered high-risk-histology-or-stage", "one-file-only"),
    ],
)
def test_options_that_do_not_go_together_or_cannot_be_read(
    command: str, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_cli(*command.split(), "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code and error["next_step"]


def test_a_system_error_names_the_file_and_is_one_json_object_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("demo", "--out", tmp_path / "file" / "demo", "--json", check=3)
    answer = json.loads(done.stdout)["error"]
    assert answer["code"] == "not-accessible" and str(tmp_path / "file") in answer["path"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 5),  # a write names no file
        (OSError(errno.EDQUOT, "Disk quota exceeded", "out.nii.gz"), 5),
        (OSError(errno.EACCES, "Permission denied", "out.nii.gz"), 3),
    ],
)
def test_what_the_system_refuses_has_the_exit_code_of_its_cause(
    error: OSError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("kidseg.check.check", fail)
    assert call_cli("check", "x", "--json") == code
    assert json.loads(capsys.readouterr().out)["error"]["next_step"]


def test_an_existing_folder_is_kept_unless_overwritten(patients: Path) -> None:
    before = sorted(p.name for p in patients.rglob("*"))
    done = run("phantom", patients, "-n", "1", *SMALL, check=2)
    assert "--overwrite" in done.stderr
    assert sorted(p.name for p in patients.rglob("*")) == before


def test_dry_run_says_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new"
    done = run("phantom", out, "-n", "5", "--size", "128", "--dry-run")
    assert "size = 128" in done.stdout
    told = json.loads(run("phantom", out, "--size", "128", "--dry-run", "--json").stdout)
    assert told["config"]["size"] == 128
    assert not out.exists()


@pytest.mark.fault("SIGTERM")
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_a_stopped_run_has_its_exit_code_and_leaves_no_half_file(
    number: signal.Signals, tmp_path: Path
) -> None:
    out = tmp_path / "many"
    process = subprocess.Popen(
        [*KIDSEG, "phantom", str(out), "-n", "200", *SMALL],
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not list(tmp_path.rglob("*_0000.nii.gz")):
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert b"Complete patients are kept" in said
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith((".tmp", ".part"))]


@pytest.mark.ci
def test_evaluate_a_data_set_against_itself_then_compare(patients: Path, tmp_path: Path) -> None:
    labels = patients / "labelsTr"
    done = run("evaluate", labels, labels, "-o", tmp_path / "a", "--json")
    summary = json.loads(done.stdout)
    assert summary["structures"]["kidney+tumour"]["dice"]["mean"] == 1.0
    assert "1.000 (0.000)" in run("evaluate", labels, labels, "-o", tmp_path / "b").stdout
    compared = run("compare", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c", "--json")
    assert json.loads(compared.stdout)
    assert (tmp_path / "c" / "compare.md").is_file()


def test_info_reads_a_model_without_torch(tmp_path: Path) -> None:
    import torch

    from kidseg.checkpoint import save_model

    model = tmp_path / "m.safetensors"
    save_model(model, {"segment": {"w": torch.ones(3)}}, {"method": "plain"})
    assert json.loads(run("info", model, "--json").stdout)["method"] == "plain"
    assert "plain" in run("info", model).stdout
    code = (
        "import sys; from kidseg.cli import main\n"
        f"try: main(['info', {str(model)!r}])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert run("info", tmp_path / "none.safetensors", check=6).stderr


@pytest.mark.ci
def test_export_gives_an_nnunet_data_set(patients: Path, tmp_path: Path) -> None:
    out = tmp_path / "Dataset042_Phantoms"
    answer = json.loads(run("export", patients, out, "--folds", "2", "--json").stdout)
    assert answer["linked"] + answer["written"] >= 4
    assert json.loads(run("check", out, "--json").stdout)["n_cases"] == 2
    assert "exists" in run("export", patients, out, "--folds", "2", check=2).stderr


@pytest.mark.slow
def test_store_reads_a_data_set_once_for_training(patients: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    command = ("store", patients, "-o", out, "--preset", "demo", "--json")
    answer = json.loads(run(*command).stdout)
    used = answer["cases"]
    assert len(used["training"]) + len(used["validation"]) == len(list(out.glob("cases/*")))
    assert json.loads(run(*command).stdout) == answer  # a finished store is left as it is
    settings = ("--preset", "demo", "--set", "view.bone_hu=190.0")
    refused = run("train", out, "-o", tmp_path / "run", *settings, check=2)
    assert "bone_hu" in refused.stderr and "--full" in refused.stderr
    assert not (tmp_path / "run" / "config.toml").exists()


def test_a_warning_is_a_line_for_people(patients: Path, tmp_path: Path) -> None:
    done = run("export", patients, tmp_path / "Dataset043_Few", "--json")
    assert json.loads(done.stdout)["linked"] >= 0
    assert done.stderr == "kidseg: 2 patients give 2 folds, not 5\n"
