"""kidseg measure from files: names of labels, cropped files, scans, the record and the tables."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import call_cli
from kidseg.errors import InputError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import save
from kidseg.io.orientation import reorient
from kidseg.measure.label_reading import read_labelled
from kidseg.measure.measuring import Request, measure
from solids import positions

GRID = Grid.from_spacing((36, 48, 76), (4.0, 3.0, 3.0))
LEFT_ML = 4 / 3 * math.pi * 14 * 16 * 40 / 1000
TUMOUR_ML = 4 / 3 * math.pi * 20**3 / 1000


def phantom(grid: Grid = GRID) -> tuple[Volume, Volume]:
    """(scan, labels): a trunk, two kidneys, and a ball of 20 mm at the front of the right one."""
    place = positions(grid)

    def inside(centre: Sequence[float], half: Sequence[float]) -> np.ndarray:
        return np.asarray((((place - np.array(centre)) / np.array(half)) ** 2).sum(-1) <= 1)

    hu = np.full(grid.shape, -1000, np.int16)
    hu[inside((0, 0, 0), (105, 68, 1000))] = 20
    labels = np.zeros(grid.shape, np.uint8)
    for side in (-1, 1):
        labels[inside((50 * side, -15, 0), (14, 16, 40))] = 1
    labels[inside((50.7, 12.4, 10.9), (20, 20, 20))] = 2
    hu[labels == 1], hu[labels == 2] = 180, 90
    return (
        Volume(torch.from_numpy(hu)[None], grid),
        Volume(torch.from_numpy(labels)[None], grid),
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    scan, labels = phantom()
    save(scan, folder / "anna.nii.gz")
    save(labels, folder / "anna_seg.nii.gz")
    return folder


def run(
    *arguments: str | Path, capsys: pytest.CaptureFixture[str], code: int = 0
) -> tuple[str, str]:
    ended = call_cli("measure", *arguments)
    out, err = capsys.readouterr()
    assert ended == code, err
    return out, err


def measured(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json", capsys=capsys)[0])
    return found


def quantities(structures: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    (found,) = [each for each in structures if each["id"] == name]
    return {quantity["name"]: quantity for quantity in found["quantities"]}


def codes(found: Mapping[str, Any]) -> list[str]:
    return [warning["code"] for warning in found["warnings"]]


def segmented(path: Path, volume: Volume, names: Mapping[int, str]) -> Path:
    """A segmentation of 3D Slicer."""
    plain = path.with_name("plain.nrrd")
    save(volume, plain, overwrite=True)
    head, blank, voxels = plain.read_bytes().partition(b"\n\n")
    lines = [
        line
        for k, (value, name) in enumerate(names.items())
        for line in (f"Segment{k}_Name:={name}", f"Segment{k}_LabelValue:={value}")
    ]
    path.write_bytes(b"\n".join([head, *(line.encode() for line in lines)]) + blank + voxels)
    plain.unlink()
    return path


def test_volumes_and_diameters_of_a_file_with_its_scan(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(
        *(files / "anna_seg.nii.gz", "--ct", files / "anna.nii.gz"),
        *("--height", "95", "--weight", "14", "--age", "3", "--sex", "female"),
        capsys=capsys,
    )
    assert found["midline"] == {"from": "body", "estimated": False}
    assert [each["id"] for each in found["structures"]] == [
        "right kidney",
        "left kidney",
        "right tumour 1",
    ]
    left = quantities(found["structures"], "left kidney")
    assert left["volume"]["value"] == pytest.approx(LEFT_ML, rel=0.02)
    tumour = quantities(found["structures"], "right tumour 1")
    assert tumour["volume"]["value"] == pytest.approx(TUMOUR_ML, rel=0.02)
    assert tumour["longest diameter"]["value"] == pytest.approx(40, abs=4)
    for each in tumour.values():
        assert each["low"] <= each["value"] <= each["high"] and each["unit"] and each["interval"]
    surface = math.sqrt(95 * 14 / 3600)
    growth = {each["name"]: each for each in found["sides"]["left"]}
    assert growth["kidney volume for body surface"]["value"] == pytest.approx(
        left["volume"]["value"] / surface, rel=1e-4
    )
    assert found["person"]["sex"] == "female" and "research use only" in found["intended_use"]
    assert codes(found) == ["assumed-names"]
    assert found["surgical_record"]["right"]["NSS"] == "cannot tell"
    assert {answer["verdict"] for answer in found["criteria"]["answers"]} <= {
        "met",
        "not met",
        "cannot tell",
    }
    assert all(answer["source"] for answer in found["criteria"]["answers"])


def test_the_distance_of_two_tumours_is_in_the_record(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = phantom()[1]
    away = positions(GRID) - np.array((-50.7, 12.4, -14.0))
    labels.data[0][torch.from_numpy((away**2).sum(-1) <= 15**2)] = 2
    save(labels, tmp_path / "both.nii.gz")
    found = measured(tmp_path / "both.nii.gz", "-o", tmp_path / "out", capsys=capsys)
    record = json.loads((tmp_path / "out" / "both_measurements.json").read_text())
    true = math.hypot(101.4, 24.9) - 20 - 15
    for structures in (found["structures"], record["structures"]):
        for name in ("right tumour 1", "left tumour 1"):
            gap = quantities(structures, name)["distance to the nearest other tumour"]
            assert gap["value"] == pytest.approx(true, abs=3) and gap["unit"] == "mm"
            assert gap["low"] < true < gap["high"]
    (number,) = [q for q in found["patient"] if q["name"] == "sides with a tumour"]
    assert number["value"] == 2
    (alone,) = [
        each
        for each in measured(files / "anna_seg.nii.gz", capsys=capsys)["structures"]
        if each["meaning"] == "tumour"
    ]
    assert "distance to the nearest other tumour" not in {q["name"] for q in alone["quantities"]}


def test_another_order_of_the_voxels_gives_the_same(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flipped = np.diag([1.0, 1.0, -1.0, 1.0])[:, [1, 2, 0, 3]]
    other = Grid((2, 2, 2), torch.from_numpy(flipped))
    save(reorient(phantom()[1], other), tmp_path / "other.nii.gz")
    one = measured(files / "anna_seg.nii.gz", capsys=capsys)["structures"]
    assert one == measured(tmp_path / "other.nii.gz", capsys=capsys)["structures"]


def test_an_oblique_file_gives_the_same_volumes(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    c, s = math.cos(0.3), math.sin(0.3)
    turn = torch.tensor([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).double()
    save(phantom(GRID.moved(turn))[1], tmp_path / "oblique.nii.gz")
    one = measured(files / "anna_seg.nii.gz", capsys=capsys)["structures"]
    other = measured(tmp_path / "oblique.nii.gz", capsys=capsys)["structures"]
    for name in ("right kidney", "left kidney", "right tumour 1"):
        a, b = (quantities(each, name)["volume"]["value"] for each in (one, other))
        assert a == pytest.approx(b, rel=0.03)


def test_the_record_is_written_once(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    found = measured(files / "anna_seg.nii.gz", "-o", out, capsys=capsys)
    record = json.loads((out / "anna_measurements.json").read_text())
    assert record["structures"] == found["structures"]
    assert len(record["files"]["labels"][0]["sha256"]) == 64 and record["versions"]["kidseg"]
    _, err = run(files / "anna_seg.nii.gz", "-o", out, capsys=capsys, code=2)
    assert "already exists" in err
    run(files / "anna_seg.nii.gz", "-o", out, "--overwrite", "--quiet", capsys=capsys)


def test_nothing_is_left_of_what_failed(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(files / "none.nii.gz", "-o", tmp_path / "out", capsys=capsys, code=3)
    assert not (tmp_path / "out").exists()
    (tmp_path / "dataset.json").write_text("{}")
    _, err = run(files / "anna_seg.nii.gz", "-o", tmp_path, capsys=capsys, code=2)
    assert "a data set" in err and not list(tmp_path.glob("*measurements*"))


def test_the_tables_fit_a_terminal_and_say_what_they_are(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--ct", files / "anna.nii.gz", "--before", files / "anna_seg.nii.gz"]
    text = run(files / "anna_seg.nii.gz", *arguments, capsys=capsys)[0]
    plain = text.replace(str(files), "")
    assert max(map(len, plain.splitlines())) <= 80
    flat = " ".join(text.split())
    assert re.search(r"right tumour 1 3\d\.\d \(\d\d\.\d-\d\d\.\d\)", flat)
    for words in (
        "For research use only. Not a medical device. No treatment is recommended.",
        "R.E.N.A.L. N cannot tell; the renal sinus",
        "NOT MET - right: At least 500 ml after preoperative chemotherapy",
        "[to be confirmed]",
        "not signed off by a clinician",
        "Change since the earlier scan",
        "overlap: right tumour 1",
    ):
        assert words in flat, words


def test_labels_are_named_by_segments_and_a_cropped_file_may_be_placed_on_its_scan(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = phantom()[1]
    used = np.argwhere(labels.data[0].numpy())
    low, high = used.min(0), used.max(0) + 1
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    cropped = Volume(labels.data[(slice(None), *box)], GRID.crop(low, high - low))
    names = {2: "Wilms tumour 1", 1: "kidneys"}
    path = segmented(tmp_path / "anna.seg.nrrd", cropped, names)
    alone = measured(path, capsys=capsys)
    assert "border-unknown" in codes(alone) and "assumed-names" not in codes(alone)
    assert alone["midline"]["from"] == "kidneys"
    (tumour,) = [each for each in alone["structures"] if each["meaning"] == "tumour"]
    assert tumour["tracking"] == "Wilms tumour 1" and tumour["borders"] == []
    placed = measured(path, "--ct", files / "anna.nii.gz", capsys=capsys)
    assert codes(placed) == []
    assert quantities(placed["structures"], tumour["id"]) == {
        **quantities(alone["structures"], tumour["id"]),
        "reach beyond the midline": quantities(placed["structures"], tumour["id"])[
            "reach beyond the midline"
        ],
    }


def test_labels_are_named_by_a_dataset_json_or_by_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = phantom()[1]
    path = tmp_path / "labelsTr" / "a.nii.gz"
    path.parent.mkdir()
    save(labels, path)
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "tumour": 1, "kidney": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = measured(path, capsys=capsys)
    assert {each["meaning"]: each["label"] for each in found["structures"]}["kidney"] == "kidney"
    assert found["sides"]["left"][0]["name"] == "tumour volume"  # 1 is the tumour here
    named = measured(path, "--label", "1=kidney", "--label", "2=mass 3", capsys=capsys)
    assert [each["meaning"] for each in named["structures"]] == ["kidney", "kidney", "tumour"]
    other = measured(path, "--label", "1=kidney", "--label", "2=ureter", capsys=capsys)
    assert {"label-not-understood", "no-tumour-label"} <= set(codes(other))


def test_unknown_values_are_refused_with_the_way_out(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files / "anna_seg.nii.gz"
    out, err = run(path, "--label", "1=kidney", capsys=capsys, code=3)
    assert out == "" and "--label NUMBER=NAME" in err and "2 (" in err


def test_a_scan_of_other_voxels_is_refused(files: Path, tmp_path: Path) -> None:
    scan, _ = phantom(Grid.from_spacing((36, 48, 76), (4.0, 3.0, 3.0), (7.0, 0.0, 0.0)))
    save(scan, tmp_path / "other.nii.gz")
    with pytest.raises(InputError, match="nor a part of it") as caught:
        read_labelled(files / "anna_seg.nii.gz", ct=tmp_path / "other.nii.gz")
    assert caught.value.code == "label-grid-mismatch"


def test_labels_in_the_air_of_a_scan_are_said_to_be_those_of_another_one(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scan, _ = phantom()
    moved = torch.roll(scan.data, 24, dims=2)  # the body lies elsewhere in the same voxels
    save(Volume(moved, scan.grid), tmp_path / "other.nii.gz")
    found = measured(files / "anna_seg.nii.gz", "--ct", tmp_path / "other.nii.gz", capsys=capsys)
    (warning,) = [each for each in found["warnings"] if each["code"] == "labels-in-air"]
    assert "other.nii.gz" in warning["cause"] and warning["path"].endswith("anna_seg.nii.gz")


def test_segments_that_share_a_name_are_told_apart_by_their_number(tmp_path: Path) -> None:
    path = segmented(tmp_path / "a.seg.nrrd", phantom()[1], {1: "kidney", 2: "kidney"})
    schema = read_labelled(path).schema
    assert schema.names == {1: "kidney 1", 2: "kidney 2"}
    assert set(schema.ids_of("kidney")) == {1, 2}


def test_other_opinions_widen_the_volumes(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = phantom()[1]
    less = labels.data.clone()
    less[(labels.data == 2) & (torch.arange(48)[:, None] < 18)] = 0
    save(Volume(less, labels.grid), tmp_path / "second.nii.gz")
    path = files / "anna_seg.nii.gz"
    alone = measured(path, capsys=capsys)["sides"]["right"]
    both = measured(path, "--opinion", tmp_path / "second.nii.gz", capsys=capsys)["sides"]["right"]
    volumes = [
        next(each for each in found if each["name"] == "tumour volume") for found in (alone, both)
    ]
    assert volumes[0]["value"] == volumes[1]["value"]
    other = float((less == 2).sum()) * float(labels.grid.voxel_ml)
    assert volumes[1]["low"] == pytest.approx(min(other, volumes[0]["low"]), rel=1e-4)
    assert "1 other segmentation" in volumes[1]["interval"]
    wider = Grid.from_spacing(GRID.shape, (4.0, 3.0, 3.1))
    save(Volume(labels.data, wider), tmp_path / "of_another.nii.gz")
    with pytest.raises(InputError, match="a segmentation of the same scan, on its voxels"):
        measure(path, Request(opinions=(tmp_path / "of_another.nii.gz",)))


def test_an_opinion_may_have_other_numbers_and_fewer_labels(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, labels = files / "anna_seg.nii.gz", phantom()[1]
    alone = measured(path, capsys=capsys)["sides"]["right"]
    values = torch.tensor([0, 7, 3], dtype=torch.uint8)[labels.data.long()]
    swapped = Volume(values, labels.grid)
    names = {7: "kidneys", 3: "Wilms tumour"}
    same = segmented(tmp_path / "a.seg.nrrd", swapped, names)
    found = measured(path, "--opinion", same, capsys=capsys)["sides"]["right"]
    for one, other in zip(alone, found, strict=True):
        assert [one[k] for k in ("value", "low", "high")] == [
            other[k] for k in ("value", "low", "high")
        ]
    fewer = segmented(tmp_path / "b.seg.nrrd", swapped, {7: "kidney", 3: "liver"})
    found = measured(path, "--opinion", fewer, capsys=capsys)
    assert {"label-not-understood", "no-tumour-label"} <= set(codes(found))
    (tumour,) = [q for q in found["sides"]["right"] if q["name"] == "tumour volume"]
    assert "other segmentation" not in tumour["interval"]


def test_names_that_a_number_was_added_to_are_no_tracking_ids(tmp_path: Path) -> None:
    names = {1: "tumour", 2: "tumour"}
    labelled = read_labelled(segmented(tmp_path / "a.seg.nrrd", phantom()[1], names))
    assert labelled.schema.names == {1: "tumour 1", 2: "tumour 2"} and not labelled.tracking
    names = {1: "tumour 2", 2: "tumour"}
    labelled = read_labelled(segmented(tmp_path / "b.seg.nrrd", phantom()[1], names))
    assert labelled.tracking == {1: "tumour 2"}


def test_segments_whose_numbered_names_exist_already(tmp_path: Path) -> None:
    names = {1: "kidney", 2: "kidney", 3: "kidney 2"}
    schema = read_labelled(segmented(tmp_path / "a.seg.nrrd", phantom()[1], names)).schema
    assert len(set(schema.names.values())) == 3 and len(schema.ids_of("kidney")) == 3


def segmented_by_model(
    folder: Path, intervals: Mapping[str, Any], how: str | None = "conformal", **more: Any
) -> tuple[Path, dict[str, float]]:
    """Labels with a result.json whose review has these multiples of the volumes as intervals."""
    labels = phantom()[1]
    save(labels, folder / "anna_seg.nii.gz", overwrite=True)
    volumes = {
        name: float((labels.data == number).sum()) * float(labels.grid.voxel_ml)
        for name, number in (("kidney", 1), ("tumour", 2))
    }
    volumes["kidney+tumour"] = volumes["kidney"] + volumes["tumour"]
    structures = {
        name: {
            "volume_ml": round(volumes[name], 4),
            "interval_ml": None if ends is None else [end * volumes[name] for end in ends],
            "doubtful_ml": 1.0,
        }
        for name, ends in intervals.items()
    }
    review = {"opinions": 2, "level": 0.9, "interval": how, "structures": structures, **more}
    entry = {
        "name": "anna",
        "outputs": ["anna_seg.nii.gz"],
        "labels": {"1": "kidney", "2": "tumour"},
        "review": review,
    }
    (folder / "result.json").write_text(json.dumps({"scans": [entry]}))
    return folder / "anna_seg.nii.gz", volumes


def of_side(record: Mapping[str, Any], side: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        each for each in record["sides"][side] if each["name"] == f"{name} volume"
    )
    return found


def test_the_intervals_of_the_segmentation_are_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of the tumour is right; each kidney gets a margin by the square root of its share."""
    ends = {"kidney": (0.5, 1.6), "tumour": (0.2, 2.0), "kidney+tumour": (0.5, 1.5)}
    path, volumes = segmented_by_model(tmp_path, ends)
    record = measured(path, capsys=capsys)
    tumour = of_side(record, "right", "tumour")
    assert (tumour["low"], tumour["high"]) == pytest.approx(
        (0.2 * volumes["tumour"], 2 * volumes["tumour"]), rel=1e-3
    )
    assert tumour["interval"].endswith("90% interval of the model, calibrated")
    for side in ("right", "left"):
        kidney = of_side(record, side, "kidney")
        margin = math.sqrt(kidney["value"] / volumes["kidney"]) * 0.6 * volumes["kidney"]
        assert kidney["high"] == pytest.approx(kidney["value"] + margin, rel=1e-3)
    assert not [w for w in record["warnings"] if w["code"] == "other-volumes"]
    path, _ = segmented_by_model(tmp_path, ends, calibrated_scans="digital patients")
    interval = of_side(measured(path, capsys=capsys), "right", "tumour")["interval"]
    assert interval.endswith("90% interval of the model, calibrated on digital patients")
    path, _ = segmented_by_model(tmp_path, ends, how="doubt")
    assert (
        "of 2 opinions, not calibrated"
        in of_side(measured(path, capsys=capsys), "right", "tumour")["interval"]
    )


def test_narrow_and_missing_intervals_leave_that_of_the_contour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = segmented_by_model(tmp_path, {"kidney": None, "tumour": (1.0, 1.0)}, how=None)
    found = measured(path, capsys=capsys)
    (tmp_path / "result.json").unlink()
    alone = measured(path, "--label", "1=kidney", "--label", "2=tumour", capsys=capsys)
    for name in ("kidney", "tumour"):
        one, other = of_side(found, "right", name), of_side(alone, "right", name)
        assert (one["low"], one["high"]) == (other["low"], other["high"])


def test_edited_labels_do_not_get_the_interval_of_those_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = segmented_by_model(tmp_path, {"tumour": (0.1, 5.0)})
    labels = phantom()[1]
    edited = labels.data.clone()
    edited[(labels.data == 2) & (torch.arange(48)[:, None] < 18)] = 0
    save(Volume(edited, labels.grid), path, overwrite=True)
    record = measured(path, capsys=capsys)
    assert [w["code"] for w in record["warnings"]].count("other-volumes") == 1
    assert "model" not in of_side(record, "right", "tumour")["interval"]


@pytest.mark.parametrize(
    "review",
    [
        {"structures": {"tumour": {"volume_ml": 5.0, "interval_ml": [6.0, 7.0]}}},
        {"structures": {"tumour": {"volume_ml": 5.0, "interval_ml": [6.0]}}},
        {"structures": {"tumour": {"volume_ml": "5", "interval_ml": None}}},
        {"structures": 3},
        {"level": "high"},
        {"opinions": None},
    ],
    ids=str,
)
def test_a_damaged_review_is_an_error(
    tmp_path: Path, review: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = segmented_by_model(tmp_path, {"tumour": (0.1, 5.0)}, **review)
    _, err = run(path, capsys=capsys, code=3)
    assert "the review of anna_seg.nii.gz in it is damaged" in " ".join(err.split())


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (Request(margin_mm=-1.0), "bad-margin"),
        (Request(margin_mm=50.5), "bad-margin"),
        (Request(before_ct=Path("x.nii.gz")), "no-before"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(files: Path, request_: Request, code: str) -> None:
    with pytest.raises(UsageError) as refused:
        measure(files / "anna_seg.nii.gz", request_)
    assert refused.value.code == code and refused.value.next_step


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--margin", "-1"], 2, "a margin of -1 mm"),
        (["--height", "5"], 2, "height 5 cm is not within 20 to 250 cm"),
        (["--height", "92", "--weight", "135"], 2, "135 kg at a height of 92 cm is not plausible"),
        (["--height", "59", "--weight", "45"], 2, "cm is not plausible"),
        (["--before-ct", "x.nii.gz"], 2, "an earlier scan was named, but not its labels"),
        (["--entered", "thrombus"], 2, "thrombus"),
        (["--criteria", "none.toml"], 3, "none.toml"),
        (["--ct", "none.nii.gz"], 3, "none.nii.gz"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(
    files: Path,
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, err = run(files / "anna_seg.nii.gz", *arguments, capsys=capsys, code=code)
    assert out == "" and err.count("\n") == 1 and words in err


def test_labels_compared_with_themselves_are_said(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "before.nii.gz"
    copy.write_bytes((files / "anna_seg.nii.gz").read_bytes())
    found = measured(files / "anna_seg.nii.gz", "--before", copy, capsys=capsys)
    assert "same-labels" in codes(found)


def test_the_margin_and_own_criteria_count(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kidseg.measure.criteria import DEFAULT

    path, remaining = files / "anna_seg.nii.gz", []
    for margin in ("0", "5", "20"):
        found = measured(path, "--margin", margin, capsys=capsys)["sides"]["right"]
        remaining.append(
            next(each["value"] for each in found if each["name"] == "parenchyma remaining")
        )
    assert 100 == remaining[0] > remaining[1] > remaining[2]
    own = tmp_path / "own.toml"
    text = DEFAULT.read_text().replace('signed_off = ""', 'signed_off = "Dr. A"')
    own.write_text(text.replace("threshold = 300.0", "threshold = 10.0"))
    found = measured(path, "--criteria", own, capsys=capsys)["criteria"]
    assert found["signed_off"] == "Dr. A"
    (answer,) = [a for a in found["answers"] if a["id"] == "volume-300-ml-at-diagnosis"]
    assert answer["verdict"] == "not met"


def test_several_files_are_measured_each_for_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table and a record of each; a bad one ends with 4; facts are of one patient."""
    scan, labels = phantom()
    for folder in ("labels", "scans"):
        (tmp_path / folder).mkdir()
    for name in ("anna", "ben", "carl"):
        save(labels, tmp_path / "labels" / f"{name}_seg.nii.gz")
        save(scan, tmp_path / "scans" / f"{name}_0000.nii.gz")
    folder, scans, out = tmp_path / "labels", tmp_path / "scans", tmp_path / "out"
    text, _ = run(folder, "--ct", scans, "-o", out, capsys=capsys)
    rows = [line.split() for line in text.splitlines() if line.startswith(("anna", "ben", "carl"))]
    assert [row[0] for row in rows] == ["anna", "ben", "carl"] * 2, "too wide for one table"
    assert len({tuple(row[1:]) for row in rows}) == 2
    lines = [line for line in text.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80 and "research use" in text.lower()
    assert text.count("nothing says what its values mean") == 3, "each warning is said"
    assert sorted(p.name for p in out.iterdir()) == [
        f"{name}_measurements.json" for name in ("anna", "ben", "carl")
    ]
    run(folder, "--ct", scans, "-o", out, capsys=capsys, code=2)
    (folder / "ben_seg.nii.gz").write_bytes(b"no volume")
    options = ("--ct", scans, "-o", out, "--overwrite", "--json")
    text, err = run(folder, *options, capsys=capsys, code=4)
    found = json.loads(text)
    assert [Path(one["labels"]).name[:4] for one in found["measured"]] == ["anna", "carl"]
    assert [Path(one["path"]).name for one in found["failed"]] == ["ben_seg.nii.gz"]
    assert "1 of 3 label files failed" in err
    for given in (("--height", "92"), ("--before", folder / "anna_seg.nii.gz")):
        run(folder, *given, capsys=capsys, code=2)
    run(folder, "--ct", scans / "anna_0000.nii.gz", capsys=capsys, code=2)


def test_what_a_cut_scan_leaves_unknown_is_no_lower_bound(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shares of what is cut off could be smaller and larger; volumes only larger."""
    labels = phantom()[1]
    half = labels.grid.crop((0, 0, 0), (18, 48, 76))
    save(Volume(labels.data[:, :18].contiguous(), half), tmp_path / "cut.nii.gz")
    call_cli("measure", str(tmp_path / "cut.nii.gz"), "--label=1=kidney", "--label=2=tumour")
    text = capsys.readouterr().out
    assert re.search(r"tumour volume +>", text) and "?: not known" in text
    assert re.search(r"parenchyma remaining +[\d.]+ \(\?\) %", text)
    assert "not measured" in text and ">=" in text


def test_a_heading_without_measures_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(Volume(torch.zeros((1, *GRID.shape), dtype=torch.uint8), GRID), tmp_path / "x.nii.gz")
    call_cli("measure", str(tmp_path / "x.nii.gz"), "--label=1=kidney")
    assert "Both sides" not in capsys.readouterr().out


def test_the_example_in_python(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "measure.md").read_text()
    (example,) = re.findall("```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "result").mkdir()
    for name in ("anna.nii.gz", "result/anna_seg.nii.gz"):
        (tmp_path / name).symlink_to(files / Path(name).name)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    out = capsys.readouterr().out
    assert "right kidney Quantity(name='volume'" in out and "right tumour 1" in out
