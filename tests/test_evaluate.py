"""Evaluation from files: pairing, protocols, empty masks, guards, and what is written."""

from __future__ import annotations

import csv
import errno
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from commands import call_cli
from folders import contents
from kidseg.errors import BatchError, InputError, ResourceError, UsageError
from kidseg.evaluate import KITS_TOLERANCE_MM, METRICS, evaluate, protocol_named, read_run
from kidseg.evaluate.pairs import label_files
from kidseg.geometry import Grid, Volume
from kidseg.io import save
from kidseg.labels import KIDNEY_TUMOUR, KIDNEY_TUMOUR_CYST, LabelSchema

SHARED = Path(__file__).parents[2] / "shared" / "data"
SHAPE, SPACING_MM = (6, 20, 24), (3.0, 1.0, 0.5)


def labels(**parts: tuple[int, slice]) -> np.ndarray:
    """A label volume of boxes: name=(number, columns)."""
    volume = np.zeros(SHAPE, np.uint8)
    for number, columns in parts.values():
        volume[1:4, 4:12, columns] = number
    return volume


def write(path: Path, values: np.ndarray, grid: Grid | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = grid or Grid.from_spacing(values.shape, SPACING_MM)
    return save(Volume(torch.from_numpy(values.copy())[None], grid), path)


# 3 slices x 8 rows of voxels of 1.5 mm3: 0.036 ml for each column.
COLUMN_ML = 3 * 8 * 1.5 / 1000
REFERENCE = labels(kidney=(1, slice(2, 10)), tumour=(2, slice(10, 14)))
PREDICTED = labels(kidney=(1, slice(2, 10)), tumour=(2, slice(12, 16)))
HEALTHY = labels(kidney=(1, slice(2, 10)))
CYSTIC = labels(kidney=(1, slice(2, 6)), tumour=(2, slice(6, 8)), cyst=(3, slice(8, 12)))


def run(tmp_path: Path, pairs: list[tuple[np.ndarray, np.ndarray]], **options: Any) -> dict:
    for number, (predicted, reference) in enumerate(pairs):
        write(tmp_path / "pred" / f"case_{number}_seg.nii.gz", predicted)
        write(tmp_path / "ref" / f"case_{number}.nii.gz", reference)
    return evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", **options)


# Figures


def test_native_by_hand(tmp_path: Path) -> None:
    """Kidney found exactly; the tumour's box lies two columns of 0.5 mm on: half of it is hit."""
    summary = run(tmp_path, [(PREDICTED, REFERENCE)])
    assert list(summary) == [
        *("protocol", "n_cases", "structures", "rules", "findings", "not_evaluated"),
        *("versions", "host", "date"),
    ]
    assert (summary["protocol"], summary["n_cases"]) == ("native", 1)
    found = summary["structures"]
    assert list(found) == ["kidney", "kidney+tumour", "tumour"]
    assert found["kidney"]["dice"] == {
        "mean": 1.0,
        "sd": None,
        "n": 1,
        "n_empty": 0,
        "n_undefined": 0,
    }
    assert found["kidney"]["hd95_mm"]["mean"] == 0.0
    assert found["tumour"]["dice"]["mean"] == 0.5
    assert found["tumour"]["hd95_mm"]["mean"] == pytest.approx(1.0)
    assert found["tumour"]["surface_dice"]["mean"] == 1.0  # all within 1.15 mm
    assert found["tumour"]["volume_error_ml"]["mean"] == pytest.approx(0.0)
    # Kidney and tumour: 12 columns each (two of the prediction lie apart), 10 in common.
    assert found["kidney+tumour"]["dice"]["mean"] == pytest.approx(2 * 10 / 24)


def test_mean_and_sample_sd(tmp_path: Path) -> None:
    """Tumour Dice 0.5 and 1: mean 0.75, SD with n - 1 = sqrt(0.125)."""
    summary = run(tmp_path, [(PREDICTED, REFERENCE), (REFERENCE, REFERENCE)])
    tumour = summary["structures"]["tumour"]["dice"]
    assert tumour["mean"] == 0.75
    assert tumour["sd"] == pytest.approx(math.sqrt(0.125))


def test_volume_errors_are_signed_and_absolute(tmp_path: Path) -> None:
    more = labels(kidney=(1, slice(2, 12)))
    less = labels(kidney=(1, slice(2, 9)))
    summary = run(tmp_path, [(more, HEALTHY), (less, HEALTHY)])
    error = summary["structures"]["kidney"]["volume_error_ml"]
    assert error["mean"] == pytest.approx((2 - 1) / 2 * COLUMN_ML)
    assert error["mean_absolute"] == pytest.approx((2 + 1) / 2 * COLUMN_ML)


# Empty masks


@pytest.mark.parametrize("protocol", ["native", "kits19", "kits23"])
def test_both_empty(tmp_path: Path, protocol: str) -> None:
    """A healthy patient found healthy, and a tumour half hit."""
    summary = run(tmp_path, [(HEALTHY, HEALTHY), (PREDICTED, REFERENCE)], protocol=protocol)
    tumour = summary["structures"]["tumour"]
    for metric in ("dice", "surface_dice"):
        found = 0.5 if metric == "dice" else 1.0
        if protocol == "kits23":
            assert tumour[metric]["mean"] == pytest.approx((1.0 + found) / 2)
            assert (tumour[metric]["n"], tumour[metric]["n_empty"]) == (2, 1)
        else:
            assert tumour[metric]["mean"] == pytest.approx(found)
            assert (tumour[metric]["n"], tumour[metric]["n_empty"]) == (1, 1)
    for metric in ("hd95_mm", "volume_error_ml"):
        assert (tumour[metric]["n"], tumour[metric]["n_empty"]) == (1, 1)


@pytest.mark.parametrize("protocol", ["native", "kits19", "kits23"])
@pytest.mark.parametrize("missed", [True, False])
def test_one_empty_scores_zero(tmp_path: Path, protocol: str, missed: bool) -> None:
    pair = (HEALTHY, REFERENCE) if missed else (REFERENCE, HEALTHY)
    tumour = run(tmp_path, [pair], protocol=protocol)["structures"]["tumour"]
    assert tumour["dice"]["mean"] == 0.0 and tumour["surface_dice"]["mean"] == 0.0
    assert tumour["hd95_mm"]["mean"] is None
    assert (tumour["hd95_mm"]["n"], tumour["hd95_mm"]["n_undefined"]) == (0, 1)
    whole = 4 * COLUMN_ML * (-1 if missed else 1)
    assert tumour["volume_error_ml"]["mean"] == pytest.approx(whole)


def test_nothing_anywhere(tmp_path: Path) -> None:
    nothing = np.zeros(SHAPE, np.uint8)
    summary = run(tmp_path, [(nothing, nothing)])
    for structure in summary["structures"].values():
        assert all(structure[m]["mean"] is None and structure[m]["n_empty"] == 1 for m in METRICS)


# Protocols


def test_kits19_scores_every_label_above_a_threshold(tmp_path: Path) -> None:
    """Its code: kidney and tumour is > 0, tumour is > 1; so a cyst would be tumour."""
    all_tumour = labels(kidney=(1, slice(2, 6)), tumour=(2, slice(6, 12)))
    found = run(tmp_path, [(CYSTIC, all_tumour)], protocol="kits19")["structures"]
    assert list(found) == ["kidney+tumour", "tumour"]
    assert found["kidney+tumour"]["dice"]["mean"] == 1.0
    assert found["tumour"]["dice"]["mean"] == 1.0


def test_kits23_regions_and_tolerances(tmp_path: Path) -> None:
    all_tumour = labels(kidney=(1, slice(2, 6)), tumour=(2, slice(6, 12)))
    summary = run(tmp_path, [(CYSTIC, all_tumour)], protocol="kits23")
    found = summary["structures"]
    assert list(found) == ["kidney+mass", "mass", "tumour"]
    assert found["kidney+mass"]["dice"]["mean"] == found["mass"]["dice"]["mean"] == 1.0
    assert found["tumour"]["dice"]["mean"] == pytest.approx(2 * 2 / (2 + 6))
    rounded = {name: round(mm, 3) for name, mm in summary["rules"]["tolerance_mm"].items()}
    assert rounded == {"kidney+mass": 1.033, "mass": 1.133, "tumour": 1.150}


def test_surface_dice_uses_the_tolerance_of_its_structure(tmp_path: Path) -> None:
    """Plates 1.1 mm apart are within the tumour's 1.150 mm and outside the kidney's 1.033 mm."""
    grid = Grid.from_spacing((12, 12, 12), (1.1, 1.1, 1.1))
    for number, name in ((1, "kidney"), (2, "tumour")):
        a, b = np.zeros((2, 12, 12, 12), np.uint8)
        a[5], b[6] = number, number
        write(tmp_path / name / "pred.nii.gz", a, grid)
        write(tmp_path / name / "ref.nii.gz", b, grid)
    surfaces = {}
    for name in ("kidney", "tumour"):
        folder = tmp_path / name
        summary = evaluate(folder / "pred.nii.gz", folder / "ref.nii.gz", folder / "out")
        surfaces[name] = summary["structures"][name]["surface_dice"]["mean"]
    # Each plate has two faces; one of them meets the other plate's at 0 mm.
    assert surfaces["tumour"] == 1.0
    assert surfaces["kidney"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("cyst", "regions"),
    [
        ("tumour", {"kidney": [1], "kidney+tumour": [1, 2, 3], "tumour": [2, 3]}),
        ("kidney", {"kidney": [1, 3], "kidney+tumour": [1, 2, 3], "tumour": [2]}),
        ("background", {"kidney": [1], "kidney+tumour": [1, 2], "tumour": [2]}),
    ],
)
def test_what_a_cyst_counts_as(tmp_path: Path, cyst: Any, regions: dict) -> None:
    summary = run(tmp_path, [(CYSTIC, CYSTIC)], cyst=cyst)
    assert summary["rules"]["labels"] == regions
    tumour = protocol_named("kits19", cyst=cyst).structures[1]
    assert list(tumour.labels) == regions["tumour"]


def test_regions_of_a_schema() -> None:
    schema = LabelSchema.from_names({1: "Kidney", 2: "Tumor", 4: "spleen"}, {"renal": (1, 2)})
    native = protocol_named("native", schema)
    assert [(s.name, s.labels) for s in native.structures] == [("renal", (1, 2))]
    assert set(native.known) == {1, 2, 4}
    tumor = LabelSchema.from_names({1: "kidney", 2: "tumor"})
    found = {s.name: s.tolerance_mm for s in protocol_named("native", tumor).structures}
    assert found == {
        "kidney": KITS_TOLERANCE_MM["kidney+mass"],
        "kidney+tumour": KITS_TOLERANCE_MM["kidney+mass"],
        "tumour": KITS_TOLERANCE_MM["tumour"],
    }


KITS23_IN_NNUNET = LabelSchema.from_names(
    {1: "kidney without masses", 2: "tumor", 3: "masses without tumor"},
    {"kidney": (1, 2, 3), "masses": (2, 3), "tumor": (2,)},
)


def labels_of(protocol: str, schema: LabelSchema, cyst: Any = None) -> dict[str, tuple[int, ...]]:
    return {s.name: s.labels for s in protocol_named(protocol, schema, cyst).structures}


def test_every_spelling_is_scored_by_every_protocol() -> None:
    usual = [labels_of(name, KIDNEY_TUMOUR) for name in ("native", "kits19", "kits23")]
    for names in ({1: "Kidney", 2: "Wilms"}, {1: "renal parenchyma", 2: "renal mass"}):
        schema = LabelSchema.from_names(names)
        assert [labels_of(name, schema) for name in ("native", "kits19", "kits23")] == usual
    sides = LabelSchema.from_names({1: "left_kidney", 2: "right_kidney", 3: "Wilms", 4: "cyst"})
    assert labels_of("kits19", sides) == {"kidney+tumour": (1, 2, 3, 4), "tumour": (3, 4)}
    assert labels_of("kits23", sides) == {
        "kidney+mass": (1, 2, 3, 4),
        "mass": (3, 4),
        "tumour": (3,),
    }
    assert labels_of("native", sides, "kidney") == {
        "kidney": (1, 2, 4),
        "kidney+tumour": (1, 2, 3, 4),
        "tumour": (3,),
    }
    swapped = LabelSchema.from_names({1: "tumour", 2: "kidney"})
    assert labels_of("kits19", swapped) == {"kidney+tumour": (1, 2, 3), "tumour": (1, 3)}


def test_region_based_data_sets_are_scored_by_every_protocol() -> None:
    assert labels_of("native", KITS23_IN_NNUNET) == KITS23_IN_NNUNET.regions
    assert labels_of("kits23", KITS23_IN_NNUNET) == labels_of("kits23", KIDNEY_TUMOUR_CYST)
    assert labels_of("kits19", KITS23_IN_NNUNET) == labels_of("kits19", KIDNEY_TUMOUR_CYST)
    native = {s.name: s for s in protocol_named("native", KITS23_IN_NNUNET).structures}
    assert native["masses"].tolerance_mm == KITS_TOLERANCE_MM["mass"]
    assert native["tumor"].tolerance_mm == KITS_TOLERANCE_MM["tumour"]
    assert native["kidney"].tolerance_mm == KITS_TOLERANCE_MM["kidney+mass"]


def test_predictions_may_have_what_the_references_lack() -> None:
    """KiTS19's references have no cyst, KiTS23's numbers do."""
    assert dict(protocol_named("kits23", KIDNEY_TUMOUR).known) == KIDNEY_TUMOUR_CYST.names
    assert labels_of("kits23", KIDNEY_TUMOUR)["mass"] == (2, 3)
    only = LabelSchema.from_names({1: "Kidney"})
    assert labels_of("kits19", only) == {"kidney+tumour": (1, 2, 3), "tumour": (2, 3)}


def test_wrong_protocols_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown protocol 'kits21'") as raised:
        protocol_named("kits21")
    assert raised.value.code == "unknown-protocol"
    with pytest.raises(UsageError) as raised:
        protocol_named("kits23", cyst="kidney")
    assert raised.value.code == "fixed-cyst"
    with pytest.raises(UsageError) as raised:
        protocol_named("native", cyst="liver")  # type: ignore[arg-type]
    assert raised.value.code == "unknown-cyst"
    for names, said in (
        ({1: "kidney", 2: "tumour", 4: "spleen"}, r"4 \(spleen\)"),
        ({1: "Niere", 2: "tumour"}, r"1 \(Niere\)"),
        ({1: "left kidney", 2: "right kidney"}, "scores tumour"),
        ({1: "tumour"}, "scores kidney"),
    ):
        for protocol in ("kits19", "kits23"):
            with pytest.raises(UsageError, match=said) as raised:
                protocol_named(protocol, LabelSchema.from_names(names))
            assert raised.value.code == "labels-not-scored" and "native" in raised.value.next_step
    assert protocol_named("kits19", KIDNEY_TUMOUR).name == "kits19"


# Pairing


def test_names_of_predictions(tmp_path: Path) -> None:
    """Predictions named after the image, in folders, as nnU-Net; images beside them are ignored."""
    pred = tmp_path / "pred"
    write(pred / "a_0000_seg.nii.gz", HEALTHY)
    write(pred / "a_0000_ct.nii.gz", HEALTHY)
    write(pred / "b" / "segmentation.nii.gz", HEALTHY)
    write(pred / "b" / "imaging.nii.gz", HEALTHY)
    write(pred / "c" / "imaging_seg.nrrd", HEALTHY)
    write(pred / "d" / "d.mha", HEALTHY)
    (pred / "notes.txt").write_text("not a volume")
    assert sorted(label_files(pred)) == ["a_0000", "b", "c", "d"]
    for name in "abcd":
        write(tmp_path / "ref" / f"{name}.nii.gz", HEALTHY)
    summary = evaluate(pred, tmp_path / "ref", tmp_path / "out")
    assert summary["n_cases"] == 4 and not summary["findings"]
    rows = read_run(tmp_path / "out").rows
    assert sorted({row.case for row in rows}) == ["a", "b", "c", "d"]


def segmentation(
    path: Path,
    values: np.ndarray,
    segments: list[tuple[str, int]],
    grid: Grid | None = None,
    extra: str = "",
) -> Path:
    """A label volume with the header lines that 3D Slicer adds: (name, value) of each segment."""
    plain = write(path.with_name("plain.nrrd"), values, grid)
    head, blank, voxels = plain.read_bytes().partition(b"\n\n")
    plain.unlink()
    lines = [
        f"Segment{k}_{field}:={value}"
        for k, (name, number) in enumerate(segments)
        for field, value in (("ID", f"Segment_{k + 1}"), ("Name", name), ("LabelValue", number))
    ]
    path.write_bytes("\n".join([head.decode(), *lines, extra]).strip().encode() + blank + voxels)
    return path


SWAPPED = np.where(PREDICTED == 1, 2, np.where(PREDICTED == 2, 1, 0)).astype(np.uint8)


def tumour_dice(summary: dict) -> float:
    return summary["structures"]["tumour"]["dice"]["mean"]


def test_segments_of_slicer_count_as_the_labels_they_are_named_after(tmp_path: Path) -> None:
    write(tmp_path / "ref" / "a.nii.gz", REFERENCE)
    pred = tmp_path / "pred"
    pred.mkdir()
    segmentation(pred / "a.seg.nrrd", SWAPPED, [("Wilms tumor", 1), ("Kidney", 2)])
    assert tumour_dice(evaluate(pred, tmp_path / "ref", tmp_path / "out")) == 0.5
    # Left and right kidney are both the label kidney; a segment without voxels does not matter.
    sides = PREDICTED.copy()
    sides[1:4, 4:12, 2:5] = 7
    named = [("left kidney", 7), ("right kidney", 1), ("tumour", 2), ("aorta", 9)]
    segmentation(pred / "a.seg.nrrd", sides, named)
    summary = evaluate(pred, tmp_path / "ref", tmp_path / "out", overwrite=True)
    assert tumour_dice(summary) == 0.5 and summary["structures"]["kidney"]["dice"]["mean"] == 1.0
    # The reference may be one too.
    write(tmp_path / "plain" / "a.nii.gz", PREDICTED)
    segmentation(
        pred / "a.seg.nrrd", np.where(REFERENCE == 2, 5, REFERENCE), [("kidney", 1), ("tumour", 5)]
    )
    assert tumour_dice(evaluate(tmp_path / "plain", pred, tmp_path / "other")) == 0.5


def test_the_numbers_of_a_data_set_are_those_of_its_description(tmp_path: Path) -> None:
    """As in training, whatever 3D Slicer calls the segments; predictions go by their names."""
    root = nnunet(tmp_path / "data", {"kidney_left": 1, "kidney_right": 2, "ignore": 3})
    for file in list((root / "labelsTr").iterdir()):
        file.unlink()
        name = file.name.replace(".nii.gz", ".nrrd")
        segmentation(file.with_name(name), REFERENCE, [("Segment_1", 1), ("Segment_2", 2)])
    content = json.loads((root / "dataset.json").read_text()) | {"file_ending": ".nrrd"}
    (root / "dataset.json").write_text(json.dumps(content))
    (tmp_path / "pred").mkdir()
    named = [("Right kidney", 1), ("Kidney (left)", 2)]
    swapped = np.where(REFERENCE == 0, 0, 3 - REFERENCE).astype(np.uint8)
    segmentation(tmp_path / "pred" / "ann_0000.seg.nrrd", swapped, named)
    summary = evaluate(tmp_path / "pred", root, tmp_path / "out", cases=["ann_0000"])
    assert summary["structures"]["kidney"]["dice"]["mean"] == 1.0


def test_a_segmentation_cropped_to_its_segments_is_background_elsewhere(tmp_path: Path) -> None:
    whole = Grid.from_spacing(SHAPE, SPACING_MM)
    part = whole.crop((1, 4, 2), (3, 8, 14))
    write(tmp_path / "ref" / "a.nii.gz", REFERENCE)
    (tmp_path / "pred").mkdir()
    named = [("kidney", 1), ("tumour", 2)]
    segmentation(tmp_path / "pred" / "a.seg.nrrd", PREDICTED[1:4, 4:12, 2:16], named, part)
    assert tumour_dice(evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")) == 0.5
    assert tumour_dice(evaluate(tmp_path / "ref", tmp_path / "pred", tmp_path / "back")) == 0.5
    for shifted in (part.crop((0, 0, 0.5), part.shape), part.crop((0, 0, 9), part.shape)):
        segmentation(tmp_path / "pred" / "a.seg.nrrd", PREDICTED[1:4, 4:12, 2:16], named, shifted)
        with pytest.raises(InputError) as raised:
            evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "o")
        assert raised.value.code == "grid-mismatch"
    # A label volume is not padded: a missing part is a mistake.
    write(tmp_path / "cut.nii.gz", PREDICTED[1:4, 4:12, 2:16], part)
    with pytest.raises(InputError) as raised:
        evaluate(tmp_path / "cut.nii.gz", tmp_path / "ref" / "a.nii.gz", tmp_path / "o")
    assert raised.value.code == "grid-mismatch"


@pytest.mark.parametrize(
    ("segments", "extra", "code", "said"),
    [
        ([("Segment_1", 1), ("Segment_2", 2)], "", "unknown-segment", "'Segment_1' is none"),
        ([("kidney", 1), ("adrenal", 2)], "", "unknown-segment", "'adrenal'"),
        ([("kidney", 1)], "", "unexpected-labels", r"2 \(.* 1 kidney"),
        ([("kidney", 1), ("tumour", 1)], "", "bad-segment", "same value"),
        ([("kidney", 0), ("tumour", 2)], "", "bad-segment", "'kidney' has the value '0'"),
        (
            [("kidney", 1), ("tumour", 2)],
            "Segment1_Layer:=1",
            "overlapping-segments",
            "kidney, tum",
        ),
    ],
)
def test_segments_that_are_no_labels_are_named(
    tmp_path: Path, segments: list[tuple[str, int]], extra: str, code: str, said: str
) -> None:
    write(tmp_path / "ref.nii.gz", REFERENCE)
    pred = segmentation(tmp_path / "a.seg.nrrd", PREDICTED, segments, extra=extra)
    with pytest.raises(InputError, match=said) as raised:
        evaluate(pred, tmp_path / "ref.nii.gz", tmp_path / "out")
    assert raised.value.code == code and raised.value.next_step
    assert raised.value.path == str(pred)


def test_segments_in_four_dimensions_are_named(tmp_path: Path) -> None:
    """As early versions of 3D Slicer store them: a component for each segment."""
    write(tmp_path / "ref.nii.gz", REFERENCE)
    pred = segmentation(tmp_path / "a.seg.nrrd", PREDICTED, [("kidney", 1), ("tumour", 1)])
    text = pred.read_bytes().replace(b"Segment0_LabelValue:=1\n", b"")
    pred.write_bytes(text.replace(b"\nSegment1_LabelValue:=1", b""))
    with pytest.raises(InputError, match=r"2 layers.* kidney, tumour") as raised:
        evaluate(pred, tmp_path / "ref.nii.gz", tmp_path / "out")
    assert raised.value.code == "overlapping-segments"


def test_a_case_in_two_formats_is_scored_once(tmp_path: Path) -> None:
    write(tmp_path / "ref" / "a.nii.gz", REFERENCE)
    for name in ("a_seg.nii.gz", "a_seg.nrrd", "a_seg.mha"):
        write(tmp_path / "pred" / name, PREDICTED)
    named = [("Wilms tumour", 1), ("kidney", 2)]
    segmentation(tmp_path / "pred" / "a.seg.nrrd", SWAPPED, named)
    for k, (pred, ref) in enumerate((("pred", "ref"), ("ref", "pred"))):
        summary = evaluate(tmp_path / pred, tmp_path / ref, tmp_path / f"out{k}")
        assert (summary["n_cases"], tumour_dice(summary)) == (1, 0.5)
    write(tmp_path / "pred" / "sub" / "a_seg.nii.gz", REFERENCE)
    for pred, ref in (("pred", "ref"), ("ref", "pred")):
        with pytest.raises(InputError, match=r"sub/a_seg.nii.gz.* differ from .*pred/a") as raised:
            evaluate(tmp_path / pred, tmp_path / ref, tmp_path / "o")
        assert raised.value.code == "duplicate-case"


def test_label_files_beside_a_dataset_json(tmp_path: Path) -> None:
    """What nnU-Net leaves beside its predictions, in either folder; its labels are used."""
    root = nnunet(tmp_path / "data", {"renal": 2, "mass": 1, "ignore": 3})
    for folder, values in (("pred", PREDICTED), ("ref", REFERENCE)):
        turned = np.where(values == 0, 0, 3 - values).astype(np.uint8)
        write(tmp_path / folder / "a.nii.gz", turned)
        for name in ("dataset.json", "plans.json", "predict_from_raw_data_args.json"):
            (tmp_path / folder / name).write_bytes((root / "dataset.json").read_bytes())
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert summary["rules"]["labels"] == {"kidney": [2], "kidney+tumour": [2, 1], "tumour": [1]}
    assert tumour_dice(summary) == 0.5 and not summary["findings"]
    msd = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "mass", "2": "renal"},
        "training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}],
    }
    (tmp_path / "ref" / "dataset.json").write_text(json.dumps(msd))
    assert tumour_dice(evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out2")) == 0.5
    (tmp_path / "ref" / "dataset.json").write_text("{")
    with pytest.raises(InputError) as raised:
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out3")
    assert raised.value.code == "bad-json"


def test_unmarked_files_are_named_when_a_prediction_is_missing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "ref" / f"{name}.nii.gz", REFERENCE)
    write(tmp_path / "pred" / "a_seg.nii.gz", REFERENCE)
    write(tmp_path / "pred" / "b.nii.gz", REFERENCE)
    with pytest.raises(InputError, match=r"Taken for images.* b\.nii\.gz"):
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")


def test_what_is_missing_is_an_error_or_empty(tmp_path: Path) -> None:
    for folder in ("pred", "ref"):
        write(tmp_path / folder / "a.nii.gz", REFERENCE)
    with pytest.raises(UsageError) as refused:
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", missing="zero")  # type: ignore[arg-type]
    assert refused.value.code == "unknown-choice" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["b.nii.gz", "b.nrrd", "b_0000.nii.gz", "more/b.nii.gz"])
def test_an_unmarked_prediction_is_not_scored_as_empty(tmp_path: Path, name: str) -> None:
    for case in ("a", "b"):
        write(tmp_path / "ref" / f"{case}.nii.gz", REFERENCE)
    write(tmp_path / "pred" / "a_seg.nii.gz", REFERENCE)
    unmarked = write(tmp_path / "pred" / name, REFERENCE)
    write(unmarked.with_name("other_seg.nii.gz"), REFERENCE)
    with pytest.raises(InputError, match="case 'b' would be scored as empty") as refused:
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", missing="empty")
    assert (refused.value.code, refused.value.path) == ("unmarked-prediction", str(unmarked))
    # What is not scored, and images of cases that have a prediction, do not matter.
    evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "o", missing="empty", cases=["a"])
    write(unmarked.with_name("b_seg.nii.gz"), REFERENCE)
    evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", missing="empty")


@pytest.mark.parametrize("name", ["result.json", "run.log", "a", "a.zip"])
def test_a_file_that_is_no_label_volume_is_named(tmp_path: Path, name: str) -> None:
    other = tmp_path / name
    other.write_text("{}")
    labels = write(tmp_path / "ref" / "a.nii.gz", REFERENCE)
    for predicted, reference in ((other, labels), (other, labels.parent), (labels, other)):
        with pytest.raises(InputError, match="not a label volume") as refused:
            evaluate(predicted, reference, tmp_path / "out", missing="empty")
        assert (refused.value.code, refused.value.path) == ("no-labels", str(other))


def test_names_with_and_without_a_channel_match(tmp_path: Path) -> None:
    for pred, ref in (("a_0000_seg", "a"), ("a_seg", "a_0000"), ("a_0000", "a_0000")):
        root = tmp_path / f"{pred}-{ref}"
        write(root / "pred" / f"{pred}.nii.gz", HEALTHY)
        write(root / "ref" / f"{ref}.nii.gz", HEALTHY)
        assert not evaluate(root / "pred", root / "ref", root / "out")["findings"]
    # A case number is not a channel: "a" is not the first of the numbered cases.
    for name in ("a_0000", "a_0001"):
        write(tmp_path / "ref" / f"{name}.nii.gz", HEALTHY)
    for name in ("a", "a_0001"):
        write(tmp_path / "pred" / f"{name}.nii.gz", HEALTHY)
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", missing="empty")
    assert [f["code"] for f in summary["findings"]] == ["extra-prediction", "missing-prediction"]


def test_a_case_whose_own_name_ends_like_a_channel(tmp_path: Path) -> None:
    for folder in ("pred", "ref"):
        for name in ("case_0000", "case_0001"):
            write(tmp_path / folder / f"{name}.nii.gz", HEALTHY)
    assert evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")["n_cases"] == 2


def test_kits_folders_against_flat_files(tmp_path: Path) -> None:
    for number in (0, 1):
        write(tmp_path / "data" / f"case_{number:05d}" / "segmentation.nii.gz", REFERENCE)
        write(tmp_path / "pred" / f"case_{number:05d}.nii.gz", PREDICTED)
    summary = evaluate(tmp_path / "pred", tmp_path / "data", tmp_path / "out", protocol="kits19")
    assert summary["structures"]["tumour"]["dice"]["mean"] == 0.5


def test_missing_predictions_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / "ref" / f"{name}.nii.gz", REFERENCE)
    write(tmp_path / "pred" / "b_seg.nii.gz", REFERENCE)
    with pytest.raises(InputError, match=r"2 case\(s\): a, c") as raised:
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert raised.value.code == "missing-prediction"
    assert not (tmp_path / "out").exists()
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", missing="empty")
    tumour = summary["structures"]["tumour"]
    assert tumour["dice"]["mean"] == pytest.approx(1 / 3)
    assert tumour["hd95_mm"]["n_undefined"] == 2
    assert [f["code"] for f in summary["findings"]] == ["missing-prediction"] * 2
    with pytest.raises(UsageError):
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "o", missing="no")  # type: ignore[arg-type]


def test_only_some_cases(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / "ref" / f"{name}.nii.gz", REFERENCE)
    write(tmp_path / "pred" / "b.nii.gz", REFERENCE)
    summary = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", cases=["b"])
    assert summary["n_cases"] == 1
    with pytest.raises(InputError, match="z") as raised:
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "o", cases=["b", "z"])
    assert raised.value.code == "unknown-case"
    with pytest.raises(InputError, match="no cases"):
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "o", cases=[])


def test_extra_predictions_are_a_finding(tmp_path: Path) -> None:
    write(tmp_path / "ref" / "a.nii.gz", REFERENCE)
    for name in ("a", "b"):
        write(tmp_path / "pred" / f"{name}.nii.gz", REFERENCE)
    (finding,) = evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")["findings"]
    assert finding["code"] == "extra-prediction" and "'b'" in finding["cause"]


def test_folders_that_do_not_serve(tmp_path: Path) -> None:
    write(tmp_path / "ref" / "a.nii.gz", REFERENCE)
    (tmp_path / "empty").mkdir()
    for folder, code in ((tmp_path / "empty", "no-labels"), (tmp_path / "none", "not-found")):
        with pytest.raises(InputError) as raised:
            evaluate(folder, tmp_path / "ref", tmp_path / "out")
        assert raised.value.code == code


def nnunet(root: Path, labels: dict[str, Any]) -> Path:
    """An nnU-Net data set of three patients, two with images."""
    for name in ("ann_0000", "bob_0000", "cid_0000"):
        write(root / "labelsTr" / f"{name}.nii.gz", REFERENCE)
        if name != "cid_0000":
            write(root / "imagesTr" / f"{name}_0000.nii.gz", REFERENCE.astype(np.int16))
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **labels},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content))
    (root / "patients.csv").write_text("case,patient,age_years\nann_0000,ann,3.5\nbob_0000,bob,\n")
    return root


def test_a_data_set_as_reference(tmp_path: Path) -> None:
    """Its labels, patients and ages are taken over; its images need not be there."""
    root = nnunet(tmp_path / "data", {"renal": 1, "mass": 2})
    for name in ("ann", "bob", "cid"):
        write(tmp_path / "pred" / f"{name}_0000_0000_seg.nii.gz", PREDICTED)
    summary = evaluate(tmp_path / "pred", root, tmp_path / "out")
    assert list(summary["structures"]) == ["kidney", "kidney+tumour", "tumour"]
    assert summary["structures"]["tumour"]["dice"] | {"sd": 0} == {
        "mean": 0.5,
        "sd": 0,
        "n": 3,
        "n_empty": 0,
        "n_undefined": 0,
    }
    rows = {row.case: row for row in read_run(tmp_path / "out").rows}
    assert (rows["ann_0000"].patient, rows["ann_0000"].age_years) == ("ann", 3.5)
    assert (rows["bob_0000"].patient, rows["bob_0000"].age_years) == ("bob", None)


def test_labels_that_are_not_understood_are_scored_and_named(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "data", {"kidney": 1, "Gefäß": 2})
    for name in ("ann", "bob", "cid"):
        write(tmp_path / "pred" / f"{name}_0000_0000_seg.nii.gz", PREDICTED)
    summary = evaluate(tmp_path / "pred", root, tmp_path / "out")
    assert list(summary["structures"]) == ["kidney", "Gefäß"]
    assert [f["code"] for f in summary["findings"]] == ["label-not-understood"]
    assert "2 (Gefäß)" in summary["findings"][0]["cause"]


def test_ignored_voxels_count_neither_way(tmp_path: Path) -> None:
    """The reference leaves the last two columns of the predicted tumour open."""
    root = nnunet(tmp_path / "data", {"kidney": 1, "tumour": 2, "ignore": 3})
    open_ = REFERENCE.copy()
    open_[1:4, 4:12, 14:16] = 3
    name = root / "labelsTr" / "ann_0000.nii.gz"
    name.unlink()
    write(name, open_)
    write(tmp_path / "pred" / "ann_0000.nii.gz", PREDICTED)
    summary = evaluate(tmp_path / "pred", root, tmp_path / "out", cases=["ann_0000"])
    # Two columns predicted, four wanted, two in common.
    assert summary["structures"]["tumour"]["dice"]["mean"] == pytest.approx(2 * 2 / (2 + 4))
    write(tmp_path / "bad" / "ann_0000.nii.gz", open_)
    with pytest.raises(InputError) as raised:
        evaluate(tmp_path / "bad", root, tmp_path / "o", cases=["ann_0000"])
    assert raised.value.code == "unexpected-labels"


def test_a_data_set_with_bad_labels_or_tables_is_refused(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "data", {"kidney": 1, "tumour": 2})
    write(tmp_path / "pred" / "ann_0000.nii.gz", PREDICTED)
    (root / "patients.csv").write_text("case,age_years\nann_0000,old\n")
    with pytest.raises(InputError, match="'old' is not a valid age") as raised:
        evaluate(tmp_path / "pred", root, tmp_path / "out")
    assert raised.value.code == "bad-row"
    (root / "patients.csv").unlink()
    for file in (root / "labelsTr").iterdir():
        file.unlink()
    with pytest.raises(InputError):
        evaluate(tmp_path / "pred", root, tmp_path / "out")


def test_segment_output_in_folders_named_as_in_kits(tmp_path: Path) -> None:
    for folder in ("ref", "pred"):
        write(tmp_path / folder / "case_00003" / "imaging_seg.nii.gz", HEALTHY)
    evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert {row.case for row in read_run(tmp_path / "out").rows} == {"case_00003"}


# Grids and labels


def test_another_voxel_order_is_the_same_patient(tmp_path: Path) -> None:
    """The prediction stored with turned and flipped axes, as another program may write it."""
    write(tmp_path / "ref.nii.gz", REFERENCE)
    straight = nib.load(write(tmp_path / "pred.nii.gz", PREDICTED))
    turned = nib.as_closest_canonical(straight)
    orientation = nib.orientations.axcodes2ornt(("S", "P", "L"))
    turned = turned.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(turned.affine), orientation)
    )
    nib.save(turned, tmp_path / "turned.nii.gz")
    assert turned.shape != straight.shape
    found = [
        evaluate(tmp_path / name, tmp_path / "ref.nii.gz", tmp_path / name.split(".")[0])
        for name in ("pred.nii.gz", "turned.nii.gz")
    ]
    assert found[0]["structures"] == found[1]["structures"]


def test_grids_must_be_the_same(tmp_path: Path) -> None:
    """Row 12: up to 1e-3 mm is the same grid; beyond it, or in another shape, an error."""
    write(tmp_path / "ref.nii.gz", REFERENCE)
    for name, shift_mm in (("near", 5e-4), ("far", 0.01)):
        grid = Grid.from_spacing(SHAPE, SPACING_MM, (0.0, shift_mm, 0.0))
        write(tmp_path / f"{name}.nii.gz", REFERENCE, grid)
    write(tmp_path / "cut.nii.gz", REFERENCE[1:])
    evaluate(tmp_path / "near.nii.gz", tmp_path / "ref.nii.gz", tmp_path / "out")
    for name, words in (("far", "up to 0.01 mm apart"), ("cut", "5 x 20 x 24")):
        with pytest.raises(InputError, match=words) as raised:
            evaluate(tmp_path / f"{name}.nii.gz", tmp_path / "ref.nii.gz", tmp_path / "o")
        assert raised.value.code == "grid-mismatch"
        assert str(raised.value.path).endswith(f"{name}.nii.gz")


def test_unexpected_labels_are_counted(tmp_path: Path) -> None:
    wrong = REFERENCE.copy()
    wrong[0, 0, :7], wrong[5, 0, :2] = 9, 7
    write(tmp_path / "ref.nii.gz", REFERENCE)
    for kind in (np.uint8, np.int16, np.float32):
        name = f"{np.dtype(kind).name}.nii.gz"
        write(tmp_path / name, wrong.astype(kind))
        with pytest.raises(
            InputError, match=r"9 voxels .* 7 \(2 voxels\), 9 \(7 voxels\)"
        ) as raised:
            evaluate(tmp_path / name, tmp_path / "ref.nii.gz", tmp_path / "out")
        assert raised.value.code == "unexpected-labels"
    write(tmp_path / "minus.nii.gz", np.where(wrong == 9, -1, 0).astype(np.int16))
    with pytest.raises(InputError, match=r"-1 \(7 voxels\)"):
        evaluate(tmp_path / "minus.nii.gz", tmp_path / "ref.nii.gz", tmp_path / "out")


def test_probabilities_are_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "ref.nii.gz", REFERENCE)
    write(tmp_path / "whole.nii.gz", REFERENCE.astype(np.float32))
    evaluate(tmp_path / "whole.nii.gz", tmp_path / "ref.nii.gz", tmp_path / "out")
    write(tmp_path / "half.nii.gz", REFERENCE.astype(np.float32) / 4)
    with pytest.raises(InputError, match=r"0\.25") as raised:
        evaluate(tmp_path / "half.nii.gz", tmp_path / "ref.nii.gz", tmp_path / "o")
    assert raised.value.code == "fractional-labels"


def test_if_no_case_can_be_scored_nothing_is_written(tmp_path: Path) -> None:
    wrong = REFERENCE.copy()
    wrong[0, 0, 0] = 9
    bad = [(wrong, REFERENCE), (REFERENCE[1:], REFERENCE)]
    with pytest.raises(InputError, match=r"case_0.*not labels.*case_1.*5 x 20 x 24") as raised:
        run(tmp_path, bad)
    assert raised.value.code == "bad-cases"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bad_case_does_not_stop_the_others_and_is_named_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [(PREDICTED, REFERENCE), (REFERENCE[1:], REFERENCE), (REFERENCE, REFERENCE)]
    with pytest.raises(BatchError, match=r"1 of 3 cases .*case_1.*5 x 20 x 24") as raised:
        run(tmp_path, bad)
    assert raised.value.code == "cases-failed" and raised.value.next_step
    arguments = [str(tmp_path / name) for name in ("pred", "ref")] + ["-o", str(tmp_path / "out")]
    assert call_cli("evaluate", *arguments, "--overwrite") == 4
    said = capsys.readouterr()
    assert "2 of 3 case(s)" in said.out and "error: " in said.out and "case_1" in said.err
    read = read_run(tmp_path / "out")
    assert {row.case for row in read.rows} == {"case_0", "case_2"}
    assert read.summary["n_cases"] == 2 and read.summary["not_evaluated"] == ["case_1"]
    assert read.summary["structures"]["tumour"]["dice"]["mean"] == 0.75
    error = read.summary["findings"][0]
    assert error["severity"] == "error" and "case_1" in error["path"] and error["next_step"]
    page = (tmp_path / "out" / "cohort.html").read_text()
    assert "2 of 3 case(s)" in page and "Not evaluated: case_1_seg.nii.gz" in page


# What is written


def test_files_hold_what_is_returned(tmp_path: Path) -> None:
    pairs = [(PREDICTED, REFERENCE), (HEALTHY, REFERENCE), (HEALTHY, HEALTHY)]
    seen: list[tuple[int, int]] = []
    summary = run(tmp_path, pairs, progress=lambda done, total: seen.append((done, total)))
    out = tmp_path / "out"
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert sorted(p.name for p in out.iterdir()) == ["cases.csv", "cohort.html", "summary.json"]
    assert json.loads((out / "summary.json").read_text()) == summary
    with (out / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and summary["not_evaluated"] == []
    tumours = [row for row in rows if row["structure"] == "tumour"]
    assert [row["dice"] for row in tumours] == ["0.5", "0.0", ""]
    assert [row["hd95_mm"] != "" for row in tumours] == [True, False, False]
    assert float(tumours[0]["reference_ml"]) == pytest.approx(4 * COLUMN_ML)
    # A summary can be recomputed from the table: read back, every figure is the same.
    read = read_run(out)
    dice = [row.figures["dice"] for row in read.rows if row.structure == "tumour"]
    assert dice == [0.5, 0.0, None]
    assert summary["structures"]["tumour"]["dice"]["mean"] == 0.25


def test_a_case_whose_name_is_a_formula_is_text_and_read_back(tmp_path: Path) -> None:
    for folder, labels in (("pred", PREDICTED), ("ref", REFERENCE)):
        write(tmp_path / folder / "=1+1.nii.gz", labels)
    evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    lines = (tmp_path / "out" / "cases.csv").read_text().splitlines()
    assert all(line.startswith("'=1+1,'=1+1,") for line in lines[1:])
    assert {(row.case, row.patient) for row in read_run(tmp_path / "out").rows} == {
        ("=1+1", "=1+1")
    }


def test_same_bytes_however_many_jobs(tmp_path: Path) -> None:
    run(tmp_path, [(PREDICTED, REFERENCE), (HEALTHY, REFERENCE), (CYSTIC, CYSTIC)])
    again = tmp_path / "again"
    evaluate(tmp_path / "pred", tmp_path / "ref", again, jobs=2)
    assert (again / "cases.csv").read_bytes() == (tmp_path / "out" / "cases.csv").read_bytes()
    first, second = (
        json.loads((tmp_path / f / "summary.json").read_text()) for f in ("out", "again")
    )
    assert first.pop("date") <= second.pop("date") and first == second
    assert first["versions"]["kidseg"] and first["host"]["cpu"]


def test_results_are_not_replaced_unasked(tmp_path: Path) -> None:
    run(tmp_path, [(PREDICTED, REFERENCE)])
    with pytest.raises(UsageError) as raised:
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "out")
    assert raised.value.code == "output-exists"
    summary = evaluate(
        tmp_path / "pred", tmp_path / "ref", tmp_path / "out", protocol="kits19", overwrite=True
    )
    assert read_run(tmp_path / "out").summary == summary
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not a folder"):
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "file")
    with pytest.raises(InputError, match="the folder cannot be created"):
        evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / "file" / "below")


@pytest.mark.fault("disk full")
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, [(PREDICTED, REFERENCE)])
    before = contents(tmp_path / "out")

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)
    for out in ("new", "out"):
        with pytest.raises(ResourceError) as raised:
            evaluate(tmp_path / "pred", tmp_path / "ref", tmp_path / out, overwrite=True)
        assert raised.value.code == "disk-full"
        assert contents(tmp_path / out) == (before if out == "out" else {})


@pytest.mark.parametrize("how", ["", "--quiet", "--json"])
def test_findings_are_said_on_the_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    for name in ("a", "b"):
        write(tmp_path / "ref" / f"{name}.nii.gz", REFERENCE)
    for name in ("b", "c"):
        write(tmp_path / "pred" / f"{name}.nii.gz", PREDICTED)
    arguments = ["evaluate", str(tmp_path / "pred"), str(tmp_path / "ref"), "-o"]
    arguments += [str(tmp_path / "out"), "--missing", "empty", *([how] if how else [])]
    assert call_cli(*arguments) == 0
    said = capsys.readouterr().out
    findings = json.loads((tmp_path / "out" / "summary.json").read_text())["findings"]
    assert [f["code"] for f in findings] == ["extra-prediction", "missing-prediction"]
    if how == "--json":
        assert json.loads(said)["findings"] == findings
    else:
        for finding in findings:
            line = f"warning: {finding['path']}: {finding['cause']}"
            assert (line in said) == (how == "")


# Real labels


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data beside the project is absent")
def test_real_slices_against_themselves(tmp_path: Path) -> None:
    slices = SHARED / "kits19_slices"
    summary = evaluate(slices, slices, tmp_path, protocol="kits19", jobs=2)
    assert summary["n_cases"] == 41
    tumour = summary["structures"]["tumour"]
    assert (tumour["dice"]["n"], tumour["dice"]["n_empty"]) == (40, 1)
    assert (tumour["dice"]["mean"], tumour["hd95_mm"]["mean"]) == (1.0, 0.0)
    assert tumour["volume_error_ml"]["mean_absolute"] == 0.0


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data beside the project is absent")
def test_real_labels_moved_by_a_voxel(tmp_path: Path) -> None:
    """A real kidney moved by one slice of 1.5 mm: nowhere farther off than that."""
    source = nib.load(sorted((SHARED / "kits19_labels").glob("*.nii.gz"))[0])
    values = np.asarray(source.dataobj)
    moved = np.zeros_like(values)
    moved[:, :, 1:] = values[:, :, :-1]
    nib.save(nib.Nifti1Image(moved, source.affine), tmp_path / "moved.nii.gz")
    nib.save(nib.Nifti1Image(values, source.affine), tmp_path / "ref.nii.gz")
    summary = evaluate(tmp_path / "moved.nii.gz", tmp_path / "ref.nii.gz", tmp_path / "out")
    found = summary["structures"]["kidney+tumour"]
    a, b = moved > 0, values > 0
    assert found["dice"]["mean"] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert 0 < found["hd95_mm"]["mean"] <= 1.5 + 1e-6
    assert 0.3 < found["surface_dice"]["mean"] < 1.0


@pytest.mark.parametrize("kind", ["data set", "training run"])
def test_scores_are_not_written_into_a_folder_of_another_kind(tmp_path: Path, kind: str) -> None:
    """Not even with overwrite: a run has a summary.json of its own."""
    write(tmp_path / "ref" / "a.nii.gz", HEALTHY)
    out = tmp_path / "out"
    out.mkdir()
    name = {"data set": "dataset.json", "training run": "run.json"}[kind]
    (out / name).write_text("{}")
    (out / "summary.json").write_text("kept")
    with pytest.raises(UsageError, match=kind) as caught:
        evaluate(tmp_path / "ref", tmp_path / "ref", out, overwrite=True)
    assert caught.value.code == "other-folder"
    assert (out / "summary.json").read_text() == "kept"
