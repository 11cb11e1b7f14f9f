"""Records: the JSON that decides a result, sealed with a digest and checked when it is read.

A record carries "sha256", the digest of its other content, so that no altered value passes for the
written one. Its fields are then checked against a type by pydantic, so that content of another
version or origin is an error that names the field, not a failure somewhere else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kidseg.errors import ModelError

__all__ = [
    "AFRESH",
    "SEAL",
    "PartialRecord",
    "Record",
    "canonical",
    "checked",
    "parsed",
    "read_file",
    "sealed",
    "unsealed",
]

AFRESH = "Restore the file, or train from the start with --overwrite."
"""The next step if a file of a training is damaged."""

SEAL = "sha256"
"""Key of the digest in a sealed record."""


class Record:
    """Base of a dataclass that stands in a record: no unknown fields, and finite numbers."""

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", allow_inf_nan=False)


class PartialRecord:
    """Base of a dataclass with the fields that are read; the record may have more."""

    __pydantic_config__: ClassVar = ConfigDict(extra="ignore", allow_inf_nan=False)


T = TypeVar("T")


def canonical(content: Any) -> bytes:
    """Plain data as JSON; equal data give equal bytes."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def digest_of(content: Mapping[str, Any], *more: bytes) -> str:
    """SHA-256 of a record without its seal, and of the bytes it speaks for."""
    digest = hashlib.sha256(canonical({k: v for k, v in content.items() if k != SEAL}))
    for each in more:
        digest.update(b"\n")
        digest.update(each)
    return digest.hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its digest."""
    return {**content, SEAL: digest_of(content)}


def parsed(text: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: not JSON, nested too deeply, a number beyond the range, or not an object.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def unsealed(text: bytes) -> dict[str, Any]:
    """A sealed record, its digest verified.

    Raises:
        ValueError: as `parsed`; the digest is missing or that of another content.
    """
    content = parsed(text)
    if content.get(SEAL) != digest_of(content):
        raise ValueError("was altered: it does not match its checksum")
    return content


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def checked(kind: type[T], content: Any) -> T:
    """Plain data as this type: a TypedDict, or a dataclass.

    Raises:
        ValueError: a field is missing, unknown or of another type; the message names it.
    """
    try:
        # Via JSON, where strict validation takes lists for tuples and texts for numeric keys.
        hashable: Any = kind
        found: T = _adapter(hashable).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"'{where}': {first['msg']}" if where else first["msg"]) from None
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not plain data ({error})") from None
    return found


def read_file(path: Path, *, code: str, next_step: str) -> bytes:
    """The content of a file that another command has written.

    Raises:
        ModelError: `code`: it is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot be read ({error.strerror})", path=path, code=code, next_step=next_step
        ) from error
