"""What a derived object copies of patient, study and clinical trial: valid elements only.

Source: DICOM PS3.3, C.7.1.1, C.7.1.3, C.7.2.1 to C.7.2.3 (modules); PS3.5, 6.2 (value
representations); PS3.6 (value multiplicities).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kidseg.errors import Finding

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

__all__ = ["complete", "without_invalid"]

_GROUPS = (0x0010, 0x0012)  # patient and clinical trial; of the study:
_STUDY = (
    *("StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber"),
    *("ReferringPhysicianName", "ConsultingPhysicianName", "PhysiciansOfRecord"),
    *("NameOfPhysiciansReadingStudy", "RequestingService", "ReasonForVisit", "AdmissionID"),
    *("AdmittingDiagnosesDescription", "ServiceEpisodeID", "ServiceEpisodeDescription"),
    *("PatientState", "IssuerOfAccessionNumberSequence", "ProcedureCodeSequence"),
    *("ReferringPhysicianIdentificationSequence", "ConsultingPhysicianIdentificationSequence"),
    *("PhysiciansOfRecordIdentificationSequence", "PhysiciansReadingStudyIdentificationSequence"),
    *("ReferencedStudySequence", "RequestingServiceCodeSequence", "ReasonForVisitCodeSequence"),
    *("ReasonForPerformedProcedureCodeSequence", "AdmittingDiagnosesCodeSequence"),
    *("IssuerOfAdmissionIDSequence", "IssuerOfServiceEpisodeIDSequence"),
)
# By these an object belongs to its images, so they stay as they are.
_IDENTIFIERS = (
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"),
    "SOPInstanceUID",
)
# Type 2: they may be empty, but must be there.
_REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
# The subject of a clinical trial: all of type 1, one of type 1C, all of type 2.
_TRIAL = ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID")
_TRIAL_SUBJECT = ("ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID")
_TRIAL_SITE = ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName")
_MOST_CARETS = 4  # in a person's name
_PARAGRAPHS = ("LT", "ST", "UT")


def without_invalid(headers: Sequence[Dataset], path: Path) -> list[Finding]:
    """Remove the elements that are not valid, in place, except identifiers; findings on both.

    The subject of a clinical trial without its sponsor or protocol is invalid as a whole.

    Their values are personal, and not said.

    Args:
        headers: of the images of a series, decoded.
        path: of the series.

    Returns:
        Findings: "invalid-element", "invalid-identifier".
    """
    removed: dict[str, None] = {}
    kept: dict[str, None] = {}
    for header in headers:
        for element in list(header):
            name = element.keyword
            if name in _IDENTIFIERS:
                if not _is_valid(element):
                    kept[name] = None
            elif (element.tag.group in _GROUPS or name in _STUDY) and not _is_valid(element):
                removed[name] = None
                del header[element.tag]
        for name in _incomplete_trial(header):
            removed[name] = None
            delattr(header, name)
    findings = []
    if removed:
        cause = f"{', '.join(removed)} is not as DICOM demands; it is left empty in derived objects"
        findings.append(Finding(code="invalid-element", path=str(path), cause=cause))
    if kept:
        cause = f"{', '.join(kept)} is not as DICOM demands; derived objects have it all the same,"
        cause += " to stay with their images"
        findings.append(Finding(code="invalid-identifier", path=str(path), cause=cause))
    return findings


def complete(header: Dataset) -> None:
    """Add the elements that must be there, empty, in place."""
    required = [*_REQUIRED]
    if _TRIAL[0] in header:
        required += _TRIAL_SITE
    if "ClinicalTrialTimePointDescription" in header:
        required.append("ClinicalTrialTimePointID")
    for name in required:
        if header.get(name) is None:
            setattr(header, name, "")
    removed = header.get("PatientIdentityRemoved") == "YES"
    if removed and not header.get("DeidentificationMethodCodeSequence"):
        header.DeidentificationMethod = header.get("DeidentificationMethod") or "not stated"
    elif "DeidentificationMethod" in header and not header.DeidentificationMethod:
        header.DeidentificationMethod = "not stated"  # where it is, it must not be empty


def _incomplete_trial(header: Dataset) -> list[str]:
    """The elements of the subject of a clinical trial, if others that they need are missing."""
    has_subject = any(header.get(name) for name in _TRIAL_SUBJECT)
    if has_subject and all(header.get(name) for name in _TRIAL):
        return []
    return [name for name in (*_TRIAL, *_TRIAL_SUBJECT, *_TRIAL_SITE) if name in header]


def _is_valid(element: DataElement) -> bool:
    """Are its values of the form and number that DICOM demands?"""
    from pydicom.config import RAISE
    from pydicom.multival import MultiValue
    from pydicom.valuerep import STR_VR, validate_value

    if element.VR == "SQ":
        return all(_is_valid(one) for item in element.value for one in item)
    if element.is_empty:
        return True
    several = isinstance(element.value, MultiValue)
    texts = [str(one) for one in (element.value if several else [element.value])]
    if several and _is_single(element):
        return False
    if element.VR not in STR_VR:  # numbers and bytes have one form
        return True
    try:
        for text in texts:
            validate_value(element.VR, text, RAISE)
    except (ValueError, TypeError):
        return False
    return all(_is_written(text, element) for text in texts)


def _is_single(element: DataElement) -> bool:
    from pydicom.datadict import dictionary_has_tag, dictionary_VM

    return dictionary_has_tag(element.tag) and dictionary_VM(element.tag) == "1"


def _is_written(text: str, element: DataElement) -> bool:
    """What is demanded besides, which pydicom does not check."""
    plain = re.sub(r"[\t\n\f\r]", "", text) if element.VR in _PARAGRAPHS else text
    if element.VR == "PN" and any(part.count("^") > _MOST_CARETS for part in text.split("=")):
        return False
    if element.keyword == "PatientSex" and text not in ("M", "F", "O"):
        return False
    return plain.isprintable()
