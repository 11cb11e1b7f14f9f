"""What a training learns from: the same from files and from a store, wherever the store is read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ellipses import make_ellipse_patient, write_ellipse_dataset
from findings import code_of
from kidseg.cases import open_dataset, write_patients_csv
from kidseg.checkpoint import read_header
from kidseg.cohort.stored import is_labelled, subject_of
from kidseg.errors import InputError, KidsegError, KidsegWarning, UsageError
from kidseg.io import read, save
from kidseg.store import open_store
from kidseg.train import Setup, make_store, preview, train
from kidseg.train.case_selection import select_cases, split_cases
from kidseg.train.request import Request
from kidseg.train.setup import resolve
from trained import run_plain, tiny, tiny_pose
from weights import weights_of

TINY = tiny(1)
HOMOGENIZED = (*TINY, "pose.target=body", *tiny_pose(1))
run = partial(run_plain, overrides=TINY)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "ellipses"
    write_ellipse_dataset(root, 4)
    return root


@pytest.fixture(scope="module")
def store(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    made = make_store(data, path, Setup(method="homogenized", overrides=HOMOGENIZED))
    opened = open_store(path)
    assert made["digest"] == opened.digest and made["megabytes"] > 0
    assert tuple(made["cases"]["training"]) == opened.plan.training
    assert len(made["cases"]["validation"]) == 1
    assert [found["code"] for found in made["findings"]] == ["thick-slices"] * 4
    return path


@pytest.mark.ci
@pytest.mark.parametrize(("method", "overrides"), [("plain", TINY), ("homogenized", HOMOGENIZED)])
def test_files_and_store_give_the_same_bits(
    data: Path, store: Path, tmp_path: Path, method: str, overrides: tuple[str, ...]
) -> None:
    """One store serves both methods; the run's notes, too, are the same."""
    runs = [tmp_path / "files", tmp_path / "store"]
    for source, out in zip((data, store), runs, strict=True):
        run(source, out, method=method, overrides=overrides)
    headers = [read_header(out / "model.safetensors") for out in runs]
    weights = [weights_of(out / "model.safetensors") for out in runs]
    assert weights[0] == weights[1]
    assert headers[0]["training_set"] == headers[1]["training_set"]
    for name in ("cases.json", "plan.json", "config.toml"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    assert not (runs[0] / "store").exists()


# Pixels of 2 mm, seen with those of 4 or more: blocks of 2 x 2 are averaged.
COARSE = ("view.pixel_mm=4.0",)


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "fine"
    write_ellipse_dataset(root, 4, fine=2)
    return root


@pytest.fixture(scope="module")
def full(fine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the scans' own pixels, whatever the method and settings it was made with."""
    path = tmp_path_factory.mktemp("stores") / "full"
    make_store(fine, path, Setup(method="plain", overrides=TINY), full=True)
    opened = open_store(path)
    for case in opened.cases:
        assert case.grid.shape == (8, 128, 128) and case.grid.same_as(case.original)
        assert not case.has("masks")
    return path


@pytest.mark.ci
@pytest.mark.parametrize(
    ("method", "overrides", "pixels"),
    [
        ("plain", (*TINY, *COARSE), 2),
        pytest.param("homogenized", (*HOMOGENIZED, *COARSE), 2, marks=pytest.mark.slow),
        ("plain", (*TINY, "view.pixel_mm=2.0"), 1),
        pytest.param("homogenized", (*HOMOGENIZED, "view.pixel_mm=2.0"), 1, marks=pytest.mark.slow),
        ("plain", (*TINY, "view.pixel_mm=6.5"), 3),
    ],
)
def test_files_and_a_full_store_give_the_same_bits(
    fine: Path,
    full: Path,
    tmp_path: Path,
    method: str,
    overrides: tuple[str, ...],
    pixels: int,
) -> None:
    """Of any method and resolution: where the scans' pixels are averaged, and where they are not.

    And so does a store that was made with these settings.
    """
    kept = tmp_path / "kept"
    make_store(fine, kept, Setup(method=method, overrides=overrides))
    side = -(-128 // pixels)
    assert {case.grid.shape for case in open_store(kept).cases} == {(8, side, side)}
    found = []
    for number, source in enumerate((fine, full, kept)):
        out = tmp_path / f"run {number}"
        run(source, out, method=method, overrides=overrides)
        header = read_header(out / "model.safetensors")
        weights = weights_of(out / "model.safetensors")
        found.append((weights, header["training_range"], header["training_set"]))
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        found[-1] += tuple(  # type: ignore[assignment]
            {name: value for name, value in line.items() if name.startswith(("loss", "val_"))}
            for line in log
        )
    assert found[0] == found[1] == found[2]


def test_a_store_of_blocks_is_refused_for_finer_settings(fine: Path, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "run"
    make_store(fine, store, Setup(method="plain", overrides=(*TINY, *COARSE)))
    with pytest.raises(KidsegError, match="averaged over 2 x 2 pixels, not 1 x 1") as error:
        run(store, out, overrides=(*TINY, "view.pixel_mm=2.0"))
    assert error.value.code == "store-of-other-settings"
    assert "--full" in (error.value.next_step or "")
    assert not (out / "config.toml").exists() and not (out / "model.safetensors").exists()
    same_blocks = run(store, out, overrides=(*TINY, "view.pixel_mm=5.0"))
    assert same_blocks["model"]["sha256"]


@pytest.mark.ci
def test_the_command_makes_a_full_store(fine: Path, full: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "kidseg", "store", str(fine), "-o", str(store), "--full"]
    done = subprocess.run(
        [*command, "--json"], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["digest"] == open_store(store).digest
    assert open_store(store).digest == open_store(full).digest, "of all methods"


BARE = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[3].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from kidseg.train import Setup, train
setup = Setup(method="homogenized", overrides=sys.argv[4:])
train(sys.argv[1], sys.argv[2], setup, device="cpu")
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""
# Every package that kidseg depends on, but for those that its training needs.
NOT_NEEDED = (
    "SimpleITK",
    "nibabel",
    "pydicom",
    "highdicom",
    "isal",
    "scipy",
    "skimage",
    "trimesh",
    "slicerio",
    "monai",
    "batchgeneratorsv2",
    "matplotlib",
    "typer",
    "rich",
)


@pytest.mark.ci
def test_a_store_trains_where_no_reader_is(data: Path, store: Path, tmp_path: Path) -> None:
    """torch, numpy, safetensors, pydantic and tomli_w are enough; the model is the same."""
    out = tmp_path / "bare"
    command = [sys.executable, "-c", BARE, str(store), str(out), ",".join(NOT_NEEDED), *HOMOGENIZED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not set(NOT_NEEDED) & set(done.stdout.split())
    summary = json.loads((out / "summary.json").read_text())
    assert summary["findings"][-1]["code"] == "no-curves"
    assert "matplotlib" in summary["findings"][-1]["cause"]
    full = run(store, tmp_path / "full", method="homogenized", overrides=HOMOGENIZED)
    assert full["findings"] == summary["findings"][:-1] and full["findings"]
    weights = [weights_of(tmp_path / name / "model.safetensors") for name in ("bare", "full")]
    assert weights[0] == weights[1]
    # The same process with files instead of a store fails: what is blocked is what reads them.
    command[3:5] = [str(data), str(tmp_path / "files")]
    failed = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert failed.returncode != 0 and "ModuleNotFoundError" in failed.stderr


@pytest.mark.slow
def test_masks_and_coarser_pixels_are_made_where_no_reader_is(full: Path, tmp_path: Path) -> None:
    """Of a full store: with scipy, and nothing else than one that holds them takes."""
    blocked = ",".join(name for name in NOT_NEEDED if name != "scipy")
    settings = (*HOMOGENIZED, *COARSE)
    command = [sys.executable, "-c", BARE, str(full), str(tmp_path / "bare"), blocked, *settings]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not set(blocked.split(",")) & set(done.stdout.split())
    run(full, tmp_path / "run", method="homogenized", overrides=settings)
    weights = [weights_of(tmp_path / name / "model.safetensors") for name in ("bare", "run")]
    assert weights[0] == weights[1]


def stop_at(what: str, done: int) -> Callable[[str, int, int, Mapping[str, Any]], None]:
    def tell(stage: str, count: int, total: int, figures: Mapping[str, Any]) -> None:
        if (stage, count) == (what, done):
            raise KeyboardInterrupt

    return tell


def test_a_run_stopped_while_reading_goes_on_there(data: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        run(data, out, progress=stop_at("reading", 2))
    assert len(list((out / "store" / "cases").iterdir())) == 2
    heard: list[tuple[str, int, int]] = []
    run(data, out, resume=True, progress=lambda what, a, b, _: heard.append((what, a, b)))
    assert heard[:2] == [("reading", 1, 2), ("reading", 2, 2)] and heard[2][0] == "segment"
    run(data, whole)
    first, second = (weights_of(path / "model.safetensors") for path in (out, whole))
    assert first == second


def test_a_run_resumes_from_a_store_of_its_cases_only(
    data: Path, store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first = run(data, out)
    again = run(store, out, resume=True)
    assert again["model"] == first["model"]
    other = tmp_path / "other"
    make_store(data, other, Setup(method="plain", overrides=TINY, validation=["ellipse_003"]))
    assert open_store(other).plan.training != open_store(store).plan.training
    assert code_of(lambda: run(other, out, resume=True)) == "other-cases"
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps({**plan, "median_spacing_mm": [9.0, 9.0, 9.0]}))
    assert code_of(lambda: run(store, out, resume=True)) == "damaged-record"


def test_changed_files_are_other_cases(tmp_path: Path) -> None:
    """Also names of labels that were exchanged; whether the run's store is still there or not."""
    data, out = tmp_path / "data", tmp_path / "run"
    write_ellipse_dataset(data, 4)
    with pytest.raises(KeyboardInterrupt):
        run(data, out, progress=stop_at("segment", 1))
    assert (out / "store" / "store.json").is_file()
    shutil.copytree(out, tmp_path / "bare", ignore=shutil.ignore_patterns("store"))
    folders = (out, tmp_path / "bare")
    description = data / "dataset.json"
    known = description.read_text()
    exchanged = {"labels": {"background": 0, "kidney": 2, "tumour": 1}}
    description.write_text(json.dumps({**json.loads(known), **exchanged}))
    for folder in folders:
        assert code_of(lambda: run(data, folder, resume=True)) == "other-cases"  # noqa: B023
    description.write_text(known)
    image = data / "imagesTr" / "ellipse_001_0000.nii.gz"
    save(make_ellipse_patient(99).image, image, overwrite=True)
    for folder in folders:
        assert code_of(lambda: run(data, folder, resume=True)) == "other-cases"  # noqa: B023


def test_stores_that_are_not_what_is_asked_for(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    training = open_store(store).plan.training
    (validation,) = {case.id for case in open_store(store).cases} - set(training)
    refused: dict[str, dict[str, Any]] = {
        "other-split": {"validation": [training[0]]},
        "store-of-other-settings": {
            "method": "homogenized",
            "overrides": (*HOMOGENIZED, "view.bone_hu=200.0"),
        },
    }
    for code, changes in refused.items():
        assert code_of(lambda: run(store, out, **changes)) == code  # noqa: B023
    assert code_of(lambda: run(store, out, cases=list(training))) == "other-split"
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    (copy / "store.json").unlink()
    assert code_of(lambda: run(copy, out)) == "unfinished-store"
    assert not (out / "config.toml").exists()
    bone = (*TINY, "view.bone_hu=200.0")
    assert run(store, tmp_path / "bone", overrides=bone)["model"]["sha256"], "which it never sees"
    summary = run(store, out, cases=[*training, validation], validation=[validation])
    assert summary["cases"]["validation"] == [validation]


@pytest.mark.parametrize(
    ("name", "code"), [("liver", "no-kidney-label"), ("kidney", "no-tumour-label")]
)
def test_labels_that_a_method_needs_are_missed_before_cases_are_read(
    name: str, code: str, tmp_path: Path
) -> None:
    """And the data set is named; its images are none, and are not looked at."""
    root = tmp_path / "data"
    write_ellipse_dataset(root, 3)
    described = json.loads((root / "dataset.json").read_text())
    described["labels"] = {"background": 0, name: 1, "spleen": 2}
    (root / "dataset.json").write_text(json.dumps(described))
    for image in (root / "imagesTr").iterdir():
        image.write_bytes(image.name.encode())
    for refused in (
        lambda: train(root, tmp_path / "run", Setup(method="cascade"), device="cpu"),
        lambda: preview(root, Setup(method="cascade")),
    ):
        with pytest.raises(InputError) as error:
            refused()
        assert error.value.code == code and error.value.path == str(root)


@pytest.mark.row(26)
def test_a_folder_that_cannot_be_is_found_before_cases_are_read(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    seen: list[object] = []
    setup = Setup(method="plain", overrides=TINY)
    with pytest.raises(InputError) as caught:
        make_store(data, tmp_path / "file/store", setup, progress=lambda *now: seen.append(now))
    assert caught.value.code == "not-writable" and not seen


def test_a_fresh_run_takes_no_store_of_an_older_one(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(data, out, progress=stop_at("reading", 3))
    wider = [*TINY, "view.bone_hu=200.0"]
    assert run(data, out, overrides=wider, overwrite=True)["model"]["sha256"]
    assert not (out / "store").exists()


def copied(data: Path, root: Path, ending: str) -> Path:
    """The data set with the first case's image under another name too, with other labels."""
    shutil.copytree(data, root)
    scans = sorted((root / "imagesTr").iterdir())
    scans[1].unlink()
    name = scans[1].name.removesuffix("_0000.nii.gz")
    if ending == ".nii.gz":
        shutil.copy(scans[0], scans[1])
    else:  # the same voxels in another file
        volume = read(scans[0]).volume
        save(volume.astype(torch.float32), scans[1])
    (root / "patients.csv").write_text(f"case,patient\n{name},other\n")
    return root


@pytest.mark.requirement("no leak")
@pytest.mark.row(14)
@pytest.mark.parametrize("ending", [".nii.gz", "other"])
def test_the_same_image_in_training_and_validation(data: Path, tmp_path: Path, ending: str) -> None:
    root = copied(data, tmp_path / "set", ending)
    first, second, *_ = (
        path.name.removesuffix(".nii.gz") for path in sorted((root / "labelsTr").iterdir())
    )
    parted = Setup(method="plain", overrides=TINY, validation=[second])
    for action in (
        lambda: make_store(root, tmp_path / "store", parted),
        lambda: run(root, tmp_path / "run", validation=[second]),
    ):
        with pytest.raises(InputError, match=f"{first}.*{second}") as caught:
            action()
        assert caught.value.code == "same-image"
    if ending == "other":  # found when the store was complete; it cannot be used either
        assert code_of(lambda: run(tmp_path / "store", tmp_path / "run2")) == "same-image"
    assert not (tmp_path / "run" / "model.safetensors").exists()
    together = Setup(method="plain", overrides=TINY, validation=[first, second])
    with pytest.raises(InputError, match="of two patients"):
        make_store(root, tmp_path / "together", together)
    rows = [{"case": name, "patient": "one"} for name in (first, second)]
    write_patients_csv(root, rows, overwrite=True)
    make_store(root, tmp_path / "patient", together)


# ---- the reference, and scans without labels ---------------------------------------------------


def request_for(**asked: Any) -> Request:
    setup = Setup(**{"method": "homogenized", "overrides": HOMOGENIZED, **asked})
    return Request.of(setup, resolve(setup), None)


def test_the_reference_trains_whatever_the_split(data: Path) -> None:
    opened = open_dataset(data)
    for case in opened.by_id:
        for seed in range(4):
            training, held_out = split_cases(opened, request_for(reference=case, seed=seed))
            assert case in training and len(held_out) == 1
            assert {*training, *held_out} == set(opened.by_id)
    first, *rest = opened.by_id
    asked: dict[str, Any]
    for asked in ({"validation": [first]}, {"cases": rest}):
        with pytest.raises(UsageError, match="not among the training cases") as error:
            split_cases(opened, request_for(reference=first, **asked))
        assert error.value.code == "unknown-case" and error.value.next_step


@pytest.mark.ci
def test_the_reference_is_a_training_case_of_the_store(store: Path, tmp_path: Path) -> None:
    opened = open_store(store)
    (held_out,) = {case.id for case in opened.cases} - set(opened.plan.training)
    asked: dict[str, Any] = {"method": "homogenized", "overrides": HOMOGENIZED}
    with pytest.raises(UsageError, match="not among the training cases"):
        run(store, tmp_path / "run", reference=held_out, **asked)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="not among the training cases"):
        preview(store, Setup(reference=held_out, **asked))
    name = opened.plan.training[-1]
    run(store, tmp_path / "run", reference=name, **asked)
    assert read_header(tmp_path / "run" / "model.safetensors")["reference"]["case"] == name
    assert f'reference = "{name}"' in (tmp_path / "run" / "config.toml").read_text()
    other = {"method": "homogenized", "overrides": ()}
    with pytest.raises(UsageError, match="with pose") as error:
        run(store, tmp_path / "run", resume=True, reference=opened.plan.training[0], **other)
    assert error.value.code == "other-settings"
    run(store, tmp_path / "run", resume=True, reference=name, **other)


@pytest.mark.ci
def test_the_reference_is_of_the_middle_of_the_ages_that_the_files_state(tmp_path: Path) -> None:
    """Of four, one of the two in the middle, from files and from a store; not the medoid of all."""
    root = tmp_path / "data"
    write_ellipse_dataset(root, 5)
    *training, held_out = open_dataset(root).by_id
    asked: dict[str, Any] = {"method": "homogenized", "overrides": HOMOGENIZED}
    asked |= {"validation": [held_out]}

    def reference_of(source: Path, out: Path) -> str:
        run(source, out, **asked)
        name: str = read_header(out / "model.safetensors")["reference"]["case"]
        return name

    medoid = reference_of(root, tmp_path / "without")
    others = [name for name in training if name != medoid]
    ages = {medoid: 16.0, **dict(zip(others, (1.0, 2.0, 3.0), strict=True))}
    write_patients_csv(root, [{"case": name, "age_years": age} for name, age in ages.items()])
    make_store(root, tmp_path / "store", Setup(**asked))
    found = [
        reference_of(root, tmp_path / "aged"),
        reference_of(tmp_path / "store", tmp_path / "s"),
    ]
    assert found[0] == found[1] and ages[found[0]] in (2.0, 3.0)


@pytest.fixture(scope="module")
def mixed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans without labels: a new one, one of a known patient, a copy of a known image."""
    root = tmp_path_factory.mktemp("data") / "mixed"
    shutil.copytree(data, root)
    (root / "imagesTs").mkdir()
    for number, name in ((900, "new_000"), (901, "again_000")):
        image = make_ellipse_patient(number).image
        save(image, root / "imagesTs" / f"{name}_0000.nii.gz")
    copied = root / "imagesTr" / "ellipse_002_0000.nii.gz"
    shutil.copy(copied, root / "imagesTs" / "copy_000_0000.nii.gz")
    write_patients_csv(root, [{"case": "again_000", "patient": "ellipse_001"}])
    return root


@pytest.mark.ci
def test_scans_without_labels_join_a_run(mixed: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"method": "homogenized", "overrides": HOMOGENIZED}
    with pytest.warns(KidsegWarning, match="2 of 3 scans without labels are not used"):
        summary = run(mixed, tmp_path / "files", **asked)
    assert summary["cases"]["unlabelled"] == ["new_000"]
    assert len(summary["cases"]["training"]) + len(summary["cases"]["validation"]) == 4
    run(mixed, tmp_path / "files", resume=True, **asked)
    with pytest.warns(KidsegWarning):
        made = make_store(mixed, tmp_path / "store", Setup(**asked))
    # Before images are read, a copy is not known as one.
    planned = {mixed: {"new_000", "copy_000"}, tmp_path / "store": {"new_000"}}
    for source, unlabelled in planned.items():
        cases = preview(source, Setup(**asked))["cases"]
        assert set(cases["unlabelled"]) == unlabelled
        assert cases["training"] == made["cases"]["training"]
    assert made["cases"]["unlabelled"] == ["new_000"]
    opened = open_store(tmp_path / "store")
    assert not is_labelled(opened.by_id["new_000"]) and subject_of(opened.by_id["new_000"]).slices
    assert subject_of(opened.by_id["new_000"]).labels is None
    assert subject_of(opened.by_id["ellipse_000"]).labels is not None
    run(tmp_path / "store", tmp_path / "stored", **asked)
    runs = [tmp_path / name for name in ("files", "stored")]
    assert len({(out / "cases.json").read_bytes() for out in runs}) == 1
    assert weights_of(runs[0] / "model.safetensors") == weights_of(runs[1] / "model.safetensors")


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "plain", "overrides": TINY},
        {"overrides": (*HOMOGENIZED, "pose.unlabelled=false")},
        {"cases": ["ellipse_000", "ellipse_001", "ellipse_002"]},
    ],
)
def test_scans_without_labels_are_left_where_they_are_not_wanted(
    mixed: Path, asked: dict[str, Any]
) -> None:
    request = request_for(**asked)
    assert not request.unlabelled
    assert select_cases(open_dataset(mixed), request).unlabelled == ()
