"""Paths that a dataset.json states: of other systems, with variables, impossible ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kidseg.cases import open_dataset, survey_dataset
from kidseg.cases.paths import problem_at, stated_path
from kidseg.cases.persons import load_json
from kidseg.check import check
from kidseg.errors import InputError

NNUNET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "kidney": 1, "tumor": 2},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}
DECATHLON = {
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "kidney", "2": "tumor"},
}


def files(root: Path) -> Path:
    for name in ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def listed(root: Path, image: str, label: str) -> Path:
    """An nnU-Net data set that lists its files."""
    content = {**NNUNET, "dataset": {"a": {"images": [image], "label": label}}}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def decathlon(root: Path, image: str, label: str) -> Path:
    content = {**DECATHLON, "training": [{"image": image, "label": label}]}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def code_of(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_dataset(root)
    assert len(str(caught.value)) < 1000 and caught.value.next_step
    return caught.value.code


@pytest.mark.parametrize("write", [listed, decathlon])
def test_upper_and_lower_case_of_windows(tmp_path: Path, write: Any) -> None:
    root = write(files(tmp_path), "ImagesTR\\A_0000.NII.gz", "./labelstr/a.nii.gz")
    survey = survey_dataset(root)
    assert not survey.findings, survey.findings
    (case,) = survey.dataset.cases
    assert case.labels == root / "labelsTr/a.nii.gz"
    (root / "labelsTr/A.nii.gz").write_bytes(b"x")  # now there are two: neither is guessed
    assert code_of(write(root, "imagesTr/a_0000.nii.gz", "labelsTr/A.NII.GZ")) == "missing-labels"
    assert code_of(write(root, "imagesTs/a_0000.nii.gz", "labelsTr/a.nii.gz")) == "missing-image"


@pytest.mark.parametrize("write", [listed, decathlon])
def test_separators_of_windows(tmp_path: Path, write: Any) -> None:
    root = write(files(tmp_path), ".\\imagesTr\\a_0000.nii.gz", "labelsTr\\a.nii.gz")
    survey = survey_dataset(root)
    assert not survey.findings, survey.findings
    (case,) = survey.dataset.cases
    assert case.images == (tmp_path / "imagesTr" / "a_0000.nii.gz",)
    assert case.labels == tmp_path / "labelsTr" / "a.nii.gz"
    assert case.id == ("a" if write is listed else "a_0000")


def test_a_backslash_in_the_name_of_a_file(tmp_path: Path) -> None:
    name = "imagesTr\\a_0000.nii.gz"
    (files(tmp_path) / name).write_bytes(b"y")
    assert stated_path(tmp_path, name, tmp_path / "dataset.json") == tmp_path / name


@pytest.mark.parametrize("write", [listed, decathlon])
@pytest.mark.parametrize("name", ["C:\\data\\a.nii.gz", "\\\\server\\data\\a.nii.gz"])
def test_absolute_paths_of_windows(tmp_path: Path, write: Any, name: str) -> None:
    with pytest.raises(InputError, match=r"Windows.* relative to dataset\.json") as caught:
        open_dataset(write(files(tmp_path), name, "labelsTr/a.nii.gz"))
    assert caught.value.code == "bad-dataset-json"


@pytest.mark.parametrize("text", ["$KIDNEYS/a_0000.nii.gz", "${KIDNEYS}/a_0000.nii.gz"])
def test_variables_are_expanded_in_nnunets_paths_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    files(tmp_path)
    monkeypatch.setenv("KIDNEYS", str(tmp_path / "imagesTr"))
    (case,) = open_dataset(listed(tmp_path, text, "labelsTr/a.nii.gz")).cases
    assert case.images == (tmp_path / "imagesTr" / "a_0000.nii.gz",)
    monkeypatch.setenv("KIDNEYS", "imagesTr")
    assert open_dataset(tmp_path).cases[0].images == case.images
    monkeypatch.delenv("KIDNEYS")
    with pytest.raises(InputError, match=r"variable KIDNEYS in '\$") as caught:
        open_dataset(tmp_path)
    assert caught.value.code == "unset-variable"
    assert code_of(decathlon(tmp_path, text, "labelsTr/a.nii.gz")) == "missing-image"


@pytest.mark.parametrize("write", [listed, decathlon])
@pytest.mark.parametrize("name", ["9" * 3000, f"imagesTr/{'é' * 200}.nii.gz", "", " "])
def test_impossible_names(tmp_path: Path, write: Any, name: str) -> None:
    assert code_of(write(files(tmp_path), name, "labelsTr/a.nii.gz")) == "bad-dataset-json"
    assert code_of(write(tmp_path, "imagesTr/a_0000.nii.gz", name)) == "bad-dataset-json"
    assert [finding.code for finding in check(tmp_path).findings] == ["bad-dataset-json"]


def test_what_is_at_a_path(tmp_path: Path) -> None:
    assert problem_at(tmp_path) is None
    assert problem_at(tmp_path / "x") == "no such file or folder"
    (tmp_path / "loop").symlink_to("loop")
    assert problem_at(tmp_path / "loop") and problem_at(tmp_path / ("9" * 300))
    assert problem_at(Path("a\0b"))
    for path in (tmp_path / "loop", tmp_path / ("9" * 300)):
        with pytest.raises(InputError) as caught:
            survey_dataset(path)
        assert caught.value.code == "not-found"


@pytest.mark.parametrize(
    "text",
    [
        '{"a": NaN}',
        '{"a": [-Infinity]}',
        '{"a": 1e999}',
        '{"a": "\\u0000"}',
        '{"\\ud800": 1}',
        '[["\\udc80"]]',
        '{"a": 1, "a": 2}',
        "[" * 200_000,
        '{"a": ' + "9" * 5000 + "}",
        "",
    ],
)
def test_json_that_no_program_should_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_json(path)
    assert caught.value.code == "bad-json" and len(str(caught.value)) < 1000


def test_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes('\ufeff{"é": [1.5, 2]}'.encode())
    assert load_json(path) == {"é": [1.5, 2]}


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"background": 0, "kidney": 1, "ignore": 1}},
        {"labels": {"background": 0, "kidney": 1, "ignore": 0}},
        {"labels": {"background": 0, "kidney": 1, "ignore": 256}},
        {"labels": {"background": 0, "kidney": 10**30}},
        {
            "labels": {"background": 0, "kidney": [1, 2], "tumor": 2, "ignore": 1},
            "regions_class_order": [1, 2],
        },
        {"file_ending": "./x"},
        {"file_ending": "."},
        {"numTraining": True},
        {"numTraining": 1.5},
        {"channel_names": {"0": ["CT"]}},
    ],
)
def test_values_that_nnunet_would_not_understand(tmp_path: Path, change: dict[str, Any]) -> None:
    (files(tmp_path) / "dataset.json").write_text(json.dumps({**NNUNET, **change}))
    assert code_of(tmp_path) == "bad-dataset-json"


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"0": "background"}},
        {"labels": {"1": "kidney", "01": "tumour"}},
        {"labels": {"1": ["kidney"]}},
        {"labels": {"-1": "kidney"}},
        {"modality": {"0": None}},
        {"modality": {"1": "CT"}},
        {"training": [{"image": "a.nii.gz"}]},
        {"training": [[[]]]},
        {"test": [None]},
    ],
)
def test_values_that_the_decathlon_does_not_have(tmp_path: Path, change: dict[str, Any]) -> None:
    entry = {"image": "imagesTr/a_0000.nii.gz", "label": "labelsTr/a.nii.gz"}
    content = {**DECATHLON, "training": [entry], **change}
    (files(tmp_path) / "dataset.json").write_text(json.dumps(content))
    assert code_of(tmp_path) == "bad-dataset-json"


def test_a_case_that_occurs_twice_in_the_table_of_kits(tmp_path: Path) -> None:
    for name in ("imaging", "segmentation"):
        path = tmp_path / "case_00000" / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    row = {"case_id": "case_00000", "age_at_nephrectomy": 50}
    (tmp_path / "kits.json").write_text(json.dumps([row, {**row, "age_at_nephrectomy": 60}]))
    assert code_of(tmp_path) == "bad-table"
