"""Zips: what is sound comes out whole, what is not is refused before a byte is written."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from kidseg.errors import InputError, ResourceError
from kidseg.geometry import Grid, Volume
from kidseg.io import read, save
from kidseg.io.archive import Limits, extracted
from kidseg.io.dicom import write_series


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where zips are extracted, so that a test can see what is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def pack(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # duplicate names, on purpose
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    return path


def refused(path: Path, temporary: Path, limits: Limits | None = None) -> str:
    """The code; nothing may have been extracted, and nothing left."""
    made: list[str] = []
    original = zipfile.ZipFile.open

    def spy(self: zipfile.ZipFile, name: object, *args: object, **kwargs: object) -> object:
        made.append(str(name))
        return original(self, name, *args, **kwargs)  # type: ignore[arg-type,call-overload]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", spy)
        with (
            pytest.raises((InputError, ResourceError)) as caught,
            extracted(path, limits or Limits()),
        ):
            pytest.fail("it was extracted")
    assert caught.value.path == str(path) and caught.value.next_step
    assert made == [] and not list(temporary.iterdir())
    return caught.value.code


def scan() -> Volume:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:40j, -1:1:48j]
    plane = np.where(np.hypot(x, y) < 0.7, 40.0, -1000.0)
    data = plane + rng.normal(0, 15, (6, 40, 48))
    grid = Grid.from_spacing((6, 40, 48), (2.5, 0.7, 0.8), (3, 4, 5))
    return Volume(torch.from_numpy(np.maximum(data, -1024).astype(np.int16))[None], grid)


# ---- what is sound -----------------------------------------------------------------------------


def test_files_come_out_as_they_went_in_and_are_gone_afterwards(
    tmp_path: Path, temporary: Path
) -> None:
    files = {"a/1.bin": os.urandom(3_000_000), "a/b/2.bin": b"", "3 ü.bin": b"three"}
    path = pack(tmp_path / "scan ü.zip", {**files, "__MACOSX/._3": b"x", "a/.DS_Store": b"y"})
    with extracted(path) as folder:
        found = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
        assert {name: f.read_bytes() for name, f in found.items()} == files
    assert not list(temporary.iterdir())


def test_files_are_gone_after_an_error_too(tmp_path: Path, temporary: Path) -> None:
    path = pack(tmp_path / "scan.zip", {"a": b"a"})
    with pytest.raises(RuntimeError), extracted(path):
        raise RuntimeError
    assert not list(temporary.iterdir())


def test_backslashes_separate_folders(tmp_path: Path) -> None:
    path = pack(tmp_path / "windows.zip", {"series\\1.dcm": b"1", "series\\2.dcm": b"2"})
    with extracted(path) as folder:
        assert (folder / "series" / "1.dcm").read_bytes() == b"1"


@pytest.mark.row(25)
@pytest.mark.parametrize("kind", ["nii.gz", "nrrd", "dicom"])
def test_a_zip_of_one_scan_is_read(tmp_path: Path, kind: str) -> None:
    volume = scan()
    if kind == "dicom":
        files = write_series(volume, tmp_path / "series", facts={"seed": "7"})
    else:
        files = [save(volume, tmp_path / f"scan.{kind}")]
    packed = {f"study/series 1/{f.name}": f.read_bytes() for f in files}
    path = pack(tmp_path / "scan.zip", {**packed, "__MACOSX/study/._x": b"junk"})
    found = read(path)
    assert torch.equal(found.volume.data, volume.data)
    assert found.volume.grid.same_as(volume.grid)
    assert found.path == path
    assert not any("/tmp" in f.cause and "kidseg-" in f.cause for f in found.findings)


# ---- what is not -------------------------------------------------------------------------------


@pytest.mark.row(25)
@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/etc/a", "C:\\a", "C:a", "\\\\host\\a", "a\\..\\..\\b", "a/..", ".."],
)
def test_names_that_lead_outside(tmp_path: Path, temporary: Path, name: str) -> None:
    path = pack(tmp_path / "x.zip", {"good": b"1", name: b"2"})
    assert refused(path, temporary) == "unsafe-name"


@pytest.mark.row(25)
@pytest.mark.parametrize("name", ["a\nb", "a\x7fb", "x" * 300, "ü" * 200])
def test_names_that_cannot_name_a_file(tmp_path: Path, temporary: Path, name: str) -> None:
    assert refused(pack(tmp_path / "x.zip", {name: b"2"}), temporary) == "unsafe-name"


@pytest.mark.row(25)
def test_a_name_with_a_zero_byte(tmp_path: Path, temporary: Path) -> None:
    path = pack(tmp_path / "x.zip", {"aaXbb": b"2"})
    path.write_bytes(path.read_bytes().replace(b"aaXbb", b"aa\0bb"))
    assert refused(path, temporary) == "unsafe-name"


@pytest.mark.row(25)
@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices(tmp_path: Path, temporary: Path, kind: int) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    assert refused(path, temporary) == "archive-link"


@pytest.mark.row(25)
def test_encrypted(tmp_path: Path, temporary: Path) -> None:
    path = pack(tmp_path / "x.zip", {"secret": b"2"})
    content = bytearray(path.read_bytes())
    content[6] |= 1  # local header, general purpose flags
    content[content.index(b"PK\x01\x02") + 8] |= 1  # central directory
    path.write_bytes(content)
    assert refused(path, temporary) == "encrypted-zip"


@pytest.mark.row(25)
@pytest.mark.parametrize(
    "names",
    [("a", "a"), ("a/B.dcm", "A/b.dcm"), ("\u00fc", "u\u0308"), ("a", "a/b"), ("a/b", "a\\b")],
)
def test_two_names_for_one_file(tmp_path: Path, temporary: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "x.zip"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, name)
    assert refused(path, temporary) == "duplicate-name"


@pytest.mark.row(25)
def test_thousands_of_files(tmp_path: Path, temporary: Path) -> None:
    path = pack(tmp_path / "x.zip", {f"{k}": b"" for k in range(5001)}, zipfile.ZIP_STORED)
    assert refused(path, temporary) == "too-many-files"
    few = pack(tmp_path / "few.zip", {"1": b"", "2": b"", "3": b""})
    assert refused(few, temporary, Limits(files=2)) == "too-many-files"
    with extracted(few, Limits(files=3)) as folder:
        assert len(list(folder.iterdir())) == 3


@pytest.mark.row(25)
def test_a_bomb(tmp_path: Path, temporary: Path) -> None:
    path = pack(tmp_path / "x.zip", {"a": bytes(2**26 + 1)})
    assert refused(path, temporary) == "zip-bomb"
    with extracted(path, Limits(ratio=2000)):
        pass


@pytest.mark.row(25)
def test_overlapping_entries(tmp_path: Path, temporary: Path) -> None:
    """Many entries of the directory that point to one local file."""
    path = pack(tmp_path / "x.zip", {"a": os.urandom(500), "b": os.urandom(500)})
    content = bytearray(path.read_bytes())
    second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
    content[second + 42 : second + 46] = struct.pack("<I", 0)  # offset of the local header
    path.write_bytes(content)
    assert refused(path, temporary) == "zip-bomb"


@pytest.mark.row(25)
def test_too_large_and_too_deep(tmp_path: Path, temporary: Path) -> None:
    path = pack(tmp_path / "x.zip", {"a": os.urandom(1000), "b": os.urandom(1000)})
    assert refused(path, temporary, Limits(total_bytes=1999)) == "too-large"
    with extracted(path, Limits(total_bytes=2000)):
        pass
    deep = pack(tmp_path / "deep.zip", {"/".join("abcdefghijklm"): b"1"})
    assert refused(deep, temporary) == "nested-too-deep"


@pytest.mark.row(25)
def test_more_than_the_disk_holds(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "x.zip", {"a": os.urandom(1000)})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1999))
    assert refused(path, temporary, Limits(spare_disk_bytes=1000)) == "disk-full"
    with extracted(path, Limits(spare_disk_bytes=999)):
        pass


@pytest.mark.row(25)
@pytest.mark.parametrize("name", ["more.zip", "a/more.TAR.GZ"])
def test_archives_in_archives(tmp_path: Path, temporary: Path, name: str) -> None:
    assert refused(pack(tmp_path / "x.zip", {name: b"1"}), temporary) == "nested-archive"


@pytest.mark.row(25)
def test_unusual_compression(tmp_path: Path, temporary: Path) -> None:
    path = pack(tmp_path / "x.zip", {"a": b"1" * 100}, zipfile.ZIP_LZMA)
    assert refused(path, temporary) == "unsupported-compression"


@pytest.mark.row(25)
@pytest.mark.parametrize("files", [{}, {"__MACOSX/._a": b"1"}, {"folder/": b""}])
def test_an_empty_zip(tmp_path: Path, temporary: Path, files: dict[str, bytes]) -> None:
    assert refused(pack(tmp_path / "x.zip", files), temporary) == "empty-zip"


def cut(content: bytearray) -> None:
    del content[len(content) // 2 :]


def flip(content: bytearray) -> None:
    content[60] ^= 0xFF  # in the packed bytes: the CRC tells


def shorten(content: bytearray) -> None:
    """The directory says that the file is shorter than it is."""
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 100)


def lengthen(content: bytearray) -> None:
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 5000)


@pytest.mark.row(25)
@pytest.mark.parametrize("damage", [cut, flip, shorten, lengthen])
def test_damaged_zips_leave_nothing(
    tmp_path: Path, temporary: Path, damage: Callable[[bytearray], None]
) -> None:
    path = pack(tmp_path / "x.zip", {"a": os.urandom(1000)}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)
    with pytest.raises(InputError) as caught, extracted(path):
        pytest.fail("it was extracted")
    assert caught.value.code == "bad-zip" and not list(temporary.iterdir())


def test_no_zip_at_all(tmp_path: Path, temporary: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"PK\x03\x04 but no more")
    assert refused(path, temporary) == "bad-zip"
    assert refused(tmp_path / "none.zip", temporary) == "not-found"


@pytest.mark.fault("disk full")
def test_a_full_disk_while_unpacking_leaves_nothing(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "x.zip", {"a": b"1", "b": b"2"})
    original = Path.open

    def full(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        if self.name == "b" and "x" in mode:
            raise OSError(28, "No space left on device")
        return original(self, mode, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ResourceError) as caught, extracted(path):
        pytest.fail("it was extracted")
    assert caught.value.code == "disk-full" and not list(temporary.iterdir())


def test_no_room_for_a_temporary_folder_is_a_matter_of_resources(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even an empty folder can be made: the disk is full, or the folder is gone."""
    path = pack(tmp_path / "x.zip", {"a": b"1"})
    temporary.rmdir()
    for _ in range(2):
        with pytest.raises(ResourceError) as caught, extracted(path):
            pytest.fail("it was extracted")
        assert caught.value.exit_code == 5 and caught.value.path == str(path)
        assert str(temporary) in caught.value.cause and "TMPDIR" in caught.value.next_step
        temporary.write_text("")  # a file where a folder is expected
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    with pytest.raises(ResourceError, match="TMPDIR"), extracted(path):
        pytest.fail("it was extracted")


@pytest.mark.ci
@pytest.mark.parametrize("limit", [0, 2**16])
def test_files_that_do_not_fit_leave_nothing(tmp_path: Path, temporary: Path, limit: int) -> None:
    """A limit of the size of files acts as a full disk does, in every call of the system."""
    code = (
        "import sys; from pathlib import Path; from kidseg.io import read\n"
        "try: read(Path(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    path = pack(tmp_path / "x.zip", {"a.nii": os.urandom(2**18)})
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.stdout.startswith("ResourceError") and "TMPDIR" in done.stdout
    assert not list(temporary.iterdir())


def test_a_zip_and_a_folder_with_names_that_are_not_utf8(tmp_path: Path, temporary: Path) -> None:
    name = os.fsdecode(b"M\xfcller")
    folder = tmp_path / name
    folder.mkdir()
    inner = save(scan(), folder / f"{name}.nii.gz")
    packed = pack(folder / f"{name}.zip", {"a.nii.gz": inner.read_bytes()})
    assert torch.equal(read(packed).volume.data, read(inner).volume.data)
    cut = pack(folder / f"cut {name}.zip", {"a.nii.gz": inner.read_bytes()[:-9]})
    with pytest.raises(InputError) as caught:
        read(cut)
    str(caught.value).encode("utf-8")
    assert not list(temporary.iterdir())
