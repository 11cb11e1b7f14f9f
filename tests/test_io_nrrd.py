"""NRRD and MetaImage, which are read without ITK: ITK itself and nibabel are the peers."""

from __future__ import annotations

import gzip
import os
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from findings import codes
from kidseg import io
from kidseg.errors import InputError, ResourceError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, Scan
from kidseg.io.orientation import affine_of_grid

SHAPE = (3, 4, 5)
ANY = ReadOptions(values="any")
ENDINGS = [".nrrd", ".nhdr", ".mha", ".mhd"]
VALUES = np.arange(60, dtype="<i2").reshape(SHAPE) * 20 - 1000
SPACING = (0.7, 0.8, 2.5)  # as ITK orders it: x, y, z
ORIGIN = (-10.0, 20.5, 300.25)


def turned() -> np.ndarray:
    """Three exact direction cosines, off the axes."""
    cos, sin = np.cos(0.2), np.sin(0.2)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, cos, -sin], [0, sin, cos]]
    )


def image(values: np.ndarray = VALUES) -> sitk.Image:
    itk = sitk.GetImageFromArray(values)
    itk.SetSpacing(SPACING)
    itk.SetOrigin(ORIGIN)
    itk.SetDirection(turned().ravel().tolist())
    return itk


def by_itk(path: Path, values: np.ndarray = VALUES, *, packed: bool = False) -> Path:
    sitk.WriteImage(image(values), str(path), packed)
    return path


def nrrd(path: Path, data: bytes | None = None, **fields: str) -> Path:
    """An NRRD file by hand; an empty field is left out."""
    header = {
        "type": "short",
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": "5 4 3",
        "space directions": "(0.7,0,0) (0,0.8,0) (0,0,2.5)",
        "endian": "little",
        "encoding": "raw",
        "space origin": "(-10,20.5,300.25)",
    } | {name.replace("_", " "): value for name, value in fields.items()}
    lines = ["NRRD0004", "# by hand", *(f"{k}: {v}" for k, v in header.items() if v), "a:=b"]
    content = VALUES.tobytes() if data is None else data
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + content)
    return path


def meta(path: Path, data: bytes | None = None, **fields: str) -> Path:
    """A MetaImage file by hand; an empty field is left out."""
    header = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "-10 20.5 300.25",
        "ElementSpacing": "0.7 0.8 2.5",
        "DimSize": "5 4 3",
        "ElementType": "MET_SHORT",
    } | fields
    header["ElementDataFile"] = header.pop("ElementDataFile", "LOCAL")  # the last of all
    lines = [f"{k} = {v}" for k, v in header.items() if v]
    content = VALUES.tobytes() if data is None else data
    path.write_bytes("\n".join(lines).encode() + b"\n" + content)
    return path


def refused(path: Path, code: str, options: ReadOptions = ANY) -> InputError:
    with pytest.raises(InputError) as caught:
        io.read(path, options)
    error = caught.value
    assert error.code == code, error
    assert error.path and error.cause and error.next_step
    return error


def in_file_order(scan: Scan) -> np.ndarray:
    data: np.ndarray = io.orientation.reorient(scan.volume, scan.native).data[0].numpy()
    return data


# ---- geometry ----------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_what_itk_writes_is_where_nibabel_sees_it(
    tmp_path: Path, ending: str, packed: bool
) -> None:
    """The same patient, once as NIfTI read by nibabel, once in the other format read here."""
    sitk.WriteImage(image(), str(tmp_path / "peer.nii"))
    peer = nib.load(tmp_path / "peer.nii")
    scan = io.read(by_itk(tmp_path / f"scan{ending}", packed=packed))
    assert codes(scan) == []
    assert scan.format == ("nrrd" if ending in (".nrrd", ".nhdr") else "metaimage")
    assert np.allclose(affine_of_grid(scan.native), peer.affine, atol=1e-4, rtol=0)
    assert np.array_equal(in_file_order(scan), np.asarray(peer.dataobj).transpose(2, 1, 0))
    assert io.read_grid(tmp_path / f"scan{ending}").same_as(scan.native, 0.0)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"])
def test_types_there_and_back_through_itk(tmp_path: Path, ending: str, kind: str) -> None:
    values = (np.arange(60).reshape(SHAPE) * 2).astype(kind)
    scan = io.read(by_itk(tmp_path / f"theirs{ending}", values), ANY)
    assert np.array_equal(in_file_order(scan), values)
    out = io.save(scan.volume, tmp_path / f"ours{ending}", like=scan.native)
    itk = sitk.ReadImage(str(out))
    assert np.array_equal(sitk.GetArrayFromImage(itk), values)
    assert np.allclose(itk.GetSpacing(), SPACING) and np.allclose(itk.GetOrigin(), ORIGIN)
    assert np.allclose(itk.GetDirection(), turned().ravel())
    again = io.read(out, ANY)
    assert again.native.same_as(scan.native, 1e-9) and codes(again) == []


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
    ],
)
def test_nrrd_spaces_by_hand(tmp_path: Path, space: str, signs: tuple[int, ...]) -> None:
    native = io.read_grid(nrrd(tmp_path / "scan.nrrd", space=space))
    assert native.shape == SHAPE
    assert native.mm((0, 0, 0)).tolist() == [s * o for s, o in zip(signs, ORIGIN, strict=True)]
    step = native.mm((1, 1, 1)) - native.mm((0, 0, 0))
    assert np.allclose(step.numpy(), np.array(signs) * SPACING)


@pytest.mark.row(5)
def test_a_space_without_name_is_itks_and_said(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "scan.nrrd")
    named = b"space: left-posterior-superior"
    path.write_bytes(path.read_bytes().replace(named, b"space dimension: 3"))
    scan, itk = io.read(path), sitk.ReadImage(str(path))
    assert codes(scan) == ["orientation-assumed"]
    assert scan.native.mm((0, 0, 0)).tolist() == [-ORIGIN[0], -ORIGIN[1], ORIGIN[2]]
    assert itk.GetOrigin() == ORIGIN


@pytest.mark.row(5)
def test_fields_with_two_values_are_refused(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "scan.nrrd")
    path.write_bytes(path.read_bytes().replace(b"a:=b", b"space origin: (1,2,3)"))
    assert "'space origin' twice" in refused(path, "bad-header").cause
    path = meta(tmp_path / "scan.mha")
    spacing = b"ElementSpacing = 0.7 0.8 2.5\n"
    path.write_bytes(path.read_bytes().replace(spacing, spacing + spacing))
    assert codes(io.read(path)) == []
    path.write_bytes(path.read_bytes().replace(spacing, spacing.replace(b"7", b"9"), 1))
    assert "'ElementSpacing' twice" in refused(path, "bad-header").cause


def test_nrrd_channel_axis_of_one_first_or_last(tmp_path: Path) -> None:
    plain = io.read(nrrd(tmp_path / "plain.nrrd")).volume
    directions = "(0.7,0,0) (0,0.8,0) (0,0,2.5)"
    for name, fields in {
        "first": {"sizes": "1 5 4 3", "space_directions": f"none {directions}"},
        "last": {"sizes": "5 4 3 1", "space_directions": f"{directions} none"},
    }.items():
        path = nrrd(tmp_path / f"{name}.nrrd", dimension="4", **fields)
        volume = io.read(path).volume
        assert torch.equal(volume.data, plain.data) and volume.grid.same_as(plain.grid, 0.0)


@pytest.mark.row(4)
def test_shear_in_nrrd(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "scan.nrrd", space_directions="(0.7,0,0) (0,0.8,0) (0,1.5,2.5)")
    refused(path, "sheared")
    path = nrrd(tmp_path / "scan.nrrd", space_directions="(0.7,0,0) (0,0.8,0) (0,0.05,2.5)")
    assert codes(io.read(path)) == ["slightly-sheared"]


# ---- rows 1 and 6: truncated, damaged, absurd --------------------------------------------------


@pytest.mark.row(1)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_truncated_at_any_byte(tmp_path: Path, ending: str, packed: bool) -> None:
    whole = by_itk(tmp_path / f"scan{ending}", packed=packed).read_bytes()
    cut = tmp_path / f"cut{ending}"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError):
            io.read(cut, ANY)
    cut.write_bytes(whole)
    assert codes(io.read(cut, ANY)) == []


@pytest.mark.row(1)
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_wrong_checksum(tmp_path: Path, ending: str) -> None:
    raw = bytearray(by_itk(tmp_path / f"scan{ending}", packed=True).read_bytes())
    raw[-6 if ending == ".nrrd" else -2] ^= 1  # CRC-32 of gzip, Adler-32 of zlib
    bad = tmp_path / f"bad{ending}"
    bad.write_bytes(raw)
    refused(bad, "damaged-file")


@pytest.mark.row(1)
def test_detached_voxels_missing_short_or_elsewhere(tmp_path: Path) -> None:
    for ending, data, build in [
        (".mhd", "scan.raw", lambda p, n: meta(p, b"", ElementDataFile=n)),
        (".nhdr", "scan.raw", lambda p, n: nrrd(p, b"", data_file=n)),
    ]:
        path = tmp_path / f"scan{ending}"
        voxels = tmp_path / data
        voxels.unlink(missing_ok=True)
        build(path, data)
        assert data in refused(path, "data-file-missing").cause
        voxels.write_bytes(VALUES.tobytes()[:-1])
        assert refused(path, "truncated-file").path == str(voxels)
        voxels.write_bytes(VALUES.tobytes())
        assert np.array_equal(in_file_order(io.read(path, ANY)), VALUES)
        for outside in (str(voxels), "../scan.raw", "a/../../x", "C:\\scan.raw", "..\\scan.raw"):
            refused(build(path, outside), "data-file-outside")
        (tmp_path / "raw").mkdir(exist_ok=True)
        (tmp_path / "raw" / data).write_bytes(VALUES[::-1].tobytes())
        for name, wanted in ((f".\\{data}", VALUES), (f"raw\\{data}", VALUES[::-1])):
            assert np.array_equal(in_file_order(io.read(build(path, name), ANY)), wanted)
        refused(build(path, "LIST"), "unsupported-encoding")
        refused(build(path, "slice%03d.raw 1 9 1"), "unsupported-encoding")


@pytest.mark.row(1)
def test_trailing_bytes_are_said(tmp_path: Path) -> None:
    for path in (
        nrrd(tmp_path / "a.nrrd", VALUES.tobytes() + b"x"),
        meta(tmp_path / "a.mha", VALUES.tobytes() + b"x"),
        meta(tmp_path / "b.mha", zlib.compress(VALUES.tobytes()) + b"x", CompressedData="True"),
    ):
        scan = io.read(path, ANY)
        assert codes(scan) == ["trailing-bytes"] and np.array_equal(in_file_order(scan), VALUES)


@pytest.mark.row(6)
def test_absurd_sizes_are_refused_before_allocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = "99999 99999 99999"
    packed = gzip.compress(VALUES.tobytes())

    def no_allocation(*args: object, **kwargs: object) -> None:
        raise AssertionError("memory was asked for")

    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", no_allocation)
        refused(nrrd(tmp_path / "a.nrrd", sizes=huge), "truncated-file")
        refused(nrrd(tmp_path / "b.nrrd", packed, sizes=huge, encoding="gzip"), "absurd-size")
        refused(meta(tmp_path / "a.mha", DimSize=huge), "truncated-file")
        refused(meta(tmp_path / "b.mha", DimSize=huge, CompressedData="True"), "absurd-size")
    with pytest.raises(ResourceError):
        io.read(meta(tmp_path / "c.mha"), ReadOptions(values="any", memory_limit_bytes=119))


# ---- rows 5, 7, 8, 10: what a header says ------------------------------------------------------


@pytest.mark.row(5, 7, 8)
@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"space": "", "space_directions": "", "space_origin": ""}, "no-orientation"),
        ({"space_origin": ""}, "no-orientation"),
        ({"space_directions": ""}, "bad-header"),
        ({"space_directions": "(0.7,0,0) (0,0.8,0) (0,0,0)"}, "bad-spacing"),
        ({"space_directions": "(0.7,0,0) (0,0.8,0) (0,0,nan)"}, "bad-affine"),
        ({"space_directions": "(0.7,0,0) (0,0.8,0) (0,0.8,0)"}, "bad-affine"),
        ({"space_directions": "(0.7,0,0) (0,0.8,0)"}, "bad-header"),
        ({"space_directions": "(a,0,0) (0,0.8,0) (0,0,1)"}, "bad-header"),
        ({"space_origin": "(1,2)"}, "bad-header"),
        ({"space": "scanner-xyz"}, "unknown-space"),
        ({"space_units": '"mm" "mm" "inch"'}, "bad-unit"),
        ({"sizes": "5 4"}, "bad-header"),
        ({"sizes": "5 4 x"}, "bad-header"),
        ({"sizes": "5 4 0"}, "empty-axis"),
        ({"space directions": "(4,0,0) (0,4,0) (0,0,10,0)"}, "bad-header"),  # decimal comma
        ({"sizes": ""}, "bad-header"),
        ({"type": "block"}, "unsupported-type"),
        ({"endian": ""}, "bad-header"),
        ({"encoding": "bzip2"}, "unsupported-encoding"),
        ({"encoding": "ascii", "endian": ""}, "unsupported-encoding"),  # numbers have no byte order
        ({"line_skip": "2"}, "unsupported-encoding"),
        ({"byte_skip": "-2"}, "unsupported-encoding"),
        (
            {
                "dimension": "4",
                "sizes": "3 5 4 1",
                "space_directions": "none (0.7,0,0) (0,0.8,0) (0,0,2.5)",
                "kinds": "RGB-color domain domain domain",
            },
            "colour-image",
        ),
        (
            {
                "dimension": "4",
                "sizes": "5 4 1 3",
                "space_directions": "(0.7,0,0) (0,0.8,0) (0,0,2.5) none",
                "kinds": "domain domain domain list",
            },
            "several-volumes",
        ),
        (
            {
                "dimension": "3",
                "sizes": "1 5 4",
                "space_directions": "none (0.7,0,0) (0,0.8,0)",
            },
            "two-dimensional",
        ),
    ],
)
def test_nrrd_headers_that_are_refused(tmp_path: Path, fields: dict[str, str], code: str) -> None:
    refused(nrrd(tmp_path / "scan.nrrd", **fields), code)


@pytest.mark.row(5, 7, 8)
@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"TransformMatrix": ""}, "no-orientation"),
        ({"Offset": ""}, "no-orientation"),
        ({"ElementSpacing": ""}, "bad-header"),
        ({"ElementSpacing": "0.7 0.8 0"}, "bad-spacing"),
        ({"ElementSpacing": "0.7 0.8 -2.5"}, "bad-spacing"),
        ({"ElementSpacing": "0.7 0.8 nan"}, "bad-spacing"),
        ({"ElementSpacing": "0.7 0.8"}, "bad-header"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 1 0"}, "bad-affine"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0 0"}, "bad-spacing"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0 x"}, "bad-header"),
        ({"Offset": "1 2 inf"}, "bad-affine"),
        ({"DimSize": "5 4"}, "bad-header"),
        ({"DimSize": "5 4 0"}, "empty-axis"),
        ({"DimSize": "5 4 2.5"}, "bad-header"),
        ({"DimSize": ""}, "bad-header"),
        ({"NDims": "2", "DimSize": "5 4"}, "two-dimensional"),
        ({"NDims": "4", "DimSize": "5 4 1 3"}, "several-volumes"),
        ({"ElementNumberOfChannels": "3"}, "several-volumes"),
        ({"ElementType": "MET_STRING"}, "unsupported-type"),
        ({"BinaryData": "False"}, "unsupported-encoding"),
        ({"HeaderSize": "-2"}, "unsupported-encoding"),
        ({"DistanceUnits": "um"}, "bad-unit"),
        ({"DistanceUnits": "cm"}, "bad-unit"),
    ],
)
def test_metaimage_headers_that_are_refused(
    tmp_path: Path, fields: dict[str, str], code: str
) -> None:
    refused(meta(tmp_path / "scan.mha", **fields), code)


@pytest.mark.row(5)
def test_spacing_overrides(tmp_path: Path) -> None:
    options = ReadOptions(values="any", spacing_mm=(3.0, 0.6, 0.5))
    none = {"space": "", "space_directions": "", "space_origin": ""}
    for path in (
        nrrd(tmp_path / "a.nrrd", **none),
        meta(tmp_path / "a.mha", TransformMatrix="", Offset=""),
    ):
        scan = io.read(path, options)
        assert codes(scan) == ["orientation-assumed"]
        assert np.allclose(affine_of_grid(scan.native), np.diag([-0.5, -0.6, 3, 1]))
    for path in (
        meta(tmp_path / "b.mha", ElementSpacing="0 0 0"),
        nrrd(tmp_path / "b.nrrd", space_directions="(1,0,0) (0,9,0) (0,0,1)"),
    ):
        native = io.read_grid(path, options)
        assert native.spacing_mm.tolist() == [3.0, 0.6, 0.5]
        assert native.mm((0, 0, 0)).tolist() == [10.0, -20.5, 300.25]


@pytest.mark.row(10)
def test_big_endian_and_skipped_bytes(tmp_path: Path) -> None:
    big, front = VALUES.astype(">i2").tobytes(), b"old header"
    little = VALUES.tobytes()
    for path in (
        nrrd(tmp_path / "a.nrrd", big, endian="big"),
        meta(tmp_path / "a.mha", big, BinaryDataByteOrderMSB="True"),
        meta(tmp_path / "b.mha", big, BinaryDataByteOrderMSB="", ElementByteOrderMSB="True"),
        nrrd(tmp_path / "b.nrrd", front + little, byte_skip=str(len(front))),
        nrrd(tmp_path / "c.nrrd", front + little, byte_skip="-1"),
        nrrd(
            tmp_path / "d.nrrd",
            gzip.compress(front + little),
            byte_skip=str(len(front)),
            encoding="gz",
        ),
        meta(tmp_path / "c.mha", front + little, HeaderSize=str(len(front))),
        meta(tmp_path / "d.mha", front + little, HeaderSize="-1"),
    ):
        scan = io.read(path, ANY)
        assert np.array_equal(in_file_order(scan), VALUES), path
        assert codes(scan) == []


def test_windows_line_ends(tmp_path: Path) -> None:
    for path, end in [(nrrd(tmp_path / "a.nrrd"), b"\n\n"), (meta(tmp_path / "a.mha"), b"LOCAL\n")]:
        header, _, data = path.read_bytes().partition(end)
        path.write_bytes((header + end).replace(b"\n", b"\r\n") + data)
        assert np.array_equal(in_file_order(io.read(path, ANY)), VALUES)


def test_a_header_that_is_no_text_or_never_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(b"NRRD0004\n\xff\xfe\n\n")
    refused(path, "bad-header")
    path.write_bytes(b"NRRD0004\nno field\n\n")
    refused(path, "bad-header")
    path.write_bytes(b"NRRDgarbage\n\n")
    refused(path, "bad-header")
    path.write_bytes(b"NRRD0004\n" + b"# long\n" * 200_000)
    refused(path, "bad-header")
    meta_path = tmp_path / "a.mha"
    meta_path.write_bytes(b"ObjectType = Image\nno field\n")
    refused(meta_path, "bad-header")


def test_a_sheared_grid_survives_writing(tmp_path: Path) -> None:
    """The labels of a slightly sheared scan stay where its voxels are."""
    shear = torch.eye(4, dtype=torch.float64)
    shear[1, 2] = 0.01
    grid = Grid.from_spacing(SHAPE, (2.5, 0.8, 0.7), centre_mm=(1, 2, 3)).moved(shear)
    labels = Volume(torch.ones((1, *SHAPE), dtype=torch.uint8), grid)
    for ending in io.WRITTEN_ENDINGS:
        out = io.save(labels, tmp_path / f"labels{ending}")
        assert io.read_grid(out).same_as(grid, 1e-4)


# ---- offsets, names and sizes that no file has -------------------------------------------------


@pytest.mark.parametrize("skip", [2**31, 2**40, 10**300])
def test_an_offset_beyond_the_file_costs_nothing(tmp_path: Path, skip: int) -> None:
    packed = gzip.compress(VALUES.tobytes())
    tracemalloc.start()
    for path in (
        nrrd(tmp_path / "a.nrrd", byte_skip=str(skip)),
        nrrd(tmp_path / "b.nrrd", packed, byte_skip=str(skip), encoding="gzip"),
        meta(tmp_path / "a.mha", HeaderSize=str(skip)),
        meta(
            tmp_path / "b.mha",
            zlib.compress(VALUES.tobytes()),
            CompressedData="True",
            HeaderSize=str(skip),
        ),
    ):
        refused(path, "truncated-file")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1.5", "-2", "1e999", "", "1 2"])
def test_an_offset_that_is_no_number_of_bytes_is_refused(tmp_path: Path, value: str) -> None:
    for path in (
        nrrd(tmp_path / "a.nrrd", byte_skip=value or "x"),
        meta(tmp_path / "a.mha", HeaderSize=value or "x"),
    ):
        with pytest.raises(InputError) as caught:
            io.read(path, ANY)
        assert caught.value.code in ("bad-header", "unsupported-encoding")


def test_what_is_skipped_takes_no_memory(tmp_path: Path) -> None:
    count = 2**26
    packed = gzip.compress(bytes(count) + VALUES.tobytes(), 1)
    path = nrrd(tmp_path / "a.nrrd", packed, byte_skip=str(count), encoding="gzip")
    tracemalloc.start()
    assert np.array_equal(in_file_order(io.read(path, ANY)), VALUES)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.row(6)
@pytest.mark.parametrize("size", [2**31, 2**63, 10**25, 10**300])
def test_sizes_that_overflow_are_refused_in_a_short_sentence(tmp_path: Path, size: int) -> None:
    for path in (
        nrrd(tmp_path / "a.nrrd", sizes=f"5 {size} 3"),
        meta(tmp_path / "a.mha", DimSize=f"{size} {size} {size}"),
    ):
        assert len(refused(path, "absurd-size").cause) < 200
        with pytest.raises(InputError):
            io.read_grid(path)


@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("x" * 300, "data-file-missing"),
        ("y" * 5000 + "/" + "z" * 5000, "data-file-missing"),
        ("a\0b", "data-file-missing"),
        ("folder", "data-file-missing"),
        ("pipe", "data-file-missing"),
        (".", "data-file-missing"),
        ("ü\x1b[31m", "data-file-missing"),
        ("../scan.raw", "data-file-outside"),
        ("folder/../../scan.raw", "data-file-outside"),
        ("/dev/zero", "data-file-outside"),
        ("\\\\host\\share\\scan.raw", "data-file-outside"),
    ],
)
def test_a_name_that_is_no_file_beside_the_header_is_refused(
    tmp_path: Path, ending: str, name: str, code: str
) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    path = tmp_path / f"scan{ending}"
    if ending == ".mhd":
        meta(path, b"", ElementDataFile=name)
    else:
        nrrd(path, b"", data_file=name)
    error = refused(path, code)
    assert len(error.cause) < 200 and "\0" not in str(error) and "\x1b" not in str(error)
