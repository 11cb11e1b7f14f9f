"""A command that fails or is refused leaves no empty folder, and none of others is removed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import pytest

from commands import call_cli
from ellipses import write_ellipse_dataset
from kidseg import new_folders
from kidseg.io.atomic import make_folder


class FailedError(Exception):
    pass


@contextmanager
def failing(error: BaseException | None = None) -> Iterator[None]:
    """What happens to new folders if a command fails."""
    error = error or FailedError()
    try:
        with new_folders.removed_if_empty():
            yield
            raise error
    except BaseException as raised:
        if raised is not error:
            raise


def test_only_empty_folders_that_were_created_here_are_removed(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    with failing():
        make_folder(tmp_path / "theirs")
        make_folder(tmp_path / "a" / "b" / "c")
        make_folder(tmp_path / "kept" / "empty")
        (tmp_path / "kept" / "file").touch()
    assert {path.name for path in tmp_path.iterdir()} == {"theirs", "kept"}
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["file"]


def test_folders_stay_if_all_went_well(tmp_path: Path) -> None:
    with new_folders.removed_if_empty():
        new_folders.create(tmp_path / "a" / "b")
    with failing(SystemExit(0)):
        new_folders.create(tmp_path / "c")
    with failing(SystemExit(3)), new_folders.removed_if_empty():
        new_folders.create(tmp_path / "d")
    new_folders.create(tmp_path / "e")
    with failing():
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"a", "c", "e"}
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, OSError])
def test_folders_go_however_it_fails(tmp_path: Path, kind: type[BaseException]) -> None:
    with failing(kind(4)):
        new_folders.create(tmp_path / "a" / "b")
    assert not any(tmp_path.iterdir())


def test_a_folder_that_could_not_be_made_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with failing():
        with pytest.raises(ValueError, match="null byte"):
            new_folders.create(tmp_path / "a\0b")
        with pytest.raises(NotADirectoryError):
            new_folders.create(tmp_path / "file" / "a")
        with pytest.raises(FileNotFoundError):
            new_folders.create(Path("/proc/none/a"))


USER = """
import sys
from pathlib import Path
from kidseg import new_folders
with new_folders.removed_if_empty():
    new_folders.create(Path(sys.argv[1]))
    print("created", flush=True)
    sys.stdin.readline()
    (Path(sys.argv[1]) / "result").touch()
"""


def test_a_folder_that_another_process_is_about_to_write_into_stays(tmp_path: Path) -> None:
    """Two commands have the same output, and the one that created it fails."""
    out = tmp_path / "out" / "both"
    command = [sys.executable, "-c", USER, str(out)]
    with failing():
        new_folders.create(out)
        other = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True)
        assert other.stdout is not None and other.stdout.readline() == "created\n"
    other.communicate("go\n", timeout=60)
    assert other.returncode == 0 and (out / "result").exists()


def test_a_folder_that_another_process_removes_meanwhile_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after it is opened to lock it."""
    out, opened, calls = tmp_path / "out", os.open, iter(range(100))

    def open_late(path: Path, flags: int) -> int:
        call = next(calls)
        if call == 0:
            out.rmdir()
        descriptor = opened(path, flags)
        if call == 1:
            out.rmdir()
        return descriptor

    monkeypatch.setattr(os, "open", open_late)
    with new_folders.removed_if_empty():
        new_folders.create(out)
    assert out.is_dir() and next(calls) == 3


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
