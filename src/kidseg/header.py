"""Sealed tensor files, models and training states, verified without torch.

A file is in safetensors format: the length of the head, the head (layout of the tensors, and one
metadata entry with the file's own header, JSON), then the bytes of the tensors. The header carries
the SHA-256 of everything in the file but the digest itself, so that no altered digit of a setting
and no altered bit of a weight passes.

Source: safetensors, "Format" in its README; the limit of the head is its own.
"""

from __future__ import annotations

import hashlib
import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from kidseg.errors import KidsegWarning, ModelError
from kidseg.records import SEAL, Record, checked, parsed

__all__ = [
    "FOREGROUND",
    "FORMAT",
    "KEY",
    "MEMBERS",
    "ONLY_IN",
    "OnlyIn",
    "decision_of",
    "described_member",
    "described_members",
    "read_header",
    "read_sealed",
    "seal",
]

FORMAT = 2
"""Version of the format; other versions are refused. Format 1 sealed the tensors alone."""

KEY = "kidseg"
"""Key of the header in the metadata of a model file."""

MEMBERS = "members"
"""Entry of the header of an ensemble: the headers of its members; see `kidseg.members`."""

ONLY_IN = "only_in"
"""Entry of the header of a member that counts in some scans only."""

OnlyIn = Literal["slabs", "stacks"]
"""The scans in which a member counts, if it does not in all; see `kidseg.members`."""

FOREGROUND = "all channels together"
"""What is compared with the background; of a calibration, entry "foreground" of its record."""

_MOST_HEAD = 100_000_000
_BLANK = "0" * 64
_REPAIR = "Copy the file again, or train the model again."


@dataclass(frozen=True, kw_only=True)
class _Entry(Record):
    """A tensor in the head."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def decision_of(header: Mapping[str, Any], path: object) -> dict[str, float]:
    """The weights in the header of a model; {} if an earlier version of kidseg chose them.

    That one compared each channel with the background, so that its weights mean something else; a
    warning says that they are not used.
    """
    known = dict(header.get("decision", {}))
    record = header.get("calibration")
    if known and record is not None and dict(record).get("foreground") != FOREGROUND:
        warnings.warn(
            f"{path}: its decision was calibrated by an earlier version of kidseg, whose weights"
            " mean something else; they are not used. Calibrate again: kidseg calibrate.",
            KidsegWarning,
            stacklevel=3,
        )
        return {}
    return known


def described_members(header: Mapping[str, Any]) -> str:
    """The members of an ensemble by number and method; "" for other models.

    Example: "0 plain, 1 homogenized (stacks only)"
    """
    members = header.get(MEMBERS, ())
    return ", ".join(f"{k} {described_member(member)}" for k, member in enumerate(members))


def described_member(header: Mapping[str, Any]) -> str:
    """The method of a member, and the scans in which it counts, "homogenized (stacks only)"."""
    only_in = header.get(ONLY_IN)
    return f"{header.get('method')}{f' ({only_in} only)' if only_in else ''}"


def seal(payload: bytes, key: str) -> bytes:
    """A file with its digest filled in.

    Args:
        payload: of safetensors, whose metadata has the header (JSON) at `key`, with a blank digest.
        key: of the header.
    """
    (length,) = struct.unpack("<Q", payload[:8])
    head = payload[8 : 8 + length]
    blank = _sealed_start(key, _BLANK)
    assert head.count(blank) == 1, "the header begins with a blank digest"
    digest = _digest(head, payload[8 + length :])
    filled = head.replace(blank, _sealed_start(key, digest))
    return payload[:8] + filled + payload[8 + length :]


def with_blank_seal(header: Mapping[str, Any]) -> str:
    """A header as text, with a blank digest for `seal` to fill in."""
    assert SEAL not in header
    return json.dumps({SEAL: _BLANK, **header})


def read_header(path: Path) -> dict[str, Any]:
    """Read the header of a model file after verifying the whole file against its digest.

    Raises:
        ModelError: "unreadable"; "damaged-model": truncated, altered, or no kidseg model;
            "other-format": written by an earlier or a later version.
    """
    return read_sealed(path)[0]


def read_sealed(
    path: Path, key: str = KEY, *, code: str = "damaged-model", next_step: str = _REPAIR
) -> tuple[dict[str, Any], bytes]:
    """The header and all bytes of a sealed file, verified.

    Nothing is allocated that the file's own size does not warrant.

    Args:
        path: of the file.
        key: of its header.
        code: of the error for a damaged file.
        next_step: of that error.

    Raises:
        ModelError: "unreadable"; `code`; "other-format".
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head, header = _read_head(file, size, key)
            if header.get("format") != FORMAT:
                raise _other_format(path, header.get("format"))
            body = file.read()
        payload = struct.pack("<Q", len(head)) + head + body
        known = header.get(SEAL)
        if not isinstance(known, str) or head.count(_sealed_start(key, known)) != 1:
            raise ValueError("it has no checksum")
        blank = head.replace(_sealed_start(key, known), _sealed_start(key, _BLANK))
        if known != _digest(blank, body):
            raise ValueError("it was altered: it does not match its checksum")
    except OSError as error:
        raise ModelError(
            f"cannot be read: {error.strerror}",
            path=path,
            next_step="Check its name and permissions.",
            code="unreadable",
        ) from error
    except ValueError as error:
        what = "model" if key == KEY else "training state"
        raise ModelError(
            f"not a complete kidseg {what}: {error}", path=path, next_step=next_step, code=code
        ) from error
    return header, payload


def _read_head(file: BinaryIO, size: int, key: str) -> tuple[bytes, dict[str, Any]]:
    """The head of a file as bytes, and the header in it; the sizes must be those of the file.

    Raises:
        ValueError: they are not, or there is no header.
    """
    start = file.read(8)
    if len(start) < 8:
        raise ValueError("it is truncated")
    (length,) = struct.unpack("<Q", start)
    if not 2 <= length <= min(size - 8, _MOST_HEAD):
        raise ValueError("it is truncated, or another kind of file")
    head = file.read(length)
    layout = parsed(head)
    metadata = layout.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get(key), str):
        raise ValueError("another kind of file")
    entries = checked(dict[str, _Entry], layout)
    end = max((entry.data_offsets[1] for entry in entries.values()), default=0)
    if 8 + length + end != size:
        raise ValueError(f"it has {size} bytes, but its head describes {8 + length + end}")
    return head, parsed(metadata[key].encode())


def _sealed_start(key: str, digest: str) -> bytes:
    """The start of the header as it stands in the head, JSON within JSON; nowhere else in it."""
    return f'"{key}":"{{\\"{SEAL}\\": \\"{digest}\\"'.encode()


def _digest(head: bytes, body: bytes) -> str:
    digest = hashlib.sha256(struct.pack("<Q", len(head)))
    digest.update(head)
    digest.update(body)
    return digest.hexdigest()


def _other_format(path: Path, found: object) -> ModelError:
    later = isinstance(found, int) and found > FORMAT
    return ModelError(
        f"format {found!r:.20} is not supported; this kidseg reads format {FORMAT}",
        path=path,
        next_step="Install a newer kidseg."
        if later
        else "It was written by an earlier version of kidseg: train the model again.",
        code="other-format",
    )
