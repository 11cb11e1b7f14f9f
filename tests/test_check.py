from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kidseg.cases import case_paths, open_dataset, write_dataset_json
from kidseg.cases.reading import CaseReader
from kidseg.check import Report, check
from kidseg.check.anomalies import findings_on, kidney_labels
from kidseg.errors import InputError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, read, save
from kidseg.io.orientation import reorient
from kidseg.labels import KIDNEY_TUMOUR, KIDNEY_TUMOUR_CYST, LabelSchema

SHAPE = (12, 40, 60)
SPACING_MM = (3.0, 2.0, 2.0)
GRID = Grid.from_spacing(SHAPE, SPACING_MM)
DATA = Path(__file__).parents[2] / "shared" / "data"


def body(seed: int = 0, grid: Grid = GRID) -> Volume:
    """A cylinder of soft tissue in air, with noise, so that no two are alike."""
    nz, ny, nx = grid.shape
    y, x = np.mgrid[:ny, :nx]
    inside = ((y - ny / 2) / (0.45 * ny)) ** 2 + ((x - nx / 2) / (0.45 * nx)) ** 2 < 1
    rng = np.random.default_rng(seed)
    hu = np.where(inside, 40.0, -1000.0) + rng.normal(0, 15, (nz, ny, nx))
    return Volume(torch.from_numpy(hu.round().astype(np.int16))[None], grid)


def kidneys(grid: Grid = GRID) -> torch.Tensor:
    """Two separate kidneys, one with a tumour."""
    labels = torch.zeros((1, *grid.shape), dtype=torch.uint8)
    labels[0, 2:10, 18:26, 12:18] = 1
    labels[0, 2:10, 18:26, 42:48] = 1
    labels[0, 4:6, 18:22, 42:46] = 2
    return labels


def write_case(root: Path, name: str, image: Volume, labels: torch.Tensor | Volume | None) -> None:
    (path,), labels_path = case_paths(root, "nnunet", name)
    if labels is None:
        path = root / "imagesTs" / path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    labels_path.parent.mkdir(parents=True, exist_ok=True)
    save(image, path, overwrite=True)
    if labels is not None:
        volume = labels if isinstance(labels, Volume) else Volume(labels, image.grid)
        save(volume, labels_path, overwrite=True)


def dataset(root: Path, cases: int = 2, **description: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for k in range(cases):
        write_case(root, f"c{k}", body(k), kidneys().roll(k, 2))
    told = {"channels": ("CT",), "schema": KIDNEY_TUMOUR, "n_training": cases, **description}
    write_dataset_json(root, **told)
    return root


def codes(report: Report) -> dict[str, str]:
    return {finding.code: finding.severity for finding in report.findings}


def relabel(root: Path, labels: torch.Tensor | Volume, case: str = "c0") -> Report:
    write_case(root, case, body(0), labels)
    return check(root)


# ---- valid data --------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_valid_data_set(tmp_path: Path, jobs: int) -> None:
    done: list[tuple[int, int]] = []
    write_case(tmp_path, "t", body(9), None)
    report = check(dataset(tmp_path), jobs=jobs, progress=lambda k, n: done.append((k, n)))
    assert report.ok and report.findings == ()
    assert (report.kind, report.n_cases) == ("dataset", 3)
    assert done == [(1, 3), (2, 3), (3, 3)]
    facts = report.facts
    assert (facts["n_training"], facts["n_unlabelled"]) == (2, 1)
    assert facts["median_spacing_mm"] == list(SPACING_MM)
    assert facts["smallest_shape"] == facts["largest_shape"] == list(SHAPE)
    # 2 x (8 x 8 x 6) voxels of kidney less 2 x 4 x 4 of tumour, 12 cubic millimetres each.
    kidney = facts["labels"]["kidney"]
    assert kidney["voxels"] == 2 * (2 * 8 * 8 * 6 - 32) and kidney["n_cases"] == 2
    assert kidney["median_ml"] == pytest.approx((2 * 8 * 8 * 6 - 32) * 0.012, abs=1e-3)
    assert facts["labels"]["tumour"]["range_ml"] == [0.384, 0.384]
    assert json.loads(json.dumps(report.as_dict()))["ok"] is True


@pytest.mark.parametrize("layout", ["kits19", "kits21", "kits23", "msd", "dicom"])
def test_every_layout_is_checked_to_the_voxels(tmp_path: Path, layout: Any) -> None:
    entries = []
    for k in range(2):
        name = f"case_{k:05d}"
        (image,), labels = case_paths(tmp_path, layout, name)
        for path in (image, labels):
            path.parent.mkdir(parents=True, exist_ok=True)
        labelled = kidneys()
        if layout in ("kits21", "kits23"):
            labelled[0, 4:6, 24:26, 12:14] = 3
        if layout == "dicom":
            from kidseg.io.dicom import write_series

            write_series(body(k), image, facts={"patient_id": name, "seed": str(k)})
        else:
            save(body(k), image)
        save(Volume(labelled, GRID), labels)
        entries.append({"image": f"./imagesTr/{image.name}", "label": f"./labelsTr/{labels.name}"})
    if layout == "msd":
        names = {"0": "background", "1": "kidney", "2": "tumour"}
        told = {"modality": {"0": "CT"}, "labels": names, "training": entries, "test": []}
        (tmp_path / "dataset.json").write_text(json.dumps(told))
    report = check(tmp_path)
    assert report.ok, [str(f) for f in report.findings]
    assert report.facts["layout"] == layout
    assert report.facts["labels"]["tumour"]["n_cases"] == 2
    damaged = case_paths(tmp_path, layout, "case_00001")[1]
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert codes(check(tmp_path)) == {"truncated-file": "error"}


def test_any_mr_data_set_with_labels_of_its_own(tmp_path: Path) -> None:
    schema = LabelSchema.from_names({1: "ventricle", 2: "wall"})
    root = dataset(tmp_path, channels=("T1",), schema=schema)
    for k in range(2):
        image = Volume((body(k).data + 1000).clamp(min=0), GRID)
        write_case(root, f"c{k}", image, kidneys().roll(k, 2))
    # No Hounsfield units asked, no kidneys counted; but it is said that there are none.
    assert codes(check(root)) == {"label-not-understood": "warning", "no-kidney-label": "warning"}


@pytest.mark.parametrize("layout", ["nnunet", "msd"])
def test_labels_that_are_not_understood_are_named(tmp_path: Path, layout: str) -> None:
    root = dataset(tmp_path, schema=LabelSchema.from_names({1: "Niere", 2: "Wilms"}))
    if layout == "msd":
        files = [(f"./imagesTr/c{k}_0000.nii.gz", f"./labelsTr/c{k}.nii.gz") for k in range(2)]
        told = {
            "modality": {"0": "CT"},
            "labels": {"0": "background", "1": "Niere", "2": "Wilms"},
            "training": [{"image": image, "label": labels} for image, labels in files],
        }
        (root / "dataset.json").write_text(json.dumps(told))
    report = check(root)
    assert report.ok and report.facts["layout"] == layout
    assert codes(report) == {"label-not-understood": "warning", "no-kidney-label": "warning"}
    assert all(f.path == str(root / "dataset.json") for f in report.findings)
    assert "1 (Niere)" in report.findings[0].cause and "Wilms" not in report.findings[0].cause


def test_left_and_right_kidney_count_as_two(tmp_path: Path) -> None:
    schema = LabelSchema.from_names({1: "Kidney_R", 2: "Wilms", 3: "left_kidney"})
    root = dataset(tmp_path, schema=schema)
    labels = kidneys()
    labels[0, :, :, 42:][labels[0, :, :, 42:] == 1] = 3
    for case in ("c0", "c1"):
        write_case(root, case, body(int(case[1])), labels.roll(int(case[1]), 2))
    assert codes(check(root)) == {}
    left_out = codes(relabel(root, labels.where(labels != 3, 0)))
    assert left_out == {"one-kidney": "warning", "tumour-apart": "warning"}


def test_labels_of_another_patient(tmp_path: Path) -> None:
    """They lie where the scan has air, or are those of another case, too."""
    root = dataset(tmp_path)
    moved = kidneys().roll(20, 3)  # one kidney is outside the body now
    assert codes(relabel(root, moved)) == {"labels-in-air": "warning"}
    data = open_dataset(root)
    noted = CaseReader.of_dataset(data).read(data.by_id["c0"]).findings
    assert [finding.code for finding in noted] == ["labels-in-air"], "training notices it, too"
    write_case(root, "c1", body(1), moved)
    (same,) = [f for f in check(root).findings if f.code == "same-labels"]
    assert same.cause == "cases 'c0' and 'c1' have the same labels, but other images"
    assert same.severity == "warning" and same.path.endswith("c1.nii.gz")
    write_case(root, "c1", body(1), torch.zeros_like(moved))
    assert "same-labels" not in codes(relabel(root, torch.zeros_like(moved)))


def test_a_tumour_that_touches_no_kidney(tmp_path: Path) -> None:
    """As where the numbers of kidney and tumour are exchanged; a speck of it is not told."""
    root = dataset(tmp_path)
    exchanged = kidneys()
    exchanged[kidneys() == 1], exchanged[kidneys() == 2] = 2, 1
    assert codes(relabel(root, exchanged))["tumour-apart"] == "warning"
    apart = kidneys()
    apart[0, 5, 30, 30] = 2  # one voxel; the tumour has 2 * 4 * 4
    assert "tumour-apart" not in codes(relabel(root, apart))
    apart[0, 5, 30, 31] = 2
    (found,) = [f for f in relabel(root, apart).findings if f.code == "tumour-apart"]
    assert "0.024 ml touches no kidney" in found.cause


def test_several_channels(tmp_path: Path) -> None:
    root = dataset(tmp_path, channels=("CT", "T1"))
    for k in range(2):
        save(body(k + 10), root / f"imagesTr/c{k}_0001.nii.gz")
    assert check(root).findings == ()
    shifted = Grid.from_spacing(SHAPE, SPACING_MM, (0.0, 0.0, 0.5))
    save(Volume(body(10).data, shifted), root / "imagesTr/c0_0001.nii.gz", overwrite=True)
    report = check(root)
    assert codes(report) == {"grid-mismatch": "error"}
    assert "0.5 mm" in report.findings[0].cause and "c0_0001" in report.findings[0].path


def test_msd_with_several_channels_in_one_file(tmp_path: Path) -> None:
    import nibabel

    root = tmp_path
    for k, folder in enumerate(("imagesTr", "labelsTr")):
        (root / folder).mkdir()
        save(Volume(kidneys(), GRID) if k else body(), root / folder / "b.nii.gz")
    flat = nibabel.load(root / "imagesTr/b.nii.gz")
    volumes = np.stack([np.asarray(flat.dataobj) + 7 * k for k in range(3)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(volumes, flat.affine), root / "imagesTr/b.nii.gz")
    told = {
        "modality": {"0": "FLAIR", "1": "T1w", "2": "T2w"},
        "labels": {"0": "background", "1": "kidney", "2": "tumour"},
        "training": [{"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"}],
    }
    (root / "dataset.json").write_text(json.dumps(told))
    assert check(root).findings == ()
    (case,) = open_dataset(root).cases
    for k in range(3):
        channel = read(case.images[k], ReadOptions(values="any", volume=case.volume_of(k)))
        assert torch.equal(channel.volume.data, body().data + 7 * k)
    told["modality"] = {"0": "FLAIR", "1": "T1w", "2": "T2w", "3": "more"}
    (root / "dataset.json").write_text(json.dumps(told))
    report = check(root)
    assert codes(report) == {"no-such-volume": "error"} and len(report.findings) == 1
    nrrd = save(body(), root / "x.nrrd")
    with pytest.raises(InputError) as caught:
        read(nrrd, ReadOptions(volume=1))
    assert caught.value.code == "no-such-volume"
    cut = volumes[..., :2].tobytes(order="F")
    whole = (save(body(), root / "cut.nii")).read_bytes()[:352]
    header = bytearray(whole)
    header[40:42], header[48:50] = (4).to_bytes(2, "little"), (3).to_bytes(2, "little")
    (root / "cut.nii").write_bytes(bytes(header) + cut)
    with pytest.raises(InputError) as caught:
        read(root / "cut.nii", ReadOptions(values="any", volume=1))
    assert caught.value.code == "truncated-file"


# ---- rows of the robustness table --------------------------------------------------------------


@pytest.mark.row(1, 2)
def test_what_the_readers_find_is_named_for_every_file(tmp_path: Path) -> None:
    root = dataset(tmp_path, 4)
    image = root / "imagesTr/c0_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:-20])
    (root / "labelsTr/c1.nii.gz").write_bytes(b"")
    (root / "imagesTr/c2_0000.nii.gz").write_text("<html>not found</html>")
    save(Volume(kidneys().roll(3, 2), GRID), tmp_path / "plain.nii")
    (tmp_path / "plain.nii").replace(root / "labelsTr/c3.nii.gz")
    report = check(root)
    found = {finding.code: finding.path for finding in report.findings}
    assert found == {
        "truncated-file": str(image),
        "empty-file": str(root / "labelsTr/c1.nii.gz"),
        "not-a-scan": str(root / "imagesTr/c2_0000.nii.gz"),
        "plain-named-gz": str(root / "labelsTr/c3.nii.gz"),
    }


@pytest.mark.row(9)
def test_nan_is_refused_for_training_and_reported_for_a_scan(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    image = body(0).astype(torch.float32)
    image.data[0, 3, 4, 5] = float("nan")
    write_case(root, "c0", image, kidneys())
    assert codes(check(root)) == {"nonfinite-voxels": "error"}
    assert codes(check(root / "imagesTr/c0_0000.nii.gz")) == {"nonfinite-voxels": "warning"}


@pytest.mark.row(12)
@pytest.mark.parametrize(("shift_mm", "sound"), [(5e-4, True), (2e-3, False)])
def test_labels_elsewhere(tmp_path: Path, shift_mm: float, sound: bool) -> None:
    grid = Grid.from_spacing(SHAPE, SPACING_MM, (shift_mm, 0.0, 0.0))
    report = relabel(dataset(tmp_path), Volume(kidneys(), grid))
    assert codes(report) == ({} if sound else {"grid-mismatch": "error"})


@pytest.mark.row(12)
def test_labels_of_another_shape(tmp_path: Path) -> None:
    labels = Volume(kidneys()[:, 1:], GRID.slices(1, SHAPE[0]))
    report = relabel(dataset(tmp_path), labels)
    assert codes(report) == {"grid-mismatch": "error"}
    assert "11 x 40 x 60" in report.findings[0].cause and "12 x 40 x 60" in report.findings[0].cause


@pytest.mark.row(12)
def test_the_same_voxels_in_another_order_are_a_warning(tmp_path: Path) -> None:
    turned = Grid((2, 2, 2), torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]).double()))
    report = relabel(dataset(tmp_path), reorient(Volume(kidneys(), GRID), turned))
    assert codes(report) == {"voxel-order-differs": "warning"}


@pytest.mark.row(13)
def test_unexpected_labels_with_counts(tmp_path: Path) -> None:
    labels = kidneys().to(torch.int16)
    labels[0, 5, 0, :7] = 3
    labels[0, 5, 1, :5] = -1
    labels[0, 5, 2, :4] = 1000
    report = relabel(dataset(tmp_path), labels)
    assert codes(report) == {"unexpected-labels": "error"}
    cause = report.findings[0].cause
    assert "16 voxels" in cause and "1 kidney, 2 tumour" in cause
    for part in ("3 (7 voxels)", "-1 (5 voxels)", "1000 (4 voxels)"):
        assert part in cause
    assert report.facts["labels"]["kidney"]["n_cases"] == 2


@pytest.mark.row(13)
def test_float_labels(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    assert codes(relabel(root, kidneys().float())) == {"float-labels": "warning"}
    labels = kidneys().float()
    labels[0, 5, 0, :6] = 0.5
    report = relabel(root, labels)
    assert codes(report) == {"fractional-labels": "error"}
    assert "0.5 (6 voxels)" in report.findings[0].cause


@pytest.mark.row(13)
def test_no_tumour_is_allowed_and_no_label_at_all_is_a_warning(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    assert codes(relabel(root, kidneys().clamp(max=1))) == {}
    assert codes(relabel(root, torch.zeros_like(kidneys()))) == {"empty-labels": "warning"}


@pytest.mark.row(13)
def test_a_label_that_no_case_has(tmp_path: Path) -> None:
    root = dataset(tmp_path, schema=KIDNEY_TUMOUR_CYST)
    assert codes(check(root)) == {"label-never-used": "warning"}  # nobody has a cyst
    schema = LabelSchema.from_names({1: "kidney", 2: "tumour", 3: "spleen"})
    write_dataset_json(root, channels=("CT",), schema=schema, n_training=2, overwrite=True)
    report = check(root)
    assert codes(report) == {"label-never-used": "error", "label-not-understood": "warning"}
    assert all("spleen" in finding.cause for finding in report.findings)


def test_labels_that_cannot_be_read_do_not_count_as_labels_that_never_occur(tmp_path: Path) -> None:
    root = dataset(tmp_path, schema=KIDNEY_TUMOUR_CYST)
    files = [case.labels for case in open_dataset(root).cases if case.labels is not None]
    files[0].write_bytes(b"")
    report = check(root)
    (never,) = [finding for finding in report.findings if finding.code == "label-never-used"]
    assert "cyst" in never.cause and "1 training cases whose labels can be read" in never.cause
    files[1].write_bytes(b"")
    report = check(root)
    assert not report.ok and "label-never-used" not in codes(report)


def test_the_ignore_label_is_expected(tmp_path: Path) -> None:
    root = dataset(tmp_path, ignore_label=3)
    labels = kidneys()
    labels[0, 5, :4] = 3
    assert codes(relabel(root, labels)) == {}


@pytest.mark.row(14)
def test_the_same_image_in_training_and_test(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    # Stored as another type, in another order, elsewhere: still the same image.
    turned = Grid((2, 2, 2), torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0]).double()))
    moved = Grid.from_spacing(SHAPE, SPACING_MM, (50.0, 0.0, 0.0))
    same = reorient(Volume(body(1).data.float(), moved), turned)
    write_case(root, "t", same, None)
    report = check(root)
    assert codes(report) == {"same-image": "error"}
    assert (
        "c1_0000" in report.findings[0].cause
        and "one is a training case" in report.findings[0].cause
    )
    (root / "patients.csv").write_text("case,patient\nc1,Ann\nt,Ann\n")
    assert codes(check(root)) == {"same-image": "error"}  # twice of one patient is no excuse here


@pytest.mark.row(14)
def test_one_image_for_two_patients_or_twice_for_one(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    write_case(root, "c1", body(0), kidneys())
    assert codes(check(root)) == {"same-image": "error"}
    (root / "patients.csv").write_text("case,patient\nc0,Ann\nc1,Ann\n")
    assert codes(check(root)) == {"same-image": "warning"}


@pytest.mark.row(14)
def test_a_name_used_twice(tmp_path: Path) -> None:
    write_case(tmp_path, "c0", body(5), None)
    assert codes(check(dataset(tmp_path))) == {"duplicate-case": "error"}


@pytest.mark.row(23)
@pytest.mark.parametrize(
    ("index", "words"),
    [
        ((0, 20, 13), "lower"),
        ((11, 20, 13), "upper"),
        ((5, 0, 13), "front"),
        ((5, 39, 13), "back"),
        ((5, 20, 0), "right"),
        ((5, 20, 59), "left"),
    ],
)
def test_a_kidney_cut_by_the_field_of_view(
    tmp_path: Path, index: tuple[int, int, int], words: str
) -> None:
    labels = kidneys()
    labels[(0, *index)] = 2
    report = relabel(dataset(tmp_path), labels)
    assert codes(report) == {"kidney-cut": "warning"}
    assert f"the {words} border" in report.findings[0].cause
    assert "partial" in report.findings[0].cause


@pytest.mark.parametrize(
    ("faces", "words"),
    [
        (["lower"], "lower border"),
        (["lower", "upper"], "lower and upper borders"),
        (["lower", "upper", "left"], "lower, upper and left borders"),
    ],
)
def test_borders_that_a_kidney_or_mass_touches_are_listed(faces: list[str], words: str) -> None:
    (found,) = findings_on([0.1, 0.9], faces, "a")
    assert (
        found.cause == f"a kidney or mass touches the {words} of the image: its volume is partial"
    )


@pytest.mark.row(24)
def test_one_kidney(tmp_path: Path) -> None:
    labels = kidneys()
    labels[..., 30:] = 0
    root = dataset(tmp_path)
    assert codes(relabel(root, labels)) == {"one-kidney": "warning"}
    labels[0, 5, 20, 40] = 1  # a stray voxel is no kidney
    assert codes(relabel(root, labels)) == {"one-kidney": "warning"}


@pytest.mark.row(24)
def test_a_tumour_over_the_midline_makes_no_horseshoe(tmp_path: Path) -> None:
    labels = kidneys()
    labels[..., 30:] = 0
    labels[0, 4:8, 18:26, 18:44] = 2
    assert codes(relabel(dataset(tmp_path), labels)) == {"one-kidney": "warning"}


@pytest.mark.row(24)
def test_a_horseshoe_kidney(tmp_path: Path) -> None:
    labels = kidneys()
    labels[0, 2:4, 20:24, 18:42] = 1
    assert codes(relabel(dataset(tmp_path), labels)) == {"horseshoe-kidney": "warning"}


@pytest.mark.row(24)
def test_the_midline_is_that_of_the_body(tmp_path: Path) -> None:
    """A patient far off-centre: one kidney lies across the middle of the image."""
    data = torch.full((1, *SHAPE), -1000, dtype=torch.int16)
    data[:, :, 5:35, 25:] = 40
    data += torch.randint(-9, 9, data.shape, generator=torch.Generator().manual_seed(0)).short()
    labels = torch.zeros((1, *SHAPE), dtype=torch.uint8)
    labels[0, 2:10, 18:26, 27:34] = 1
    root = dataset(tmp_path)
    write_case(root, "c0", Volume(data, GRID), labels)
    assert codes(check(root)) == {"one-kidney": "warning"}


@pytest.mark.row(24)
def test_no_kidney(tmp_path: Path) -> None:
    labels = torch.zeros_like(kidneys())
    labels[0, 4:6, 18:22, 42:46] = 2
    assert codes(relabel(dataset(tmp_path), labels)) == {"no-kidney": "warning"}


@pytest.mark.parametrize(
    ("names", "regions", "expected"),
    [
        ({1: "kidney", 2: "tumour", 3: "cyst"}, {}, ((1,), (2, 3))),
        ({1: "liver", 2: "Left kidney", 3: "kidney_right", 4: "renal tumor"}, {}, ((2, 3), (4,))),
        (
            {1: "label 1", 2: "tumor", 3: "label 3"},
            {"kidney": (1, 2, 3), "masses": (2, 3), "tumor": (2,)},
            ((1,), (2, 3)),
        ),
        ({1: "liver", 2: "tumour"}, {}, ((), ())),
        ({1: "right adrenal gland", 2: "renal vein"}, {}, ((), ())),
        ({1: "Wilms", 2: "kidney"}, {}, ((2,), (1,))),
    ],
)
def test_which_labels_are_kidney(
    names: Mapping[int, str], regions: Mapping[str, tuple[int, ...]], expected: Any
) -> None:
    assert kidney_labels(LabelSchema.from_names(names, regions)) == expected


# ---- folders, scans ----------------------------------------------------------------------------


def test_a_case_that_lacks_a_file_is_still_looked_at(tmp_path: Path) -> None:
    root = dataset(tmp_path)
    (root / "labelsTr/c0.nii.gz").unlink()
    (root / "imagesTr/c0_0000.nii.gz").write_bytes(b"")
    assert codes(check(root)) == {"missing-labels": "error", "empty-file": "error"}


def test_what_cannot_be_opened_at_all_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    report = check(tmp_path)
    assert codes(report) == {"bad-json": "error"} and report.kind == "dataset"
    assert codes(check(tmp_path / "absent")) == {"not-found": "error"}
    (tmp_path / "link").symlink_to("absent")
    (finding,) = check(tmp_path / "link").findings
    assert finding.code == "not-found" and "git annex get" in finding.next_step
    (tmp_path / "empty").mkdir()
    report = check(tmp_path / "empty")
    assert report.kind == "scan" and not report.ok
    assert "Not a data set either" in report.findings[0].next_step
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "1.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (finding,) = check(tmp_path / "scans").findings
    assert "data set" not in finding.next_step and finding.code != "no-dicom"


def test_a_single_scan(tmp_path: Path) -> None:
    path = save(body(), tmp_path / "scan.nrrd")
    report = check(path)
    assert report.ok and (report.kind, report.n_cases) == ("scan", 1)
    assert report.facts["shape"] == list(SHAPE) and report.facts["format"] == "nrrd"
    assert report.facts["spacing_mm"] == list(SPACING_MM)
    assert codes(check(path, options=ReadOptions(spacing_mm=(7.0, 1.0, 1.0)))) == {
        "anisotropic-voxels": "warning",
        "thick-slices": "warning",
    }


def test_the_same_thing_is_not_said_twice_of_image_and_labels(tmp_path: Path) -> None:
    report = check(dataset(tmp_path, 1), options=ReadOptions(spacing_mm=(6.0, 2.0, 2.0)))
    assert [finding.code for finding in report.findings] == ["thick-slices"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the development data are not here")
def test_real_labels_have_two_kidneys_where_they_should(tmp_path: Path) -> None:
    from kidseg.check.anomalies import kidney_findings
    from kidseg.io import load

    for name in ("case_00005", "case_00031", "case_00064"):
        path = DATA / "kits19_labels" / f"{name}.nii.gz"
        labels = load(path, values="labels")
        middle = (labels.grid.shape[2] - 1) / 2
        found = kidney_findings(
            Volume(labels.data.to(torch.uint8), labels.grid), KIDNEY_TUMOUR, path, middle
        )
        assert not {f.code for f in found} & {"no-kidney", "kidney-cut"}
