"""NIfTI: nibabel and SimpleITK are the peers; every damaged or odd file is made here."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from findings import codes
from kidseg import io
from kidseg.errors import InputError, ResourceError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions
from kidseg.io.nifti import read_nifti
from kidseg.io.numbers import scaled
from kidseg.io.orientation import affine_of_grid, mm_from_index_of_affine
from niftis import AFFINE, ANY, SHAPE, hounsfield, patched, refused, write

# ---- row 1: truncated, damaged, or no such thing -----------------------------------------------


@pytest.mark.row(1)
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_truncated_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name).read_bytes()
    cut = tmp_path / f"cut_{name}"
    for length in [0, 1, 3, 100, 347, 351, len(whole) // 2, len(whole) - 9, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError) as caught:
            io.read(cut)
        assert caught.value.code in ("truncated-file", "empty-file", "not-a-scan")
        assert caught.value.code == "truncated-file" or length < 4
    cut.write_bytes(whole)
    assert codes(io.read(cut)) == []


@pytest.mark.row(1)
def test_peers_are_silent_where_this_reader_refuses(tmp_path: Path) -> None:
    """Why all this: SimpleITK gives zeros for what is missing."""
    path = write(tmp_path / "scan.nii.gz")
    path.write_bytes(path.read_bytes()[:-600])
    refused(path, "truncated-file")


@pytest.mark.row(1)
def test_each_damaged_byte_of_the_trailer_is_seen(tmp_path: Path) -> None:
    whole = write(tmp_path / "scan.nii.gz").read_bytes()
    bad = tmp_path / "bad.nii.gz"
    for at in range(-8, 0):  # CRC-32 and length
        raw = bytearray(whole)
        raw[at] ^= 1
        bad.write_bytes(raw)
        refused(bad, "damaged-file")
    raw = bytearray(whole)
    raw[len(raw) // 2] ^= 0xFF
    bad.write_bytes(raw)
    with pytest.raises(InputError):
        io.read(bad)


@pytest.mark.row(1)
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "LFS"),
        (bytes(5000), "zeros"),
        (b"hello", "not a scan"),
        (b"\x89PNG\r\n\x1a\n\0\0", "PNG picture"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG picture"),
        (b"II*\0\x08\0\0\0", "TIFF picture"),
        (gzip.compress(b"hello", mtime=0), "does not contain a NIfTI"),
    ],
)
def test_what_is_no_scan_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(content)
    assert word in refused(path, "not-a-scan").cause


@pytest.mark.row(1)
@pytest.mark.parametrize("ending", [".hdr", ".mhd", ".nhdr"])
def test_voxels_whose_header_is_another_file_name_it(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"scan{ending}").write_bytes(b"a header")
    voxels = tmp_path / "scan.raw"
    voxels.write_bytes(bytes(range(256)))
    assert f"scan{ending}" in refused(voxels, "not-a-scan").cause
    assert "scan.raw" not in refused(tmp_path / f"scan{ending}", "not-a-scan").cause
    other = tmp_path / "scan.hdf5"
    other.write_bytes(bytes(range(256)))
    assert "not a scan in a supported format" in refused(other, "not-a-scan").cause


@pytest.mark.row(1)
def test_the_reader_of_nifti_alone_refuses_what_is_none(tmp_path: Path) -> None:
    """Where nobody has looked at its kind before."""
    path = tmp_path / "scan.nii"
    path.write_bytes(b"hello" * 200)
    with pytest.raises(InputError) as caught:
        read_nifti(path, ReadOptions())
    assert caught.value.code == "not-nifti" and caught.value.next_step


@pytest.mark.row(1)
def test_empty_and_missing(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    refused(path, "not-found")
    path.touch()
    refused(path, "empty-file")
    path.write_bytes(gzip.compress(b""))
    refused(path, "not-a-scan")


@pytest.mark.row(1)
def test_trailing_bytes_and_several_gzip_members(tmp_path: Path) -> None:
    whole = write(tmp_path / "scan.nii").read_bytes()
    truth = io.read(tmp_path / "scan.nii").volume.data
    path = tmp_path / "scan.nii.gz"
    members = gzip.compress(whole[:500]) + gzip.compress(whole[500:])
    for content, expected in [
        (members, []),
        (members + bytes(512), []),  # padding, as tapes and some archives leave it
        (members + b"junk", ["trailing-bytes"]),
        (gzip.compress(whole + b"more"), ["trailing-bytes"]),
    ]:
        path.write_bytes(content)
        scan = io.read(path)
        assert codes(scan) == expected
        assert torch.equal(scan.volume.data, truth)
    path.write_bytes(members[:-4])
    refused(path, "truncated-file")


# ---- row 2: names ------------------------------------------------------------------------------


@pytest.mark.row(2)
def test_plain_data_named_gz_and_the_reverse(tmp_path: Path) -> None:
    whole = write(tmp_path / "scan.nii").read_bytes()
    named = tmp_path / "scan.nii.gz"
    named.write_bytes(whole)
    assert codes(io.read(named)) == ["plain-named-gz"]
    plain = tmp_path / "packed.nii"
    plain.write_bytes(gzip.compress(whole))
    assert codes(io.read(plain)) == ["gzip-not-named-gz"]


# ---- row 3: two affines ------------------------------------------------------------------------


@pytest.mark.row(3)
def test_disagreeing_affines_are_refused_unless_one_is_trusted(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[2, 3] += 0.01
    path = write(tmp_path / "scan.nii.gz", edit=lambda i: i.set_sform(moved, 1))
    error = refused(path, "affines-disagree")
    assert "0.01 mm" in error.cause and "--trust" in error.next_step
    for trust, truth in [("sform", moved), ("qform", AFFINE)]:
        native = io.read_grid(path, ReadOptions(trust=trust))  # type: ignore[arg-type]
        assert np.allclose(affine_of_grid(native), truth, atol=1e-4)


@pytest.mark.row(3)
def test_a_thousandth_of_a_millimetre_is_the_limit(tmp_path: Path) -> None:
    for shift, sound in [(0.0008, True), (0.0012, False)]:
        near = AFFINE.copy()
        near[0, 3] += shift
        path = write(tmp_path / f"{shift}.nii", edit=lambda i, a=near: i.set_sform(a, 1))
        if sound:
            assert codes(io.read(path)) == []
        else:
            refused(path, "affines-disagree")


@pytest.mark.row(3)
def test_one_code_zero_means_the_other(tmp_path: Path) -> None:
    other = np.diag([1.0, 1.0, 1.0, 1.0])
    only_s = write(tmp_path / "s.nii", edit=lambda i: i.set_qform(other, 0))
    only_s = patched(only_s, pixdim=[1, 0.8, 0.8, 3, 0, 0, 0, 0])
    only_q = write(tmp_path / "q.nii", edit=lambda i: i.set_sform(other, 0))
    for path, missing in [(only_s, "qform"), (only_q, "sform")]:
        assert np.allclose(affine_of_grid(io.read_grid(path)), AFFINE, atol=1e-4)
        assert codes(io.read(path)) == []
        refused(path, "no-orientation", ReadOptions(trust=missing))  # type: ignore[arg-type]


@pytest.mark.row(3)
def test_a_spacing_that_contradicts_the_only_affine(tmp_path: Path) -> None:
    """pixdim, which SimpleITK takes, against the sform, which nibabel takes."""
    path = write(tmp_path / "scan.nii", edit=lambda i: i.set_qform(None, 0))
    patched(path, pixdim=[1, 0.8, 0.8, 5, 0, 0, 0, 0])
    refused(path, "affines-disagree")
    assert io.read_grid(path, ReadOptions(trust="sform")).spacing_mm[0] == 3
    patched(path, pixdim=[1, 0.8, 0.8, 3.01, 0, 0, 0, 0])
    assert codes(io.read(path)) == ["spacing-rounded"]


@pytest.mark.row(3)
def test_a_broken_quaternion_is_refused(tmp_path: Path) -> None:
    path = patched(write(tmp_path / "scan.nii"), quatern_b=0.9, quatern_c=0.9)
    assert "--trust sform" in refused(path, "bad-affine").next_step
    assert io.read_grid(path, ReadOptions(trust="sform")).shape == SHAPE[::-1]
    assert "--trust" not in refused(patched(path, sform_code=0), "bad-affine").next_step


@pytest.mark.row(3)
@pytest.mark.parametrize("seed", range(40))
def test_rounding_near_half_a_turn_is_no_disagreement(tmp_path: Path, seed: int) -> None:
    """An oblique scan stored LPS is half a turn from RAS: there the quaternion rounds worst."""
    rng = np.random.default_rng(seed)
    turn = rotation_about(rng.normal(size=3), rng.uniform(0, 0.02)) @ np.diag([-1.0, -1, 1])
    affine = np.eye(4)
    affine[:3, :3] = turn * [0.8, 0.8, -3.0 if seed % 2 else 3.0]
    affine[:3, 3] = rng.uniform(-500, 500, 3)
    header = nib.Nifti1Header()
    header.set_data_shape((512, 512, 40))
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "header.nii"
    path.write_bytes(header.binaryblock + bytes(4))
    assert np.allclose(affine_of_grid(io.read_grid(path)), affine, atol=1e-4)
    # The rounding excuses no real disagreement, not even a sixth of a degree.
    other = affine.copy()
    other[:3, :3] = rotation_about(rng.normal(size=3), 3e-3) @ affine[:3, :3]
    header.set_sform(other, 1)
    path.write_bytes(header.binaryblock + bytes(4))
    with pytest.raises(InputError, match="disagree"):
        io.read_grid(path)


@pytest.mark.row(3)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_at_half_a_turn_both_signs_of_a_quaternion_are_the_same(
    tmp_path: Path, sign: float
) -> None:
    """Its real part, 1e-4, is below what float32 tells apart from none."""
    axis = np.array([0.6, -0.64, 0.48])
    affine = np.eye(4)
    affine[:3, :3] = rotation_about(axis, math.pi - 2e-4) * [0.8, 0.8, 3.0]
    affine[:3, 3] = [200.0, 100.0, -400.0]
    header = nib.Nifti1Header()
    header.set_data_shape((512, 512, 40))
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    for name, part in zip("bcd", axis, strict=True):
        header[f"quatern_{name}"] = sign * part
    path = tmp_path / "header.nii"
    path.write_bytes(header.binaryblock + bytes(4))
    assert np.allclose(affine_of_grid(io.read_grid(path)), affine, atol=1e-4)


@pytest.mark.parametrize("seed", range(20))
def test_a_qform_alone_means_what_nibabel_says(tmp_path: Path, seed: int) -> None:
    """Any rotation, right- and left-handed."""
    rng = np.random.default_rng(seed)
    affine = np.eye(4)
    steps = [0.8, 0.7, -3.0 if seed % 2 else 3.0]
    affine[:3, :3] = rotation_about(rng.normal(size=3), rng.uniform(-3, 3)) * steps
    affine[:3, 3] = rng.uniform(-500, 500, 3)
    path = write(tmp_path / "scan.nii", affine=affine, edit=lambda i: i.set_sform(None, 0))
    peer = nib.load(path)
    assert (peer.header["pixdim"][0] == -1) == (seed % 2 == 1)
    assert np.allclose(affine_of_grid(io.read_grid(path)), peer.get_qform(), atol=1e-6)


def rotation_about(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


# ---- row 4: shear ------------------------------------------------------------------------------


def shear(affine: np.ndarray, degrees: float) -> Callable[[nib.Nifti1Image], None]:
    tilted = affine.copy()
    tilted[1, 2] = math.tan(math.radians(degrees)) * 3

    def edit(image: nib.Nifti1Image) -> None:
        image.set_sform(tilted, 1)
        image.set_qform(None, 0)
        image.header["pixdim"][3] = math.hypot(3, tilted[1, 2])

    return edit


@pytest.mark.row(4)
def test_tiny_shear_is_resampled_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii", edit=shear(AFFINE, 1.0))
    scan = io.read(path)
    assert codes(scan) == ["slightly-sheared"]
    axes = scan.volume.grid.mm_from_index[:3, :3] / scan.volume.grid.spacing_mm
    assert torch.allclose(axes.T @ axes, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert scan.volume.data.dtype == torch.float32
    # Native stays the file's, shear and all; labels keep every value.
    assert np.allclose(affine_of_grid(scan.native), nib.load(path).affine)
    labels = hounsfield() > -500
    path = write(tmp_path / "labels.nii", labels.astype(np.uint8), edit=shear(AFFINE, 1.0))
    read = io.read(path, ReadOptions(values="labels"))
    assert read.volume.data.dtype == torch.uint8
    back = io.orientation.reorient(read.volume, read.native).data[0].numpy()
    assert np.array_equal(back.transpose(2, 1, 0), labels)


@pytest.mark.row(4)
def test_a_tilt_is_refused(tmp_path: Path) -> None:
    error = refused(write(tmp_path / "scan.nii", edit=shear(AFFINE, 15.0)), "sheared")
    assert "15.00 degrees" in error.cause


# ---- row 5: no position, no spacing ------------------------------------------------------------


@pytest.mark.row(5)
def test_both_codes_zero(tmp_path: Path) -> None:
    def forget(image: nib.Nifti1Image) -> None:
        image.set_sform(None, 0)
        image.set_qform(None, 0)

    path = write(tmp_path / "scan.nii.gz", edit=forget)
    assert "--spacing" in refused(path, "no-orientation").next_step
    for trust in (ReadOptions(trust="sform"), ReadOptions(trust="qform")):
        step = refused(path, "no-orientation", trust).next_step
        assert "--spacing" in step and "Use --trust" not in step, "no way round in a circle"
    scan = io.read(path, ReadOptions(spacing_mm=(3, 0.8, 0.7)))
    assert codes(scan) == ["orientation-assumed"]
    assert np.allclose(affine_of_grid(scan.native), np.diag([0.7, 0.8, 3, 1]))


@pytest.mark.row(5)
@pytest.mark.parametrize("bad", [0.0, -3.0, math.nan, math.inf])
@pytest.mark.parametrize("code", ["sform", "qform", "both"])
def test_bad_spacing_and_its_override(tmp_path: Path, bad: float, code: str) -> None:
    path = write(tmp_path / "scan.nii")
    drop = {"sform": {"qform_code": 0}, "qform": {"sform_code": 0}, "both": {}}[code]
    patched(path, pixdim=[1, 0.8, 0.8, bad, 0, 0, 0, 0], **drop)
    assert "--spacing" in refused(path, "bad-spacing").next_step
    scan = io.read(path, ReadOptions(spacing_mm=(3.0, 0.8, 0.8)))
    assert np.allclose(affine_of_grid(scan.native), AFFINE, atol=1e-5)
    refused(path, "bad-spacing", ReadOptions(spacing_mm=(3.0, bad, 0.8)))


@pytest.mark.row(5)
def test_a_sform_of_zeros_or_nan(tmp_path: Path) -> None:
    for value in (0.0, math.nan):
        path = write(tmp_path / "scan.nii", edit=lambda i: i.set_qform(None, 0))
        patched(path, srow_x=[value] * 4, pixdim=[1, 0.8, 0.8, 3, 0, 0, 0, 0])
        with pytest.raises(InputError) as caught:
            io.read(path)
        assert caught.value.code in ("affines-disagree", "bad-affine", "bad-spacing")


@pytest.mark.row(5)
def test_the_override_holds_for_a_sound_file_too(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii")
    native = io.read_grid(path, ReadOptions(spacing_mm=(1.5, 0.5, 0.4)))
    assert np.allclose(native.spacing_mm.numpy(), [1.5, 0.5, 0.4])
    assert np.allclose(native.mm((0, 0, 0)).numpy(), AFFINE[:3, 3], atol=1e-4)


def test_units_other_than_millimetres_are_refused(tmp_path: Path) -> None:
    for unit in (1, 3):
        refused(patched(write(tmp_path / "scan.nii"), xyzt_units=unit), "bad-unit")
    assert codes(io.read(patched(write(tmp_path / "scan.nii"), xyzt_units=0))) == []


# ---- row 6: absurd headers ---------------------------------------------------------------------


@pytest.mark.row(6)
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_absurd_header_is_refused_before_allocation(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = patched(write(tmp_path / name), dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])

    def no_allocation(*args: object, **kwargs: object) -> None:
        raise AssertionError("memory was asked for")

    monkeypatch.setattr(np, "empty", no_allocation)
    refused(path, "truncated-file" if name == "scan.nii" else "absurd-size")


@pytest.mark.row(6)
def test_more_than_may_be_used_is_a_matter_of_resources(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz")
    size = 2 * math.prod(SHAPE)
    with pytest.raises(ResourceError) as caught:
        io.read(path, ReadOptions(memory_limit_bytes=size - 1))
    assert caught.value.code == "not-enough-memory" and caught.value.exit_code == 5
    assert io.read(path, ReadOptions(memory_limit_bytes=size)).native.shape == SHAPE[::-1]


@pytest.mark.row(6)
@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"dim": [0, 1, 1, 1, 1, 1, 1, 1]}, "bad-header"),
        ({"dim": [9, 1, 1, 1, 1, 1, 1, 1]}, "bad-header"),
        ({"dim": [3, 12, -10, 6, 1, 1, 1, 1]}, "empty-axis"),
        ({"dim": [3, 12, 0, 6, 1, 1, 1, 1]}, "empty-axis"),
        ({"vox_offset": 100.0}, "bad-header"),
        ({"vox_offset": math.nan}, "bad-header"),
        ({"vox_offset": 1e9}, "truncated-file"),
        ({"bitpix": 8}, "bad-header"),
        ({"datatype": 4711}, "unsupported-type"),
        ({"magic": b"ni1"}, "detached-nifti"),
        ({"magic": b""}, "detached-nifti"),
        ({"scl_slope": math.inf}, "bad-scaling"),
        ({"scl_slope": 1.0, "scl_inter": math.nan}, "bad-scaling"),
    ],
)
def test_headers_that_make_no_sense(tmp_path: Path, fields: dict[str, object], code: str) -> None:
    refused(patched(write(tmp_path / "scan.nii"), **fields), code)


# ---- rows 7 and 8: dimensions and types --------------------------------------------------------


@pytest.mark.row(7)
def test_one_volume_is_squeezed_several_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one.nii.gz", hounsfield()[..., None])
    assert codes(io.read(one)) == []
    assert io.read(one).volume.data.shape == (1, *SHAPE[::-1])
    five = write(tmp_path / "five.nii.gz", hounsfield()[..., None, None])
    assert io.read(five).native.shape == SHAPE[::-1]
    two = write(tmp_path / "two.nii.gz", np.stack([hounsfield()] * 2, -1))
    assert "12 x 10 x 6 x 2" in refused(two, "several-volumes").cause


@pytest.mark.row(8)
def test_two_dimensional_and_single_slice(tmp_path: Path) -> None:
    refused(write(tmp_path / "flat.nii", hounsfield()[..., 0]), "two-dimensional")
    single = write(tmp_path / "single.nii", hounsfield()[..., :1])
    assert io.read(single).volume.data.shape == (1, 1, 10, 12)


@pytest.mark.row(8)
def test_colours_vectors_and_odd_types(tmp_path: Path) -> None:
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(write(tmp_path / "rgb.nii", rgb), "colour-image")
    vector = write(tmp_path / "vector.nii", np.zeros((*SHAPE, 1, 3), np.float32))
    refused(vector, "several-volumes")
    refused(write(tmp_path / "complex.nii", np.zeros(SHAPE, np.complex64)), "unsupported-type")


# ---- row 9: NaN --------------------------------------------------------------------------------


@pytest.mark.row(9)
def test_nan_in_a_file(tmp_path: Path) -> None:
    data = hounsfield().astype(np.float32)
    data[0, 0, 0] = np.nan
    path = write(tmp_path / "scan.nii.gz", data)
    refused(path, "nonfinite-voxels", ReadOptions(nonfinite="refuse"))
    scan = io.read(path)
    assert codes(scan) == ["nonfinite-voxels"] and bool(torch.isfinite(scan.volume.data).all())


# ---- row 10: types and scaling -----------------------------------------------------------------


@pytest.mark.row(10)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    "kind", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"], ids=str
)
def test_every_type_and_byte_order(tmp_path: Path, kind: str, order: str) -> None:
    info = np.iinfo(kind) if kind[0] in "iu" else None
    low, high = (-1000, 3000) if info is None else (max(info.min, -1000), min(info.max, 60000))
    values = np.linspace(low, high, math.prod(SHAPE)).reshape(SHAPE).astype(kind)
    header = nib.Nifti1Header(endianness=order)
    image = nib.Nifti1Image(values.astype(order + kind), AFFINE, header, dtype=order + kind)
    nib.save(image, tmp_path / "scan.nii.gz")
    stored = nib.load(tmp_path / "scan.nii.gz")
    assert stored.header.endianness == order or kind in ("u1", "i1")
    scan = io.read(tmp_path / "scan.nii.gz", ANY)
    back = io.orientation.reorient(scan.volume, scan.native).data[0].numpy().transpose(2, 1, 0)
    assert np.array_equal(back, values)
    same = {"u2": "i4", "u4": "i8", "u8": "i8"}.get(kind, kind)
    assert back.dtype == np.dtype(same)


@pytest.mark.row(10)
def test_too_large_for_signed_64_bits(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii", np.full(SHAPE, 2**63, np.uint64))
    refused(path, "unsupported-type", ANY)


@pytest.mark.row(10)
@pytest.mark.parametrize(
    ("kind", "slope", "intercept", "expected"),
    [
        ("i2", 1.0, 0.0, torch.int16),
        ("i2", 0.0, 7.0, torch.int16),  # slope 0: no scaling at all
        ("u2", 1.0, -1024.0, torch.int16),
        ("i2", 2.0, -1024.0, torch.int16),
        ("i2", 1000.0, 0.0, torch.int32),
        ("i2", 0.5, -1024.0, torch.float32),
        ("u1", 0.1, 0.0, torch.float32),
        ("i4", 0.25, 0.0, torch.float64),
        ("f4", 2.0, 1.0, torch.float32),
        ("f8", 1.5, 0.0, torch.float64),
    ],
)
def test_scaling_agrees_with_nibabel(
    tmp_path: Path, kind: str, slope: float, intercept: float, expected: torch.dtype
) -> None:
    values = (np.arange(math.prod(SHAPE)) % 250).reshape(SHAPE).astype(kind)
    path = patched(write(tmp_path / "scan.nii", values), scl_slope=slope, scl_inter=intercept)
    scan = io.read(path, ANY)
    assert scan.volume.data.dtype == expected
    back = io.orientation.reorient(scan.volume, scan.native).data[0].numpy().transpose(2, 1, 0)
    assert np.allclose(back, nib.load(path).get_fdata(), rtol=1e-6, atol=0)


@pytest.mark.row(10)
def test_whole_scaling_never_overflows_on_the_way() -> None:
    values = np.array([40000, 60000], np.uint16)
    assert scaled(values, 1, -40000, Path("x")).tolist() == [0, 20000]
    assert scaled(values, -(2**40), 0, Path("x")).tolist() == [-40000 * 2**40, -60000 * 2**40]
    beyond = scaled(values, 2**60, 0, Path("x"))  # no whole type holds it
    assert beyond.is_floating_point() and float(beyond[1]) == pytest.approx(60000 * 2.0**60)


@pytest.mark.row(10)
def test_nifti_2(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(hounsfield(), AFFINE), tmp_path / "scan.nii.gz")
    scan = io.read(tmp_path / "scan.nii.gz")
    assert scan.volume.data.dtype == torch.int16 and codes(scan) == []
    assert np.allclose(affine_of_grid(scan.native), AFFINE)


def test_extensions_between_header_and_voxels_are_passed_over(tmp_path: Path) -> None:
    def extend(image: nib.Nifti1Image) -> None:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 5000))

    plain, extended = write(tmp_path / "a.nii"), write(tmp_path / "b.nii.gz", edit=extend)
    assert torch.equal(io.read(plain).volume.data, io.read(extended).volume.data)


# ---- row 11: through a file --------------------------------------------------------------------


@pytest.mark.row(11)
def test_values_are_checked_by_what_they_mean(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz", (hounsfield() > -500).astype(np.uint8))
    refused(path, "label-map")
    assert codes(io.read(path, ReadOptions(values="labels"))) == []
    assert codes(io.read(path, ANY)) == []
    path = write(tmp_path / "shifted.nii.gz", (hounsfield() + 1024).astype(np.int16))
    refused(path, "shifted-hu")
    assert codes(io.read(patched(path, scl_slope=1.0, scl_inter=-1024.0))) == []


# ---- writing -----------------------------------------------------------------------------------


def test_written_affines_are_the_scans_bit_for_bit(tmp_path: Path) -> None:
    """Whichever affines the scan has; the missing one is made from the other."""
    rng = np.random.default_rng(3)
    turned = np.eye(4)
    turned[:3, :3] = rotation_about(rng.normal(size=3), 0.3) * [0.7123, 0.7123, 2.501]
    turned[:3, 3] = rng.uniform(-300, 300, 3)
    edits: dict[str, Callable[[nib.Nifti1Image], None]] = {
        "both": lambda i: None,
        "sform": lambda i: i.set_qform(None, 0),
        "qform": lambda i: i.set_sform(None, 0),
    }
    for name, edit in edits.items():
        path = write(tmp_path / f"{name}.nii.gz", affine=turned, edit=edit)
        scan = io.read(path)
        out = io.save(scan.volume, tmp_path / f"{name}_out.nii.gz", like=path)
        theirs, mine = nib.load(path).header, nib.load(out).header
        assert (mine["sform_code"], mine["qform_code"]) == (1, 1)
        if name in ("both", "sform"):
            assert all((mine[f] == theirs[f]).all() for f in ("srow_x", "srow_y", "srow_z"))
        if name in ("both", "qform"):
            fields = [f"quatern_{i}" for i in "bcd"] + [f"qoffset_{i}" for i in "xyz"]
            assert all(mine[f] == theirs[f] for f in fields)
            assert (mine["pixdim"][:4] == theirs["pixdim"][:4]).all()
        assert np.abs(mine.get_sform() - mine.get_qform()).max() < 1e-4
        assert np.array_equal(np.asarray(nib.load(out).dataobj), hounsfield())
        assert codes(io.read(out)) == []


def test_a_qform_that_rounds_badly_is_not_written(tmp_path: Path) -> None:
    """Near half a turn the sform alone is exact; SimpleITK and nibabel then both take it."""
    rng = np.random.default_rng(5)
    codes_written = set()
    for angle in [0.004] * 6 + [0.5] * 6:
        turn = rotation_about(rng.normal(size=3), angle) @ np.diag([-1.0, -1, 1])
        affine = np.eye(4)
        affine[:3, :3] = turn * [0.8, 0.8, 3.0]
        affine[:3, 3] = [200.0, 180.0, -900.0]
        grid = Grid((4, 512, 512), mm_from_index_of_affine(affine))
        volume = Volume(torch.zeros((1, 4, 512, 512), dtype=torch.uint8), grid)
        out = io.save(volume, tmp_path / "labels.nii", overwrite=True)
        header = nib.load(out).header
        codes_written.add(int(header["qform_code"]))
        assert header["sform_code"] == 1
        corner = sitk.ReadImage(str(out)).TransformIndexToPhysicalPoint((511, 511, 3))
        truth = np.diag([-1, -1, 1, 1]) @ affine @ [511, 511, 3, 1]
        assert np.allclose(corner, truth[:3], atol=2e-3, rtol=0)
    assert codes_written == {0, 1}


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("given_as", "stored"),
    [
        (torch.uint8, "uint8"),
        (torch.int16, "int16"),
        (torch.int32, "int32"),
        (torch.int64, "uint8"),
        (torch.bool, "uint8"),
        (torch.float32, "float32"),
        (torch.float64, "float64"),
        (torch.float16, "float32"),
        (torch.bfloat16, "float32"),
    ],
)
def test_types_and_values_are_kept(
    tmp_path: Path, ending: str, given_as: torch.dtype, stored: str
) -> None:
    values = (torch.arange(120) % 120).reshape(1, 4, 5, 6).to(given_as)
    out = io.save(Volume(values, Grid.from_spacing((4, 5, 6), (3, 1, 1))), tmp_path / f"x{ending}")
    image = nib.load(out)
    assert image.get_data_dtype() == np.dtype(stored)
    assert image.header.get_slope_inter() in ((1.0, 0.0), (None, None))
    read = io.read(out, ANY).volume
    assert torch.equal(read.data.double(), values.double())


def test_large_and_negative_int64_keep_their_values(tmp_path: Path) -> None:
    grid = Grid.from_spacing((1, 1, 2), (3, 1, 1))
    for values, stored in [((-1, 300), "int32"), ((-1, 2**40), "int64"), ((0, 2**31), "int64")]:
        data = torch.tensor(values).reshape(1, 1, 1, 2)
        out = io.save(Volume(data, grid), tmp_path / "x.nii", overwrite=True)
        assert nib.load(out).get_data_dtype() == np.dtype(stored)
        assert torch.equal(io.read(out, ANY).volume.data.long(), data)


def test_the_same_volume_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = io.read(write(tmp_path / "scan.nii")).volume
    for ending in io.WRITTEN_ENDINGS:
        first = io.save(volume, tmp_path / f"first{ending}").read_bytes()
        monkeypatch.setattr("time.time", lambda: 2e9)
        assert io.save(volume, tmp_path / f"second{ending}").read_bytes() == first
        monkeypatch.undo()


def test_an_axis_too_long_for_nifti(tmp_path: Path) -> None:
    grid = Grid.from_spacing((1, 1, 32768), (1, 1, 1))
    volume = Volume(torch.zeros((1, 1, 1, 32768), dtype=torch.uint8), grid)
    with pytest.raises(UsageError, match="too many for NIfTI"):
        io.save(volume, tmp_path / "x.nii.gz")
    assert list(tmp_path.iterdir()) == []
    assert io.read_grid(io.save(volume, tmp_path / "x.nrrd")).shape == grid.shape
