"""Which images a model has learned from, by digests of their voxels in its header.

A digest tells whether an image that is at hand is among them, whatever its name and format, and
nothing else about it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kidseg.checkpoint import Model
from kidseg.cohort.stored import voxels_of
from kidseg.errors import ModelError
from kidseg.header import MEMBERS
from kidseg.records import Record, checked
from kidseg.store import StoredCase

__all__ = ["TrainedImages", "images_of_cases", "images_of_model"]

TRAINING_SET = "training_set"
"""Entry of the header that holds them, among other facts."""


@dataclass(frozen=True, kw_only=True)
class TrainedImages(Record):
    """The images that a model has learned from, or that have selected its weights.

    Attributes:
        voxels: `kidseg.cases.same_images.voxels_sha256` of each, sorted.
        complete: False if there may be others.
    """

    voxels: tuple[str, ...]
    complete: bool

    def joined(self, others: Collection[TrainedImages]) -> TrainedImages:
        """These and those of other models, from which a model has learned, too."""
        every = (self, *others)
        voxels = {digest for each in every for digest in each.voxels}
        return TrainedImages(
            voxels=tuple(sorted(voxels)), complete=all(each.complete for each in every)
        )


def images_of_cases(cases: Collection[StoredCase], start: Model | None) -> TrainedImages:
    """The images of a training: those of its cases, and of the model that is fine-tuned.

    Args:
        cases: of the store: training, validation and unlabelled.
        start: the model to fine-tune; None: there is none.

    Raises:
        ModelError: as `images_of_model`.
    """
    known = {voxels_of(case) for case in cases}
    voxels = tuple(sorted(digest for digest in known if digest is not None))
    own = TrainedImages(voxels=voxels, complete=None not in known)
    return own if start is None else own.joined([images_of_model(start.header, None)])


def images_of_model(header: Mapping[str, Any], path: Path | None) -> TrainedImages:
    """What the header of a model says; nothing for models of earlier versions or other programs.

    Args:
        header: of the model; of an ensemble, the images are those of all members.
        path: of the model, for messages.

    Raises:
        ModelError: "damaged-model": the entry is none of these.
    """
    members = header.get(MEMBERS)
    if members:
        first, *others = (images_of_model(member, path) for member in members)
        return first.joined(others)
    found = header.get(TRAINING_SET)
    images = found.get("images") if isinstance(found, Mapping) else None
    if images is None:
        return TrainedImages(voxels=(), complete=False)
    try:
        return checked(TrainedImages, images)
    except ValueError as error:
        raise ModelError(
            f"what it says of its training images is invalid: {error}",
            path=path,
            code="damaged-model",
            next_step="Copy the file again, or train the model again.",
        ) from error
