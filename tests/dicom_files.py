"""DICOM series made by pydicom alone, for tests of the reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

from kidseg.errors import InputError, KidsegError, ResourceError
from kidseg.io.dicom import read_series
from kidseg.io.scan import ReadOptions

SHAPE = (6, 32, 40)
SPACING = (2.5, 0.75, 0.5)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
Edit = Callable[[Dataset, int], None]


def body(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """int16 HU: soft tissue in air."""
    y, x = np.mgrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    plane = np.where(np.hypot(x, y) < 0.7, 40.0, -1000.0)
    noise = np.random.default_rng(seed).normal(0, 15, shape)
    return np.maximum(plane + noise, -1024).astype(np.int16)


def blank(kind: str, series: str = "1.2.3", modality: str = "CT") -> Dataset:
    """A data set with its head and identity, without an image."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = kind, generate_uid(), modality
    ds.PatientID, ds.PatientName = "P1", "Test^Patient"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", series
    ds.FrameOfReferenceUID = "1.2.9"
    ds.SeriesNumber, ds.SeriesDescription = series.rpartition(".")[2], "Abdomen"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = kind
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def set_pixels(ds: Dataset, stored: np.ndarray, bits: int | None = None) -> None:
    ds.Rows, ds.Columns = stored.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = stored.dtype.itemsize * 8
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"


def step_of(iop: Sequence[float]) -> np.ndarray:
    return np.cross(iop[:3], iop[3:])


def series(
    folder: Path,
    values: np.ndarray | None = None,
    *,
    iop: Sequence[float] = AXIAL,
    positions: np.ndarray | None = None,
    uid: str = "1.2.3",
    edit: Edit | None = None,
    stored: str = "int16",
) -> Path:
    """A series by hand: one file per slice, HU = stored - 1024; `edit` changes each before saving.

    Slices follow each other along the normal from (-10, -20, 30) on; file names are shuffled.
    """
    values = body() if values is None else values
    if positions is None:
        depth = np.arange(len(values)) * SPACING[0]
        positions = np.array([-10.0, -20.0, 30.0]) + depth[:, None] * step_of(iop)
    folder.mkdir(parents=True, exist_ok=True)
    for k, (plane, position) in enumerate(zip(values, positions, strict=True)):
        ds = blank(CTImageStorage, uid)
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        ds.InstanceNumber = k + 1
        ds.ImagePositionPatient = [f"{v:.9g}" for v in position]
        ds.ImageOrientationPatient = [f"{v:.9g}" for v in iop]
        ds.PixelSpacing, ds.SliceThickness = [SPACING[1], SPACING[2]], SPACING[0]
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
        set_pixels(ds, (plane.astype(np.int64) + 1024).astype(stored))
        if edit is not None:
            edit(ds, k)
        save(ds, folder / f"{(k * 7) % 101:03d}-{k}.dcm")
    return folder


def save(ds: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def refused(path: Path, options: ReadOptions | None = None, code: str = "") -> str:
    """The whole message, of an error with this code."""
    with pytest.raises(KidsegError) as caught:
        read_series(path, options or ReadOptions())
    assert caught.value.code == code
    assert isinstance(caught.value, InputError | ResourceError)
    assert caught.value.path and caught.value.next_step
    return str(caught.value)


def delete(name: str, which: int | None = None) -> Edit:
    def edit(ds: Dataset, k: int) -> None:
        if which in (None, k):
            delattr(ds, name)

    return edit


def assign(name: str, value: object, which: int | None = None) -> Edit:
    def edit(ds: Dataset, k: int) -> None:
        if which in (None, k):
            setattr(ds, name, value)

    return edit


def placed(depths: Sequence[float] | np.ndarray, along: Sequence[float] = (0, 0, 1)) -> np.ndarray:
    return np.array([-10.0, -20.0, 30.0]) + np.outer(depths, along)


def enhanced(path: Path, *, shuffle: bool = False, per_frame_slope: bool = False) -> Path:
    ds = blank(EnhancedCTImageStorage)
    values = body()
    order = np.random.default_rng(0).permutation(6) if shuffle else np.arange(6)
    stored = values[order].astype(np.int32) + 1024
    set_pixels(ds, stored.astype(np.uint16))
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.NumberOfFrames = 6
    shared, frames = Dataset(), []
    measures, orientation, scale = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(SPACING[1:]), SPACING[0]
    orientation.ImageOrientationPatient = list(AXIAL)
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    if not per_frame_slope:
        shared.PixelValueTransformationSequence = [scale]
    for k in order:
        frame, place = Dataset(), Dataset()
        place.ImagePositionPatient = [-10, -20, 30 + 2.5 * int(k)]
        frame.PlanePositionSequence = [place]
        if per_frame_slope:
            frame.PixelValueTransformationSequence = [scale]
        frames.append(frame)
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = frames
    return save(ds, path)
