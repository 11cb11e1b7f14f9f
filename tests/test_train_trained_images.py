"""Which images a model has learned from: its own, and those of the model it was fine-tuned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ellipses import write_ellipse_dataset
from kidseg.cases.same_images import voxels_sha256
from kidseg.checkpoint import read_header
from kidseg.errors import ModelError
from kidseg.io import read
from kidseg.train import Setup, train
from kidseg.train.trained_images import TrainedImages, images_of_model

SHORT = ("segment.epochs=1", "segment.min_epochs=0", "segment.steps=1", "segment.batch_size=3")
TINY = ("view.size=32", "unet.size=32", "unet.features=2", "precision=fp32", *SHORT)


def said(*voxels: str, complete: bool = True) -> dict[str, Any]:
    return {"training_set": {"images": {"voxels": list(voxels), "complete": complete}}}


@pytest.mark.slow
def test_a_model_knows_its_images_and_those_of_its_start(tmp_path: Path) -> None:
    digests = {}
    for name, seed in (("first", 0), ("second", 10)):
        write_ellipse_dataset(tmp_path / name, 2, seed=seed)
        files = sorted((tmp_path / name / "imagesTr").iterdir())
        digests[name] = {voxels_sha256(read(file).volume) for file in files}
    train(tmp_path / "first", tmp_path / "a", Setup(method="plain", overrides=TINY), device="cpu")
    train(
        tmp_path / "second",
        tmp_path / "b",
        Setup(start=tmp_path / "a", overrides=SHORT),
        device="cpu",
    )
    for run, wanted in (("a", digests["first"]), ("b", digests["first"] | digests["second"])):
        model = tmp_path / run / "model.safetensors"
        found = images_of_model(read_header(model), model)
        assert set(found.voxels) == wanted and found.complete
    assert len(wanted) == 4


def test_an_ensemble_has_those_of_its_members() -> None:
    header = {"members": [said("b", "a"), said("c", "a")]}
    assert images_of_model(header, None) == TrainedImages(voxels=("a", "b", "c"), complete=True)
    header["members"].append({})
    assert not images_of_model(header, None).complete


def test_other_models_say_nothing() -> None:
    for header in ({}, {"training_set": {"digest": "0", "cases": 3}}, {"training_set": 3}):
        assert images_of_model(header, None) == TrainedImages(voxels=(), complete=False)


@pytest.mark.parametrize("images", [3, [], {}, {"voxels": [1], "complete": True}])
def test_what_is_invalid_is_said(images: Any) -> None:
    with pytest.raises(ModelError) as caught:
        images_of_model({"training_set": {"images": images}}, Path("x.safetensors"))
    assert caught.value.code == "damaged-model"
