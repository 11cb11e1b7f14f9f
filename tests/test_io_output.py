"""Output folders: new, empty, or of the same command; nothing else is written into."""

from __future__ import annotations

from pathlib import Path

import pytest

from kidseg.errors import UsageError
from kidseg.io.output import KINDS, check_output_folder

WRITERS = [name for name in KINDS if name != "a data set"]


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return folder


def example(kind: str, folder: Path) -> Path:
    """A folder of this kind, by the first of its marks."""
    return fill(folder, KINDS[kind].marks[0].replace("*", "a"))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_new_or_empty_folder_and_one_of_the_same_kind_are_accepted(
    kind: str, tmp_path: Path
) -> None:
    check_output_folder(tmp_path / "new" / "deeper", kind)
    check_output_folder(tmp_path, kind)
    check_output_folder(fill(tmp_path / "hidden", ".lock", ".DS_Store"), kind)
    own = example(kind, tmp_path / "own")
    check_output_folder(fill(own, "notes.txt"), kind)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("other", KINDS)
def test_a_folder_of_another_kind_is_refused(kind: str, other: str, tmp_path: Path) -> None:
    if kind == other or {kind, other} == {"results", "scores"}:
        return
    folder = example(other, tmp_path / "folder")
    before = sorted(folder.rglob("*"))
    with pytest.raises(UsageError, match=f"contains {other}") as error:
        check_output_folder(folder, kind)
    assert error.value.code == "other-folder" and error.value.next_step
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("mark", KINDS["a data set"].marks)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_data_set_is_refused_even_where_a_run_was_written_into_it(
    kind: str, mark: str, tmp_path: Path
) -> None:
    folder = example(kind, tmp_path / "folder")
    fill(folder, mark.replace("*", "00001") + ("/x" if mark.endswith("Tr") else ""))
    with pytest.raises(UsageError, match="contains a data set"):
        check_output_folder(folder, kind)


@pytest.mark.parametrize("kind", [name for name in WRITERS if KINDS[name].own is not None])
def test_other_things_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "folder", "letter.txt", "photos/a.jpg")
    with pytest.raises(UsageError, match=r"'letter.txt', 'photos'") as error:
        check_output_folder(folder, kind)
    assert error.value.code == "other-folder"


def test_results_may_stand_beside_other_files(tmp_path: Path) -> None:
    check_output_folder(fill(tmp_path / "scans", "a.nii.gz", "letter.txt"), "results")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_no_folder(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(UsageError) as error:
            check_output_folder(tmp_path / name, kind)
        assert error.value.code == "output-exists"


def test_results_and_their_scores_may_share_a_folder(tmp_path: Path) -> None:
    folder = example("results", tmp_path / "folder")
    check_output_folder(folder, "scores")
    check_output_folder(example("scores", folder), "results")


@pytest.mark.parametrize("name", ["sub", "sub/deeper", "imagesTr/run", "labelsTr"])
def test_nothing_is_trained_inside_a_data_set(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "dataset.json", "imagesTr/a.nii.gz")
    with pytest.raises(UsageError, match="inside the data set") as error:
        check_output_folder(tmp_path / name, "a training run")
    assert error.value.code == "other-folder"


def test_results_are_not_written_among_images_and_labels(tmp_path: Path) -> None:
    fill(tmp_path, "dataset.json", "imagesTs/a.nii.gz")
    check_output_folder(tmp_path / "predicted", "results")
    for name in ("imagesTs", "labelsTr", "labelsTr/new"):
        with pytest.raises(UsageError, match="inside the data set"):
            check_output_folder(tmp_path / name, "results")
