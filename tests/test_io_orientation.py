"""Row 15: however the file orders its voxels, the patient is the same."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from kidseg import io
from kidseg.geometry import Grid, Volume
from kidseg.io.orientation import (
    CANONICAL,
    affine_of_grid,
    axes_of,
    canonical,
    facing,
    mm_from_index_of_affine,
    reorient,
)

ORDERS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
ENDINGS = [".nii.gz", ".nrrd", ".mha"]


def tilted_axial() -> Volume:
    """A canonical volume, all voxels different, 8 degrees off the axes as a real oblique scan."""
    grid = Grid.from_spacing((4, 5, 6), (2.5, 0.7, 0.8), centre_mm=(11.0, -42.0, 903.0))
    angle = np.deg2rad(8)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    values = torch.arange(120, dtype=torch.int16).reshape(1, 4, 5, 6) * 10 - 1000
    return Volume(values, grid.moved(torch.from_numpy(turn)))


def stored(volume: Volume, order: tuple[int, ...], signs: tuple[int, ...]) -> nib.Nifti1Image:
    """The same patient with the file's axes permuted and flipped, by nibabel's own means."""
    image = nib.Nifti1Image(
        volume.data[0].numpy().transpose(2, 1, 0), affine_of_grid(volume.grid), dtype="int16"
    )
    return image.as_reoriented(np.column_stack([order, signs]))


def write(image: nib.Nifti1Image, path: Path) -> None:
    """NIfTI by nibabel, the others by SimpleITK."""
    if path.name.endswith(".nii.gz"):
        nib.save(image, path)
        return
    itk = sitk.GetImageFromArray(np.asarray(image.dataobj).transpose(2, 1, 0))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    itk.SetSpacing(spacing.tolist())
    itk.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    itk.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(itk, str(path), path.suffix == ".mha")


@pytest.mark.requirement("own voxels")
@pytest.mark.row(15)
@pytest.mark.parametrize("ending", ENDINGS)
def test_all_48_orders_give_the_same_patient(tmp_path: Path, ending: str) -> None:
    truth = tilted_axial()
    seen = set()
    for order, signs in ORDERS:
        image = stored(truth, order, signs)
        seen.add(nib.aff2axcodes(image.affine))
        write(image, tmp_path / f"scan{ending}")
        scan = io.read(tmp_path / f"scan{ending}")
        assert torch.equal(scan.volume.data, truth.data)
        assert scan.volume.grid.same_as(truth.grid, 2e-3 if ending == ".nii.gz" else 1e-6)
        # The native grid is the file's own: sizes in reversed order, nibabel's affine.
        assert scan.native.shape == image.shape[::-1]
        assert np.allclose(affine_of_grid(scan.native), image.affine, atol=1e-3, rtol=0)
    assert len(seen) == 48


@pytest.mark.requirement("own voxels")
@pytest.mark.row(15)
@pytest.mark.parametrize("ending", ENDINGS)
def test_labels_go_back_to_the_files_own_voxels(tmp_path: Path, ending: str) -> None:
    """For each of the 48 orders, as nibabel and SimpleITK see scan and labels."""
    truth = tilted_axial()
    path, out = tmp_path / f"scan{ending}", tmp_path / f"labels{ending}"
    for order, signs in ORDERS:
        write(stored(truth, order, signs), path)
        scan = io.read(path)
        labels = Volume((scan.volume.data > -500).to(torch.uint8), scan.volume.grid)
        io.save(labels, out, like=path, overwrite=True)
        theirs, mine = sitk.ReadImage(str(path)), sitk.ReadImage(str(out))
        same = sitk.GetArrayFromImage(theirs) > -500
        assert mine.GetPixelID() == sitk.sitkUInt8
        assert np.array_equal(sitk.GetArrayFromImage(mine) > 0, same)
        # Positions, not the numbers of a header: rounding of a quaternion moves corners, not axes.
        last = [n - 1 for n in theirs.GetSize()]
        for corner in product(*((0, n) for n in last)):
            a, b = (i.TransformIndexToPhysicalPoint(corner) for i in (theirs, mine))
            assert np.allclose(a, b, atol=1e-3, rtol=0)
        if ending == ".nii.gz":
            scanned, written = nib.load(path), nib.load(out)
            assert np.array_equal(scanned.affine, written.affine)
            assert np.array_equal(np.asarray(scanned.dataobj) > -500, np.asarray(written.dataobj))


@pytest.mark.row(15)
def test_kits_stores_slices_first(tmp_path: Path) -> None:
    """KiTS19's first file axis is the slice: the array comes out axial all the same."""
    truth = tilted_axial()
    image = stored(truth, (2, 1, 0), (1, 1, 1))
    nib.save(image, tmp_path / "imaging.nii.gz")
    assert image.shape[0] != 4 or nib.aff2axcodes(image.affine)[0] in "SI"
    scan = io.read(tmp_path / "imaging.nii.gz")
    assert scan.volume.grid.shape == (4, 5, 6)
    assert torch.equal(scan.volume.data, truth.data)


def test_canonical_axes_by_hand() -> None:
    """A RAS file: index (k, j, i) goes up, front, right; canonical goes up, back, left."""
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    volume = Volume(
        torch.arange(24).reshape(1, 2, 3, 4), Grid((2, 3, 4), mm_from_index_of_affine(affine))
    )
    ordered = canonical(volume)
    assert torch.equal(ordered.data, volume.data.flip([2, 3]))
    assert ordered.grid.mm((0, 0, 0)).tolist() == [6.0, 6.0, 0.0]
    assert ordered.grid.mm((1, 1, 1)).tolist() == [4.0, 3.0, 4.0]
    back = reorient(ordered, volume.grid)
    assert torch.equal(back.data, volume.data) and back.grid.same_as(volume.grid, 0.0)
    assert np.array_equal(affine_of_grid(volume.grid), affine)


@pytest.mark.parametrize(("order", "signs"), ORDERS)
def test_letters_name_the_axes_as_nibabel_does(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    """From the slowest axis to the fastest, while nibabel starts with the fastest."""
    image = stored(tilted_axial(), order, signs)
    matrix = mm_from_index_of_affine(image.affine)
    grid = Grid((image.shape[2], image.shape[1], image.shape[0]), matrix)
    letters = axes_of(grid)
    assert letters == "".join(nib.aff2axcodes(image.affine))[::-1]
    assert axes_of(facing(letters)) == letters
    turned = reorient(tilted_axial(), facing(letters))
    assert turned.grid.same_as(grid)


def test_letters_of_the_canonical_order_and_no_letters() -> None:
    assert axes_of(tilted_axial().grid) == CANONICAL
    for letters in ("", "SP", "SPS", "SPR ", "XYZ", "spl", "SSP"):
        with pytest.raises(ValueError, match="axes must be an order such as SPL"):
            facing(letters)
