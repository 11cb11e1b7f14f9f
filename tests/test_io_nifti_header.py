"""Where the voxels of a NIfTI file start: never a few bytes early, and at no cost in memory."""

from __future__ import annotations

import gzip
import math
import tracemalloc
from pathlib import Path

import nibabel as nib
import pytest
import torch

from findings import codes
from kidseg import io
from niftis import patched, refused, write

KINDS = [(nib.Nifti1Image, 348), (nib.Nifti2Image, 540)]


def repacked(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.row(1)
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize(("kind", "size"), KINDS)
@pytest.mark.parametrize("unset", [True, False])
def test_an_offset_in_the_header_is_decided_by_the_length_of_the_file(
    tmp_path: Path, name: str, kind: type[nib.Nifti1Image], size: int, unset: bool
) -> None:
    path = write(tmp_path / name, kind=kind)
    sound = io.read(path)
    assert codes(sound) == []
    patched(path, vox_offset=0 if unset else size)
    scan = io.read(path)
    assert codes(scan) == ["voxel-offset-corrected"]
    assert torch.equal(scan.volume.data, sound.volume.data)
    assert io.read_grid(path).same_as(sound.native)
    whole = gzip.decompress(path.read_bytes()) if name.endswith("gz") else path.read_bytes()
    for change in (1, 2, 4, 16):
        error = refused(repacked(path, whole + bytes(change)), "bad-header")
        assert "inside the header" in error.cause and f"{change} bytes follow" in error.cause
        refused(repacked(path, whole[:-change]), "truncated-file")


@pytest.mark.row(1)
@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_impossible_offsets_are_refused(
    tmp_path: Path, kind: type[nib.Nifti1Image], size: int
) -> None:
    path = write(tmp_path / "scan.nii.gz", kind=kind)
    for offset in (1, 100, size - 4, size + 1, size + 3, -1, -size - 4):
        refused(patched(path, vox_offset=offset), "bad-header")
    if kind is nib.Nifti1Image:  # a float
        for fraction in (352.5, 0.5, math.nan, math.inf, -math.inf, 1e30, 2.0**31):
            refused(patched(path, vox_offset=fraction), "bad-header")
    else:
        refused(patched(path, vox_offset=2**62), "bad-header")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_an_offset_inside_an_extension_reads_no_extension_as_voxels(
    tmp_path: Path, name: str
) -> None:
    def extend(image: nib.Nifti1Image) -> None:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a" * 40))
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"b" * 4))

    path = write(tmp_path / name, edit=extend)
    assert nib.load(path).dataobj.offset == 352 + 48 + 16
    truth = io.read(write(tmp_path / f"plain_{name}")).volume.data
    scan = io.read(path)
    assert codes(scan) == [] and torch.equal(scan.volume.data, truth)
    for offset in (352, 360, 368, 384, 392, 408):
        error = refused(patched(path, vox_offset=offset), "bad-header")
        assert "inside an extension" in error.cause


def test_padding_after_the_header_and_after_extensions_is_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii")
    truth, whole = io.read(path).volume.data, path.read_bytes()
    for flag, gap in [
        (b"\0\0\0\0", bytes(160)),
        (b"\1\0\0\0", (32).to_bytes(4, "little") + bytes(28 + 128)),
        (b"\1\0\0\0", (32).to_bytes(4, "little") + bytes(28 + 8)),
    ]:
        path.write_bytes(whole[:348] + flag + gap + whole[352:])
        scan = io.read(patched(path, vox_offset=352 + len(gap)))
        assert codes(scan) == [] and torch.equal(scan.volume.data, truth)


def test_a_flag_of_extensions_that_are_not_there_is_harmless(tmp_path: Path) -> None:
    """The flag alone; the file ends where it should."""
    path = write(tmp_path / "scan.nii")
    truth, whole = io.read(path).volume.data, path.read_bytes()
    path.write_bytes(whole[:348] + b"\1\0\0\0" + whole[352:])
    scan = io.read(path)
    assert codes(scan) == [] and torch.equal(scan.volume.data, truth)


@pytest.mark.row(6)
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_an_offset_beyond_the_file_costs_nothing(tmp_path: Path, name: str) -> None:
    path = patched(write(tmp_path / name), vox_offset=2.0**31 - 128)
    tracemalloc.start()
    error = refused(path, "truncated-file")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert str(2**31 - 128 - 352) in error.cause


@pytest.mark.row(6)
def test_what_is_skipped_takes_no_memory(tmp_path: Path) -> None:
    """64 MiB of zeros, which gzip packs a thousandfold, and nothing after them."""
    path = patched(write(tmp_path / "scan.nii"), vox_offset=2.0**26)
    packed = tmp_path / "scan.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()[:352] + bytes(2**26), 1))
    tracemalloc.start()
    refused(packed, "truncated-file")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
