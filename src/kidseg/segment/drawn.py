"""Slices of a scan whose labels somebody has drawn: they stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from kidseg.errors import Finding
from kidseg.geometry import Volume

__all__ = ["Drawn"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """The labels of some slices of a scan.

    Attributes:
        labels: (1, slices, rows, columns) uint8 on the scan's grid; only the drawn slices count.
        slices: (slices,) bool: which are drawn.
        facts: plain data about them, for result.json.
        findings: what the reader of the result should know of them.
    """

    labels: Volume
    slices: torch.Tensor
    facts: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    def over(self, labels: Volume) -> Volume:
        """The drawn slices, and other labels in the slices between."""
        data = torch.where(self.slices[None, :, None, None], self.labels.data, labels.data)
        return Volume(data, labels.grid)
