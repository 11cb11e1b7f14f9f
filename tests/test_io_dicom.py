"""DICOM series: what is sound is read right, what is not is refused with numbers.

Synthetic series are made here by pydicom alone; highdicom and SimpleITK are the independent
readers.
"""

from __future__ import annotations

import copy
import errno
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from pydicom import Dataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    XRayRadiationDoseSRStorage,
)

from dicom_files import (
    AXIAL,
    SHAPE,
    SPACING,
    assign,
    blank,
    body,
    delete,
    enhanced,
    placed,
    refused,
    save,
    series,
    set_pixels,
    step_of,
)
from findings import codes
from kidseg.errors import InputError, ResourceError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import checks
from kidseg.io.dicom import list_series, read_series, write_series
from kidseg.io.orientation import reorient
from kidseg.io.scan import ReadOptions

DATA = Path(__file__).parents[2] / "shared" / "data"
ODD = DATA / "dicom_odd"
needs_data = pytest.mark.skipif(not ODD.is_dir(), reason="shared/data/dicom_odd is absent")

ANY = ReadOptions(values="any")
REPAIR = ReadOptions(repair=True)


def ramp(positions_lps: np.ndarray, iop: Sequence[float]) -> np.ndarray:
    """(slices, rows, columns) a linear function of the patient position, in LPS."""
    row = np.arange(SHAPE[1])[:, None, None] * SPACING[1] * np.array(iop[3:])
    column = np.arange(SHAPE[2])[:, None] * SPACING[2] * np.array(iop[:3])
    mm = positions_lps[:, None, None] + row + column
    return mm @ np.array([3.0, 5.0, 7.0])


def expected_ramp(grid: Grid) -> torch.Tensor:
    axes = [torch.arange(n, dtype=torch.float64) for n in grid.shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return grid.mm(index) @ torch.tensor([-3.0, -5.0, 7.0], dtype=torch.float64)


# ---- reading right -----------------------------------------------------------------------------


def test_a_sound_series_is_read_in_silence(tmp_path: Path) -> None:
    scan = read_series(series(tmp_path))
    assert scan.findings == ()
    assert torch.equal(scan.volume.data[0], torch.from_numpy(body()))
    assert scan.volume.data.dtype == torch.int16
    assert scan.format == "dicom" and scan.modality == "CT"
    assert scan.volume.grid.spacing_mm.tolist() == pytest.approx(SPACING)
    first = scan.native.mm([0.0, 0.0, 0.0]).tolist()
    assert first == pytest.approx([10.0, 20.0, 30.0])  # LPS (-10, -20, 30) in RAS
    assert scan.facts["patient_id"] == "P1" and scan.facts["series_uid"] == "1.2.3"
    assert scan.facts["description"] == "Abdomen"


def turned_cosines(seed: int) -> list[float]:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return [*q[:, 0], *q[:, 1]]


ORIENTATIONS = {
    "axial": AXIAL,
    "prone": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    "seen from above": (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
    "coronal": (1.0, 0.0, 0.0, 0.0, 0.0, -1.0),
    "sagittal": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0),
    "decubitus": (0.0, 1.0, 0.0, -1.0, 0.0, 0.0),
    "oblique": tuple(turned_cosines(1)),
    "oblique too": tuple(turned_cosines(2)),
}


@pytest.mark.row(15)
@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("way", [1, -1])
def test_any_orientation_has_its_values_in_place(tmp_path: Path, name: str, way: int) -> None:
    """The image is a linear function of the patient position: known at any voxel read."""
    iop = ORIENTATIONS[name]
    depth = way * np.arange(6) * SPACING[0]
    positions = np.array([-10.0, -20.0, 30.0]) + depth[:, None] * step_of(iop)
    values = ramp(positions, iop)
    scan = read_series(series(tmp_path, np.rint(values), iop=iop, positions=positions), ANY)
    off = scan.volume.data[0] - expected_ramp(scan.volume.grid)
    assert float(off.abs().max()) <= 0.51
    # highdicom has its slices the other way round
    peer = highdicom.get_volume_from_series([pydicom.dcmread(f) for f in tmp_path.iterdir()])
    peer = peer.flip_spatial(0)
    lps = np.diag([-1.0, -1, 1, 1]) @ scan.native.mm_from_index.numpy()
    assert np.allclose(lps, peer.affine, atol=1e-5)
    back = reorient(scan.volume, scan.native)
    assert np.array_equal(back.data[0].numpy(), peer.array)


@pytest.mark.row(15)
@pytest.mark.parametrize("position", ["HFS", "HFP", "FFS", "FFP", ""])
def test_patient_position_changes_nothing(tmp_path: Path, position: str) -> None:
    """Orientation is in patient space already; the table position must not be applied again."""
    scan = read_series(series(tmp_path, edit=assign("PatientPosition", position)))
    assert torch.equal(scan.volume.data[0], torch.from_numpy(body()))


def test_agrees_with_simpleitk(tmp_path: Path) -> None:
    scan = read_series(series(tmp_path, iop=ORIENTATIONS["oblique"]))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    itk = reader.Execute()
    for index in ((0, 0, 0), (5, 31, 39), (2, 10, 7)):
        lps = np.array(itk.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]]))
        ras = torch.from_numpy(lps * [-1, -1, 1])
        at = tuple(scan.volume.grid.index(ras).round().long().tolist())
        assert int(scan.volume.data[(0, *at)]) == itk[index[::-1]]
        assert np.allclose(scan.volume.grid.mm(np.array(at, float)), ras, atol=1e-4)


@pytest.mark.row(10)
def test_scalings_and_number_types(tmp_path: Path) -> None:
    values = body()
    for name, kind in (("u16", "uint16"), ("i32", "int32"), ("u32", "uint32")):
        scan = read_series(series(tmp_path / name, stored=kind))
        assert torch.equal(scan.volume.data[0].long(), torch.from_numpy(values).long())

    def half(ds: Dataset, k: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = 0.5, -1024
        set_pixels(ds, ((values[k].astype(np.int32) + 1024) * 2).astype(np.uint16))

    scan = read_series(series(tmp_path / "half", edit=half))
    assert torch.equal(scan.volume.data[0], torch.from_numpy(values).float())

    def own(ds: Dataset, k: int) -> None:
        ds.RescaleSlope, ds.RescaleIntercept = 1 + k, -1024 - k
        set_pixels(ds, np.rint((values[k] + 1024.0 + k) / (1 + k)).astype(np.uint16))

    scan = read_series(series(tmp_path / "own", edit=own))
    gap = scan.volume.data[0].float() - torch.from_numpy(values)
    assert (gap.abs().amax((1, 2)) <= torch.arange(1, 7) / 2).all()


@pytest.mark.row(10)
@pytest.mark.parametrize(
    "syntax", [ExplicitVRBigEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
def test_byte_orders(tmp_path: Path, syntax: str) -> None:
    def edit(ds: Dataset, _k: int) -> None:
        if syntax == ExplicitVRBigEndian:
            ds.PixelData = np.frombuffer(ds.PixelData, "<i2").astype(">i2").tobytes()
        ds.file_meta.TransferSyntaxUID = syntax

    scan = read_series(series(tmp_path, edit=edit))
    assert torch.equal(scan.volume.data[0], torch.from_numpy(body()))


@pytest.mark.row(10)
@pytest.mark.parametrize("signed", [False, True])
def test_junk_above_the_stored_bits(tmp_path: Path, signed: bool) -> None:
    """Twelve bits of sixteen; the other four hold an overlay."""

    def edit(ds: Dataset, k: int) -> None:
        offset = 0 if signed else 1024
        stored = (np.clip(body()[k], -1024, 1000).astype(np.int64) + offset) & 0x0FFF
        stored |= np.random.default_rng(k).integers(0, 16, stored.shape) << 12
        set_pixels(ds, stored.astype(np.uint16), bits=12)
        ds.PixelRepresentation = int(signed)
        ds.RescaleIntercept = -offset

    scan = read_series(series(tmp_path, edit=edit))
    assert torch.equal(scan.volume.data[0], torch.from_numpy(body().clip(-1024, 1000)))


@pytest.mark.parametrize(("written", "vr"), [(-2000, "SS"), (63536, "US")])
def test_padding_becomes_air(tmp_path: Path, written: int, vr: str) -> None:
    def edit(ds: Dataset, k: int) -> None:
        stored = body()[k].copy()
        stored[:5] = -2000
        set_pixels(ds, stored)
        ds.RescaleIntercept = 0
        ds.add_new("PixelPaddingValue", vr, written)

    scan = read_series(series(tmp_path, edit=edit))  # US is wrong here, and found in real files
    assert codes(scan) == ["padding-replaced"]
    assert "15.6 %" in scan.findings[0].cause
    assert (scan.volume.data[0, :, :5] == -1024).all()
    assert torch.equal(scan.volume.data[0, :, 5:], torch.from_numpy(body()[:, 5:]))


@pytest.mark.parametrize(("written", "vr"), [(-2000, "SS"), (63536, "US")])
def test_padding_of_unsigned_pixels_becomes_air(tmp_path: Path, written: int, vr: str) -> None:
    def edit(ds: Dataset, k: int) -> None:
        stored = (body()[k].astype(np.int64) + 1024).astype(np.uint16)
        stored[:5] = 63536
        set_pixels(ds, stored)
        ds.add_new("PixelPaddingValue", vr, written)

    scan = read_series(series(tmp_path, edit=edit))
    assert codes(scan) == ["padding-replaced"]
    assert (scan.volume.data[0, :, :5] == -1024).all()
    assert torch.equal(scan.volume.data[0, :, 5:], torch.from_numpy(body()[:, 5:]))


def test_padding_that_could_be_tissue_is_kept(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        set_pixels(ds, body()[k])
        ds.RescaleIntercept = 0
        ds.add_new("PixelPaddingValue", "SS", 40)

    scan = read_series(series(tmp_path, edit=edit))
    assert codes(scan) == ["ambiguous-padding"]
    assert torch.equal(scan.volume.data[0], torch.from_numpy(body()))


def test_padding_range(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        stored = body()[k].copy()
        stored[0], stored[1] = -2000, -1990
        set_pixels(ds, stored)
        ds.RescaleIntercept = 0
        ds.add_new("PixelPaddingValue", "SS", -2000)
        ds.add_new("PixelPaddingRangeLimit", "SS", -1990)

    scan = read_series(series(tmp_path, edit=edit))
    assert (scan.volume.data[0, :, :2] == -1024).all() and codes(scan) == ["padding-replaced"]


# ---- rows 5, 6, 8, 16 --------------------------------------------------------------------------


@pytest.mark.row(5)
@pytest.mark.parametrize("value", [[0, 0.5], [-1, 0.5], None])
def test_bad_pixel_spacing(tmp_path: Path, value: list[float] | None) -> None:
    edit = assign("PixelSpacing", value) if value else delete("PixelSpacing")
    folder = series(tmp_path, edit=edit)
    assert "spacing" in refused(folder, code="bad-spacing").lower()
    scan = read_series(folder, ReadOptions(spacing_mm=(2.5, 0.75, 0.5)))
    assert scan.volume.grid.spacing_mm.tolist() == pytest.approx(SPACING)


@pytest.mark.row(5)
def test_nan_and_an_overriding_spacing(tmp_path: Path) -> None:
    folder = series(tmp_path)
    for file in folder.iterdir():
        content = file.read_bytes()
        assert content.count(b"0.75\\0.5") == 1
        file.write_bytes(content.replace(b"0.75\\0.5", b"nan\\nan "))
    refused(folder, code="bad-spacing")
    scan = read_series(folder, ReadOptions(spacing_mm=(3.0, 0.8, 0.6)))
    assert scan.volume.grid.spacing_mm.tolist() == pytest.approx((3.0, 0.8, 0.6))
    refused(folder, ReadOptions(spacing_mm=(3.0, 0.8, -0.6)), "bad-spacing")


@pytest.mark.row(6)
def test_absurd_header_is_refused_before_allocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(ds: Dataset, _k: int) -> None:
        ds.Rows = ds.Columns = 65535

    folder = series(tmp_path, edit=edit)
    monkeypatch.setattr(np, "empty", lambda *_a, **_k: pytest.fail("allocated"))
    assert "GiB" in refused(folder, code="absurd-size")


@pytest.mark.row(6)
def test_a_deflated_file_that_could_inflate_beyond_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def edit(ds: Dataset, _k: int) -> None:
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    folder = series(tmp_path, edit=edit)
    monkeypatch.setattr(checks, "available_memory_bytes", lambda: 1_000_000)
    refused(folder, code="not-enough-memory")


@pytest.mark.row(6)
def test_more_than_the_memory(tmp_path: Path) -> None:
    folder = series(tmp_path)
    refused(folder, ReadOptions(memory_limit_bytes=30_000), "not-enough-memory")


@pytest.mark.row(1)
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.999])
def test_truncated_files(tmp_path: Path, keep: float) -> None:
    folder = series(tmp_path)
    file = sorted(folder.iterdir())[2]
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InputError) as caught:
        read_series(folder)
    assert caught.value.code in ("absurd-size", "bad-pixels", "bad-dicom")
    assert file.name in str(caught.value)


@pytest.mark.row(1)
@pytest.mark.parametrize("length", [100, 140, 300, 500])
def test_truncated_headers_are_not_left_aside(tmp_path: Path, length: int) -> None:
    folder = series(tmp_path)
    file = sorted(folder.iterdir())[2]
    file.write_bytes(file.read_bytes()[:length])
    if length < 132:  # no DICOM any more: named, and the gap it leaves is seen
        refused(folder, code="missing-slices")
    else:
        assert file.name in refused(folder, code="bad-dicom")


@pytest.mark.row(8)
def test_colour_is_refused(tmp_path: Path) -> None:
    def edit(ds: Dataset, _k: int) -> None:
        set_pixels(ds, np.zeros((32, 40), np.uint8))
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 3, "RGB"
        ds.PlanarConfiguration = 0
        ds.PixelData = bytes(32 * 40 * 3)

    refused(series(tmp_path, edit=edit), code="colour-image")


@pytest.mark.row(8)
@pytest.mark.parametrize("kind", ["PALETTE COLOR", "RGB", "YBR_FULL"])
def test_colour_of_one_sample_is_refused(tmp_path: Path, kind: str) -> None:
    """Values of a palette are indices of colours, as those of perfusion maps may be."""
    path = series(tmp_path, edit=assign("PhotometricInterpretation", kind))
    refused(path, code="colour-image")


@pytest.mark.row(8)
def test_one_slice_is_a_volume_of_one_slice(tmp_path: Path) -> None:
    folder = series(tmp_path, body(shape=(1, 32, 40)))
    (file,) = folder.iterdir()
    for path in (folder, file):
        scan = read_series(path)
        assert scan.volume.grid.shape == (1, 32, 40) and codes(scan) == ["single-slice"]
        assert scan.volume.grid.spacing_mm.tolist() == pytest.approx(SPACING)
    edited = series(tmp_path / "b", body(shape=(1, 32, 40)), edit=delete("SliceThickness"))
    refused(edited, code="no-thickness")
    scan = read_series(edited, ReadOptions(spacing_mm=(4.0, 0.75, 0.5)))
    assert scan.volume.grid.spacing_mm.tolist() == pytest.approx((4.0, 0.75, 0.5))


@pytest.mark.row(8)
def test_odd_bit_layouts_are_refused(tmp_path: Path) -> None:
    refused(series(tmp_path, edit=assign("HighBit", 11)), code="unsupported-type")


@pytest.mark.row(16)
def test_coarse_voxels_are_said(tmp_path: Path) -> None:
    positions = np.array([0.0, 0, 0]) + np.arange(6)[:, None] * 6.0 * step_of(AXIAL)
    scan = read_series(series(tmp_path, positions=positions))
    assert codes(scan) == ["anisotropic-voxels", "thick-slices"]


# ---- row 17: broken stacks ---------------------------------------------------------------------


@pytest.mark.row(17)
def test_missing_slices(tmp_path: Path) -> None:
    positions = placed([0, 2.5, 5, 10, 12.5, 20])
    folder = series(tmp_path, ramp(positions, AXIAL), positions=positions)
    message = refused(folder, ANY, "missing-slices")
    assert "3 slices seem to be missing" in message
    assert "2.5 mm apart" in message and "7.5 mm between slice 5" in message
    scan = read_series(folder, ReadOptions(values="any", repair=True))
    assert codes(scan) == ["repaired-missing-slices"]
    assert scan.volume.grid.shape == (9, 32, 40)
    assert scan.native.same_as(scan.volume.grid)
    assert scan.volume.grid.spacing_mm.tolist() == pytest.approx(SPACING)
    off = scan.volume.data[0] - expected_ramp(scan.volume.grid)
    assert float(off.abs().max()) <= 1.01  # stored values were rounded down
    sound = read_series(series(tmp_path / "b", body()), REPAIR)
    assert sound.findings == ()


@pytest.mark.row(17)
def test_repair_keeps_the_slices_that_are_there(tmp_path: Path) -> None:
    scan = read_series(series(tmp_path, positions=placed([0, 2.5, 5, 10, 12.5, 15])), REPAIR)
    kept = scan.volume.data[0, [0, 1, 2, 4, 5, 6]]
    assert torch.equal(kept, torch.from_numpy(body()).float())
    between = torch.from_numpy(body()).float()[[2, 3]].mean(0)
    assert torch.allclose(scan.volume.data[0, 3], between, atol=1e-3)


@pytest.mark.row(17)
def test_uneven_slices(tmp_path: Path) -> None:
    positions = placed([0, 1.1, 4, 8.2, 9, 13])
    folder = series(tmp_path, ramp(positions, AXIAL), positions=positions)
    message = refused(folder, ANY, "uneven-slices")
    assert "1.10 mm (1x)" in message and "4.2 mm between slice 3" in message
    scan = read_series(folder, ReadOptions(values="any", repair=True))
    assert codes(scan)[0] == "repaired-uneven-slices"
    ends = scan.volume.grid.mm([[0.0, 0, 0], [scan.volume.grid.shape[0] - 1, 0, 0]])
    assert ends[:, 2].tolist() == pytest.approx([30, 43])
    off = scan.volume.data[0] - expected_ramp(scan.volume.grid)
    assert float(off.abs().max()) <= 1.01


@pytest.mark.row(17)
def test_rounded_positions_are_even(tmp_path: Path) -> None:
    """0.625 mm written with two decimals: gaps of 0.62 and 0.63 mm."""
    positions = np.round(placed(np.arange(6) * 0.625), 2)
    scan = read_series(series(tmp_path, positions=positions))
    assert scan.findings == ()
    assert float(scan.volume.grid.spacing_mm[0]) == pytest.approx(0.625, abs=0.003)


@pytest.mark.row(17)
def test_a_gap_too_wide_to_bridge(tmp_path: Path) -> None:
    folder = series(tmp_path, positions=placed([0, 2.5, 5, 7.5, 10, 30]))
    assert "20.0 mm" in refused(folder, REPAIR, "gap-too-wide")


@pytest.mark.row(17)
def test_identical_duplicates(tmp_path: Path) -> None:
    folder = series(tmp_path)
    file = sorted(folder.iterdir())[0]
    shutil.copy(file, folder / "copy of it.dcm")
    message = refused(folder, code="duplicate-slices")
    assert "identical" in message and file.name in message and "30.00 mm" in message
    scan = read_series(folder, REPAIR)
    assert codes(scan) == ["dropped-duplicates"]
    assert torch.equal(scan.volume.data[0], torch.from_numpy(body()))


@pytest.mark.row(17)
def test_duplicates_are_told_apart_by_their_folders_or_frames(tmp_path: Path) -> None:
    one = series(tmp_path / "study" / "one")
    shutil.copytree(one, tmp_path / "study" / "two")
    name = sorted(one.iterdir())[0].name
    said = refused(tmp_path / "study", code="duplicate-slices")
    assert f"(one/{name}, two/{name})" in said
    file = enhanced(tmp_path / "frames.dcm")
    ds = pydicom.dcmread(file)
    groups = list(ds.PerFrameFunctionalGroupsSequence)
    ds.PerFrameFunctionalGroupsSequence = groups + copy.deepcopy(groups)
    ds.NumberOfFrames, ds.PixelData = 2 * ds.NumberOfFrames, 2 * ds.PixelData
    save(ds, file)
    assert "(frame 1, frame 7)" in refused(file, code="duplicate-slices")


@pytest.mark.row(17)
def test_different_images_at_one_position(tmp_path: Path) -> None:
    positions = placed([0, 2.5, 5, 5, 7.5, 10])
    folder = series(tmp_path, positions=positions)
    for options in (ReadOptions(), REPAIR):
        assert "different" in refused(folder, options, "duplicate-slices")


@pytest.mark.row(17)
def test_all_at_one_position(tmp_path: Path) -> None:
    folder = series(tmp_path, positions=placed([0] * 6))
    for options in (ReadOptions(), REPAIR):
        assert "all 6 images" in refused(folder, options, "same-position")


@pytest.mark.row(7)
def test_several_phases_in_one_series(tmp_path: Path) -> None:
    folder = series(tmp_path, positions=placed([0, 2.5, 5, 0, 2.5, 5]))
    message = refused(folder, REPAIR, "several-volumes")
    assert "images 1 to 3" in message and "images 4 to 6" in message


def tilted(degrees: float) -> tuple[tuple[float, ...], np.ndarray]:
    """Cosines and positions of slices turned about the row axis, the table moving along z."""
    angle = np.radians(degrees)
    iop = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(-np.sin(angle)))
    return iop, placed(np.arange(6) * 2.5)


@pytest.mark.row(17)
def test_gantry_tilt(tmp_path: Path) -> None:
    iop, positions = tilted(18.5)
    values = ramp(positions, iop)
    folder = series(tmp_path, values, iop=iop, positions=positions)
    assert "18.50 degrees" in refused(folder, ANY, "gantry-tilt")
    scan = read_series(folder, ReadOptions(values="any", repair=True))
    assert codes(scan) == ["repaired-gantry-tilt"]
    grid = scan.volume.grid
    axes = grid.mm_from_index[:3, :3] / grid.spacing_mm
    assert torch.allclose(axes.T @ axes, torch.eye(3, dtype=torch.float64), atol=1e-9)
    assert grid.spacing_mm.tolist() == pytest.approx(
        [2.5 * np.cos(np.radians(18.5)), 0.75, 0.5], rel=1e-6
    )
    # true where there was a slice; edges and the wedges outside are fill
    truth = expected_ramp(grid)
    source = Grid(SHAPE, _sheared(iop, positions))
    index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in grid.shape], indexing="ij"), -1)
    at = source.index(grid.mm(index.double()))
    inside = ((at >= -1e-6) & (at <= torch.tensor(SHAPE) - 1 + 1e-6)).all(-1)
    assert int(inside.sum()) > 0.9 * np.prod(SHAPE)
    assert float((scan.volume.data[0] - truth)[inside].abs().max()) <= 1.01


def _sheared(iop: Sequence[float], positions: np.ndarray) -> torch.Tensor:
    lps = np.eye(4)
    lps[:3, 0] = positions[1] - positions[0]
    lps[:3, 1], lps[:3, 2] = np.array(iop[3:]) * SPACING[1], np.array(iop[:3]) * SPACING[2]
    lps[:3, 3] = positions[0]
    return torch.from_numpy(np.diag([-1.0, -1, 1, 1]) @ lps)


@pytest.mark.row(17)
def test_tilt_and_a_missing_slice(tmp_path: Path) -> None:
    iop, _ = tilted(-15.0)
    positions = placed([0, 2.5, 5, 10, 12.5, 15])
    folder = series(tmp_path, ramp(positions, iop), iop=iop, positions=positions)
    refused(folder, ANY, "missing-slices")
    scan = read_series(folder, ReadOptions(values="any", repair=True))
    assert codes(scan) == ["repaired-missing-slices", "repaired-gantry-tilt"]
    grid = scan.volume.grid
    assert grid.shape[0] == 7
    centre = tuple(slice(n // 2 - 2, n // 2 + 3) for n in grid.shape)
    off = (scan.volume.data[0] - expected_ramp(grid))[centre]
    assert float(off.abs().max()) <= 1.01


@pytest.mark.row(17)
def test_a_tilt_that_the_positions_do_not_show(tmp_path: Path) -> None:
    scan = read_series(series(tmp_path, edit=assign("GantryDetectorTilt", 12)))
    assert codes(scan) == ["tilt-disagrees"]


@pytest.mark.row(17)
def test_mixed_orientation_is_never_repaired(tmp_path: Path) -> None:
    edit = assign("ImageOrientationPatient", [1, 0, 0, 0, 0, -1], which=3)
    folder = series(tmp_path, edit=edit)
    for options in (ReadOptions(), REPAIR):
        assert "90.00 degrees" in refused(folder, options, "mixed-orientation")
    edit = assign("ImageOrientationPatient", [1, 0, 0, 0, 2, 0])
    refused(series(tmp_path / "b", edit=edit), code="bad-orientation")


@pytest.mark.row(17)
def test_mixed_spacing_size_patient_and_frame(tmp_path: Path) -> None:
    folder = series(tmp_path / "a", edit=assign("PixelSpacing", [0.8, 0.5], which=3))
    message = refused(folder, REPAIR, "mixed-spacing")
    assert "0.75 x 0.5 mm (5x)" in message and "0.8 x 0.5 mm (1x)" in message

    def smaller(ds: Dataset, k: int) -> None:
        if k == 2:
            set_pixels(ds, np.zeros((16, 40), np.int16))

    message = refused(series(tmp_path / "b", edit=smaller), REPAIR, "mixed-size")
    without = refused(series(tmp_path / "n", edit=delete("Columns", 2)), REPAIR, "empty-axis")
    assert "1 of 6 images have 32 rows and no columns" in without and "truncated" in without
    assert "32 x 40 (5x)" in message and "16 x 40 (1x)" in message
    refused(series(tmp_path / "c", edit=assign("PatientID", "P2", 1)), code="mixed-patients")
    edit = assign("FrameOfReferenceUID", "1.2.10", 1)
    refused(series(tmp_path / "d", edit=edit), code="mixed-frames-of-reference")


@pytest.mark.row(17)
def test_slices_shifted_in_their_planes(tmp_path: Path) -> None:
    positions = placed(np.arange(6) * 2.5)
    positions[3, 0] += 4
    message = refused(series(tmp_path, positions=positions), REPAIR, "misaligned-slices")
    assert "slice 4" in message and "4.00 mm" in message


# ---- rows 18 and 19: what else lies in a folder ------------------------------------------------


@pytest.mark.row(18)
def test_several_series_are_listed(tmp_path: Path) -> None:
    series(tmp_path / "1", uid="1.2.3")
    series(tmp_path / "2", body(1), uid="1.2.4")
    message = refused(tmp_path, code="several-series")
    for part in ("series 3 'Abdomen' (CT, 6 images", "UID 1.2.3", "UID 1.2.4", "--series"):
        assert part in message
    for wanted, seed in (("1.2.3", 0), ("3", 0), ("4", 1), ("1.2.4", 1)):
        scan = read_series(tmp_path, ReadOptions(series=wanted))
        assert torch.equal(scan.volume.data[0], torch.from_numpy(body(seed)))
        assert codes(scan) == ["ignored-series"]
    assert "1.2.4" in refused(tmp_path, ReadOptions(series="99"), "no-such-series")
    listed = list_series(tmp_path)
    assert [(s.uid, s.number, s.modality, s.n_images, s.kind) for s in listed] == [
        ("1.2.3", "3", "CT", 6, "volume"),
        ("1.2.4", "4", "CT", 6, "volume"),
    ]


def beside_the_ct(folder: Path) -> None:
    """A localiser, a dose report, a segmentation and a secondary capture."""
    series(
        folder / "scout",
        body(3, (2, 32, 40)),
        uid="1.2.1",
        iop=ORIENTATIONS["coronal"],
        edit=assign("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    )
    save(blank(XRayRadiationDoseSRStorage, "1.2.50", "SR"), folder / "dose.dcm")
    segmentation = blank(SegmentationStorage, "1.2.60", "SEG")
    set_pixels(segmentation, np.zeros((32, 40), np.uint8))
    save(segmentation, folder / "seg.dcm")
    capture = blank(SecondaryCaptureImageStorage, "1.2.70")
    set_pixels(capture, np.zeros((32, 40), np.uint8))
    save(capture, folder / "screen.dcm")
    nowhere = blank(CTImageStorage, "1.2.80")
    set_pixels(nowhere, np.zeros((32, 40), np.int16))
    save(nowhere, folder / "summary.dcm")


@pytest.mark.row(17)
@pytest.mark.parametrize("which", [0, 2, -1])
def test_an_empty_file_among_the_slices(tmp_path: Path, which: int) -> None:
    folder = series(tmp_path / "ct")
    sorted(folder.iterdir())[which].write_bytes(b"")
    assert "empty" in refused(folder, code="empty-file")
    if which != 2:
        scan = read_series(folder, ReadOptions(repair=True))
        assert scan.native.shape[0] == SHAPE[0] - 1 and "ignored-files" in codes(scan)


@pytest.mark.row(19)
def test_what_lies_beside_the_ct_is_left_aside(tmp_path: Path) -> None:
    series(tmp_path / "ct")
    beside_the_ct(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    directory = blank("1.2.840.10008.1.3.10", "")
    save(directory, tmp_path / "DICOMDIR")
    (tmp_path / "ct" / ".DS_Store").write_bytes(b"hidden")
    scan = read_series(tmp_path)
    assert torch.equal(scan.volume.data[0], torch.from_numpy(body()))
    assert codes(scan) == ["ignored-files", "ignored-series"]
    for name in ("notes.txt", "empty", "DICOMDIR"):
        assert name in scan.findings[0].cause
    assert "3 files" in scan.findings[0].cause
    for kind in ("localiser", "Radiation Dose SR", "segmentation", "secondary capture"):
        assert kind in scan.findings[1].cause
    kinds = {s.kind for s in list_series(tmp_path)}
    assert len(kinds) == 6 and "images without position" in kinds


@pytest.mark.row(19)
def test_a_localiser_within_the_series(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        if k == 0:
            ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]

    scan = read_series(series(tmp_path, edit=edit))
    assert scan.volume.grid.shape[0] == 5 and codes(scan) == ["ignored-series"]


@pytest.mark.row(19)
def test_nothing_but_them_is_no_volume(tmp_path: Path) -> None:
    beside_the_ct(tmp_path)
    assert "localiser" in refused(tmp_path, code="no-volume")
    refused(tmp_path, ReadOptions(series="60"), "not-a-scan")
    refused(tmp_path / "summary.dcm", code="no-position")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("hello")
    refused(tmp_path / "text", code="no-dicom")
    refused(tmp_path / "text" / "a.txt", code="no-dicom")
    refused(tmp_path / "nowhere", code="not-found")


# ---- row 20: multi-frame and compressed --------------------------------------------------------


@pytest.mark.row(20)
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("per_frame", [False, True])
def test_enhanced_multi_frame(tmp_path: Path, shuffle: bool, per_frame: bool) -> None:
    path = enhanced(tmp_path / "e.dcm", shuffle=shuffle, per_frame_slope=per_frame)
    single = read_series(series(tmp_path / "single"))
    for given in (path, tmp_path / "alone"):
        if given != path:
            given.mkdir()
            shutil.copy(path, given)
        scan = read_series(given)
        assert scan.findings == ()
        assert torch.equal(scan.volume.data, single.volume.data)
        assert scan.volume.grid.same_as(single.volume.grid, 1e-6)
    peer = highdicom.imread(path).get_volume_geometry()
    assert peer is not None and peer.spacing == pytest.approx(SPACING)


@pytest.mark.row(20)
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_is_equal_to_uncompressed(tmp_path: Path, syntax: str) -> None:
    def edit(ds: Dataset, _k: int) -> None:
        ds.compress(syntax)

    scan = read_series(series(tmp_path, edit=edit, stored="uint16"))
    assert scan.findings == () and torch.equal(scan.volume.data[0], torch.from_numpy(body()))


@pytest.mark.row(20)
def test_truncated_compressed_pixels(tmp_path: Path) -> None:
    folder = series(tmp_path, edit=lambda ds, _k: ds.compress(JPEG2000Lossless), stored="uint16")
    file = sorted(folder.iterdir())[0]
    file.write_bytes(file.read_bytes()[:-200])
    assert file.name in refused(folder, code="bad-pixels")


@pytest.mark.row(20)
def test_lossy_compression_is_said(tmp_path: Path) -> None:
    def edit(ds: Dataset, _k: int) -> None:
        ds.LossyImageCompression, ds.LossyImageCompressionRatio = "01", 12

    scan = read_series(series(tmp_path, edit=edit))
    assert codes(scan) == ["lossy-compression"] and "12" in scan.findings[0].cause


def test_data_sets_without_a_head_are_read(tmp_path: Path) -> None:
    """As old archives keep them: no preamble, no meta information, implicit little endian."""
    folder = series(tmp_path)
    for file in folder.iterdir():
        ds = pydicom.dcmread(file)
        bare = Dataset()
        bare.update(ds)
        pydicom.dcmwrite(file, bare, implicit_vr=True, little_endian=True, overwrite=True)
        assert file.read_bytes()[128:132] != b"DICM"
    assert torch.equal(read_series(folder).volume.data[0], torch.from_numpy(body()))


# ---- rows 21 and 22 ----------------------------------------------------------------------------


@pytest.mark.row(21)
def test_mr_is_refused_where_ct_is_asked(tmp_path: Path) -> None:
    def edit(ds: Dataset, _k: int) -> None:
        ds.SOPClassUID, ds.Modality = MRImageStorage, "MR"
        ds.file_meta.MediaStorageSOPClassUID = MRImageStorage

    folder = series(tmp_path / "mr", edit=edit, uid="1.2.5")
    assert "modality is MR, not CT" in refused(folder, code="not-ct")
    assert read_series(folder, ANY).modality == "MR"
    series(tmp_path / "ct")
    assert read_series(tmp_path).modality == "CT"
    refused(tmp_path, ANY, "several-series")


@pytest.mark.row(21)
@pytest.mark.parametrize(
    ("uid", "name"), [("1.2.840.10008.1.2.4.100", "MPEG2"), ("1.2.3.4.5", "unknown")]
)
def test_undecodable_syntax_is_named(tmp_path: Path, uid: str, name: str) -> None:
    folder = series(tmp_path)
    for file in folder.iterdir():
        content = file.read_bytes()
        old = b"1.2.840.10008.1.2.1\0"
        new = uid.encode() + b"\0" * (len(uid) % 2)
        start = content.index(old)
        head = content[: start - 2] + len(new).to_bytes(2, "little") + new
        head_size = int.from_bytes(content[140:144], "little") + len(new) - len(old)
        head = head[:140] + head_size.to_bytes(4, "little") + head[144:]
        file.write_bytes(head + content[start + len(old) :])
    message = refused(folder, code="undecodable-syntax")
    assert uid in message and name in message


@pytest.mark.row(21)
@pytest.mark.parametrize("kind", ["Z_EFF", "OD"])
def test_values_that_are_no_hounsfield_units(tmp_path: Path, kind: str) -> None:
    folder = series(tmp_path, edit=assign("RescaleType", kind))
    assert kind in refused(folder, code="not-hounsfield")


@pytest.mark.row(22)
def test_missing_identity_gets_placeholders(tmp_path: Path) -> None:
    def edit(ds: Dataset, _k: int) -> None:
        del ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID

    folder = series(tmp_path, edit=edit)
    scan = read_series(folder)
    assert codes(scan) == ["missing-identity"]
    for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert name in scan.findings[0].cause
    assert scan.facts["patient_id"] == "unknown"
    uids = [scan.facts[k] for k in ("study_uid", "series_uid", "frame_of_reference_uid")]
    assert len(set(uids)) == 3 and all(pydicom.uid.UID(u).is_valid for u in uids)
    assert dict(read_series(folder).facts) == dict(scan.facts)


@pytest.mark.row(22)
def test_missing_rescale_is_said(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        set_pixels(ds, body()[k])
        del ds.RescaleSlope, ds.RescaleIntercept

    scan = read_series(series(tmp_path, edit=edit))
    assert codes(scan) == ["missing-rescale"]
    assert torch.equal(scan.volume.data[0], torch.from_numpy(body()))
    refused(series(tmp_path / "b", edit=assign("RescaleSlope", 0)), code="bad-rescale")


@pytest.mark.row(22)
@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
def test_rescale_that_only_some_images_state(tmp_path: Path, name: str) -> None:
    """The slice without would be 1024 HU off; where all are HU already, it would not."""
    some = series(tmp_path / "some", edit=delete(name, 2))
    assert "1 of 6 images, first 014-2.dcm" in refused(some, code="bad-rescale")

    def edit(ds: Dataset, k: int) -> None:
        set_pixels(ds, body()[k])
        ds.RescaleIntercept = 0
        if k == 2:
            delattr(ds, name)

    scan = read_series(series(tmp_path / "hu", edit=edit))
    assert codes(scan) == ["missing-rescale"]
    assert torch.equal(scan.volume.data[0], torch.from_numpy(body()))


def test_a_modality_in_lower_case_is_that_modality(tmp_path: Path) -> None:
    scan = read_series(series(tmp_path, edit=assign("Modality", "ct")))
    assert scan.modality == "CT" and codes(scan) == []


def test_padding_must_be_one_number(tmp_path: Path) -> None:
    path = series(tmp_path, edit=assign("PixelPaddingValue", [-2000, -1000]))
    assert "Pixel Padding Value" in refused(path, code="bad-padding")


@pytest.mark.row(22)
@pytest.mark.parametrize("name", ["ImagePositionPatient", "ImageOrientationPatient"])
@pytest.mark.parametrize("which", [None, 2])
def test_missing_position_is_refused(tmp_path: Path, name: str, which: int | None) -> None:
    refused(series(tmp_path, edit=delete(name, which)), REPAIR, code="no-position")


@pytest.mark.row(11)
def test_unscaled_values_are_refused(tmp_path: Path) -> None:
    """A body in air whose intercept was lost: tissue at about 1000."""
    values = body().astype(np.int32) + 1024
    refused(series(tmp_path, values), code="shifted-hu")


# ---- writing -----------------------------------------------------------------------------------

FACTS = {"seed": "1/2", "patient_id": "phantom_001", "sex": "F", "age": "003Y"}


def phantom(directions: np.ndarray | None = None) -> Volume:
    grid = Grid.from_spacing(SHAPE, SPACING, (11.5, -7.25, 130.125))
    if directions is not None:
        matrix = grid.mm_from_index.clone()
        matrix[:3, :3] = torch.from_numpy(directions) @ matrix[:3, :3]
        grid = Grid(SHAPE, matrix)
    return Volume(torch.from_numpy(body())[None], grid)


@pytest.mark.parametrize("seed", [None, 5])
def test_written_series_come_back(tmp_path: Path, seed: int | None) -> None:
    turn = None
    if seed is not None:  # a small turn, as a tilted patient has
        q, _ = np.linalg.qr(np.eye(3) + 0.1 * np.random.default_rng(seed).normal(size=(3, 3)))
        turn = q * np.sign(np.diag(q))
    volume = phantom(turn)
    files = write_series(volume, tmp_path / "serie ü", facts=FACTS)
    assert [f.name for f in files] == [f"{k:04d}.dcm" for k in range(1, 7)]
    scan = read_series(tmp_path / "serie ü")
    assert scan.findings == () and scan.facts["patient_id"] == "phantom_001"
    assert torch.equal(scan.volume.data, volume.data)
    assert scan.volume.grid.same_as(volume.grid, 1e-4)
    peer = highdicom.get_volume_from_series([pydicom.dcmread(f) for f in files])
    assert sorted(peer.array.ravel()) == sorted(volume.data.numpy().ravel())
    itk = sitk.ReadImage([str(f) for f in files])
    assert np.array_equal(sitk.GetArrayFromImage(itk), volume.data[0].numpy())
    first = volume.grid.mm([0.0, 0, 0]).numpy() * [-1, -1, 1]
    assert np.allclose(itk.GetOrigin(), first, atol=1e-4)


def test_written_objects_say_what_they_are(tmp_path: Path) -> None:
    (file, *_) = write_series(phantom(), tmp_path / "a", facts=FACTS)
    assert file.read_bytes()[:132] == bytes(128) + b"DICM"
    ds = pydicom.dcmread(file)
    assert "RESEARCH USE ONLY" in ds.ImageComments and "phantom" in ds.ImageComments
    assert "RESEARCH USE ONLY" in ds.SeriesDescription
    required = (
        "SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID "
        "Modality ImageType InstanceNumber PixelSpacing ImagePositionPatient SliceThickness "
        "ImageOrientationPatient RescaleSlope RescaleIntercept SamplesPerPixel KVP PatientName "
        "PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber "
        "ReferringPhysicianName SeriesNumber Manufacturer AcquisitionNumber PatientPosition"
    )
    for name in re.split(" ", required):
        assert name in ds, name
    assert ds.PhotometricInterpretation == "MONOCHROME2"
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert all(pydicom.uid.UID(u).is_valid for u in (ds.SOPInstanceUID, ds.StudyInstanceUID))


def test_writing_is_deterministic_by_seed(tmp_path: Path) -> None:
    one, two, other = (
        [f.read_bytes() for f in write_series(phantom(), tmp_path / name, facts=facts)]
        for name, facts in (("1", FACTS), ("2", FACTS), ("3", {**FACTS, "seed": "other"}))
    )
    assert one == two and one != other
    uids = {pydicom.dcmread(f).SOPInstanceUID for n in "13" for f in (tmp_path / n).iterdir()}
    assert len(uids) == 12


@pytest.mark.row(26)
def test_writing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def code(volume: Volume, name: str = "out", **facts: str) -> str:
        with pytest.raises((UsageError, InputError)) as caught:
            write_series(volume, tmp_path / name, facts={**FACTS, **facts})
        return caught.value.code

    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("x")
    assert code(phantom(), "there") == "output-exists"
    assert code(phantom(), "nowhere/out") == "not-writable"
    assert code(phantom(), "file/out") == "not-writable"
    assert code(phantom(), seed="") == "no-seed"
    assert code(phantom(), age="3 years") == "bad-fact"
    assert code(phantom(), patient_id="a\\b") == "bad-fact"
    high = Volume(phantom().data.int() + 40000, phantom().grid)
    assert code(high) == "not-hounsfield"
    assert code(Volume(phantom().data * float("nan"), phantom().grid)) == "not-hounsfield"
    two = Volume(phantom().data.repeat(2, 1, 1, 1), phantom().grid)
    assert code(two) == "not-one-volume"
    shear = phantom().grid.mm_from_index.clone()
    shear[1, 0] = 0.5
    assert code(Volume(phantom().data, Grid(SHAPE, shear))) == "sheared"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "there"]


@pytest.mark.fault("disk full")
def test_a_full_disk_leaves_no_half_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = os.fsync

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError) as caught:
        write_series(phantom(), tmp_path / "out", facts=FACTS)
    assert caught.value.code == "disk-full" and not list(tmp_path.iterdir())


# ---- real files --------------------------------------------------------------------------------


@pytest.mark.row(17)
@needs_data
def test_real_series_that_readers_get_wrong() -> None:
    failing = ODD / "dicom2nifti_failing"
    assert "14.00 degrees" in refused(failing / "gantrytilting_001", code="gantry-tilt")
    assert "10 mm between" in refused(failing / "sliceincrement_001", code="missing-slices")
    refused(failing / "sliceincrement_002", code="missing-slices")
    refused(failing / "notavolume_001", REPAIR, "same-position")
    refused(failing / "slicecount_001", code="not-ct")
    refused(failing / "sliceorientation_001", ANY, "mixed-orientation")
    message = refused(ODD / "GE_tilt_variable_spacing", code="uneven-slices")
    assert "4.00 mm (13x)" in message and "7.00 mm (13x)" in message
    refused(ODD / "monai_CT_DICOM", REPAIR, "gap-too-wide")
    refused(failing, code="several-series")


@pytest.mark.row(17)
@needs_data
def test_a_real_tilted_head_is_repaired() -> None:
    scan = read_series(ODD / "GE_tilt_variable_spacing", REPAIR)
    assert "repaired-gantry-tilt" in codes(scan) and "repaired-uneven-slices" in codes(scan)
    source = pydicom.dcmread(ODD / "GE_tilt_variable_spacing" / "10.dcm")
    # the voxel at the middle of slice 10, where an acquired and a new slice (nearly) coincide
    iop, ipp = np.array(source.ImageOrientationPatient), np.array(source.ImagePositionPatient)
    spacing = np.array(source.PixelSpacing, float)
    rows, columns = np.mgrid[200:300:7, 200:300:7]
    lps = (
        ipp + (rows * spacing[0])[..., None] * iop[3:] + (columns * spacing[1])[..., None] * iop[:3]
    )
    at = scan.volume.grid.index(torch.from_numpy(lps * [-1, -1, 1])).round().long()
    found = scan.volume.data[0][at[..., 0], at[..., 1], at[..., 2]].numpy()
    true = source.pixel_array[rows, columns].astype(float)
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.97


@pytest.mark.row(19)
@needs_data
def test_a_real_series_beside_its_segmentation() -> None:
    scan = read_series(ODD / "dcmqi_ct-3slice")
    assert scan.volume.grid.shape == (3, 512, 512)
    assert scan.volume.grid.spacing_mm.tolist() == pytest.approx([1.0, 0.810547, 0.810547])
    assert set(codes(scan)) == {"ignored-series", "padding-replaced"}
    refused(ODD / "dcmqi_ct-3slice" / "liver.dcm", code="not-a-scan")


@pytest.mark.row(20)
@needs_data
@pytest.mark.parametrize("case", ["CT1", "CT2"])
def test_real_compressed_files_agree(case: str) -> None:
    """Four codecs, of four makers, on one image."""
    scans = {
        name: read_series(ODD / "wg04" / f"{case}_{name}")
        for name in ("J2KR", "JLSL", "JPLL", "RLE", "J2KI", "JLSN")
    }
    first = scans["J2KR"].volume
    for name in ("JLSL", "JPLL", "RLE"):
        assert torch.equal(scans[name].volume.data, first.data), name
        assert scans[name].volume.grid.same_as(first.grid)
        assert "lossy-compression" not in codes(scans[name])
    inside = first.data > -1000
    for name in ("J2KI", "JLSN"):
        assert "lossy-compression" in codes(scans[name])
        off = (scans[name].volume.data - first.data)[inside].float().abs()
        assert 0 < float(off.mean()) < 40
    refused(ODD / "wg04" / f"{case}_UNC.zst", code="zstd-packed")
    refused(ODD / "wg04", code="several-series")


@pytest.mark.row(20)
@needs_data
@pytest.mark.skipif(shutil.which("zstd") is None, reason="the zstd command is absent")
@pytest.mark.parametrize("case", ["CT1", "CT2"])
def test_real_compressed_files_equal_their_originals(tmp_path: Path, case: str) -> None:
    original = tmp_path / "original.dcm"
    packed = ODD / "wg04" / f"{case}_UNC.zst"
    subprocess.run(["zstd", "-dq", str(packed), "-o", str(original)], check=True)
    truth = read_series(original).volume
    for name in ("J2KR", "JLSL", "JPLL", "RLE"):
        volume = read_series(ODD / "wg04" / f"{case}_{name}").volume
        assert torch.equal(volume.data, truth.data) and volume.grid.same_as(truth.grid)


@pytest.mark.row(20)
@needs_data
def test_real_enhanced_ct() -> None:
    path = ODD / "pydicom-data" / "eCT_Supplemental.dcm"
    scan = read_series(path)
    assert scan.volume.grid.shape == (2, 512, 512)
    assert scan.volume.grid.spacing_mm.tolist() == pytest.approx([10, 0.388672, 0.388672])
    assert {"derived-values", "unspecified-values"} <= set(codes(scan))
    stored = pydicom.dcmread(path).pixel_array
    # rows run to the patient's right in the file; in memory columns run to the left
    assert np.array_equal(scan.volume.data[0].numpy(), stored[:, :, ::-1].astype(int) - 1024)


@pytest.mark.skipif(
    not (DATA / "totalsegmentator_ct" / "dicom").is_dir(), reason="shared/data is absent"
)
def test_a_real_series_agrees_with_simpleitk() -> None:
    folder = DATA / "totalsegmentator_ct" / "dicom"
    scan = read_series(folder)
    assert codes(scan) == ["missing-identity"]
    files = sorted(
        map(str, folder.iterdir()), key=lambda f: float(pydicom.dcmread(f).ImagePositionPatient[2])
    )
    itk = sitk.ReadImage(files)
    assert np.array_equal(sitk.GetArrayFromImage(itk), scan.volume.data[0].numpy())
    first = scan.volume.grid.mm([0.0, 0, 0]).numpy() * [-1, -1, 1]
    assert np.allclose(itk.GetOrigin(), first, atol=1e-3)
    assert np.allclose(itk.GetSpacing()[::-1], scan.volume.grid.spacing_mm, atol=1e-4)
