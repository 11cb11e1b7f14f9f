"""Find the model file that a path means: the file itself, the one in a run folder, or the starter.

The starter is the model that the package ships, trained on digital patients alone.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from kidseg.errors import KidsegWarning, ModelError, UsageError

__all__ = ["MODEL_FILE", "STARTER", "STARTER_USE", "find_model", "has_starter", "is_starter"]

MODEL_FILE = "model.safetensors"
"""Name of the model in a run folder."""

STARTER = "starter"
"""Name of the model that the package ships, instead of a path."""

STARTER_USE = "trained on digital patients only, for research use"
"""What a user of the starter must know in any case."""

STARTER_FILE = Path(__file__).parent / "models" / "starter.safetensors"
"""The starter in the package; a package can be built without it."""

_NAMED = 5
# Where the runs of a demo and of a study are.
_DEPTHS = ("*", "*/*")
# What training writes before the model; the record of a run, first.
_RECORD = "run.json"
_UNFINISHED = ("config.toml", "log.jsonl")


def find_model(model: str | Path | None = None) -> Path:
    """The model file that is meant: a file, that of a folder that training wrote, or the starter.

    Args:
        model: a path; the text "starter" or None for the starter. The text is a name, which means
            the same in every working directory: a file or folder there of the same name is
            "./starter", or a `Path`. If there is one, a warning says so.

    Raises:
        UsageError: "no-starter": this package was built without it.
        ModelError: "no-model": there is nothing, or a folder without a model; the next step names
            the models of its runs, if it contains any, or how to go on with runs without.
    """
    if model is None or model == STARTER:
        return _starter(is_named=model is not None)
    path = Path(model)
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


def has_starter() -> bool:
    """Whether this package was built with the starter."""
    return STARTER_FILE.is_file()


def is_starter(model: Path) -> bool:
    """Whether a model file is the starter of this package."""
    return model == STARTER_FILE


def _starter(*, is_named: bool) -> Path:
    if is_named and Path(STARTER).exists():
        text = f"'{STARTER}' is the model that kidseg ships; for the path, give ./{STARTER}"
        warnings.warn(text, KidsegWarning, stacklevel=3)
    if not has_starter():
        raise UsageError(
            "no model is given, and this kidseg was built without its starter model"
            if not is_named
            else "this kidseg was built without its starter model",
            path=STARTER_FILE,
            code="no-starter",
            next_step="Train a model ('kidseg train', or 'kidseg demo' for a small one) and give"
            " its path (kidseg segment SCAN -m MODEL).",
        )
    return STARTER_FILE


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
