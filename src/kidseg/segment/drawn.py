"""Slices of a scan whose labels somebody has drawn: they stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kidseg.errors import Finding
from kidseg.geometry import Volume

__all__ = ["Drawn"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """The labels of some slices of a scan.

    Attributes:
        labels: (1, slices, rows, columns) uint8 on the scan's grid.
        voxels: (slices, rows, columns) bool: whose labels are drawn; the others do not count.
        facts: plain data about them, for result.json.
        findings: what the reader of the result should know of them.
    """

    labels: Volume
    voxels: Tensor
    facts: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @cached_property
    def slices(self) -> Tensor:
        """(slices,) bool: which are drawn as a whole."""
        return self.voxels.flatten(1).all(1)

    def over(self, labels: Volume) -> Volume:
        """What is drawn, and other labels elsewhere."""
        data = torch.where(self.voxels[None], self.labels.data, labels.data)
        return Volume(data, labels.grid)
