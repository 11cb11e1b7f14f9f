"""A result counts as done only for the same content, model and options of reading."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pydicom
import pytest

from ellipses import make_ellipse_patient
from kidseg.errors import BatchError, InputError, UsageError
from kidseg.io import ReadOptions, save
from kidseg.io.dicom import write_series
from kidseg.segment import Predictor, load_predictor, segment
from kidseg.segment.identity import reading_of
from kidseg.segment.index import RESULT


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return load_predictor(trained / "run" / "model.safetensors", "cpu")


def scan(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(make_ellipse_patient(number).image, path)


def series(folder: Path, number: int, patient: str = "P1", description: str = "ct") -> None:
    """Write a series into a folder that may have others."""
    facts = {"seed": f"{patient}{description}", "patient_id": patient, "description": description}
    own = folder.with_name(f"{patient}{description}")
    folder.mkdir(parents=True, exist_ok=True)
    write_series(make_ellipse_patient(number).image, own, facts=facts)
    for file in own.iterdir():
        ds = pydicom.dcmread(file)
        ds.StudyInstanceUID = f"1.2.{sum(map(ord, patient))}"
        ds.save_as(file)
        shutil.move(file, folder / f"{own.name}{file.name}")
    own.rmdir()


def refused(predictor: Predictor, path: Path, out: Path, **options: Any) -> UsageError:
    """The refusal to go on, which changes nothing."""
    before = (out / RESULT).read_bytes()
    with pytest.raises(UsageError) as error:
        segment([path], predictor, out, resume=True, options=ReadOptions(**options))
    assert error.value.code == "output-exists" and error.value.exit_code == 2
    assert "--overwrite" in error.value.next_step and "--resume" not in error.value.next_step
    assert (out / RESULT).read_bytes() == before
    return error.value


def test_the_same_content_elsewhere_is_the_same_scan(predictor: Predictor, tmp_path: Path) -> None:
    first = scan(tmp_path / "a" / "s.nii.gz")
    (entry,) = segment([first], predictor, tmp_path / "out")
    assert entry["reading"] == reading_of(ReadOptions())
    (tmp_path / "b").mkdir()
    moved = shutil.move(first, tmp_path / "b" / "s.nii.gz")
    assert segment([moved], predictor, tmp_path / "out", resume=True) == [
        json.loads(json.dumps(entry))
    ]


def test_another_scan_of_the_name_is_refused_or_replaced(
    predictor: Predictor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (old,) = segment([scan(tmp_path / "a" / "s.nii.gz", 0)], predictor, out)
    other = scan(tmp_path / "b" / "s.nii.gz", 1)
    assert "another scan of this name" in refused(predictor, other, out).cause
    (new,) = segment([other], predictor, out, resume=True, overwrite=True)
    assert new["sha256"] != old["sha256"] and new["path"] == str(other)


@pytest.mark.parametrize("header", ["s.mhd", "s.nrrd"])
def test_voxels_in_a_file_of_their_own_count(
    predictor: Predictor, tmp_path: Path, header: str
) -> None:
    import SimpleITK as sitk

    out = tmp_path / "out"
    image = sitk.ReadImage(str(scan(tmp_path / "x.nii.gz")))
    (tmp_path / "a").mkdir()
    written = tmp_path / "a" / ("s.nhdr" if header == "s.nrrd" else header)
    sitk.WriteImage(image, str(written))
    written = written.rename(written.with_name(header))
    segment([written], predictor, out)
    assert len(segment([written], predictor, out, resume=True)) == 1
    sitk.WriteImage(image + 1, str(written.with_suffix(".nhdr" if "nrrd" in header else ".mhd")))
    assert "another scan" in refused(predictor, written, out).cause


@pytest.mark.parametrize(
    "options", [{"spacing_mm": (9.0, 4.0, 4.0)}, {"trust": "sform"}, {"repair": True}], ids=str
)
def test_other_options_of_reading_are_refused(
    predictor: Predictor, tmp_path: Path, options: dict[str, Any]
) -> None:
    path, out = scan(tmp_path / "s.nii.gz"), tmp_path / "out"
    segment([path], predictor, out)
    assert "other options of reading" in refused(predictor, path, out, **options).cause
    changed = ReadOptions(**options)
    segment([path], predictor, out, options=changed, overwrite=True)
    assert len(segment([path], predictor, out, options=changed, resume=True)) == 1
    refused(predictor, path, out)


def test_another_series_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    study, out = tmp_path / "study", tmp_path / "out"
    for number, name in enumerate(("arterial", "venous")):
        series(study, number, description=name)
    with pytest.raises(InputError) as error:
        segment([study], predictor, out)
    assert error.value.code == "several-series"
    first, second = sorted({pydicom.dcmread(f).SeriesInstanceUID for f in study.iterdir()})
    segment([study], predictor, out, options=ReadOptions(series=first))
    with pytest.raises(UsageError) as again:
        segment([study], predictor, out, options=ReadOptions(series=second))
    assert "--resume" not in again.value.next_step, "it could not go on"
    with pytest.raises(UsageError) as same:
        segment([study], predictor, out, options=ReadOptions(series=first))
    assert "--resume" in same.value.next_step
    refused(predictor, study, out, series=second)
    refused(predictor, study, out)
    assert segment([study], predictor, out, options=ReadOptions(series=first), resume=True)


def test_a_patient_more_in_the_folder_leaves_the_others_done(
    predictor: Predictor, tmp_path: Path
) -> None:
    folder, out = tmp_path / "all", tmp_path / "out"
    series(folder, 0, "P2")
    series(folder, 1, "P3")
    done = {entry["name"]: entry["date"] for entry in segment([folder], predictor, out)}
    series(folder, 2, "P1")
    after = segment([folder], predictor, out, resume=True)
    dates = {entry["name"]: entry["date"] for entry in after}
    assert len(done) == 2 and len(dates) == 3 and done.items() <= dates.items()


@pytest.mark.parametrize("kind", ["gone", "pipe"])
def test_a_scan_that_cannot_be_compared_fails_alone(
    predictor: Predictor, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    paths = [scan(tmp_path / f"s{k}.nii.gz", k) for k in range(2)]
    segment(paths, predictor, out)
    before = json.loads((out / RESULT).read_text())["scans"]
    paths[0].unlink()
    if kind == "pipe":
        os.mkfifo(paths[0])
    with pytest.raises(BatchError, match="1 of 2"):
        segment(paths, predictor, out, resume=True)
    record = json.loads((out / RESULT).read_text())
    assert record["scans"] == before, "the earlier result stays"
    assert [entry["name"] for entry in record["failed"]] == ["s0"]


def test_entries_that_do_not_say_what_was_read_are_not_taken_for_done(
    predictor: Predictor, tmp_path: Path
) -> None:
    path, out = scan(tmp_path / "s.nii.gz"), tmp_path / "out"
    segment([path], predictor, out)
    record = json.loads((out / RESULT).read_text())
    for change in ({"reading": None}, {"sha256": None}, {"model": None}, {"model": ["x"]}):
        entry = {**record["scans"][0], **change}
        (out / RESULT).write_text(json.dumps({**record, "scans": [entry]}))
        refused(predictor, path, out)
