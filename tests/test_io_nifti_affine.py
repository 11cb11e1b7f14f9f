"""The two affines of a NIfTI file: `trust` looks at one only; one that is none is named."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from findings import codes
from kidseg import io
from kidseg.errors import InputError
from kidseg.geometry import Volume
from kidseg.io import ReadOptions
from kidseg.io.orientation import affine_of_grid, reorient
from niftis import AFFINE, patched, refused, write

SFORM, QFORM = ReadOptions(trust="sform"), ReadOptions(trust="qform")
NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.fixture(autouse=True)
def no_warning_on_the_console() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def read_affine(path: Path, options: ReadOptions) -> np.ndarray:
    affine = affine_of_grid(io.read_grid(path, options))
    assert io.read(path, options).native.same_as(io.read_grid(path, options))
    return affine


@pytest.mark.row(3)
@pytest.mark.parametrize("bad", [0.0, -3.0, *NOT_FINITE])
def test_a_trusted_sform_depends_on_nothing_else(tmp_path: Path, bad: float) -> None:
    """Neither on pixdim, whose sign some programs use, nor on the quaternion."""
    path = patched(write(tmp_path / "scan.nii"), pixdim=[1, 0.8, 0.8, bad, 0, 0, 0, 0])
    assert "--trust sform" in refused(path, "bad-spacing").next_step
    assert np.allclose(read_affine(path, SFORM), AFFINE)
    patched(path, quatern_b=bad, qoffset_x=bad, pixdim=[bad] * 8)
    assert np.allclose(read_affine(path, SFORM), AFFINE)
    assert codes(io.read(path, SFORM)) == []


@pytest.mark.row(3)
@pytest.mark.parametrize("bad", [0.0, 1e30, *NOT_FINITE])
def test_a_trusted_qform_depends_on_nothing_else(tmp_path: Path, bad: float) -> None:
    path = patched(write(tmp_path / "scan.nii"), srow_x=[bad] * 4, srow_z=[bad] * 4)
    assert "--trust qform" in refused(path, "bad-affine").next_step
    assert np.allclose(read_affine(path, QFORM), AFFINE, atol=1e-4)
    assert codes(io.read(path, QFORM)) == []
    patched(path, pixdim=[1, 0.8, 0.8, -3, 0, 0, 0, 0])
    error = refused(path, "bad-spacing", QFORM)
    assert "--spacing" in error.next_step and "--trust" not in error.next_step


@pytest.mark.row(3)
def test_an_empty_sform_is_none(tmp_path: Path) -> None:
    none = {"srow_x": [0] * 4, "srow_y": [0, 0, 0, 7], "srow_z": [0] * 4}
    path = patched(write(tmp_path / "scan.nii.gz"), **none)
    scan = io.read(path)
    assert codes(scan) == ["empty-sform"] and "qform was used" in scan.findings[0].cause
    assert np.allclose(affine_of_grid(scan.native), AFFINE, atol=1e-4)
    error = refused(path, "bad-affine", SFORM)
    assert "empty" in error.cause and "--trust qform" in error.next_step
    assert codes(io.read(path, QFORM)) == []
    patched(path, qform_code=0)
    assert "--spacing" in refused(path, "no-orientation").next_step
    assumed = io.read(path, ReadOptions(spacing_mm=(3, 0.8, 0.8)))
    assert codes(assumed) == ["empty-sform", "orientation-assumed"]


@pytest.mark.parametrize("rows", [[[1, 1, 0], [0, 1e-5, 0], [0, 0, 1]], [[1, 0, 0]] * 3])
def test_a_nearly_singular_affine_is_named(tmp_path: Path, rows: list[list[float]]) -> None:
    srows = {f"srow_{n}": [*row, 0] for n, row in zip("xyz", rows, strict=True)}
    path = patched(write(tmp_path / "scan.nii"), **srows)
    error = refused(path, "bad-affine")
    assert "sform" in error.cause and "--trust qform" in error.next_step
    refused(path, "bad-affine", SFORM)
    assert np.allclose(read_affine(path, QFORM), AFFINE, atol=1e-4)
    refused(patched(path, qform_code=0), "bad-affine")


def test_an_invalid_qform_beside_a_sound_sform_is_named(tmp_path: Path) -> None:
    path = patched(write(tmp_path / "scan.nii"), qoffset_y=math.nan)
    error = refused(path, "bad-affine")
    assert "qform" in error.cause and "--trust sform" in error.next_step


_ANY = st.one_of(st.floats(width=32), st.sampled_from([0.0, -0.0, *NOT_FINITE, 1e38, 1e-40]))
_ROW = st.lists(_ANY, min_size=4, max_size=4)


@settings(max_examples=150)
@given(
    rows=st.lists(_ROW, min_size=3, max_size=3),
    pixdim=st.lists(_ANY, min_size=8, max_size=8),
    quaternion=st.lists(_ANY, min_size=6, max_size=6),
    scaling=st.tuples(_ANY, _ANY),
    trust=st.sampled_from(["sform", "qform", None]),
    spacing=st.booleans(),
)
def test_any_numbers_give_a_scan_or_an_error(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[float]],
    pixdim: list[float],
    quaternion: list[float],
    scaling: tuple[float, float],
    trust: Literal["sform", "qform"] | None,
    spacing: bool,
) -> None:
    """Of kidseg, and no warning of numpy (the fixture turns it into an error)."""
    path = write(tmp_path_factory.mktemp("any") / "scan.nii")
    names = ["quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
    fields: dict[str, object] = dict(zip(names, quaternion, strict=True))
    fields |= {f"srow_{n}": row for n, row in zip("xyz", rows, strict=True)}
    fields |= {"pixdim": pixdim, "scl_slope": scaling[0], "scl_inter": scaling[1]}
    patched(path, **fields)
    options = ReadOptions(trust=trust, spacing_mm=(3, 1, 1) if spacing else None, values="any")
    with suppress(InputError):
        scan = io.read(path, options)
        assert bool(scan.native.mm_from_index.isfinite().all())
        assert bool(scan.volume.data.isfinite().all())


@pytest.mark.parametrize("trust", ["sform", "qform"])
def test_labels_lie_on_the_affine_that_was_trusted(
    tmp_path: Path, trust: Literal["sform", "qform"]
) -> None:
    """And the file that is written has no second one that contradicts it."""
    moved = AFFINE.copy()
    moved[2, 3] += 20
    path = write(tmp_path / "scan.nii.gz", edit=lambda i: i.set_sform(moved, 1))
    scan = io.read(path, ReadOptions(trust=trust))
    labels = Volume((scan.volume.data > 0).byte(), scan.volume.grid)
    out = io.save(labels, tmp_path / "seg.nii.gz", like=scan)
    again = io.read(out, ReadOptions(values="labels"))
    assert again.findings == () and again.native.same_as(scan.native)
    expected = moved if trust == "sform" else AFFINE
    assert np.allclose(nib.load(out).affine, expected, atol=1e-4)


def test_labels_have_the_spacing_that_was_stated(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.nii.gz")
    scan = io.read(path, ReadOptions(spacing_mm=(1.5, 0.4, 0.4)))
    labels = Volume((scan.volume.data > 0).byte(), scan.volume.grid)
    out = io.save(labels, tmp_path / "seg.nii.gz", like=scan)
    assert np.allclose(nib.load(out).header.get_zooms(), [0.4, 0.4, 1.5])
    assert io.read(out, ReadOptions(values="labels")).native.same_as(scan.native)


# ---- row 4: a slightly sheared scan and its labels ---------------------------------------------


def sheared(path: Path, slope: float) -> Path:
    tilted = AFFINE.copy()
    tilted[1, 2] = slope * 3

    def edit(image: nib.Nifti1Image) -> None:
        image.set_sform(tilted, 1)
        image.set_qform(None, 0)
        image.header["pixdim"][3] = math.hypot(3, tilted[1, 2])

    return write(path, edit=edit)


@pytest.mark.row(4)
@pytest.mark.parametrize("slope", [1e-5, 1e-3, 0.02, -0.02])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_labels_of_a_slightly_sheared_scan_go_on_its_own_voxels(
    tmp_path: Path, slope: float, ending: str
) -> None:
    path = sheared(tmp_path / "scan.nii.gz", slope)
    scan = io.read(path)
    labels = Volume((scan.volume.data > -500).byte(), scan.volume.grid)
    for like in (scan, scan.native, path):
        out = io.save(labels, tmp_path / f"seg{ending}", like=like, overwrite=True)
        again = io.read(out, ReadOptions(values="labels"))
        assert again.native.same_as(scan.native, 1e-4)
        assert again.volume.grid.same_as(scan.volume.grid)
        assert bool((again.volume.data == labels.data).all())
        in_file = reorient(labels, scan.native).data[0].numpy().transpose(2, 1, 0)
        if ending == ".nii.gz":
            assert np.array_equal(np.asarray(nib.load(out).dataobj), in_file)
    assert np.array_equal(nib.load(path).affine[:3], affine_of_grid(scan.native)[:3])


@pytest.mark.row(4)
def test_what_is_not_exact_voxel_for_voxel_is_not_written_so(tmp_path: Path) -> None:
    scan = io.read(sheared(tmp_path / "scan.nii.gz", 0.02))
    with pytest.raises(InputError) as caught:  # interpolated values belong to the other grid
        io.save(scan.volume, tmp_path / "copy.nii.gz", like=scan)
    assert caught.value.code == "grid-mismatch"
