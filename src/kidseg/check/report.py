"""The result of a check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kidseg.errors import Finding

__all__ = ["Report"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """The findings about a data set or a scan, and its properties.

    Attributes:
        path: what was checked.
        kind: data set or scan.
        n_cases: labelled and unlabelled; 1 for a scan.
        findings: of the data set, then of each case, ordered by name.
        facts: plain data: sizes, spacing, volumes of the labels.
    """

    path: Path
    kind: Literal["dataset", "scan"]
    n_cases: int
    findings: tuple[Finding, ...]
    facts: Mapping[str, Any]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that prevent its use."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def ok(self) -> bool:
        """Are there no errors?"""
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
