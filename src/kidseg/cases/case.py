"""What a data set is, whatever its folders look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kidseg.errors import Finding
from kidseg.labels import LabelSchema

__all__ = ["Case", "Dataset", "Layout", "Side", "Survey"]

Layout = Literal["nnunet", "kits19", "kits21", "kits23", "msd", "dicom"]
Side = Literal["left", "right", "bilateral"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scan of one patient.

    Attributes:
        id: unique among the training cases, and among the others.
        images: one file or DICOM folder per channel, in channel order. A file that holds several
            channels stands there several times.
        labels: the reference segmentation; None for unlabelled and test cases.
        patient: splits are by patient; equals `id` unless the data set says otherwise.
        age_years: at the scan, if known.
        side: of the tumour, if known.
    """

    id: str
    images: tuple[Path, ...]
    labels: Path | None
    patient: str
    age_years: float | None = None
    side: Side | None = None

    def volume_of(self, channel: int) -> int | None:
        """Which volume of its file a channel is; None if the file holds no other channel."""
        path = self.images[channel]
        if self.images.count(path) == 1:
            return None
        return self.images[:channel].count(path)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Cases with a common meaning of channels and labels.

    Attributes:
        root: the folder.
        layout: how its files are laid out.
        name: as the data set states it, or the folder's.
        schema: numbers and names of the labels, and the regions that are reported.
        channels: names of the channels, as "CT" or "T1".
        cases: with labels, for training, in the order of their ids.
        unlabelled: test cases and the like.
        region_order: not empty if the data set trains overlapping regions (all those of `schema`)
            instead of labels: the label that each region paints, later over earlier. nnU-Net's
            `regions_class_order`.
        ignore_label: voxels with this value, which is in no schema, count neither way.
    """

    root: Path
    layout: Layout
    name: str
    schema: LabelSchema
    channels: tuple[str, ...]
    cases: tuple[Case, ...]
    unlabelled: tuple[Case, ...] = ()
    region_order: tuple[int, ...] = ()
    ignore_label: int | None = None

    @property
    def by_id(self) -> Mapping[str, Case]:
        """The labelled cases by their id."""
        return {case.id: case for case in self.cases}

    def holds_ct(self, channel: int) -> bool:
        """Does this channel hold Hounsfield units? Source: nnU-Net goes by the name "CT" too."""
        return self.channels[channel].strip().lower() == "ct"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A data set as its folders and tables show it; no voxel has been looked at.

    Attributes:
        dataset: the complete cases.
        findings: everything that is wrong.
        incomplete: what there is of the other cases.
    """

    dataset: Dataset
    findings: tuple[Finding, ...]
    incomplete: tuple[Case, ...] = ()
