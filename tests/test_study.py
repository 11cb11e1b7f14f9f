"""A study: what it refuses, how it divides, averages and measures; and one done by real runs."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel
import pytest
from safetensors import safe_open

from ellipses import write_ellipse_dataset
from kidseg.cases.same_images import voxels_sha256
from kidseg.checkpoint import save_model
from kidseg.cli.studies import _named_folders
from kidseg.config import METHODS, StudyConfig, load
from kidseg.device import choose_device
from kidseg.errors import (
    BatchError,
    InputError,
    KidsegError,
    KidsegWarning,
    ModelError,
    UsageError,
)
from kidseg.evaluate import METRICS, Row, evaluate, read_run
from kidseg.intensity import Normalisation, Statistics
from kidseg.io import read
from kidseg.labels import LabelSchema, Target
from kidseg.methods import method_named
from kidseg.plan import Plan
from kidseg.records import sealed
from kidseg.study import Design, StudyRun, _wait_for, _write, design, study, study_runs
from kidseg.study.chart import validation_curve
from kidseg.study.page import _budgets
from kidseg.study.process import Completed, Launcher
from kidseg.study.results import average, of_patients, spread, write_average
from kidseg.study.stamp import new_stamp, write_stamp
from pages import opened

TINY = """
seeds = [0]
validation_share = 0.25
{top}

[common]
set = ["view.size=32", "unet.size=32", "unet.features=4", "precision=fp32",
  "segment.epochs=2", "segment.min_epochs=0", "segment.steps=1", "segment.batch_size=6"]

[methods.plain]
method = "plain"
{more}
"""
POSED = """
[methods.posed]
method = "homogenized"
set = ["pose.localizer.size=32", "pose.localizer.pooled=4", "pose.localizer.hidden=[16,8]",
  "pose.stage.epochs=2", "pose.stage.min_epochs=0", "pose.stage.steps=2", "pose.stage.batch_size=6"]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study") / "ellipses"
    write_ellipse_dataset(root, 6)
    return root


def toml(folder: Path, top: str = "test_patients = 2", more: str = "") -> Path:
    file = folder / "study.toml"
    file.write_text(TINY.format(top=top, more=more))
    return file


# The file


@pytest.mark.parametrize(
    ("top", "more", "named"),
    [
        ("test_patient = 2", "", "unknown key 'test_patient'"),
        ("", "", "test_patients"),
        ('test = ["a"]\ntest_patients = 2', "", "test_patients"),
        ("test_patients = 0", "", "'test_patients'"),
        ("test_patients = 2\nprotocol = 'best'", "", "'protocol'"),
        ("test_patients = 2", '[methods."a/b"]\nmethod = "plain"', "a/b"),
        ("test_patients = 2", '[methods.b]\nmethod = "unet"', "methods.b.method"),
        (
            "test_patients = 2",
            '[methods.b]\nmethod = "unet"',
            "unknown method 'unet'; choose one of homogenized, plain",
        ),
        ("test_patients = 2", '[methods.b]\nmethod = "plain"\nseed = 3', "methods.b.seed"),
        (
            "test_patients = 2",
            '[methods.b]\nmethod = "plain"\nset = ["unet.feature=3"]',
            r"methods\.b: unknown key 'unet\.feature'",
        ),
        (
            "test_patients = 2",
            '[methods.b]\nmethod = "plain"\nset = ["cohort.validation_share=0.5"]',
            r"methods\.b: all methods have the same validation patients",
        ),
        ("test_patients = 2", '[methods.b]\nmethod = "plain"\npreset = "x"', r"methods\.b: .*'x'"),
        ("test_patients = 2", '[methods.b]\nmethod = "plain"\ntune = "all"', "requires a model"),
        ("test_patients = 2", '[methods.b]\nmethod = "plain"\npatients = 4', "4 training patients"),
        (
            "test_patients = 2",
            '[methods.b]\nmethod = "plain"\npatients = 0',
            r"methods\.b\.patients' must be at least 1",
        ),
        (
            "test_patients = 2",
            '[methods.b]\nmethod = "plain"\nstart = "c"\n[methods.c]\nmethod = "plain"',
            r"methods\.b: no method 'c' above it to start from",
        ),
        (
            "test_patients = 2",
            '[methods.b]\nmethod = "plain"\nstart = "plain"\nmodel = "starter"',
            "either model, a file, or start",
        ),
        (
            "test_patients = 2",
            '[methods.b]\nmethod = "homogenized"\nstart = "plain"',
            r"methods\.b: it starts from 'plain', which has method 'plain'",
        ),
        (
            "test_patients = 2",
            '[methods.b]\nmethod = "plain"\nstart = "plain"\nset = ["unet.feature=3"]',
            r"methods\.b: unknown key 'unet\.feature'",
        ),
        (
            "test_patients = 2",
            '[methods.b]\nmethod = "plain"\ndata = "adults"',
            r"methods\.b: no data set 'adults' in others",
        ),
        ("test_patients = 2", "[others.adults]", "give either test"),
        ("test_patients = 2", "[others.adults]\ntest_patients = 2", "'adults' is in no folder"),
    ],
)
def test_wrong_settings_are_named(
    top: str, more: str, named: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=named):
        design(toml(tmp_path, top, more), dataset=data)


def test_seeds_are_distinct_and_there_are_methods(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    for text, named in (("seeds = [1, 1]\n[methods.a]\nmethod='plain'", "twice"), ("", "methods")):
        file.write_text(f"test_patients = 2\n{text}")
        with pytest.raises(UsageError, match=named):
            load(StudyConfig, file=file)


@pytest.mark.parametrize(
    ("top", "code", "given"),
    [
        ("test_patients = 2", "no-dataset", False),
        ('test = ["ellipse_009"]', "unknown-case", True),
        ("test_patients = 6", "bad-test-size", True),
        ("test_patients = 5", "bad-split", True),
    ],
)
def test_data_that_do_not_fit(top: str, code: str, given: bool, data: Path, tmp_path: Path) -> None:
    with pytest.raises(KidsegError) as caught:
        design(toml(tmp_path, top), dataset=data if given else None)
    assert caught.value.code == code and caught.value.next_step + caught.value.cause


@pytest.mark.requirement("no leak")
def test_a_patient_is_in_one_part_only(data: Path, tmp_path: Path) -> None:
    """Two cases of one patient, by nnU-Net's table of this project: one named, one not."""
    import shutil

    root = tmp_path / "two"
    shutil.copytree(data, root)
    text = "case,patient\n" + "".join(f"ellipse_{k:03d},p{k // 2}\n" for k in range(6))
    (root / "patients.csv").write_text(text)
    with pytest.raises(UsageError, match="other") as caught:
        design(toml(tmp_path, 'test = ["ellipse_000"]'), dataset=root)
    assert caught.value.code == "bad-split"
    found = design(toml(tmp_path, 'test = ["ellipse_000", "ellipse_001"]'), dataset=root)
    assert found.main.n_patients(found.main.test) == 1


# The design


@pytest.mark.requirement("no leak")
def test_the_parts_share_nothing_and_are_the_same_each_time(data: Path, tmp_path: Path) -> None:
    found = design(toml(tmp_path), dataset=data)
    parts = _parts(found)
    assert [len(part) for part in parts] == [3, 1, 2]
    assert sorted(sum(parts, ())) == [f"ellipse_{k:03d}" for k in range(6)]
    assert parts == _parts(design(toml(tmp_path), dataset=data))
    others = {
        design(toml(tmp_path, f"test_patients = 2\nsplit_seed = {seed}"), dataset=data).main.test
        for seed in range(6)
    }
    assert len(others) > 1


@pytest.mark.requirement("no leak")
def test_an_image_is_not_in_two_parts_under_two_names(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(data, root)
    images = root / "imagesTr"
    shutil.copy(images / "ellipse_000_0000.nii.gz", images / "ellipse_001_0000.nii.gz")
    with pytest.raises(InputError, match=r"'ellipse_001' \(training\).*_000' \(test\)") as caught:
        design(toml(tmp_path, 'test = ["ellipse_000"]'), dataset=root)
    assert caught.value.code == "same-image"
    assert design(toml(tmp_path, 'test = ["ellipse_000", "ellipse_001"]'), dataset=root).main.test


def test_a_resolved_study_is_the_same_study(data: Path, tmp_path: Path) -> None:
    from kidseg.config import dump

    first = design(toml(tmp_path, more=POSED), dataset=data)
    again = tmp_path / "elsewhere" / "study.toml"
    again.parent.mkdir()
    again.write_text(dump(first.resolved))
    second = design(again)
    assert _parts(first) == _parts(second) and first.main.sha256 == second.main.sha256
    assert [arm.settings for arm in first.arms] == [arm.settings for arm in second.arms]


def test_settings_are_the_methods_own_over_the_common_over_the_file(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.toml").write_text("augment = 'nnunet'\n[unet]\nfeatures = 7\nhead_kernel = 1")
    more = (
        '[methods.b]\nmethod = "plain"\nconfig = "own.toml"\n'
        'set = ["segment.epochs=9", "unet.bottleneck=8"]\npreset = "demo"'
    )
    found = design(toml(tmp_path, more=more), dataset=data)
    settings = dict(zip((arm.name for arm in found.arms), found.arms, strict=True))["b"].settings
    for text in ("epochs = 9", "features = 4", "head_kernel = 1", "max_features = 96"):
        assert text in settings
    assert [(arm.name, seed) for arm, seed in found.runs] == [("plain", 0), ("b", 0)]


def test_fewer_training_patients_are_a_part_of_more_and_differ_by_seed(
    data: Path, tmp_path: Path
) -> None:
    more = "".join(f'[methods.of{n}]\nmethod = "plain"\npatients = {n}\n' for n in (1, 2, 3))
    found = design(toml(tmp_path, more=more), dataset=data)
    arms = {arm.name: arm for arm in found.arms}
    assert found.training_of(arms["plain"], 0) == found.main.training
    drawn = set()
    for seed in range(8):
        sets = [set(found.training_of(arms[f"of{n}"], seed)) for n in (1, 2, 3)]
        assert [len(each) for each in sets] == [1, 2, 3]
        assert sets[0] < sets[1] < sets[2] == set(found.main.training)
        drawn.add(*sets[0])
    assert len(drawn) > 1


def test_a_model_that_is_missing_is_named(data: Path, tmp_path: Path) -> None:
    more = '[methods.b]\nmethod = "plain"\nmodel = "no/such"'
    with pytest.raises(ModelError, match="no such model") as caught:
        design(toml(tmp_path, more=more), dataset=data)
    assert caught.value.code == "no-model"


def model_that_saw(path: Path, images: Any) -> Path:
    """A model of the method "plain" for TINY, whose header says what it has learned from."""
    settings = tomllib.loads(TINY.format(top="test_patients = 1", more=""))["common"]["set"]
    config = load(METHODS["plain"], overrides=settings)
    schema = LabelSchema.from_names({1: "kidney", 2: "tumour"})
    statistics = Statistics(
        mean=0.0, sd=1.0, median=0.0, min=-1.0, max=1.0, percentile_00_5=-1.0, percentile_99_5=1.0
    )
    planned = Plan(
        channels=(Normalisation.of_channel("CT", statistics),),
        labels=schema.names,
        cyst=None,
        median_spacing_mm=(10.0, 4.0, 4.0),
        configurations={},
        training=(),
    )
    device = choose_device("cpu")
    method = method_named("plain").build(config, Target.of_labels(schema), planned, device=device)
    header = {
        "method": "plain",
        "config": asdict(config),
        "plan": planned.as_dict(),
        "labels": {
            "names": {str(number): name for number, name in schema.names.items()},
            "regions": {name: list(ids) for name, ids in schema.regions.items()},
            "target": Target.of_labels(schema).as_dict(),
        },
        "training_set": {"digest": "0" * 64, "cases": 1, "images": images},
    }
    parts = {name: net.state_dict() for name, net in method.parts.items()}
    save_model(path, parts, header)
    return path


def test_no_test_image_is_one_that_a_model_has_learned_from(data: Path, tmp_path: Path) -> None:
    """By its voxels, whatever the file; a model that does not say is said to be one."""
    more = '[methods.tuned]\nmethod = "plain"\nmodel = "{}"'
    found = design(toml(tmp_path), dataset=data).main
    seen = {case: digest for digest, case in found.test_voxels.items()}
    learned = [
        voxels_sha256(read(data / "imagesTr" / f"{case}_0000.nii.gz").volume)
        for case in (*found.training, *found.validation)
    ]
    fresh = model_that_saw(tmp_path / "fresh", {"voxels": learned, "complete": True})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study_design = design(toml(tmp_path, more=more.format(fresh)), dataset=data)
    assert study_design.arm("tuned").remarks == ()
    first = found.test[0]
    for complete in (True, False):
        leaky = tmp_path / f"leaky{complete}"
        model_that_saw(leaky, {"voxels": [*learned, seen[first]], "complete": complete})
        with pytest.raises(InputError, match=f"learned from the image of test case '{first}'") as e:
            design(toml(tmp_path, more=more.format(leaky)), dataset=data)
        assert e.value.code == "same-image" and e.value.path == str(leaky)
    for name, images in (
        ("unknown", None),
        ("incomplete", {"voxels": learned, "complete": False}),
    ):
        model = model_that_saw(tmp_path / name, images)
        with pytest.warns(KidsegWarning, match="does not say from which images"):
            arm = design(toml(tmp_path, more=more.format(model)), dataset=data).arm("tuned")
        assert "test patients may be among them" in arm.remarks[0]
    broken = model_that_saw(tmp_path / "broken", {"voxels": 3, "complete": True})
    with pytest.raises(ModelError) as caught:
        design(toml(tmp_path, more=more.format(broken)), dataset=data)
    assert caught.value.code == "damaged-model"


def _parts(found: Design) -> tuple[tuple[str, ...], ...]:
    return found.main.training, found.main.validation, found.main.test


# Several data sets


@pytest.fixture(scope="module")
def adults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study") / "adults"
    write_ellipse_dataset(root, 5, seed=7)
    return root


OTHERS = """
[methods.adult]
method = "plain"
data = "adults"
set = ["unet.features=6", "segment.epochs=1"]

[methods.tuned]
method = "plain"
start = "adult"
tune = "decoder"
patients = 2

[others.adults]
test_patients = 2
"""


def test_each_data_set_is_divided_by_itself(data: Path, adults: Path, tmp_path: Path) -> None:
    found = design(toml(tmp_path, more=OTHERS), dataset=data, others={"adults": adults})
    alone = design(toml(tmp_path), dataset=data)
    assert _parts(found) == _parts(alone) and alone.others == ()
    (other,) = found.others
    assert found.partitions == (found.main, other) and other.name == "adults"
    assert [len(part) for part in (other.training, other.validation, other.test)] == [2, 1, 2]
    assert other.data.root == adults and other.as_dict()["test"]["patients"] == 2
    plain, adult, tuned = found.arms
    assert found.training_of(plain, 0) == found.main.training
    assert found.training_of(adult, 0) == other.training
    assert set(found.training_of(tuned, 0)) < set(found.main.training)


def test_what_starts_from_a_method_has_its_settings(
    data: Path, adults: Path, tmp_path: Path
) -> None:
    """But for the common ones and its own, which are stated again."""
    found = design(toml(tmp_path, more=OTHERS), dataset=data, others={"adults": adults})
    plain, adult, tuned = found.arms
    assert "features = 4" in plain.settings and "features = 6" in adult.settings
    assert "features = 4" in tuned.settings, "a common setting"
    more = OTHERS.replace('"unet.features=6"', '"unet.max_features=6"')
    adult, tuned = design(toml(tmp_path, more=more), dataset=data, others={"adults": adults}).arms[
        1:
    ]
    assert "max_features = 6" in adult.settings and "max_features = 6" in tuned.settings
    assert "epochs = 1\n" in adult.settings and "epochs = 2\n" in tuned.settings
    posed = POSED + '[methods.b]\nmethod = "homogenized"\nstart = "posed"\n'
    assert design(toml(tmp_path, more=posed), dataset=data).arms[2].start == "posed"
    named = posed + 'set = ["pose.reference=ellipse_000"]'
    with pytest.raises(UsageError, match=r"methods\.b: the model keeps its reference"):
        design(toml(tmp_path, more=named), dataset=data)


@pytest.mark.parametrize("name", ["table1", "table1_small"])
def test_table_1_has_the_four_regimes_in_each_column(
    name: str, data: Path, adults: Path, tmp_path: Path
) -> None:
    """As is (trained on adults), ends, decoder and whole, in bodies of one size and pose."""
    text = (Path(__file__).parents[1] / "benchmarks" / f"{name}.toml").read_text()
    for found in (12, 40):
        text = text.replace(f"test_patients = {found}\n", "test_patients = 2\n")
    (tmp_path / "study.toml").write_text(text)
    plan = design(tmp_path / "study.toml", dataset=data, others={"adults": adults})
    columns = list(dict.fromkeys(arm.name.partition("-")[0] for arm in plan.arms))
    assert columns[:3] == ["plain", "up", "down"]
    for column in columns:
        arms = [arm for arm in plan.arms if arm.name.partition("-")[0] == column]
        as_is, tuned = arms[0], [arm for arm in arms if arm.start is not None]
        assert as_is.data == "adults" and as_is.start is None
        assert [arm.tune for arm in tuned] == ["ends", "decoder", "all"]
        assert {arm.start for arm in tuned} == {as_is.name}
        seen = [tomllib.loads(arm.settings) for arm in arms]
        assert all(one["body"] == seen[0]["body"] for one in seen)
        assert all(one["blocks"] == seen[0]["blocks"] for one in seen)


def test_a_study_of_several_data_sets_is_the_same_study_elsewhere(
    data: Path, adults: Path, tmp_path: Path
) -> None:
    from kidseg.config import dump

    first = design(toml(tmp_path, more=OTHERS), dataset=data, others={"adults": adults})
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "study.toml").write_text(dump(first.resolved))
    second = design(tmp_path / "again" / "study.toml")
    assert second.others[0].sha256 == first.others[0].sha256
    assert second.others[0].test == first.others[0].test
    runs = study_runs(first, tmp_path / "out")
    same = study_runs(second, tmp_path / "out")
    assert [run._inputs() for run in runs] == [run._inputs() for run in same]
    adult, tuned = runs[1:]
    assert tuned.first == adult and adult.first is None
    changed = OTHERS.replace("epochs=1", "epochs=7")
    other = design(toml(tmp_path, more=changed), dataset=data, others={"adults": adults})
    plain_too, adult_too, tuned_too = study_runs(other, tmp_path / "out")
    assert plain_too._inputs() == runs[0]._inputs()
    assert adult_too._inputs() != adult._inputs(), "its own settings"
    assert tuned_too._inputs() != tuned._inputs(), "those of the model it starts from"


def test_a_data_set_of_the_command_line_is_one_of_the_file(
    data: Path, adults: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no other data set 'old'") as caught:
        design(toml(tmp_path, more=OTHERS), dataset=data, others={"old": adults})
    assert caught.value.code == "unknown-dataset" and "adults" in caught.value.next_step
    assert _named_folders(["adults=a/b=c", "x=."]) == {"adults": Path("a/b=c"), "x": Path()}
    for wrong in ("adults", "=a", "adults=", ""):
        with pytest.raises(UsageError, match="is not NAME=FOLDER"):
            _named_folders([wrong])


@pytest.mark.requirement("no leak")
@pytest.mark.parametrize("as_file", [True, False])
def test_no_test_image_is_in_the_training_of_another_data_set(
    as_file: bool, data: Path, adults: Path, tmp_path: Path
) -> None:
    """Neither as the same file nor as the same voxels, turned and compressed otherwise."""
    root = tmp_path / "copy"
    shutil.copytree(adults, root)
    tested = design(toml(tmp_path), dataset=data).main.test[0]
    source = data / "imagesTr" / f"{tested}_0000.nii.gz"
    copy = root / "imagesTr" / "ellipse_000_0000.nii.gz"
    if as_file:
        shutil.copy(source, copy)
    else:
        nibabel.save(nibabel.as_closest_canonical(nibabel.load(source)), copy)
        assert copy.read_bytes() != source.read_bytes()
    more = OTHERS.replace("test_patients = 2", 'test = ["ellipse_001"]')
    with pytest.raises(InputError, match=r"copy/ellipse_000' \(training\)") as caught:
        design(toml(tmp_path, more=more), dataset=data, others={"adults": root})
    assert caught.value.code == "same-image"


def test_what_starts_from_a_failed_run_fails_and_says_so(
    data: Path, adults: Path, tmp_path: Path
) -> None:
    from concurrent.futures import Future

    found = design(toml(tmp_path, more=OTHERS), dataset=data, others={"adults": adults})
    first = study_runs(found, tmp_path / "out")[1]
    done: Future[None] = Future()
    done.set_result(None)
    _wait_for(first, {first.name: done})
    for error, code in ((KidsegError("x", code="step-failed"), "no-start"), (OSError("y"), None)):
        failed: Future[None] = Future()
        failed.set_exception(error)
        with pytest.raises(type(error)) as caught:
            _wait_for(first, {first.name: failed})
        assert getattr(caught.value, "code", None) == code


def test_a_stopped_training_is_not_resumed_from_another_model(
    data: Path, adults: Path, tmp_path: Path
) -> None:
    """The model that it started from was trained again since: refused before any work."""
    found = design(toml(tmp_path, more=OTHERS), dataset=data, others={"adults": adults})
    run = study_runs(found, tmp_path / "out")[2]
    first = run.first
    assert first is not None and (run.arm.name, first.arm.name) == ("tuned", "adult")
    write_stamp(run.run, new_stamp(run._inputs(), attempts=1, jobs=1))
    (run.run / "start.safetensors").write_bytes(b"a model")
    run.check()  # there is none at the moment
    for model, same in ((b"a model", True), (b"another", False)):
        first.run.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(model).hexdigest()
        (first.run / "summary.json").write_text(json.dumps({"model": {"sha256": digest}}))
        if same:
            run.check()
            continue
        with pytest.raises(UsageError, match="differ from the study in: model") as caught:
            run.check()
        assert caught.value.code == "other-settings"


def test_results_of_labels_with_another_meaning_are_not_mixed(data: Path, tmp_path: Path) -> None:
    """Two names exchanged in dataset.json: no file of a case differs."""
    root = tmp_path / "data"
    shutil.copytree(data, root)
    (run,) = study_runs(design(toml(tmp_path), dataset=root), tmp_path / "out")
    tested = run.design.main
    write_stamp(run.run, new_stamp(run._inputs()))
    write_stamp(run.scores(tested), new_stamp(run._rules(tested)))
    run.check()
    content = json.loads((root / "dataset.json").read_text())
    content["labels"] = {"background": 0, "kidney": 2, "tumour": 1}
    (root / "dataset.json").write_text(json.dumps(content))
    (changed,) = study_runs(design(toml(tmp_path), dataset=root), tmp_path / "out")
    for folder in (run.run, run.scores(tested)):
        with pytest.raises(UsageError, match=f"{folder}.*in: meaning of the labels") as caught:
            changed.check()
        assert caught.value.code == "other-settings"
        inputs = run._inputs() if folder == run.run else run._rules(tested)
        del inputs["meaning of the labels"]  # as earlier versions wrote
        write_stamp(folder, new_stamp(inputs))
    changed.check()


def test_a_run_that_was_fine_tuned_is_not_one_from_scratch(data: Path, tmp_path: Path) -> None:
    """What differs is named, also if the study has it no more."""
    (run,) = study_runs(design(toml(tmp_path), dataset=data), tmp_path / "out")
    write_stamp(run.run, new_stamp({**run._inputs(), "model": "0" * 64, "tune": "all"}))
    with pytest.raises(UsageError, match="differ from the study in: model, tune"):
        run.check()


# Averages


SUMMED = ("training_set_up_seconds", "training_process_seconds", "segmentation_seconds_per_scan")
SUMMED += ("training_attempts", "segmentation_peak_memory_mb", "device", "precision", "jobs")
SUMMED += ("training_clock",)


def row(case: str, dice: float | None, predicted_ml: float = 1.0, structure: str = "tumour") -> Row:
    return Row(
        case=case,
        patient=case,
        age_years=3.0,
        structure=structure,
        reference_ml=0.0 if dice is None else 2.0,
        predicted_ml=predicted_ml,
        figures=dict.fromkeys(METRICS) | {"dice": dice},
    )


def test_seeds_are_averaged_case_by_case() -> None:
    runs = [
        [row("a", 0.9, 1.0), row("b", 0.2), row("c", None, 0.0), row("d", None, 0.0)],
        [row("b", 0.4), row("a", 0.6, 4.0), row("c", None, 0.0), row("d", 0.0, 1.0)],
    ]
    found = {r.case: r for r in average(runs)}
    assert found["a"].figures["dice"] == pytest.approx(0.75)
    assert found["a"].predicted_ml == 2.5
    assert found["b"].figures["dice"] == pytest.approx(0.3)
    # Nothing there and nothing found by any; then something found by one.
    assert found["c"].figures["dice"] is None and found["c"].both_empty
    assert found["d"].figures["dice"] == 0.0 and not found["d"].both_empty
    assert average(runs[:1]) == tuple(runs[0])


def test_each_patient_counts_once_whatever_the_scans() -> None:
    """Of "p" two scans, and two healthy ones of "q"; the third of "r" stands for itself."""
    rows = [
        replace(row("p1", 0.9, 3.0), patient="p"),
        replace(row("q1", None, 0.0), patient="q"),
        replace(row("p2", 0.5), patient="p", reference_ml=4.0),
        replace(row("r1", 0.1), patient=""),
        replace(row("q2", None, 0.0), patient="q"),
        replace(row("p1", 0.2, structure="kidney"), patient="p"),
    ]
    found = {(r.case, r.structure): r for r in of_patients(rows)}
    assert list(found) == [*((name, "tumour") for name in ("p", "q", "r1")), ("p", "kidney")]
    both = found["p", "tumour"]
    assert both.figures["dice"] == pytest.approx(0.7)
    assert (both.reference_ml, both.predicted_ml) == (3.0, 2.0)
    assert found["q", "tumour"].both_empty and found["q", "tumour"].figures["dice"] is None


def test_budgets_are_told_and_by_method_if_they_differ() -> None:
    runs = [{"method": name, "training_budget_s": s} for name, s in (("a", 60.0), ("a", 60.0))]
    assert _budgets(runs) == ["Budget of each training: 60 s."]
    assert _budgets([{"method": "a", "training_budget_s": None}]) == []
    runs += [{"method": "b", "training_budget_s": None}, {"method": "c", "training_budget_s": 60.0}]
    assert _budgets(runs) == ["Budgets of the trainings differ: 60 s (a, c); none (b)."]


def test_runs_of_other_cases_are_not_averaged() -> None:
    with pytest.raises(ValueError, match="same cases"):
        average([[row("a", 0.5)], [row("b", 0.5)]])
    with pytest.raises(ValueError, match="same cases"):
        average([])


def test_spread_by_hand() -> None:
    assert spread([1.0, 3.0]) == {"mean": 2.0, "sd": pytest.approx(2**0.5), "n": 2}
    assert spread([5.0]) == {"mean": 5.0, "sd": None, "n": 1}
    assert spread([]) == {"mean": None, "sd": None, "n": 0}


def test_the_time_of_earlier_stages_counts(tmp_path: Path) -> None:
    lines = [
        {"stage": "pose", "epoch": 0, "seconds": 2.0, "val_score": 0.9},
        {"stage": "pose", "epoch": 1, "seconds": 5.0, "val_score": 0.9},
        {"stage": "segment", "epoch": 0, "seconds": 3.0, "val_score": 0.1},
        {"stage": "segment", "epoch": 1, "seconds": 7.0, "val_score": 0.4},
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert validation_curve(log) == ([8.0, 12.0], [0.1, 0.4])


@pytest.fixture
def nnunet_table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("nnunet_table")


@pytest.mark.slow
def test_nnunet_gets_the_patients_of_a_study(nnunet_table: Any, data: Path, tmp_path: Path) -> None:
    """Those of the test without their labels."""
    plan, raw = design(toml(tmp_path), dataset=data), tmp_path / "raw"
    nnunet_table.export(plan.main, raw)
    assert {file.name for file in (raw / "imagesTs").iterdir()} == {
        f"{case}_0000.nii.gz" for case in plan.main.test
    }
    kept = {file.name.removesuffix(".nii.gz") for file in (raw / "labelsTr").iterdir()}
    assert kept == {*plan.main.training, *plan.main.validation}


def test_nnunet_joins_the_table_of_a_study(nnunet_table: Any, data: Path, tmp_path: Path) -> None:
    """Its labels are here those of an ideal one."""
    plan, folder, out = design(toml(tmp_path), dataset=data), tmp_path / "study", tmp_path / "out"
    runs = []
    for seed in (0, 1):
        scores = out / "scores" / f"nnunet-{seed}"
        evaluate(data / "labelsTr", data, scores, cases=plan.main.test)
        own = {"method": "nnunet", "seed": seed, "training_budget_s": 60.0, "parameters": 5}
        own |= dict.fromkeys(SUMMED, 1.0) | {"training_seconds": {"segment": 60.0}}
        runs.append(own | {"training_peak_memory_mb": {"process": 9.0}, "training_epochs": {}})
    folder.mkdir()
    content = _write(plan, [], {}, folder, 0)
    write_average([scores], plan.main, folder / "averaged" / "plain", [0])
    page = nnunet_table.write(plan, folder, content, {"nnunet": runs}, out)
    row = next(line for line in page.splitlines() if line.startswith("| nnunet "))
    assert re.search(r"\| +2 \| +1\.000 \(0\.000\), n 2 \|", row), row
    assert "Budget of each training: 60 s." in page and "plain - nnunet" in page


# Processes


def test_results_of_runs_that_are_gone_do_not_stay(data: Path, tmp_path: Path) -> None:
    plan, out = design(toml(tmp_path), dataset=data), tmp_path / "out"
    stale = ["compared/compare.json", "compared/compare.csv", "compared/compare.md", "study.png"]
    stale += [
        f"averaged/{arm}/{name}"
        for arm in ("plain", "posed")
        for name in ("summary.json", "cases.csv")
    ]
    own = ["compared/notes.txt", "averaged/posed/notes.txt", "notes.png", "runs/plain-0/log.jsonl"]
    for name in (*stale, *own, "study.json", "study.md"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("old")
    _write(plan, [], {"plain-0": "the disk was pulled"}, out, 0)
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert left == {*own, "study.json", "study.md"}
    assert not (out / "averaged" / "plain").exists()
    assert "the disk was pulled" in (out / "study.md").read_text()
    assert json.loads((out / "study.json").read_text())["comparisons"] == []


def test_a_process_is_measured_by_itself(tmp_path: Path) -> None:
    """However large this one is, which has torch loaded."""
    launcher, log = Launcher(), tmp_path / "log"
    small = launcher.run([sys.executable, "-c", "pass"], log=log)
    assert small.exit_code == 0 and 0 < small.peak_memory_mb < 60
    code = "import sys, time; b = bytearray(150 << 20); time.sleep(0.3); sys.exit(5)"
    large = launcher.run([sys.executable, "-c", code], log=log)
    assert large.exit_code == 5 and large.seconds > 0.3
    assert 0 < large.processor_seconds < large.seconds - 0.2  # it slept
    assert 150 < large.peak_memory_mb < 150 + 60


def test_what_a_process_said_is_its_cause(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = "import sys; sys.exit('kidseg: no such file\\nsome more')"
    assert (
        Launcher().run([sys.executable, "-c", code], log=log).cause == "exit code 1: no such file"
    )
    second = Launcher().run([sys.executable, "-c", "import os; os.abort()"], log=log)
    assert second.exit_code == -6 and second.stderr == "" and "no error output" in second.cause
    assert "no such file" in log.read_text()
    assert (
        "-9"
        in Completed(
            exit_code=-9, seconds=1, processor_seconds=1, peak_memory_mb=1, stderr=""
        ).cause
    )


@pytest.mark.fault("launcher killed")
def test_a_stopped_launcher_ends_its_processes(tmp_path: Path) -> None:
    launcher, pid = Launcher(threads=1), tmp_path / "pid"
    code = (
        "import os, pathlib, time; assert os.environ['OMP_NUM_THREADS'] == '1'; "
        f"pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            launcher.run([sys.executable, "-c", code], log=tmp_path / "log")
        except KeyboardInterrupt as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (pid.exists() and pid.read_text()):
        time.sleep(0.02)
    launcher.stop()
    thread.join(timeout=30)
    assert caught and not thread.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    with pytest.raises(KeyboardInterrupt):
        launcher.run([sys.executable, "-c", "pass"], log=tmp_path / "log")


PARENT = """
import sys
from pathlib import Path
from kidseg.study.process import Launcher
Launcher().run([sys.executable, sys.argv[1]], log=Path(sys.argv[2]))
"""
CHILD = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(__file__).parent
signal.signal(signal.SIGTERM, lambda *_: sys.exit((folder / "saved").write_text("state") and 0))
(folder / "pid").write_text(str(os.getpid()))
time.sleep(120)
"""


@pytest.mark.ci
@pytest.mark.fault("launcher killed")
@pytest.mark.parametrize("victim", ["study", "wrapper"])
def test_processes_end_with_the_study_however_it_ends(tmp_path: Path, victim: str) -> None:
    """Killed, it says nothing to them; they notice, and save their state."""
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "child.py").write_text(CHILD)
    arguments = [sys.executable, *(tmp_path / name for name in ("parent.py", "child.py", "log"))]
    parent = subprocess.Popen(arguments)
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (pid.exists() and pid.read_text()):
        time.sleep(0.02)
    child = int(pid.read_text())
    wrapper = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(parent.pid if victim == "study" else wrapper, signal.SIGKILL)
    parent.wait(timeout=60)
    saved = tmp_path / "saved"
    while time.monotonic() < deadline and not (saved.exists() and saved.read_text()):
        time.sleep(0.02)
    assert saved.read_text() == "state"


# By real runs


def command(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "kidseg", "study", *map(str, arguments), "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def marks(out: Path) -> dict[str, int]:
    """When each file of the runs was written; the tables are written each time."""
    return {
        str(file): file.stat().st_mtime_ns
        for part in ("runs", "labels", "scores")
        for file in (out / part).rglob("*")
        if file.is_file() and file.name != ".lock"
    }


def assert_worst_first(path: Path, rows: Sequence[Row]) -> None:
    """The page has every case with a picture of it, that with the lowest mean Dice first."""
    by_case: dict[str, list[float]] = {}
    for row in rows:
        if (dice := row.figures["dice"]) is not None:
            by_case.setdefault(row.case, []).append(dice)
    page = opened(path)
    keys = [a["data-key"] for tag, a in page.elements if tag == "button" and "data-key" in a]
    shown = [page.content["images"][str(key)] for key in keys]
    order = sorted(by_case, key=lambda name: (sum(by_case[name]) / len(by_case[name]), name))
    assert [pictures[0]["case"] for pictures in shown] == order and len(order) > 1
    assert all(pictures[0]["uri"].startswith("data:image/png") for pictures in shown)
    assert all(pictures[0]["alt"].startswith("plain, ") for pictures in shown)
    assert "The worst mean Dice first." in page.words


@pytest.mark.ci
def test_one_run_is_trained_tested_kept_and_not_mixed(data: Path, tmp_path: Path) -> None:
    file, out = toml(tmp_path), tmp_path / "out"
    steps: list[tuple[str, str]] = []
    tell: Any = lambda run, step, done, total: steps.append((run, step))  # noqa: E731
    result = study(file, out, dataset=data, device="cpu", progress=tell)
    assert [step for _, step in steps] == ["train", "segment", "evaluate", ""]
    assert json.loads((out / "study.json").read_text()) == result
    assert {path.name for path in out.iterdir()} == {
        *("study.toml", "study.json", "study.md", "study.html", "study.png"),
        *("runs", "labels", "scores", "averaged", "logs"),
    }
    assert max(map(len, (out / "study.md").read_text().splitlines())) <= 80
    assert result["versions"]["kidseg"] and result["host"]["platform"] and result["date"]
    run = result["runs"]["plain-0"]
    assert run["dice"]["kidney"]["n"] == 2 and run["training_epochs"] == {"segment": 2}
    assert run["training_peak_memory_mb"]["process"] > run["segmentation_peak_memory_mb"] / 2 > 50
    assert run["segmentation_process_seconds"] > run["segmentation_seconds_per_scan"] > 0
    plain = result["methods"]["plain"]
    assert plain["hd95_mm"].keys() == plain["dice"].keys() == run["dice"].keys()
    with safe_open(out / "runs" / "plain-0" / "model.safetensors", "np") as model:
        names = [name for name in model.keys() if "running_" not in name and "num_" not in name]  # noqa: SIM118
        counted = sum(math.prod(model.get_slice(name).get_shape()) for name in names)
    assert plain["parameters"] == run["parameters"] == counted > 0
    page = (out / "study.md").read_text()
    assert f"{counted / 1e6:.2f} M" in page and "HD95 mm: tumour" in page
    assert_worst_first(out / "study.html", read_run(out / "scores" / "plain-0").rows)
    seconds = result["methods"]["plain"]["training_seconds"]
    parts_s = [seconds[name]["mean"] for name in ("prepare", "segment", "set-up")]
    assert min(parts_s) > 0 and sum(parts_s) == pytest.approx(seconds["whole process"]["mean"])
    trained = json.loads((out / "runs" / "plain-0" / "summary.json").read_text())["cases"]
    parts = result["data"]
    assert trained["training"] == parts["training"]["cases"]
    assert trained["validation"] == parts["validation"]["cases"]
    rows = read_run(out / "scores" / "plain-0").rows
    assert sorted({r.case for r in rows}) == parts["test"]["cases"]
    assert not set(parts["test"]["cases"]) & {*trained["training"], *trained["validation"]}

    before = marks(out)
    assert study(out / "study.toml", out, device="cpu") | {"date": ""} == result | {"date": ""}
    assert marks(out) == before

    changed = toml(tmp_path, 'test_patients = 2\nprotocol = "kits19"')
    other = tmp_path / "other.toml"
    other.write_text(toml(tmp_path).read_text().replace("segment.epochs=2", "segment.epochs=3"))
    split = tmp_path / "split.toml"
    split.write_text(toml(tmp_path, 'test = ["ellipse_000", "ellipse_001"]').read_text())
    changed.write_text(TINY.format(top='test_patients = 2\nprotocol = "kits19"', more=""))
    for wrong, named in ((changed, "protocol"), (other, "settings"), (split, "training")):
        with pytest.raises(UsageError, match=named) as caught:
            study(wrong, out, dataset=data, device="cpu")
        assert caught.value.code == "other-settings"
    assert marks(out) == before

    stamp = out / "runs" / "plain-0" / "stamp.json"
    whole = stamp.read_text()
    contents = ["{", "[]", "3", "{}", whole.replace('"done": true', '"done": false')]
    contents += [whole.replace('"key": "', '"key": "0'), whole[:-20], '{"key": 3, "done": "x"}']
    for content in contents:
        stamp.write_text(content)
        with pytest.raises(ModelError) as damaged:
            study(toml(tmp_path), out, dataset=data, device="cpu")
        assert damaged.value.code == "damaged-stamp"


@pytest.mark.slow
def test_a_model_is_fine_tuned_on_some_of_the_patients(data: Path, tmp_path: Path) -> None:
    """From the model of an earlier run, beside the study's file: its settings, and only a part."""
    settings = ["view.size=32", "unet.size=32", "unet.features=4", "precision=fp32"]
    settings += ["segment.epochs=1", "segment.min_epochs=0", "segment.steps=1"]
    started = tmp_path / "start"
    words = [word for text in settings for word in ("--set", text)]
    command_line = ["train", data, "-o", started, "--method", "plain", "--quiet", *words]
    assert Launcher(threads=1).kidseg(*command_line, log=tmp_path / "log").exit_code == 0
    file = tmp_path / "tuned.toml"
    file.write_text(
        "test_patients = 2\nseeds = [0]\nvalidation_share = 0.25\n"
        '[methods.tuned]\nmethod = "plain"\nmodel = "start"\ntune = "decoder"\npatients = 1\n'
    )
    out = tmp_path / "out"
    found = design(file, dataset=data)
    study(file, out, dataset=data, device="cpu")
    summary = json.loads((out / "runs" / "tuned-0" / "summary.json").read_text())
    assert summary["start"]["tune"] == "decoder"
    assert summary["cases"]["training"] == list(found.training_of(found.arms[0], 0))
    assert len(summary["cases"]["training"]) == 1
    resolved = design(out / "study.toml")
    assert resolved.arms[0].model == started / "model.safetensors"
    (started / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        study(out / "study.toml", out, device="cpu")


@pytest.mark.slow
def test_a_model_of_the_study_is_fine_tuned_and_tested_on_both_data_sets(
    data: Path, adults: Path, tmp_path: Path
) -> None:
    """Two at a time; what starts from a model waits for it. Trained again, it is another model."""
    text = toml(tmp_path, more=OTHERS).read_text().replace('"unet.features=6", ', "")
    file, out = tmp_path / "two.toml", tmp_path / "out"
    file.write_text(text)
    given = {"dataset": data, "others": {"adults": adults}, "device": "cpu"}
    result = study(file, out, jobs=2, **given)
    assert json.loads((out / "study.json").read_text()) == result
    assert {path.name for path in (out / "others" / "adults").iterdir()} == {
        *("labels", "scores", "averaged", "compared"),
    }
    found = design(file, dataset=data, others={"adults": adults})
    other = found.others[0]
    for name, tested in (("", found.main), ("others/adults", other)):
        for arm in ("plain", "adult", "tuned"):
            rows = read_run(out / name / "scores" / f"{arm}-0").rows
            assert {r.case for r in rows} == set(tested.test)
    summaries = {
        arm: json.loads((out / "runs" / f"{arm}-0" / "summary.json").read_text())
        for arm in ("plain", "adult", "tuned")
    }
    assert summaries["adult"]["cases"]["training"] == list(other.training)
    assert summaries["adult"]["cases"]["validation"] == list(other.validation)
    assert summaries["tuned"]["start"]["sha256"] == summaries["adult"]["model"]["sha256"]
    assert summaries["tuned"]["start"]["tune"] == "decoder" and not summaries["plain"]["start"]
    methods = result["methods"]
    assert methods["tuned"]["start"] == "adult" and methods["adult"]["trained_on"] == "adults"
    assert "start" not in methods["adult"] and methods["tuned"]["patients"] == 2
    (on_adults,) = result["others"].values()
    assert on_adults["data"]["test"]["cases"] == list(other.test)
    assert on_adults["methods"]["tuned"]["dice"]["kidney"]["n"] == 2
    assert len(on_adults["comparisons"]) == len(result["comparisons"]) > 0
    page = (out / "study.md").read_text()
    assert "# The same models on adults" in page and max(map(len, page.splitlines())) <= 100

    before = marks(out)
    assert study(out / "study.toml", out, device="cpu", jobs=2) | {"date": ""} == result | {
        "date": ""
    }
    assert marks(out) == before
    shutil.rmtree(out / "runs" / "adult-0")
    for part in ("labels", "scores"):
        shutil.rmtree(out / part / "adult-0")
        shutil.rmtree(out / "others" / "adults" / part / "adult-0")
    with pytest.raises(BatchError, match=r"tuned-0.* differ from the study in: model"):
        study(file, out, **given)
    with pytest.raises(UsageError, match="differ from the study in: model") as caught:
        study(file, out, **given)
    assert caught.value.code == "other-settings"


@pytest.mark.parametrize(("clock", "set_up_s"), [("wall", 30.0), ("processor", 5.0)])
def test_set_up_is_measured_by_the_clock_of_the_stages(
    clock: str, set_up_s: float, data: Path, tmp_path: Path
) -> None:
    """Shared cores make wall time long; what the processor did not do is no set-up."""
    text = toml(tmp_path).read_text()
    file = tmp_path / "clock.toml"
    file.write_text(text.replace("set = [", f'set = ["budget_clock={clock}", ', 1))
    costs = written_run(file, data, tmp_path / "out").costs()
    assert costs["training_budget_s"] is None
    assert (costs["training_clock"], costs["training_set_up_seconds"]) == (clock, set_up_s)


STAMPED: dict[str, Any] = {"key": "", "done": True, "inputs": {}, "attempts": 1, "jobs": 2}
STAMPED |= {"process_seconds": 40.0, "processor_seconds": 15.0, "peak_memory_mb": 1.0}
SUMMARY: dict[str, Any] = {
    "seconds": {"prepare": 2.0, "segment": 8.0},
    "stages": {"segment": {"epochs": 3}},
    "peak_memory_mb": {"process": 1.0},
    "device": "cpu",
    "precision": "fp32",
    "model": {"path": "model.safetensors", "sha256": "0" * 64},
}
RESULT: dict[str, Any] = {"scans": [{"seconds": {"read": 1.0}}]}


def written_run(file: Path, data: Path, out: Path) -> StudyRun:
    """A complete run, as far as its time and memory are read."""
    (run,) = study_runs(design(file, dataset=data), out)
    contents = {"stamp.json": sealed(STAMPED), "summary.json": SUMMARY, "result.json": RESULT}
    for folder in (run.run, run.labels(run.design.main)):
        folder.mkdir(parents=True)
        for name, content in contents.items():
            (folder / name).write_text(json.dumps(content))
    return run


def without(known: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in known.items() if name not in names}


DAMAGE: list[tuple[str, Any, str]] = [
    ("summary.json", b"\xff\xfe{", "not valid JSON"),
    ("summary.json", json.dumps(SUMMARY).encode()[:-30], "not valid JSON"),
    ("summary.json", b"", "not valid JSON"),
    ("summary.json", b"[]", "not a JSON object"),
    ("summary.json", b'{"a":' * 20_000, "nested too deeply"),
    ("summary.json", None, "cannot be read"),
    *(
        ("summary.json", without(SUMMARY, name), name)  # of an earlier version
        for name in ("seconds", "stages", "peak_memory_mb", "device", "precision")
    ),
    *(
        ("summary.json", {**SUMMARY, name: value}, name)
        for name, value in (
            ("seconds", [1.0]),
            ("seconds", {"segment": "8"}),
            ("seconds", {"segment": float("nan")}),
            ("seconds", {"segment": -1.0}),
            ("stages", {"segment": 3}),
            ("stages", {"segment": {}}),
            ("stages", None),
            ("peak_memory_mb", 5),
            ("parameters", {"segment": "many"}),
            ("device", 0),
        )
    ),
    ("result.json", b"{", "not valid JSON"),
    ("result.json", {}, "scans"),
    ("result.json", {"scans": []}, "no scans"),
    ("result.json", {"scans": [{}]}, "scans.0.seconds"),
    ("result.json", {"scans": [{"seconds": {"read": None}}]}, "scans.0.seconds.read"),
]


def test_damaged_files_of_a_run_are_named(data: Path, tmp_path: Path) -> None:
    """With the field; and so is what an earlier version lacks."""
    run = written_run(toml(tmp_path), data, tmp_path / "out")
    labels = run.labels(run.design.main)
    run.costs()
    for name, content, words in DAMAGE:
        file = (run.run if name == "summary.json" else labels) / name
        whole = file.read_bytes()
        file.unlink()
        if content is not None:
            file.write_bytes(
                content if isinstance(content, bytes) else json.dumps(content).encode()
            )
        with pytest.raises(ModelError, match=re.escape(words)) as caught:
            run.costs()
        assert caught.value.code == "damaged-summary", words
        assert caught.value.path == str(file) and "run the study again" in caught.value.next_step
        file.write_bytes(whole)
    (run.run / "stamp.json").write_text(json.dumps(sealed(without(STAMPED, "peak_memory_mb"))))
    with pytest.raises(ModelError, match="lacks peak_memory_mb") as caught:
        run.costs()
    assert caught.value.code == "damaged-stamp"


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": 3}', '{"model": {"sha256": 1}}'])
def test_a_model_that_a_summary_does_not_name_is_said(
    content: str, data: Path, adults: Path, tmp_path: Path
) -> None:
    """Before any work: what starts from that model asks for it."""
    found = design(toml(tmp_path, more=OTHERS), dataset=data, others={"adults": adults})
    run = study_runs(found, tmp_path / "out")[2]
    assert run.first is not None
    for folder in (run.run, run.first.run):
        folder.mkdir(parents=True)
    write_stamp(run.run, new_stamp(run._inputs(), attempts=1, jobs=1))
    (run.run / "start.safetensors").write_bytes(b"a model")
    (run.first.run / "summary.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        run.check()
    assert caught.value.code == "damaged-summary"


@pytest.mark.parametrize(
    "text", ["{", "3", '{"stage": "segment"}', '{"stage": 1, "seconds": 1.0, "val_score": 0.5}']
)
def test_a_damaged_log_is_named(text: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(f'{{"stage": "segment", "seconds": 1.0, "val_score": 0.5}}\n{text}\n')
    with pytest.raises(ModelError) as caught:
        validation_curve(log)
    assert caught.value.code == "damaged-summary" and caught.value.path == str(log)


@pytest.mark.ci
def test_a_dry_run_lists_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    file, out = toml(tmp_path, more=POSED), tmp_path / "out"
    told = json.loads(command(file, "-o", out, "--dataset", data, "--dry-run", "--json").stdout)
    assert told["runs"] == [
        {"run": "plain-0", "state": "to do"},
        {"run": "posed-0", "state": "to do"},
    ]
    assert told["data"]["test"]["patients"] == 2
    assert not out.exists()


@pytest.mark.slow
def test_a_whole_study_with_a_failure_and_a_kill(data: Path, tmp_path: Path) -> None:
    """Two methods and one that fails, two seeds, killed in a training and gone on with."""
    wrong = '[methods.wrong]\nmethod = "homogenized"\nset = ["pose.reference=nobody"]'
    text = toml(tmp_path, more=POSED + wrong).read_text().replace("seeds = [0]", "seeds = [0, 1]")
    file, out = tmp_path / "whole.toml", tmp_path / "out"
    file.write_text(text.replace("segment.epochs=2", "segment.epochs=40"))
    arguments = [sys.executable, "-m", "kidseg", "study", str(file), "-o", str(out), "--quiet"]
    arguments += ["--dataset", str(data), "--device", "cpu"]
    first = subprocess.Popen(arguments, stderr=subprocess.PIPE)
    log = out / "runs" / "plain-0" / "log.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not log.exists():
        time.sleep(0.05)
    first.terminate()
    first.communicate(timeout=60)
    assert first.returncode == 143
    assert not (out / "study.json").exists()
    found = design(file, dataset=data)
    assert [run.state for run in study_runs(found, out)] == ["begun", *["to do"] * 5]

    done = command(file, "-o", out, "--dataset", data, "--jobs", "2", "--json", code=4)
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "runs-failed" and "wrong-0" in error["cause"]
    assert "nobody" in error["cause"]
    result = json.loads((out / "study.json").read_text())
    assert result["runs"]["plain-0"]["training_attempts"] == 2
    assert {run["jobs"] for run in result["runs"].values()} == {2}
    epochs = [json.loads(line)["epoch"] for line in log.read_text().splitlines()]
    assert epochs == list(range(40))
    assert set(result["methods"]["wrong"]["failed"]) == {"wrong-0", "wrong-1"}
    assert result["methods"]["posed"]["seeds"] == [0, 1]
    for one in result["comparisons"]:
        assert (one["a"], one["b"]) == ("plain", "posed") and one["n"] + one["n_left_out"] == 2
    means = [result["runs"][f"posed-{seed}"]["dice"]["kidney"]["mean"] for seed in (0, 1)]
    posed = result["methods"]["posed"]
    assert posed["between_seeds"]["kidney"]["mean"] == pytest.approx(sum(means) / 2)
    assert posed["dice"]["kidney"]["mean"] == pytest.approx(sum(means) / 2)
    text = (out / "study.md").read_text()
    # A resumed training's process is not its whole time.
    assert result["methods"]["plain"]["training_seconds"]["whole process"]["n"] == 1
    for words in ("Failed: wrong-0", "plain - posed", "under contention", "resumed: plain-0"):
        assert words in text

    before = marks(out)
    with pytest.raises(BatchError):
        study(file, out, dataset=data, device="cpu")
    after = marks(out)
    assert not [name for name in before if before[name] != after[name] and "wrong" not in name]
