"""Scans in, labels out: on the scan's own voxels, with a record; one bad scan stops no other."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from ellipses import make_ellipse_patient, write_ellipse_dataset
from kidseg.cases import open_dataset
from kidseg.check import check
from kidseg.errors import BatchError, InputError, KidsegError, ModelError, UsageError
from kidseg.evaluate import evaluate
from kidseg.export import export_nnunet
from kidseg.geometry import Grid, Volume, posed
from kidseg.io import ReadOptions, read, save
from kidseg.io.orientation import reorient
from kidseg.methods.homogenized.system_a import Homogenized
from kidseg.pipeline import Region, Step
from kidseg.segment import Predictor, load_predictor, segment
from kidseg.train import Setup, train

LABELS = ReadOptions(values="labels")
SETTINGS = (
    "view.size=32",
    "unet.size=32",
    "unet.features=8",
    "precision=fp32",
    "segment.epochs=6",
    "segment.min_epochs=0",
    "segment.steps=10",
    "segment.batch_size=9",
    "segment.optimizer.name=adam",
    "segment.optimizer.learning_rate=0.01",
    "pose.localizer.size=32",
    "pose.localizer.pooled=4",
    "pose.localizer.hidden=[16,8]",
    "pose.stage.epochs=1",
    "pose.stage.min_epochs=0",
    "pose.stage.steps=2",
    "pose.stage.batch_size=6",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("segment")
    write_ellipse_dataset(root / "data", 5)
    setup = Setup(method="homogenized", overrides=SETTINGS)
    train(root / "data", root / "run", setup, device="cpu")
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return folder / "run" / "model.safetensors"


def scan(folder: Path, number: int = 0) -> Path:
    return folder / "data" / "imagesTr" / f"ellipse_{number:03d}_0000.nii.gz"


def labels_of(path: Path) -> Volume:
    return read(path, ReadOptions(values="labels")).volume


@pytest.mark.requirement("own voxels")
def test_labels_lie_on_the_scans_own_voxels(folder: Path, model: Path, tmp_path: Path) -> None:
    (result,) = segment([scan(folder)], model, tmp_path, device="cpu")
    written = nibabel.load(tmp_path / "ellipse_000_seg.nii.gz")
    original = nibabel.load(scan(folder))
    assert written.shape == original.shape
    assert np.array_equal(written.affine, original.affine)
    values = np.asarray(written.dataobj)
    assert set(np.unique(values)) <= {0, 1, 2} and values.dtype == np.uint8
    truth = labels_of(folder / "data" / "labelsTr" / "ellipse_000.nii.gz").data > 0
    found = labels_of(tmp_path / "ellipse_000_seg.nii.gz").data > 0
    assert 2 * (truth & found).sum() / (truth.sum() + found.sum()) > 0.7
    voxel_ml = 10 * 4 * 4 / 1000
    assert result["volumes_ml"]["kidney+tumour"] == pytest.approx(float(found.sum()) * voxel_ml)
    sides = [result["sides"][side]["volumes_ml"] for side in ("right", "left")]
    for name in ("kidney", "tumour"):
        assert sum(side[name] for side in sides) == pytest.approx(result["volumes_ml"][name])
    assert all(side["kidney"] > 0 for side in sides) and result["sides"]["midline"] == "body"


def test_the_record(folder: Path, model: Path, tmp_path: Path) -> None:
    (result,) = segment([scan(folder)], model, tmp_path, device="cpu")
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["scans"] == [json.loads(json.dumps(result))]
    assert "Not a medical device" in record["intended_use"]
    assert result["model"]["sha256"] == load_predictor(model, "cpu").sha256
    assert result["device"] == "cpu" and result["precision"] == "fp32"
    assert set(result["versions"]) >= {"kidseg", "torch", "numpy"} and result["date"]
    assert set(result["grids"]) == {"pose", "segment"}
    for (grid,) in result["grids"].values():
        assert set(grid) == {"name", "angle_deg", "scale", "shift_mm", "pixel_mm", "shape"}
        assert grid["name"] == "" and grid["shape"] == [8, 32, 32]
    steps = ("read", "prepare", "pose", "segment", "restore", "postprocess", "review", "measure")
    assert tuple(result["seconds"]) == (*steps, "write")
    assert [warning["code"] for warning in result["warnings"]].count("thick-slices") == 1


@pytest.mark.requirement("own voxels")
@pytest.mark.parametrize("order", ["RAS", "LPS", "SRA", "ASL"])
def test_any_axis_order_gives_the_same_result(
    folder: Path, model: Path, tmp_path: Path, order: str
) -> None:
    image = nibabel.load(scan(folder, 1))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(image.affine),
        nibabel.orientations.axcodes2ornt(order),
    )
    turned = tmp_path / "turned.nii.gz"
    nibabel.save(image.as_reoriented(turn), turned)
    first, second = segment([scan(folder, 1), turned], model, tmp_path / "out", device="cpu")
    for side in ("right", "left"):
        volumes = [entry["sides"][side]["volumes_ml"] for entry in (first, second)]
        assert volumes[0] == pytest.approx(volumes[1], abs=0.5)
    a, b = (
        labels_of(tmp_path / "out" / f"{name}_seg.nii.gz") for name in ("ellipse_001", "turned")
    )
    assert a.grid.same_as(b.grid)
    assert (a.data != b.data).sum() <= 2


def test_in_python(model: Path) -> None:
    predictor = load_predictor(model, "cpu")
    patient = make_ellipse_patient(3)
    found = predictor(patient.image)
    assert found.labels.grid is patient.image.grid
    assert found.labels.data.dtype == torch.uint8


def test_one_bad_scan_stops_no_other(folder: Path, model: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(scan(folder).read_bytes()[:2000])
    out = tmp_path / "out"
    heard: list[tuple[int, int]] = []
    with pytest.raises(BatchError, match=r"1 of 3.*bad\.nii\.gz"):
        segment(
            [scan(folder), bad, scan(folder, 1)],
            model,
            out,
            device="cpu",
            progress=lambda done, total: heard.append((done, total)),
        )
    assert heard == [(1, 3), (2, 3), (3, 3)]
    names = {file.name for file in out.iterdir()}
    files = {"ellipse_000_seg.nii.gz", "ellipse_001_seg.nii.gz", "result.json"}
    assert names == files | {"summary.csv", "cohort.html"}
    record = json.loads((out / "result.json").read_text())
    assert len(record["scans"]) == 2 and "bad.nii.gz" in record["failed"][0]["path"]


def test_a_single_bad_scan_is_its_own_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        segment([tmp_path / "nothing.nii.gz"], model, tmp_path / "out", device="cpu")
    assert error.value.code == "not-found"


@pytest.mark.parametrize(
    ("scans", "formats", "code"),
    [
        (["a.nii.gz"], ["dcm"], "unknown-format"),
        ([], ["nii"], "no-scans"),
        (["x/a.nii.gz", "y/imagesTs/a_0000.nii"], ["nii"], "same-name"),
    ],
)
def test_wrong_calls(
    scans: list[str], formats: list[str], code: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        segment(scans, model, tmp_path / "out", formats=formats, device="cpu")
    assert error.value.code == code
    assert not (tmp_path / "out").exists()


def test_results_that_are_there_stay(folder: Path, model: Path, tmp_path: Path) -> None:
    segment([scan(folder)], model, tmp_path, device="cpu", formats=["nii", "nrrd"])
    before = (tmp_path / "ellipse_000_seg.nii.gz").read_bytes()
    with pytest.raises(UsageError) as error:
        segment([scan(folder)], model, tmp_path, device="cpu")
    assert error.value.code == "output-exists"
    segment([scan(folder)], model, tmp_path, device="cpu", overwrite=True)
    assert (tmp_path / "ellipse_000_seg.nii.gz").read_bytes() == before, "the same, bit for bit"
    assert (tmp_path / "ellipse_000_seg.nrrd").exists()


def test_a_damaged_model_is_refused(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model.safetensors"
    shutil.copy(model, copy)
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ModelError):
        load_predictor(copy, "cpu")


def findings(model: Path, image: Volume) -> dict[str, Any]:
    found = load_predictor(model, "cpu")(image)
    return {finding.code: finding for finding in found.findings}


def test_what_the_result_says_of_itself(folder: Path, model: Path) -> None:
    grid = Grid.from_spacing((4, 64, 64), (10.0, 4.0, 4.0))
    air = Volume(torch.full((1, 4, 64, 64), -1000, dtype=torch.int16), grid)
    assert "no-body" in findings(model, air)
    patient = make_ellipse_patient(0).image
    middle = patient.slices(3, 5)
    assert "kidney-cut" in findings(model, middle)


def test_a_written_volume_is_read_as_a_scan(model: Path, tmp_path: Path) -> None:
    """MetaImage in, MetaImage out."""
    path = save(make_ellipse_patient(2).image, tmp_path / "scan.mha")
    segment([path], model, tmp_path / "out", formats=["mha"], device="cpu")
    assert (tmp_path / "out" / "scan_seg.mha").exists()


@pytest.mark.parametrize("turn_rad", [0.0, 0.2])
def test_a_region_that_cuts_what_was_found_is_noticed(
    model: Path, monkeypatch: pytest.MonkeyPatch, turn_rad: float
) -> None:
    """Whatever the method; not where the region ends with the scan, or nothing reaches its end."""
    predictor = load_predictor(model, "cpu")
    patient = make_ellipse_patient(0)
    grid = patient.image.grid

    def codes(region: Grid, rows: slice) -> list[str]:
        """Of a method that finds a tumour in these rows of its region, in all columns but two."""
        data = torch.zeros((3, *region.shape))
        data[2, :, rows, 2:-2] = 1.0
        data[0] = 1.0 - data[2]
        step = Step(
            name="segment",
            locate=lambda _: [Region(grid=region)],
            segment=lambda _, place: Volume(data, place.grid),
            target=predictor.method.target,
        )
        pose = Step(name="pose", locate=lambda _: [Region(grid=grid.slicewise())])
        monkeypatch.setattr(Homogenized, "steps", lambda *_: [pose, step])
        return [finding.code for finding in predictor(patient.image).findings]

    inside = grid.crop((0, 16, 16), (8, 32, 32))
    inside = posed(inside, angle_rad=torch.full((8,), turn_rad)) if turn_rad else inside
    assert "region-border" in codes(inside, slice(0, 9))
    assert "region-border" in codes(inside, slice(20, 32))
    assert "region-border" not in codes(inside, slice(1, 31))
    assert "region-border" not in codes(grid, slice(0, 9)), "there is nothing beyond"
    assert "region-border" not in codes(grid.crop((0, -6, 0), (8, 70, 64)), slice(0, 9))


# ---- row 4: a slightly sheared scan, from check to export --------------------------------------


def sheared(path: Path, out: Path) -> Path:
    """The same voxels on axes that are 0.2 degrees off orthogonal, as some converters write."""
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[1, 2] += 0.035
    tilted = nibabel.Nifti1Image(np.asarray(image.dataobj), affine)
    tilted.set_sform(affine, 1)
    tilted.set_qform(None, 0)
    tilted.header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    out.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(tilted, out)
    return out


@pytest.mark.row(4)
@pytest.mark.parametrize("ending", ["nii.gz", "nii", "nrrd", "mha"])
def test_labels_of_a_slightly_sheared_scan_are_on_its_own_voxels(
    folder: Path, model: Path, tmp_path: Path, ending: str
) -> None:
    path = sheared(scan(folder), tmp_path / "scan.nii.gz")
    native = read(path).native
    if ending != "nii.gz":
        plain = read(scan(folder))
        image = Volume(reorient(plain.volume, plain.native).data, native)
        path = save(image, tmp_path / f"other.{ending}")
    kinds = ["nii", "nrrd", "mha"]
    (result,) = segment([path], model, tmp_path / "out", formats=kinds, device="cpu")
    assert "slightly-sheared" in [warning["code"] for warning in result["warnings"]]
    written = [read(tmp_path / "out" / name, LABELS) for name in result["outputs"]]
    assert len(written) == 3
    for labels in written:
        assert labels.native.same_as(native) and labels.volume.grid.same_as(read(path).volume.grid)
        assert torch.equal(labels.volume.data, written[0].volume.data)
        assert bool((labels.volume.data == 1).any())
    if ending == "nii.gz":
        affine = nibabel.load(tmp_path / "out" / "scan_seg.nii.gz").affine
        assert np.array_equal(affine, nibabel.load(path).affine)


@pytest.mark.row(4)
def test_slightly_sheared_scans_are_checked_scored_and_exported(
    folder: Path, model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder / "data", data)
    for kind in ("imagesTr", "labelsTr"):
        for path in sorted((data / kind).iterdir()):
            path.unlink()
            sheared(folder / "data" / kind / path.name, path)
    report = check(data)
    assert not report.errors and "slightly-sheared" in [f.code for f in report.findings]
    segment([scan(tmp_path)], model, tmp_path / "out", device="cpu")
    found = tmp_path / "out" / "ellipse_000_seg.nii.gz"
    truth = data / "labelsTr" / "ellipse_000.nii.gz"
    summary = evaluate(found, truth, tmp_path / "scores")
    assert summary["structures"]["kidney+tumour"]["dice"]["mean"] > 0.7
    out = tmp_path / "Dataset001_Sheared"
    export_nnunet(open_dataset(data), out)
    image = read(out / "imagesTr" / "ellipse_000_0000.nii.gz")
    labels = read(out / "labelsTr" / "ellipse_000.nii.gz", LABELS)
    assert "slightly-sheared" not in [f.code for f in (*image.findings, *labels.findings)]
    assert image.native.same_as(labels.native)
    assert torch.equal(labels.volume.data, read(truth, LABELS).volume.data)


@pytest.mark.parametrize("trust", ["sform", "qform"])
def test_a_scan_that_was_read_with_options_is_written_with_them(
    folder: Path, model: Path, tmp_path: Path, trust: Any
) -> None:
    """Two affines that disagree: the labels lie on the one that was trusted."""
    image = nibabel.load(scan(folder))
    moved = image.affine.copy()
    moved[2, 3] += 20
    image.set_sform(moved, 1)
    image.set_qform(image.affine if trust == "sform" else nibabel.load(scan(folder)).affine, 1)
    image.header["qoffset_x"] += 3
    nibabel.save(image, tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match="--trust"):
        segment([tmp_path / "scan.nii.gz"], model, tmp_path / "out", device="cpu")
    options = ReadOptions(trust=trust)
    segment([tmp_path / "scan.nii.gz"], model, tmp_path / "out", device="cpu", options=options)
    labels = read(tmp_path / "out" / "scan_seg.nii.gz", LABELS)
    assert labels.native.same_as(read(tmp_path / "scan.nii.gz", options).native)


# ---- names and folders -------------------------------------------------------------------------


def test_names_that_are_not_utf8(folder: Path, model: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"M\xfcller")
    path = tmp_path / f"{name}.nii.gz"
    shutil.copy(scan(folder), path)
    bad = tmp_path / f"bad {name}.nii.gz"
    bad.write_bytes(b"hello")
    out = tmp_path / name
    with pytest.raises(BatchError) as caught:
        segment([path, bad], model, out, device="cpu", figures=True)
    str(caught.value).encode("utf-8")
    assert (out / f"{name}_seg.nii.gz").exists()
    record = json.loads((out / "result.json").read_bytes().decode("utf-8"))
    assert Path(record["scans"][0]["path"]) == path


def test_a_folder_that_cannot_be_written_is_found_before_the_work(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "__call__", lambda *_: pytest.fail("the work was done"))
    (tmp_path / "file").write_text("")
    refused = {
        tmp_path / "file": "output-exists",
        tmp_path / "file" / "out": "not-writable",
        Path("/proc/kidseg"): "not-writable",
    }
    for out, code in refused.items():
        with pytest.raises(KidsegError) as caught:
            segment([scan(folder)], model, out, device="cpu")
        assert caught.value.code == code
