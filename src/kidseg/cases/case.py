"""Data sets and cases, independent of the folder layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kidseg.errors import Finding
from kidseg.labels import LabelSchema

if TYPE_CHECKING:
    from kidseg.io import ReadOptions
    from kidseg.io.structures import Annotation

__all__ = ["Case", "Dataset", "Layout", "Side", "Survey"]

Layout = Literal["nnunet", "kits19", "kits21", "kits23", "msd", "dicom", "annotated"]
Side = Literal["left", "right", "bilateral"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One scan of one patient.

    Attributes:
        id: unique among the training cases, and among the others.
        images: one file or DICOM folder per channel, in channel order. A file that contains
            several channels is listed once per channel.
        labels: the reference segmentation; None for unlabelled and test cases.
        patient: splits are by patient; equal to `id` unless the data set states otherwise.
        age_years: at the time of the scan, if known.
        time_point: of several scans of the patient: a name or number; "" if not known.
        side: of the tumour, if known.
        annotation: the structures that are the labels, if these are DICOM objects.
    """

    id: str
    images: tuple[Path, ...]
    labels: Path | None
    patient: str
    age_years: float | None = None
    time_point: str = ""
    side: Side | None = None
    annotation: Annotation | None = None

    def reading(self, options: ReadOptions, channel: int | None = None) -> ReadOptions:
        """The options to read an image of the case with, or its labels (no channel)."""
        volume = options.volume if channel is None else self.volume_of(channel)
        if self.annotation is None:
            return replace(options, volume=volume)
        images = self.annotation.images
        return replace(options, volume=volume, files=images, annotation=self.annotation)

    def volume_of(self, channel: int) -> int | None:
        """Index of a channel in its file; None if the file has no other channel."""
        path = self.images[channel]
        if self.images.count(path) == 1:
            return None
        return self.images[:channel].count(path)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Cases that share channels and labels.

    Attributes:
        root: the folder.
        layout: how its files are laid out.
        name: stated by the data set, or the name of the folder.
        schema: numbers and names of the labels, and the reported regions.
        channels: names of the channels, for example "CT" or "T1".
        cases: training cases, with labels, ordered by id.
        unlabelled: cases without labels, such as test cases.
        region_order: not empty if the data set trains overlapping regions (all those of `schema`)
            instead of labels: the label that each region writes, later ones over earlier ones.
            nnU-Net's `regions_class_order`.
        ignore_label: voxels with this value, which is not in the schema, are ignored.
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
        """The labelled cases by id."""
        return {case.id: case for case in self.cases}

    def holds_ct(self, channel: int) -> bool:
        """Is the channel in Hounsfield units? Source: nnU-Net uses the name "CT" too."""
        return self.channels[channel].strip().lower() == "ct"


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A data set as described by its folders and tables; no voxels were read.

    Attributes:
        dataset: the complete cases.
        findings: all problems.
        incomplete: the other cases, with the files that exist.
        structures: of a data set of DICOM annotations, {label, or "" of those without: {name of a
            structure: number of objects}}.
    """

    dataset: Dataset
    findings: tuple[Finding, ...]
    incomplete: tuple[Case, ...] = ()
    structures: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
