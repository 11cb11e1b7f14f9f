"""Reading and writing as a user does: by path, whatever the format."""

from __future__ import annotations

import errno
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from kidseg import io
from kidseg.errors import InputError, KidsegWarning, ResourceError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions
from kidseg.io.orientation import reorient

DATA = Path(__file__).parents[2] / "shared" / "data"
GRID = Grid.from_spacing((4, 20, 24), (2.5, 0.8, 0.7), centre_mm=(3.0, -4.0, 500.0))


def scan_volume() -> Volume:
    """Air around soft tissue, canonical order, int16."""
    rng = np.random.default_rng(0)
    values = rng.normal(-1000, 5, GRID.shape)
    values[:, 4:-4, 4:-4] = rng.normal(40, 30, values[:, 4:-4, 4:-4].shape)
    return Volume(torch.from_numpy(values.astype(np.int16))[None], GRID)


def labels() -> Volume:
    return Volume((scan_volume().data > 60).to(torch.uint8), GRID)


def real(pattern: str) -> list[Path]:
    found = sorted(DATA.glob(pattern))
    if not found:
        pytest.skip("the real scans beside the project are absent")
    return found


# ---- read, load --------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", io.WRITTEN_ENDINGS)
def test_every_format_gives_back_what_was_saved(tmp_path: Path, ending: str) -> None:
    volume = scan_volume()
    path = io.save(volume, tmp_path / f"scan{ending}")
    scan = io.read(path)
    assert scan.path == path and scan.findings == () and scan.modality == "unknown"
    assert torch.equal(scan.volume.data, volume.data)
    assert scan.volume.data.dtype == torch.int16 and scan.volume.data.is_contiguous()
    assert scan.volume.grid.same_as(GRID, 1e-4) and scan.native.same_as(GRID, 1e-4)
    assert io.read_grid(path).same_as(scan.native, 0.0)
    assert torch.equal(io.load(path).data, volume.data)


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    for ending, kind in [(".nii.gz", "nifti"), (".nrrd", "nrrd"), (".mha", "metaimage")]:
        path = io.save(scan_volume(), tmp_path / f"scan{ending}")
        disguised = tmp_path / f"{kind}.dat"
        path.rename(disguised)
        assert io.read(disguised).format == kind


def test_load_warns_of_findings(tmp_path: Path) -> None:
    clipped = Volume(scan_volume().data.clamp(0, 255), GRID)
    path = io.save(clipped, tmp_path / "scan.nii.gz")
    with pytest.warns(KidsegWarning, match="window") as caught:
        io.load(str(path))
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert io.load(path, values="any").data.dtype == torch.int16
    with pytest.raises(TypeError):
        io.load(path, vlaues="any")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "scan.nii.gz"
    os.mkfifo(pipe)
    with pytest.raises(InputError) as caught:
        io.read(pipe)
    assert caught.value.code == "not-a-file"


# ---- save --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["seg.nii.xz", "seg", "seg.dcm", "seg.gz", "seg.nhdr", "seg.mhd"])
def test_an_unknown_ending_is_refused_naming_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.nii\.gz, \.nii, \.nrrd, \.mha") as caught:
        io.save(labels(), tmp_path / name)
    assert caught.value.code == "unknown-format"


@pytest.mark.row(12)
def test_labels_of_another_grid_are_refused(tmp_path: Path) -> None:
    path = io.save(scan_volume(), tmp_path / "scan.nii.gz")
    out = tmp_path / "seg.nii.gz"
    near = torch.eye(4, dtype=torch.float64)
    near[0, 3] = 5e-4
    io.save(Volume(labels().data, GRID.moved(near)), out, like=path)
    far = near.clone()
    far[0, 3] = 0.01
    for wrong in (
        Volume(labels().data, GRID.moved(far)),
        labels().slices(0, 3),
        Volume(labels().data, GRID.resized(GRID.shape).crop((0, 1, 0), GRID.shape)),
    ):
        for like in (path, str(path), io.read_grid(path)):
            with pytest.raises(InputError) as caught:
                io.save(wrong, tmp_path / "wrong.nii.gz", like=like)
            assert caught.value.code == "grid-mismatch"
    assert not (tmp_path / "wrong.nii.gz").exists()
    assert np.array_equal(nib.load(out).affine, nib.load(path).affine)


def test_like_a_file_of_another_format(tmp_path: Path) -> None:
    """Labels of an MHA scan as NIfTI, and the reverse, where both peers see them."""
    for scan_ending, out_ending in [(".mha", ".nii.gz"), (".nii.gz", ".mha"), (".nrrd", ".nii")]:
        flipped = reorient(scan_volume(), Grid(GRID.shape, -GRID.mm_from_index + 2 * corner()))
        path = io.save(flipped, tmp_path / f"scan{scan_ending}", overwrite=True)
        out = io.save(labels(), tmp_path / f"seg{out_ending}", like=path, overwrite=True)
        scan, seg = sitk.ReadImage(str(path)), sitk.ReadImage(str(out))
        assert np.allclose(scan.GetOrigin(), seg.GetOrigin(), atol=1e-3)
        assert np.allclose(scan.GetDirection(), seg.GetDirection(), atol=1e-6)
        expected = sitk.GetArrayFromImage(scan) > 60
        assert np.array_equal(sitk.GetArrayFromImage(seg) > 0, expected)


def corner() -> torch.Tensor:
    only = torch.zeros((4, 4), dtype=torch.float64)
    only[3, 3] = 1
    return only


def test_only_one_channel_on_one_grid_can_be_written(tmp_path: Path) -> None:
    two = Volume(torch.cat([labels().data] * 2), GRID)
    sliced = Volume(labels().data, GRID.slicewise())
    for volume in (two, sliced):
        with pytest.raises(UsageError) as caught:
            io.save(volume, tmp_path / "seg.nii.gz")
        assert caught.value.code == "not-one-volume"
    assert list(tmp_path.iterdir()) == []


# ---- row 26 and faults: paths, permissions, disks ----------------------------------------------


@pytest.mark.row(26)
@pytest.mark.parametrize("ending", io.WRITTEN_ENDINGS)
def test_spaces_and_unicode_in_paths(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "Kinder Überweisung 患者 ✓"
    folder.mkdir()
    path = io.save(scan_volume(), folder / f"große Niere 腎臓{ending}")
    assert torch.equal(io.read(path).volume.data, scan_volume().data)
    upper = io.save(labels(), folder / f"SEG{ending.upper()}", like=path)
    assert io.read(upper, ReadOptions(values="labels")).findings == ()


@pytest.mark.row(26)
def test_an_output_that_exists_is_refused_unless_overwritten(tmp_path: Path) -> None:
    path = io.save(labels(), tmp_path / "seg.nii.gz")
    before = path.read_bytes()
    for act in (lambda: io.save(scan_volume(), path), lambda: io.check_output(path)):
        with pytest.raises(UsageError, match="--overwrite") as caught:
            act()
        assert caught.value.code == "output-exists" and caught.value.exit_code == 2
    assert path.read_bytes() == before
    io.check_output(path, overwrite=True)
    io.save(scan_volume(), path, overwrite=True)
    assert path.read_bytes() != before
    (tmp_path / "folder.nii.gz").mkdir()
    with pytest.raises(UsageError, match="a folder of this name"):
        io.save(labels(), tmp_path / "folder.nii.gz", overwrite=True)


@pytest.fixture
def as_ordinary_user(tmp_path: Path) -> Callable[[], AbstractContextManager[None]]:
    """A context in which permissions bind (root is above them) and `tmp_path` can be reached."""
    if os.name != "posix":
        pytest.skip("needs POSIX permissions")

    @contextmanager
    def ordinary() -> Iterator[None]:
        was = os.geteuid()
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == was and folder.is_relative_to(tempfile.gettempdir()):
                folder.chmod(folder.stat().st_mode | 0o055)
        if was == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(was)

    return ordinary


@pytest.mark.row(26)
def test_a_read_only_folder_is_refused_before_the_work(
    tmp_path: Path, as_ordinary_user: Callable[[], AbstractContextManager[None]]
) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o555)
    for act in (
        lambda: io.check_output(locked / "seg.nii.gz"),
        lambda: io.save(labels(), locked / "seg.nii.gz"),
    ):
        with as_ordinary_user(), pytest.raises(InputError) as caught:
            act()
        assert caught.value.code == "not-writable" and caught.value.exit_code == 3
    assert list(locked.iterdir()) == []


@pytest.mark.row(26)
def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Create the folder") as caught:
        io.save(labels(), tmp_path / "nowhere" / "seg.nii.gz")
    assert caught.value.code == "not-writable"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        io.check_output(tmp_path / "file" / "seg.nii.gz")


def test_an_unreadable_file_is_named(
    tmp_path: Path, as_ordinary_user: Callable[[], AbstractContextManager[None]]
) -> None:
    path = io.save(labels(), tmp_path / "seg.nii.gz")
    path.chmod(0)
    with as_ordinary_user(), pytest.raises(InputError) as caught:
        io.read(path)
    assert caught.value.code == "unreadable" and caught.value.path == str(path)


@pytest.mark.fault("disk full")
@pytest.mark.parametrize("ending", io.WRITTEN_ENDINGS)
def test_a_full_disk_leaves_no_file_and_the_old_one_whole(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = io.save(labels(), tmp_path / f"seg{ending}")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for target in (path, tmp_path / f"new{ending}"):
        with pytest.raises(ResourceError) as caught:
            io.save(scan_volume(), target, overwrite=True)
        assert caught.value.code == "disk-full" and caught.value.exit_code == 5
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault("disk full")
def test_a_really_full_device(tmp_path: Path) -> None:
    """/dev/full refuses every byte: the way a disk does, through the whole writer."""
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("needs /dev/full")
    from kidseg.io import atomic

    def on_full(temporary: Path, path: Path) -> object:
        temporary.touch()
        return device.open("wb")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "_created", on_full)
        with pytest.raises(ResourceError):
            io.save(scan_volume(), tmp_path / "seg.nii")
    assert list(tmp_path.iterdir()) == []


def test_an_error_or_interrupt_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kidseg.io import nrrd

    for error in (KeyboardInterrupt, MemoryError, ValueError):

        def fail(*args: object, error: type[BaseException] = error) -> None:
            raise error

        monkeypatch.setattr(nrrd, "write_nrrd", fail)
        with pytest.raises(error):
            io.save(labels(), tmp_path / "seg.nrrd")
        assert list(tmp_path.iterdir()) == []


# ---- a zip of one file -------------------------------------------------------------------------


def test_a_zip_of_one_file_is_read_and_named(tmp_path: Path) -> None:
    pytest.importorskip("kidseg.io.archive")
    inner = io.save(Volume(scan_volume().data.clamp(0, 255), GRID), tmp_path / "scan.nii.gz")
    packed = tmp_path / "scan.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(inner, "folder/scan.nii.gz")
        archive.writestr("__MACOSX/folder/._scan.nii.gz", b"\x05\x16")
        archive.writestr("folder/readme.txt", "hello")
    scan = io.read(packed)
    assert scan.path == packed and scan.format == "nifti"
    (finding,) = scan.findings
    assert finding.path.startswith(str(packed)) and finding.path.endswith("scan.nii.gz")
    with zipfile.ZipFile(packed, "a") as archive:
        archive.write(inner, "second.nii.gz")
    with pytest.raises(InputError) as caught:
        io.read(packed)
    assert caught.value.code == "several-scans" and caught.value.path == str(packed)
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("cut.nii.gz", inner.read_bytes()[:-9])
    with pytest.raises(InputError) as caught:
        io.read(packed)
    assert caught.value.code == "truncated-file"
    assert caught.value.path is not None and caught.value.path.startswith(str(packed))


# ---- real scans --------------------------------------------------------------------------------


@pytest.mark.row(11)
def test_real_scans(tmp_path: Path) -> None:
    """KiTS slices are clipped to 0..255 and said to be; unclipped CT passes."""
    for path in real("kits19_slices/*_ct.nii.gz"):
        assert "windowed-intensities" in [f.code for f in io.read(path).findings]
    for name in ("amos_ct/amos_0013_ct.nii.gz", "totalsegmentator_ct/ct.nii.gz"):
        (path,) = real(name)
        codes = [f.code for f in io.read(path).findings]
        assert codes == (["anisotropic-voxels"] if "amos" in name else [])


@pytest.mark.row(15)
def test_real_labels_go_back_where_they_came_from(tmp_path: Path) -> None:
    scans = real("kits19_slices/*_seg.nii.gz")[:3] + real("amos_ct/*_kidney.nii.gz")
    scans += real("totalsegmentator_ct/kidney.nii.gz") + real("kits19_labels/*.nii.gz")[:2]
    for path in scans:
        scan = io.read(path, ReadOptions(values="labels"))
        out = io.save(scan.volume, tmp_path / "seg.nii.gz", like=path, overwrite=True)
        theirs, mine = nib.load(path), nib.load(out)
        assert np.array_equal(theirs.affine, mine.affine)
        assert np.array_equal(np.asarray(theirs.dataobj), np.asarray(mine.dataobj))
        assert mine.get_data_dtype() == np.uint8


@pytest.mark.parametrize(
    ("start", "name"),
    [(b"\x28\xb5\x2f\xfd", "Zstandard"), (b"BZh91AY&SY", "bzip2"), (b"\xfd7zXZ\x00", "xz")],
)
def test_the_refusal_names_the_compression(tmp_path: Path, start: bytes, name: str) -> None:
    path = tmp_path / "scan.nii.zst"
    path.write_bytes(start + bytes(500))
    with pytest.raises(InputError, match=f"compressed with {name}"):
        io.read(path)
