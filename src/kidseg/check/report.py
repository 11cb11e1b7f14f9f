"""What a check found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kidseg.errors import Finding, InputError

__all__ = ["Report"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is wrong or odd with a data set or a scan, and what it is like.

    Attributes:
        path: what was checked.
        kind: what it is.
        n_cases: labelled and unlabelled; 1 for a scan.
        findings: of the data set, then of each case in the order of their names.
        facts: plain data: sizes, spacing, volumes of the labels.
    """

    path: Path
    kind: Literal["dataset", "scan"]
    n_cases: int
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that make it unfit for use."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def ok(self) -> bool:
        """Is there no error?"""
        return not self.errors

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "ok": self.ok,
            "n_cases": self.n_cases,
            "findings": [finding.as_dict() for finding in self.findings],
            "facts": dict(self.facts),
        }

    def raise_for_errors(self) -> None:
        """Nothing if it is sound.

        Raises:
            InputError: the first error, with its code, and how many more there are.
        """
        if not self.ok:
            first, more = self.errors[0], len(self.errors) - 1
            raise InputError(
                first.cause + (f" (and {more} more error(s))" if more else ""),
                path=first.path,
                next_step=first.next_step,
                code=first.code,
            )
