"""Scans of two patients, flipped ones, and facts of another patient are noticed when measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from dicom_files import body, series
from kidseg.geometry import Grid, Volume
from kidseg.io import read, save
from kidseg.measure.measuring import Measured, Request, measure
from kidseg.measure.person import Patient

GRID = Grid.from_spacing((6, 32, 40), (2.5, 2.0, 2.0))
HEADERS = {"PatientID": "P1", "PatientSex": "F", "PatientAge": "004Y", "StudyDate": "20240301"}


def labels(tumour: slice = slice(5, 9), kidneys: tuple[int, ...] = (4, 27)) -> np.ndarray:
    """Kidneys from these columns on, and a tumour in these."""
    values = np.zeros(GRID.shape, np.uint8)
    for first in kidneys:
        values[1:5, 8:20, first : first + 9] = 1
    values[2:4, 12:16, tumour] = 2
    return values


def scanned(folder: Path, headers: Mapping[str, str]) -> tuple[Path, Path]:
    """(labels, scan) of a series with these headers."""
    from pydicom import Dataset

    def edit(ds: Dataset, _: int) -> None:
        for name, value in headers.items():
            setattr(ds, name, value)

    ct = series(folder / "ct", body(len(folder.name)), edit=edit)
    grid = read(ct).volume.grid
    return save(Volume(torch.from_numpy(labels())[None], grid), folder / "a_seg.nii.gz"), ct


def codes(found: Measured) -> set[str]:
    known = {"other-patient", "later-before", "sides-exchanged", "sex-differs", "age-differs"}
    return known & {finding.code for finding in found.findings}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, set()),
        ({"PatientID": "P2"}, {"other-patient"}),
        ({"PatientID": ""}, set()),
        ({"PatientSex": "M"}, {"other-patient"}),
        ({"PatientSex": "", "StudyDate": "", "PatientAge": ""}, set()),
        ({"StudyDate": "20240302"}, {"later-before"}),
    ],
)
def test_headers_of_two_scans_are_compared(
    tmp_path: Path, changed: dict[str, str], expected: set[str]
) -> None:
    new, ct = scanned(tmp_path / "after", HEADERS)
    old, before_ct = scanned(tmp_path / "earlier", {**HEADERS, "StudyDate": "20240101", **changed})
    found = measure(new, Request(ct=ct, before=old, before_ct=before_ct))
    assert codes(found) == expected
    said = " ".join(f.cause for f in found.findings if f.code in expected)
    assert "P2" not in said and "2024" not in said, "values are personal"


def test_what_was_entered_is_compared_with_the_header(tmp_path: Path) -> None:
    path, ct = scanned(tmp_path / "scan", HEADERS)

    def of(**person: object) -> set[str]:
        return codes(measure(path, Request(ct=ct, person=Patient(**person))))  # type: ignore[arg-type]

    assert of(sex="female", age_years=4.9) == set()
    assert of(sex="male", age_years=14) == {"sex-differs", "age-differs"}
    assert codes(measure(path, Request(person=Patient(sex="male")))) == set(), "no header"


def flipped(values: np.ndarray) -> np.ndarray:
    return values[:, :, ::-1].copy()


def same(values: np.ndarray) -> np.ndarray:
    return values


@pytest.mark.parametrize(
    ("before", "turn", "expected"),
    [
        (labels(), flipped, {"sides-exchanged"}),
        (labels(), same, set()),
        (labels(slice(17, 24)), flipped, set()),  # near the midline: overlaps
        (labels(kidneys=(4,)), flipped, {"sides-exchanged"}),  # also the only kidney
    ],
)
def test_tumours_or_kidneys_that_change_sides_are_said(
    tmp_path: Path,
    before: np.ndarray,
    turn: Callable[[np.ndarray], np.ndarray],
    expected: set[str],
) -> None:
    old, new = (
        save(Volume(torch.from_numpy(values)[None], GRID), tmp_path / f"{name}_seg.nii.gz")
        for name, values in (("before", before), ("after", turn(before)))
    )
    assert codes(measure(new, Request(before=old))) == expected
