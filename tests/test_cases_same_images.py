"""The same image under two names: never in training and validation, or in training and test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kidseg.cases import Case
from kidseg.cases.same_images import check_apart, check_patients, same_image_findings, voxels_sha256
from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume
from kidseg.io import load, save
from kidseg.io.orientation import reorient

GRID = Grid.from_spacing((3, 4, 5), (3.0, 2.0, 2.0))
TURNED = Grid((2, 2, 2), torch.diag(torch.tensor([-1.0, -1.0, -1.0, 1.0]).double()))


def case(name: str, patient: str, *, labelled: bool = True) -> Case:
    labels = Path(f"{name}_seg.nii") if labelled else None
    return Case(id=name, images=(Path(f"{name}.nii"),), labels=labels, patient=patient)


def test_the_digest_is_that_of_the_voxels_not_of_the_file(tmp_path: Path) -> None:
    data = torch.arange(60, dtype=torch.int16).reshape(1, 3, 4, 5)
    volume = Volume(data, GRID)
    digest = voxels_sha256(volume)
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha"):
        save(volume, tmp_path / name)
        assert voxels_sha256(load(tmp_path / name, values="any")) == digest
    turned = save(reorient(volume, TURNED), tmp_path / "turned.nii")
    assert voxels_sha256(load(turned, values="any")) == digest
    assert voxels_sha256(volume.astype(torch.float64)) == digest
    other = data.clone()
    other[0, 2, 3, 4] += 1
    assert voxels_sha256(Volume(other, GRID)) != digest
    reshaped = Volume(data.reshape(1, 3, 5, 4), Grid.from_spacing((3, 5, 4), (3.0, 2.0, 2.0)))
    assert voxels_sha256(reshaped) != digest


@pytest.mark.row(14)
def test_training_and_validation_share_no_image() -> None:
    digests = {"a": "1", "b": "2", "c": "1", "d": "3"}
    check_apart(digests, ("a", "b", "c"), ("d",), "set")
    check_apart(digests, ("b", "d"), ("a", "c"), "set")
    with pytest.raises(InputError, match=r"'a' \(training\) and 'c' \(validation\)") as raised:
        check_apart(digests, ("a", "b"), ("c", "d"), "set")
    assert raised.value.code == "same-image" and raised.value.next_step


def test_equal_images_are_errors_unless_one_patient_s() -> None:
    ann, again = case("a", "Ann"), case("b", "Ann")
    bob, test = case("c", "Bob"), case("t", "Ann", labelled=False)
    (finding,) = same_image_findings({ann: "1", again: "1", bob: "2"})
    assert (finding.code, finding.severity) == ("same-image", "warning")
    (finding,) = same_image_findings({ann: "1", bob: "1"})
    assert finding.severity == "error" and "'a' and 'c'" in finding.cause
    (finding,) = same_image_findings({ann: "1", test: "1"})
    assert finding.severity == "error" and "test case" in finding.cause
    assert not same_image_findings({ann: "1", bob: "2"})


def test_an_image_belongs_to_one_patient() -> None:
    digests = {"a": "1", "b": "2", "c": "1"}
    check_patients(digests, {"a": "p", "b": "q", "c": "p"}, "set")
    with pytest.raises(InputError, match="'a' and 'c' of two patients") as error:
        check_patients(digests, {"a": "p", "b": "q", "c": "r"}, "set")
    assert error.value.code == "same-image"
