"""The model that the package ships: used by default, said, and in the distributions.

A tiny trained model stands in its place, so that this is tested in a package without it too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from commands import call_cli
from kidseg import model_file
from kidseg.checkpoint import load_model
from kidseg.config import PhantomConfig
from kidseg.errors import KidsegWarning, UsageError
from kidseg.header import read_header
from kidseg.io import ReadOptions, read
from kidseg.model_card import ModelCard
from kidseg.model_file import STARTER_USE, find_model, has_starter
from kidseg.phantom import write_patients
from kidseg.segment import load_predictor, segment
from kidseg.train import Setup
from kidseg.train.trained_images import images_of_model
from trained import copied

ROOT = Path(__file__).parents[1]
SHIPPED = model_file.STARTER_FILE
MOST_BYTES = 25_000_000


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(trained, tmp_path_factory.mktemp("starter"))


@pytest.fixture
def starter(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in the place of the shipped one."""
    path = tmp_path / "package" / "starter.safetensors"
    path.parent.mkdir()
    shutil.copy(folder / "run" / "model.safetensors", path)
    monkeypatch.setattr(model_file, "STARTER_FILE", path)
    return path


@pytest.fixture
def no_starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "STARTER_FILE", tmp_path / "none.safetensors")


def scan(folder: Path) -> Path:
    return folder / "data" / "imagesTr" / "ellipse_000_0000.nii.gz"


# The command line


@pytest.mark.parametrize("named", [(), ("-m", "starter")])
def test_the_starter_segments_and_is_said(
    folder: Path,
    starter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    named: tuple[str, ...],
) -> None:
    out = tmp_path / "out"
    assert call_cli("segment", scan(folder), *named, "-o", out, "--device", "cpu") == 0
    told = capsys.readouterr()
    model = load_model(starter)
    (line,) = (line for line in told.err.splitlines() if "starter model" in line)
    assert f"{model.header['kidseg']} ({model.sha256[:12]})" in line
    assert STARTER_USE in line and "digital patients only" in line and "research use" in line
    (entry,) = json.loads((out / "result.json").read_text())["scans"]
    assert entry["model"] == {
        "path": str(starter),
        "sha256": model.sha256,
        "method": "plain",
        "name": "starter",
        "use": STARTER_USE,
    }
    assert (
        read(out / "ellipse_000_seg.nii.gz", ReadOptions(values="labels")).volume.data > 0
    ).any()


def test_quiet_and_json_say_no_line(
    folder: Path, starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("segment", scan(folder), "--device", "cpu")
    assert call_cli(*command, "-o", tmp_path / "a", "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert call_cli(*command, "-o", tmp_path / "b", "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["model"]["name"] == "starter"


def test_another_model_is_not_called_the_starter(
    folder: Path, starter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though its weights are the same."""
    out = tmp_path / "out"
    assert (
        call_cli("segment", scan(folder), "-m", folder / "run", "-o", out, "--device", "cpu") == 0
    )
    assert "starter" not in capsys.readouterr().err
    (entry,) = json.loads((out / "result.json").read_text())["scans"]
    assert set(entry["model"]) == {"path", "sha256", "method"}


@pytest.mark.usefixtures("no_starter")
def test_a_package_without_it_says_what_to_do(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ("segment", scan(folder), "-o", tmp_path / "out"),
        ("segment", scan(folder), "-m", "starter", "-o", tmp_path / "out"),
        ("info", "starter"),
        ("train", folder / "data", "-o", tmp_path / "out", "--from", "starter"),
    ):
        assert call_cli(*words, "--json") == 2
        error = json.loads(capsys.readouterr().out)["error"]
        assert error["code"] == "no-starter"
        assert "kidseg train" in error["next_step"] and "-m MODEL" in error["next_step"]
    assert not (tmp_path / "out").exists()


def test_info_shows_the_starter_and_the_short_command(
    starter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call_cli("info", "starter") == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == str(starter)
    assert text.rstrip().endswith("Use it: kidseg segment SCAN -o result")


def test_fine_tuning_from_the_starter(folder: Path, starter: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    short = [word for one in ("segment.epochs=1", "segment.steps=1") for word in ("--set", one)]
    words = ("train", folder / "data", "-o", run, "--from", "starter", *short, "--device", "cpu")
    assert call_cli(*words, "-q") == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["start"]["sha256"] == load_model(starter).sha256
    assert summary["method"] == "plain"


# Python


def test_the_starter_in_python(folder: Path, starter: Path, tmp_path: Path) -> None:
    sha256 = load_model(starter).sha256
    assert load_predictor("starter", "cpu").sha256 == load_predictor(device="cpu").sha256 == sha256
    (result,) = segment([scan(folder)], None, tmp_path / "out", device="cpu")
    assert result["model"]["name"] == "starter"
    setup = Setup(start=find_model("starter"))
    assert setup.start == starter


# A file or folder of that name


@pytest.mark.parametrize("kind", ["run", "file"])
def test_the_name_means_the_same_in_every_directory(
    kind: str, folder: Path, starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the working directory is a path: ./starter, or a `Path`; a warning says so."""
    monkeypatch.chdir(tmp_path)
    model = folder / "run" / "model.safetensors"
    if kind == "run":
        Path("starter").mkdir()
    own = shutil.copy(model, Path("starter/model.safetensors" if kind == "run" else "starter"))
    with pytest.warns(KidsegWarning, match=r"\./starter"):
        assert find_model("starter") == starter
    assert find_model("./starter") == find_model(Path("starter")) == own
    assert find_model(None) == starter


def test_a_path_on_the_command_line_stays_one(
    folder: Path,
    starter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "run", "starter")
    words = ("segment", scan(folder), "-m", "./starter", "-o", "out", "--device", "cpu")
    assert call_cli(*words, "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["model"]["path"] == "starter/model.safetensors"
    assert call_cli("info", "./starter") == 0
    assert capsys.readouterr().out.splitlines()[0] == "starter/model.safetensors"
    with pytest.warns(KidsegWarning, match="ships"):
        assert call_cli("info", "starter") == 0
    assert capsys.readouterr().out.splitlines()[0] == str(starter)


# The package


def test_wheel_and_sdist_contain_it(tmp_path: Path) -> None:
    """Built from this pyproject.toml, of a package with nothing but a model in its place."""
    pytest.importorskip("setuptools", minversion="77", reason="builds need setuptools >= 77")
    place = SHIPPED.relative_to(ROOT / "src")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "src" / place).parent.mkdir(parents=True)
    (tmp_path / "src" / place).write_bytes(b"a model")
    (tmp_path / "src" / "kidseg" / "__init__.py").touch()
    code = (
        "from setuptools import build_meta as b; print(b.build_wheel('dist'));"
        "print(b.build_sdist('dist'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,), (sdist,) = ((tmp_path / "dist").glob(end) for end in ("*.whl", "*.tar.gz"))
    assert str(place) in zipfile.ZipFile(wheel).namelist()
    with tarfile.open(sdist) as archive:
        assert any(name.endswith(f"/src/{place}") for name in archive.getnames())


@pytest.mark.skipif(not has_starter(), reason="this working tree has no starter model yet")
def test_the_shipped_starter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is small, has a card, knows its training, and finds the kidneys of a digital patient."""
    assert SHIPPED.stat().st_size < MOST_BYTES
    model = load_model(SHIPPED)
    assert model.header["model_card"]["licence"] == "Apache-2.0"
    assert {"renal_hu", "bright_hu"} <= set(model.header["training_range"])
    assert images_of_model(model.header, SHIPPED).complete
    intervals = model.header["intervals"]
    assert set(intervals["ends"]) == {"kidney", "kidney+tumour", "tumour"}
    assert len(intervals["cases"]) == 189 and intervals["scans"] == "digital patients"
    assert call_cli("info", "starter") == 0
    assert "Model card" in capsys.readouterr().out
    config = PhantomConfig(
        size=128, slice_mm=(5.0, 5.0), ages_years=(8.0, 8.0), phase="portal-venous"
    )
    write_patients(tmp_path / "data", config, patients=1, seed=4242, layout="nnunet")
    (image,) = (tmp_path / "data" / "imagesTr").iterdir()
    (result,) = segment([image], None, tmp_path / "out", device="cpu")
    found, true = (
        read(folder / f"{result['name']}{end}", ReadOptions(values="labels")).volume.data > 0
        for folder, end in (
            (tmp_path / "out", "_seg.nii.gz"),
            (tmp_path / "data" / "labelsTr", ".nii.gz"),
        )
    )
    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.6
    assert result["review"]["interval"] == "conformal"
    assert result["review"]["calibrated_scans"] == "digital patients"
    codes = {warning["code"] for warning in result["warnings"]}
    assert not codes & {"no-contrast", "unusual-values", "outside-training-range"}


@pytest.mark.skipif(not has_starter(), reason="this working tree has no starter model yet")
def test_card_page_and_look_of_the_shipped_starter_say_the_same() -> None:
    """The card in the file is that of the repository; its page has each mean and SD; and what it
    says of the real slices is what the look at this version found."""
    shipped = read_header(SHIPPED)["model_card"]
    card = tomllib.loads((ROOT / "benchmarks" / "starter_card.toml").read_text(encoding="utf-8"))
    assert ModelCard.from_dict(shipped) == ModelCard.from_dict(card)
    page = (ROOT / "docs" / "starter.md").read_text(encoding="utf-8")
    for one in card["measured"]:
        figure = f"{one['mean']:.3f} ({one['sd']:.3f})" if "sd" in one else f"{one['mean']:.3f}"
        assert figure in page, one
    lines = (ROOT / "docs" / "starter_looks.jsonl").read_text(encoding="utf-8").splitlines()
    (look,) = (one for one in map(json.loads, lines) if one["note"].startswith("twelfth starter"))
    scores = look["figures"]["kits19_slices"]
    real = [one for one in card["measured"] if "KiTS19" in one["data"]]
    assert {one["structure"] for one in real} == set(scores)
    for one in real:
        found = scores[one["structure"]]
        dice = sorted(found["by_patient"].values())
        assert len(dice) == one["n"]
        expected = [found["mean"], found["sd"], found["median"], dice[-1], dice[0]]
        said = [one[name] for name in ("mean", "sd", "median", "best", "worst")]
        assert said == pytest.approx(expected, abs=6e-4), one


def segmented(root: Path, config: PhantomConfig, *, patients: int, seed: int) -> list[str]:
    """Segment digital patients in data/ of a folder into out/, by the starter; their names."""
    write_patients(root / "data", config, patients=patients, seed=seed, layout="nnunet")
    results = segment(sorted((root / "data" / "imagesTr").iterdir()), None, root / "out")
    return [str(result["name"]) for result in results]


@pytest.mark.slow
def test_the_shipped_starter_takes_no_femur_for_a_kidney(tmp_path: Path) -> None:
    config = PhantomConfig(
        size=160,
        slice_mm=(5.0, 5.0),
        ages_years=(40.0, 40.0),
        phase="early-arterial",
        trunk_share=1,
    )
    for name in segmented(tmp_path, config, patients=2, seed=4243):
        labels = read(tmp_path / "out" / f"{name}_seg.nii.gz", ReadOptions(values="labels"))
        organs = tmp_path / "data" / "truth" / f"{name}_organs.nii.gz"
        bones = np.isin(read(organs, ReadOptions(values="labels")).volume.data.numpy(), (6, 34))
        found = labels.volume.data.numpy() > 0
        assert (found & bones).sum() * float(labels.volume.grid.voxel_ml) < 20
        assert found.any() and bones.any()


@pytest.mark.slow
def test_the_shipped_starter_finds_a_kidney_that_its_tumour_has_moved(tmp_path: Path) -> None:
    config = PhantomConfig(
        size=192,
        slice_mm=(4.0, 4.0),
        ages_years=(50.0, 60.0),
        phase="portal-venous",
        displaced_share=1.0,
    )
    labels = ReadOptions(values="labels")
    dice = []
    for name in segmented(tmp_path, config, patients=6, seed=4244):
        found, true = (
            read(path, labels).volume.data.numpy() == 1
            for path in (
                tmp_path / "out" / f"{name}_seg.nii.gz",
                tmp_path / "data" / "labelsTr" / f"{name}.nii.gz",
            )
        )
        dice.append(2 * (found & true).sum() / (found.sum() + true.sum()))
    assert np.mean(dice) > 0.85


def test_no_starter_is_a_usage_error(no_starter: None) -> None:
    with pytest.raises(UsageError) as error:
        find_model()
    assert error.value.code == "no-starter" and error.value.exit_code == 2
