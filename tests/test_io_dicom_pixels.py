"""DICOM pixels, frames and numbers: what a file states must be what it holds."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
import torch
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import JPEG2000LosslessEncoder
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_files import (
    AXIAL,
    SPACING,
    blank,
    body,
    enhanced,
    placed,
    refused,
    save,
    series,
    set_pixels,
)
from findings import codes
from kidseg.errors import KidsegError
from kidseg.io import read
from kidseg.io.dicom import list_series, read_series
from kidseg.io.scan import ReadOptions

VALUES = body(0, (3, 32, 40))


# ---- bits above Bits Stored --------------------------------------------------------------------


def encoded(ds: Dataset, stored: np.ndarray, syntax: str) -> None:
    """12 bits stored, whatever the values need: the codestream has 16."""
    signed = stored.dtype.kind == "i"
    set_pixels(ds, stored.view(np.uint16) if not signed else stored)
    ds.PixelRepresentation = int(signed)
    if syntax == JPEG2000Lossless:
        frame = JPEG2000LosslessEncoder.encode(
            stored,
            rows=32,
            columns=40,
            samples_per_pixel=1,
            number_of_frames=1,
            bits_allocated=16,
            bits_stored=16,
            photometric_interpretation="MONOCHROME2",
            pixel_representation=int(signed),
        )
        ds.PixelData = encapsulate([frame])
        ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
        ds.file_meta.TransferSyntaxUID = syntax
    elif syntax != ExplicitVRLittleEndian:
        ds.compress(syntax)
    ds.BitsStored, ds.HighBit = 12, 11


@pytest.mark.row(10)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless]
)
def test_bits_above_those_stored_are_ignored_and_said(
    tmp_path: Path, syntax: str, signed: bool
) -> None:
    """An overlay in bit 14 of half of the pixels: the same result in each syntax."""
    intercept = 0 if signed else -1024

    def edit(ds: Dataset, k: int) -> None:
        stored = (VALUES[k] - intercept).astype(np.int16)
        stored[::2] ^= 0x4000
        encoded(ds, stored if signed else stored.view(np.uint16), syntax)
        ds.RescaleIntercept = intercept

    scan = read_series(series(tmp_path, VALUES, edit=edit))
    assert torch.equal(scan.volume.data[0], torch.from_numpy(VALUES))
    assert codes(scan) == ["bits-above-stored"]
    for part in ("50 %", "12 bits", "3 of 3 files"):
        assert part in scan.findings[0].cause


@pytest.mark.row(10)
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless]
)
@pytest.mark.parametrize("signed", [False, True])
def test_values_within_the_stored_bits_are_silent(
    tmp_path: Path, syntax: str, signed: bool
) -> None:
    intercept = 0 if signed else -1024

    def edit(ds: Dataset, k: int) -> None:
        stored = (VALUES[k] - intercept).astype(np.int16)
        encoded(ds, stored if signed else stored.view(np.uint16), syntax)
        ds.RescaleIntercept = intercept

    scan = read_series(series(tmp_path, VALUES, edit=edit))
    assert scan.findings == () and torch.equal(scan.volume.data[0], torch.from_numpy(VALUES))


@pytest.mark.row(10)
def test_signed_values_above_the_range(tmp_path: Path) -> None:
    """Zeros above the sign bit are a way of writing, unless other values are sign-extended."""

    def edit(extended: bool) -> None:
        def one(ds: Dataset, k: int) -> None:
            stored = VALUES[k] if extended else VALUES[k] & 0x0FFF
            stored = stored.copy()
            stored[0, 0] = 3000
            encoded(ds, stored, ExplicitVRLittleEndian)
            ds.RescaleIntercept = 0

        return one

    zeros = read_series(series(tmp_path / "zeros", VALUES, edit=edit(False)))
    mixed = read_series(series(tmp_path / "mixed", VALUES, edit=edit(True)))
    assert torch.equal(zeros.volume.data, mixed.volume.data)
    assert int(zeros.volume.data[0, 0, 0, 0]) == 3000 - 4096
    assert codes(zeros) == [] and codes(mixed) == ["bits-above-stored"]


# ---- multi-frame files -------------------------------------------------------------------------


def multi(path: Path, syntax: str = ExplicitVRLittleEndian, **elements: object) -> Path:
    """Three frames, one position; elements replace those of the header, None deletes them."""
    ds = blank(CTImageStorage)
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-10, -20, 30], list(AXIAL)
    ds.PixelSpacing, ds.SliceThickness = list(SPACING[1:]), 9
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    set_pixels(ds, (VALUES.astype(np.int32) + 1024).astype(np.uint16))
    ds.NumberOfFrames = 3
    if syntax != ExplicitVRLittleEndian:
        ds.compress(syntax)
    for name, value in {"SpacingBetweenSlices": 2.5, **elements}.items():
        if value is not None:
            setattr(ds, name, value)
        elif name in ds:
            delattr(ds, name)
    return save(ds, path)


@pytest.mark.row(20)
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless]
)
def test_frames_without_positions_are_placed(tmp_path: Path, syntax: str) -> None:
    scan = read_series(multi(tmp_path / "m.dcm", syntax))
    single = read_series(series(tmp_path / "single", VALUES))
    assert codes(scan) == ["placed-frames"] and "3 frames" in scan.findings[0].cause
    assert "2.5 mm" in scan.findings[0].cause
    assert torch.equal(scan.volume.data, single.volume.data)
    assert scan.volume.grid.same_as(single.volume.grid, 1e-6)


OFFSETS = pydicom.tag.Tag(0x3004, 0x000C)


@pytest.mark.row(20)
@pytest.mark.parametrize("offsets", [[0, 2.5, 5], [30, 32.5, 35], [0, -2.5, -5]])
def test_frames_placed_by_their_offsets(tmp_path: Path, offsets: Sequence[float]) -> None:
    path = multi(
        tmp_path / "m.dcm",
        FrameIncrementPointer=OFFSETS,
        GridFrameOffsetVector=offsets,
        SpacingBetweenSlices=None,
    )
    scan = read_series(path)
    assert codes(scan) == ["placed-frames"] and "Offset" in scan.findings[0].cause
    falling = offsets[1] < offsets[0]
    positions = placed([0, -2.5, -5] if falling else [0, 2.5, 5])
    single = read_series(series(tmp_path / "single", VALUES, positions=positions))
    assert torch.equal(scan.volume.data, single.volume.data)
    assert scan.volume.grid.same_as(single.volume.grid, 1e-6)


@pytest.mark.row(20)
@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ({"SpacingBetweenSlices": None}, "missing"),
        ({"SpacingBetweenSlices": -2.5}, "-2.5"),
        ({"FrameIncrementPointer": pydicom.tag.Tag(0x0018, 0x1063)}, "Frame Time"),
        ({"FrameIncrementPointer": pydicom.tag.Tag(0x0018, 0x2005)}, "Slice Location Vector"),
        ({"FrameIncrementPointer": OFFSETS, "GridFrameOffsetVector": [0, 1]}, "3 numbers"),
        ({"FrameIncrementPointer": OFFSETS, "GridFrameOffsetVector": [7, 8, 9]}, "contradicts"),
    ],
)
def test_frames_that_cannot_be_placed_are_refused(
    tmp_path: Path, elements: dict[str, object], said: str
) -> None:
    path = multi(tmp_path / "m.dcm", **elements)
    message = refused(path, code="no-frame-positions")
    assert said in message and "--spacing" in message
    if "GridFrameOffsetVector" not in elements:
        scan = read_series(path, ReadOptions(spacing_mm=(2.0, 0.75, 0.5)))
        assert codes(scan) == ["placed-frames"] and scan.volume.grid.shape == (3, 32, 40)
        assert scan.volume.grid.spacing_mm.tolist() == pytest.approx([2.0, 0.75, 0.5])


@pytest.mark.row(20)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("frames", [1, 2, 4, 300, None])
def test_a_number_of_frames_that_the_pixels_do_not_hold(
    tmp_path: Path, frames: int | None, syntax: str
) -> None:
    path = multi(tmp_path / "m.dcm", syntax, NumberOfFrames=frames)
    with pytest.raises(KidsegError) as caught:
        read_series(path)
    assert caught.value.code in ("frame-count", "absurd-size")
    assert frames == 300 or str(frames or "missing") in str(caught.value) or frames == 4


@pytest.mark.row(20)
@pytest.mark.parametrize("text", ["0", "-3", "2.5", "1000000000", "99999999999"])
def test_an_impossible_number_of_frames(tmp_path: Path, text: str) -> None:
    path = multi(tmp_path / "m.dcm", NumberOfFrames=333)
    content = path.read_bytes()
    old = b"\x28\0\x08\0IS\x04\x00333 "
    new = text.encode() + b" " * (len(text) % 2)
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, old[:6] + len(new).to_bytes(2, "little") + new))
    assert text[:6] in refused(path, code="frame-count")


@pytest.mark.row(20)
def test_groups_for_another_number_of_frames(tmp_path: Path) -> None:
    ds = pydicom.dcmread(enhanced(tmp_path / "e.dcm"))
    del ds.PerFrameFunctionalGroupsSequence[5]
    message = refused(save(ds, tmp_path / "f.dcm"), code="frame-count")
    assert "6 frames" in message and "5 of them" in message


# ---- lossless JPEG -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jpeg(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A slice in lossless JPEG, encoded by GDCM."""
    folder = tmp_path_factory.mktemp("jpeg")
    (source,) = series(folder / "a", VALUES[:1], stored="uint16").iterdir()
    reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(source))
    assert reader.Read()
    syntax = gdcm.TransferSyntax.JPEGLosslessProcess14_1
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(folder / "b.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (folder / "b.dcm").read_bytes()


@pytest.mark.row(20)
def test_lossless_jpeg(tmp_path: Path, jpeg: bytes) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(jpeg)
    scan = read_series(path)
    assert torch.equal(scan.volume.data[0], torch.from_numpy(VALUES[:1]))


@pytest.mark.row(20)
@pytest.mark.parametrize("at", [0x18, 0x40, 0x80, -200])
def test_damaged_lossless_jpeg_ends_no_process(tmp_path: Path, jpeg: bytes, at: int) -> None:
    start = jpeg.index(b"\xff\xd8") + at if at > 0 else len(jpeg) + at
    path = tmp_path / "a.dcm"
    path.write_bytes(jpeg[:start] + b"\xff\x00\xff\xda\xff\xff" + jpeg[start + 6 :])
    assert "a.dcm" in refused(path, code="bad-pixels")


# ---- numbers that are not written as DICOM demands -----------------------------------------------


def rewritten(folder: Path, old: bytes, new: bytes) -> Path:
    """A series with a text of its headers replaced by one of the same length."""
    assert len(old) == len(new)
    for file in folder.iterdir():
        content = file.read_bytes()
        assert content.count(old) == 1, content.count(old)
        file.write_bytes(content.replace(old, new))
    return folder


@pytest.mark.row(5)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"0.75\\0.5", b"0,75\\0,5"),
        (b"0.75\\0.5", b"0.75\\0,5"),
        (b"-10\\-20\\", b"-1e1\\-2e1\\"[:8].replace(b"-1e1\\-2e", b"-10\\-20\\")),
        (b"-1024.0", b"-1024,0"),
    ],
)
def test_decimal_commas_are_read_and_said(tmp_path: Path, old: bytes, new: bytes) -> None:
    folder = rewritten(series(tmp_path, VALUES), old, new)
    scan = read_series(folder)
    single = read_series(series(tmp_path / "b", VALUES))
    assert scan.volume.grid.same_as(single.volume.grid)
    assert torch.equal(scan.volume.data, single.volume.data)
    assert codes(scan) == (["decimal-comma"] if b"," in new else [])
    if scan.findings:
        assert f"'{new.decode().strip()}'" in scan.findings[0].cause
        assert "3 of 3 files" in scan.findings[0].cause


@pytest.mark.row(5)
@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        (b"0.75\\0.5", b"0.75,0.5", "bad-spacing"),
        (b"0.75\\0.5", b"0.75;0.5", "bad-spacing"),
        (b"0.75\\0.5", b"0,7,5\\,5", "bad-spacing"),
        (b"-10\\-20\\", b"-10,-20,", "bad-position"),
        (b"1\\0\\0\\0\\1\\0", b"1 0 0 0 1 0", "bad-orientation"),
        (b"-1024.0", b"-1,024 ", "bad-rescale"),
        (b"-1024.0", b"-1O24.0", "bad-rescale"),
        (b"-1024.0", b"-1_024 ", "bad-rescale"),
    ],
)
def test_an_unreadable_number_is_quoted(tmp_path: Path, old: bytes, new: bytes, code: str) -> None:
    folder = rewritten(series(tmp_path, VALUES), old, new)
    message = refused(folder, code=code)
    assert new.decode().strip() in message and "missing" not in message
    assert "3 of 3 files" in message
    if code == "bad-spacing":
        read_series(folder, ReadOptions(spacing_mm=SPACING))


@pytest.mark.row(5)
def test_an_unreadable_thickness_does_not_matter_between_slices(tmp_path: Path) -> None:
    def edit(ds: Dataset, _k: int) -> None:
        ds.SliceThickness = "1.23"

    folder = rewritten(series(tmp_path, VALUES, edit=edit), b"1.23", b"1;23")
    assert codes(read_series(folder)) == ["unreadable-number"]
    for file in sorted(folder.iterdir())[1:]:
        file.unlink()
    assert "1;23" in refused(folder, code="bad-spacing")


@pytest.mark.row(17)
@pytest.mark.parametrize("degrees", [0.1, 0.02, 5])
def test_slices_turned_in_their_plane_are_said_with_the_angle(
    tmp_path: Path, degrees: float
) -> None:
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))

    def edit(ds: Dataset, k: int) -> None:
        if k == 1:
            ds.ImageOrientationPatient = [f"{v:.9f}" for v in (cosine, sine, 0, -sine, cosine, 0)]

    message = refused(series(tmp_path, edit=edit), code="mixed-orientation")
    stated = float(message.partition("by up to ")[2].partition(" ")[0])
    assert stated == pytest.approx(degrees, rel=0.1)


# ---- damaged bytes -----------------------------------------------------------------------------


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """Flip bits, overwrite, insert, remove, move or cut off bytes, mostly in the header."""
    data = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 5])):
        at = int(random.integers(min(len(data), random.choice([300, 1500, 10**6]))))
        size = int(random.choice([1, 2, 4, 40]))
        way = random.integers(7)
        if way == 0:
            data[at] ^= 1 << int(random.integers(8))
        elif way == 1:
            data[at] = int(random.choice([0, 0x2C, 0x5C, 0x7F, 0xFF, random.integers(256)]))
        elif way == 2:
            data[at : at + 4] = int(random.choice([0, 1, 0xFFFF, 0x7FFFFFFF])).to_bytes(4, "little")
        elif way == 3:
            del data[at : at + size]
        elif way == 4:
            data[at:at] = random.bytes(size)
        elif way == 5:
            start = int(random.integers(len(data)))
            data[at : at + size] = data[start : start + size]
        elif at > 140:
            del data[at:]
    return bytes(data)


def files_of(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.iterdir())]


@pytest.mark.ci
@pytest.mark.parametrize(
    "kind", ["plain", "implicit", "RLE", "JPEG-LS", "JPEG 2000", "enhanced", "multi"]
)
def test_damaged_bytes_raise_nothing_but_named_errors(tmp_path: Path, kind: str) -> None:
    syntaxes = {"RLE": RLELossless, "JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless}

    def edit(ds: Dataset, _k: int) -> None:
        ds.AcquisitionTime, ds.AcquisitionNumber = "101500.25", 1
        if kind in syntaxes:
            ds.compress(syntaxes[kind])
        elif kind == "implicit":
            ds.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian

    source = tmp_path / "source"
    if kind == "enhanced":
        enhanced(source / "e.dcm")
    elif kind == "multi":
        multi(source / "m.dcm")
    else:
        series(source, VALUES, edit=edit, stored="uint16")
    sound = files_of(source)
    for seed in range(40):
        random = np.random.default_rng(seed)
        which = int(random.integers(len(sound)))
        for k, content in enumerate(sound):
            data = mutated(content, random) if k == which else content
            (source / f"{k}.dcm").write_bytes(data)
        target = source if seed % 2 else source / f"{which}.dcm"
        try:
            list_series(target)
            scan = read(target, ReadOptions(repair=seed % 3 == 0, values="any"))
            text = json.dumps([finding.as_dict() for finding in scan.findings])
        except KidsegError as error:
            text = str(error)
        assert text.encode()


def test_a_length_that_does_not_fit_its_values(tmp_path: Path) -> None:
    """Bits Allocated of 7 bytes: an exception of its own class in pydicom."""
    folder = series(tmp_path, VALUES)
    file = sorted(folder.iterdir())[0]
    content = file.read_bytes()
    old = b"\x28\0\0\x01US\x02\0"
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, old[:6] + b"\x07\0"))
    refused(file, code="unsupported-type")


def test_an_inverted_display_leaves_the_values_as_they_are(tmp_path: Path) -> None:
    """MONOCHROME1 only says which value is shown dark."""

    def edit(ds: Dataset, _k: int) -> None:
        ds.PhotometricInterpretation = "MONOCHROME1"

    plain = read_series(series(tmp_path / "plain", VALUES))
    scan = read_series(series(tmp_path / "inverted", VALUES, edit=edit))
    assert codes(scan) == [*codes(plain), "monochrome1"]
    assert torch.equal(scan.volume.data, plain.volume.data)


def test_values_behind_a_lookup_table_are_refused(tmp_path: Path) -> None:
    def edit(ds: Dataset, _k: int) -> None:
        table = Dataset()
        table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [2, 0, 16], "HU", [0, 1000]
        table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
        ds.ModalityLUTSequence = [table]
        del ds.RescaleSlope, ds.RescaleIntercept

    refused(series(tmp_path, VALUES, edit=edit), code="modality-lut")


def test_header_texts_are_printable(tmp_path: Path) -> None:
    def edit(ds: Dataset, _k: int) -> None:
        ds.SeriesDescription = "red \x1b[31m text\x07"

    for k, uid in enumerate(("1.2.3", "1.2.4")):
        series(tmp_path / str(k), VALUES, uid=uid, edit=edit)
    message = refused(tmp_path, code="several-series")
    assert message.isprintable() and "red ?[31m text" in message


@pytest.mark.row(26)
def test_odd_names_and_deep_folders(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b c" / "ü" / ("n" * 200) / "e"
    series(folder, VALUES)
    for k, file in enumerate(sorted(folder.iterdir())):
        name = os.fsdecode(b"slice \xff\xfe" + str(k).encode()) if k else "x" * 250
        file.rename(folder / name)
    (tmp_path / os.fsdecode(b"note \xe9")).write_text("x")
    scan = read_series(tmp_path)
    assert torch.equal(scan.volume.data[0], torch.from_numpy(VALUES))
    assert codes(scan) == ["ignored-files"]
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:400])
    with pytest.raises(KidsegError) as caught:
        read_series(tmp_path)
    assert caught.value.code == "bad-dicom"


@pytest.mark.row(25)
def test_a_zip_of_two_phases(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        ds.AcquisitionNumber = k // 3 + 1

    values = body(0, (6, 32, 40))
    folder = series(tmp_path / "s", values, positions=placed([0, 4, 8, 2, 6, 10]), edit=edit)
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, file.name)
    with pytest.raises(KidsegError) as caught:
        read(path)
    assert caught.value.code == "several-volumes" and caught.value.path == str(path)
    scan = read(path, ReadOptions(series="3.2"))
    assert torch.equal(scan.volume.data[0], torch.from_numpy(values[3:]))
