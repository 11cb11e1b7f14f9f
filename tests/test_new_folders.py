"""A command that fails or is refused leaves no empty folder, and none of others is removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import call_cli
from ellipses import write_ellipse_dataset
from kidseg import new_folders
from kidseg.io.atomic import make_folder


def test_only_empty_folders_that_were_created_here_are_removed(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    make_folder(tmp_path / "theirs")
    make_folder(tmp_path / "a" / "b" / "c")
    make_folder(tmp_path / "kept" / "empty")
    (tmp_path / "kept" / "file").touch()
    new_folders.remove_empty()
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", "kept"}
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["file"]


def test_a_folder_that_could_not_be_made_is_passed_over(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="null byte"):
        new_folders.create(tmp_path / "a\0b")
    new_folders.remove_empty()


@pytest.mark.row(26)
@pytest.mark.parametrize(
    "words",
    [
        "evaluate BAD LABEL -o OUT",
        "convert BAD -o OUT --formats stl",
        "measure BAD -o OUT",
        "measure BAD BAD2 -o OUT",
        "convert BAD BAD2 -o OUT --formats stl",
        "store BAD -o OUT --method plain",
        "segment LABEL -m BAD -o OUT --device cpu",
        "train BAD -o OUT --method plain --device cpu",
        "compare BAD BAD2 -o OUT",
        "study BAD -o OUT",
    ],
)
def test_a_refused_command_leaves_no_folder(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ellipse_dataset(tmp_path / "data", 1)
    bad = [tmp_path / name for name in ("bad.nii.gz", "bad2.nii.gz")]
    for file in bad:
        file.write_bytes(b"<html>")
    label = next((tmp_path / "data" / "labelsTr").iterdir())
    out = tmp_path / "out"
    places = {"BAD": bad[0], "BAD2": bad[1], "LABEL": label, "OUT": out / "deep"}
    before = set(tmp_path.rglob("*"))
    assert call_cli(*(str(places.get(word, word)) for word in words.split())) in (2, 3, 4, 6)
    capsys.readouterr()
    assert set(tmp_path.rglob("*")) == before
