"""Label files of a command: each case once, a bad one alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from folders import touch
from kidseg.cases.label_files import attempt_each, find_label_files
from kidseg.errors import InputError, KidsegError, ResourceError, UsageError


def test_of_a_folder_the_marked_files_are_labels_else_all_volumes(tmp_path: Path) -> None:
    marked = touch(tmp_path / "a", "anna_seg.nii.gz", "ben.seg.nrrd")
    touch(tmp_path / "a", "anna.nii.gz", "anna_entropy.nii.gz", "result.json", ".hidden_seg.nii")
    (tmp_path / "a" / "sub").mkdir()
    assert set(find_label_files([tmp_path / "a"])) == set(marked)
    plain = touch(tmp_path / "labelsTr", "case_0001.nii.gz", "case_0002.nii.gz")
    assert set(find_label_files([tmp_path / "labelsTr"])) == set(plain)
    both = find_label_files([*marked, tmp_path / "a", marked[0]])
    assert both == tuple(marked), "each once, in the order given"


def test_two_files_of_a_case_none_and_no_folder_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a", "anna_seg.nii.gz", "anna.seg.nrrd")
    with pytest.raises(UsageError) as same:
        find_label_files([tmp_path / "a"])
    assert same.value.code == "same-name" and "anna" in same.value.cause
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as none:
        find_label_files([tmp_path / "empty"])
    assert none.value.code == "no-labels" and none.value.path == str(tmp_path / "empty")
    with pytest.raises(UsageError) as nothing:
        find_label_files([])
    assert nothing.value.code == "no-input"


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
