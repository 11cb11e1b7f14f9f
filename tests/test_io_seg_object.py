"""Segmentations on the voxels of their series, placed by the positions of their frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import RLELossless

from kidseg.errors import InputError, KidsegError
from kidseg.io.dicom_source import SourceSeries
from kidseg.io.dicomseg import write_dicom_segmentation
from kidseg.io.seg_object import read_segmentation, segment_voxels
from labelled_series import ORIGIN, SCHEMA, make_case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, SourceSeries, np.ndarray]:
    """(binary, label map, series, values) of one axial series."""
    folder = tmp_path_factory.mktemp("seg")
    source, labels = make_case(folder / "ct", "axial")
    files = []
    for labelmap in (False, True):
        files.append(folder / f"{labelmap}.dcm")
        with files[-1].open("wb") as file:
            write_dicom_segmentation(labels, SCHEMA, source, ORIGIN, file, labelmap=labelmap)
    return files[0], files[1], source, labels.data[0].numpy()


def changed(path: Path, folder: Path, edit: Callable[[Dataset], object]) -> Path:
    ds = dcmread(path)
    edit(ds)
    ds.save_as(folder / "seg.dcm", enforce_file_format=True)
    return folder / "seg.dcm"


def refusal(path: Path, source: SourceSeries) -> InputError:
    with pytest.raises(InputError) as caught:
        segment_voxels(path, [1], source.native)
    assert caught.value.path == str(path) and caught.value.next_step
    return caught.value


def test_what_it_says(case: tuple[Path, Path, SourceSeries, np.ndarray]) -> None:
    binary, labelmap, source, _ = case
    for path in (binary, labelmap):
        head = read_segmentation(path)
        kidney, tumour, spleen = head.structures
        assert (kidney.name, kidney.side, tumour.name) == ("left kidney", "left", "tumour")
        assert kidney.codes[0].value == "64033007" and tumour.regions[0].value == "64033007"
        assert tumour.tracking_uid and spleen.name == "Milz größer"
        assert head.referenced_images >= {str(h.SOPInstanceUID) for h in source.headers}
        assert head.frames_of_reference == {"1.2.9"}


def test_segments_are_read_by_number(case: tuple[Path, Path, SourceSeries, np.ndarray]) -> None:
    binary, labelmap, source, values = case
    for path, numbers in ((binary, (1, 2, 3)), (labelmap, (1, 2, 5))):
        found = segment_voxels(path, numbers, source.native)
        for number, label in zip(numbers, (1, 2, 5), strict=True):
            assert np.array_equal(found[number], values == label)


def test_frames_in_another_order_and_compressed(
    tmp_path: Path, case: tuple[Path, Path, SourceSeries, np.ndarray]
) -> None:
    _, labelmap, source, values = case

    def edit(ds: Dataset) -> None:
        frames = ds.pixel_array[::-1]
        ds.PixelData = frames.tobytes()
        ds.PerFrameFunctionalGroupsSequence = list(ds.PerFrameFunctionalGroupsSequence)[::-1]
        ds.compress(RLELossless)

    found = segment_voxels(changed(labelmap, tmp_path, edit), [2], source.native)
    assert np.array_equal(found[2], values == 2)


@pytest.mark.parametrize("turn", ["flipped rows", "flipped both", "transposed"])
def test_frames_that_run_along_other_axes_or_are_cropped(
    tmp_path: Path, case: tuple[Path, Path, SourceSeries, np.ndarray], turn: str
) -> None:
    _, labelmap, source, values = case

    def edit(ds: Dataset) -> None:
        frames = ds.pixel_array[:, 2:30, 1:38]  # cropped
        shared = ds.SharedFunctionalGroupsSequence[0]
        spacing = [float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing]
        along, down = np.array([1.0, 0, 0]), np.array([0, 1.0, 0])
        corner = 2 * spacing[0] * down + 1 * spacing[1] * along
        if turn != "transposed":
            corner, down = corner + 27 * spacing[0] * down, -down
            frames = frames[:, ::-1]
        if turn == "flipped both":
            corner, along = corner + 36 * spacing[1] * along, -along
            frames = frames[:, :, ::-1]
        if turn == "transposed":
            frames, along, down = frames.transpose(0, 2, 1), down, along
            shared.PixelMeasuresSequence[0].PixelSpacing = spacing[::-1]
        shared.PlaneOrientationSequence[0].ImageOrientationPatient = [*along, *down]
        for item in ds.PerFrameFunctionalGroupsSequence:
            place = item.PlanePositionSequence[0]
            first = np.array(place.ImagePositionPatient, float) + corner
            place.ImagePositionPatient = [f"{v:.6f}" for v in first]
        ds.Rows, ds.Columns = frames.shape[1:]
        ds.PixelData = np.ascontiguousarray(frames).tobytes()

    found = segment_voxels(changed(labelmap, tmp_path, edit), [1], source.native)
    expected = np.zeros_like(values, bool)
    expected[:, 2:30, 1:38] = (values == 1)[:, 2:30, 1:38]
    assert np.array_equal(found[1], expected)


def test_other_voxels_than_those_of_the_series_are_refused(
    tmp_path: Path, case: tuple[Path, Path, SourceSeries, np.ndarray]
) -> None:
    binary, _, source, _ = case

    def finer(ds: Dataset) -> None:
        measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.PixelSpacing = [0.5, 0.5]

    def shifted(ds: Dataset) -> None:
        for item in ds.PerFrameFunctionalGroupsSequence:
            item.PlanePositionSequence[0].ImagePositionPatient[0] += 0.2

    def between(ds: Dataset) -> None:
        for item in ds.PerFrameFunctionalGroupsSequence:
            item.PlanePositionSequence[0].ImagePositionPatient[2] += 1.0

    def turned(ds: Dataset) -> None:
        shared = ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
        shared.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    def beyond(ds: Dataset) -> None:
        for item in ds.PerFrameFunctionalGroupsSequence:
            item.PlanePositionSequence[0].ImagePositionPatient[2] += 250

    for edit in (finer, shifted, between, turned, beyond):
        assert refusal(changed(binary, tmp_path, edit), source).code == "other-grid"


def test_what_is_not_one_answer_for_each_voxel_is_refused(
    tmp_path: Path, case: tuple[Path, Path, SourceSeries, np.ndarray]
) -> None:
    binary, _, source, _ = case
    path = changed(binary, tmp_path, lambda ds: setattr(ds, "SegmentationType", "FRACTIONAL"))
    assert refusal(path, source).code == "fractional-segmentation"


def test_fractional_ones_without_partial_voxels_are_read(
    tmp_path: Path, case: tuple[Path, Path, SourceSeries, np.ndarray]
) -> None:
    binary, _, source, values = case

    def fractional(partly: int) -> Callable[[Dataset], None]:
        def edit(ds: Dataset) -> None:
            frames = ds.pixel_array * 200
            frames[-1][frames[-1] > 0] = partly  # of the last segment
            ds.SegmentationType, ds.MaximumFractionalValue = "FRACTIONAL", 200
            ds.SegmentationFractionalType = "PROBABILITY"
            ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
            ds.PixelData = frames.astype(np.uint8).tobytes()

        return edit

    found = segment_voxels(changed(binary, tmp_path, fractional(200)), [1, 3], source.native)
    assert np.array_equal(found[1], values == 1) and np.array_equal(found[3], values == 5)
    path = changed(binary, tmp_path, fractional(199))
    assert np.array_equal(segment_voxels(path, [1], source.native)[1], values == 1)
    with pytest.raises(InputError, match="neither 0 nor 200") as caught:
        segment_voxels(path, [3], source.native)
    assert caught.value.code == "fractional-segmentation"


def test_damaged_segmentations_are_refused(
    tmp_path: Path, case: tuple[Path, Path, SourceSeries, np.ndarray]
) -> None:
    binary, _, source, _ = case
    edits: list[tuple[Callable[[Dataset], object], str]] = [
        (lambda ds: delattr(ds, "SegmentSequence"), "bad-segmentation"),
        (lambda ds: delattr(ds, "PerFrameFunctionalGroupsSequence"), "bad-segmentation"),
        (lambda ds: delattr(ds, "SharedFunctionalGroupsSequence"), "bad-segmentation"),
        (lambda ds: setattr(ds, "NumberOfFrames", 10**9), "bad-segmentation"),
        (lambda ds: delattr(ds, "PixelData"), "absurd-size"),
        (lambda ds: setattr(ds, "PixelData", ds.PixelData[:100]), "absurd-size"),
        (lambda ds: setattr(ds, "Rows", 60000), "absurd-size"),
        (lambda ds: setattr(ds.SegmentSequence[1], "SegmentNumber", 1), "bad-segmentation"),
        (lambda ds: setattr(ds, "SOPClassUID", "1.2.3"), "not-a-segmentation"),
    ]
    for edit, code in edits:
        assert refusal(changed(binary, tmp_path, edit), source).code == code


def test_mutated_files_give_only_errors_of_kidseg(
    tmp_path: Path, case: tuple[Path, Path, SourceSeries, np.ndarray]
) -> None:
    binary, labelmap, source, _ = case
    random = np.random.default_rng(5)
    path, refused = tmp_path / "seg.dcm", []
    for k in range(30):
        data = bytearray((binary, labelmap)[k % 2].read_bytes())
        if k % 5 == 0:
            del data[int(random.integers(len(data))) :]
        for _ in range(int(random.integers(1, 8))):
            if data:
                data[int(random.integers(len(data)))] = int(random.integers(256))
        path.write_bytes(bytes(data))
        try:
            segment_voxels(path, [1], source.native)
        except KidsegError as error:
            refused.append(error)
    assert len(refused) > 3 and all(e.path == str(path) and e.code for e in refused)
