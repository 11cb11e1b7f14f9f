"""What commands read of an entry in `result.json`: an altered one is refused by its field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kidseg.records import PartialRecord, checked

__all__ = ["check_entry"]


@dataclass(frozen=True, kw_only=True)
class _Structure(PartialRecord):
    interval_ml: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class _Slice(PartialRecord):
    slice: int


@dataclass(frozen=True, kw_only=True)
class _Review(PartialRecord):
    structures: Mapping[str, _Structure]
    opinions: int
    level: float
    slices: tuple[_Slice, ...]
    interval: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Side(PartialRecord):
    volumes_ml: Mapping[str, float]
    partial: bool


@dataclass(frozen=True, kw_only=True)
class _Sides(PartialRecord):
    right: _Side
    left: _Side


@dataclass(frozen=True, kw_only=True)
class _Warning(PartialRecord):
    code: str
    cause: str
    next_step: str = ""


@dataclass(frozen=True, kw_only=True)
class _Start(PartialRecord):
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Completed(PartialRecord):
    sha256: str
    slices: int
    of: int
    steps: int
    start: _Start


@dataclass(frozen=True, kw_only=True)
class _Entry(PartialRecord):
    name: str
    outputs: tuple[str, ...]
    warnings: tuple[_Warning, ...] = ()
    volumes_ml: Mapping[str, float] = field(default_factory=dict)
    sides: _Sides | None = None
    review: _Review | None = None
    completed: _Completed | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)
    adapted: Mapping[str, Any] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


def check_entry(entry: Mapping[str, Any]) -> None:
    """Check the entry of a scan.

    Raises:
        ValueError: a field is missing or of another type; the message names scan and field.
    """
    try:
        # Names and paths may contain bytes that are not UTF-8, which pydantic does not take.
        text = json.dumps(entry, ensure_ascii=False).encode(errors="replace")
        checked(_Entry, json.loads(text))
    except ValueError as error:
        raise ValueError(f"'{entry.get('name')}': {error}") from None
