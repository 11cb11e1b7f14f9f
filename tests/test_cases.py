from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from kidseg.cases import (
    Dataset,
    case_paths,
    consecutive,
    learned_labels,
    open_dataset,
    relabelled,
    survey_dataset,
    without_cyst,
    write_dataset_json,
    write_patients_csv,
)
from kidseg.cases.reading import CaseReader
from kidseg.errors import InputError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.labels import KIDNEY_TUMOUR, KIDNEY_TUMOUR_CYST, LabelSchema, Target

Write = Callable[..., Path]


def touch(*paths: Path) -> None:
    """Opening a data set looks at names, not into files."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def nnunet(root: Path, cases: int = 2, channels: int = 1, **changes: Any) -> Path:
    for k in range(cases):
        images, labels = case_paths(root, "nnunet", f"c{k}", channels)
        touch(*images, labels)
    description = {
        "channel_names": {str(k): "CT" if k == 0 else f"T{k}" for k in range(channels)},
        "labels": {"background": 0, "kidney": 1, "tumour": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
        **changes,
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def msd(root: Path, **changes: Any) -> Path:
    touch(
        *(root / "imagesTr" / f"liver_{k}.nii.gz" for k in range(2)),
        *(root / "labelsTr" / f"liver_{k}.nii.gz" for k in range(2)),
        root / "imagesTs" / "liver_9.nii.gz",
    )
    description = {
        "name": "Liver",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "cancer"},
        "numTraining": 2,
        "training": [
            {"image": f"./imagesTr/liver_{k}.nii.gz", "label": f"./labelsTr/liver_{k}.nii.gz"}
            for k in range(2)
        ],
        "test": ["./imagesTs/liver_9.nii.gz"],
        **changes,
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def kits(root: Path, layout: Any, cases: int = 2) -> Path:
    for k in range(cases):
        (image,), labels = case_paths(root, layout, f"case_{k:05d}")
        touch(image, labels)
    return root


def dicom(root: Path) -> Path:
    (folder,), labels = case_paths(root, "dicom", "p1")
    touch(folder / "1.dcm", labels)
    return root


def codes(root: Path) -> list[str]:
    return [finding.code for finding in survey_dataset(root).findings]


def refusal(root: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        open_dataset(root)
    assert caught.value.code and caught.value.path
    return caught.value


def test_a_folder_inside_or_around_a_data_set_names_it(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "all" / "mine")
    for wrong in (root / "labelsTr", root / "labelsTr" / "c0.nii.gz", tmp_path / "all"):
        assert f"The data set is {root}:" in refusal(wrong).next_step, wrong
    nnunet(tmp_path / "all" / "yours")
    assert "A data set has" in refusal(tmp_path / "all").next_step
    kits(tmp_path / "kits", "kits19")
    one = refusal(tmp_path / "kits" / "data" / "case_00000")
    assert f"The data set is {tmp_path / 'kits' / 'data'}:" in one.next_step


# ---- nnU-Net -----------------------------------------------------------------------------------


def test_labels_as_nnunet_v1_has_them(tmp_path: Path) -> None:
    wrong = {"0": "background", "1": "kidney"}
    said = refusal(nnunet(tmp_path, labels=wrong)).cause
    assert (
        said == "'labels' must map names to numbers, as in {'kidney': 1}, not '0' to 'background'"
    )
    said = refusal(nnunet(tmp_path, labels={"background": 0, "kidney": 1.5})).cause
    assert said == "'labels.kidney': input should be a valid integer, not 1.5"
    said = refusal(nnunet(tmp_path, numTraining=None)).cause
    assert said == "'numTraining': input should be a valid integer, not None"


def test_another_file_ending_than_stated(tmp_path: Path) -> None:
    error = refusal(nnunet(tmp_path, file_ending=".nii"))
    assert error.code == "wrong-file-ending" and "there is c0_0000.nii.gz" in error.cause


def test_nnunet_folder(tmp_path: Path) -> None:
    nnunet(tmp_path, channels=2, name="Small")
    touch(tmp_path / "imagesTs/t_0000.nii.gz", tmp_path / "imagesTs/t_0001.nii.gz")
    touch(tmp_path / "imagesTr/._c0_0000.nii.gz")
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.name) == ("nnunet", "Small")
    assert dataset.channels == ("CT", "T1")
    assert [dataset.holds_ct(k) for k in range(2)] == [True, False]
    assert dataset.schema == KIDNEY_TUMOUR
    assert [case.id for case in dataset.cases] == ["c0", "c1"]
    first = dataset.by_id["c0"]
    assert first.images == tuple(tmp_path / f"imagesTr/c0_000{k}.nii.gz" for k in range(2))
    assert first.labels == tmp_path / "labelsTr/c0.nii.gz"
    assert (first.patient, first.age_years, first.side) == ("c0", None, None)
    assert [(case.id, case.labels) for case in dataset.unlabelled] == [("t", None)]
    assert codes(tmp_path) == []


def test_any_file_ending_and_names_with_underscores(tmp_path: Path) -> None:
    touch(tmp_path / "imagesTr/a b_0001_é_0000.nrrd", tmp_path / "labelsTr/a b_0001_é.nrrd")
    nnunet(tmp_path, cases=0, numTraining=1, file_ending=".nrrd")
    (tmp_path / "dataset.json").write_text(
        (tmp_path / "dataset.json").read_text().replace('"numTraining": 0', '"numTraining": 1')
    )
    assert [case.id for case in open_dataset(tmp_path).cases] == ["a b_0001_é"]


def test_nnunet_files_named_in_the_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, other = tmp_path / "set", tmp_path / "other"
    touch(other / "i1.nii.gz", other / "l1.nii.gz", root / "i2.nii.gz", root / "l2.nii.gz")
    monkeypatch.setenv("ELSEWHERE", str(other))
    files = {
        "one": {"images": ["../other/i1.nii.gz"], "label": "$ELSEWHERE/l1.nii.gz"},
        "two": {"images": [str(root / "i2.nii.gz")], "label": "l2.nii.gz"},
    }
    nnunet(root, cases=0, dataset=files, numTraining=2)
    dataset = open_dataset(root)
    assert dataset.by_id["one"].images == (other / "i1.nii.gz",)
    assert dataset.by_id["one"].labels == other / "l1.nii.gz"
    assert dataset.by_id["two"].labels == root / "l2.nii.gz"
    (other / "l1.nii.gz").unlink()
    assert codes(root) == ["missing-labels"]


def test_regions_and_ignore_label(tmp_path: Path) -> None:
    labels = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2, "ignore": 4}
    nnunet(tmp_path, labels=labels, regions_class_order=[1, 3, 2])
    dataset = open_dataset(tmp_path)
    assert dataset.schema.regions == {"kidney": (1, 2, 3), "masses": (2, 3), "tumor": (2,)}
    assert list(dataset.schema.regions) == ["kidney", "masses", "tumor"]  # nnU-Net's channels
    assert dataset.schema.names == {
        1: "kidney without masses",
        2: "tumor",
        3: "masses without tumor",
    }
    assert dataset.schema.meaning == {1: "kidney", 2: "tumour", 3: "cyst"}
    assert dataset.region_order == (1, 3, 2)
    assert dataset.ignore_label == 4


@pytest.mark.parametrize(
    ("regions", "names"),
    [
        ({"whole": [1, 2], "tumor": 2}, {1: "whole without tumor", 2: "tumor"}),
        ({"tumor": [2], "whole": [1, 2]}, {1: "whole without tumor", 2: "tumor"}),
        (
            {"kidney": [2, 4, 9], "Wilms": 9},
            {2: "kidney without Wilms part 1", 4: "kidney without Wilms part 2", 9: "Wilms"},
        ),
        ({"kidney": [5, 1]}, {1: "kidney part 1", 5: "kidney part 2"}),
        ({"a": [1, 2], "b": [2, 3]}, {1: "a without b", 2: "a and b", 3: "b without a"}),
        ({"a": [1, 2], "b": [2, 1]}, {1: "a and b part 1", 2: "a and b part 2"}),
        # BraTS, from nnU-Net's documentation.
        (
            {"whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing_tumor": 3},
            {
                1: "whole_tumor without tumor_core",
                2: "tumor_core without enhancing_tumor",
                3: "enhancing_tumor",
            },
        ),
    ],
)
def test_labels_of_regions_are_named_after_them(
    tmp_path: Path, regions: dict[str, Any], names: dict[int, str]
) -> None:
    order = sorted(names)[: len(regions)]
    nnunet(tmp_path, labels={"background": 0, **regions}, regions_class_order=order)
    assert open_dataset(tmp_path).schema.names == names


@pytest.mark.parametrize("left", ["left_kidney", "Kidney L", "kidney_left"])
def test_left_and_right_kidney_and_other_names_are_understood(tmp_path: Path, left: str) -> None:
    labels = {"background": 0, left: 1, left.replace("left", "right") + " R": 2, "Wilms": 3}
    nnunet(tmp_path, labels={**labels, "spleen": 4})
    schema = open_dataset(tmp_path).schema
    assert dict(schema.regions) == {
        "kidney": (1, 2),
        "kidney+tumour": (1, 2, 3),
        "tumour": (3,),
        "spleen": (4,),
    }


def test_labels_of_any_name_and_number(tmp_path: Path) -> None:
    nnunet(tmp_path, labels={"background": 0, "spleen": 7, "Tumor": 3, "kidney": 5})
    dataset = open_dataset(tmp_path)
    assert dataset.schema.names == {3: "Tumor", 5: "kidney", 7: "spleen"}
    assert codes(tmp_path) == ["labels-not-consecutive"]
    nnunet(tmp_path, labels={"background": 0, "Tumor": 1, "kidney": 2})
    swapped = open_dataset(tmp_path).schema
    assert swapped.regions == {"kidney": (2,), "kidney+tumour": (2, 1), "tumour": (1,)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": {"0": "background", "1": "kidney"}}, "labels"),
        ({"labels": {"kidney": 1}}, "'background': 0"),
        ({"labels": {"background": 0}}, "no labels"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "same number"),
        ({"labels": {"background": 0, "a": 300}}, "1..255"),
        ({"labels": {"background": 0, "a": [1, 2]}}, "regions_class_order"),
        (
            {"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1, 5]},
            "regions_class_order",
        ),
        ({"labels": {"background": 0, "a": 1, "ignore": [2, 3]}}, "ignore"),
        ({"channel_names": {"1": "CT"}}, "numbered from 0"),
        ({"channel_names": {}}, "numbered from 0"),
        ({"numTraining": "two"}, "numTraining"),
        ({"numTraining": None}, "numTraining"),
        ({"file_ending": "nii.gz"}, "must begin with a dot"),
    ],
)
def test_a_wrong_field_of_dataset_json_is_named(
    tmp_path: Path, change: Mapping[str, Any], words: str
) -> None:
    error = refusal(nnunet(tmp_path, **change))
    assert error.code == "bad-dataset-json" and error.path == str(tmp_path / "dataset.json")
    assert words in error.cause


@pytest.mark.parametrize("text", ["", "{", "\xff", '{"a": 1, "a": 2}', "[" * 100_000])
def test_dataset_json_that_is_no_json_or_says_things_twice(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_bytes(text.encode("latin-1"))
    assert refusal(tmp_path).code == "bad-json"


@pytest.mark.parametrize("content", [[], 3, {}, {"name": "x"}])
def test_dataset_json_of_nothing_known(tmp_path: Path, content: Any) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert refusal(tmp_path).code == "bad-dataset-json"


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    nnunet(tmp_path, cases=4, channels=2)
    gone = [
        tmp_path / "imagesTr/c0_0000.nii.gz",
        tmp_path / "imagesTr/c0_0001.nii.gz",
        tmp_path / "imagesTr/c1_0001.nii.gz",
        tmp_path / "labelsTr/c2.nii.gz",
    ]
    for path in gone:
        path.unlink()
    touch(tmp_path / "imagesTr/notes.txt", tmp_path / "labelsTr/c3.nrrd")
    survey = survey_dataset(tmp_path)
    by_code: dict[str, list[str]] = {}
    for finding in survey.findings:
        by_code.setdefault(finding.code, []).append(finding.path)
    assert by_code["missing-image"] == [str(gone[0]), str(gone[2])]
    assert by_code["missing-labels"] == [str(gone[3])]
    assert by_code["wrong-case-count"] == [str(tmp_path / "dataset.json")]  # c0 has no image left
    assert by_code["wrong-channel-count"] == [str(tmp_path)]
    assert by_code["orphan-file"] == [
        str(tmp_path / "labelsTr/c3.nrrd"),
        str(tmp_path / "imagesTr/notes.txt"),
    ] or by_code["orphan-file"] == [
        str(tmp_path / "imagesTr/notes.txt"),
        str(tmp_path / "labelsTr/c3.nrrd"),
    ]
    assert [case.id for case in survey.dataset.cases] == ["c3"]
    assert sorted(case.id for case in survey.incomplete) == ["c0", "c1", "c2"]
    assert "more problem" in str(refusal(tmp_path))


def test_a_channel_too_many(tmp_path: Path) -> None:
    touch(nnunet(tmp_path) / "imagesTr/c0_0001.nii.gz")
    assert codes(tmp_path) == ["wrong-channel-count"]


def test_wrong_number_of_training_cases(tmp_path: Path) -> None:
    assert refusal(nnunet(tmp_path, numTraining=3)).code == "wrong-case-count"


@pytest.mark.row(14)
def test_one_name_in_training_and_test(tmp_path: Path) -> None:
    touch(nnunet(tmp_path) / "imagesTs/c0_0000.nii.gz")
    assert refusal(tmp_path).code == "duplicate-case"


@pytest.mark.row(14)
def test_names_that_are_one_on_windows_and_macos_are_said(tmp_path: Path) -> None:
    nnunet(tmp_path, numTraining=3)
    touch(tmp_path / "imagesTr/C1_0000.nii.gz", tmp_path / "labelsTr/C1.nii.gz")
    (finding,) = survey_dataset(tmp_path).findings
    assert finding.code == "similar-names" and "'C1', 'c1'" in finding.cause


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "Dataset001_X")
    (root / "dataset.json").unlink()
    schema = LabelSchema.from_names(
        {1: "cortex", 2: "medulla", 3: "Wilms"}, {"kidney": (1, 2), "Wilms": (3,)}
    )
    write_dataset_json(
        root,
        channels=("CT",),
        schema=schema,
        n_training=2,
        region_order=(1, 3),
        ignore_label=4,
    )
    dataset = open_dataset(root)
    assert dataset.name == "Dataset001_X"
    assert dict(dataset.schema.regions) == {"kidney": (1, 2), "Wilms": (3,)}
    assert (dataset.region_order, dataset.ignore_label) == ((1, 3), 4)
    with pytest.raises(UsageError) as caught:
        write_dataset_json(root, channels=("CT",), schema=KIDNEY_TUMOUR, n_training=2)
    assert caught.value.code == "output-exists"
    write_dataset_json(root, channels=("CT",), schema=KIDNEY_TUMOUR, n_training=2, overwrite=True)
    assert open_dataset(root).schema == KIDNEY_TUMOUR


# ---- KiTS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["kits19", "kits21", "kits23"])
def test_kits(tmp_path: Path, layout: Any) -> None:
    kits(tmp_path, layout)
    folder = tmp_path / ("dataset" if layout == "kits23" else "data")
    touch(folder / "case_00210/imaging.nii.gz")
    clinical = [
        {"case_id": "case_00000", "age_at_nephrectomy": 12, "gender": "male"},
        {"case_id": "case_00001", "captured_pixel_width": 0.8},
    ]
    name = "kits23.json" if layout == "kits23" else "kits.json"
    (folder / name).write_text(json.dumps(clinical))
    dataset = open_dataset(tmp_path)
    assert dataset.layout == layout and dataset.channels == ("CT",)
    assert [case.id for case in dataset.cases] == ["case_00000", "case_00001"]
    assert [case.age_years for case in dataset.cases] == [12.0, None]
    assert [case.id for case in dataset.unlabelled] == ["case_00210"]
    assert dataset.schema == (KIDNEY_TUMOUR if layout == "kits19" else KIDNEY_TUMOUR_CYST)


def test_the_folder_of_the_cases_is_taken_too(tmp_path: Path) -> None:
    kits(tmp_path, "kits23")
    assert open_dataset(tmp_path / "dataset").layout == "kits23"
    kits(tmp_path, "kits19")
    assert open_dataset(tmp_path / "data").layout == "kits19"


def test_kits_without_its_images_says_how_to_get_them(tmp_path: Path) -> None:
    kits(tmp_path, "kits19")
    for image in tmp_path.glob("data/*/imaging.nii.gz"):
        image.unlink()
    error = refusal(tmp_path)
    assert error.code == "missing-image" and "challenge's own script" in error.next_step
    assert codes(tmp_path).count("missing-image") == 2


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "{}",
        "[3]",
        '[{"age_at_nephrectomy": 3}]',
        '[{"case_id": "c", "age_at_nephrectomy": -1}]',
    ],
)
def test_a_bad_clinical_table_is_an_error(tmp_path: Path, content: str) -> None:
    kits(tmp_path, "kits19")
    (tmp_path / "data/kits.json").write_text(content)
    assert refusal(tmp_path).code in ("bad-table", "bad-json")


# ---- Decathlon, DICOM --------------------------------------------------------------------------


def test_msd(tmp_path: Path) -> None:
    touch(msd(tmp_path) / "imagesTr/._liver_0.nii.gz")
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.name, dataset.channels) == ("msd", "Liver", ("CT",))
    assert dataset.schema.names == {1: "liver", 2: "cancer"}
    assert [case.id for case in dataset.cases] == ["liver_0", "liver_1"]
    assert [case.id for case in dataset.unlabelled] == ["liver_9"]
    assert codes(tmp_path) == []


def test_msd_with_several_modalities_names_its_file_once_per_channel(tmp_path: Path) -> None:
    dataset = open_dataset(msd(tmp_path, modality={"0": "FLAIR", "1": "T1w"}))
    assert dataset.channels == ("FLAIR", "T1w")
    assert dataset.cases[0].images == (tmp_path / "imagesTr/liver_0.nii.gz",) * 2


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["background"]},
        {"labels": {"a": "b"}},
        {"labels": {"0": "background", "1": "a", "2": "a"}},
        {"modality": {"1": "CT"}},
        {"training": {}},
        {"training": [{"image": "./imagesTr/liver_0.nii.gz"}]},
        {"training": ["./imagesTr/liver_0.nii.gz"]},
    ],
)
def test_a_bad_description_of_msd(tmp_path: Path, change: Mapping[str, Any]) -> None:
    assert refusal(msd(tmp_path, **change)).code == "bad-dataset-json"


def test_problems_of_msd_files(tmp_path: Path) -> None:
    twice = [{"image": "imagesTr/liver_0.nii.gz", "label": "labelsTr/liver_0.nii.gz"}] * 2
    assert codes(msd(tmp_path, training=twice)) == ["duplicate-case", "orphan-file", "orphan-file"]
    msd(tmp_path, numTraining=5)
    assert codes(tmp_path) == ["wrong-case-count"]
    msd(tmp_path)
    (tmp_path / "imagesTr/liver_1.nii.gz").unlink()
    touch(tmp_path / "imagesTr/liver_1_0000.nii.gz")
    error = refusal(tmp_path)
    assert error.code == "missing-image" and "nnU-Net v1" in error.next_step


def test_dicom_folders(tmp_path: Path) -> None:
    touch(dicom(tmp_path) / "p2/ct/1.dcm")
    touch(tmp_path / "truth/p1.json")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "dicom" and dataset.schema == KIDNEY_TUMOUR
    assert dataset.cases[0].images == (tmp_path / "p1/ct",)
    assert [case.id for case in dataset.unlabelled] == ["p2"]
    touch(tmp_path / "p3/labels.nii.gz")
    assert codes(tmp_path) == ["missing-image"]


# ---- none of them ------------------------------------------------------------------------------


def test_what_is_no_data_set_says_what_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path / "scan.nii.gz")
    for path in (tmp_path, tmp_path / "scan.nii.gz"):
        error = refusal(path)
        assert error.code == "not-a-dataset"
        assert "dataset.json" in error.next_step and "case_00000" in error.next_step
    assert refusal(tmp_path / "absent").code == "not-found"
    (tmp_path / "imagesTr").mkdir()
    assert refusal(tmp_path).code == "no-dataset-json"


def test_a_data_set_without_cases(tmp_path: Path) -> None:
    assert refusal(nnunet(tmp_path, cases=0)).code == "no-cases"


# ---- patients.csv ------------------------------------------------------------------------------


def table(root: Path, text: str) -> Dataset:
    (root / "patients.csv").write_text(text, encoding="utf-8")
    return open_dataset(root)


def test_patients_csv_wins_over_the_clinical_table(tmp_path: Path) -> None:
    kits(tmp_path, "kits19")
    (tmp_path / "data/kits.json").write_text(
        json.dumps([{"case_id": f"case_0000{k}", "age_at_nephrectomy": 50} for k in range(2)])
    )
    dataset = table(
        tmp_path,
        "\ufeffside,extra,case,patient,age_years\nLeft,x,case_00000,Ann,1.25\n,,case_00001,Ann,\n",
    )
    first, second = dataset.cases
    assert (first.patient, first.age_years, first.side) == ("Ann", 1.25, "left")
    assert (second.patient, second.age_years, second.side) == ("Ann", 50.0, None)


@pytest.mark.parametrize(
    ("row", "code", "words"),
    [
        ("c0,p,old,left", "bad-row", "'old' is not a valid age"),
        ("c0,p,-1,left", "bad-row", "'-1' is not a valid age"),
        ("c0,p,nan,left", "bad-row", "'nan' is not a valid age"),
        ("c0,p,131,left", "bad-row", "'131' is not a valid age"),
        ("c0,p,3,up", "bad-row", "'up' is not one of left, right, bilateral"),
        (",p,3,left", "bad-row", "the case is missing"),
        ("c0,p,3,left,5", "bad-row", "more values than columns"),
        ("c1,p,3,left", "duplicate-row", "'c1' has an earlier row"),
        ('c0,"p,3,left', "bad-row", "line 3"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: str, code: str, words: str) -> None:
    nnunet(tmp_path)
    with pytest.raises(InputError) as caught:
        table(tmp_path, f"case,patient,age_years,side\nc1,q,2,right\n{row}\n")
    assert caught.value.code == code and words in caught.value.cause
    assert "line 3" in caught.value.cause


@pytest.mark.parametrize("header", ["", "name,age_years", "case,case", "\x00"])
def test_a_table_without_its_header(tmp_path: Path, header: str) -> None:
    nnunet(tmp_path)
    with pytest.raises(InputError) as caught:
        table(tmp_path, header + "\nc0,1\n")
    assert caught.value.code == "bad-table"


@pytest.mark.parametrize("age", ["1,5", "1.5", '"1,5"'])
def test_a_table_of_a_country_whose_decimal_sign_is_a_comma(tmp_path: Path, age: str) -> None:
    nnunet(tmp_path)
    first = table(tmp_path, f"case;patient;age_years\nc0;Ann, B.;{age}\n").cases[0]
    assert (first.patient, first.age_years) == ("Ann, B.", 1.5)
    assert table(tmp_path, 'case,age_years\nc0,"1,5"\n').cases[0].age_years == 1.5


def test_a_table_in_another_encoding(tmp_path: Path) -> None:
    (nnunet(tmp_path) / "patients.csv").write_bytes("case\nc0é\n".encode("latin-1"))
    assert refusal(tmp_path).code == "bad-table"


def test_a_row_for_no_case_is_a_warning(tmp_path: Path) -> None:
    nnunet(tmp_path)
    dataset = table(tmp_path, "case,age_years\nc9,3\nc0,4\n")
    assert dataset.cases[0].age_years == 4
    assert codes(tmp_path) == ["unknown-case"]


def test_the_written_table_is_read_again(tmp_path: Path) -> None:
    nnunet(tmp_path)
    rows: list[dict[str, Any]] = [
        {"case": "c0", "patient": "a, b", "age_years": 0.5, "side": "bilateral", "secret": 1},
        {"case": "c1", "age_years": None, "sex": "F"},
    ]
    path = write_patients_csv(tmp_path, rows)
    with path.open(newline="") as file:
        assert next(csv.reader(file)) == ["case", "patient", "age_years", "sex", "side"]
    first, second = open_dataset(tmp_path).cases
    assert (first.patient, first.age_years, first.side) == ("a, b", 0.5, "bilateral")
    assert (second.patient, second.age_years, second.side) == ("c1", None, None)
    with pytest.raises(UsageError):
        write_patients_csv(tmp_path, rows)
    timed = [rows[0] | {"time_point": "after, 2"}, rows[1]]
    write_patients_csv(tmp_path, timed, overwrite=True)
    assert [case.time_point for case in open_dataset(tmp_path).cases] == ["after, 2", ""]


def test_no_cell_of_the_written_table_is_a_formula(tmp_path: Path) -> None:
    nnunet(tmp_path)
    rows = [{"case": "c0", "patient": "=1+1", "time_point": "-1"}, {"case": "c1"}]
    text = write_patients_csv(tmp_path, rows).read_text()
    assert text.splitlines()[1] == "c0,'=1+1,,,,'-1"
    first = open_dataset(tmp_path).cases[0]
    assert (first.patient, first.time_point) == ("=1+1", "-1")


# ---- where files go, other numbers -------------------------------------------------------------


def test_case_paths(tmp_path: Path) -> None:
    images, labels = case_paths(tmp_path, "nnunet", "x", 2)
    assert [image.name for image in images] == ["x_0000.nii.gz", "x_0001.nii.gz"]
    assert labels == tmp_path / "labelsTr/x.nii.gz"
    assert case_paths(tmp_path, "kits21", "case_00001")[1].name == "aggregated_MAJ_seg.nii.gz"
    assert case_paths(tmp_path, "dicom", "x") == (
        (tmp_path / "x/ct",),
        tmp_path / "x/labels.nii.gz",
    )


@pytest.mark.parametrize(
    ("layout", "name", "channels", "code"),
    [
        ("nnunet", "../x", 1, "bad-case-name"),
        ("nnunet", "", 1, "bad-case-name"),
        ("nnunet", ".x", 1, "bad-case-name"),
        ("kits19", "x", 1, "bad-case-name"),
        ("kits19", "case_00000", 2, "one-channel"),
        ("dicom", "x", 2, "one-channel"),
        ("annotated", "x", 1, "bad-layout"),
    ],
)
def test_names_that_a_layout_does_not_allow(
    tmp_path: Path, layout: Any, name: str, channels: int, code: str
) -> None:
    with pytest.raises(UsageError) as caught:
        case_paths(tmp_path, layout, name, channels)
    assert caught.value.code == code and caught.value.next_step


@pytest.mark.parametrize(("choice", "number"), [("tumour", 2), ("kidney", 1), ("background", 0)])
def test_a_cyst_counts_as_chosen(choice: Any, number: int) -> None:
    schema, mapping = without_cyst(KIDNEY_TUMOUR_CYST, choice)
    assert schema == KIDNEY_TUMOUR and mapping == {3: number}
    assert without_cyst(KIDNEY_TUMOUR, choice) == (KIDNEY_TUMOUR, {})


def test_a_cyst_cannot_count_as_what_is_not_there() -> None:
    with pytest.raises(UsageError) as caught:
        without_cyst(KIDNEY_TUMOUR_CYST, "liver")
    assert caught.value.code == "unknown-cyst"
    with pytest.raises(UsageError) as caught:
        without_cyst(LabelSchema.from_names({1: "kidney", 2: "cyst"}), "tumour")
    assert caught.value.code == "no-such-label"


def test_a_cyst_counts_as_what_is_on_its_side() -> None:
    """TotalSegmentator's names."""
    schema = LabelSchema.from_names(
        {1: "kidney_right", 2: "kidney_left", 3: "kidney_cyst_left", 4: "kidney_cyst_right"}
    )
    rest, mapping = without_cyst(schema, "kidney")
    assert mapping == {3: 2, 4: 1}
    assert rest.names == {1: "kidney_right", 2: "kidney_left"}
    assert dict(rest.regions) == {"kidney": (1, 2)}
    assert without_cyst(schema, "background")[1] == {3: 0, 4: 0}
    unsided = LabelSchema.from_names({1: "kidney_right", 2: "kidney_left", 3: "cyst"})
    with pytest.raises(UsageError) as caught:
        without_cyst(unsided, "kidney")
    assert caught.value.code == "several-such-labels"
    one_tumour = LabelSchema.from_names({1: "cyst_left", 2: "tumour"})
    assert without_cyst(one_tumour, "tumour")[1] == {1: 2}


def test_learned_labels_of_a_plain_data_set(tmp_path: Path) -> None:
    nnunet(tmp_path, labels={"background": 0, "cyst": 2, "Tumor": 3, "kidney": 7, "ignore": 9})
    dataset = open_dataset(tmp_path)
    learned = learned_labels(dataset)
    assert learned.schema.names == {1: "cyst", 2: "Tumor", 3: "kidney"}
    assert (learned.new_from_old, learned.ignore) == ({2: 1, 3: 2, 7: 3, 9: 4}, 4)
    assert learned.target == Target.of_labels(learned.schema)
    counted = learned_labels(dataset, "tumour")
    assert counted.schema.names == {1: "Tumor", 2: "kidney"}
    assert (counted.new_from_old, counted.ignore) == ({2: 1, 3: 1, 7: 2, 9: 3}, 3)
    assert learned_labels(dataset, "background").new_from_old == {2: 0, 3: 1, 7: 2, 9: 3}
    # The same whether or not a reader has counted the cysts before.
    reader = CaseReader.of_dataset(dataset, cyst="tumour")
    for old, new in counted.new_from_old.items():
        assert counted.new_from_old[reader.relabel.get(old, old)] == new


def test_learned_labels_of_a_region_based_data_set(tmp_path: Path) -> None:
    labels = {"background": 0, "kidney": [2, 4, 6], "masses": [4, 6], "tumor": 4, "ignore": 8}
    nnunet(tmp_path, labels=labels, regions_class_order=[2, 6, 4])
    dataset = open_dataset(tmp_path)
    learned = learned_labels(dataset)
    assert (learned.new_from_old, learned.ignore) == ({2: 1, 4: 2, 6: 3, 8: 4}, 4)
    assert learned.schema.regions == {"kidney": (1, 2, 3), "masses": (2, 3), "tumor": (2,)}
    assert learned.target == Target(
        channels=((1, 2, 3), (2, 3), (2,)), exclusive=False, writes=(1, 3, 2)
    )
    assert Target.merged(learned.schema).channels == ((1, 2, 3),)
    assert Target.alone(learned.schema, "tumour").channels == ((2,),)
    for refuse in (
        lambda: learned_labels(dataset, "tumour"),
        lambda: CaseReader.of_dataset(dataset, cyst="tumour"),
    ):
        with pytest.raises(UsageError) as caught:
            refuse()
        assert caught.value.code == "cyst-in-regions"


@pytest.mark.parametrize("order", [(1, 3, 2), (3, 1, 2)])
def test_what_regions_write_is_read_back_by_nnunets_rule(order: tuple[int, ...]) -> None:
    """Certain probabilities of the regions of a label give that label, outer regions first."""
    regions = {"kidney": (1, 2, 3), "masses": (2, 3), "tumor": (2,)}
    schema = LabelSchema.from_names({1: "a", 2: "b", 3: "c"}, regions)
    target = Target.of_regions(schema, order)
    for label in (0, *schema.ids):
        decided = 0
        for members, written in zip(target.channels, target.writes, strict=True):
            decided = written if label in members else decided
        assert (decided == label) is (order == (1, 3, 2) or label in (0, 2))


def test_consecutive_numbers_keep_names_and_regions() -> None:
    schema = LabelSchema.from_names({3: "a", 7: "b"}, {"ab": (3, 7), "b": (7,)})
    renumbered, mapping = consecutive(schema, ignore_label=5)
    assert mapping == {3: 1, 7: 2, 5: 3}
    assert renumbered.names == {1: "a", 2: "b"}
    assert renumbered.regions == {"ab": (1, 2), "b": (2,)}


def test_relabelling_does_not_chain() -> None:
    grid = Grid.from_spacing((1, 1, 4), (1, 1, 1))
    labels = Volume(torch.tensor([0, 1, 2, 3], dtype=torch.uint8).reshape(1, 1, 1, 4), grid)
    swapped = relabelled(labels, {1: 2, 2: 3, 3: 1})
    assert swapped.data.flatten().tolist() == [0, 2, 3, 1]
    assert swapped.data.dtype == torch.uint8
    with pytest.raises(ValueError, match="float32"):
        relabelled(labels.astype(torch.float32), {})
