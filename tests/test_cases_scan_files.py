"""Scans of cases and of label files, by name, in a data set or a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from ellipses import write_ellipse_dataset
from folders import touch
from kidseg.cases.scan_files import scans_of_cases, scans_of_labels
from kidseg.errors import InputError


def test_a_data_set_and_its_folder_of_images_hold_the_same_scans(tmp_path: Path) -> None:
    write_ellipse_dataset(tmp_path, 2)
    cases = ["ellipse_000", "ellipse_001", "ellipse_009"]
    found = scans_of_cases(tmp_path, cases)
    assert set(found) == set(cases[:2]) and all(path.is_file() for path in found.values())
    assert scans_of_cases(tmp_path / "imagesTr", cases) == found


def test_numbers_of_scans_belong_to_their_names(tmp_path: Path) -> None:
    first, second = touch(tmp_path, "kid_0000.nii.gz", "kid_0001.nii.gz")
    found = scans_of_cases(tmp_path, ["kid_0000", "kid_0001"])
    assert found == {"kid_0000": first, "kid_0001": second}


def test_two_scans_of_a_name_are_not_guessed(tmp_path: Path) -> None:
    touch(tmp_path, "anna.nii.gz", "anna.nrrd", "ben.mha")
    assert set(scans_of_cases(tmp_path, ["ben"])) == {"ben"}
    with pytest.raises(InputError, match=r"anna.nii.gz and anna.nrrd") as error:
        scans_of_cases(tmp_path, ["anna", "ben"])
    assert error.value.code == "several-scans"


def test_a_folder_without_scans_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "readme.txt", ".hidden.nii.gz")
    with pytest.raises(InputError) as error:
        scans_of_cases(tmp_path, ["anna"])
    assert error.value.code == "no-images" and error.value.path == str(tmp_path)


def test_each_label_file_has_its_scan(tmp_path: Path) -> None:
    files = touch(tmp_path / "labels", "anna_seg.nii.gz", "ben_seg.nii.gz")
    anna, ben, _ = touch(tmp_path / "scans", "anna.nii.gz", "ben.nrrd", "carl.nii.gz")
    assert scans_of_labels(tmp_path / "scans", files) == dict(zip(files, [anna, ben], strict=True))
    ben.unlink()
    with pytest.raises(InputError) as error:
        scans_of_labels(tmp_path / "scans", files)
    assert error.value.code == "no-scan" and "ben_seg" in error.value.cause


def test_a_folder_is_the_scan_of_the_case_of_its_name_unless_a_file_is(tmp_path: Path) -> None:
    (anna_file,) = touch(tmp_path, "anna.nii.gz")
    touch(tmp_path / "anna", "1.dcm")
    touch(tmp_path / "ben", "1.dcm")
    touch(tmp_path / ".ben", "1.dcm")
    found = scans_of_cases(tmp_path, ["anna", "ben", "carl"])
    assert found == {"anna": anna_file, "ben": tmp_path / "ben"}
