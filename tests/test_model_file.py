"""What a path of a model means: a file, a run, or what to give instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from kidseg.errors import ModelError
from kidseg.model_file import MODEL_FILE, find_model


def model(*parts: str | Path) -> Path:
    path = Path(*parts) / MODEL_FILE
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def refusal(path: Path) -> ModelError:
    with pytest.raises(ModelError) as error:
        find_model(path)
    assert error.value.code == "no-model" and error.value.exit_code == 6
    assert error.value.path == str(path)
    return error.value


def test_a_file_or_its_run(tmp_path: Path) -> None:
    path = model(tmp_path, "run")
    assert find_model(path) == find_model(path.parent) == find_model(str(path)) == path


def test_a_demo_and_a_study_name_their_runs(tmp_path: Path) -> None:
    model(tmp_path, "demo", "run")
    assert str(tmp_path / "demo" / "run") in refusal(tmp_path / "demo").next_step
    for k in range(7):
        model(tmp_path, "study", "runs", f"plain-{k}")
    error = refusal(tmp_path / "study")
    assert "7 run(s)" in error.cause and str(tmp_path / "study/runs/plain-0") in error.next_step
    assert "2 more" in error.next_step


def test_a_training_that_has_not_finished_can_go_on(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    assert "--resume" in refusal(tmp_path).next_step


def test_runs_that_have_not_finished_can_go_on(tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    (study / "study.toml").touch()
    error = refusal(study)
    assert "has not trained a model yet" in error.cause and "kidseg study" in error.next_step
    for folder in (study / "runs" / "plain-0", tmp_path / "demo" / "run"):
        folder.mkdir(parents=True)
        (folder / "run.json").touch()
    error = refusal(study)
    assert "no training in it has finished" in error.cause and "kidseg study" in error.next_step
    error = refusal(tmp_path / "demo")
    assert str(tmp_path / "demo" / "run") in error.next_step and "--overwrite" in error.next_step


def test_nothing_there_names_the_next_step(tmp_path: Path) -> None:
    assert "kidseg train" in refusal(tmp_path / "none.safetensors").next_step
    assert "kidseg train" in refusal(tmp_path).next_step
