from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from commands import call_cli
from kidseg import export
from kidseg.cases import (
    Case,
    case_paths,
    learned_labels,
    open_dataset,
    write_dataset_json,
    write_patients_csv,
)
from kidseg.check import check
from kidseg.errors import InputError, KidsegWarning, ResourceError, UsageError
from kidseg.export import export_nnunet
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, load, save
from kidseg.io.orientation import reorient
from kidseg.labels import KIDNEY_TUMOUR, KIDNEY_TUMOUR_CYST, LabelSchema
from kidseg.splits import split

GRID = Grid.from_spacing((6, 24, 30), (3.0, 2.0, 2.0), (5.0, -7.0, 11.0))
# As KiTS stores its volumes: left-right is the slowest axis.
TURNED = Grid((2, 2, 2), torch.diag(torch.tensor([-1.0, -1.0, -1.0, 1.0]).double()))


def image(seed: int) -> Volume:
    rng = np.random.default_rng(seed)
    hu = rng.normal(40, 20, GRID.shape)
    hu[:, :4] = -1000
    return Volume(torch.from_numpy(hu.astype(np.int16))[None], GRID)


def labels(*numbers: int) -> Volume:
    data = torch.zeros((1, *GRID.shape), dtype=torch.uint8)
    data[0, 1:5, 8:16, 4:12] = numbers[0]
    data[0, 1:5, 8:16, 18:26] = numbers[0]
    for k, number in enumerate(numbers[1:]):
        data[0, 2, 8 + 2 * k : 10 + 2 * k, 4:8] = number
    return Volume(data, GRID)


def kits(root: Path, layout: Any, cases: int = 3) -> Path:
    numbers = (1, 2) if layout == "kits19" else (1, 2, 3)
    for k in range(cases):
        (path,), labels_path = case_paths(root, layout, f"case_{k:05d}")
        path.parent.mkdir(parents=True)
        save(reorient(image(k), TURNED), path)
        save(reorient(labels(*numbers), TURNED), labels_path)
    return root


def nnunet(root: Path, ending: str = ".nii.gz", schema: LabelSchema = KIDNEY_TUMOUR) -> Path:
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir(parents=True)
    for k in range(2):
        save(image(k), root / f"imagesTr/c{k}_0000{ending}")
        save(labels(*schema.ids), root / f"labelsTr/c{k}{ending}")
    save(image(9), root / f"imagesTs/t_0000{ending}")
    path = write_dataset_json(root, channels=("CT",), schema=schema, n_training=2)
    path.write_text(path.read_text().replace(".nii.gz", ending))
    return root


def same(path: Path, other: Path, values: str = "ct") -> bool:
    one, two = (load(p, values=values) for p in (path, other))
    return torch.equal(one.data, two.data) and one.grid.same_as(two.grid)


def refused(kind: type[Exception], code: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(kind) as caught:
        export_nnunet(*args, **kwargs)
    assert caught.value.code == code


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".kidseg")]


def test_kits19_is_linked_untouched_and_split_by_patient(tmp_path: Path) -> None:
    root = kits(tmp_path / "kits", "kits19")
    write_patients_csv(
        root,
        [
            {"case": "case_00000", "patient": "Ann", "age_years": 3, "side": "left"},
            {"case": "case_00001", "patient": "Ann", "age_years": 4, "side": "left"},
        ],
    )
    dataset = open_dataset(root)
    out = tmp_path / "raw/Dataset019_KiTS"
    done: list[tuple[int, int]] = []
    result = export_nnunet(
        dataset,
        out,
        splits=split(dataset.cases, folds=2, seed=0),
        progress=lambda k, n: done.append((k, n)),
    )
    assert (result.linked, result.written, result.new_from_old) == (6, 0, {})
    assert done == [(1, 3), (2, 3), (3, 3)]
    for case in dataset.cases:
        assert case.labels is not None
        assert (out / f"imagesTr/{case.id}_0000.nii.gz").samefile(case.images[0])
        assert (out / f"labelsTr/{case.id}.nii.gz").samefile(case.labels)
    exported = open_dataset(out)
    assert exported.schema == KIDNEY_TUMOUR and exported.name == "Dataset019_KiTS"
    assert [(c.id, c.patient, c.age_years, c.side) for c in exported.cases] == [
        (c.id, c.patient, c.age_years, c.side) for c in dataset.cases
    ]
    folds = json.loads((out / "splits_final.json").read_text())
    pair = ["case_00000", "case_00001"]
    assert sorted(fold["val"] for fold in folds) == [pair, ["case_00002"]]
    assert check(out).ok
    assert not leftovers(out.parent)


@pytest.mark.parametrize(
    ("cyst", "count", "moved"),
    [
        (None, {1: 112, 2: 8, 3: 8}, {}),
        ("tumour", {1: 112, 2: 16}, {3: 2}),
        ("kidney", {1: 120, 2: 8}, {3: 1}),
        ("background", {1: 112, 2: 8}, {3: 0}),
    ],
)
def test_cysts_of_kits23_count_as_chosen(
    tmp_path: Path, cyst: Any, count: dict[int, int], moved: dict[int, int]
) -> None:
    root = kits(tmp_path / "kits", "kits23", 1)
    result = export_nnunet(open_dataset(root), tmp_path / "Dataset023_X", cyst=cyst)
    assert result.new_from_old == moved
    written = result.root / "labelsTr/case_00000.nii.gz"
    data = load(written, values="labels").data[0, 2]
    assert {n: int((data == n).sum()) for n in (1, 2, 3) if (data == n).any()} == count
    schema = open_dataset(result.root).schema
    assert schema == (KIDNEY_TUMOUR_CYST if cyst is None else KIDNEY_TUMOUR)
    ours, theirs = (nibabel.load(p) for p in (written, root / "dataset/case_00000/imaging.nii.gz"))
    assert np.array_equal(ours.affine, theirs.affine) and ours.get_data_dtype() == np.uint8


def test_other_formats_and_voxel_orders_are_written_anew(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "set", ".nrrd")
    save(reorient(image(0), TURNED), root / "imagesTr/c0_0000.nrrd", overwrite=True)
    result = export_nnunet(open_dataset(root), tmp_path / "Dataset001_X", jobs=1)
    assert (result.linked, result.written) == (0, 5)
    for k in range(2):
        assert same(root / f"imagesTr/c{k}_0000.nrrd", result.root / f"imagesTr/c{k}_0000.nii.gz")
        labelled = result.root / f"labelsTr/c{k}.nii.gz"
        assert same(root / f"labelsTr/c{k}.nrrd", labelled, "labels")
        # Stored alike, though the labels of c0 were not.
        scan = nibabel.load(result.root / f"imagesTr/c{k}_0000.nii.gz")
        assert np.array_equal(nibabel.load(labelled).affine, scan.affine)
    assert same(root / "imagesTs/t_0000.nrrd", result.root / "imagesTs/t_0000.nii.gz")
    report = check(result.root)
    assert report.ok and not {"voxel-order-differs"} & {f.code for f in report.findings}


def test_plain_nifti_named_gz_is_packed(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "set")
    save(image(0), tmp_path / "plain.nii")
    (tmp_path / "plain.nii").replace(root / "imagesTr/c0_0000.nii.gz")
    result = export_nnunet(open_dataset(root), tmp_path / "Dataset001_X")
    assert result.written == 1
    assert (result.root / "imagesTr/c0_0000.nii.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert [finding.code for finding in result.findings] == ["plain-named-gz"]


def test_a_chosen_spacing_goes_into_the_files(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "set")
    options = ReadOptions(spacing_mm=(4.0, 2.0, 2.0))
    result = export_nnunet(open_dataset(root), tmp_path / "Dataset001_X", options=options)
    assert result.linked == 0
    assert check(result.root).facts["median_spacing_mm"] == [4.0, 2.0, 2.0]


def test_a_dicom_data_set(tmp_path: Path) -> None:
    from kidseg.io.dicom import write_series

    (folder,), path = case_paths(tmp_path / "set", "dicom", "p0")
    folder.parent.mkdir(parents=True)
    write_series(image(0), folder, facts={"patient_id": "p0", "seed": "0"})
    save(labels(1, 2), path)
    result = export_nnunet(open_dataset(tmp_path / "set"), tmp_path / "Dataset001_X")
    assert same(folder, result.root / "imagesTr/p0_0000.nii.gz")
    assert same(path, result.root / "labelsTr/p0.nii.gz", "labels")


def test_channels_of_one_file_become_files(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    save(image(0), root / "imagesTr/b.nii.gz")
    save(labels(1, 2), root / "labelsTr/b.nii.gz")
    flat = nibabel.load(root / "imagesTr/b.nii.gz")
    both = np.stack([np.asarray(flat.dataobj), np.asarray(flat.dataobj) + 5], axis=-1)
    nibabel.save(nibabel.Nifti1Image(both, flat.affine), root / "imagesTr/b.nii.gz")
    told = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "kidney", "2": "tumour"},
        "training": [{"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"}],
    }
    (root / "dataset.json").write_text(json.dumps(told))
    result = export_nnunet(open_dataset(root), tmp_path / "Dataset001_X")
    first, second = (
        load(result.root / f"imagesTr/b_000{k}.nii.gz", values="any").data for k in range(2)
    )
    assert torch.equal(first, image(0).data) and torch.equal(second, first + 5)
    assert (result.linked, result.written) == (1, 2)


def test_regions_and_ignore_label_are_renumbered_together(tmp_path: Path) -> None:
    schema = LabelSchema.from_names(
        {2: "cortex", 4: "medulla", 9: "Wilms"}, {"kidney": (2, 4), "Wilms": (9,)}
    )
    root = nnunet(tmp_path / "set", schema=schema)
    write_dataset_json(
        root,
        channels=("CT",),
        schema=schema,
        n_training=2,
        region_order=(2, 9),
        ignore_label=5,
        overwrite=True,
    )
    result = export_nnunet(open_dataset(root), tmp_path / "Dataset001_X")
    assert result.new_from_old == {2: 1, 4: 2, 9: 3, 5: 4}
    exported = open_dataset(result.root)
    first, second = (learned_labels(open_dataset(folder)) for folder in (root, result.root))
    assert (first.schema, first.target, first.ignore) == (
        second.schema,
        second.target,
        second.ignore,
    )
    assert list(second.new_from_old) == list(second.new_from_old.values())
    assert dict(exported.schema.regions) == {"kidney": (1, 2), "Wilms": (3,)}
    assert (exported.region_order, exported.ignore_label) == ((1, 3), 4)
    old = load(root / "labelsTr/c0.nii.gz", values="labels").data
    new = load(result.root / "labelsTr/c0.nii.gz", values="labels").data
    for before, after in result.new_from_old.items():
        assert torch.equal(old == before, new == after)
    refused(
        UsageError,
        "cyst-in-regions",
        open_dataset(root),
        tmp_path / "Dataset002_X",
        cyst="tumour",
    )


def test_nothing_is_overwritten_unasked_and_nothing_foreign_at_all(tmp_path: Path) -> None:
    dataset = open_dataset(nnunet(tmp_path / "set"))
    out = tmp_path / "Dataset001_X"
    export_nnunet(dataset, out)
    (out / "labelsTr/stale.nii.gz").write_bytes(b"x")
    refused(UsageError, "output-exists", dataset, out)
    export_nnunet(dataset, out, overwrite=True)
    assert not (out / "labelsTr/stale.nii.gz").exists() and check(out).ok
    foreign = tmp_path / "Dataset002_X"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("x")
    refused(UsageError, "not-a-dataset", dataset, foreign, overwrite=True)
    assert (foreign / "thesis.txt").exists() and not leftovers(tmp_path)


@pytest.mark.parametrize(
    "name", ["kidneys", "Dataset1_X", "Dataset001", "Dataset001_", f"Dataset001_{'x' * 300}"]
)
def test_a_name_that_nnunet_would_not_find(tmp_path: Path, name: str) -> None:
    dataset = open_dataset(nnunet(tmp_path / "set"))
    refused(UsageError, "bad-dataset-name", dataset, tmp_path / name)


def test_not_into_the_data_set_itself(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "Dataset001_X")
    dataset = open_dataset(root)
    refused(UsageError, "export-into-itself", dataset, root, overwrite=True)
    refused(UsageError, "export-into-itself", dataset, root / "Dataset002_X")
    (tmp_path / "Dataset003_X").symlink_to(root)
    refused(UsageError, "export-into-itself", dataset, tmp_path / "Dataset003_X", overwrite=True)
    assert check(root).ok


def test_splits_of_another_data_set(tmp_path: Path) -> None:
    dataset = open_dataset(nnunet(tmp_path / "set"))
    others = [Case(id=i, images=(), labels=None, patient=i) for i in ("c0", "elsewhere")]
    folds = split(others, folds=2, seed=0)
    refused(UsageError, "unknown-case", dataset, tmp_path / "Dataset001_X", splits=folds)


def test_labels_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "set")
    moved = Grid.from_spacing(GRID.shape, (3.0, 2.0, 2.0))
    save(Volume(labels(1, 2).data, moved), root / "labelsTr/c1.nii.gz", overwrite=True)
    refused(InputError, "grid-mismatch", open_dataset(root), tmp_path / "Dataset001_X")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_a_damaged_file_leaves_nothing_behind_and_the_old_export_stays(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "set", ".nrrd")
    out = tmp_path / "Dataset001_X"
    export_nnunet(open_dataset(root), out)
    path = root / "imagesTr/c1_0000.nrrd"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError):
        export_nnunet(open_dataset(root), out, overwrite=True)
    assert check(out).ok and not leftovers(tmp_path)


def test_a_value_that_is_no_label_is_not_renumbered_to_one(tmp_path: Path) -> None:
    """With labels 1 and 3 renumbered to 1 and 2, an undefined 2 would become a tumour."""
    root = nnunet(tmp_path / "set", schema=LabelSchema.from_names({1: "kidney", 3: "tumor"}))
    stray = labels(1, 3)
    stray.data[0, 0, 0, :7] = 2
    save(stray, root / "labelsTr/c1.nii.gz", overwrite=True)
    with pytest.raises(InputError, match=r"c1.*2 \(7 voxels\)") as caught:
        export_nnunet(open_dataset(root), tmp_path / "Dataset001_X")
    assert caught.value.code == "unexpected-labels"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def break_checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # of the CRC-32 in the last eight bytes
    path.write_bytes(bytes(data))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def replace_values(change: Any) -> Any:
    def apply(path: Path) -> None:
        old = nibabel.load(path)
        data = change(np.asarray(old.dataobj).astype(np.float32))
        nibabel.save(nibabel.Nifti1Image(data, old.affine), path)

    return apply


def with_nan(data: np.ndarray) -> np.ndarray:
    data[0, 0, 0] = np.nan
    return data


@pytest.mark.row(13)
@pytest.mark.parametrize(
    ("name", "damage", "code"),
    [
        ("imagesTr/c1_0000.nii.gz", break_checksum, "damaged-file"),
        ("labelsTr/c1.nii.gz", break_checksum, "damaged-file"),
        ("imagesTs/t_0000.nii.gz", break_checksum, "damaged-file"),
        ("imagesTr/c1_0000.nii.gz", truncate, "truncated-file"),
        ("labelsTr/c1.nii.gz", truncate, "truncated-file"),
        ("imagesTr/c1_0000.nii.gz", replace_values(lambda d: d + 1024), "shifted-hu"),
        ("imagesTr/c1_0000.nii.gz", replace_values(lambda d: d / 4000), "normalised-intensities"),
        ("imagesTs/t_0000.nii.gz", replace_values(with_nan), "nonfinite-voxels"),
        ("labelsTr/c1.nii.gz", replace_values(with_nan), "nonfinite-voxels"),
        ("labelsTr/c1.nii.gz", replace_values(lambda d: d * 0.996), "fractional-labels"),
    ],
)
def test_what_check_refuses_is_not_linked(
    tmp_path: Path, name: str, damage: Any, code: str
) -> None:
    root = nnunet(tmp_path / "set")
    damage(root / name)
    assert code in {finding.code for finding in check(root).errors}
    with pytest.raises(InputError, match=name) as caught:
        export_nnunet(open_dataset(root), tmp_path / "Dataset001_X")
    assert caught.value.code == code
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_all_problems_are_counted(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "set")
    for name in ("imagesTr/c0_0000.nii.gz", "labelsTr/c1.nii.gz"):
        truncate(root / name)
    with pytest.raises(InputError, match=r"1 more problem.*kidseg check"):
        export_nnunet(open_dataset(root), tmp_path / "Dataset001_X")


@pytest.mark.row(14)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_the_same_image_in_two_folds_or_in_the_test_set(tmp_path: Path, ending: str) -> None:
    root = nnunet(tmp_path / "set", ending)
    out = tmp_path / "Dataset001_X"
    save(image(0), root / f"imagesTr/c1_0000{ending}", overwrite=True)
    dataset = open_dataset(root)
    folds = split(dataset.cases, folds=2, seed=0)
    with pytest.raises(InputError, match="'c0' and 'c1'") as caught:
        export_nnunet(dataset, out, splits=folds)
    assert caught.value.code == "same-image" and not out.exists()
    # Of one patient they stay together, unless the folds part them.
    write_patients_csv(root, [{"case": f"c{k}", "patient": "Ann"} for k in range(2)])
    refused(InputError, "same-image", open_dataset(root), out, splits=folds)
    (finding,) = export_nnunet(open_dataset(root), out).findings
    assert (finding.code, finding.severity) == ("same-image", "warning")
    save(image(0), root / f"imagesTs/t_0000{ending}", overwrite=True)
    refused(InputError, "same-image", open_dataset(root), tmp_path / "Dataset002_X")


@pytest.mark.fault("disk full")
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_dataset(nnunet(tmp_path / "set"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "link_or_copy", full)
    refused(ResourceError, "disk-full", dataset, tmp_path / "Dataset001_X")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_without_hard_links_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = nnunet(tmp_path / "set")

    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    result = export_nnunet(open_dataset(root), tmp_path / "Dataset001_X")
    source, copy = root / "labelsTr/c0.nii.gz", result.root / "labelsTr/c0.nii.gz"
    assert copy.read_bytes() == source.read_bytes() and not copy.samefile(source)
    assert result.linked == 5


def test_one_patient_is_exported_without_folds(tmp_path: Path) -> None:
    root, out = kits(tmp_path / "kits", "kits23", 1), tmp_path / "Dataset001_One"
    with pytest.warns(KidsegWarning, match="splits_final.json is not written"):
        assert call_cli("export", root, out, "-q") == 0
    assert (out / "labelsTr/case_00000.nii.gz").is_file()
    assert not (out / "splits_final.json").exists()
