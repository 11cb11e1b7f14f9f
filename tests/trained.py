"""A small model of patients of ellipses that many tests segment with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ellipses import write_ellipse_dataset
from kidseg.checkpoint import load_model, save_model
from kidseg.train import Setup, train

SETTINGS = (
    "view.size=32",
    "unet.size=32",
    "unet.features=8",
    "precision=fp32",
    "segment.epochs=3",
    "segment.min_epochs=0",
    "segment.steps=15",
    "segment.batch_size=9",
    "segment.optimizer.name=adam",
    "segment.optimizer.learning_rate=0.01",
)


def tiny(epochs: int) -> tuple[str, ...]:
    """Settings of the smallest training of a segmentation."""
    return (
        "view.size=32",
        "unet.size=32",
        "unet.features=4",
        "precision=fp32",
        f"segment.epochs={epochs}",
        "segment.min_epochs=0",
        "segment.steps=2",
        "segment.batch_size=6",
    )


def tiny_pose(epochs: int) -> tuple[str, ...]:
    """Settings of the smallest training of a pose."""
    return (
        "pose.localizer.size=32",
        "pose.localizer.pooled=4",
        "pose.localizer.hidden=[16,8]",
        f"pose.stage.epochs={epochs}",
        "pose.stage.min_epochs=0",
        "pose.stage.steps=2",
        "pose.stage.batch_size=6",
    )


def run_plain(source: Path, out: Path, **changes: Any) -> dict[str, Any]:
    """Train `plain` on the CPU, with other fields of the setup and arguments of `train`."""
    asked = {"method": "plain", "device": "cpu", **changes}
    names = {field.name for field in fields(Setup)}
    setup = Setup(**{name: asked.pop(name) for name in list(asked) if name in names})
    return train(source, out, setup, **asked)


def train_small(root: Path) -> None:
    """Write four patients into data/ of a folder, and a model of them into run/."""
    write_ellipse_dataset(root / "data", 4)
    train(root / "data", root / "run", Setup(method="plain", overrides=SETTINGS), device="cpu")


def stopped_after(what: str, done: int) -> Callable[..., None]:
    """A `progress` of `train` that stops it, as a user would, after so much of a stage."""

    def tell(stage: str, count: int, *_: object) -> None:
        if (stage, count) == (what, done):
            raise KeyboardInterrupt

    return tell


def copied(trained: Path, root: Path) -> Path:
    """The folder that a test may write into, with the same data/ and run/."""
    shutil.copytree(trained, root, dirs_exist_ok=True)
    return root


def with_header(model: Path, path: Path, **changes: Any) -> Path:
    """The same weights under a changed header."""
    known = load_model(model)
    save_model(path, known.parts, {**known.header, **changes})
    return path
