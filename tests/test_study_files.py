"""The studies in benchmarks/: their settings exist, and they compare what their pages say."""

from __future__ import annotations

import importlib
import re
import tomllib
import warnings
from pathlib import Path
from typing import Any

import pytest

from ellipses import write_ellipse_dataset
from kidseg.config import METHODS
from kidseg.errors import KidsegWarning
from kidseg.study import Design, design

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STUDIES = sorted(file.stem for file in BENCHMARKS.glob("*.toml") if "[methods." in file.read_text())
TABLES = ("methods_table", "methods_table_gpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of two data sets of different patients, by the name that studies give them."""
    root = tmp_path_factory.mktemp("data")
    for name, seed in (("", 0), ("adults", 10)):
        write_ellipse_dataset(root / f"set{name}", 4, seed=seed)
    return {name: root / f"set{name}" for name in ("", "adults")}


def designed(name: str, folders: dict[str, Path], tmp_path: Path) -> Design:
    """The study, with no more patients in its parts than small data sets have."""
    text = (BENCHMARKS / f"{name}.toml").read_text()
    text = re.sub(r"^(test_)?patients = \d+$", r"\1patients = 1", text, flags=re.MULTILINE)
    file = tmp_path / "study.toml"
    file.write_text(text)
    others = {key: folders[key] for key in tomllib.loads(text).get("others", {})}
    with warnings.catch_warnings():  # the starter does not say which images it has seen
        warnings.simplefilter("ignore", KidsegWarning)
        return design(file, dataset=folders[""], others=others)


def settings_of(plan: Design) -> dict[str, dict[str, Any]]:
    return {arm.name: tomllib.loads(arm.settings) for arm in plan.arms}


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_run(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    plan = designed(name, folders, tmp_path)
    assert plan.runs and all(plan.training_of(arm, seed) for arm, seed in plan.runs)


@pytest.mark.parametrize("name", TABLES)
def test_the_table_of_methods_has_every_method_with_the_same_time_and_seeds(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Plain with and without augmentation, homogenized with and without crop, all others once."""
    plan = designed(name, folders, tmp_path)
    methods = sorted(arm.method for arm in plan.arms)
    once = set(METHODS) - {"nnunet"}  # made by import-nnunet; nnU-Net itself joins the table
    assert methods == sorted([*once, "plain", "homogenized"])
    assert plan.config.seeds == (0, 1, 2) and all(arm.data == "" for arm in plan.arms)
    settings = settings_of(plan)
    assert len({(one["budget_s"], one["budget_clock"]) for one in settings.values()}) == 1
    augmented = {key for key, one in settings.items() if one.get("augment") == "nnunet"}
    assert "plain-augmented" in augmented and "plain" not in augmented
    crops = {key: "crop" in one and one["crop"] != "null" for key, one in settings.items()}
    assert crops["homogenized-pose-crop"] and not crops["homogenized-pose"]


def test_the_long_table_has_the_methods_of_the_short_one_with_ten_times_the_time(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def without_time(found: Any) -> Any:
        if not isinstance(found, dict):
            return found
        time = ("budget_s", "epochs", "patience")
        return {key: without_time(each) for key, each in found.items() if key not in time}

    short, long = (
        settings_of(designed(name, folders, tmp_path))
        for name in ("methods_table", "methods_table_long")
    )
    assert {key: without_time(long[key]) for key in short} == without_time(short)
    assert {one["budget_s"] for one in long.values()} == {10 * short["plain"]["budget_s"]}
    both = long["homogenized-pose-augmented"]
    assert {**both, "augment": "none"} == long["homogenized-pose"]
    assert long.keys() - short.keys() == {"homogenized-pose-augmented"}


@pytest.mark.parametrize("name", ["methods_table", "phantom_study"])
def test_the_small_nnunet_has_the_width_and_batch_of_the_others(
    name: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    small = importlib.import_module("nnunet_table").PEERS["nnunet-small"]
    plain = settings_of(designed(name, folders, tmp_path))["plain"]
    assert small == {
        "features": plain["unet"]["features"],
        "max_features": plain["unet"]["max_features"],
        "batch_size": plain["segment"]["batch_size"],
    }


def test_the_real_nnunet_trains_by_the_clock_of_its_table(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU by the clock on the wall alone: the processor's says nothing of it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    limit_of = importlib.import_module("nnunet_table").limit_of
    small, large = (designed(name, folders, tmp_path) for name in TABLES)
    assert limit_of(small, "cpu") == (60.0, "processor")
    assert limit_of(large, "cpu") == limit_of(large, "cuda:1") == (1800.0, "wall")
    with pytest.raises(SystemExit, match="says nothing of a GPU"):
        limit_of(small, "cuda")
