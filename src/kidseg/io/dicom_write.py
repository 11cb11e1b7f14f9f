"""Write the volume of a digital patient as a DICOM series of CT images."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kidseg.errors import InputError, UsageError
from kidseg.geometry import Volume
from kidseg.io.atomic import writing_folder
from kidseg.io.checks import orthogonal_grid
from kidseg.io.dicom_header import derived_uid
from kidseg.io.orientation import ras_from_lps

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

__all__ = ["write_series"]

_NOTICE = "RESEARCH USE ONLY - digital phantom, not a patient, not for diagnosis"
_SEXES = {"F", "M", "O"}


def write_series(volume: Volume, folder: Path, *, facts: Mapping[str, str]) -> list[Path]:
    """Write a digital patient as CT images, one file per slice, atomically.

    Pixels are uncompressed signed 16-bit integers, HU rounded to integers. Every object states that
    it is a digital phantom for research. The same volume and facts give the same bytes.

    Args:
        volume: (1, slices, rows, columns) in HU within -32768..32767, on a grid with orthogonal
            axes of any direction.
        folder: is created; must not exist, but its parent must.
        facts: "seed" (required; all UIDs derive from it alone), "patient_id", "sex" (F, M, O),
            "age" ("007Y", "011M"), "description".

    Returns:
        The files, in slice order.

    Raises:
        UsageError: "output-exists"; "not-one-volume"; "no-seed"; "bad-fact".
        InputError: "not-writable"; "not-hounsfield": values are not finite or exceed 16 bits;
            "sheared".
        ResourceError: "disk-full".
    """
    folder = Path(folder)
    values = _rounded_hu(volume, folder)
    matrix = _lps_from_index(volume, folder)
    template = _template(volume, facts, matrix, folder)
    if folder.exists():
        raise UsageError(
            "it already exists",
            path=folder,
            code="output-exists",
            next_step="Choose another name, or remove it.",
        )
    names = [f"{k + 1:04d}.dcm" for k in range(len(values))]
    with writing_folder(folder) as temporary:
        for k, (name, plane) in enumerate(zip(names, values, strict=True)):
            _write_slice(temporary / name, template, plane, k, matrix, facts["seed"])
    return [folder / name for name in names]


def _rounded_hu(volume: Volume, folder: Path) -> np.ndarray:
    """(slices, rows, columns) int16."""
    if volume.channels != 1 or volume.grid.is_slicewise:
        raise UsageError(
            f"only one channel on one grid can be written, not {volume.channels} on {volume.grid}",
            path=folder,
            code="not-one-volume",
            next_step="Choose one channel, resampled onto one grid.",
        )
    values: np.ndarray = volume.data[0].detach().cpu().numpy()
    if np.issubdtype(values.dtype, np.floating):
        values = np.rint(values)
    limits = np.iinfo(np.int16)
    low, high = float(values.min()), float(values.max())
    if not (low >= limits.min and high <= limits.max):  # also true for NaN
        raise InputError(
            f"its values {low:g}..{high:g} do not fit in 16 bits",
            path=folder,
            code="not-hounsfield",
            next_step="Write values in Hounsfield units.",
        )
    return values.astype("<i2")


def _lps_from_index(volume: Volume, folder: Path) -> np.ndarray:
    grid, _ = orthogonal_grid(volume.grid, folder)
    if grid is not volume.grid:
        raise InputError(
            "its axes are not orthogonal",
            path=folder,
            code="sheared",
            next_step="Resample it onto an orthogonal grid first.",
        )
    matrix: np.ndarray = ras_from_lps @ grid.mm_from_index.detach().cpu().numpy()
    return matrix


def _uid(seed: str, what: str) -> UID:
    from pydicom.uid import UID

    return UID(derived_uid(seed, what))


def _template(
    volume: Volume, facts: Mapping[str, str], matrix: np.ndarray, folder: Path
) -> Dataset:
    """The data elements that all slices share.

    Source: DICOM PS3.3, A.3 (CT Image IOD): its modules' attributes of type 1 and 2.
    """
    from pydicom import Dataset
    from pydicom.uid import CTImageStorage

    seed = _fact(facts, "seed", folder)
    if not seed:
        raise UsageError(
            "the facts lack a 'seed' for the UIDs",
            path=folder,
            code="no-seed",
            next_step="Add 'seed': any text that no other series is written with.",
        )
    sex = _fact(facts, "sex", folder)
    spacing = volume.grid.spacing_mm.tolist()
    description = _fact(facts, "description", folder)
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    ds.SOPClassUID = CTImageStorage
    for name in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"):
        setattr(ds, name, "")
    ds.Modality = "CT"
    ds.Manufacturer = "kidseg"
    ds.SeriesDescription = f"{description} (RESEARCH USE ONLY)".strip()[:64]
    ds.PatientName = f"{_fact(facts, 'patient_id', folder) or 'phantom'}^digital phantom"[:64]
    ds.PatientID = _fact(facts, "patient_id", folder) or "phantom"
    ds.PatientBirthDate = ""
    ds.PatientSex = sex if sex in _SEXES else ""
    ds.PatientAge = _age(_fact(facts, "age", folder), folder)
    ds.PatientIdentityRemoved = "YES"
    ds.DeidentificationMethod = "synthetic: there is no patient"
    ds.BodyPartExamined = "ABDOMEN"
    ds.SliceThickness = _decimal(spacing[0])
    ds.KVP = ""
    ds.PatientPosition = "HFS"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = _uid(seed, "study"), _uid(seed, "series")
    ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber = "", 1, 1
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = _uid(seed, "frame"), ""
    ds.ImageOrientationPatient = [
        _decimal(v) for axis in (2, 1) for v in matrix[:3, axis] / np.linalg.norm(matrix[:3, axis])
    ]
    ds.ImageComments = _NOTICE
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = volume.grid.shape[1:]
    ds.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[2])]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "0", "1", "HU"
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    return ds


def _fact(facts: Mapping[str, str], name: str, folder: Path) -> str:
    """A fact that is valid in DICOM.

    Raises:
        UsageError: "bad-fact": control characters, a backslash, or an identifier that is too long.
    """
    value = facts.get(name, "").strip()
    bad = "\\" in value or not (value.isprintable() or not value)
    if name == "seed":
        return value
    if bad or (name == "patient_id" and len(value) > 64):
        raise UsageError(
            f"{value!r} is not a valid '{name}' in DICOM",
            path=folder,
            code="bad-fact",
            next_step="Use printable characters without a backslash; at most 64 in a 'patient_id'.",
        )
    return value


def _age(age: str, folder: Path) -> str:
    if age and not (len(age) == 4 and age[:3].isdigit() and age[3] in "DWMY"):
        raise UsageError(
            f"an age must be three digits and D, W, M or Y, not {age!r}",
            path=folder,
            code="bad-fact",
            next_step="Write it as in 007Y or 011M.",
        )
    return age


def _decimal(value: float) -> str:
    """A number as a Decimal String, as precise as its 16 characters allow.

    Source: DICOM PS3.5, 6.2, value representation DS.
    """
    assert math.isfinite(value)
    for digits in range(16, 0, -1):
        written = f"{value:.{digits}g}"
        if len(written) <= 16:
            break
    return "0" if float(written) == 0 else written


def _write_slice(
    path: Path, template: Dataset, plane: np.ndarray, k: int, matrix: np.ndarray, seed: str
) -> None:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    ds = Dataset()
    ds.update(template)
    ds.SOPInstanceUID = _uid(seed, f"image/{k}")
    ds.InstanceNumber = k + 1
    first = matrix @ np.array([k, 0.0, 0.0, 1.0])
    ds.ImagePositionPatient = [_decimal(v) for v in first[:3]]
    ds.PixelData = plane.tobytes()
    ds["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("kidseg", "implementation")
    meta.ImplementationVersionName = "KIDSEG"
    ds.file_meta = meta
    ds.preamble = b"\0" * 128
    with path.open("xb") as file:
        ds.save_as(file, enforce_file_format=True)
        file.flush()
        os.fsync(file.fileno())
