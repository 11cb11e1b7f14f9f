"""From files to figures: patients, training, segmentation, evaluation, by each method."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from ellipses import write_ellipse_dataset
from kidseg.checkpoint import read_header
from kidseg.cohort.cohort import patient_dice
from kidseg.errors import InputError
from kidseg.evaluate import evaluate
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, read, save
from kidseg.segment import load_predictor, segment
from kidseg.train import Setup, make_store, preview, train

SETTINGS = (
    "view.size=48",
    "unet.bottleneck=6",
    "unet.supervised_to=24",
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
STAGES = tuple(
    f"{net}.{setting}"
    for net in ("coarse", "resunet", "resnet")
    for setting in (
        "net.levels=2",
        "net.features=8",
        "weights=[0.1,1,2]",
        "stage.epochs=8",
        "stage.steps=8",
        "stage.batch_size=9",
        "stage.optimizer.learning_rate=0.01",
    )
)
AROUND = ("slice_mm=null", "coarse_size=32", "box=32", "resnet.net.blocks=1")
METHODS = {
    "plain": ("plain", SETTINGS),
    "homogenized": ("homogenized", (*SETTINGS, *POSE)),
    "homogenized with crop": ("homogenized", (*SETTINGS, *POSE, *CROP, "pose.teacher=0.0")),
    "multistage": ("multistage", (*STAGES, *AROUND, "resnet.net.dropout=0.1")),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flow") / "data"
    write_ellipse_dataset(root, 9)
    return root


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in ("homogenized", "multistage")
        else name
        for name in METHODS
    ],
)
def test_a_method_learns_and_is_measured(data: Path, tmp_path: Path, name: str) -> None:
    """Six patients to train on, one to validate, two never seen; noise keeps it from being easy."""
    method, settings = METHODS[name]
    cases = [f"ellipse_{k:03d}" for k in range(9)]
    train(
        data,
        tmp_path / "run",
        Setup(method=method, overrides=settings, cases=cases[:7]),
        device="cpu",
    )
    scans = [data / "imagesTr" / f"{case}_0000.nii.gz" for case in cases[7:]]
    segment(scans, tmp_path / "run" / "model.safetensors", tmp_path / "found", device="cpu")
    evaluate(tmp_path / "found", data, tmp_path / "figures", cases=cases[7:])
    summary = json.loads((tmp_path / "figures" / "summary.json").read_text())
    assert summary["n_cases"] == 2
    for structure in ("kidney", "kidney+tumour", "tumour"):
        assert summary["structures"][structure]["dice"]["mean"] > 0.8, structure


REGIONS = {
    "labels": {"background": 0, "kidney and tumour": [1, 2], "tumour": [1]},
    "regions_class_order": [2, 1],
}


@pytest.mark.ci
def test_regions_that_overlap_are_learned_and_written_as_labels(tmp_path: Path) -> None:
    """nnU-Net's region-based training: two channels, each with a probability of its own.

    The tumour is label 1 here, and kidney what is left of the outer region, label 2.
    """
    data = tmp_path / "data"
    patients = write_ellipse_dataset(data, 9, tells=REGIONS)
    other = torch.tensor([0, 2, 1], dtype=torch.uint8)
    for name, patient in patients.items():
        swapped = Volume(other[patient.labels.data.int()], patient.labels.grid)
        save(swapped, data / "labelsTr" / f"{name}.nii.gz", overwrite=True)
    cases = sorted(patients)
    summary = train(
        data,
        tmp_path / "run",
        Setup(method="plain", overrides=[*SETTINGS, "segment.epochs=20"], cases=cases[:7]),
        device="cpu",
    )
    assert set(summary["validation"]["segment"]["dice"]) == {"kidney and tumour", "tumour"}
    model = tmp_path / "run" / "model.safetensors"
    header = read_header(model)
    assert header["input"]["unit"] == "HU"
    labels = header["labels"]
    assert labels["target"] == {
        "channels": [[1, 2], [1]],
        "exclusive": False,
        "writes": [2, 1],
    }
    predictor = load_predictor(model, "cpu")
    assert not predictor.method.target.exclusive and predictor.method.target.outputs == 2
    scans = [data / "imagesTr" / f"{case}_0000.nii.gz" for case in cases[7:]]
    segment(scans, model, tmp_path / "found", device="cpu")
    for case in cases[7:]:
        options = ReadOptions(values="labels")
        found = read(tmp_path / "found" / f"{case}_seg.nii.gz", options).volume.data
        assert found.unique().tolist() == [0, 1, 2]
    evaluate(tmp_path / "found", data, tmp_path / "figures", cases=cases[7:])
    figures = json.loads((tmp_path / "figures" / "summary.json").read_text())
    assert figures["n_cases"] == 2
    assert set(figures["structures"]) == {"kidney and tumour", "tumour"}
    for name, structure in figures["structures"].items():
        assert structure["dice"]["mean"] > 0.8, name


@pytest.mark.ci
def test_two_channels_of_an_mr_are_learned(tmp_path: Path) -> None:
    """Each patient with a gain of its own; from files, and from what is in memory."""
    data = tmp_path / "data"
    patients = write_ellipse_dataset(data, 9, channels=("T1", "T2"))
    cases = sorted(patients)
    train(
        data,
        tmp_path / "run",
        Setup(method="plain", overrides=SETTINGS, cases=cases[:7]),
        device="cpu",
    )
    model = tmp_path / "run" / "model.safetensors"
    header = read_header(model)
    assert header["input"]["channels"] == ["T1", "T2"]
    assert header["input"]["unit"] == "as in the data set"
    predictor = load_predictor(model, "cpu")
    for case in cases[7:]:
        patient = patients[case]
        found = predictor(patient.image, case)
        dice = patient_dice(found.labels, patient.labels, predictor.schema)
        assert all(value is not None and value > 0.8 for value in dice.values()), dice
        louder = predictor(Volume(patient.image.data * 3, patient.image.grid), case)
        same = (louder.labels.data == found.labels.data).float().mean()
        assert same > 0.999, "the gain does not count"
    first = data / "imagesTr" / f"{cases[7]}_0000.nii.gz"
    segment([first], model, tmp_path / "found", device="cpu")
    options = ReadOptions(values="labels")
    written = read(tmp_path / "found" / f"{cases[7]}_seg.nii.gz", options).volume
    found = predictor(patients[cases[7]].image)
    assert torch.equal(written.data, found.labels.data), "the second lies beside the first"


def test_homogenization_of_an_mr_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_ellipse_dataset(data, 4, channels=("T1", "T2"))
    with pytest.raises(InputError, match="one channel of CT") as error:
        train(data, tmp_path / "run", Setup(method="homogenized"), device="cpu")
    assert error.value.code == "not-ct" and error.value.next_step
    assert not (tmp_path / "run" / "model.safetensors").exists()
    for refused in (preview, partial(make_store, path=tmp_path / "store")):
        with pytest.raises(InputError, match="one channel of CT"):
            refused(data, setup=Setup(method="homogenized"))
    preview(data, Setup(method="plain"))


@pytest.mark.ci
@pytest.mark.parametrize(("target", "region"), [("merged", "kidney+tumour"), ("tumour", "tumour")])
def test_networks_of_one_region_train_and_say_only_what_they_know(
    tmp_path: Path, target: str, region: str
) -> None:
    """With neighbouring slices as channels, too."""
    data = tmp_path / "data"
    write_ellipse_dataset(data, 5)
    overrides = [*SETTINGS, "segment.epochs=2", f"cohort.target={target}", "reach=1"]
    method = "plain" if target == "merged" else "homogenized"
    overrides += ["apart_mm=8", "augment=style"] if method == "plain" else ["pose.stage.epochs=1"]
    summary = train(data, tmp_path / "run", Setup(method=method, overrides=overrides))
    assert set(summary["validation"]["segment"]["dice"]) == {region}
    model = tmp_path / "run" / "model.safetensors"
    scan = data / "imagesTr" / "ellipse_000_0000.nii.gz"
    (result,) = segment([scan], model, tmp_path / "found", device="cpu")
    assert set(result["volumes_ml"]) == {region}
    found = read(tmp_path / "found" / "ellipse_000_seg.nii.gz", ReadOptions(values="labels"))
    assert set(found.volume.data.unique().tolist()) <= {0, 1 if target == "merged" else 2}
