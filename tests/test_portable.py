"""kidseg without PyTorch: on `portable`, exported models give the labels of the originals."""

from __future__ import annotations

import json
import os
import shutil
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
from kidseg.members import ensemble
from kidseg.phantom import write_patients
from kidseg.train import Setup, train
from trained import SETTINGS

ROOT = Path(__file__).parents[1]
PORTABLE = ROOT / "portable"
# What figures, pages and lossless JPEG need; see docs/container.md.
LEFT_OUT = {"torch", "matplotlib", "pillow", "jinja2", "python-gdcm"}


def kidseg(
    *words: object, portable: bool = True, source: Path = ROOT / "src"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kidseg", *map(str, words)]
    environment = on_numpy(source) if portable else None
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def on_numpy(source: Path = ROOT / "src") -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (PORTABLE, source)))}


def labels_of(folder: Path) -> np.ndarray:
    (file,) = folder.glob("*_seg.nii.gz")
    return volume(file)


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


@pytest.mark.ci
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


@pytest.mark.slow
@pytest.mark.requirement("container")
def test_smoothing_across_slices_too(trained: Path, tmp_path: Path) -> None:
    smooth = tmp_path / "smooth.safetensors"
    ensemble([trained / "run"], smooth, smooth_mm=4.0)
    scan = sorted((trained / "data" / "imagesTr").iterdir())[0]
    one, other = both_ways(scan, smooth, export(smooth, tmp_path / "exported"), tmp_path)
    assert labels_of(one).max() > 0
    assert np.array_equal(labels_of(one), labels_of(other))


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


def volume(file: Path) -> np.ndarray:
    return np.asanyarray(nibabel.Nifti1Image.from_filename(file).dataobj)


@pytest.mark.slow
def test_without_pytorch_digital_patients_are_the_same(tmp_path: Path) -> None:
    """Rounding aside: a voxel in a thousand, by 1 HU."""
    for name in ("torch", "numpy"):
        words = ("phantom", tmp_path / name, "--patients", 1, "--seed", 3, "--size", 32)
        done = kidseg(*words, "--set", "max_slices=8", portable=name == "numpy")
        assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "torch").rglob("*.nii.gz"))
    assert len(files) == 3
    for file in files:
        expected = volume(file)
        found = volume(tmp_path / "numpy" / file.relative_to(tmp_path / "torch"))
        assert found.dtype == expected.dtype and found.shape == expected.shape
        apart = np.abs(found.astype(float) - expected)
        assert apart.max() <= (1 if "imagesTr" in file.parts else 0)
        assert np.count_nonzero(apart) <= apart.size / 1000


@pytest.fixture(scope="module")
def installed(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kidseg's source as in the image: the starter is an exported model."""
    source = tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "src" / "kidseg", source / "kidseg", copy_function=os.symlink)
    starter = source / "kidseg" / "models" / "starter.safetensors"
    starter.unlink()
    shutil.copy(exported, starter)
    return source


@pytest.mark.slow
@pytest.mark.requirement("container")
def test_without_pytorch_the_doctor_examines_what_is_there(installed: Path) -> None:
    done = kidseg("doctor", "--json", source=installed)
    found = json.loads(done.stdout)
    assert (done.returncode, found["problems"]) == (0, []), done.stderr
    assert found["sound"] and not found["pytorch"]
    assert found["tests"][-1]["test"] == "segment it by the starter"
    assert all(test["passed"] for test in found["tests"])
    said = kidseg("doctor", source=installed).stdout
    assert "PyTorch" in said and "exported models" in said and "All is sound." in said


@pytest.mark.ci
def test_without_pytorch_the_doctor_says_that_the_starter_cannot_be_used() -> None:
    """That of the source is not exported."""
    done = kidseg("doctor", "--json")
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["code"] == "needs-pytorch" and "kidseg export-onnx" in problem["next_step"]
    assert done.returncode == 2


def test_numpy_gives_what_pytorch_gives(tmp_path: Path) -> None:
    """Each call of the interface: the same shape, type and values."""
    found = {}
    for name, environment in (("torch", None), ("numpy", on_numpy())):
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


def test_completing_labels_needs_pytorch(trained: Path, tmp_path: Path) -> None:
    scan = next((trained / "data" / "imagesTr").iterdir())
    done = kidseg("complete", scan, scan, "-o", tmp_path / "out", portable=True)
    assert done.returncode == UsageError.exit_code
    assert "needs PyTorch, which trains the model" in done.stderr
