"""The demo, small: what a newcomer runs first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ellipses import write_ellipse_dataset
from kidseg import model_file
from kidseg.cases import open_dataset
from kidseg.demo import _try_starter, planned, run
from kidseg.errors import InputError, UsageError
from kidseg.header import read_header
from kidseg.model_file import STARTER_USE
from kidseg.train import Setup, train

# A training of seconds: what it learns is not looked at here.
SHORT = (
    "view.size=64",
    "unet.bottleneck=8",
    "unet.features=6",
    "unet.max_features=24",
    "segment.epochs=2",
    "segment.steps=4",
    "pose.localizer.size=32",
    "pose.stage.epochs=1",
    "pose.stage.steps=4",
)


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model for the place of the shipped one: it has learned a few ellipses."""
    root = tmp_path_factory.mktemp("tiny")
    write_ellipse_dataset(root / "data", 4)
    tiny = ("view.size=32", "unet.size=32", "unet.features=4", "segment.epochs=1")
    setup = Setup(method="plain", overrides=(*tiny, "segment.min_epochs=0", "segment.steps=4"))
    train(root / "data", root / "run", setup, device="cpu")
    return root / "run" / "model.safetensors"


@pytest.mark.slow
def test_patients_that_are_damaged_while_they_are_written_end_it(tmp_path: Path) -> None:
    """As by a disk that fails."""

    def damage(stage: str, done: int, total: int, figures: object) -> None:
        if done == total:
            scan = next((tmp_path / "d").rglob("imagesTr/*.nii.gz"))
            scan.write_bytes(scan.read_bytes()[:-100])

    with pytest.raises(InputError) as refused:
        run(tmp_path / "d", patients=5, held_out=2, seed=1, size=64, progress=damage)
    assert refused.value.code == "unsound-phantoms" and "seed" in refused.value.next_step


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, starter: Path) -> Path:
    out = tmp_path_factory.mktemp("demo") / "d"
    lines: list[str] = []
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_file, "STARTER_FILE", starter)
        result = run(
            out,
            patients=6,
            held_out=2,
            seed=1,
            size=64,
            overrides=SHORT,
            say=lines.append,
            progress=lambda stage, done, total, _: shown.append((stage, done, total)),
        )
    assert {"patients", "pose", "segment", "segmenting"} <= {stage for stage, _, _ in shown}
    _, at_once, training, _ = lines
    assert STARTER_USE in at_once and "Dice kidney" in at_once and "Training" in training
    assert str(out / "starter" / "result") in at_once and "_steps.png" in at_once
    assert "kidseg segment SCAN -o result" in str(result)
    return out


def test_the_starter_segments_a_held_out_patient_before_the_training(demo: Path) -> None:
    """Its picture, and the Dice that is said, are in the demo's folder."""
    written = json.loads((demo / "demo.json").read_text())
    name = written["held_out"][0]
    files = {file.name for file in (demo / "starter" / "result").iterdir()}
    assert files == {f"{name}_seg.nii.gz", f"{name}_steps.png", "result.json"}
    scores = json.loads((demo / "starter" / "scores" / "summary.json").read_text())
    means = {region: one["dice"]["mean"] for region, one in scores["structures"].items()}
    assert scores["n_cases"] == 1
    assert written["starter"] == {k: v for k, v in means.items() if v is not None}
    segmented = (demo / "starter" / "result" / "result.json").stat().st_mtime_ns
    assert segmented < (demo / "run" / "run.json").stat().st_mtime_ns


def test_a_package_without_a_starter_says_so_and_goes_on(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "STARTER_FILE", tmp_path / "none.safetensors")
    lines: list[str] = []
    (case, *_) = open_dataset(demo / "patients").cases
    assert _try_starter(tmp_path, case, lines.append, overwrite=False) is None
    assert "without its starter model" in lines[0] and not list(tmp_path.iterdir())
    planned_outputs = planned(tmp_path, patients=6, held_out=2)["outputs"]
    assert "starter" not in planned_outputs and "run" in planned_outputs


def test_the_model_never_saw_the_patients_it_is_tried_on(demo: Path) -> None:
    written = json.loads((demo / "demo.json").read_text())
    used = json.loads((demo / "run" / "cases.json").read_text())
    learned = {*used["training"], *used["validation"]}
    assert len(written["held_out"]) == 2
    assert learned == set(written["training"])
    assert not learned & set(written["held_out"])


def test_what_it_says_is_what_was_scored(demo: Path) -> None:
    written = json.loads((demo / "demo.json").read_text())
    scores = json.loads((demo / "scores" / "summary.json").read_text())
    assert scores["n_cases"] == 2
    assert written["dice"] == {name: s["dice"] for name, s in scores["structures"].items()}


def test_homogenized_outlines_overlap_more(demo: Path) -> None:
    overlap = json.loads((demo / "demo.json").read_text())["overlap"]
    assert overlap["after"] > max(0.85, overlap["before"] + 0.05)


def test_its_model_is_one_to_segment_with(demo: Path) -> None:
    header = read_header(demo / "run" / "model.safetensors")
    assert header["method"] == "homogenized"
    assert len(list((demo / "result").glob("*_seg.nii.gz"))) == 2
    assert len(list((demo / "result").glob("*_steps.png"))) == 2


def test_its_picture_shows_something(demo: Path) -> None:
    from matplotlib import image

    pixels = image.imread(demo / "demo.png")
    assert pixels.shape[0] > 400
    assert pixels[..., :3].std() > 0.1


def test_a_second_run_needs_overwrite(demo: Path) -> None:
    with pytest.raises(UsageError, match="overwrite"):
        run(demo, patients=6, held_out=2, seed=1, size=64, overrides=SHORT)


def test_nothing_that_lies_there_is_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "demo.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match="overwrite"):
        run(tmp_path, patients=6, held_out=2, seed=1, size=64)
    assert (tmp_path / "demo.png").read_bytes() == b"mine"
    assert not (tmp_path / "patients").exists()


def test_settings_that_do_not_fit_are_refused_before_patients_are_drawn(tmp_path: Path) -> None:
    for settings in (("view.size=3",), ("view.size=64", "unet.bottleneck=8", "unet.size=32")):
        with pytest.raises(UsageError) as error:
            run(tmp_path / "demo", patients=6, held_out=2, seed=1, size=64, overrides=settings)
        assert error.value.code == "bad-setting" and not (tmp_path / "demo" / "patients").exists()


@pytest.mark.parametrize(("patients", "held_out"), [(4, 2), (6, 1), (6, 4)])
def test_too_few_patients_are_refused(tmp_path: Path, patients: int, held_out: int) -> None:
    with pytest.raises(UsageError, match="too few"):
        run(tmp_path, patients=patients, held_out=held_out, seed=1)
