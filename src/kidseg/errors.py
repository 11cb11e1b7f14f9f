"""Exceptions, and findings that do not stop the work.

Each exception class carries the exit code of the command line and the HTTP status of the server.
Each message states the file, the cause and the next step. A `Finding` states the same without
stopping the work; findings are returned, not printed, and are written to `result.json`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

__all__ = [
    "BatchError",
    "DivergedError",
    "Finding",
    "InputError",
    "KidsegError",
    "KidsegWarning",
    "ModelError",
    "ResourceError",
    "Severity",
    "UsageError",
    "converted",
    "counted",
    "first_error",
    "is_disk_full",
    "is_out_of_memory",
    "not_found",
    "printable",
    "quoted",
    "renamed",
]

# A full disk, an exceeded quota, or an exceeded limit of the size of a file.
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

# Control characters except tab and newline, and surrogates, which have no UTF-8 form.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_MAX_QUOTED = 60

# Source: torch, c10/core/impl/alloc_cpu.cpp and c10/cuda/CUDACachingAllocator.cpp.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")

Severity = Literal["warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """An observation about an input.

    `code` is a stable kebab-case name ("anisotropic-voxels") for programs; `cause` and `next_step`
    are sentences for people. `path` is the file or folder concerned. All are `printable`.
    """

    code: str
    path: str
    cause: str
    next_step: str = ""
    severity: Severity = "warning"

    def __post_init__(self) -> None:
        for name in ("path", "cause", "next_step"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    def __str__(self) -> str:
        return _sentence(self.path, self.cause, self.next_step)

    def as_dict(self) -> dict[str, str]:
        """As plain data, for JSON."""
        return asdict(self)


def printable(text: str) -> str:
    """The text with escapes for what cannot be printed.

    Python represents a byte of a file name that is not UTF-8 as a surrogate (U+DC80 to U+DCFF),
    here written as that byte, such as `\\xfc`. Control characters, which could disturb a terminal,
    become escapes too.
    """
    return _UNPRINTABLE.sub(_escape, text)


def quoted(text: str) -> str:
    """Text from a file in quotation marks, shortened to about 60 characters."""
    text = printable(text).replace("\n", "\\n")
    return f"'{text}'" if len(text) <= _MAX_QUOTED else f"'{text[:_MAX_QUOTED]}...'"


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    code -= 0xDC00 if 0xDC80 <= code <= 0xDCFF else 0  # the byte that it stands for
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class KidsegWarning(UserWarning):
    """Category of the warnings by which `kidseg.load` reports findings."""


class KidsegError(Exception):
    """Base class of all errors raised by kidseg.

    Args:
        cause: the problem in one sentence, without the path.
        path: the file or folder concerned; its attribute is `printable`, as all text.
        next_step: what the user can do about it.
        code: stable kebab-case name of the cause, for programs and tests.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(
        self,
        cause: str,
        *,
        path: str | Path | None = None,
        next_step: str = "",
        code: str = "",
    ) -> None:
        self.cause = printable(cause)
        self.path = None if path is None else printable(str(path))
        self.next_step = printable(next_step)
        self.code = code
        super().__init__(_sentence(self.path, self.cause, self.next_step))

    def as_finding(self) -> Finding:
        """Convert this error to a finding, for `kidseg check`."""
        return Finding(
            code=self.code or type(self).__name__,
            path=self.path or "",
            cause=self.cause,
            next_step=self.next_step,
            severity="error",
        )


class UsageError(KidsegError):
    """Invalid call: an unknown option value, an output that already exists."""

    exit_code = 2
    http_status = 400


class InputError(KidsegError):
    """A file or data set is invalid, or not of the requested kind."""

    exit_code = 3
    http_status = 422


class BatchError(KidsegError):
    """Some cases of a batch failed; the others are complete."""

    exit_code = 4
    http_status = 500


class ResourceError(KidsegError):
    """Not enough memory or disk space."""

    exit_code = 5
    http_status = 507


class ModelError(KidsegError):
    """A model or a stored state is damaged, modified or of another version."""

    exit_code = 6
    http_status = 500


class DivergedError(ModelError):
    """The values of a network are NaN or infinite, so that nothing can be computed from them."""


def first_error(findings: Iterable[Finding], step: str = "") -> InputError | None:
    """The first of the findings that are errors, as an exception; None if there is none.

    Args:
        findings: errors and warnings.
        step: what lists the other errors, added to the next step.
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return None
    first, more = errors[0], len(errors) - 1
    return InputError(
        first.cause + (f" (and {more} more problem(s))" if more else ""),
        path=first.path or None,
        code=first.code,
        next_step=f"{first.next_step} {step}".strip(),
    )


def not_found(path: str | Path, what: str = "file or folder") -> InputError:
    """The error for a path at which there is nothing, or a link that leads nowhere."""
    is_link = os.path.islink(path)  # noqa: PTH114 - False for a name that is not a path at all
    return InputError(
        "it is a link to a file that is not there" if is_link else f"no such {what}",
        path=path,
        code="not-found",
        next_step="Fetch the file (git annex get, datalad get), or remove the link."
        if is_link
        else "Check the path.",
    )


def counted(codes: Mapping[str, int]) -> str:
    """Numbers of findings by code, in words: "4 thick slices, 1 labels in air"; "" for none."""
    return ", ".join(f"{n} {code.replace('-', ' ')}" for code, n in codes.items())


def renamed(error: KidsegError, old: str, new: str) -> KidsegError:
    """The same error about another path, such as that of an output instead of a temporary file."""
    return type(error)(
        error.cause.replace(old, new),
        path=None if error.path is None else error.path.replace(old, new),
        next_step=error.next_step.replace(old, new),
        code=error.code,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Is it a MemoryError, or torch's RuntimeError for the lack of memory on any device?"""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(w in str(error).lower() for w in _NO_MEMORY)
    )


def is_disk_full(error: BaseException) -> bool:
    """Is it an OSError for the lack of disk space, or the ResourceError "disk-full"?"""
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL
    return isinstance(error, ResourceError) and error.code == "disk-full"


def converted(error: Exception, path: str | Path | None = None) -> KidsegError | None:
    """Convert a system's error to a KidsegError; None if it is neither about memory nor a file.

    Args:
        error: MemoryError, torch's RuntimeError for the lack of it, or OSError.
        path: concerned, unless the error names another.
    """
    text = str(error)
    if is_out_of_memory(error):
        return ResourceError(
            f"not enough memory: {text.splitlines()[0]}" if text else "not enough memory",
            path=path,
            next_step="Use --device cpu, or a GPU with more memory."
            if "CUDA" in text
            else "Use fewer --jobs or a larger machine.",
            code="out-of-memory",
        )
    if not isinstance(error, OSError):
        return None
    named = error.filename if isinstance(error.filename, str) else path
    if is_disk_full(error):
        return ResourceError(
            "the disk is full",
            path=named,
            next_step="Free some space and run again with --overwrite.",
            code="disk-full",
        )
    if named is None:
        return None
    return InputError(
        f"cannot be read or written ({error.strerror or error})",
        path=named,
        next_step="Check its name and permissions.",
        code="not-accessible",
    )


def _sentence(path: str | None, cause: str, next_step: str) -> str:
    text = f"{path}: {cause}" if path else cause
    if next_step:
        text = f"{text.rstrip('.')}. {next_step}"
    return text
