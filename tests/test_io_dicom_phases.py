"""One volume whose header suggests several, and several that the header hardly tells apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import Dataset

from dicom_files import SPACING, placed, refused, series
from findings import codes
from kidseg.io.dicom import list_series, read_series
from kidseg.io.dicom_continuity import unlikeness
from kidseg.io.dicom_evidence import keys
from kidseg.io.scan import ReadOptions

SLICES = 12
SHAPE = (SLICES, 64, 64)
WHOLE = ReadOptions(series="3", repair=True)
Value = Callable[[int], object]


def anatomy(seed: int = 0, *, enhanced: float = 0.0, noise: float = 12.0) -> np.ndarray:
    """int16 HU: a body with two organs that change from slice to slice."""
    z, y, x = np.meshgrid(np.linspace(-1, 1, SLICES), *[np.linspace(-1, 1, 64)] * 2, indexing="ij")
    values = np.where(np.hypot(x, y * (1.2 - 0.2 * z)) < 0.8 + 0.1 * z, 30.0, -1000.0)
    for side in (-0.4, 0.4):
        values[np.hypot(x - side * (1 - 0.4 * z), y - 0.3 * z) < 0.3 - 0.15 * z] = 60 + enhanced
    values += np.random.default_rng(seed).normal(0, noise, values.shape)
    return np.maximum(values, -1024).astype(np.int16)


def marked(folder: Path, marks: Mapping[str, Value], values: np.ndarray | None = None) -> Path:
    """A single stack; `marks` gives elements for each slice, or None for none."""

    def edit(ds: Dataset, k: int) -> None:
        for name, value in marks.items():
            if value(k) is None:
                delattr(ds, name)
            else:
                setattr(ds, name, value(k))

    return series(folder, anatomy() if values is None else values, edit=edit)


def interleaved(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Every second slice of one, in between those of the other."""
    return np.stack([one, other], axis=1).reshape(-1, *one.shape[1:])[: 2 * len(one)]


def odd_first(k: int) -> int:
    return k // 2 + 1 + (SLICES // 2 if k % 2 else 0)


JITTER: dict[str, tuple[str, Value]] = {
    "thickness": ("SliceThickness", lambda k: 2.5 if k % 2 else 2.5001),
    "thickness by 0.4 %": ("SliceThickness", lambda k: 2.5 if k % 2 else 2.49),
    "a thickness of each slice": ("SliceThickness", lambda k: 2.5 + 0.001 * (k % 5)),
    "field of view": ("ReconstructionDiameter", lambda k: 400 if k % 2 else 399.8),
    "tube voltage": ("KVP", lambda k: 120 if k % 2 else 119.9),
    "letters": ("ContrastBolusAgent", lambda k: ("Omni", "omni", "OMNI ")[k % 3]),
    "spaces": ("SeriesDescription", lambda k: "Abdomen  1" if k % 2 else " Abdomen 1"),
}
WEAK: dict[str, tuple[str, Value]] = {
    "acquisitions of two detectors": ("AcquisitionNumber", lambda k: k % 2 + 1),
    "acquisitions in turn": ("AcquisitionNumber", lambda k: k % 3 + 1),
    "acquisition missing in half": ("AcquisitionNumber", lambda k: k % 2 or ""),
    "odd slices first": ("InstanceNumber", odd_first),
    "two times": ("AcquisitionTime", lambda k: f"1010{10 + 20 * (k % 2)}"),
    "two times of reconstruction": ("ContentTime", lambda k: f"1010{10 + 20 * (k % 2)}"),
}
SETTINGS: dict[str, tuple[str, Value]] = {
    "two scan options": ("ScanOptions", lambda k: "A" if k in (4, 7) else "HELIX"),
    "two image types": ("ImageType", lambda k: ["ORIGINAL", "PRIMARY", *(["S"] * (k in (4, 6)))]),
    "two agents": ("ContrastBolusAgent", lambda k: "B" if k in (8, 10) else "A"),
    "two protocols": ("ProtocolName", lambda k: "a" if k < 7 or k == 9 else "b"),
    "thickness in turn": ("SliceThickness", lambda k: 2.5 if k % 2 else 2.4),
    "descriptions in turn": ("SeriesDescription", lambda k: f"Abdomen {k % 2}"),
}


@pytest.mark.row(7)
@pytest.mark.parametrize("name", JITTER)
def test_settings_that_only_jitter_are_the_same(tmp_path: Path, name: str) -> None:
    element, value = JITTER[name]
    scan = read_series(marked(tmp_path, {element: value}))
    assert scan.findings == ()
    assert torch.equal(scan.volume.data[0], torch.from_numpy(anatomy()))


@pytest.mark.row(7)
@pytest.mark.parametrize("name", WEAK)
def test_counters_that_alternate_in_one_anatomy_are_said(tmp_path: Path, name: str) -> None:
    element, value = WEAK[name]
    scan = read_series(marked(tmp_path, {element: value}))
    assert codes(scan) == ["joined-stacks"]
    assert torch.equal(scan.volume.data[0], torch.from_numpy(anatomy()))


@pytest.mark.row(7)
@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_differ_in_one_anatomy_are_said(tmp_path: Path, name: str) -> None:
    element, value = SETTINGS[name]
    scan = read_series(marked(tmp_path, {element: value}))
    assert "mixed-settings" in codes(scan)
    assert torch.equal(scan.volume.data[0], torch.from_numpy(anatomy()))


@pytest.mark.row(7)
@pytest.mark.parametrize("missing", [3, 8])
def test_two_deviating_slices_are_no_volume_where_one_is_missing(
    tmp_path: Path, missing: int
) -> None:
    element, value = SETTINGS["two scan options"]
    marked(tmp_path, {element: value})
    next(tmp_path.glob(f"*-{missing}.dcm")).unlink()
    refused(tmp_path, code="missing-slices")


@pytest.mark.ci
@pytest.mark.row(7)
@pytest.mark.parametrize("name", [*WEAK, "thickness in turn", "descriptions in turn"])
def test_the_same_marks_on_two_phases_make_volumes(tmp_path: Path, name: str) -> None:
    """Pixels that alternate; two phases are not even offered as one volume."""
    element, value = (WEAK | SETTINGS)[name]
    period = 3 if name == "acquisitions in turn" else 2
    values, other = anatomy(), anatomy(1, enhanced=120.0)
    for k in range(SLICES):
        if k % period:
            values[k] = np.roll(other[k], 9 - 6 * (k % period), axis=0)
    message = refused(marked(tmp_path, {element: value}, values), code="several-volumes")
    assert f"{period} volumes" in message
    if period == 2:
        assert "--repair" not in message
        refused(tmp_path, WHOLE, "several-volumes")
    for choice in re.findall(r"series (\S+) '", message):
        scan = read_series(tmp_path, ReadOptions(series=choice))
        assert scan.volume.grid.shape[0] == SLICES // period


STRONG: dict[str, dict[str, Value]] = {
    "acquisition and time": {
        "AcquisitionNumber": lambda k: k % 2 + 1,
        "AcquisitionTime": lambda k: f"1010{10 + 30 * (k % 2)}",
    },
    "contrast and time": {
        "ContrastBolusAgent": lambda k: "Omni" if k % 2 else "",
        "AcquisitionTime": lambda k: f"1010{10 + 30 * (k % 2)}",
    },
    "trigger time": {"TriggerTime": lambda k: 100 + 300 * (k % 2)},
    "temporal position": {"TemporalPositionIdentifier": lambda k: k % 2 + 1},
    "echo time": {"EchoTime": lambda k: 2.3 * (k % 2 + 1)},
    "b-value": {"DiffusionBValue": lambda k: 500.0 * (k % 2)},
}


@pytest.mark.ci
@pytest.mark.row(7)
@pytest.mark.parametrize("name", STRONG)
def test_a_clear_header_is_believed_but_is_no_dead_end(tmp_path: Path, name: str) -> None:
    message = refused(marked(tmp_path, STRONG[name]), code="several-volumes")
    assert "--series 3.1" in message and "--series 3 --repair" in message
    refused(tmp_path, ReadOptions(repair=True), "several-volumes")
    for k in (1, 2):
        scan = read_series(tmp_path, ReadOptions(series=f"3.{k}", repair=True))
        assert scan.volume.grid.shape[0] == SLICES // 2
    for whole in (WHOLE, ReadOptions(series="1.2.3", repair=True)):
        scan = read_series(tmp_path, whole)
        assert codes(scan)[0] == "repaired-volumes" and "ignored-series" not in codes(scan)
        assert torch.equal(scan.volume.data[0], torch.from_numpy(anatomy()))


@pytest.mark.row(7)
@pytest.mark.parametrize("kind", ["noise", "copies", "constant"])
def test_where_pixels_cannot_decide_the_volumes_are_listed(tmp_path: Path, kind: str) -> None:
    half = anatomy()[::2]
    values = {
        "noise": np.random.default_rng(0).normal(0, 20, SHAPE).astype(np.int16),
        "copies": interleaved(half, half),
        "constant": np.full(SHAPE, 40, np.int16),
    }[kind]
    folder = marked(tmp_path, {"AcquisitionNumber": lambda k: k % 2 + 1}, values)
    assert "--series 3 --repair" in refused(folder, code="several-volumes")
    assert [s.n_images for s in list_series(folder)] == [6, 6]


@pytest.mark.row(7)
def test_two_phases_of_which_one_has_gaps(tmp_path: Path) -> None:
    """Not even with repair are slices of two phases mixed."""
    phases = [anatomy(), anatomy(1, enhanced=120.0)]
    kept = [k for k in range(2 * SLICES) if k not in (5, 11, 15)]
    values = interleaved(*phases)[kept]
    values[1::2] += np.int16(50) * (values[1::2] > 0)
    depths = np.array(kept) * SPACING[0] / 2

    def edit(ds: Dataset, n: int) -> None:
        ds.AcquisitionNumber = kept[n] % 2 + 1

    series(tmp_path, values, positions=placed(depths), edit=edit)
    refused(tmp_path, WHOLE, "several-volumes")
    assert read_series(tmp_path, ReadOptions(series="3.1")).volume.grid.shape[0] == SLICES
    refused(tmp_path, ReadOptions(series="3.2"), "missing-slices")


@pytest.mark.row(7)
def test_pixels_that_cannot_be_decoded_decide_nothing(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        ds.AcquisitionNumber = k % 2 + 1
        ds.PixelRepresentation = 7

    series(tmp_path, anatomy(), edit=edit)
    assert len(list_series(tmp_path)) == 2
    refused(tmp_path, WHOLE, "unsupported-type")


def test_unlikeness_of_parts() -> None:
    one, other = (torch.from_numpy(v[None].astype(np.float32)) for v in (anatomy(), anatomy(1)))
    turns = [k % 2 for k in range(SLICES)]
    assert unlikeness(one, turns) < 0.9
    other[:, ::2] = one[:, ::2] + 100
    assert unlikeness(other, turns) > 1.3
    assert unlikeness(one, [0] * SLICES) == 1.0
    assert unlikeness(one, [0] * 6 + [1] * 6) == 1.0
    for count in (3, 4):
        assert unlikeness(one, [k % count for k in range(SLICES)]) < 0.9


@pytest.mark.parametrize(
    ("name", "texts", "distinct"),
    [
        ("SliceThickness", ["4", "4.0001", "3.99"], 1),
        ("SliceThickness", ["4", "3", "4.01"], 2),
        ("SliceThickness", ["4", "", "4.01", "thick", "Thick "], 3),
        ("SliceThickness", ["1", "1.004", "1.008", "1.012", "1.016"], 2),
        ("KVP", ["120", "120.0", "80", "140"], 3),
        ("TemporalPositionIdentifier", ["100", "101"], 2),
        ("EchoTime", ["100", "100.5"], 2),
        ("ImageType", ["A\\b", "a\\B ", "a\\c"], 2),
    ],
)
def test_equal_values(name: str, texts: list[str], distinct: int) -> None:
    assert len(set(keys(name, texts))) == distinct
    assert keys(name, texts[::-1])[::-1] == keys(name, texts), "the order does not matter"
