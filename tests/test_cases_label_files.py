"""Label files of a command: each case once, a bad one alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from ellipses import make_ellipse_patient
from folders import touch
from kidseg.cases.label_files import attempt_each, check_copies, find_label_files
from kidseg.errors import InputError, KidsegError, ResourceError, UsageError
from kidseg.geometry import Volume
from kidseg.io import save


def test_of_a_folder_the_marked_files_are_labels_else_all_volumes(tmp_path: Path) -> None:
    marked = touch(tmp_path / "a", "anna_seg.nii.gz", "ben.seg.nrrd")
    touch(tmp_path / "a", "anna.nii.gz", "anna_entropy.nii.gz", "result.json", ".hidden_seg.nii")
    (tmp_path / "a" / "sub").mkdir()
    assert set(find_label_files([tmp_path / "a"])) == set(marked)
    plain = touch(tmp_path / "labelsTr", "case_0001.nii.gz", "case_0002.nii.gz")
    assert set(find_label_files([tmp_path / "labelsTr"])) == set(plain)
    both = find_label_files([*marked, tmp_path / "a", marked[0]])
    assert tuple(both) == tuple(marked), "each once, in the order given"


def test_files_of_a_case_in_one_folder_are_copies_elsewhere_and_none_are_refused(
    tmp_path: Path,
) -> None:
    files = touch(tmp_path / "a", "anna.seg.nrrd", "anna_seg.nii.gz", "ben_seg.nii.gz")
    assert find_label_files([tmp_path / "a"]) == {files[1]: (files[0],), files[2]: ()}
    touch(tmp_path / "b", "anna_seg.nii.gz")
    with pytest.raises(UsageError) as same:
        find_label_files([tmp_path / "a", tmp_path / "b"])
    assert same.value.code == "same-name" and "anna" in same.value.cause
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as none:
        find_label_files([tmp_path / "empty"])
    assert none.value.code == "no-labels" and none.value.path == str(tmp_path / "empty")
    with pytest.raises(UsageError) as nothing:
        find_label_files([])
    assert nothing.value.code == "no-input"


@pytest.mark.row(14)
def test_copies_of_a_case_must_contain_the_same_labels(tmp_path: Path) -> None:
    labels = make_ellipse_patient(0).labels
    first = save(labels, tmp_path / "anna_seg.nii.gz")
    same = save(labels, tmp_path / "anna_seg.nrrd")
    check_copies(first, [same])
    other = labels.data.clone()
    other[0, 0, 0, 0] = 2
    for copy in (
        save(Volume(other, labels.grid), tmp_path / "anna_seg.mha"),
        save(
            Volume(labels.data, labels.grid.crop((0, 0, 1), labels.grid.shape)), tmp_path / "b.nii"
        ),
    ):
        with pytest.raises(InputError) as differs:
            check_copies(first, [same, copy])
        assert differs.value.code == "duplicate-case" and differs.value.path == str(copy)


def test_a_bad_file_does_not_stop_the_others_but_a_full_disk_does() -> None:
    files = [Path(name) for name in "abc"]

    def attempt(path: Path) -> str:
        if path == files[1]:
            raise InputError("bad", path=path)
        return path.name.upper()

    seen: list[tuple[int, int]] = []
    done, failed = attempt_each(files, attempt, lambda *now: seen.append(now))
    assert done == {files[0]: "A", files[2]: "C"} and seen == [(1, 3), (2, 3), (3, 3)]
    assert [(path, error.cause) for path, error in failed] == [(files[1], "bad")]

    def full(path: Path) -> str:
        raise ResourceError("full", path=path, code="disk-full")

    with pytest.raises(KidsegError) as error:
        attempt_each(files, full)
    assert error.value.code == "disk-full"
