"""The protocol of what a store keeps of each case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kidseg.geometry import Volume

if TYPE_CHECKING:
    from kidseg.cases import Case
    from kidseg.cases.reading import CaseVoxels

__all__ = ["Prepared", "Recipe"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """What is stored of one case.

    Attributes:
        image: (channels, slices, rows, columns).
        labels: (1, slices, rows, columns) uint8, on the image's grid or on another one.
        arrays: further arrays by name.
        facts: further plain data, for JSON.
    """

    image: Volume
    labels: Volume
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Recipe(Protocol):
    """Turns a case's voxels into what is stored; picklable, so that several processes can use it.

    `content` names the result. `settings` are the plain data that determine it besides the plan.
    Two stores of the same data set and plan are identical if their content and settings are equal.
    """

    @property
    def content(self) -> str:
        """Name of the result."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings as JSON returns them: lists, not tuples."""
        ...

    def __call__(self, case: Case, voxels: CaseVoxels) -> Prepared:
        """Prepare one case."""
        ...
