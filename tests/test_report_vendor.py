"""Files of npm packages are fetched only as they were released."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from kidseg.report.vendor import NpmFile, _member, fetch

CONTENT = b"let a = 1;"


def packed(content: bytes = CONTENT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        entry = tarfile.TarInfo("package/dist/a.js")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


ARCHIVE = packed()
FILE = NpmFile(
    package="a",
    version="1.0.0",
    integrity=base64.b64encode(hashlib.sha512(ARCHIVE).digest()).decode(),
    member="package/dist/a.js",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="none",
)


def test_the_file_of_the_expected_archive_is_taken() -> None:
    assert _member(ARCHIVE, FILE) == CONTENT and FILE.name == "a.js"


def test_another_archive_or_file_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"the archive is not that of 1\.0\.0"):
        _member(packed(b"let a = 2;"), FILE)
    with pytest.raises(RuntimeError, match="is not the expected file"):
        _member(ARCHIVE, replace(FILE, sha256="0" * 64))


def test_a_file_that_is_there_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without npm
    (tmp_path / "a.js").write_bytes(CONTENT)
    assert fetch(FILE, tmp_path) == tmp_path / "a.js"
    (tmp_path / "a.js").write_bytes(b"altered")
    with pytest.raises(RuntimeError, match="by npm, which is not installed"):
        fetch(FILE, tmp_path)
    assert (tmp_path / "a.js").read_bytes() == b"altered"
