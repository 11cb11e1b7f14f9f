"""Find the series that a DICOM annotation belongs to: by its references, never by its folder.

The images that its contours or frames refer to decide; without such references the images, the
series, or at last the frame of reference that it names, if only one series of the patient has it.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kidseg.errors import Finding, InputError, Severity
from kidseg.io.dicom_frames import Image, find_images
from kidseg.io.dicom_series import Series, group_series
from kidseg.io.structures import AnnotationObject

__all__ = [
    "ImageSeries",
    "find_series",
    "numbered_times",
    "series_of",
    "short_digest",
    "years_of",
]

_DIGITS = 8  # two of a thousand patients or series are alike in one of 10,000 data sets


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSeries:
    """A series that is one volume.

    Attributes:
        files: of its images, sorted.
        uid: Series Instance UID; "" if its images differ in it.
        study_uid: of its study.
        study_date: likewise; "" if it is missing.
        patient_id: as stated; "" if it is missing.
        modality: "CT", "MR", ...
        frames_of_reference: UIDs of its coordinates.
        images: SOP Instance UIDs.
        age_years: of the patient, if stated.
        description: Series Description.
        is_part: other volumes, such as contrast phases, share the Series Instance UID.
    """

    files: tuple[Path, ...]
    uid: str
    study_uid: str
    study_date: str
    patient_id: str
    modality: str
    frames_of_reference: frozenset[str]
    images: frozenset[str]
    age_years: float | None
    description: str
    is_part: bool = False

    @property
    def folder(self) -> Path:
        """The smallest that contains all its images."""
        return Path(os.path.commonpath([file.parent for file in self.files]))

    @property
    def patient(self) -> str:
        """A name of the patient that tells nothing; of the study, if there is no Patient ID."""
        return short_digest(f"patient {self.patient_id}" if self.patient_id else self.study_uid)

    @property
    def case(self) -> str:
        """A name of the series that tells nothing, and stays when others are added or moved."""
        is_named = self.uid and not self.is_part
        images = "" if is_named else min(self.images, default=str(self.files[0].name))
        return f"{self.patient}_{short_digest(f'series {self.uid}{images}')}"


def short_digest(text: str) -> str:
    """Eight hexadecimal digits for a text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:_DIGITS]


def find_series(files: Sequence[Path]) -> tuple[tuple[ImageSeries, ...], list[Finding]]:
    """The series of images among files, and findings about DICOM files that are damaged."""
    images: list[Image] = []
    findings = []
    for file in files:
        try:
            images += find_images(file)[0]
        except InputError as error:
            findings.append(error.as_finding())
    volumes = [one for one in group_series(images) if one.kind == "volume"]
    counts = Counter(one.uid for one in volumes)
    series = (_image_series(one, is_part=counts[one.uid] > 1) for one in volumes)
    return tuple(series), findings


def _image_series(one: Series, *, is_part: bool) -> ImageSeries:
    first = one.images[0]
    return ImageSeries(
        files=tuple(sorted({image.path for image in one.images})),
        uid=one.uid,
        study_uid=first.text("StudyInstanceUID"),
        study_date=first.text("StudyDate"),
        patient_id=first.text("PatientID"),
        modality=one.modality,
        frames_of_reference=_texts(one.images, "FrameOfReferenceUID"),
        images=_texts(one.images, "SOPInstanceUID"),
        age_years=years_of(first.text("PatientAge")),
        description=one.description,
        is_part=is_part,
    )


def numbered_times(series: Sequence[ImageSeries]) -> dict[ImageSeries, str]:
    """{series: "1" of the first date of its patient, "2" of the next, ...}: no date is told.

    Series without a date are left out.
    """
    dates: dict[str, set[str]] = {}
    dated = [one for one in series if one.study_date]
    for one in dated:
        dates.setdefault(one.patient, set()).add(one.study_date)
    return {one: str(1 + sorted(dates[one.patient]).index(one.study_date)) for one in dated}


def _texts(images: Sequence[Image], name: str) -> frozenset[str]:
    own = {image.text(name) for image in images}
    own |= {plane.fields.get(name, "") for image in images for plane in image.planes}
    return frozenset(own - {""})


def years_of(text: str) -> float | None:
    """An age such as 004Y, 018M; None if it is another text. Source: DICOM PS3.5, 6.2, AS."""
    per_year = {"Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}
    number, unit = text[:-1], text[-1:]
    if unit not in per_year or not (number.isascii() and number.isdigit() and len(number) <= 3):
        return None
    return round(int(number) / per_year[unit], 2)


def series_of(
    one: AnnotationObject, series: Sequence[ImageSeries]
) -> tuple[ImageSeries | None, list[Finding]]:
    """The series of an annotation, and what is to be said about it.

    Returns:
        None with the warning "missing-images", or with the errors "several-series-referenced",
        "other-frame-of-reference"; a series perhaps with the warnings "some-images-missing",
        "matched-by-frame", "other-patient".
    """
    wanted = one.drawn_on or one.referenced_images
    if wanted:
        found = [each for each in series if wanted & each.images]
        if not found:
            return None, [_missing(one, f"{len(wanted)} images")]
    elif one.referenced_series:
        found = [each for each in series if each.uid in one.referenced_series]
        if not found:
            return None, [_missing(one, "a series")]
    else:
        found = [each for each in series if each.frames_of_reference & one.frames_of_reference]
        found = [each for each in found if not _of_other_patient(one, each)]
        if not found:
            return None, [_missing(one, "a frame of reference of its patient")]
    refers = bool(wanted or one.referenced_series)
    if len(found) > 1:
        listed = "; ".join(f"{each.description or each.modality} {each.uid}" for each in found)
        cause = f"it refers to {len(found)} series: {listed}"
        if not refers:
            cause = f"it refers to no image, and {len(found)} series have its frame of reference"
            cause += f": {listed}"
        step = "Export one annotation for each series, with references to its images."
        return None, [_finding(one, "several-series-referenced", cause, step, "error")]
    (only,) = found
    known = only.frames_of_reference and one.frames_of_reference
    if known and not only.frames_of_reference & one.frames_of_reference:
        cause = "its frame of reference is not that of the images it refers to"
        step = "Its positions cannot be trusted: export both again."
        return None, [_finding(one, "other-frame-of-reference", cause, step, "error")]
    said = []
    if _of_other_patient(one, only):
        cause = "its Patient ID is not that of the images it refers to, which were used"
        step = "Check that both are of one patient, and give both the same Patient ID."
        said.append(_finding(one, "other-patient", cause, step))
    if wanted and (absent := len(wanted - only.images)):
        cause = f"{absent} of {len(wanted)} images that it refers to are not in the data set"
        step = "Restore the complete series."
        said.append(_finding(one, "some-images-missing", cause, step))
    if not refers:
        cause = "it refers to no image; it was matched by its frame of reference alone"
        said.append(_finding(one, "matched-by-frame", cause, "Compare it with the images."))
    return only, said


def _of_other_patient(one: AnnotationObject, series: ImageSeries) -> bool:
    """Whether both state a Patient ID, and not the same."""
    ids = one.patient_id.strip(), series.patient_id.strip()
    return "" not in ids and ids[0] != ids[1]


def _missing(one: AnnotationObject, what: str) -> Finding:
    cause = f"the images that it belongs to are not in the data set ({what})"
    step = "Fetch the images, or remove it; 'kidseg contours' gives volumes without them."
    return _finding(one, "missing-images", cause, step)


def _finding(
    one: AnnotationObject, code: str, cause: str, next_step: str, severity: Severity = "warning"
) -> Finding:
    return Finding(
        code=code, path=str(one.path), cause=cause, next_step=next_step, severity=severity
    )
