"""The demo, small: what a newcomer runs first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kidseg.demo import run
from kidseg.errors import UsageError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    told = []
    result = run(out / "d", patients=3, seed=1, size=96, progress=lambda a, b: told.append((a, b)))
    assert told[-1][0] == told[-1][1]
    assert "Overlap" in str(result)
    return out / "d"


def test_it_finds_that_normalising_helps(demo: Path) -> None:
    result = json.loads((demo / "demo.json").read_text())
    assert len(result["patients"]) == 3
    assert result["overlap_after"] > 0.93
    assert result["overlap_after"] > result["overlap_before"] + 0.05


def test_moments_find_the_turn_that_the_patient_was_given(demo: Path) -> None:
    """Roughly: a trunk is nearly an ellipse, so its outline alone hardly knows the angle."""
    result = json.loads((demo / "demo.json").read_text())
    for patient in result["patients"]:
        truth = json.loads((demo / "patients" / "truth" / f"{patient['case']}.json").read_text())
        assert abs(patient["angle_deg"] - truth["pose"]["angle_deg"]) < 12


def test_its_picture_shows_something(demo: Path) -> None:
    from matplotlib import image

    pixels = image.imread(demo / "demo.png")
    assert pixels.shape[0] > 400
    assert pixels[..., :3].std() > 0.1


def test_a_second_run_needs_overwrite(demo: Path) -> None:
    with pytest.raises(UsageError, match="overwrite"):
        run(demo, patients=3, seed=1, size=96)


def test_a_picture_without_its_patients_is_not_overwritten_either(tmp_path: Path) -> None:
    (tmp_path / "demo.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match="overwrite"):
        run(tmp_path, patients=2, seed=1, size=64)
    assert (tmp_path / "demo.png").read_bytes() == b"mine"
    assert not (tmp_path / "patients").exists()
