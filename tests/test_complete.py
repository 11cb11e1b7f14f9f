"""`kidseg complete`: drawn slices stay, the model learns from them, bad drawings are refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from commands import call_cli
from ellipses import SLICES, write_ellipse_dataset
from kidseg.checkpoint import load_model, save_model
from kidseg.complete import complete
from kidseg.errors import InputError, UsageError
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, read
from kidseg.io.slicer_seg import write_slicer_segmentation
from kidseg.labels import LabelSchema
from kidseg.members import ensemble
from kidseg.train import Setup, train
from trained import tiny, tiny_pose

CASE = "ellipse_003"
AS_LABELS = ReadOptions(values="labels")
BLOCKS = ("precision=fp32", "augment=none", "blocks.patch=[8,16,16]", "blocks.features=4")
THIN = ("segment.epochs=1", "segment.steps=1", "segment.batch_size=2")


def labels_of(path: Path) -> np.ndarray:
    """(slices, rows, columns) of a label file."""
    return read(path, AS_LABELS).volume.data[0].numpy()


def scan_of(data: Path) -> Path:
    return data / "imagesTr" / f"{CASE}_0000.nii.gz"


def draw(data: Path, out: Path, slices: list[int], labels: np.ndarray | None = None) -> Path:
    """A file with labels in some slices of a scan, in (columns, rows, slices) as in the file."""
    known = nibabel.load(data / "labelsTr" / f"{CASE}.nii.gz")
    values = np.asarray(known.dataobj) if labels is None else labels
    out.parent.mkdir(exist_ok=True)
    drawn = np.zeros_like(values)
    drawn[:, :, slices] = values[:, :, slices]
    nibabel.save(nibabel.Nifti1Image(drawn, known.affine), out)
    return out


def spine_of(data: Path) -> np.ndarray:
    """What is brighter than any kidney, as tumour; (columns, rows, slices)."""
    hu = np.asarray(nibabel.load(scan_of(data)).dataobj)
    return np.where(hu > 350, 2, 0).astype(np.uint8)


@pytest.mark.requirement("drawn")
def test_drawn_slices_stay_and_the_others_are_segmented(trained: Path, tmp_path: Path) -> None:
    drawn = draw(trained / "data", tmp_path / "drawn.nii.gz", [2, 5])
    before = (trained / "run" / "model.safetensors").read_bytes()
    entry = complete(
        scan_of(trained / "data"), drawn, tmp_path / "out", model=trained / "run", steps=4
    )
    found, given = labels_of(tmp_path / "out" / f"{CASE}_seg.nii.gz"), labels_of(drawn)
    np.testing.assert_array_equal(found[[2, 5]], given[[2, 5]])
    assert found[[3, 4]].any()
    assert entry["completed"]["slices"] == 2
    assert entry["completed"]["of"] == SLICES
    assert entry["completed"]["steps"] == 4
    assert entry["model"]["sha256"] != entry["completed"]["start"]["sha256"]
    assert (trained / "run" / "model.safetensors").read_bytes() == before
    assert not list((tmp_path / "out").glob("*.safetensors"))
    listed = {entry["slice"] for entry in entry["review"]["slices"]}
    assert not listed & {2, 5}


def test_the_same_call_gives_the_same_labels(trained: Path, tmp_path: Path) -> None:
    drawn = draw(trained / "data", tmp_path / "drawn.nii.gz", [2, 5])
    scan, model = scan_of(trained / "data"), trained / "run"
    entries = [
        complete(scan, drawn, tmp_path / name, model=model, steps=6, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = (entry["model"]["sha256"] for entry in entries)
    assert a == b != c
    one, other = (labels_of(tmp_path / name / f"{CASE}_seg.nii.gz") for name in "ab")
    np.testing.assert_array_equal(one, other)


def test_the_model_learns_what_is_drawn(trained: Path, tmp_path: Path) -> None:
    """The spine, drawn as tumour, is found in other slices, and kidneys are no longer.

    It has no kidney, and stays nevertheless.
    """
    spine = spine_of(trained / "data")
    drawn = draw(trained / "data", tmp_path / "drawn.nii.gz", [1, 3, 6], spine)
    complete(scan_of(trained / "data"), drawn, tmp_path, model=trained / "run", steps=120)
    found = labels_of(tmp_path / f"{CASE}_seg.nii.gz")
    wanted = draw(trained / "data", tmp_path / "all.nii.gz", list(range(SLICES)), spine)
    rest = [0, 2, 4, 5, 7]
    a, b = found[rest] == 2, labels_of(wanted)[rest] == 2
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.8
    assert (found[rest] == 1).sum() < 0.1 * a.sum()


def test_nothing_is_found_beyond_the_drawn_slices_if_so_said(trained: Path, tmp_path: Path) -> None:
    drawn = draw(trained / "data", tmp_path / "drawn.nii.gz", [3, 5])
    scan, model = scan_of(trained / "data"), trained / "run"
    for nothing_beyond in (False, True):
        out = tmp_path / str(nothing_beyond)
        complete(scan, drawn, out, model=model, steps=2, nothing_beyond=nothing_beyond)
        found = labels_of(out / f"{CASE}_seg.nii.gz")
        assert found[[2, 6]].any() != nothing_beyond
        assert found[4].any()


def test_labels_in_another_order_of_voxels_are_the_same(trained: Path, tmp_path: Path) -> None:
    plain = draw(trained / "data", tmp_path / "drawn.nii.gz", [2, 5])
    known = nibabel.load(plain)
    turned = known.as_reoriented(np.array([[1, 1], [0, -1], [2, -1]]))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    scan, model = scan_of(trained / "data"), trained / "run"
    for name, file in (("a", plain), ("b", tmp_path / "turned.nii.gz")):
        complete(scan, file, tmp_path / name, model=model, steps=2)
    one, other = (labels_of(tmp_path / name / f"{CASE}_seg.nii.gz") for name in "ab")
    np.testing.assert_array_equal(one, other)


def test_a_segmentation_of_3d_slicer_may_be_cropped(trained: Path, tmp_path: Path) -> None:
    """Named segments, whose box is smaller than the scan; the numbers are not the model's."""
    plain = draw(trained / "data", tmp_path / "drawn.nii.gz", [2, 5])
    whole = read(plain, AS_LABELS).volume
    part = Volume(
        3 - whole.data[:, 1:7, 8:60, 4:60].clone(), whole.grid.crop((1, 8, 4), (6, 52, 56))
    )
    part.data[part.data == 3] = 0
    with (tmp_path / "drawn.seg.nrrd").open("wb") as file:
        names = LabelSchema.from_names({2: "left kidney", 1: "tumor"})
        write_slicer_segmentation(part, names, file, "")
    scan, model = scan_of(trained / "data"), trained / "run"
    for name, drawn in (("a", plain), ("b", tmp_path / "drawn.seg.nrrd")):
        complete(scan, drawn, tmp_path / name, model=model, steps=2)
    one, other = (labels_of(tmp_path / name / f"{CASE}_seg.nii.gz") for name in "ab")
    np.testing.assert_array_equal(one, other)


@pytest.mark.ci
@pytest.mark.parametrize(
    ("method", "settings"),
    [("homogenized", (*tiny(1), *tiny_pose(1))), ("plain3d", (*BLOCKS, *THIN))],
)
def test_other_methods_complete_too(method: str, settings: tuple[str, ...], tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_ellipse_dataset(data, 4)
    train(data, tmp_path / "run", Setup(method=method, overrides=settings), device="cpu")
    drawn = draw(data, tmp_path / "drawn.nii.gz", [2, 5])
    trained = {
        complete(
            scan_of(data), drawn, tmp_path / str(seed), model=tmp_path / "run", steps=2, seed=seed
        )["model"]["sha256"]
        for seed in (1, 2)
    }
    assert len(trained) == 2, "other batches, other weights"
    found = labels_of(tmp_path / "1" / f"{CASE}_seg.nii.gz")
    np.testing.assert_array_equal(found[[2, 5]], labels_of(drawn)[[2, 5]])


def test_an_ensemble_is_trained_network_by_network(trained: Path, tmp_path: Path) -> None:
    drawn = draw(trained / "data", tmp_path / "drawn.nii.gz", [2, 5])
    said: list[str] = []
    within: dict[str, list[float]] = {}
    entry = complete(
        scan_of(trained / "data"),
        drawn,
        tmp_path / "out",
        model=[trained / "run", trained / "run"],
        steps=2,
        progress=lambda what, done, total, line: said.append(what),
        within=lambda what, done: within.setdefault(what, []).append(done),
    )
    assert within["train"] == [0, 0.25, 0.5, 0.75, 1]
    assert dict.fromkeys(said) == {
        "training network 1 of 2": None,
        "training network 2 of 2": None,
    }
    assert entry["ensemble"]["members"] == ["plain", "plain"]


def test_only_members_that_count_in_the_scan_are_trained(trained: Path, tmp_path: Path) -> None:
    drawn = draw(trained / "data", tmp_path / "drawn.nii.gz", [2, 5])
    slabs, stacks = (tmp_path / f"{name}.safetensors" for name in ("slabs", "stacks"))
    ensemble([trained / "run"], slabs, only_in="slabs")
    ensemble([trained / "run"], stacks, only_in="stacks")
    said: list[str] = []
    entry = complete(
        scan_of(trained / "data"),
        drawn,
        tmp_path / "out",
        model=[slabs, stacks],
        steps=1,
        progress=lambda what, done, total, line: said.append(what),
    )
    assert set(said) == {"training"} and "ensemble" not in entry
    alone = complete(
        scan_of(trained / "data"), drawn, tmp_path / "alone", model=trained / "run", steps=1
    )
    assert entry["volumes_ml"] == alone["volumes_ml"]


def test_a_step_has_eight_slices_at_most_also_of_a_model_that_was_trained_with_more(
    trained: Path, tmp_path: Path
) -> None:
    drawn = draw(trained / "data", tmp_path / "drawn.nii.gz", [2, 5])
    usual = load_model(trained / "run" / "model.safetensors")
    doubt = {}
    for size in (2, 8, 32):
        file = tmp_path / f"{size}.safetensors"
        config = copy.deepcopy(dict(usual.header["config"]))
        config["segment"]["batch_size"] = size
        save_model(file, usual.parts, {**usual.header, "config": config})
        out = tmp_path / f"out-{size}"
        complete(
            scan_of(trained / "data"), drawn, out, model=file, steps=5, formats=("nii", "entropy")
        )
        doubt[size] = nibabel.load(next(out.glob("*entropy*"))).get_fdata()
    np.testing.assert_array_equal(doubt[8], doubt[32])
    assert (doubt[2] != doubt[8]).any()


BAD = {
    "empty": (np.s_[:, :, []], "nothing-drawn"),
    "all slices": (np.s_[:, :, :], "nothing-left"),
    "coronal": (np.s_[:, [20, 30, 40]], "drawn-across"),
    "sagittal": (np.s_[[20, 45]], "drawn-across"),
}


@pytest.mark.parametrize(("where", "code"), BAD.values(), ids=BAD)
def test_bad_drawings_are_refused(where: Any, code: str, trained: Path, tmp_path: Path) -> None:
    """Labels in all of these (columns, rows, slices)."""
    known = nibabel.load(trained / "data" / "labelsTr" / f"{CASE}.nii.gz")
    labels = np.zeros(known.shape, dtype=np.uint8)
    labels[where] = 1
    drawn = tmp_path / "drawn.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels, known.affine), drawn)
    with pytest.raises(InputError) as error:
        complete(scan_of(trained / "data"), drawn, tmp_path / "out", model=trained / "run")
    assert error.value.code == code
    assert "drawn.nii.gz" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_thin_drawing_in_one_slice_is_no_sagittal_plane(trained: Path, tmp_path: Path) -> None:
    known = nibabel.load(trained / "data" / "labelsTr" / f"{CASE}.nii.gz")
    labels = np.zeros(known.shape, dtype=np.uint8)
    labels[20, 10:14, 3] = 1
    nibabel.save(nibabel.Nifti1Image(labels, known.affine), tmp_path / "drawn.nii.gz")
    entry = complete(
        scan_of(trained / "data"),
        tmp_path / "drawn.nii.gz",
        tmp_path / "out",
        model=trained / "run",
        dry_run=True,
    )
    assert entry["completed"]["slices"] == 1


def test_what_the_file_ignores_is_not_drawn(trained: Path, tmp_path: Path) -> None:
    """Half of a drawn slice is to be ignored: it is segmented, and slice 5 stays as a whole."""
    drawn = draw(trained / "data", tmp_path / "labelsTr" / "x.nii.gz", [2, 5])
    known = nibabel.load(drawn)
    values = np.asarray(known.dataobj).copy()
    values[:32, :, 2] = 3
    nibabel.save(nibabel.Nifti1Image(values, known.affine), drawn)
    names = {"background": 0, "kidney": 1, "tumour": 2, "ignore": 3}
    (tmp_path / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": names,
                "numTraining": 1,
                "file_ending": ".nii.gz",
            }
        )
    )
    out = tmp_path.parent / f"{tmp_path.name}-out"
    complete(scan_of(trained / "data"), drawn, out, model=trained / "run", steps=1)
    found = np.asarray(nibabel.load(out / f"{CASE}_seg.nii.gz").dataobj)
    np.testing.assert_array_equal(found[32:, :, 2], values[32:, :, 2])
    np.testing.assert_array_equal(found[:, :, 5], values[:, :, 5])
    assert found[:32, :, 2].any()
    assert found.max() <= 2


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_cannot_be_written_is_said_before_the_training(
    dry_run: bool, trained: Path, tmp_path: Path
) -> None:
    drawn = draw(trained / "data", tmp_path / "drawn.nii.gz", [2, 5])

    def never(*_: Any) -> None:
        raise AssertionError("it was trained")

    with pytest.raises(InputError) as error:
        complete(
            scan_of(trained / "data"),
            drawn,
            tmp_path / "out",
            model=trained / "run",
            formats=["dicomseg"],
            dry_run=dry_run,
            progress=never,
        )
    assert error.value.code == "no-dicom-series"


def test_labels_of_another_scan_are_refused(trained: Path, tmp_path: Path) -> None:
    drawn = draw(trained / "data", tmp_path / "drawn.nii.gz", [2, 5])
    known = nibabel.load(drawn)
    affine = known.affine.copy()
    affine[2, 3] += 5
    nibabel.save(nibabel.Nifti1Image(np.asarray(known.dataobj), affine), drawn)
    with pytest.raises(InputError) as error:
        complete(scan_of(trained / "data"), drawn, tmp_path / "out", model=trained / "run")
    assert error.value.code == "label-grid-mismatch"


@pytest.mark.requirement("drawn")
def test_what_is_not_drawn_is_said(trained: Path, tmp_path: Path) -> None:
    known = nibabel.load(trained / "data" / "labelsTr" / f"{CASE}.nii.gz")
    both = np.asarray(known.dataobj)
    for name, labels, expected in (
        ("both", both, []),
        ("kidney", np.where(both == 1, 1, 0).astype(np.uint8), ["no drawn slice has tumour,"]),
    ):
        drawn = draw(trained / "data", tmp_path / f"{name}.nii.gz", [3, 4], labels)
        entry = complete(
            scan_of(trained / "data"), drawn, tmp_path / name, model=trained / "run", steps=1
        )
        said = [w["cause"] for w in entry["warnings"] if w["code"] == "not-drawn"]
        assert [
            cause[: len(words)] for cause, words in zip(said, expected, strict=True)
        ] == expected


def test_one_scan_is_completed_at_a_time(trained: Path, tmp_path: Path) -> None:
    """A folder is right if it holds one scan."""
    drawn = draw(trained / "data", tmp_path / "drawn.nii.gz", [2, 5])
    with pytest.raises(UsageError) as error:
        complete(trained / "data" / "imagesTr", drawn, tmp_path / "out", model=trained / "run")
    assert error.value.code == "several-scans"
    assert not (tmp_path / "out").exists()
    (tmp_path / "one").mkdir()
    shutil.copy(scan_of(trained / "data"), tmp_path / "one")
    entry = complete(tmp_path / "one", drawn, tmp_path / "out", model=trained / "run", steps=1)
    assert entry["completed"]["slices"] == 2


def test_missing_labels_and_steps_are_refused(trained: Path, tmp_path: Path) -> None:
    scan = scan_of(trained / "data")
    with pytest.raises(InputError, match="no such file"):
        complete(scan, tmp_path / "none.nii.gz", tmp_path / "out", model=trained / "run")
    drawn = draw(trained / "data", tmp_path / "drawn.nii.gz", [2])
    with pytest.raises(UsageError, match="0 steps"):
        complete(scan, drawn, tmp_path / "out", model=trained / "run", steps=0)


@pytest.mark.requirement("drawn")
def test_the_command_says_what_is_kept(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = draw(trained / "data", tmp_path / "drawn.nii.gz", [2, 5])
    words = ("complete", scan_of(trained / "data"), drawn, "-o", tmp_path / "out")
    model = ("-m", trained / "run", "--steps", 2)
    assert call_cli(*words, *model, "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    assert "_seg.nii.gz" in capsys.readouterr().out
    assert call_cli(*words, *model, "--formats", "nii,seg.nrrd,html") == 0
    assert "2 of 8 slices were drawn, and stay" in capsys.readouterr().out
    segmentation = (tmp_path / "out" / f"{CASE}.seg.nrrd").read_bytes()
    assert b"completed from drawn slices" in segmentation
    page = (tmp_path / "out" / f"{CASE}_report.html").read_text()
    assert "2 of 8 slices were drawn (SHA-256" in page
    assert call_cli(*words, *model) == UsageError.exit_code
    assert call_cli(*words, *model, "--overwrite", "--json", "--progress") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["completed"]["slices"] == 2
    said = [line.rpartition(": ") for line in printed.err.splitlines() if line.endswith(" %")]
    shares = {name: [int(text[:-2]) for n, _, text in said if n == name] for name, *_ in said}
    assert list(shares) == ["train", "segment", "decide"]
    assert shares["train"] == [0, 50, 100]
    assert all(each == sorted(each) and each[-1] == 100 for each in shares.values())
