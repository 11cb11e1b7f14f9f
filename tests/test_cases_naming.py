"""Names of scans, label files and cases: the same for segmenting and for evaluating."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kidseg.cases import case_paths
from kidseg.cases.naming import is_marked, label_name, matching_names, scan_name

NAMES = st.text("ab_0123", min_size=1, max_size=12)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    return root


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/scan.nii.gz", "scan"),
        ("x/case_0000.nii.gz", "case_0000"),
        ("imagesTs/case_0000.nii.gz", "case"),
        ("x/case_0007.nrrd", "case_0007"),
        ("x/case_0000.zip", "case_0000"),
        ("kits/case_00012/imaging.nii.gz", "case_00012"),
        ("study/kid/ct", "kid"),
        ("study/kid_0000/CT", "kid_0000"),
        ("study/kid_0000/image.mha", "kid_0000"),
        ("case_00012/ct", "case_00012"),
        ("patient 1.zip", "patient 1"),
        ("v1.2.3", "v1.2.3"),
        ("a/b.NRRD", "b"),
        ("a.b.mha", "a.b"),
        ("SCAN.NII.GZ", "SCAN"),
        ("_0000.nii.gz", "_0000"),
        (".nii.gz", ".nii.gz"),
        ("a/kid/ct/../ct/.", "kid"),
    ],
)
def test_names_of_results(path: str, name: str) -> None:
    assert scan_name(Path(path)) == name


@pytest.mark.parametrize("folder", ["kid_0000", "kid_0000/ct", "kid_0000.nii.gz", "a_0000.zip/ct"])
def test_a_folder_keeps_its_number(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    assert scan_name(tmp_path / folder) == folder.removesuffix("/ct")


def test_the_number_of_a_file_is_kept_whatever_is_beside_it(tmp_path: Path) -> None:
    """One folder per scan and one folder for all give the same names."""
    touch(tmp_path, "0/kid_0000.nii.gz", "1/kid_0001.nii.gz")
    touch(tmp_path, "all/kid_0000.nii.gz", "all/kid_0001.nii.gz")
    for scan in [*tmp_path.glob("[01]/*"), *tmp_path.glob("all/*")]:
        assert scan_name(scan) == scan.name.removesuffix(".nii.gz")
    assert scan_name(tmp_path / "all" / "kid_0000.nii.gz", channels=2) == "kid"


def test_a_number_in_the_image_folder_of_nnunet_is_a_channel(tmp_path: Path) -> None:
    for folder in ("imagesTr", "imagesTs"):
        images = touch(tmp_path / folder, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000_0000.nii.gz")
        assert scan_name(images / "a_0000.nii.gz") == "a"
        assert scan_name(images / "b_0000_0000.nii.gz") == "b_0000"


@pytest.mark.parametrize("listed", ["./imagesTr/kid_0000.nii.gz", ".\\imagesTr\\kid_0000.nii.gz"])
def test_a_number_that_a_decathlon_lists_belongs_to_the_case(tmp_path: Path, listed: str) -> None:
    scan = touch(tmp_path, "imagesTr/kid_0000.nii.gz") / "imagesTr" / "kid_0000.nii.gz"
    entry = {"image": listed, "label": "./labelsTr/kid_0000.nii.gz"}
    content = {"modality": {"0": "CT"}, "training": [entry], "test": []}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert scan_name(scan) == "kid_0000"
    content["training"], content["test"] = [], [listed]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert scan_name(scan) == "kid_0000"
    # nnU-Net version 1 lists the file without its channel.
    content["test"] = ["./imagesTs/kid.nii.gz"]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert scan_name(scan) == "kid"
    for text in ("not JSON", "[]", '{"training": 3}'):
        (tmp_path / "dataset.json").write_text(text)
        assert scan_name(scan) == "kid"


def test_a_symbolic_link_is_named_by_itself(tmp_path: Path) -> None:
    """DataLad and git-annex store the files under their hashes."""
    stored = touch(tmp_path, "objects/4f/MD5E.nii.gz") / "objects" / "4f" / "MD5E.nii.gz"
    (tmp_path / "case_00001").mkdir()
    for name in ("imaging.nii.gz", "segmentation.nii.gz"):
        (tmp_path / "case_00001" / name).symlink_to(stored)
    assert scan_name(tmp_path / "case_00001" / "imaging.nii.gz") == "case_00001"
    assert label_name(tmp_path / "case_00001" / "segmentation.nii.gz") == "case_00001"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("out/kid_0000_seg.nii.gz", "kid_0000"),
        ("out/kid_0000.nii.gz", "kid_0000"),
        ("out/kid-label.NRRD", "kid"),
        ("out/kid.seg.nrrd", "kid"),
        ("out/kid_0000_seg.seg.nrrd", "kid_0000"),
        ("out/kid_Segmentation.mha", "kid"),
        ("kid_0000/labels.nii.gz", "kid_0000"),
        ("kid_0000/Segmentation.seg.nrrd", "kid_0000"),
        ("case_00001/aggregated_MAJ_seg.nii.gz", "case_00001"),
        ("case_00001/imaging_seg.nii.gz", "case_00001"),
        ("out/_seg.nii.gz", "_seg"),
    ],
)
def test_names_of_labels(path: str, name: str) -> None:
    assert label_name(Path(path)) == name


def test_marked_files_contain_labels() -> None:
    marked = ("a_seg.nii.gz", "a.seg.nrrd", "labels.nii", "Segmentation.mha", "a-label.nrrd")
    assert all(is_marked(Path(name)) for name in marked)
    assert not any(is_marked(Path(name)) for name in ("a.nii.gz", "imaging.nii.gz", "aseg.nrrd"))


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ({"a_0000"}, {"a"}, {"a_0000": "a"}),
        ({"a"}, {"a_0000"}, {"a": "a_0000"}),
        ({"a_0000_0000"}, {"a_0000"}, {"a_0000_0000": "a_0000"}),
        ({"a", "a_0000"}, {"a"}, {"a": "a"}),
        ({"a_0000", "a_0001"}, {"a"}, {}),
        ({"a", "a_0001"}, {"a_0000", "a_0001"}, {"a_0001": "a_0001"}),
        ({"a", "a_0000_0000"}, {"a_0000"}, {}),
        ({"a_00000"}, {"a_"}, {}),
        ({"b"}, {"a"}, {}),
    ],
)
def test_names_match_with_and_without_the_channel(
    found: set[str], wanted: set[str], same: dict[str, str]
) -> None:
    assert matching_names(found, wanted) == same


@given(st.sets(NAMES), st.sets(NAMES))
def test_matching_is_one_to_one_and_keeps_equal_names(found: set[str], wanted: set[str]) -> None:
    same = matching_names(found, wanted)
    assert set(same) <= found and set(same.values()) <= wanted
    assert len(set(same.values())) == len(same)
    assert all(same[name] == name for name in found & wanted)


@given(NAMES)
def test_a_result_has_the_name_of_its_scan(name: str) -> None:
    scan = Path("/nowhere/scans", f"{name}.nii.gz")
    result = Path("/nowhere/out", f"{scan_name(scan)}_seg.nii.gz")
    assert label_name(result) == scan_name(scan)


@pytest.mark.parametrize("layout", ["nnunet", "kits19", "kits21", "kits23", "msd", "dicom"])
def test_scan_and_labels_of_a_case_have_its_name(tmp_path: Path, layout: str) -> None:
    kits = layout.startswith("kits")
    for case in ("case_00000", "case_00001") if kits else ("kid_0000", "kid_0001", "kid_0000_0001"):
        (image,), labels = case_paths(tmp_path, layout, case)  # type: ignore[arg-type]
        touch(tmp_path, str(image / "1.dcm" if layout == "dicom" else image), str(labels))
        if layout == "msd":
            entry = {"image": f"./imagesTr/{image.name}", "label": f"./labelsTr/{labels.name}"}
            content = {"modality": {"0": "CT"}, "training": [entry]}
            (tmp_path / "dataset.json").write_text(json.dumps(content))
        assert scan_name(image) == label_name(labels) == case
