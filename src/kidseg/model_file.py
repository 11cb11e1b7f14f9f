"""Find the model file that a path means: the file itself, or the one in a run folder."""

from __future__ import annotations

from pathlib import Path

from kidseg.errors import ModelError

__all__ = ["MODEL_FILE", "find_model"]

MODEL_FILE = "model.safetensors"
"""Name of the model in a run folder."""

_NAMED = 5
# Where the runs of a demo and of a study are.
_DEPTHS = ("*", "*/*")
# What training writes before the model; the record of a run, first.
_RECORD = "run.json"
_UNFINISHED = ("config.toml", "log.jsonl")


def find_model(path: str | Path) -> Path:
    """The model file at a path: a file, or a folder that training wrote.

    Raises:
        ModelError: "no-model": there is nothing, or a folder without a model; the next step names
            the models of its runs, if it contains any, or how to go on with runs without.
    """
    path = Path(path)
    if path.is_dir():
        if (path / MODEL_FILE).is_file():
            return path / MODEL_FILE
        raise _no_model_in(path)
    if not path.exists():
        raise ModelError(
            "no such model file or run folder",
            path=path,
            code="no-model",
            next_step="Check the path; 'kidseg train' writes a model, 'kidseg demo' a small one.",
        )
    return path


def _runs_in(folder: Path, name: str) -> list[Path]:
    """The folders of runs below that contain a file of this name."""
    return sorted(file.parent for depth in _DEPTHS for file in folder.glob(f"{depth}/{name}"))


def _no_model_in(folder: Path) -> ModelError:
    runs = _runs_in(folder, MODEL_FILE)
    if runs:
        more = f", or one of {len(runs) - _NAMED} more" if len(runs) > _NAMED else ""
        cause = f"the folder contains {len(runs)} run(s), but is none itself"
        step = f"Choose {' or '.join(map(str, runs[:_NAMED]))}{more}."
    elif any((folder / name).exists() for name in _UNFINISHED):
        cause = "the training in this folder has not finished, so there is no model yet"
        step = "Continue it with 'kidseg train ... --resume'."
    elif begun := _runs_in(folder, _RECORD):
        cause = f"the folder contains {len(begun)} run(s), but no training in it has finished"
        step = (
            "Continue the study: run the same 'kidseg study' again."
            if (folder / "study.toml").exists()
            else "Continue one with 'kidseg train ... --resume', or make a demo again with "
            f"--overwrite: {' or '.join(map(str, begun[:_NAMED]))}."
        )
    elif (folder / "study.toml").exists():
        cause = "the study in this folder has not trained a model yet"
        step = "Continue it: run the same 'kidseg study' again."
    else:
        cause = f"the folder contains no {MODEL_FILE}"
        step = "Give a model file, or a folder that 'kidseg train' wrote."
    return ModelError(cause, path=folder, code="no-model", next_step=step)
