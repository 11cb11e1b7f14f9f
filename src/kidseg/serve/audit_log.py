"""The audit log: what was done for whom, line by line, each sealed with the line before.

It has ids, codes and numbers only: no patient data, and no name that a client gave to anything.
A line that was altered, removed or inserted breaks the chain of digests.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kidseg.errors import ModelError, is_disk_full
from kidseg.io.atomic import disk_full
from kidseg.records import canonical

__all__ = ["AuditLog", "verify_audit_log"]

_START = "0" * 64


@dataclass
class AuditLog:
    """An append-only log in a file.

    Attributes:
        path: of the file; JSON lines.
    """

    path: Path
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _last: str = _START

    @classmethod
    def opened(cls, path: Path) -> AuditLog:
        """Open a log, or begin one. A last line that was cut off is completed as such.

        Raises:
            ModelError: "audit-altered".
        """
        last = verify_audit_log(path)
        log = cls(path, _last=last)
        if path.exists() and _ends_within_a_line(path):
            with path.open("ab") as file:
                file.write(b"\n")
            log.write("cut-off")
        return log

    def write(self, event: str, **facts: str | int | float | bool | None) -> None:
        """Append an event, and wait until it is on the disk.

        Args:
            event: what happened, kebab-case.
            facts: ids, codes and numbers.

        Raises:
            ResourceError: "disk-full"; nothing of the line stays, so that the next one follows the
                last whole one.
        """
        with self._lock:
            entry = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "event": event,
                **facts,
                "previous": self._last,
            }
            digest = hashlib.sha256(canonical(entry)).hexdigest()
            line = json.dumps({**entry, "sha256": digest}) + "\n"
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                _append(descriptor, line.encode())
            except OSError as error:
                if is_disk_full(error):
                    raise disk_full(self.path) from error
                raise
            finally:
                os.close(descriptor)
            self._last = digest


def _append(descriptor: int, line: bytes) -> None:
    """Append a line to a file as a whole, or raise OSError."""
    size = os.fstat(descriptor).st_size
    try:
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def verify_audit_log(path: Path) -> str:
    """Verify the chain of a log; the digest of its last whole line, or zeros for an empty log.

    Raises:
        ModelError: "audit-altered"; the message names the line.
    """
    last, broken = _START, 0
    if not path.exists():
        return last
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            entry = _entry(line)
            if entry is None:
                if broken:
                    raise _altered(path, broken)
                broken = number  # as when the server was killed in it: the next line says so
                continue
            if entry.get("previous") != last or (broken and entry.get("event") != "cut-off"):
                raise _altered(path, broken or number)
            last, broken = str(entry["sha256"]), 0
    if broken and not _ends_within_a_line(path):
        raise _altered(path, broken)
    return last


def _entry(line: bytes) -> dict[str, Any] | None:
    """The content of a line; None if it is not as it was written."""
    try:
        entry = json.loads(line)
        content = {key: value for key, value in entry.items() if key != "sha256"}
        sound = entry["sha256"] == hashlib.sha256(canonical(content)).hexdigest()
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return entry if sound and line.endswith(b"\n") else None


def _ends_within_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return size > 0 and file.read(1) != b"\n"


def _altered(path: Path, line: int) -> ModelError:
    return ModelError(
        f"line {line} is not what the server wrote after the line before it",
        path=path,
        code="audit-altered",
        next_step="Keep this file apart for whoever is responsible, and start with a new one.",
    )
