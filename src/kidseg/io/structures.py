"""What DICOM annotations, RT Structure Sets and Segmentations, say without their voxels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kidseg.errors import printable
from kidseg.labels import Code
from kidseg.meaning import Side, side_of

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "Annotation",
    "AnnotationObject",
    "Part",
    "Structure",
    "StructureVolume",
    "codes_in",
    "items_of",
    "object_head",
    "positive",
    "side_in",
    "text_of",
]

_LONGEST = 200  # characters of a text that are kept
_GLUED = re.compile(r"\b(rt|lt|right|left|r|l)(?=kidney)", re.IGNORECASE)
_NUMBER = re.compile(r"(\d{1,3})\W*$")
# Modifiers of SNOMED CT, and of SNOMED RT before 2018; left and right kidney of SNOMED CT and FMA.
_SIDES: dict[str, Side] = {
    **dict.fromkeys(("7771000", "G-A101", "18639004", "7205", "FMA7205"), "left"),
    **dict.fromkeys(("24028007", "G-A100", "9846003", "7204", "FMA7204"), "right"),
}


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A region of interest of an RT Structure Set, or a segment of a Segmentation.

    Attributes:
        number: in its object.
        name: ROI Name or Segment Label.
        codes: that say what it is, the most specific first.
        regions: codes of the organ in which it lies.
        coded_side: of the codes' modifiers.
        stored_ml: ROI Volume as stored; None: not stated.
        tracking_id: Tracking ID; "" if not stated.
        tracking_uid: Tracking UID, likewise.
        label: ROI Observation Label, likewise.
        frame_of_reference: UID of the coordinates of its contours, likewise.
    """

    number: int
    name: str
    codes: tuple[Code, ...] = ()
    regions: tuple[Code, ...] = ()
    coded_side: Side | None = None
    stored_ml: float | None = None
    tracking_id: str = ""
    tracking_uid: str = ""
    label: str = ""
    frame_of_reference: str = ""

    @property
    def side(self) -> Side | None:
        """As coded, else as the name says; None if neither says one."""
        return self.coded_side or side_of(self.words)

    @property
    def words(self) -> str:
        """The name with the side apart: RTKIDNEY1 is RT KIDNEY1."""
        return _GLUED.sub(r"\1 ", self.name)

    @property
    def counted(self) -> int | None:
        """The number at the end of the name, as in "RIGHT KIDNEY - 2"; None if there is none."""
        match = _NUMBER.search(self.name)
        return None if match is None else int(match[1])


@dataclass(frozen=True, kw_only=True)
class AnnotationObject:
    """A file with structures.

    Attributes:
        path: of the file.
        kind: "RTSTRUCT" or "SEG".
        uid: SOP Instance UID.
        series_uid: of the object itself, not of its images.
        series_number: of the object.
        label: Structure Set Label, or Content Label.
        description: Series Description.
        creator: Content Creator, Operators or Manufacturer, whichever is stated first.
        date: of the object.
        patient_id: of the patient.
        study_uid: of the study.
        time_point: of a clinical trial ("Post-chemotherapy #1"), or "".
        frames_of_reference: UIDs of the coordinates that it uses.
        referenced_series: UIDs of the series that it refers to.
        drawn_on: SOP Instance UIDs of the images that its contours or frames refer to.
        referenced_images: SOP Instance UIDs of all images that it refers to.
        structures: ordered as in the file.
    """

    path: Path
    kind: Literal["RTSTRUCT", "SEG"]
    uid: str
    series_uid: str
    series_number: str
    label: str
    description: str
    creator: str
    date: str
    patient_id: str
    study_uid: str
    time_point: str
    frames_of_reference: frozenset[str]
    referenced_series: frozenset[str]
    drawn_on: frozenset[str]
    referenced_images: frozenset[str]
    structures: tuple[Structure, ...]

    def __str__(self) -> str:
        names = ", ".join(one.name for one in self.structures[:4])
        more = ", ..." if len(self.structures) > 4 else ""
        said = [self.label, self.description, self.creator, self.date]
        about = "; ".join(part for part in said if part)
        return f"{self.kind} {self.path.name} (UID {self.uid}; {about}; {names}{more})"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A structure of an object, and the label that it is."""

    path: Path
    number: int
    label: int


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """Which structures of which objects are the labels of a series. Immutable and hashable.

    Attributes:
        folder: that contains the images, perhaps among others.
        images: files of the series.
        series: its Series Instance UID.
        parts: the structures.
    """

    folder: Path
    images: tuple[Path, ...]
    series: str
    parts: tuple[Part, ...]

    @property
    def objects(self) -> tuple[Path, ...]:
        """The files of the structures, in order."""
        return tuple(dict.fromkeys(part.path for part in self.parts))


@dataclass(frozen=True, kw_only=True)
class StructureVolume:
    """The volume of a structure in voxels beside the volume that its file states.

    Attributes:
        path: of the file.
        name: of the structure.
        label: that it is.
        voxels_ml: of its voxels.
        stored_ml: ROI Volume; None: not stated.
    """

    path: str
    name: str
    label: int
    voxels_ml: float
    stored_ml: float | None

    def as_dict(self) -> dict[str, Any]:
        """As plain data, with the relative difference."""
        change = None
        if self.stored_ml:
            change = round(self.voxels_ml / self.stored_ml - 1, 4)
        return {
            "path": self.path,
            "name": self.name,
            "label": self.label,
            "voxels_ml": round(self.voxels_ml, 3),
            "stored_ml": self.stored_ml,
            "difference": change,
        }


# ---- elements of data sets; to be called inside `dicom_header.reading` -------------------------


def text_of(dataset: Dataset, *names: str) -> str:
    """The first of the elements that is there and not empty, as text of one line."""
    for name in names:
        value = dataset.get(name)
        if value is not None and (text := " ".join(printable(str(value)).split())):
            return text.strip("\0 ")[:_LONGEST]
    return ""


def items_of(dataset: Dataset, *names: str) -> Iterator[Dataset]:
    """The items of a sequence; of several names, those of the sequences in these items."""
    from pydicom import Dataset, Sequence

    first, *others = names
    found = dataset.get(first)
    for item in found if isinstance(found, Sequence) else ():
        if isinstance(item, Dataset):
            if others:
                yield from items_of(item, *others)
            else:
                yield item


def codes_in(dataset: Dataset, *names: str) -> tuple[Code, ...]:
    """The coded concepts in a sequence."""
    return tuple(
        Code(
            value=value,
            scheme=text_of(item, "CodingSchemeDesignator"),
            meaning=text_of(item, "CodeMeaning"),
        )
        for item in items_of(dataset, *names)
        if (value := text_of(item, "CodeValue", "LongCodeValue"))
    )


def side_in(codes: tuple[Code, ...]) -> Side | None:
    """The side that codes and modifiers state."""
    sides = {_SIDES[code.value] for code in codes if code.value in _SIDES}
    return sides.pop() if len(sides) == 1 else None


def positive(text: str) -> float | None:
    """A positive finite number, or None; a comma is read as a decimal point."""
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def object_head(dataset: Dataset) -> dict[str, str]:
    """The fields of an `AnnotationObject` that both kinds have."""
    return {
        "uid": text_of(dataset, "SOPInstanceUID"),
        "series_uid": text_of(dataset, "SeriesInstanceUID"),
        "series_number": text_of(dataset, "SeriesNumber"),
        "label": text_of(dataset, "StructureSetLabel", "ContentLabel"),
        "description": text_of(dataset, "SeriesDescription"),
        "creator": text_of(dataset, "ContentCreatorName", "OperatorsName", "Manufacturer"),
        "date": text_of(dataset, "StructureSetDate", "ContentDate", "SeriesDate"),
        "patient_id": text_of(dataset, "PatientID"),
        "study_uid": text_of(dataset, "StudyInstanceUID"),
        "time_point": text_of(
            dataset, "ClinicalTrialTimePointDescription", "ClinicalTrialTimePointID"
        ),
    }
