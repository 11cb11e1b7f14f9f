"""Which scans a call means, and their names: folders, data sets, DICOM of several patients."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch

from ellipses import write_ellipse_dataset
from kidseg.errors import InputError, KidsegWarning, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, read, save
from kidseg.io.dicom import write_series
from kidseg.segment.sources import Source, find_scans

GRID = Grid.from_spacing((3, 8, 9), (5.0, 1.0, 1.0))
CT = ReadOptions()
ANY = ReadOptions(values="any")


def write(path: Path, value: float = 40.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(Volume(torch.full((1, *GRID.shape), int(value)), GRID), path)


def dicom(
    folder: Path, patient: str, study: str, series: str, edit: Mapping[str, str] | None = None
) -> Path:
    """A CT series of three slices."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    data = torch.full((1, *GRID.shape), 40, dtype=torch.int16)
    facts = {"seed": f"{patient}{study}{series}", "patient_id": patient, "description": series}
    write_series(Volume(data, GRID), folder, facts=facts)
    for file in folder.iterdir():
        ds = pydicom.dcmread(file)
        ds.StudyInstanceUID = f"1.2.{sum(map(ord, patient + study))}"
        ds.SeriesNumber = str(sum(map(ord, series)))
        for name, value in (edit or {}).items():
            setattr(ds, name, value)
        ds.save_as(file)
    return folder


def flat(folder: Path, *others: Path) -> None:
    """Move the slices of several series into one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, other in enumerate(others):
        for file in other.iterdir():
            shutil.move(file, folder / f"{number}{file.name}")
        other.rmdir()


def scans(*inputs: str | Path, channels: int = 1, options: ReadOptions = CT) -> list[Source]:
    return list(find_scans(inputs, channels, options))


def named(sources: list[Source], root: Path) -> dict[str, str]:
    return {source.name: str(source.path.relative_to(root)) for source in sources}


def code_of(*inputs: str | Path, channels: int = 1) -> str:
    with pytest.raises((InputError, UsageError)) as error:
        scans(*inputs, channels=channels)
    assert str(inputs[0]).split("*")[0] in str(error.value)
    return error.value.code


# Files, folders and patterns


def test_a_folder_of_files_without_labels_and_hidden_ones(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nrrd", "c.mha", "sub/d.nii", "a_seg.nii.gz", "b.seg.nrrd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("._a.nii.gz", "notes.txt", "result.json"):
        (tmp_path / name).touch()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "e.nii").touch()
    found = named(scans(tmp_path), tmp_path)
    assert found == {"a": "a.nii.gz", "b": "b.nrrd", "c": "c.mha", "d": "sub/d.nii"}


def test_patterns_are_expanded_and_an_existing_name_is_none(tmp_path: Path) -> None:
    for name in ("a1.nii.gz", "a2.nii.gz", "b.nii.gz", "odd[1].nii.gz", "deep/er/a3.nii.gz"):
        write(tmp_path / name)
    assert [s.name for s in scans(f"{tmp_path}/a?.nii.gz")] == ["a1", "a2"]
    assert [s.name for s in scans(tmp_path / "**" / "a*.nii.gz")] == ["a1", "a2", "a3"]
    assert [s.name for s in scans(tmp_path / "odd[1].nii.gz")] == ["odd[1]"]
    assert code_of(tmp_path / "z*.nii.gz") == "no-scans"
    assert [s.name for s in scans(tmp_path / "dee*")] == ["a3"], "a folder that matches, too"


def test_the_folder_of_the_results_is_no_input(tmp_path: Path) -> None:
    write(tmp_path / "a.nii.gz")
    write(tmp_path / "out" / "b.nii.gz")
    found = find_scans([tmp_path], 1, CT, without=tmp_path / "out")
    assert [source.name for source in found] == ["a"]


def test_nothing_in_a_folder_is_said(tmp_path: Path) -> None:
    assert code_of(tmp_path) == "no-scans"
    (tmp_path / "a_seg.nii.gz").touch()
    assert code_of(tmp_path) == "no-scans"
    assert [s.name for s in scans(tmp_path / "none.nii.gz")] == ["none"], "reading says what it is"


@pytest.mark.parametrize("name", ["x" * 300 + ".nii.gz", "a\0b.nii.gz"])
def test_what_is_no_path_is_its_own_failure(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.nii.gz")
    wrong, right = scans(tmp_path / name, tmp_path / "a.nii.gz")
    if wrong.error is None:
        with pytest.raises((InputError, OSError, ValueError)):
            read(wrong.path)
    assert right.name == "a" and right.error is None


def test_the_same_scan_twice_is_one(tmp_path: Path) -> None:
    file = write(tmp_path / "a.nii.gz")
    assert len(scans(file, tmp_path, f"{tmp_path}/*.gz", tmp_path / ".." / tmp_path.name)) == 1


def test_scans_of_one_name_are_told_apart_by_folders_or_refused(tmp_path: Path) -> None:
    for name in ("p1/scan.nii.gz", "p2/scan.nii.gz", "p2/x/other.nii.gz", "scan.nii.gz"):
        write(tmp_path / name)
    found = named(scans(tmp_path), tmp_path)
    assert found == {
        "p1_scan": "p1/scan.nii.gz",
        "p2_scan": "p2/scan.nii.gz",
        "other": "p2/x/other.nii.gz",
        "scan": "scan.nii.gz",
    }
    assert code_of(tmp_path / "p1" / "scan.nii.gz", tmp_path / "p2" / "scan.nii.gz") == "same-name"


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.nii.gz")
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def closed(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(InputError) as error:
        scans(tmp_path)
    assert error.value.code == "unreadable" and "closed" in str(error.value.path)


@pytest.mark.parametrize("name", ["b.nii.gz", "sub/b.mha", "kid/imaging.nii.gz", "dicom/b.dcm"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_scan_that_is_no_file_is_its_own_failure(tmp_path: Path, name: str, kind: str) -> None:
    """As in an annex whose files were not fetched."""
    write(tmp_path / "a.nii.gz")
    odd = tmp_path / name
    odd.parent.mkdir(exist_ok=True)
    if kind == "link":
        odd.symlink_to(tmp_path / ".git" / "annex" / "objects" / "x")
    else:
        os.mkfifo(odd)
    (tmp_path / "a_seg.nii.gz").symlink_to("nowhere")
    (tmp_path / "README").symlink_to("nowhere")
    found = {source.name: source for source in scans(tmp_path)}
    assert len(found) == 2 and found.pop("a").error is None
    (bad,) = found.values()
    with pytest.raises(InputError, match="not there" if kind == "link" else "no file|not a file"):
        read(bad.path)


def test_a_missing_image_of_a_series_is_not_passed_over(tmp_path: Path) -> None:
    dicom(tmp_path / "P1", "P1", "a", "ct")
    (tmp_path / "P1" / "9999.dcm").symlink_to("nowhere")
    (source,) = scans(tmp_path / "P1")
    with pytest.raises(InputError, match=r"9999\.dcm.*not there"):
        read(source.path)


def test_the_folder_of_a_case_has_one_scan(tmp_path: Path) -> None:
    """As in KiTS: the image beside the labels, and annotations below."""
    case = tmp_path / "some" / "where" / "case_7"
    for name in ("imaging.nii.gz", "segmentation.nii.gz", "raw/kidney-1.nii.gz"):
        (case / name).parent.mkdir(parents=True, exist_ok=True)
        (case / name).touch()
    assert named(scans(case), case) == {"case_7": "imaging.nii.gz"}
    assert [source.name for source in scans(tmp_path)] == ["case_7"]


# nnU-Net's channels


def test_nnunets_folder_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "imagesTs"
    for name in ("x_0000", "x_0001", "y_0000", "y_0001"):
        write(folder / f"{name}.nii.gz")
    two = scans(folder, channels=2)
    assert named(two, folder) == {"x": "x_0000.nii.gz", "y": "y_0000.nii.gz"}
    assert not any(source.error for source in two)
    one = scans(folder)
    assert [source.name for source in one] == ["x", "y"]
    assert all(source.error and source.error.code == "wrong-channels" for source in one)


def test_numbered_scans_elsewhere_are_scans(tmp_path: Path) -> None:
    for k in range(3):
        write(tmp_path / f"kid_{k:04d}.nii.gz")
    assert [source.name for source in scans(tmp_path)] == ["kid_0000", "kid_0001", "kid_0002"]
    assert [source.name for source in scans(tmp_path, channels=3)] == ["kid"]


# Data sets


def test_a_data_set_gives_all_its_images(tmp_path: Path) -> None:
    write_ellipse_dataset(tmp_path, 3)
    shutil.copytree(tmp_path / "imagesTr", tmp_path / "imagesTs")
    for file in (tmp_path / "imagesTs").iterdir():
        file.rename(file.with_name(file.name.replace("ellipse", "test")))
    (tmp_path / "labelsTr" / "ellipse_001.nii.gz").unlink()
    found = scans(tmp_path)
    assert {source.name for source in found} == {
        *(f"ellipse_{k:03d}" for k in range(3)),
        *(f"test_{k:03d}" for k in range(3)),
    }
    assert not any(source.error for source in found), "labels do not matter"
    assert code_of(tmp_path, channels=2) == "wrong-channels"


def test_a_data_set_that_is_not_described_right_is_refused(tmp_path: Path) -> None:
    write_ellipse_dataset(tmp_path, 1)
    (tmp_path / "dataset.json").write_text("{")
    assert code_of(tmp_path) == "bad-json"
    (tmp_path / "dataset.json").unlink()
    assert code_of(tmp_path) == "no-dataset-json", "else labels would be taken for scans"


def test_a_missing_channel_of_a_case_is_its_own_failure(tmp_path: Path) -> None:
    write_ellipse_dataset(tmp_path, 2, channels=("T1", "T2"))
    (tmp_path / "imagesTr" / "ellipse_000_0001.nii.gz").unlink()
    first, second = scans(tmp_path, channels=2)
    failed, whole = sorted((first, second), key=lambda source: source.error is None)
    assert failed.name == "ellipse_000" and failed.error is not None
    assert failed.error.code == "missing-image"
    assert whole.case is not None and len(whole.case.images) == 2


def test_decathlon_channels_lie_in_one_file(tmp_path: Path) -> None:
    from kidseg.intensity import Normalisation, Statistics
    from kidseg.segment.scans import read_scan

    write(tmp_path / "imagesTr" / "a.nii.gz")
    import nibabel

    data = np.stack([np.full((9, 8, 3), k, dtype=np.int16) for k in (3, 5)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "imagesTr" / "a.nii.gz")
    write(tmp_path / "labelsTr" / "a.nii.gz", 1)
    described = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "kidney"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": [],
        "numTraining": 1,
    }
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    (source,) = scans(tmp_path, channels=2)
    zero = Statistics(
        mean=0.0, sd=1.0, median=0.0, min=0.0, max=1.0, percentile_00_5=0.0, percentile_99_5=1.0
    )
    channels = [Normalisation.of_channel(name, zero) for name in ("T1", "T2")]
    scan = read_scan(source.path, channels, CT, source.case)
    assert scan.volume.data[:, 0, 0, 0].tolist() == [3, 5]


# DICOM


def test_a_folder_of_one_study_is_one_scan(tmp_path: Path) -> None:
    dicom(tmp_path / "kid" / "st" / "se", "P1", "a", "portal")
    (source,) = scans(tmp_path / "kid")
    assert (source.path, source.name, source.series) == (tmp_path / "kid", "kid", None)
    (source,) = scans(tmp_path / "kid" / "st" / "se")
    assert source.name == "se"


def test_several_patients_and_studies_in_their_folders(tmp_path: Path) -> None:
    dicom(tmp_path / "P1" / "before" / "CT", "P1", "before", "ct")
    dicom(tmp_path / "P1" / "after" / "CT", "P1", "after", "ct")
    dicom(tmp_path / "P2" / "only" / "CT", "P2", "only", "ct")
    write(tmp_path / "nifti.nii.gz")
    found = scans(tmp_path)
    assert named(found, tmp_path) == {
        "nifti": "nifti.nii.gz",
        "after": "P1/after/CT",
        "before": "P1/before/CT",
        "only": "P2/only/CT",
    }
    for source in found[1:]:
        assert read(source.path, ANY).volume.grid.shape == GRID.shape


@pytest.mark.row(18)
def test_series_of_one_study_must_be_chosen_and_fail_alone(tmp_path: Path) -> None:
    dicom(tmp_path / "P1" / "arterial", "P1", "a", "arterial")
    dicom(tmp_path / "P1" / "venous", "P1", "a", "venous")
    dicom(tmp_path / "P2", "P2", "a", "venous")
    found = scans(tmp_path)
    assert named(found, tmp_path) == {"P1": "P1", "P2": "P2"}
    with pytest.raises(InputError) as error:
        read(found[0].path)
    assert error.value.code == "several-series" and "--series" in error.value.next_step


def test_patients_mixed_in_one_folder_are_read_by_their_series(tmp_path: Path) -> None:
    parts = [dicom(tmp_path / name, name, "a", "ct") for name in ("P1", "P2")]
    parts += [dicom(tmp_path / name, "P3", "a", name) for name in ("arterial", "venous")]
    flat(tmp_path / "all", *parts)
    found = scans(tmp_path / "all")
    names = [source.name for source in found]
    assert len(set(names)) == 3 and all(re.fullmatch("all_[0-9a-f]{8}", name) for name in names)
    for source in found[:2]:
        assert source.series is not None and source.error is None
        scan = read(source.path, replace(ANY, series=source.series))
        assert scan.volume.grid.shape == GRID.shape
    assert found[2].error is not None and found[2].error.code == "several-series"
    assert "--series" in found[2].error.next_step
    number = str(sum(map(ord, "venous")))
    chosen = scans(tmp_path / "all", options=ReadOptions(series=number))
    assert chosen[2].error is None and chosen[2].series is not None
    assert chosen[0].error is not None and chosen[0].error.code == "no-such-series"


def test_studies_of_one_folder_keep_their_names_when_others_are_added(tmp_path: Path) -> None:
    flat(tmp_path / "all", *(dicom(tmp_path / name, name, "a", "ct") for name in ("P2", "P4")))
    before = {source.name: source.files for source in scans(tmp_path / "all")}
    first = dicom(tmp_path / "P1", "P1", "a", "ct")
    for file in first.iterdir():
        shutil.move(file, tmp_path / "all" / f"!{file.name}")
    after = {source.name: source.files for source in scans(tmp_path / "all")}
    assert len(before) == 2 and len(after) == 3 and before.items() <= after.items()
    for file in (tmp_path / "all").iterdir():
        file.rename(file.with_name(f"{len(file.name)}{file.name[::-1]}"))
    assert {source.name for source in scans(tmp_path / "all")} == set(after)
    assert not any("P" in name for name in after), "no patient identifiers"


@pytest.mark.parametrize("uid", ["1.2.3", ""])
def test_studies_without_a_uid_of_their_own_have_names_of_their_own(
    tmp_path: Path, uid: str
) -> None:
    parts = [dicom(tmp_path / name, name, "a", "ct") for name in ("P1", "P2", "P3")]
    for part in parts[:2]:
        for file in part.iterdir():
            ds = pydicom.dcmread(file)
            ds.StudyInstanceUID = uid
            ds.save_as(file)
    flat(tmp_path / "all", *parts)
    found = scans(tmp_path / "all")
    assert len({source.name for source in found}) == 3
    assert [source.name for source in scans(tmp_path / "all")] == [s.name for s in found]


def test_studies_without_a_ct_are_left_out_and_said(tmp_path: Path) -> None:
    dicom(tmp_path / "P1" / "ct", "P1", "a", "ct")
    dicom(tmp_path / "P2" / "ct", "P2", "a", "ct")
    dicom(tmp_path / "P1" / "mr", "P1", "b", "mr", {"Modality": "MR"})
    with pytest.warns(KidsegWarning, match="1 DICOM studies without a CT volume"):
        found = scans(tmp_path)
    assert [source.path.parent.name for source in found] == ["P1", "P2"]
    any_kind = scans(tmp_path, options=ReadOptions(values="any"))
    assert len(any_kind) == 3
    shutil.rmtree(tmp_path / "P2")
    shutil.rmtree(tmp_path / "P1" / "ct")
    (source,) = scans(tmp_path)
    with pytest.raises(InputError, match="not CT"):
        read(source.path)


def test_a_damaged_file_is_the_failure_of_its_own_folder(tmp_path: Path) -> None:
    dicom(tmp_path / "P1", "P1", "a", "ct")
    dicom(tmp_path / "P2", "P2", "a", "ct")
    whole = dicom(tmp_path / "P3", "P3", "a", "ct")
    for file in whole.iterdir():
        file.write_bytes(file.read_bytes()[:300])
    with (tmp_path / "P2" / "0001.dcm").open("r+b") as file:
        file.truncate(300)
    found = {source.name: source for source in scans(tmp_path)}
    assert set(found) == {"P1", "P2", "P3"}
    assert found["P3"].error is not None and found["P1"].error is None
    with pytest.raises(InputError):
        read(found["P2"].path)
