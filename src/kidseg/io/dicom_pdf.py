"""Write a PDF as a DICOM object of the study that it is about.

Source: DICOM PS3.3, A.45.1 (Encapsulated PDF IOD) and C.24.2 (Encapsulated Document Module).
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kidseg.io.dicomseg import SERIES_NUMBERS, deriving, equipment_of
from kidseg.io.origin import Origin

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = ["write_encapsulated_pdf"]

_PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"),
    *("ReferringPhysicianName", "StudyDescription"),
)
_MAY_BE_MISSING = {"PatientAge", "StudyDescription"}


def write_encapsulated_pdf(pdf: bytes, header: Dataset, origin: Origin, file: BinaryIO) -> None:
    """Write a PDF into the study of an image, in a series of its own.

    Args:
        pdf: the document.
        header: of an image of the study.
        origin: of what the document reports.
        file: to write to.

    Raises:
        InputError: "dicom-refused": the header is not valid enough.
    """
    with deriving(Path(str(getattr(header, "filename", ""))), [header]):
        _document(pdf, header, origin).save_as(file, enforce_file_format=True)


def _document(pdf: bytes, header: Dataset, origin: Origin) -> Dataset:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian, generate_uid

    now = datetime.now(UTC)
    ds = Dataset()
    # The text of the header is written in its own characters: its encoding is known to pydicom.
    ds.SpecificCharacterSet = "ISO_IR 192"
    for name in _PATIENT_AND_STUDY:
        if name in header:
            setattr(ds, name, header[name].value)
        elif name not in _MAY_BE_MISSING:
            setattr(ds, name, "")
    ds.SOPClassUID, ds.SOPInstanceUID = EncapsulatedPDFStorage, generate_uid()
    ds.Modality, ds.SeriesInstanceUID = "DOC", generate_uid()
    ds.SeriesNumber, ds.InstanceNumber = SERIES_NUMBERS["pages"], 1
    ds.SeriesDescription = "kidseg report (RESEARCH USE ONLY)"
    ds.Manufacturer, ds.ManufacturerModelName = "kidseg", "kidseg"
    ds.SoftwareVersions, ds.ConversionType = origin.version, "WSD"
    ds.ContributingEquipmentSequence = [equipment_of(origin)]
    ds.ContentDate, ds.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    ds.AcquisitionDateTime = ""
    ds.BurnedInAnnotation, ds.RecognizableVisualFeatures = "NO", "NO"
    ds.DocumentTitle = "Kidneys and renal tumours: automatic segmentation, research use only"
    ds.ConceptNameCodeSequence = []
    ds.MIMETypeOfEncapsulatedDocument = "application/pdf"
    ds.EncapsulatedDocument = pdf + b"\0" * (len(pdf) % 2)
    ds.EncapsulatedDocumentLength = len(pdf)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta, ds.preamble = meta, b"\0" * 128
    return ds
