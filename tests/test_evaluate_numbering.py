"""Numbers of labels mean what the folder of each file says, in whatever order they are."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from commands import call_cli
from kidseg.errors import InputError
from kidseg.evaluate import evaluate
from kidseg.geometry import Grid, Volume
from kidseg.io import save
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.segment.truth import find_references

# Kidney: columns 2 to 9; tumour 10 to 13, of which the prediction misses the last.
NUMBERS: dict[str, dict[str, int]] = {
    "usual": {"kidney": 1, "tumour": 2},
    "swapped": {"tumour": 1, "kidney": 2},
    "with gaps": {"Tumor": 2, "kidneys": 5},
}


def write(path: Path, numbers: dict[str, int], last: int) -> None:
    values = np.zeros((4, 12, 24), np.uint8)
    kidney, tumour = sorted(numbers, key=str.casefold)
    values[1:3, 4:9, 2:10], values[1:3, 4:9, 10:last] = numbers[kidney], numbers[tumour]
    grid = Grid.from_spacing(values.shape, (3.0, 1.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    save(Volume(torch.from_numpy(values)[None], grid), path)


def describe(folder: Path, numbers: dict[str, int]) -> None:
    """As nnU-Net does."""
    content: dict[str, Any] = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **numbers},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def record(folder: Path, numbers: dict[str, int]) -> None:
    """As kidseg segment does."""
    names = {str(number): name for name, number in numbers.items()}
    entry = {"name": "a", "outputs": ["a_seg.nii.gz"], "labels": names}
    (folder / "result.json").write_text(json.dumps({"format": 1, "scans": [entry], "failed": []}))


def dice(pred: Path, ref: Path, out: Path) -> tuple[dict[str, float], list[str]]:
    """{structure: Dice} without the names of a data set, and the codes of findings."""
    summary = evaluate(pred, ref, out)
    found = {name: one["dice"]["mean"] for name, one in summary["structures"].items()}
    tumour = next(value for name, value in found.items() if name.lower().startswith("tumo"))
    kidney = next(value for name, value in found.items() if name in ("kidney", "kidneys"))
    return {"kidney": kidney, "tumour": tumour}, [f["code"] for f in summary["findings"]]


TRUE_DICE = {"kidney": 1.0, "tumour": pytest.approx(2 * 3 / 7)}


@pytest.mark.parametrize(("ours", "theirs"), list(product(NUMBERS, repeat=2)))
@pytest.mark.parametrize("said", [describe, record])
def test_labels_are_compared_by_what_they_mean(
    tmp_path: Path, ours: str, theirs: str, said: Any
) -> None:
    """Reference: labelsTr of a data set, named as a data set, a folder and a file."""
    pred, data = tmp_path / "pred", tmp_path / "data"
    write(pred / "a_seg.nii.gz", NUMBERS[ours], 13)
    write(data / "labelsTr" / "a.nii.gz", NUMBERS[theirs], 14)
    said(pred, NUMBERS[ours])
    describe(data, NUMBERS[theirs])
    labels = data / "labelsTr"
    pairs = ((pred, data), (pred, labels), (pred / "a_seg.nii.gz", labels / "a.nii.gz"))
    for k, (found, wanted) in enumerate(pairs):
        figures, codes = dice(found, wanted, tmp_path / f"out{k}")
        assert figures == TRUE_DICE, (found, wanted)
        assert ("labels-by-name" in codes) == (ours != theirs), codes


@pytest.mark.parametrize("ours", list(NUMBERS))
def test_references_without_description_have_the_numbers_of_the_predictions(
    tmp_path: Path, ours: str
) -> None:
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    write(pred / "a_seg.nii.gz", NUMBERS[ours], 13)
    write(ref / "a.nii.gz", NUMBERS[ours], 14)
    record(pred, NUMBERS[ours])
    assert dice(pred, ref, tmp_path / "out") == (TRUE_DICE, [])
    record(ref, NUMBERS[ours])  # of another file: says nothing
    assert dice(pred, ref, tmp_path / "again") == (TRUE_DICE, [])


def test_two_segmentations_with_numbers_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, numbers, last in ((one, "usual", 13), (other, "swapped", 14)):
        write(folder / "a_seg.nii.gz", NUMBERS[numbers], last)
        record(folder, NUMBERS[numbers])
    assert dice(one, other, tmp_path / "out")[0] == TRUE_DICE
    assert call_cli("evaluate", one, other, "-o", tmp_path / "said") == 0
    said = capsys.readouterr().out
    assert "1 kidney, 2 tumour, not 1 tumour, 2 kidney; they were taken by their names" in said


def test_a_label_that_cannot_be_told_is_not_mixed_with_another(tmp_path: Path) -> None:
    """Renumbered, "adrenal" would keep its number, which is that of the kidney."""
    pred, data = tmp_path / "pred", tmp_path / "data"
    write(pred / "a_seg.nii.gz", {"kidney": 2, "spleen": 1}, 13)
    describe(pred, {"kidney": 2, "spleen": 1})
    write(data / "labelsTr" / "a.nii.gz", NUMBERS["usual"], 14)
    describe(data, NUMBERS["usual"])
    with pytest.raises(InputError, match="'spleen' is none of the labels") as raised:
        evaluate(pred, data, tmp_path / "out")
    assert raised.value.code == "unknown-segment" and "dataset.json" in raised.value.next_step


def test_labels_that_seem_exchanged_are_said(tmp_path: Path) -> None:
    """The numbers are those of the data set; but the kidney is where the tumour should be."""
    pred, data = tmp_path / "pred", tmp_path / "data"
    write(pred / "a_seg.nii.gz", NUMBERS["swapped"], 13)
    write(data / "labelsTr" / "a.nii.gz", NUMBERS["usual"], 14)
    describe(data, NUMBERS["usual"])
    figures, codes = dice(pred, data, tmp_path / "out")
    assert figures == {"kidney": 0.0, "tumour": 0.0} and codes == ["exchanged-labels"]


@pytest.mark.parametrize("outputs", [None, 5, {}, [None], "a_seg.nii.gz"])
def test_a_damaged_record_says_nothing(tmp_path: Path, outputs: Any) -> None:
    write(tmp_path / "pred" / "a_seg.nii.gz", NUMBERS["usual"], 13)
    write(tmp_path / "ref" / "a.nii.gz", NUMBERS["usual"], 14)
    entry = {"name": "a", "outputs": outputs, "labels": {"1": "tumour", "2": "kidney"}}
    (tmp_path / "pred" / "result.json").write_text(json.dumps({"scans": [entry]}))
    assert dice(tmp_path / "pred", tmp_path / "ref", tmp_path / "out") == (TRUE_DICE, [])


def test_the_reference_of_a_figure_has_the_numbers_of_its_data_set(tmp_path: Path) -> None:
    file = tmp_path / "data" / "labelsTr" / "a.nii.gz"
    write(file, NUMBERS["swapped"], 14)
    describe(tmp_path / "data", NUMBERS["swapped"])
    scan = tmp_path / "scan.nii.gz"
    found = find_references({scan: "a"}, file, KIDNEY_TUMOUR, None)[scan]
    labels, ignore = found.on(Grid.from_spacing((4, 12, 24), (3.0, 1.0, 1.0)))
    assert ignore is None
    assert [int((labels.data == n).sum()) for n in (1, 2)] == [2 * 5 * 8, 2 * 5 * 4]
