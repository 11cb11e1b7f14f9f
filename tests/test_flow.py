"""From files to figures: patients, training, segmentation, evaluation, by each method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ellipses import write_ellipse_dataset
from kidseg.evaluate import evaluate
from kidseg.segment import segment
from kidseg.train import train

SETTINGS = (
    "view.size=48",
    "unet.size=64",
    "unet.features=6",
    "segment.epochs=10",
    "segment.min_epochs=0",
    "segment.steps=8",
    "segment.batch_size=9",
    "segment.optimizer.name=adam",
    "segment.optimizer.learning_rate=0.01",
)
POSE = (
    "pose.localizer.size=32",
    "pose.localizer.pooled=8",
    "pose.localizer.hidden=[32,16]",
    "pose.stage.epochs=5",
    "pose.stage.min_epochs=0",
    "pose.stage.steps=10",
    "pose.stage.batch_size=12",
)
CROP = (
    "crop.localizer.size=32",
    "crop.localizer.pooled=8",
    "crop.localizer.hidden=[32,16]",
    "crop.stage.epochs=5",
    "crop.stage.min_epochs=0",
    "crop.stage.steps=10",
    "crop.stage.batch_size=9",
    "crop.output=half",
)
METHODS = {
    "plain": ("plain", ()),
    "homogenized": ("homogenized", POSE),
    "homogenized with crop": ("homogenized", (*POSE, *CROP, "pose.teacher=0.0")),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flow") / "data"
    write_ellipse_dataset(root, 9)
    return root


@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_and_is_measured(data: Path, tmp_path: Path, name: str) -> None:
    """Six patients to train on, one to validate, two never seen; noise keeps it from being easy."""
    method, settings = METHODS[name]
    cases = [f"ellipse_{k:03d}" for k in range(9)]
    train(
        data,
        tmp_path / "run",
        method=method,
        overrides=[*SETTINGS, *settings],
        cases=cases[:7],
        device="cpu",
    )
    scans = [data / "imagesTr" / f"{case}_0000.nii.gz" for case in cases[7:]]
    segment(scans, tmp_path / "run" / "model.safetensors", tmp_path / "found", device="cpu")
    evaluate(tmp_path / "found", data, tmp_path / "figures", cases=cases[7:])
    summary = json.loads((tmp_path / "figures" / "summary.json").read_text())
    assert summary["n_cases"] == 2
    for structure in ("kidney", "kidney+tumour", "tumour"):
        assert summary["structures"][structure]["dice"]["mean"] > 0.8, structure
