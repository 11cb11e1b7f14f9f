"""kidseg without PyTorch: on `portable`, exported models give the labels of the originals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from kidseg.checkpoint import load_model, save_model
from kidseg.config import PhantomConfig
from kidseg.errors import UsageError
from kidseg.header import read_header
from kidseg.phantom import write_patients
from kidseg.train import Setup, train
from trained import SETTINGS

ROOT = Path(__file__).parents[1]
PORTABLE = ROOT / "portable"
NUMPY = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (PORTABLE, ROOT / "src")))}
# What figures, pages and lossless JPEG need; see docs/container.md.
LEFT_OUT = {"torch", "matplotlib", "pillow", "jinja2", "python-gdcm"}


def kidseg(*words: object, portable: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kidseg", *map(str, words)]
    environment = NUMPY if portable else None
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def labels_of(folder: Path) -> np.ndarray:
    (file,) = folder.glob("*_seg.nii.gz")
    return np.asanyarray(nibabel.Nifti1Image.from_filename(file).dataobj)


def result_of(folder: Path) -> dict[str, Any]:
    (scan,) = json.loads((folder / "result.json").read_text())["scans"]
    return dict(scan)


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(trained / "run", tmp_path_factory.mktemp("exported") / "model.safetensors")


def export(model: str | Path, out: Path) -> Path:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from kidseg.segment.onnx_export import export_onnx

    export_onnx(model, out)
    return out


def both_ways(scan: Path, model: str | Path, exported: Path, out: Path) -> tuple[Path, Path]:
    """Folders of the results with PyTorch, of the model; and on NumPy, of the exported one."""
    for name, file in (("torch", model), ("numpy", exported)):
        words = ("segment", scan, "-m", file, "-o", out / name, "--device", "cpu")
        done = kidseg(*words, portable=name == "numpy")
        assert done.returncode == 0, done.stderr
    return out / "torch", out / "numpy"


@pytest.mark.requirement("container")
def test_its_labels_and_results_are_those_of_pytorch(
    trained: Path, exported: Path, tmp_path: Path
) -> None:
    scan = sorted((trained / "data" / "imagesTr").iterdir())[0]
    one, other = both_ways(scan, trained / "run", exported, tmp_path)
    assert labels_of(one).max() > 0
    assert np.array_equal(labels_of(one), labels_of(other))
    result, expected = result_of(other), result_of(one)
    assert result["model"]["sha256"] == load_model(exported).sha256
    for entry in ("volumes_ml", "sides", "grids", "warnings", "training_range", "removed"):
        assert result[entry] == expected[entry], entry


@pytest.mark.requirement("container")
@pytest.mark.slow
@pytest.mark.parametrize("crop", [False, True])
def test_homogenized_too(crop: bool, tmp_path: Path) -> None:
    write_patients(tmp_path / "data", PhantomConfig(size=64, max_slices=12), patients=4, seed=1)
    settings = [*SETTINGS, "pose.stage.epochs=1", "pose.stage.steps=5", "pose.iterations=1"]
    if crop:
        settings += ["crop.stage.epochs=1", "crop.stage.steps=5"]
    train(
        tmp_path / "data",
        tmp_path / "run",
        Setup(method="homogenized", overrides=tuple(settings)),
        device="cpu",
    )
    exported = export(tmp_path / "run", tmp_path / "exported.safetensors")
    scan = sorted((tmp_path / "data" / "imagesTr").iterdir())[0]
    one, other = both_ways(scan, tmp_path / "run", exported, tmp_path)
    assert np.array_equal(labels_of(one), labels_of(other))
    if not crop:  # whose network rounds in another order
        assert result_of(one)["grids"] == result_of(other)["grids"]


def test_a_model_is_exported_once_and_says_from_what(
    trained: Path, exported: Path, tmp_path: Path
) -> None:
    original = trained / "run" / "model.safetensors"
    header = read_header(exported)
    assert header["exported_from"] == load_model(original).sha256
    assert header["config"]["precision"] == "fp32"
    with pytest.raises(UsageError, match="already") as refused:
        export(exported, tmp_path / "again.safetensors")
    assert refused.value.code == "not-exportable"


@pytest.mark.parametrize("entry", [{"method": "plain3d"}, {"adapt": "norm"}])
def test_what_cannot_be_exported_is_refused(
    trained: Path, tmp_path: Path, entry: dict[str, str]
) -> None:
    model = load_model(trained / "run" / "model.safetensors")
    save_model(tmp_path / "other.safetensors", model.parts, {**model.header, **entry})
    with pytest.raises(UsageError) as refused:
        export(tmp_path / "other.safetensors", tmp_path / "exported.safetensors")
    assert refused.value.code == "not-exportable" and refused.value.next_step
    assert not (tmp_path / "exported.safetensors").exists()


def test_without_pytorch_weights_and_training_are_refused(trained: Path, tmp_path: Path) -> None:
    scan = sorted((trained / "data" / "imagesTr").iterdir())[0]
    done = kidseg("segment", scan, "-m", trained / "run", "-o", tmp_path / "out")
    assert done.returncode == 2 and "kidseg export-onnx" in done.stderr
    words = ("train", trained / "data", "-o", tmp_path / "run", "--method", "plain")
    done = kidseg(*words)
    assert done.returncode == 2 and "PyTorch" in done.stderr and "Traceback" not in done.stderr


def test_without_pytorch_bad_input_is_named(exported: Path, tmp_path: Path) -> None:
    bad = tmp_path / "scan.nii.gz"
    bad.write_bytes(b"no scan")
    done = kidseg("segment", bad, "-m", exported, "-o", tmp_path / "out")
    assert done.returncode == 3 and str(bad) in done.stderr


def test_numpy_gives_what_pytorch_gives(tmp_path: Path) -> None:
    """Each call of the interface: the same shape, type and values."""
    found = {}
    for name, environment in (("torch", None), ("numpy", NUMPY)):
        out = tmp_path / f"{name}.npz"
        command = [sys.executable, str(ROOT / "tests" / "two_torches.py"), str(out)]
        subprocess.run(command, check=True, env=environment)
        found[name] = dict(np.load(out))
    assert str(found["numpy"].pop("torch")).endswith("+numpy")
    assert not str(found["torch"].pop("torch")).endswith("+numpy")
    assert set(found["torch"]) == set(found["numpy"])
    for name, values in found["torch"].items():
        other = found["numpy"][name]
        assert (values.dtype, values.shape) == (other.dtype, other.shape), name
        np.testing.assert_allclose(other, values, rtol=1e-5, atol=1e-5, err_msg=name)


def test_its_packages_are_those_of_kidseg() -> None:
    needed, portable = (
        tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        for folder in (ROOT, PORTABLE)
    )
    runtime = [line for line in needed["optional-dependencies"]["onnx"] if "runtime" in line]
    kept = [line for line in needed["dependencies"] if line.split(">")[0] not in LEFT_OUT]
    assert sorted(portable["dependencies"]) == sorted([*kept, *runtime])
    assert portable["version"] == needed["version"]
