"""Errors that are shown to the user: the cause, and what can be done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["CancelledError", "KidSegError", "error_from", "note_from", "readable"]

_OPTION = re.compile(r"(?<!\w)--[a-z]")


class KidSegError(Exception):
    """A segmentation that cannot be made.

    Args:
        cause: the problem in one sentence.
        next_step: what the user can do about it.
        code: stable name of the cause, for programs and tests.
        details: for a report of the problem, such as the last lines of a log.
    """

    def __init__(
        self, cause: str, next_step: str = "", *, code: str = "", details: str = ""
    ) -> None:
        self.cause, self.next_step, self.code, self.details = cause, next_step, code, details
        sentence = cause[:1].upper() + cause[1:].rstrip(".") + "."
        super().__init__(f"{sentence} {next_step}".strip())


class CancelledError(KidSegError):
    """The user cancelled."""

    def __init__(self) -> None:
        super().__init__("cancelled", code="cancelled")


def error_from(record: Mapping[str, Any], names: Mapping[str, str]) -> KidSegError:
    """The error that kidseg describes in JSON, with its own cause and next step.

    Args:
        record: "cause" or "detail", "next_step", "code", and maybe "path".
        names: {path: name that the user knows}.
    """
    cause = str(record.get("cause") or record.get("detail") or "kidseg failed")
    if path := record.get("path"):
        cause = f"{path}: {cause}"
    return KidSegError(
        readable(cause, names),
        _step(record, names),
        code=str(record.get("code") or ""),
    )


def note_from(finding: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """A finding of kidseg in a sentence or two: cause and next step."""
    return str(KidSegError(readable(str(finding.get("cause", "")), names), _step(finding, names)))


def _step(record: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The next step; options that this module does not have are said to be of a command line."""
    step = readable(str(record.get("next_step") or ""), names)
    return f"{step} (In a terminal, with the command kidseg.)" if _OPTION.search(step) else step


def readable(text: str, names: Mapping[str, str]) -> str:
    """The text with the names that the user knows instead of temporary paths."""
    for path in sorted(names, key=len, reverse=True):
        text = text.replace(path, names[path])
    return text
