"""Labels in other formats: named rightly, on the series they belong to, all files or none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from highdicom.sr import ComprehensiveSR
from pydicom.sr.codedict import codes

from commands import call_cli
from dicom_files import series
from ellipses import make_ellipse_patient
from kidseg.cases.label_names import named_labels, parse_names
from kidseg.convert import measured_labels, plan_conversion
from kidseg.errors import InputError, KidsegError, ResourceError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, read, save
from kidseg.io.atomic import disk_full
from kidseg.io.content import sha256_of
from kidseg.io.dicom_report import CODED
from kidseg.io.dicom_source import read_source
from kidseg.io.label_formats import FORMATS
from kidseg.io.slicer_seg import write_slicer_segmentation
from kidseg.labels import LabelSchema
from kidseg.measure import label_reading, measuring
from kidseg.measure.measuring import Request, measure
from kidseg.measure.person import Patient
from labelled_series import ANY, ORIENTATIONS, REPAIR, SCHEMA, make_labels, make_series
from pages import HERE, assert_loads_nothing, opened, with_viewer
from test_io_dicomseg import by_pydicom, truth

NAMES = {1: "left kidney", 2: "tumour", 5: "Milz"}
LABELS = ReadOptions(values="labels")


@pytest.fixture
def case(tmp_path: Path) -> Path:
    """A folder with a DICOM series, ct/, and labels on it, child_seg.nii.gz."""
    folder, options = make_series(tmp_path / "ct", "oblique")
    save(make_labels(read_source(folder, options)), tmp_path / "child_seg.nii.gz")
    return tmp_path


def convert(*arguments: Any, **options: Any) -> dict[str, Any]:
    return plan_conversion(*arguments, **options).write()


def refused(code: str, *arguments: Any, **options: Any) -> KidsegError:
    with pytest.raises(KidsegError) as caught:
        convert(*arguments, **options)
    assert caught.value.code == code, caught.value
    return caught.value


def test_no_input_is_replaced_by_what_is_made_from_it(case: Path) -> None:
    """Not by its own name, nor by a link to its folder; nothing is written."""
    folder, link = case / "made", case / "link"
    folder.mkdir()
    link.symlink_to(folder)
    labels = (case / "child_seg.nii.gz").rename(folder / "child_seg.nii.gz")
    before = labels.read_bytes()
    for out in (folder, link):
        refused("output-is-input", labels, out, formats=["nii", "obj"], names=NAMES, overwrite=True)
    assert labels.read_bytes() == before and not list(folder.glob("*.obj"))
    convert(labels, folder, formats=["nrrd"], names=NAMES)


def values_of(path: Path) -> np.ndarray:
    found: np.ndarray = read(path, LABELS).volume.data[0].numpy()
    return found


def test_all_formats_at_once_are_listed(case: Path) -> None:
    labels, out = case / "child_seg.nii.gz", case / "out"
    options: dict[str, Any] = {"ct": case / "ct", "options": ANY, "names": NAMES}
    formats = tuple(name for name in HERE if not FORMATS[name].needs_entropy)
    planned = plan_conversion(labels, out, formats=formats, **options)
    assert not out.exists(), "a plan writes nothing"
    made = planned.write()
    there = sorted(file.name for file in out.iterdir())
    assert there == sorted([*made["outputs"], "child_convert.json"])
    assert there == sorted(file.name for file in planned.outputs)
    record = json.loads((out / "child_convert.json").read_text())
    assert record == made and record["labels"] == {"1": "left kidney", "2": "tumour", "5": "Milz"}
    for ending in ("_seg.nii.gz", "_seg.nrrd", "_seg.mha", ".seg.nrrd"):
        assert np.array_equal(values_of(out / f"child{ending}"), values_of(labels)), ending
    assert {"child_seg_left-kidney.stl", "child_seg_Milz.stl"} <= set(there)
    for surface in made["surfaces"].values():
        assert surface["voxels_ml"] > 0 and abs(surface["change"]) < 0.01
    # The series shows no patient, and its left kidney lies on both sides, in pieces.
    of_measures = {"labels-in-air", "label-not-understood", "kidneys-on-one-side"}
    codes = {warning["code"] for warning in made["warnings"]}
    assert codes == {"kidney-cut", "label-without-code", *of_measures}
    segmentation = pydicom.dcmread(out / "child_seg.dcm")
    assert made["sha256"] in segmentation.ImageComments
    assert segmentation.SegmentSequence[0].SegmentAlgorithmType == "SEMIAUTOMATIC"


def test_labels_have_no_entropy(case: Path) -> None:
    with pytest.raises(UsageError, match="entropy shows probabilities") as error:
        convert(case / "child_seg.nii.gz", case / "none", formats=("nii", "entropy"))
    assert error.value.code == "no-probabilities" and not (case / "none").exists()


def test_labels_that_do_not_lie_on_the_series(case: Path) -> None:
    labels = read(case / "child_seg.nii.gz", LABELS)
    moved = labels.native.mm_from_index.clone()
    moved[:3, 3] += 0.3
    data = torch.zeros((1, *labels.native.shape), dtype=torch.uint8)
    save(Volume(data, Grid(labels.native.shape, moved)), case / "moved.nii.gz")
    short = labels.native.slices(0, 4)
    save(Volume(data[:, :4], short), case / "short.nii.gz")
    for name, said in (("moved", "0.5196 mm apart"), ("short", "its grid is")):
        error = refused(
            "grid-mismatch",
            case / f"{name}.nii.gz",
            case / "out",
            formats=["dicomseg"],
            ct=case / "ct",
            options=ANY,
            names=NAMES,
        )
        assert said in error.cause and error.path == str(case / f"{name}.nii.gz")
    assert not (case / "out").exists()


def test_a_cropped_segmentation_of_slicer_is_placed(case: Path) -> None:
    source = read_source(case / "ct", ANY)
    whole = make_labels(source)
    small = Volume(
        whole.data[:, 1:, 2:-2, 3:-3].contiguous(), source.native.crop((1, 2, 3), (5, 28, 34))
    )
    with (case / "small.seg.nrrd").open("wb") as file:
        write_slicer_segmentation(small, LabelSchema.from_names(NAMES), file, "")
    made = convert(
        case / "small.seg.nrrd",
        case / "out",
        formats=["nrrd", "labelmap"],
        ct=case / "ct",
        options=ANY,
    )
    assert made["named_by"] == "segments" and set(made["labels"].values()) == set(NAMES.values())
    assert np.array_equal(
        values_of(case / "out/small_seg.nrrd"), values_of(case / "child_seg.nii.gz")
    )


def test_several_series_in_the_folder(case: Path) -> None:
    series(case / "ct" / "more", uid="1.2.8")
    arguments: dict[str, Any] = {"formats": ["dicomseg"], "ct": case / "ct", "names": NAMES}
    labels, out = case / "child_seg.nii.gz", case / "out"
    error = refused("several-series", labels, out, options=ANY, **arguments)
    assert "--series 3" in error.next_step
    convert(labels, out, options=ReadOptions(values="any", series="3"), **arguments)
    wrong = ReadOptions(values="any", series="8")
    refused("grid-mismatch", labels, case / "other", options=wrong, **arguments)


def test_slices_that_are_not_parallel_are_refused(case: Path) -> None:
    for k, file in enumerate(sorted((case / "ct").glob("*.dcm"))[:2]):
        header = pydicom.dcmread(file)
        header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0] if k else [0, 1, 0, 0, 0, -1]
        header.save_as(file)
    error = refused(
        "mixed-orientation",
        case / "child_seg.nii.gz",
        case / "out",
        formats=["rtstruct"],
        ct=case / "ct",
        options=ANY,
        names=NAMES,
    )
    assert error.exit_code == 3 and str(case / "ct") == error.path


def test_a_repaired_series_needs_the_same_repair(tmp_path: Path) -> None:
    folder, _ = make_series(tmp_path / "ct", "tilted")
    save(make_labels(read_source(folder, REPAIR)), tmp_path / "a.nii.gz")
    arguments: dict[str, Any] = {"formats": ["dicomseg"], "ct": folder, "names": NAMES}
    refused("gantry-tilt", tmp_path / "a.nii.gz", tmp_path / "out", options=ANY, **arguments)
    convert(tmp_path / "a.nii.gz", tmp_path / "out", options=REPAIR, **arguments)


def test_files_that_are_not_there(case: Path) -> None:
    options: dict[str, Any] = {"names": NAMES}
    labels, out = case / "child_seg.nii.gz", case / "out"
    refused("not-found", case / "none.nii.gz", out, formats=["stl"], **options)
    options |= {"formats": ["rtstruct"], "ct": case / "none"}
    assert refused("not-found", labels, out, **options).path == str(case / "none")
    with pytest.raises(KidsegError, match="none"):
        plan_conversion(labels, out, **options)  # before anything is read
    assert not out.exists()


@pytest.mark.parametrize(
    ("formats", "given", "code"),
    [
        (["pdf"], {}, "unknown-format"),
        ([], {}, "no-formats"),
        (["dicomseg"], {}, "series-required"),
        (["sr"], {"ct": "ct"}, "missing-format"),
        (["stl"], {"ct": "ct"}, "scan-unused"),
    ],
)
def test_wrong_calls(case: Path, formats: list[str], given: dict[str, Any], code: str) -> None:
    error = refused(code, case / "child_seg.nii.gz", case / "out", formats=formats, **given)
    assert isinstance(error, UsageError) and (error.next_step or code == "no-formats")


def test_labels_that_are_not_there_are_named_before_the_scan(case: Path) -> None:
    """Whether a scan is of use depends on what the labels are."""
    missing = case / "hospital_rtstruct.dcm"
    error = refused("not-found", missing, case / "out", formats=["stl"], ct=case)
    assert error.path == str(missing)


def test_a_missing_extra_is_named_with_its_command(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kidseg.extras.find_spec", lambda name: None)
    error = refused(
        "missing-extra", case / "child_seg.nii.gz", case / "out", formats=["nii", "glb"]
    )
    assert "pip install 'kidseg[mesh]'" in error.next_step and "trimesh" in error.cause


def test_existing_files_stay_unless_they_may_be_replaced(case: Path) -> None:
    labels, out = case / "child_seg.nii.gz", case / "out"
    out.mkdir()
    (out / "child_seg.obj").write_text("mine")
    error = refused("output-exists", labels, out, formats=["nrrd", "obj"], names=NAMES)
    assert error.path == str(out / "child_seg.obj")
    assert [file.name for file in out.iterdir()] == ["child_seg.obj"]
    convert(labels, out, formats=["nrrd", "obj"], names=NAMES, overwrite=True)
    assert "mine" not in (out / "child_seg.obj").read_text()


@pytest.mark.parametrize("failing", ["write_obj", "place"])
def test_a_full_disk_leaves_nothing(
    case: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_: Any) -> None:
        raise disk_full(case / "out" / "child_seg.obj")

    if failing == "write_obj":
        monkeypatch.setattr("kidseg.io.mesh_files.write_obj", full)
    else:
        moved = Path.replace
        monkeypatch.setattr(
            Path, "replace", lambda s, to: full() if s.suffix == ".obj" else moved(s, to)
        )
    with pytest.raises(ResourceError):
        convert(case / "child_seg.nii.gz", case / "out", formats=["nrrd", "obj"], names=NAMES)
    assert list((case / "out").iterdir()) == []


def test_a_surface_of_another_volume_is_said(tmp_path: Path) -> None:
    """Of a spacing that is wrong: voxels ten thousand times as long as they are wide."""
    labels = torch.ones((1, 3, 2, 4), dtype=torch.uint8)
    save(Volume(labels, Grid.from_spacing((3, 2, 4), (100.0, 0.01, 3.0))), tmp_path / "a.nii.gz")
    made = convert(tmp_path / "a.nii.gz", tmp_path / "out", formats=["stl"], names={1: "kidney"})
    assert 0.01 < abs(made["surfaces"]["kidney"]["change"]) < 0.05
    (warning,) = (one for one in made["warnings"] if one["code"] == "surface-volume")
    assert "kidney by -" in warning["cause"] and "voxels" in warning["next_step"]


def test_an_empty_label_has_no_surface(case: Path) -> None:
    names = {**NAMES, 7: "cyst"}
    made = convert(case / "child_seg.nii.gz", case / "out", formats=["stl"], names=names)
    assert "cyst" not in "".join(made["outputs"])
    (warning,) = made["warnings"]
    assert warning["code"] == "no-surface" and "cyst" in warning["cause"]


def test_labels_without_voxels_have_no_report_and_that_is_said(
    case: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = read(case / "child_seg.nii.gz", LABELS).volume
    save(Volume(labels.data * 0, labels.grid), case / "none.nii.gz")
    words = ("convert", case / "none.nii.gz", "-o", case / "out", "--label", "1=kidney")
    given = ("--ct", case / "ct", "--formats", "dicomseg,sr", "--json")
    assert call_cli(*words, *given) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["outputs"] == ["none_seg.dcm"]
    (warning,) = (one for one in made["warnings"] if one["code"] == "empty-report")
    assert warning["path"].endswith("none_report.dcm")
    assert call_cli(*words, "--formats", "stl", "--overwrite") == 0
    assert "Wrote nothing but its record into" in capsys.readouterr().out


def test_assumed_names_are_those_of_labels_that_occur(case: Path) -> None:
    """Nobody said that there is a cyst, so no object says that there is none."""
    labels = read(case / "child_seg.nii.gz", LABELS)
    for values, names in (((1, 2), "kidney tumour"), ((), "kidney tumour cyst")):
        data = torch.where(
            torch.isin(labels.volume.data, torch.tensor(values)), labels.volume.data, 0
        )
        save(Volume(data.to(torch.uint8), labels.volume.grid), case / "x.nii.gz", overwrite=True)
        planned = plan_conversion(
            *(case / "x.nii.gz", case / "out"),
            formats=["dicomseg", "stl"],
            ct=case / "ct",
            options=ANY,
            overwrite=True,
        )
        made = planned.write()
        assert " ".join(made["labels"].values()) == names
        segments = pydicom.dcmread(case / "out" / "x_seg.dcm").SegmentSequence
        assert " ".join(segment.SegmentLabel for segment in segments) == names
        assert ("no-surface" in {one["code"] for one in made["warnings"]}) == (not values)


@pytest.mark.parametrize("ending", ["seg", "rtstruct"])
def test_dicom_objects_are_converted_on_the_series_they_refer_to(case: Path, ending: str) -> None:
    names = {1: "left kidney", 2: "tumour", 5: "cyst"}
    formats = ["dicomseg", "rtstruct"]
    ct = {"ct": case, "options": ANY}
    convert(case / "child_seg.nii.gz", case, formats=formats, names=names, **ct)
    labels = case / f"child_{ending}.dcm"
    error = refused("series-required", labels, case / "out", formats=["nii"])
    assert "--ct" in error.next_step
    made = convert(labels, case / "out", formats=["nii", "stl", "dicomseg"], **ct)
    name = "child" if ending == "seg" else "child_rtstruct"
    assert made["outputs"][0] == f"{name}_seg.nii.gz" and made["named_by"] == "structures"
    assert made["labels"] == {"1": "kidney", "2": "tumour", "3": "cyst"}
    given = values_of(case / "child_seg.nii.gz")
    assert np.array_equal(
        values_of(case / "out" / made["outputs"][0]), np.where(given == 5, 3, given)
    )
    (case / "rules.toml").write_text('ignore = ["cyst"]\n[labels]\nmass = ["tumour"]\n')
    call = [
        "convert",
        labels,
        "-o",
        case / "ruled",
        "--ct",
        case,
        "--roi-rules",
        case / "rules.toml",
    ]
    assert call_cli(*map(str, call), "--formats=nii") == 0
    assert np.array_equal(values_of(case / "ruled" / made["outputs"][0]), given == 2)


def test_the_report_has_what_measure_says(case: Path) -> None:
    named = {1: "kidney", 2: "tumour", 5: "Milz"}
    labels, out = case / "child_seg.nii.gz", case / "out"
    convert(labels, out, formats=["dicomseg", "sr"], ct=case / "ct", options=ANY, names=named)
    report = ComprehensiveSR.from_dataset(pydicom.dcmread(out / "child_report.dcm"))
    groups = report.content.get_volumetric_roi_measurement_groups()
    request = Request(ct=case / "ct", names=named, options=ANY)
    found = measure(labels, request).measurement.structures
    told = {
        (group.tracking_identifier.split(" (")[0], str(each.name.meaning)): float(each.value)
        for group in groups
        for each in group.get_measurements()
    }
    for structure in found:
        name = structure.label if (structure.label, "Long axis") in told else structure.id
        for quantity in structure.quantities:
            if quantity.name in CODED and quantity.name != "volume":
                coded = CODED[quantity.name]
                meaning = getattr(getattr(codes, coded.scheme), coded.keyword).meaning
                assert told[name, meaning] == pytest.approx(quantity.value, abs=1e-4)
    assert ("Milz", "Volume") in told
    segments = pydicom.dcmread(out / "child_seg.dcm").SegmentSequence
    ids = {group.tracking_identifier: group.tracking_uid for group in groups}
    assert {s.TrackingID: s.TrackingUID for s in segments}.items() <= ids.items()


# ---- names --------------------------------------------------------------------------------------


def test_names_are_those_of_the_user_the_file_the_record_or_the_data_set(case: Path) -> None:
    labels = case / "child_seg.nii.gz"
    assert named_labels(labels).said_by == "assumed"
    assert [f.code for f in named_labels(labels).findings] == ["assumed-names"]
    (case / "dataset.json").write_text(
        json.dumps(
            {
                "labels": {"background": 0, "spleen": 5},
                "channel_names": {"0": "CT"},
                "numTraining": 0,
                "file_ending": ".nii.gz",
            }
        )
    )
    assert named_labels(labels).schema.names == {5: "spleen"}
    entry = {
        "outputs": ["child_seg.nii.gz"],
        "labels": {"1": "kidney", "5": "x"},
        "model": {"method": "plain", "sha256": "ab"},
    }
    (case / "result.json").write_text(json.dumps({"scans": [{"outputs": []}, entry]}))
    found = named_labels(labels)
    assert (found.said_by, found.schema.names) == ("result", {1: "kidney", 5: "x"})
    assert named_labels(labels, NAMES).schema.names == NAMES
    made = convert(labels, case / "out", formats=["seg.nrrd"], names=NAMES)
    header = (case / "out" / "child.seg.nrrd").read_bytes().split(b"\n\n")[0].decode()
    assert made["named_by"] == "names" and "method plain; model SHA-256 ab" in header


def test_voxels_that_a_data_set_ignores_are_background(case: Path) -> None:
    labels = {"background": 0, "kidney": 1, "tumour": 2, "ignore": 5}
    about = {"labels": labels, "channel_names": {"0": "CT"}, "numTraining": 0}
    (case / "dataset.json").write_text(json.dumps({**about, "file_ending": ".nii.gz"}))
    made = convert(case / "child_seg.nii.gz", case / "out", formats=["nrrd"])
    assert "ignored-voxels" in {warning["code"] for warning in made["warnings"]}
    before, after = values_of(case / "child_seg.nii.gz"), values_of(case / "out/child_seg.nrrd")
    assert np.array_equal(after, np.where(before == 5, 0, before)) and (before == 5).any()


def test_values_that_have_no_name_are_refused(case: Path) -> None:
    error = refused("unexpected-labels", case / "child_seg.nii.gz", case / "out", formats=["nii"])
    assert "5 (" in error.cause and "--label NUMBER=NAME" in error.next_step


@pytest.mark.parametrize("damaged", ['{"1": 2}', '{"300": "a"}', '["a"]', '{"1": "a", "2": "a"}'])
def test_damaged_names_in_a_record(case: Path, damaged: str) -> None:
    text = f'{{"scans": [{{"outputs": ["child_seg.nii.gz"], "labels": {damaged}}}]}}'
    (case / "result.json").write_text(text)
    with pytest.raises(InputError) as caught:
        named_labels(case / "child_seg.nii.gz")
    assert caught.value.code == "bad-json" and caught.value.next_step


@pytest.mark.parametrize("text", ["1", "0=a", "256=a", "x=a", "1=", "1.5=a", "-1=a"])
def test_bad_names(text: str) -> None:
    for pairs in ([text], ["1=a", "1=b"], ["1=a", "2=a"]):
        with pytest.raises(UsageError) as caught:
            parse_names(pairs)
        assert caught.value.code == "bad-label"
    assert parse_names(["1= left kidney ", "255=a=b"]) == {1: "left kidney", 255: "a=b"}


def test_the_command(case: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["convert", str(case / "child_seg.nii.gz"), "-o", str(case / "out"), "--label=1=kidney"]
    call += ["--label=2=tumour", "--label=5=Milz", "--formats=seg.nrrd, stl,"]
    assert call_cli(*call, "--dry-run") == 0 and "child_seg_kidney.stl" in capsys.readouterr().out
    code = call_cli(*call, "--json")
    made = json.loads(capsys.readouterr().out)
    assert code == 0 and "child.seg.nrrd" in made["outputs"]
    shutil.rmtree(case / "out")
    call_cli(*call)
    text = capsys.readouterr().out
    assert "Surface of kidney" in text and "Research use only" in text
    assert call_cli(*call) == 2 and "already exists" in capsys.readouterr().err


@with_viewer
def test_a_report_needs_the_scan_and_shows_the_labels_on_it(tmp_path: Path) -> None:
    patient = make_ellipse_patient(0)
    labels, ct, out = tmp_path / "child_seg.nii.gz", tmp_path / "ct.nii.gz", tmp_path / "out"
    save(patient.labels, labels)
    save(patient.image, ct)
    names = {1: "kidney", 2: "tumour"}
    refused("scan-required", labels, out, formats=["html"], names=names)
    refused("scan-unused", labels, out, formats=["nrrd"], ct=ct, names=names)
    made = convert(labels, out, formats=["html"], ct=ct, names=names)
    assert made["outputs"] == ["child_report.html"] and made["report"]["bytes"] > 2e6
    page = opened(out / "child_report.html")
    assert_loads_nothing(page)
    assert sha256_of(ct) in page.words and sha256_of(labels) in page.words
    assert str(tmp_path) not in page.text
    save(Volume(patient.labels.data * 0, patient.labels.grid), tmp_path / "none_seg.nii.gz")
    none = convert(tmp_path / "none_seg.nii.gz", out, formats=["html"], ct=ct, names=names)
    said = [each["cause"] for each in none["warnings"]]
    assert any("no voxel is labelled" in cause for cause in said), "what the page says is said"
    elsewhere = Volume(patient.image.data.roll(24, dims=2), patient.image.grid)
    save(elsewhere, tmp_path / "elsewhere.nii.gz")
    of_other = convert(
        labels, tmp_path / "c", formats=["html"], ct=tmp_path / "elsewhere.nii.gz", names=names
    )
    assert "labels-in-air" in {each["code"] for each in of_other["warnings"]}
    other = make_ellipse_patient(1)
    moved = Volume(other.image.data, other.image.grid.crop((0, 0.5, 0), other.image.grid.shape))
    save(moved, tmp_path / "moved.nii.gz")
    refused(
        "label-grid-mismatch", labels, tmp_path / "b", formats=["html"],
        ct=tmp_path / "moved.nii.gz", names=names,
    )  # fmt: skip
    assert not list((tmp_path / "b").iterdir())


@with_viewer
def test_the_scan_of_a_report_is_read_once_and_facts_are_entered(
    case: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SR and page: one reading of the series, one search for the parts, one midline."""
    counted: dict[str, int] = {}

    def counting(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*given: Any, **named: Any) -> Any:
            if name != "read" or Path(given[0]) == case / "ct":
                counted[name] = counted.get(name, 0) + 1
            return function(*given, **named)

        monkeypatch.setattr(module, name, call)

    counting(measured_labels, "read")
    counting(label_reading, "read")
    counting(label_reading, "body_mask")
    counting(measuring, "find_parts")
    known = Request(person=Patient(height_cm=92, weight_kg=13.5), entered=("thrombus=no",))
    options: dict[str, Any] = {"ct": case / "ct", "options": ANY, "names": NAMES}
    formats = ["dicomseg", "sr", "html"]
    convert(case / "child_seg.nii.gz", case / "out", formats=formats, known=known, **options)
    assert counted == {"read": 1, "body_mask": 1, "find_parts": 1}
    words = opened(case / "out" / "child_report.html").words
    assert "ml/m²" in words and "thrombus" in words
    labels = case / "child_seg.nii.gz"
    refused("facts-unused", labels, case / "b", formats=["seg.nrrd"], known=known)
    wrong = Request(entered=("thrombus=perhaps",))
    refused("bad-entered", labels, case / "b", formats=formats, known=wrong, **options)


def test_several_files_are_converted_each_for_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient = make_ellipse_patient(0)
    for name in ("anna", "ben"):
        save(patient.labels, tmp_path / f"{name}_seg.nii.gz")

    def call(*words: Any) -> int:
        return call_cli("convert", *words, "--label", "1=kidney", "--label", "2=tumour")

    out = tmp_path / "out"
    assert call(tmp_path, "-o", out, "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)["would_convert"]
    assert [one["name"] for one in planned] == ["anna", "ben"] and not out.exists()
    assert call(tmp_path, "-o", out) == 0
    assert {file.name for file in out.glob("*.seg.nrrd")} == {"anna.seg.nrrd", "ben.seg.nrrd"}
    assert capsys.readouterr().out.split()[:3] == ["case", "files", "warnings"]
    assert call(tmp_path, "-o", out) == 2, "output exists"
    save(patient.labels, tmp_path / "anna_seg.nrrd")  # a copy in another format
    (tmp_path / "ben_seg.nii.gz").write_bytes(b"no volume")
    assert call(tmp_path, "-o", out, "--overwrite", "--json") == 4
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert [one["name"] for one in found["converted"]] == ["anna"] and len(found["failed"]) == 1
    assert "1 of 2 label files failed" in told.err
    assert call(tmp_path, "-o", tmp_path / "b", "--series", "3") == 2


@pytest.mark.parametrize("packed", [False, True], ids=["folders", "zips"])
def test_several_files_become_dicom_objects_each_of_its_own_series(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], packed: bool
) -> None:
    """The series are folders, or zips, named as the labels, in one folder."""
    (tmp_path / "labels").mkdir()
    expected = {}
    for k, (name, kind) in enumerate({"anna": "oblique", "ben": "coronal"}.items()):
        folder = tmp_path / "scans" / name
        iop = ORIENTATIONS[kind]
        source = read_source(series(folder, iop=iop, uid=f"1.2.{k + 5}"), ANY)
        labels = make_labels(source, seed=k)
        save(labels, tmp_path / "labels" / f"{name}_seg.nii.gz")
        expected[name] = truth(source, labels)
        if packed:
            shutil.make_archive(str(folder), "zip", folder)
            shutil.rmtree(folder)
    out = tmp_path / "out"
    called: list[Any] = ["convert", tmp_path / "labels", "-o", out, "--ct", tmp_path / "scans"]
    called += ["--formats", "dicomseg,rtstruct,sr", "--json"]
    for number, name in SCHEMA.names.items():
        called += ["--label", f"{number}={name}"] if number else []
    assert call_cli(*called) == 0
    made = json.loads(capsys.readouterr().out)["converted"]
    assert [one["name"] for one in made] == list(expected)
    for k, name in enumerate(expected):
        objects = {ds.Modality: ds for ds in map(pydicom.dcmread, out.glob(f"{name}*.dcm"))}
        assert set(objects) == {"SEG", "RTSTRUCT", "SR"}
        assert objects["SEG"].ReferencedSeriesSequence[0].SeriesInstanceUID == f"1.2.{k + 5}"
        assert by_pydicom(objects["SEG"]) == expected[name]
    shutil.rmtree(out)
    other = tmp_path / "scans" / ("ben.zip" if packed else "ben")
    other.rename(other.with_stem("carl"))
    assert call_cli(*called) == 3 and not out.exists()
    assert "contains no scan of ben_seg.nii.gz" in capsys.readouterr().err
