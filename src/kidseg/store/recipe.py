"""What a store keeps of each case: the scan's own voxels, nnU-Net's, or what a method makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from kidseg.errors import UsageError
from kidseg.geometry import Volume
from kidseg.plan import Plan, preprocess

if TYPE_CHECKING:
    from kidseg.cases import Case
    from kidseg.cases.reading import CaseVoxels

__all__ = ["Content", "Prepared", "Recipe", "recipe_of"]

Content = Literal["voxels", "2d", "3d_fullres"]
"""What this room makes itself: the scan's voxels (HU), or those of a configuration of the plan."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """What is stored of one case.

    Attributes:
        image: (channels, slices, rows, columns).
        labels: (1, slices, rows, columns) uint8; as many slices, rows and columns may differ.
        arrays: more of them, by name.
        facts: more plain data, for JSON.
    """

    image: Volume
    labels: Volume
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Recipe(Protocol):
    """What is made of a case's voxels; can be pickled, for several processes.

    `content` names what comes out, `settings` are plain data that decide it, beside the plan: two
    stores of the same data set are the same if these are.
    """

    @property
    def content(self) -> str:
        """Its name."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """As JSON gives them back: lists, no tuples."""
        ...

    def __call__(self, case: Case, voxels: CaseVoxels) -> Prepared:
        """Make it."""
        ...


def recipe_of(content: Content | Recipe, plan: Plan) -> Recipe:
    """The recipe that is meant.

    Raises:
        UsageError: "no-such-configuration": the plan does not have it.
    """
    if not isinstance(content, str):
        return content
    if content == "voxels":
        return _Voxels()
    if content not in plan.configurations:
        raise UsageError(f"the plan has no '{content}'", code="no-such-configuration")
    return _Configured(content, plan)


@dataclass(frozen=True)
class _Voxels:
    """The scan's own voxels, HU as int16 where that holds them."""

    content: str = "voxels"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, case: Case, voxels: CaseVoxels) -> Prepared:
        assert voxels.labels is not None
        image = Volume(_compact(voxels.image.data), voxels.image.grid)
        return Prepared(image=image, labels=voxels.labels)


@dataclass(frozen=True)
class _Configured:
    """What nnU-Net's preprocessing makes of it, and the labels as the file has them."""

    content: str
    plan: Plan
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, case: Case, voxels: CaseVoxels) -> Prepared:
        done = preprocess(voxels.image, voxels.labels, self.plan, self.content)
        assert done.labels is not None and voxels.labels is not None
        reference = voxels.labels.data.numpy()
        return Prepared(image=done.image, labels=done.labels, arrays={"reference": reference})


def _compact(data: torch.Tensor) -> torch.Tensor:
    """As int16 where that changes no value, else as float32."""
    short = data.to(torch.int16)
    return short if torch.equal(short.to(data.dtype), data) else data.to(torch.float32)
