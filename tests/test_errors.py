from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kidseg import errors


@pytest.mark.parametrize(
    ("kind", "exit_code", "http_status"),
    [
        (errors.UsageError, 2, 400),
        (errors.InputError, 3, 422),
        (errors.BatchError, 4, 500),
        (errors.ResourceError, 5, 507),
        (errors.ModelError, 6, 500),
    ],
)
def test_each_class_carries_its_codes(
    kind: type[errors.KidsegError], exit_code: int, http_status: int
) -> None:
    assert (kind.exit_code, kind.http_status) == (exit_code, http_status)
    assert issubclass(kind, errors.KidsegError)


def test_a_message_names_file_cause_and_next_step() -> None:
    error = errors.InputError(
        "ends too early.", path=Path("a/b.nii.gz"), next_step="Copy it again.", code="truncated"
    )
    assert str(error) == "a/b.nii.gz: ends too early. Copy it again."
    finding = error.as_finding()
    assert finding.severity == "error"
    assert finding.as_dict() == {
        "code": "truncated",
        "path": "a/b.nii.gz",
        "cause": "ends too early.",
        "next_step": "Copy it again.",
        "severity": "error",
    }


def test_a_full_disk_is_known_as_an_error_of_the_system_and_of_kidseg() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert errors.is_disk_full(OSError(number, "full"))
        assert errors.is_disk_full(errors.converted(OSError(number, "full")) or ValueError())
    for other in (
        OSError(errno.EACCES, "denied"),
        errors.ResourceError("a worker was killed", code="worker-killed"),
        errors.InputError("a name", code="disk-full"),
        ValueError(),
    ):
        assert not errors.is_disk_full(other)


def test_path_and_next_step_may_be_missing() -> None:
    assert str(errors.UsageError("no such option")) == "no such option"
    assert errors.UsageError("no such option").as_finding().code == "UsageError"


# ---- names and quotations that cannot be printed -----------------------------------------------


@given(st.binary(max_size=30))
def test_any_name_of_a_file_can_be_printed(name: bytes) -> None:
    path = os.fsdecode(name)
    error = errors.InputError(f"its file {path}", path=path, next_step=path)
    finding = errors.Finding(code="x", path=path, cause=path, next_step=path)
    for text in (str(error), error.path, str(finding), *finding.as_dict().values()):
        assert text is not None
        text.encode("utf-8")
        assert not any(ord(c) < 32 and c not in "\t\n" for c in text)
    assert error.as_finding().path == finding.path == replace(finding, code="y").path


def test_what_can_be_printed_is_unchanged_and_a_byte_is_shown_as_one() -> None:
    for text in ("Kinder Überweisung 患者 ✓", "C:\\scans\n\tb", ""):
        assert errors.printable(text) == text
    assert errors.printable(os.fsdecode(b"M\xfcller")) == "M\\xfcller"
    assert errors.printable("\x1b[31m\ud800") == "\\x1b[31m\\ud800"


def test_a_quotation_is_short_and_on_one_line() -> None:
    assert errors.quoted("a b") == "'a b'"
    assert errors.quoted("a\nb\0") == "'a\\nb\\x00'"
    assert len(errors.quoted("x" * 10_000)) < 70 and errors.quoted("x" * 10_000).endswith("...'")
