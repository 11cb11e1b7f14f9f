"""DICOM objects to measure: on which images they lie, and which of their structures are lesions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import dcmread
from pydicom.uid import generate_uid

from annotated_folders import Roi, headers_of, square, structure_set
from commands import call_cli
from dicom_files import save as save_dicom
from dicom_files import series
from kidseg.cases.roi_rules import RoiRules
from kidseg.errors import InputError, KidsegError, UsageError
from kidseg.geometry import Volume
from kidseg.io import ReadOptions, read, save
from kidseg.io.dicom_source import SourceSeries, read_source
from kidseg.io.dicomseg import write_dicom_segmentation
from kidseg.labels import LabelSchema
from kidseg.measure.annotated_labels import find_annotated
from kidseg.measure.label_reading import read_labelled
from kidseg.measure.measuring import Measured, Request, measure
from kidseg.measure.sides import measure_sides
from labelled_series import ORIGIN

SHAPE = (10, 40, 72)
KIDNEYS = [(slice(1, 9), slice(4, 36), slice(40, 64))]
FRONT, BACK = (slice(6, 16), slice(6, 18)), (slice(24, 34), slice(6, 18))
TUMOUR = ("108369006", "SCT")
ANY = ReadOptions(values="any")
VOXEL_ML = 2.5 * 0.75 * 0.5 / 1000

Block = tuple[slice, slice, slice]


def block(place: tuple[slice, slice], slices: int) -> Block:
    return (slice(2, 2 + slices), *place)


def images(folder: Path, uid: str) -> SourceSeries:
    """A trunk of soft tissue, which fills the image but for a rim of air."""
    hu = np.full(SHAPE, -1000, np.int16)
    inside = hu[:, 2:-2, 2:-2]
    inside[:] = np.random.default_rng(0).normal(40, 15, inside.shape)
    return read_source(series(folder / "ct", hu, uid=uid), ANY)


def segmented(folder: Path, uid: str, blocks: Mapping[str, Block]) -> Path:
    """A Segmentation by kidseg of a kidney and these tumours, on a series of its own."""
    source = images(folder, uid)
    values = np.zeros(SHAPE, np.uint8)
    for place in KIDNEYS:
        values[place] = 1
    for number, place in enumerate(blocks.values(), 2):
        values[place] = number
    labels = Volume(torch.from_numpy(values)[None], source.native)
    schema = LabelSchema.from_names({1: "kidney", **dict(enumerate(blocks, 2))})
    with (folder / "object.dcm").open("wb") as file:
        write_dicom_segmentation(labels, schema, source, ORIGIN, file)
    return folder / "object.dcm"


def renamed(path: Path, tracking: Mapping[str, tuple[str, str]]) -> Path:
    """As of another program: its tumours have one name, and {segment: (Tracking ID, UID)}."""
    ds = dcmread(path)
    for item in ds.SegmentSequence:
        if item.SegmentLabel in tracking:
            item.TrackingID, item.TrackingUID = tracking[item.SegmentLabel]
            item.SegmentLabel = "Wilms"
    ds.save_as(path)
    return path


def contoured(folder: Path, uid: str, blocks: Mapping[str, Block]) -> Path:
    """A Structure Set of these tumours, whose tracking ids are their keys, each with a new UID."""
    images(folder, uid)
    rois = [
        Roi(
            name="Wilms",
            contours=[
                square(k, (rows.start, columns.start), (rows.stop, columns.stop))
                for k in range(slices.start, slices.stop)
            ],
            code=TUMOUR,
            tracking_id=name,
        )
        for name, (slices, rows, columns) in blocks.items()
    ]
    save_dicom(structure_set(rois, headers_of(folder / "ct")), folder / "object.dcm")
    return folder / "object.dcm"


def compared(before: Path, after: Path) -> Measured:
    request = Request(ct=after.parent / "ct", before=before, before_ct=before.parent / "ct")
    return measure(after, request)


def lesions(measured: Measured) -> list[tuple[str, float, float]]:
    """(how it was matched, voxels before, voxels now) of each lesion."""
    return sorted(
        (
            one.matched,
            round(one.volume_before.value / VOXEL_ML),
            round(one.volume_after.value / VOXEL_ML),
        )
        for one in measured.changes
        if one.matched != "side"
    )


@pytest.mark.parametrize("kind", ["tracking uid", "tracking id", "structure set", "neither"])
def test_identifiers_count_before_overlap(tmp_path: Path, kind: str) -> None:
    """Two lesions have changed places: the large one has become small, the small one has grown."""
    before = {"one": block(FRONT, 5), "two": block(BACK, 2)}
    after = {"one": block(BACK, 1), "two": block(FRONT, 6)}
    if kind == "structure set":
        paths = [contoured(tmp_path / n, n, one) for n, one in (("1.2", before), ("1.3", after))]
    else:
        names = {"one": "tumour", "two": "Wilms"}
        paths = []
        uids = {name: generate_uid() for name in names}
        for n, blocks in (("1.2", before), ("1.3", after)):
            found = {names[name]: place for name, place in blocks.items()}
            paths.append(segmented(tmp_path / n, n, found))
            if kind == "tracking uid":  # of which each time has other names
                renamed(paths[-1], {names[k]: (f"{n} {k}", uids[k]) for k in names})
            if kind == "tracking id":
                renamed(paths[-1], {names[k]: (k, generate_uid()) for k in names})
    found = lesions(compared(*paths))
    if kind == "neither":  # what kidseg itself wrote identifies labels, not lesions
        assert found == [("overlap", 240, 120), ("overlap", 600, 720)]
    else:
        assert found == [("tracking id", 240, 720), ("tracking id", 600, 120)]


def test_a_structure_with_identifiers_is_one_lesion(tmp_path: Path) -> None:
    path = segmented(tmp_path, "1.2", {"tumour": block(FRONT, 6), "Wilms": block(BACK, 6)})
    uid = generate_uid()
    renamed(path, dict.fromkeys(("tumour", "Wilms"), ("right", uid)))
    (tumour,) = measure(path, Request(ct=tmp_path / "ct")).measurement.tumours
    assert tumour.tracking == "right"
    volume = tumour.quantity("volume")
    assert volume is not None and volume.value == pytest.approx(2 * 720 * VOXEL_ML)


def test_names_that_do_not_identify_are_none(tmp_path: Path) -> None:
    """Two structures with one name: of different lesions by their UIDs, or without UIDs unknown."""
    path = contoured(tmp_path, "1.2", {"a": block(FRONT, 4), "b": block(BACK, 6)})
    ds = dcmread(path)
    for item in ds.RTROIObservationsSequence:
        item.TrackingID = "tumour"
    ds.save_as(path)
    uids = {str(item.TrackingUID) for item in ds.RTROIObservationsSequence}
    known = read_labelled(path, ct=tmp_path / "ct")
    assert set(known.tracking.values()) == set(known.tracking_uids.values()) == uids
    for item in ds.RTROIObservationsSequence:
        del item.TrackingUID
    ds.save_as(path)
    assert not read_labelled(path, ct=tmp_path / "ct").tracking


def test_a_segmentation_is_measured_like_the_volume_it_was_made_of(tmp_path: Path) -> None:
    path = segmented(tmp_path, "1.2", {"tumour": block(FRONT, 6)})
    found = read_labelled(path, ct=tmp_path / "ct")
    assert found.schema.names == {1: "kidney", 2: "tumour"} and not found.tracking
    save(found.labels, tmp_path / "a_seg.nii.gz")
    as_file = measure(tmp_path / "a_seg.nii.gz", Request(ct=tmp_path / "ct")).measurement
    measured = measure(path, Request(ct=tmp_path / "ct", opinions=(path,))).measurement
    assert len(measured.structures) == 2
    for one, other in zip(measured.structures, as_file.structures, strict=True):
        assert one.id == other.id and one.borders == other.borders
        for quantity in one.quantities:
            same = other.quantity(quantity.name)
            assert same is not None and quantity.value == pytest.approx(same.value)


def test_the_command_line_takes_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for n in ("1.2", "1.3"):
        images(tmp_path / n, n)
        rois = [
            Roi(name=name, contours=[square(k, (10, 10), (24, 24)) for k in slices])
            for name, slices in (("RTKIDNEY1", (2, 3)), ("RTKIDNEY2", (6, 7)), ("Liver", (4,)))
        ]
        ds = structure_set(rois, headers_of(tmp_path / n / "ct"))
        paths.append(save_dicom(ds, tmp_path / n / "object.dcm"))
    (tmp_path / "rules.toml").write_text("[labels]\n'Wilms tumour' = '(RT|LT) ?KIDNEY.*'\n")
    words = ["measure", paths[1], "--ct", tmp_path / "1.3/ct", "--before", paths[0], "--json"]
    words += ["--before-ct", tmp_path / "1.2/ct"]

    def run(*more: str | Path) -> tuple[int, dict[str, Any]]:
        code = call_cli(*words, *more)
        return code, json.loads(capsys.readouterr().out)

    assert run()[0] == 3, "the names are unclear"
    code, result = run("--roi-rules", tmp_path / "rules.toml")
    assert code == 0 and {one["tracking"] for one in result["structures"]} == {
        "RTKIDNEY1",
        "RTKIDNEY2",
    }
    changes = [one for one in result["response"]["changes"] if one["matched"] != "side"]
    assert [one["matched"] for one in changes] == ["tracking id"] * 2
    assert "no-kidney-label" in {one["code"] for one in result["warnings"]}


def test_several_objects_find_their_series_in_one_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By their references, whatever the names; a volume beside them by its name."""
    objects = []
    for n, count in (("1.2", 2), ("1.3", 5)):
        blocks = {"tumour": block(FRONT, count)}
        objects.append(segmented(tmp_path / "scans" / n, n, blocks).rename(tmp_path / f"{n}.dcm"))
    whole = read_labelled(objects[0], ct=tmp_path / "scans")
    save(whole.labels, tmp_path / "anna_seg.nii.gz")
    save(read(tmp_path / "scans/1.2/ct").volume, tmp_path / "scans/anna.nii.gz")
    for files in (objects, [tmp_path / "anna_seg.nii.gz", objects[1]]):
        assert call_cli("measure", *files, "--ct", tmp_path / "scans", "--json") == 0
        found = json.loads(capsys.readouterr().out)["measured"]
        volumes = [one["structures"][-1]["quantities"][0]["value"] for one in found]
        assert volumes == pytest.approx([240 * VOXEL_ML, 600 * VOXEL_ML])


def test_more_lesions_than_numbers_of_labels_are_refused(tmp_path: Path) -> None:
    """uint8 counts to 255; background and the labels of the rules are among these."""
    path = contoured(tmp_path / "a", "1.2", {str(k): block(FRONT, 1) for k in range(256)})
    with pytest.raises(InputError) as caught:
        measure(path, Request(ct=tmp_path / "a" / "ct"))
    assert caught.value.code == "too-many-labels" and "256 lesions" in caught.value.cause
    assert "--roi-rules" in caught.value.next_step


def test_what_is_refused(tmp_path: Path) -> None:
    path = segmented(tmp_path / "a", "1.2", {"tumour": block(FRONT, 6)})
    images(tmp_path / "b", "1.3")
    (tmp_path / "empty").mkdir()
    save(read_labelled(path, ct=tmp_path / "a/ct").labels, tmp_path / "a_seg.nii.gz")
    ct, rules = tmp_path / "a/ct", RoiRules(patterns={"kidney": ("x",)}, ignore=(".*",))
    cases: list[tuple[Path, Request, type[KidsegError], str]] = [
        (path, Request(), InputError, "series-required"),
        (path, Request(ct=ct, before=path), InputError, "series-required"),
        (path, Request(ct=tmp_path / "b/ct"), InputError, "missing-images"),
        (path, Request(ct=tmp_path / "empty"), InputError, "missing-images"),
        (path, Request(ct=tmp_path / "none"), InputError, "not-found"),
        (path, Request(ct=ct, rules=rules), InputError, "no-label"),
        (path, Request(ct=ct, names={1: "kidney"}), UsageError, "named-structures"),
        (tmp_path / "a_seg.nii.gz", Request(rules=rules), UsageError, "no-annotations"),
    ]
    for labels, request, kind, code in cases:
        with pytest.raises(kind) as caught:
            measure(labels, request)
        assert caught.value.code == code


def test_a_kidney_whose_name_states_a_side_is_whole(tmp_path: Path) -> None:
    """It crosses the midline; without a side in its name it is divided as a horseshoe kidney."""
    headers = images(tmp_path, "1.2.3") and headers_of(tmp_path / "ct")
    contours = [square(k, (10, 18), (30, 54)) for k in range(2, 8)]
    whole = 6 * 20 * 36 * VOXEL_ML
    for name, right, left, codes in (
        ("Left Kidney", 0.0, whole, set()),
        ("RT KIDNEY", whole, 0.0, set()),
        ("Kidney", whole / 2, whole / 2, {"horseshoe-kidney"}),
    ):
        path = tmp_path / f"{name}.dcm"
        save_dicom(structure_set([Roi(name=name, contours=contours)], headers), path)
        found = read_labelled(path, ct=tmp_path / "ct")
        sides = measure_sides(found.labels, found.schema, found.midline)
        assert sides is not None
        volumes = [side.volumes_ml["kidney"] for side in (sides.right, sides.left)]
        assert volumes == pytest.approx([right, left], rel=0.1), name
        assert {f.code for f in sides.findings} & {"horseshoe-kidney"} == codes


def test_kidneys_of_two_sides_are_labels_of_their_own(tmp_path: Path) -> None:
    """Beside a lesion, whose number stays its own."""
    headers = images(tmp_path, "1.2.3") and headers_of(tmp_path / "ct")
    rois = [
        Roi(name=name, contours=[square(4, (10, start), (30, start + 12))], tracking_id=tracking)
        for name, start, tracking in (
            ("Left Kidney", 44, ""),
            ("Right Kidney", 8, ""),
            ("left kidney", 58, ""),
            ("Wilms", 26, "lesion 1"),
        )
    ]
    save_dicom(structure_set(rois, headers), tmp_path / "object.dcm")
    found = find_annotated(tmp_path / "object.dcm", tmp_path / "ct", None, by_side=True)
    assert sorted(found.schema.names.values()) == ["Wilms", "left kidney", "right kidney"]
    assert list(found.tracking.values()) == ["lesion 1"]
    assert len({part.label for part in found.annotation.parts}) == 3
