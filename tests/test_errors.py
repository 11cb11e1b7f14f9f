from __future__ import annotations

from pathlib import Path

import pytest

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


def test_path_and_next_step_may_be_missing() -> None:
    assert str(errors.UsageError("no such option")) == "no such option"
    assert errors.UsageError("no such option").as_finding().code == "UsageError"
