"""Every way kidseg refuses, and what it noticed without refusing.

One tree of exceptions: each class carries the exit code of the command line and the status of the
server, so that neither translates anything. Each message names the file, the cause and the next
step. A `Finding` is the same three things for what did not stop the work; findings are returned,
never printed and forgotten, and reach `result.json`.
"""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

__all__ = [
    "DISK_FULL",
    "BatchError",
    "Finding",
    "InputError",
    "KidsegError",
    "KidsegWarning",
    "ModelError",
    "ResourceError",
    "UsageError",
]

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Error numbers of a disk, or of a quota, with no room left."""

Severity = Literal["warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something noticed about an input.

    `code` is a stable kebab-case name ("anisotropic-voxels") for programs; `cause` and `next_step`
    are sentences for people. `path` is the file or folder it is about.
    """

    code: str
    path: str
    cause: str
    next_step: str = ""
    severity: Severity = "warning"

    def __str__(self) -> str:
        return _sentence(self.path, self.cause, self.next_step)

    def as_dict(self) -> dict[str, str]:
        """As plain data, for JSON."""
        return asdict(self)


class KidsegWarning(UserWarning):
    """How `kidseg.load` passes a `Finding` to a Python user who did not ask for findings."""


class KidsegError(Exception):
    """Base of every error that kidseg raises on purpose.

    Args:
        cause: what is wrong, in one sentence, without the path.
        path: the file or folder at fault.
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
        self.cause = cause
        self.path = None if path is None else str(path)
        self.next_step = next_step
        self.code = code
        super().__init__(_sentence(self.path, cause, next_step))

    def as_finding(self) -> Finding:
        """This error as one entry of a list of problems, for `kidseg check`."""
        return Finding(
            code=self.code or type(self).__name__,
            path=self.path or "",
            cause=self.cause,
            next_step=self.next_step,
            severity="error",
        )


class UsageError(KidsegError):
    """The command was called wrongly: an unknown option value, an output that already exists."""

    exit_code = 2
    http_status = 400


class InputError(KidsegError):
    """A file or data set is not sound, or is not what was asked for."""

    exit_code = 3
    http_status = 422


class BatchError(KidsegError):
    """Some cases of a batch failed; the others are done."""

    exit_code = 4
    http_status = 500


class ResourceError(KidsegError):
    """Not enough memory or disk."""

    exit_code = 5
    http_status = 507


class ModelError(KidsegError):
    """A model or a stored state is damaged, altered or of another version."""

    exit_code = 6
    http_status = 500


def _sentence(path: str | None, cause: str, next_step: str) -> str:
    text = f"{path}: {cause}" if path else cause
    if next_step:
        text = f"{text.rstrip('.')}. {next_step}"
    return text
