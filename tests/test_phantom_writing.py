"""Digital patients on disk: sound in every layout, whole or absent, replaced only on request."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from folders import contents
from kidseg.cases import open_dataset
from kidseg.check import check
from kidseg.config import PhantomConfig
from kidseg.errors import ResourceError, UsageError
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, read
from kidseg.io.atomic import disk_full
from kidseg.phantom import DigitalPatient, make_patient, write_patients, writing
from kidseg.phantom.writing import Layout

pytestmark = pytest.mark.ci

TINY = PhantomConfig(size=48, max_slices=10)
MADE: dict[Layout, int] = {"nnunet": 2, "kits19": 1, "dicom": 1}
LABELS = ReadOptions(values="labels")
LAYOUTS: tuple[Layout, ...] = ("nnunet", "kits19", "dicom")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two patients as an nnU-Net data set, one in each other layout."""
    folders = {}
    for layout in LAYOUTS:
        folders[layout] = tmp_path_factory.mktemp("made") / layout
        write_patients(folders[layout], TINY, patients=MADE[layout], seed=5, layout=layout)
    return folders


def test_uids_of_older_cohorts_stay(made: dict[str, Path]) -> None:
    import pydicom

    series = {pydicom.dcmread(path).SeriesInstanceUID for path in made["dicom"].rglob("*.dcm")}
    assert series == {"2.25.232616297884919601217371066233730121332"}


@pytest.fixture(scope="module")
def originals() -> list[DigitalPatient]:
    return [make_patient(TINY, seed=5, index=k) for k in range(2)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_data_set_is_sound(made: dict[str, Path], layout: Layout) -> None:
    report = check(made[layout])
    assert [str(f) for f in report.findings if f.severity == "error"] == []
    assert report.n_cases == MADE[layout]
    dataset = open_dataset(made[layout])
    assert [case.age_years for case in dataset.cases] == [
        json.loads(path.read_text())["age_years"]
        for path in sorted((made[layout] / "truth").glob("*[0-9].json"))
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_read_back_is_what_was_made(
    made: dict[str, Path], originals: list[DigitalPatient], layout: Layout
) -> None:
    dataset = open_dataset(made[layout])
    for index, case in enumerate(dataset.cases):
        patient = originals[index]
        scan = read(case.images[0]).volume
        assert case.labels is not None
        labels = read(case.labels, LABELS).volume
        organs = read(made[layout] / "truth" / f"{case.id}_organs.nii.gz", LABELS).volume
        for found, given in (
            (scan, patient.scan),
            (labels, patient.labels),
            (organs, patient.organs),
        ):
            assert found.grid.same_as(given.grid)
            assert torch.equal(found.data.long(), given.data.long())


def test_truth_stands_beside_the_data(made: dict[str, Path]) -> None:
    truth = json.loads((made["nnunet"] / "truth" / "phantom_0001.json").read_text())
    assert truth["case"] == "phantom_0001"
    assert (truth["seed"], truth["index"]) == (5, 1)
    assert truth["tumour_ml"] >= 0
    organs = json.loads((made["nnunet"] / "truth" / "organs.json").read_text())
    assert organs and all(int(number) > 0 for number in organs)


def test_kits19_stores_slices_first_from_head_to_foot(made: dict[str, Path]) -> None:
    image = nibabel.load(made["kits19"] / "data" / "case_00000" / "imaging.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("I", "P", "L")


def test_a_patient_does_not_depend_on_the_others(made: dict[str, Path], tmp_path: Path) -> None:
    write_patients(tmp_path / "one", TINY, patients=1, seed=5)
    both, one = contents(made["nnunet"]), contents(tmp_path / "one")
    for name in one:
        if "phantom_0000" in name:
            assert one[name] == both[name]


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(made: dict[str, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_patients(
        tmp_path / "nnunet",
        TINY,
        patients=2,
        seed=5,
        jobs=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert contents(tmp_path / "nnunet") == contents(made["nnunet"])
    assert seen == [(1, 2), (2, 2)]


def test_the_summary_is_plain_and_complete(tmp_path: Path) -> None:
    summary = write_patients(tmp_path / "out", TINY, patients=1, seed=0)
    summary = json.loads(json.dumps(summary, allow_nan=False))
    (case,) = summary["cases"]
    assert case["case"] == "phantom_0000"
    assert {"age_years", "side", "phase", "kidney_ml", "tumour_ml"} <= set(case)
    assert summary["config"]["size"] == 48


# ---- guards ------------------------------------------------------------------------------------


def test_an_output_that_exists_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(UsageError) as refused:
        write_patients(tmp_path, TINY, patients=1, seed=0)
    assert refused.value.code == "output-exists"
    assert contents(tmp_path) == {"mine.txt": b"kept"}


@pytest.mark.parametrize("patients", [0, -3])
def test_no_patient_is_refused(tmp_path: Path, patients: int) -> None:
    with pytest.raises(UsageError) as refused:
        write_patients(tmp_path / "out", TINY, patients=patients, seed=0)
    assert refused.value.code == "no-patients" and not list(tmp_path.iterdir())


def test_overwrite_replaces_patients_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_patients(out, TINY, patients=2, seed=0)
    (out / "notes.txt").write_text("kept")
    write_patients(out, TINY, patients=1, seed=1, overwrite=True)
    names = set(contents(out))
    assert "notes.txt" in names
    assert not any("0001" in name for name in names)
    assert check(out).n_cases == 1


def test_overwrite_may_change_the_layout(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for layout in LAYOUTS:
        write_patients(out, TINY, patients=1, seed=0, layout=layout, overwrite=True)
        dataset = open_dataset(out)
        assert dataset.layout == layout
        assert len(dataset.cases) == 1


def test_overwrite_never_touches_a_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "real_0000.nii.gz").write_bytes(b"real")
    with pytest.raises(UsageError) as refused:
        write_patients(tmp_path, TINY, patients=1, seed=0, overwrite=True)
    assert refused.value.code == "not-phantoms"
    assert contents(tmp_path) == {"imagesTr/real_0000.nii.gz": b"real"}


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    for overwrite in (False, True):
        with pytest.raises(UsageError):
            write_patients(tmp_path / "out", TINY, patients=1, seed=0, overwrite=overwrite)


def test_no_patients_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_patients(tmp_path / "out", TINY, patients=0, seed=0)
    assert not (tmp_path / "out").exists()


def test_spaces_and_unicode_in_the_path(tmp_path: Path) -> None:
    out = tmp_path / "digitale Kinder é"
    write_patients(out, TINY, patients=1, seed=0)
    assert check(out).ok


@pytest.mark.fault("disk full")
def test_a_full_disk_leaves_whole_patients_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    genuine, calls = writing.save, iter(range(100))

    def fills_up(*args: object, **kwargs: object) -> object:
        # Three files per patient: the disk fills while the second one's labels are written.
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return genuine(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "save", fills_up)
    with pytest.raises(ResourceError) as full:
        write_patients(out, TINY, patients=3, seed=5)
    assert full.value.code == "disk-full"
    names = set(contents(out))
    assert any("phantom_0000" in name for name in names)
    assert not any("phantom_0001" in name for name in names)
    assert not (out / ".writing").exists()


@pytest.mark.fault("disk full")
@pytest.mark.parametrize(
    ("n_files", "layout"),
    [
        pytest.param(n, layout, marks=() if k == n else pytest.mark.slow)
        for n in range(3)
        for k, layout in enumerate(LAYOUTS)
    ],
)
def test_a_disk_full_before_the_first_patient_leaves_nothing_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout, n_files: int
) -> None:
    out = tmp_path / "new" / "out"
    genuine, calls = writing.save, iter(range(100))

    def fills_up(volume: Volume, path: Path) -> None:
        if next(calls) == n_files:
            raise disk_full(path)  # as `save` does, of a temporary file
        genuine(volume, path)

    def fills(*_: object, **__: object) -> None:
        raise disk_full(tmp_path / "temporary")

    monkeypatch.setattr(writing, "save", fills_up)
    monkeypatch.setattr("kidseg.io.dicom.write_series", fills)
    with pytest.raises(ResourceError) as full:
        write_patients(out, TINY, patients=1, seed=5, layout=layout)
    assert (full.value.code, full.value.path) == ("disk-full", str(out))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    write_patients(out, TINY, patients=1, seed=5, layout=layout)


def test_a_full_disk_removes_only_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_patients(tmp_path, TINY, patients=1, seed=5)
    (tmp_path / "notes.txt").write_text("kept")

    def fills_up(volume: Volume, path: Path) -> None:
        raise disk_full(path)

    monkeypatch.setattr(writing, "save", fills_up)
    with pytest.raises(ResourceError):
        write_patients(tmp_path, TINY, patients=1, seed=5, overwrite=True)
    assert set(contents(tmp_path)) == {"notes.txt", "truth/organs.json"}
    monkeypatch.undo()
    write_patients(tmp_path, TINY, patients=1, seed=5, overwrite=True)


def test_an_interrupted_run_leaves_no_half_patient_and_can_be_repeated(
    made: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "nnunet"

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_patients(out, TINY, patients=2, seed=5, progress=interrupt)
    whole = contents(made["nnunet"])
    assert all(whole[name] == content for name, content in contents(out).items())
    assert "dataset.json" not in contents(out)
    write_patients(out, TINY, patients=2, seed=5, overwrite=True)
    assert contents(out) == whole


def test_scans_hold_whole_hounsfield_units(made: dict[str, Path]) -> None:
    image = nibabel.load(made["nnunet"] / "imagesTr" / "phantom_0000_0000.nii.gz")
    assert image.get_data_dtype() == np.int16
    slope = image.header["scl_slope"]
    assert np.isnan(slope) or slope in (0, 1)


def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        write_patients(tmp_path / "out", TINY, patients=1, seed=0, overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"


def test_the_broad_cohort_comes_in_many_orientations_and_reads_alike(tmp_path: Path) -> None:
    broad = PhantomConfig(size=32, max_slices=4, variety="broad", ages_years=(2.0, 3.0))
    out = tmp_path / "broad"
    write_patients(out, broad, patients=3, seed=0)
    assert check(out).ok
    axes = set()
    for k in range(3):
        image = out / "imagesTr" / f"phantom_{k:04d}_0000.nii.gz"
        axes.add(nibabel.aff2axcodes(nibabel.load(image).affine))
        volume = read(image).volume
        original = make_patient(broad, seed=0, index=k)
        assert volume.grid.same_as(original.scan.grid, 1e-3)
        assert torch.equal(volume.data.to(torch.int16), original.scan.data)
    assert len(axes) > 1
