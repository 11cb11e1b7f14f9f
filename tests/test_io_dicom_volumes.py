"""DICOM series that hold several volumes, or parts of one: what is told apart, what is joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import Dataset
from pydicom.uid import EnhancedCTImageStorage, generate_uid

from dicom_files import (
    AXIAL,
    SPACING,
    Edit,
    assign,
    blank,
    body,
    placed,
    refused,
    save,
    series,
    set_pixels,
)
from findings import codes
from kidseg.io.dicom import list_series, read_series
from kidseg.io.scan import ReadOptions

REPAIR = ReadOptions(repair=True)
SLICES = 5
STEP = SPACING[0]
Value = Callable[[int, int], object]


def chosen(name: str, *, repair: bool = False) -> ReadOptions:
    return ReadOptions(series=name, repair=repair)


def phases(
    folder: Path,
    marks: Mapping[str, Value],
    *,
    offset_mm: float = STEP / 2,
    count: int = 2,
    slices: int = SLICES,
    seed: int = 0,
) -> list[np.ndarray]:
    """Stacks of the same extent in one series; `marks` gives elements for (phase, slice).

    Instance numbers follow the position, so that they say nothing.
    """
    depths = [p * offset_mm + k * STEP for p in range(count) for k in range(slices)]
    stacks = [body(p, (slices, 32, 40)) for p in range(count)]
    order = np.random.default_rng(seed).permutation(count * slices)
    numbers = np.unique(depths, return_inverse=True)[1] + 1

    def edit(ds: Dataset, n: int) -> None:
        phase, k = divmod(int(order[n]), slices)
        ds.InstanceNumber = int(numbers[order[n]])
        for name, value in marks.items():
            if (given := value(phase, k)) is not None:
                setattr(ds, name, given)

    values = np.concatenate(stacks)
    positions = placed(depths)
    series(folder, values[order], positions=positions[order], edit=edit)
    return stacks


def clock(seconds: float) -> str:
    return f"{10 + int(seconds) // 3600:02d}{int(seconds) // 60 % 60:02d}{seconds % 60:09.6f}"


JITTER = np.random.default_rng(0).uniform(-3, 3, (4, 16))
SEPARATORS: dict[str, tuple[str, Value]] = {
    "acquisition": ("AcquisitionNumber", lambda p, k: p + 1),
    "an acquisition for each slice": ("AcquisitionNumber", lambda p, k: 10 * p + k + 1),
    "acquisition in one phase only": ("AcquisitionNumber", lambda p, k: p or None),
    "acquisition time": ("AcquisitionTime", lambda p, k: clock(60 * p)),
    "acquisition time of each slice": ("AcquisitionTime", lambda p, k: clock(60 * p + 0.4 * k)),
    "disordered times of each slice": (
        "AcquisitionTime",
        lambda p, k: clock(60 * p + JITTER[p, k] + 5),
    ),
    "times that fall": ("AcquisitionTime", lambda p, k: clock(60 * p + 20 - k)),
    "date and time": ("AcquisitionDateTime", lambda p, k: f"20200101{clock(60 * p + k)}"),
    "content time": ("ContentTime", lambda p, k: clock(60 * p + 0.1 * k)),
    "creation time": ("InstanceCreationTime", lambda p, k: clock(60 * p + k)),
    "trigger time": ("TriggerTime", lambda p, k: 100 + 300 * p),
    "trigger time with heart rate": (
        "TriggerTime",
        lambda p, k: f"{100 + 300 * p + JITTER[p, k]:.2f}",
    ),
    "temporal position": ("TemporalPositionIdentifier", lambda p, k: p + 1),
    "echo": ("EchoNumbers", lambda p, k: p + 1),
    "echo time": ("EchoTime", lambda p, k: 2.3 * (p + 1)),
    "b-value": ("DiffusionBValue", lambda p, k: 500.0 * p),
    "image type": ("ImageType", lambda p, k: ["ORIGINAL", "PRIMARY", "AXIAL", f"E{p}"]),
    "kernel": ("ConvolutionKernel", lambda p, k: f"B{3 + 4 * p}0f"),
    "tube voltage": ("KVP", lambda p, k: 80 + 60 * p),
    "contrast agent": ("ContrastBolusAgent", lambda p, k: "Omnipaque" if p else None),
    "filter": ("FilterType", lambda p, k: f"F{p}"),
    "frame of reference": ("FrameOfReferenceUID", lambda p, k: f"1.2.9.{p + 1}"),
    "description": ("SeriesDescription", lambda p, k: ("arterial", "portal")[p]),
    "instance number alone": ("InstanceNumber", lambda p, k: SLICES * p + k + 1),
}


@pytest.mark.ci
@pytest.mark.row(7)
@pytest.mark.parametrize("offset_mm", [STEP / 2, STEP / 3, 0.0], ids=["between", "third", "same"])
@pytest.mark.parametrize("name", SEPARATORS)
def test_overlapping_stacks_are_volumes_to_choose_from(
    tmp_path: Path, name: str, offset_mm: float
) -> None:
    element, value = SEPARATORS[name]
    stacks = phases(tmp_path, {element: value}, offset_mm=offset_mm)
    for options in (ReadOptions(), REPAIR, chosen("3"), chosen("1.2.3")):
        message = refused(tmp_path, options, "several-volumes")
        assert "2 volumes in one series" in message and "--series 3.1" in message
        assert message.count(f"CT, {SLICES} images") == 2
    for k, stack in enumerate(stacks):
        for choice in (f"3.{k + 1}", f"1.2.3/{k + 1}", f"1.2.3.{k + 1}"):
            scan = read_series(tmp_path, chosen(choice))
            assert codes(scan) == ["ignored-series"]
            assert torch.equal(scan.volume.data[0], torch.from_numpy(stack))
            assert scan.volume.grid.spacing_mm[0].item() == pytest.approx(STEP)
    refused(tmp_path, chosen("3.3"), "no-such-series")


@pytest.mark.row(7)
@pytest.mark.parametrize("seed", range(4))
def test_any_number_of_phases(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    count, slices = int(random.integers(2, 5)), int(random.integers(3, 8))
    stacks = phases(
        tmp_path,
        {"AcquisitionNumber": lambda p, k: 7 * p + 2},
        offset_mm=STEP / count * int(random.integers(0, 2)),
        count=count,
        slices=slices,
        seed=seed,
    )
    listed = list_series(tmp_path)
    assert [s.n_images for s in listed] == [slices] * count
    for k, stack in enumerate(stacks):
        assert f"acquisition {7 * k + 2}" in listed[k].label
        scan = read_series(tmp_path, chosen(f"3.{k + 1}"))
        assert torch.equal(scan.volume.data[0], torch.from_numpy(stack))


@pytest.mark.row(7)
def test_two_settings_make_four_volumes(tmp_path: Path) -> None:
    marks: dict[str, Value] = {
        "AcquisitionNumber": lambda p, k: p // 2 + 1,
        "ConvolutionKernel": lambda p, k: ("soft", "bone")[p % 2],
    }
    stacks = phases(tmp_path, marks, offset_mm=0.0, count=4)
    labels = {s.label for s in list_series(tmp_path)}
    assert len(labels) == 4 and all("kernel" in t and "acquisition" in t for t in labels)
    found = [read_series(tmp_path, chosen(f"3.{k}")).volume.data[0] for k in range(1, 5)]
    for stack in stacks:
        assert sum(torch.equal(volume, torch.from_numpy(stack)) for volume in found) == 1


@pytest.mark.row(7)
def test_a_phase_with_a_missing_slice_is_no_reason_to_mix(tmp_path: Path) -> None:
    phases(tmp_path, {"AcquisitionTime": lambda p, k: clock(60 * p + k)}, slices=8)
    files = {f: str(f) for f in tmp_path.iterdir()}
    victim = next(
        f for f in files if "10:00" not in str(f) and read_series(f).native.mm([0.0, 0, 0])[2] == 45
    )
    victim.unlink()
    refused(tmp_path, REPAIR, "several-volumes")
    refused(tmp_path, chosen("3.1"), "missing-slices")
    assert "ignored-series" in codes(read_series(tmp_path, chosen("3.2")))


@pytest.mark.row(7)
def test_two_matrix_sizes_are_two_volumes(tmp_path: Path) -> None:
    def edit(ds: Dataset, k: int) -> None:
        if k % 2:
            set_pixels(ds, (body(0, (1, 24, 24))[0].astype(np.int32) + 1024).astype(np.int16))

    folder = series(tmp_path, body(0, (8, 32, 40)), edit=edit)
    assert "rows 24" in refused(folder, code="several-volumes")
    assert read_series(folder, chosen("3.1")).volume.grid.shape == (4, 24, 24)


@pytest.mark.row(7)
def test_stacks_of_two_slices(tmp_path: Path) -> None:
    phases(tmp_path, {"AcquisitionNumber": lambda p, k: p + 1}, slices=2)
    refused(tmp_path, code="several-volumes")


@pytest.mark.row(7)
def test_a_short_stack_inside_a_long_one(tmp_path: Path) -> None:
    depths = [*np.arange(8) * 2.5, 5.5, 8.0, 10.5]
    edit: Edit = lambda ds, k: setattr(ds, "ConvolutionKernel", "bone" if k >= 8 else "soft")  # noqa: E731
    series(tmp_path, body(0, (11, 32, 40)), positions=placed(depths), edit=edit)
    refused(tmp_path, code="several-volumes")
    assert read_series(tmp_path, chosen("3.1")).volume.grid.shape[0] == 3


@pytest.mark.row(7)
def test_images_of_each_position_counted_in_turn(tmp_path: Path) -> None:
    marks: dict[str, Value] = {"InstanceNumber": lambda p, k: 2 * k + p + 1}
    stacks = phases(tmp_path, marks, offset_mm=0.0)
    refused(tmp_path, REPAIR, "several-volumes")
    for k, stack in enumerate(stacks):
        scan = read_series(tmp_path, chosen(f"3.{k + 1}"))
        assert torch.equal(scan.volume.data[0], torch.from_numpy(stack))


@pytest.mark.row(7)
def test_without_anything_to_tell_them_apart(tmp_path: Path) -> None:
    phases(tmp_path, {}, offset_mm=0.0)
    assert "each of 5 positions has 2" in refused(tmp_path, REPAIR, "several-volumes")


@pytest.mark.row(7)
def test_interleaved_pixels_are_noticed_without_any_element(tmp_path: Path) -> None:
    values = body(0, (8, 32, 40))
    values[1::2, 8:24, 10:30] += 150
    scan = read_series(series(tmp_path, values))
    assert codes(scan) == ["alternating-slices"]


@pytest.mark.row(7)
def test_enhanced_ct_of_two_phases(tmp_path: Path) -> None:
    stacks = [body(p, (4, 32, 40)) for p in range(2)]
    ds = blank(EnhancedCTImageStorage)
    set_pixels(ds, (np.concatenate(stacks).astype(np.int32) + 1024).astype(np.uint16))
    ds.NumberOfFrames, frames, shared = 8, [], Dataset()
    measures, turn, scale = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, turn.ImageOrientationPatient = list(SPACING[1:]), list(AXIAL)
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [turn]
    shared.PixelValueTransformationSequence = [scale]
    for k in range(8):
        frame, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, (k % 4) * 2 + k // 4]
        content.TemporalPositionIndex = k // 4 + 1
        frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
        frames.append(frame)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], frames
    path = save(ds, tmp_path / "e.dcm")
    assert "temporal position 2" in refused(path, code="several-volumes")
    for k, stack in enumerate(stacks):
        scan = read_series(path, chosen(f"3.{k + 1}"))
        assert torch.equal(scan.volume.data[0], torch.from_numpy(stack))


# ---- one volume, in spite of counters that differ ----------------------------------------------


def counted(**elements: Sequence[object]) -> Edit:
    def edit(ds: Dataset, k: int) -> None:
        for name, values in elements.items():
            setattr(ds, name, values[k])

    return edit


SHUFFLED = [int(k) for k in np.random.default_rng(1).permutation(12)]
ONE_VOLUME: dict[str, dict[str, Sequence[object]]] = {
    "step-and-shoot": {"AcquisitionNumber": [k // 2 + 1 for k in range(12)]},
    "step-and-shoot, falling": {"AcquisitionNumber": [9 - k // 4 for k in range(12)]},
    "step-and-shoot with times": {
        "AcquisitionNumber": [k // 4 for k in range(12)],
        "AcquisitionTime": [clock(3.0 * (k // 4)) for k in range(12)],
        "ContentTime": [clock(3.0 * (k // 4) + 0.1 * (k % 4)) for k in range(12)],
    },
    "helical, times of each slice": {
        "AcquisitionTime": [clock(0.2 * k) for k in range(12)],
        "ContentTime": [clock(100 + 0.2 * k) for k in range(12)],
        "InstanceCreationTime": [clock(200 + 0.2 * k) for k in range(12)],
    },
    "feet first": {"ContentTime": [clock(100 - k) for k in range(12)]},
    "reconstructed in parallel": {"ContentTime": [clock(100 + k) for k in SHUFFLED]},
    "two reconstructors": {"ContentTime": [clock(100 + k % 6) for k in range(12)]},
    "disordered instance numbers": {"InstanceNumber": [k + 1 for k in SHUFFLED]},
    "sorted as text": {"InstanceNumber": [1, 10, 11, 12, 2, 3, 4, 5, 6, 7, 8, 9]},
    "heart beats": {"TriggerTime": [f"{700 + JITTER[0, k]:.1f}" for k in range(12)]},
    "an acquisition for each slice": {"AcquisitionNumber": list(range(12))},
    "a gap filled later": {"AcquisitionNumber": [1] * 4 + [3] * 4 + [2] * 4},
    "one way of writing and another": {"SliceThickness": ["2.5", "2.500000"] * 6},
    "tube current": {"XRayTubeCurrent": [100, 120] * 6},
    "missing times": {"AcquisitionTime": ["", "", *(clock(k) for k in range(10))]},
}


@pytest.mark.row(7)
@pytest.mark.parametrize("name", ONE_VOLUME)
def test_stacks_that_follow_each_other_are_one_volume(tmp_path: Path, name: str) -> None:
    values = body(0, (12, 32, 40))
    scan = read_series(series(tmp_path, values, edit=counted(**ONE_VOLUME[name])))
    assert scan.findings == ()
    assert torch.equal(scan.volume.data[0], torch.from_numpy(values))


@pytest.mark.row(7)
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ConvolutionKernel", ["soft"] * 6 + ["bone"] * 6),
        ("KVP", [120] * 5 + [80] + [120] * 6),
        ("ContrastBolusAgent", ["A", "", "A", "A", "", "A", "", "", "A", "A", "A", ""]),
    ],
)
def test_settings_that_differ_within_a_volume_are_said(
    tmp_path: Path, name: str, values: Sequence[object]
) -> None:
    scan = read_series(series(tmp_path, body(0, (12, 32, 40)), edit=counted(**{name: values})))
    assert codes(scan) == ["mixed-settings"]
    assert f"({values.count(values[0])}x)" in scan.findings[0].cause


# ---- choosing ----------------------------------------------------------------------------------


@pytest.mark.row(18)
def test_series_that_share_a_number_can_be_chosen(tmp_path: Path) -> None:
    for k, uid in enumerate(("1.2.30.9", "1.2.31.9", "1.2.32.5")):
        series(tmp_path / uid, body(k), uid=uid, edit=assign("SeriesNumber", 9 - 5 * (k == 2)))
    message = refused(tmp_path, code="several-series")
    for said in ("series 9.1 ", "series 9.2 ", "series 4 ", "UID 1.2.30", "UID 1.2.31"):
        assert said in message
    assert "1.2.30.9" not in message, "the start of a UID suffices"
    message = refused(tmp_path, chosen("9"), "several-series")
    assert "--series 9.1" in message and "series 4 " not in message
    for k, names in enumerate((["9.1", "1.2.30.9", "1.2.30"], ["9.2", "1.2.31"], ["4", "04"])):
        for name in names:
            scan = read_series(tmp_path, chosen(name))
            assert torch.equal(scan.volume.data[0], torch.from_numpy(body(k)))
    assert "9.1" in refused(tmp_path, chosen("1.2.3"), "several-series")


@pytest.mark.row(18)
def test_series_without_number_or_uid_can_be_chosen(tmp_path: Path) -> None:
    def bare(ds: Dataset, _k: int) -> None:
        del ds.SeriesNumber
        if ds.SeriesInstanceUID == "9":
            del ds.SeriesInstanceUID

    for k, uid in enumerate(("1.2.30", "1.2.31", "9")):
        series(tmp_path / uid, body(k), uid=uid, edit=bare)
    message = refused(tmp_path, code="several-series")
    for k, name in enumerate(("1.2.30", "1.2.31", "none")):
        assert f"series {name} " in message
        scan = read_series(tmp_path, chosen(name))
        assert torch.equal(scan.volume.data[0], torch.from_numpy(body(k)))


@pytest.mark.row(18)
def test_many_series_are_listed_briefly(tmp_path: Path) -> None:
    root = "1.2.826.0.1.3680043.8.498."
    for k in range(10):
        uid = f"{root}{10 + k}{'7' * 20}.3"
        series(tmp_path / str(k), body(k, (2, 32, 40)), uid=uid)
    message = refused(tmp_path, code="several-series")
    assert len(message) < 1300 + len(str(tmp_path)) and "series 3.10 " in message
    assert torch.equal(
        read_series(tmp_path, chosen(f"{root}14")).volume.data[0],
        torch.from_numpy(body(4, (2, 32, 40))),
    )


# ---- identifiers that differ within one stack ---------------------------------------------------


def of_its_own(*names: str) -> Edit:
    def edit(ds: Dataset, _k: int) -> None:
        for name in names:
            setattr(ds, name, generate_uid())
        ds.SeriesNumber = 3

    return edit


@pytest.mark.row(17)
def test_a_series_uid_for_each_slice(tmp_path: Path) -> None:
    folder = series(tmp_path / "ct", edit=of_its_own("SeriesInstanceUID"))
    for options in (ReadOptions(), chosen("3")):
        message = refused(folder, options, "mixed-series")
        assert "6 different values in 6 images" in message and "--repair" in message
        assert "UID 1.2" not in message and len(message) < 350 + len(str(folder))
    for options in (REPAIR, chosen("3", repair=True)):
        scan = read_series(folder, options)
        assert torch.equal(scan.volume.data[0], torch.from_numpy(body()))
        assert codes(scan) == ["repaired-series", "missing-identity"]
        assert scan.facts["series_uid"].startswith("2.25.")
    series(tmp_path / "other", body(1), uid="1.2.4")
    assert "series 3 " in refused(tmp_path, code="several-series")
    scan = read_series(tmp_path, chosen("3", repair=True))
    assert torch.equal(scan.volume.data[0], torch.from_numpy(body()))
    assert codes(read_series(tmp_path, chosen("4"))) == ["ignored-series"]


@pytest.mark.row(17)
def test_uids_for_each_slice_of_two_phases(tmp_path: Path) -> None:
    stacks = phases(
        tmp_path,
        {
            "AcquisitionNumber": lambda p, k: p + 1,
            "SeriesInstanceUID": lambda p, k: generate_uid(),
            "SeriesNumber": lambda p, k: 3,
        },
    )
    refused(tmp_path, REPAIR, "several-series")
    refused(tmp_path, chosen("3.2"), "mixed-series")
    scan = read_series(tmp_path, chosen("3.2", repair=True))
    assert torch.equal(scan.volume.data[0], torch.from_numpy(stacks[1]))


@pytest.mark.row(17)
@pytest.mark.parametrize("of_number", [False, True])
def test_no_common_series(tmp_path: Path, of_number: bool) -> None:
    """The UID is missing in some images, or the number differs too."""

    def edit(ds: Dataset, k: int) -> None:
        if of_number:
            ds.SeriesInstanceUID, ds.SeriesNumber = generate_uid(), k + 1
        elif k in (1, 4):
            del ds.SeriesInstanceUID

    folder = series(tmp_path, edit=edit)
    message = refused(folder, code="mixed-series")
    said = "6 different values" if of_number else "missing in 2 images (first 007-1.dcm)"
    assert said in message
    scan = read_series(folder, REPAIR)
    assert torch.equal(scan.volume.data[0], torch.from_numpy(body()))
    assert codes(scan) == ["repaired-series", "missing-identity"]


@pytest.mark.row(17)
def test_two_sound_series_are_not_joined(tmp_path: Path) -> None:
    """Chest and abdomen, each a stack, one below the other."""
    for k, uid in enumerate(("1.2.3", "1.2.33")):
        positions = placed((np.arange(6) + 6 * k) * 2.5)
        series(tmp_path / uid, positions=positions, uid=uid, edit=assign("SeriesNumber", 3))
    refused(tmp_path, REPAIR, "several-series")


@pytest.mark.row(17)
def test_slices_of_their_own_that_are_no_even_stack_stay_apart(tmp_path: Path) -> None:
    positions = placed([0, 2.5, 5, 9.1, 12, 20])
    folder = series(tmp_path, positions=positions, edit=of_its_own("SeriesInstanceUID"))
    message = refused(folder, REPAIR, "several-series")
    assert "6 series" in message and "series 3.6 " in message
    assert codes(read_series(folder, chosen("3.6")))[:2] == ["ignored-series", "single-slice"]


@pytest.mark.row(17)
@pytest.mark.parametrize("missing", [0, 2])
def test_a_frame_of_reference_for_each_slice(tmp_path: Path, missing: int) -> None:
    def edit(ds: Dataset, k: int) -> None:
        ds.FrameOfReferenceUID = generate_uid()
        if k < missing:
            del ds.FrameOfReferenceUID

    folder = series(tmp_path, edit=edit)
    message = refused(folder, code="mixed-frames-of-reference")
    assert f"{6 - missing} different values in 6 images" in message and "--repair" in message
    assert message.count(".dcm") >= 3
    assert ("missing in 2 images (first 000-0.dcm)" in message) == bool(missing)
    scan = read_series(folder, REPAIR)
    assert torch.equal(scan.volume.data[0], torch.from_numpy(body()))
    assert codes(scan) == ["repaired-frame-of-reference", "missing-identity"]


@pytest.mark.row(17)
def test_one_deviating_frame_of_reference_is_named(tmp_path: Path) -> None:
    folder = series(tmp_path, edit=assign("FrameOfReferenceUID", "1.2.10", 1))
    message = refused(folder, code="mixed-frames-of-reference")
    assert "one in 5 images (first 000-0.dcm), another in 1 image (007-1.dcm)" in message
    assert "1.2.10" not in message


@pytest.mark.row(17)
def test_what_was_joined_must_look_like_one_stack(tmp_path: Path) -> None:
    values = body(0, (8, 32, 40))
    values[1::2, 8:24, 10:30] += 150
    folder = series(tmp_path, values, edit=of_its_own("SeriesInstanceUID"))
    refused(folder, REPAIR, "not-one-stack")


@pytest.mark.row(17)
def test_two_frames_of_reference_must_continue_each_other(tmp_path: Path) -> None:
    edit = counted(FrameOfReferenceUID=["1.2.9"] * 4 + ["1.2.10"] * 4)
    values = body(0, (8, 32, 40))
    scan = read_series(series(tmp_path / "a", values, edit=edit), REPAIR)
    assert torch.equal(scan.volume.data[0], torch.from_numpy(values))
    values[4:] = np.roll(values[4:], 12, axis=2)
    refused(series(tmp_path / "b", values, edit=edit), REPAIR, "not-one-stack")
    positions = placed([0, 2.5, 5, 7.5, 12.5, 15, 17.5, 20])
    folder = series(tmp_path / "c", body(0, (8, 32, 40)), positions=positions, edit=edit)
    refused(folder, REPAIR, "missing-slices")


@pytest.mark.row(17)
def test_patients(tmp_path: Path) -> None:
    folder = series(tmp_path / "a", edit=assign("PatientID", "secret", 1))
    for options in (ReadOptions(), REPAIR):
        message = refused(folder, options, "mixed-patients")
        assert "007-1.dcm" in message and "secret" not in message
    folder = series(tmp_path / "b", edit=assign("PatientID", "", 1))
    assert "missing in 1 image (007-1.dcm)" in refused(folder, code="mixed-patients")
    scan = read_series(folder, REPAIR)
    assert codes(scan) == ["repaired-patient"] and scan.facts["patient_id"] == "P1"
    scan = read_series(series(tmp_path / "c", edit=of_its_own("StudyInstanceUID")))
    assert codes(scan) == ["mixed-studies"]


@pytest.mark.row(17)
def test_two_orientations_are_two_volumes(tmp_path: Path) -> None:
    coronal = [1, 0, 0, 0, 0, -1]
    edit: Edit = lambda ds, k: (  # noqa: E731
        setattr(ds, "ImageOrientationPatient", coronal) if k % 2 else None
    )
    depths = np.arange(8) * 2.5
    folder = series(tmp_path, body(0, (8, 32, 40)), positions=placed(depths), edit=edit)
    assert "orientation 2" in refused(folder, code="several-volumes")
