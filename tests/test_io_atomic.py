"""Outputs: found unwritable before the work, written whole or not at all, whatever their names."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kidseg.errors import InputError, KidsegError, ResourceError, UsageError
from kidseg.io.atomic import check_writable, make_folder, write_json, writing, writing_folder

NOT_UTF8 = os.fsdecode(b"M\xfcller")


def not_writable(act: Callable[[Path], object], path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        act(path)
    error = caught.value
    assert error.code == "not-writable" and error.exit_code == 3
    assert error.path and error.next_step
    return error


@pytest.mark.row(26)
@pytest.mark.parametrize(
    "name",
    [
        "file/out",
        "file/folder/out",
        "missing/out",
        "x" * 300,
        "a\0b",
        "loop/out",
        "pipe",
    ],
)
def test_an_output_that_cannot_be_is_found_before_the_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    for overwrite in (False, True):
        not_writable(lambda p, o=overwrite: check_writable(p, overwrite=o), tmp_path / name)
    with pytest.raises(InputError), writing(tmp_path / name):
        pytest.fail("the work was done")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("folder", ["/proc", "/sys"])
def test_a_folder_in_which_nobody_can_write(folder: str) -> None:
    if not Path(folder).is_dir():
        pytest.skip("needs Linux")
    not_writable(check_writable, Path(folder) / "out.json")
    assert not_writable(make_folder, Path(folder)).path == folder
    not_writable(make_folder, Path(folder) / "out" / "below")


def test_a_device_is_not_replaced_by_a_file() -> None:
    not_writable(lambda p: check_writable(p, overwrite=True), Path(os.devnull))


def test_folders_are_made_with_their_parents_and_stay(tmp_path: Path) -> None:
    for name in ("a/b/c", "a/b/c", NOT_UTF8):
        make_folder(tmp_path / name)
        assert (tmp_path / name).is_dir() and not list((tmp_path / name).iterdir())
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UsageError, match="not a folder"):
        make_folder(tmp_path / "file")
    for name in ("file/below", "x" * 300, "a\0b"):
        not_writable(make_folder, tmp_path / name)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.row(26)
def test_names_that_are_not_utf8_survive_in_json(tmp_path: Path) -> None:
    path = tmp_path / f"{NOT_UTF8}.json"
    write_json(path, {"path": str(path), NOT_UTF8: "Überweisung 患者"})
    content = path.read_bytes()
    content.decode("utf-8")
    read = json.loads(content)
    assert Path(read["path"]) == path and read[NOT_UTF8] == "Überweisung 患者"
    with pytest.raises(UsageError) as caught:
        write_json(path, {})
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EFBIG])
def test_an_error_of_the_disk_while_writing_is_named_and_leaves_nothing(
    tmp_path: Path, number: int
) -> None:
    path = tmp_path / "out.bin"
    with pytest.raises(KidsegError) as caught, writing(path):
        raise OSError(number, os.strerror(number))
    assert caught.value.path == str(path) and caught.value.next_step
    is_full = number in (errno.ENOSPC, errno.EFBIG)
    assert isinstance(caught.value, ResourceError) == is_full
    assert not list(tmp_path.iterdir())


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, writing(tmp_path / "out.bin"):
        (tmp_path / "input").read_bytes()
    assert caught.value.filename == str(tmp_path / "input")
    assert not list(tmp_path.iterdir())


def test_a_limit_of_the_size_of_files_is_a_matter_of_resources(tmp_path: Path) -> None:
    """As `ulimit -f` sets; in a process of its own, since it holds for a whole process."""
    code = (
        "from pathlib import Path; from kidseg.io.atomic import writing; import sys\n"
        "with writing(Path(sys.argv[1])) as file: file.write(bytes(2**20))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out.bin")],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16)),
    )
    assert "ResourceError" in done.stderr and "size limit" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_is_there_when_it_is_complete_and_replaces_the_earlier(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("first", "second"):
        with writing_folder(out) as temporary:
            (temporary / name).touch()
            assert not (out / name).exists()
        assert [path.name for path in out.iterdir()] == [name]
    assert list(tmp_path.iterdir()) == [out]
    not_writable(lambda path: writing_folder(path).__enter__(), tmp_path / "missing" / "out")


@pytest.mark.fault("disk full")
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        FileNotFoundError(errno.ENOENT, "No such file", "/input.nii"),
        InputError("bad", path="/input.nii"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_incomplete_folder_leaves_the_earlier_one(tmp_path: Path, error: BaseException) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier").touch()
    with pytest.raises((KidsegError, OSError, KeyboardInterrupt)) as caught, writing_folder(out):
        raise error
    if getattr(error, "errno", None) == errno.ENOSPC:
        assert isinstance(caught.value, ResourceError) and caught.value.path == str(out)
    else:
        assert type(caught.value) is type(error)
    assert list(tmp_path.iterdir()) == [out] and (out / "earlier").exists()


def test_errors_name_the_folder_to_be_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught, writing_folder(tmp_path / "out") as temporary:
        raise UsageError("bad", path=temporary / "a")
    assert caught.value.path == str(tmp_path / "out" / "a")
