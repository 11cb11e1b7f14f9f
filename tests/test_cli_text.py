"""What people read: progress without a terminal, the end of a training, what a model is."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from commands import call_cli
from ellipses import write_ellipse_dataset
from kidseg.cli.progress import duration, epoch_text, show_progress, show_stages
from kidseg.cli.scan_report import volumes_text
from kidseg.cli.summaries import scores_text, training_text
from kidseg.config import METHODS, StudyConfig, explain, load, preset
from kidseg.study.example import EXAMPLE, example

TINY = ["view.size=32", "unet.size=32", "unet.features=4", "precision=fp32", "segment.epochs=2"]
TINY += ["segment.min_epochs=0", "segment.steps=1", "segment.batch_size=6", "budget_s=100"]
EPOCH = {"loss": 0.25, "val_score": 0.8, "val_dice_kidney": 0.85, "val_dice_tumour": 0.75}


# Progress


def test_an_epoch_is_a_line_with_dice_by_structure_and_the_time_left() -> None:
    assert epoch_text("segment", 3, 200, {**EPOCH, "left_s": 130.0}) == (
        "segment: epoch 3 of 200, loss 0.2500, Dice kidney 0.850, tumour 0.750, at most 2 min left"
    )
    posed = {"loss": 0.5, "val_score": 0.91, "val_body": 0.98}
    assert epoch_text("pose", 1, 4, posed) == "pose: epoch 1 of 4, loss 0.5000, score 0.910"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99.0, "99 s"), (100.0, "2 min"), (5990.0, "100 min"), (12_000.0, "3 h 20 min")],
)
def test_durations(seconds: float, words: str) -> None:
    expected = "1 h 40 min" if words == "100 min" else words
    assert duration(seconds) == expected


def test_away_from_a_terminal_every_epoch_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with show_stages(silent=False) as advance:
        for done in range(1, 6):
            advance("segment", done, 5, EPOCH)
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 5


def test_away_from_a_terminal_many_cases_are_few_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_progress("cases", silent=False) as advance:
        for done in range(1, 10_001):
            advance(done, 10_000)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) < 20 and lines[-1] == "cases: 10000 of 10000"


def test_silent_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with show_stages(silent=True) as advance:
        advance("segment", 1, 1, EPOCH)
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a pseudo-terminal of Linux")
def test_on_a_terminal_there_is_a_bar_and_the_same_line(tmp_path: Path) -> None:
    import os
    import pty
    import subprocess

    script = tmp_path / "bar.py"
    script.write_text(
        "from kidseg.cli.progress import show_stages\n"
        "with show_stages(False) as advance:\n"
        "    advance('reading', 1, 1, {})\n"
        f"    advance('segment', 3, 200, {EPOCH!r})\n"
    )
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, str(script)], stderr=slave, stdout=subprocess.PIPE, env=environment
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert done.returncode == 0 and done.stdout == b""
    text = shown.decode()
    assert "━" in text and "3/200" in text and "Dice kidney 0.850" in text


# A training, and what it leaves


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained here")
    write_ellipse_dataset(root / "data", 5)
    return root


@pytest.mark.ci
def test_train_as_people_see_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Dry run, lines, table, next command, summary, info: in this order, of one run."""
    run = trained / "run"
    command = ["train", trained / "data", "-o", run, "--method", "plain", "--device", "cpu"]
    command += [word for setting in TINY for word in ("--set", setting)]

    assert call_cli(*command, "--dry-run", "--json") == 0
    would = json.loads(capsys.readouterr().out)["would_train"]
    assert not run.exists()

    assert call_cli(*command) == 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("segment: epoch ")]
    assert [line.split(",")[0] for line in lines] == [
        "segment: epoch 1 of 2",
        "segment: epoch 2 of 2",
    ]
    assert "Dice kidney" in lines[0] and "left" in lines[0]
    assert not out.lstrip().startswith("{") and all(
        len(line) <= 80 for line in out.splitlines()[:8]
    )
    assert f"Model: '{run}/model.safetensors'" in out, "quoted: the folder has a space"
    assert "Next: kidseg segment SCAN -m" in out and "Peak memory" in out

    summary = json.loads((run / "summary.json").read_text())
    assert summary["cases"]["training"] == would["cases"]["training"]
    assert summary["cases"]["validation"] == would["cases"]["validation"]
    assert (run / "config.toml").read_text() == would["settings"]
    assert set(summary["validation"]["segment"]["dice"]) >= {"kidney", "tumour"}
    assert summary["versions"]["torch"] and summary["host"]["platform"] and summary["date"]

    assert call_cli(*command, "--dry-run") == 2
    assert "already exists" in capsys.readouterr().err
    assert call_cli("train", trained / "data", "-o", run, "--resume", "--dry-run", "--json") == 0
    again = json.loads(capsys.readouterr().out)["would_train"]
    assert again["settings"] == would["settings"], "those of the run"
    assert call_cli(*command[:3], trained / "data", "--dry-run") == 2, "a data set is no run"
    capsys.readouterr()

    for path in (run, run / "model.safetensors"):
        assert call_cli("info", path) == 0
        text = capsys.readouterr().out
        for word in ("plain", "1 kidney, 2 tumour", "CT in HU", "Research use only", "cases,"):
            assert word in text, word
        assert "licence" in text and "Dice in" in text and "{" not in text
        assert call_cli("info", path, "--json") == 0
        assert json.loads(capsys.readouterr().out)["method"] == "plain"
    tuned = [*command[:2], "-o", trained / "tuned", "--from", run / "model.safetensors", "--tune"]
    assert call_cli(*tuned, "nothing.*", "--dry-run") == 2, "as the run itself"
    assert "no parameter name matches 'nothing.*'" in capsys.readouterr().err
    assert call_cli(*tuned, "decoder", "--dry-run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "model.safetensors" in said and "tuning: decoder" in said

    assert call_cli("info", run, "-q") == 0
    assert capsys.readouterr().out == ""


def test_a_store_is_told_from_a_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = trained / "store"
    command = ["store", trained / "data", "-o", store, "--method", "plain"]
    command += ["--set", "view.size=32", "--set", "unet.size=32"]
    assert call_cli(*command, "--dry-run", "--json") == 0
    would = json.loads(capsys.readouterr().out)["would_store"]
    assert not store.exists()
    assert call_cli(*command) == 0
    capsys.readouterr()
    assert call_cli("info", store, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "store" and told["cases"] == would["cases"]
    assert call_cli("info", store) == 0
    text = capsys.readouterr().out
    assert "a store" in text and "kidseg train" in text and "subjects" not in text
    assert call_cli(*command[:3], trained / "data", *command[4:], "--dry-run") == 2
    assert "it is no place for a store" in capsys.readouterr().err
    assert call_cli("train", store, "-o", trained / "other", "--method", "plain", "--dry-run") == 0
    assert "a store" in capsys.readouterr().out


def test_what_segment_would_write_it_writes(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the run's folder as the model."""
    if not (trained / "run" / "model.safetensors").exists():
        test_train_as_people_see_it(trained, capsys)
    out = trained / "labels"
    command = ["segment", trained / "data" / "imagesTr", "-m", trained / "run", "-o", out]
    command += ["--formats", "nii,nrrd", "--device", "cpu"]
    assert call_cli(*command, "--dry-run", "--json") == 0
    would = json.loads(capsys.readouterr().out)["would_segment"]
    assert len(would) == 5 and not out.exists()
    assert call_cli(*command, "-q") == 0
    written = {str(path) for path in out.rglob("*") if "_seg." in path.name}
    assert written == {file for entry in would for file in entry["outputs"]}
    assert call_cli(*command, "--dry-run") == 2, "they exist now"


def test_what_export_would_write_it_writes(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained / "Dataset007_Trained"
    command = ["export", trained / "data", out, "--folds", "2"]
    assert call_cli(*command, "--dry-run", "--json") == 0
    would = json.loads(capsys.readouterr().out)["would_export"]
    assert not out.exists()
    assert call_cli(*command, "-q") == 0
    assert {path.name.split(".")[0] for path in (out / "labelsTr").iterdir()} == set(would["cases"])
    assert len(json.loads((out / "splits_final.json").read_text())) == would["folds"] == 2
    assert call_cli(*command, "--dry-run") == 2


@pytest.mark.parametrize("header", [{}, {"method": "plain"}, {"method": "of another version"}])
def test_a_model_that_says_little_is_still_shown(
    header: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from kidseg.checkpoint import save_model

    model = tmp_path / "m.safetensors"
    save_model(model, {"segment": {"w": torch.ones(3)}}, header)
    assert call_cli("info", model) == 0
    assert "Research use only" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "size"), [("demo", 128), ("starter", 256)])
def test_the_preset_of_a_model_of_an_earlier_version_is_told(
    name: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its settings say the depth of the same U-Net by the size of other images."""
    import torch

    from kidseg.checkpoint import save_model

    model = tmp_path / "m.safetensors"
    config = asdict(load(METHODS["plain"], base=preset(name, "plain")))
    for features, said in ((config["unet"]["features"], f"preset {name}"), (5, "its own")):
        unet = {"size": size, "bottleneck": 8, "supervised_to": 32, "features": features}
        header = {"method": "plain", "config": {**config, "unet": {**config["unet"], **unet}}}
        save_model(model, {"segment": {"w": torch.ones(3)}}, header, overwrite=True)
        assert call_cli("info", model) == 0
        assert said in capsys.readouterr().out


def test_the_end_of_a_training_of_two_stages() -> None:
    stage = {"epoch": 11, "score": 0.9, "epochs": 12, "seconds": 14.5, "stopped": "epochs"}
    one = {"mean": 0.85, "sd": 0.1, "n": 3}
    summary = {
        "cases": {"validation": ["a", "b", "c"]},
        "validation": {"pose": {"score": 0.9}, "segment": {"dice": {"kidney": 0.85}}},
        "stages": {"pose": stage, "segment": {**stage, "stopped": "budget"}},
        "seconds": {"prepare": 2.6, "pose": 14.5, "segment": 160.1},
        "peak_memory_mb": {"process": 797.6},
        "model": {"path": "model.safetensors"},
    }
    lines = training_text(summary, Path("run")).splitlines()
    several = {"coarse": {"kidney": one}, "last": {"kidney": one, "tumour": {**one, "sd": None}}}
    text = training_text({**summary, "steps": several}, Path("run")).splitlines()
    at = text.index("Dice in 3 validation case(s) after each step, mean (SD):")
    rows = [line.split() for line in text[at + 1 : at + 4]]
    assert rows[0] == ["step", "kidney", "tumour"]
    assert rows[1] == ["coarse", "0.850", "(0.100)", "-"]
    assert rows[2] == ["last", "0.850", "(0.100)", "0.850"]
    assert lines[0] == "Dice in 3 validation case(s), stage segment:"
    assert lines[2].split() == ["kidney", "0.850"]
    (posed,) = (line.split() for line in lines if line.startswith("pose"))
    assert posed == ["pose", "12", "12", "all", "epochs", "done", "14.5", "s"]
    (total,) = (line for line in lines if line.startswith("total"))
    assert total.endswith("3 min")
    assert lines[-1] == "Next: kidseg segment SCAN -m run/model.safetensors -o result"


def test_scores_say_how_many_cases_each_metric_has() -> None:
    def figures(mean: float | None, n: int) -> dict[str, Any]:
        return {"mean": mean, "sd": None if n < 2 else 0.1, "n": n}

    structure = {
        "dice": figures(0.8, 3),
        "hd95_mm": figures(5.0, 2),
        "surface_dice": figures(0.7, 3),
        "volume_error_ml": figures(None, 0),
    }
    finding = {"code": "x", "path": "a.nii", "cause": "odd", "next_step": "", "severity": "warning"}
    text = scores_text(
        {
            "n_cases": 3,
            "protocol": "native",
            "structures": {"a structure with a name of its own": structure},
            "findings": [finding],
        }
    )
    assert text.splitlines()[0] == "warning: a.nii: odd"
    assert "5.0 (0.1), n 2" in text and "0.800 (0.100)" in text
    assert all(len(line) <= 80 for line in text.splitlines())


# A study's example


def test_the_example_of_a_study_is_read_back_and_explained(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(example())
    assert load(StudyConfig, file=file) == EXAMPLE
    keys = [
        line.split(" = ")[0] for line in example().splitlines() if " = " in line and line[0] != "#"
    ]
    assert {"dataset", "test_patients", "seeds", "preset", "set", "protocol"} <= set(keys)
    assert explain(EXAMPLE).count(" = ") == len(keys)


def test_the_example_runs_on_digital_patients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the training, on ellipses in the place of the digital patients."""
    monkeypatch.chdir(tmp_path)
    made = next(line for line in example().splitlines() if line.startswith("# kidseg phantom"))
    assert call_cli(*made.split()[2:], "--dry-run", "-q") == 0
    write_ellipse_dataset(tmp_path / "patients", 8)
    assert call_cli("study", "study.toml", "--example") == 0
    assert "Next: kidseg study study.toml -o study" in capsys.readouterr().out
    assert call_cli("study", "study.toml", "-o", "study", "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [run["run"] for run in told["runs"]] == ["plain-0", "homogenized-0"]
    assert told["data"]["test"]["patients"] == 4
    assert call_cli("study", "study.toml", "--example") == 2, "the file is kept"


def test_of_a_single_scan_the_terminal_says_what_the_steps_decided() -> None:
    notes = {"correct": {"text": "1 kidney of at least 4.3 ml: not 2, so abnormal", "ran": True}}
    one = {
        "name": "a",
        "sides": None,
        "volumes_ml": {"kidney": 9.0},
        "warnings": [],
        "notes": notes,
    }
    lines = volumes_text([one], [], Path("out")).splitlines()
    at = lines.index("Steps:")
    assert lines[at + 1] == "correct: 1 kidney of at least 4.3 ml: not 2, so abnormal"
    assert "Steps:" not in volumes_text([one, {**one, "name": "b"}], [], Path("out"))
    assert "Steps:" not in volumes_text([{**one, "notes": {}}], [], Path("out"))
