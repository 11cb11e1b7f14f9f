"""The picture of the steps: the right panels, in proportion; never at the cost of the labels."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cohorts import TARGET
from commands import call_cli
from ellipses import make_ellipse_patient, write_ellipse_dataset
from kidseg.checkpoint import load_model, save_model
from kidseg.cohort.training_range import Placement
from kidseg.errors import BatchError, InputError, KidsegError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import read, save
from kidseg.labels import KIDNEY_TUMOUR, LabelSchema
from kidseg.pipeline import Note, Progress, Region
from kidseg.postprocess import LoneTumours
from kidseg.segment import Predictor, load_predictor, segment
from kidseg.segment.figure import (
    Panel,
    draw_panels,
    representative_slice,
    step_panels,
)
from kidseg.segment.figure_title import TITLE_POINTS, title_of, wrapped
from kidseg.segment.removal import Decided
from kidseg.train import Setup, train
from test_segment import SETTINGS, labels_of

pytestmark = pytest.mark.ci

CROP = (
    "crop.localizer.size=32",
    "crop.localizer.pooled=4",
    "crop.localizer.hidden=[16,8]",
    "crop.localizer.margin=0.0",
    "crop.stage.epochs=2",
    "crop.stage.min_epochs=0",
    "crop.stage.steps=10",
    "crop.stage.batch_size=6",
    "crop.stage.optimizer.learning_rate=0.01",
    "segment.epochs=4",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("figure") / "data"
    write_ellipse_dataset(root, 4)
    return root


@pytest.fixture(scope="module")
def model(data: Path) -> Path:
    """Pose, crop and U-Net."""
    run = data.parent / "run"
    train(data, run, Setup(method="homogenized", overrides=[*SETTINGS, *CROP]), device="cpu")
    return run / "model.safetensors"


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return load_predictor(model, "cpu")


def scan(data: Path, number: int) -> Path:
    return data / "imagesTr" / f"ellipse_{number:03d}_0000.nii.gz"


def truth(data: Path, number: int) -> Path:
    return data / "labelsTr" / f"ellipse_{number:03d}.nii.gz"


def size_of(path: Path) -> tuple[int, int]:
    from matplotlib.image import imread

    height, width = imread(path).shape[:2]
    return width, height


def panels_in(path: Path) -> int:
    """Each panel is as wide as it is."""
    return round(size_of(path)[0] / (2.7 * 140))


def test_all_steps_are_there(predictor: Predictor) -> None:
    patient = make_ellipse_patient(0)
    result = predictor(patient.image)
    k = representative_slice(result.labels, patient.labels)
    panels = step_panels(patient.image, result, k, patient.labels)
    titles = ["scan", "pose", "crop", "segment", "labels", "reference"]
    assert [panel.title for panel in panels] == titles
    seen, homogenized, cropped, predicted, restored, wanted = panels
    assert np.array_equal(seen.values, patient.image.data[0, k].numpy())
    assert homogenized.outline is not None and len(homogenized.frames) == 1
    assert homogenized.outline.shape == homogenized.values.shape == (32, 32)
    assert np.array_equal(predicted.values, cropped.values)
    for other in (seen, cropped, predicted, restored, wanted):
        assert other.outline is None and other.frames == ()
    (region,) = result.progress.steps["pose"]
    scales = region.grid.spacing_mm[k, 1:].tolist()
    assert abs(scales[0] / scales[1] - 1) > 1e-3, "the patient is stretched ..."
    assert homogenized.pixel == pytest.approx((1.0, 1.0)), "... to the reference's shape"
    (region,) = result.progress.found
    assert region.found is not None and predicted.labels is not None
    assert np.array_equal(predicted.labels, region.found.data[:, k].argmax(0).numpy())
    assert seen.labels is None and homogenized.labels is None and cropped.labels is None
    assert restored.labels is not None and wanted.labels is None
    assert np.array_equal(restored.labels, result.labels.data[0, k].numpy())
    for panel in (restored, wanted):
        assert panel.true is not None
        assert np.array_equal(panel.true, patient.labels.data[0, k].numpy())
    assert all(panel.right == "left" and panel.mm is not None for panel in panels)
    assert seen.mm == pytest.approx((4.0, 4.0))


def test_the_frame_holds_what_is_cropped(predictor: Predictor) -> None:
    """Its corners in millimetres are those of the crop."""
    patient = make_ellipse_patient(1)
    result = predictor(patient.image)
    k = 4
    (frame,) = step_panels(patient.image, result, k)[1].frames
    assert np.array_equal(frame[0], frame[-1])
    steps = result.progress.steps
    pose, crop = (steps[name][0].grid.slices(k, k + 1) for name in ("pose", "crop"))
    sides = np.linalg.norm(np.diff(frame, axis=0), axis=1) * float(pose.spacing_mm[0, 2])
    across = float(crop.spacing_mm[0, 2]) * crop.shape[2]
    assert across < 0.97 * float(pose.spacing_mm[0, 2]) * pose.shape[2], "a crop, not all of it"
    assert sides[0] == pytest.approx(across, rel=0.02)


def test_each_region_has_its_panel_and_its_frame(predictor: Predictor) -> None:
    """Two kidneys, one in the upper half of the scan alone; steps that do nothing have none."""
    patient = make_ellipse_patient(0)
    scan_grid = patient.image.grid
    found = torch.zeros((3, 4, 20, 24))
    found[2, :, 5:9, 6:12] = 1.0
    left = scan_grid.crop((0, 20, 4), (8, 24, 24))
    right = scan_grid.crop((4, 22, 34), (4, 20, 24))
    steps = {
        "coarse": (Region(grid=scan_grid),),
        "correct": (),
        "each": (Region(grid=left, name="left"), Region(grid=right, name="right")),
        "fine": (Region(grid=right, name="right", found=Volume(found, right), target=TARGET),),
    }
    result = predictor(patient.image)
    progress = Progress(image=patient.image, steps=steps)
    result = replace(result, progress=progress, placement=Placement(figures={}, overlap={}))
    panels = step_panels(patient.image, result, 5)
    titles = ["scan", "coarse", "each left", "each right", "fine right", "labels"]
    assert [panel.title for panel in panels] == titles
    assert [len(panel.frames) for panel in panels] == [0, 2, 1, 0, 0, 0]
    _, _, first, second, fine, _ = panels
    assert np.array_equal(first.values, patient.image.data[0, 5, 20:44, 4:28].numpy())
    assert np.array_equal(second.values, patient.image.data[0, 5, 22:42, 34:58].numpy())
    assert first.frames[0][0] == pytest.approx([22 - 20 - 0.5, 34 - 4 - 0.5])
    assert fine.labels is not None and set(np.unique(fine.labels)) == {0, 2}
    assert (fine.labels[5:9, 6:12] == 2).all() and fine.labels.sum() == 2 * 24
    below = step_panels(patient.image, result, 2)
    assert [panel.title for panel in below] == ["scan", "coarse", "each left", "labels"]
    both = {"whole": steps["coarse"], "each": steps["each"]}
    result = replace(result, progress=Progress(image=patient.image, steps=both))
    _, whole, *_ = step_panels(patient.image, result, 5)
    assert [frame[0].tolist() for frame in whole.frames] == [
        pytest.approx([19.5, 3.5]),
        pytest.approx([21.5, 33.5]),
    ]
    inner = {each: each.grid.crop((0, 2, 2), (each.grid.shape[0], 12, 12)) for each in both["each"]}
    fine = tuple(Region(grid=grid, name=each.name) for each, grid in inner.items())
    steps = {"each": both["each"], "fine": fine}
    result = replace(result, progress=Progress(image=patient.image, steps=steps))
    for panel in step_panels(patient.image, result, 5)[1:3]:
        (own,) = panel.frames
        assert own[0].tolist() == pytest.approx([1.5, 1.5]), "not that of the other kidney, too"


def test_sagittal_slices_are_shown_where_most_was_found(predictor: Predictor) -> None:
    """Whatever the axial slice; in axial slices their box is a frame, if these meet it."""
    patient = make_ellipse_patient(0)
    grid = patient.image.grid
    sagittal = grid.permuted((2, 0, 1)).crop((0, 2, 10), (64, 4, 30))
    found = torch.zeros((3, 64, 4, 30))
    found[2, 40, 1:3, 5:9], found[2, 20, 1, 1] = 1.0, 1.0
    region = Region(grid=sagittal, found=Volume(found, sagittal), target=TARGET)
    steps = {"coarse": (Region(grid=grid),), "correct": (region,), "fine": (Region(grid=grid),)}
    notes = {"correct": Note(text="3 kidneys: abnormal")}
    progress = Progress(image=patient.image, steps=steps, notes=notes)
    result = replace(predictor(patient.image), progress=progress)
    result = replace(result, placement=Placement(figures={}, overlap={}))
    for k, frames in ((3, 1), (7, 0)):
        _, coarse, correct, *_ = step_panels(patient.image, result, k)
        assert correct.title == "correct" and correct.values.shape == (4, 30)
        assert np.array_equal(correct.values, patient.image.data[0, 2:6, 10:40, 40].numpy())
        assert correct.labels is not None and correct.labels.sum() == 2 * 2 * 4
        assert correct.right is None and len(coarse.frames) == frames
    (frame,) = step_panels(patient.image, result, 3)[1].frames
    assert frame.min(0).tolist() == pytest.approx([9.5, -0.5])
    assert frame.max(0).tolist() == pytest.approx([39.5, 63.5])
    empty = Region(grid=sagittal)
    result = replace(result, progress=Progress(image=patient.image, steps={"correct": (empty,)}))
    assert step_panels(patient.image, result, 3)[1].labels is None, "the middle one"


def test_what_the_steps_decided_stands_in_the_title(predictor: Predictor) -> None:
    patient = make_ellipse_patient(0)
    notes = {"correct": Note(text="3 kidneys: abnormal"), "fine": Note(text="left 9 ml")}
    result = predictor(patient.image)
    result = replace(result, progress=replace(result.progress, notes=notes))
    lines = title_of("a", patient.image, result, KIDNEY_TUMOUR, 3).splitlines()
    assert lines[0] == "a, slice 4 of 8"
    assert "correct: 3 kidneys: abnormal" in lines and "fine: left 9 ml" in lines


def test_a_long_title_is_no_wider_than_the_figure() -> None:
    """Drawn, in the narrowest figure and in the widest."""
    long = (
        "correct: 4 kidneys of at least 18.3 ml: not 2, so abnormal; 3 smaller parts left out, 12.0"
        " ml in all; did not see 24.0 ml of 1 kidney; further from 2 than the 1 of the step before"
    )
    for inches in (5.4, 16.2):
        title = wrapped(f"a, slice 1 of 2\n{long} {long}\nfine: left", inches)
        assert title.split() == f"a, slice 1 of 2 {long} {long} fine: left".split()
        assert title.startswith("a, slice 1 of 2\n") and title.endswith("\nfine: left")
        figure = Figure(figsize=(inches, 3))
        drawn = figure.suptitle(title, fontsize=TITLE_POINTS)
        renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        width = drawn.get_window_extent(renderer).width / figure.dpi
        assert inches / 2 < width < inches
    assert wrapped("", 5.4) == ""


def test_a_figure_per_scan(data: Path, predictor: Predictor, tmp_path: Path) -> None:
    results = segment(
        [scan(data, 0), scan(data, 1)], predictor, tmp_path, figures=True, reference=data
    )
    for number, result in enumerate(results):
        file = tmp_path / f"ellipse_{number:03d}_steps.png"
        assert panels_in(file) == 6
        assert file.name in result["outputs"] and "figure" in result["seconds"]
    segment([scan(data, 2)], predictor, tmp_path / "bare", figures=True)
    assert panels_in(tmp_path / "bare" / "ellipse_002_steps.png") == 5


def test_a_plain_model_has_fewer_steps(data: Path, tmp_path: Path) -> None:
    settings = [s for s in SETTINGS if not s.startswith("pose.")]
    settings += ["segment.epochs=1", "segment.steps=2"]
    train(data, tmp_path / "run", Setup(method="plain", overrides=settings), device="cpu")
    (result,) = segment(
        [scan(data, 0)], tmp_path / "run" / "model.safetensors", tmp_path, device="cpu",
        figures=True, reference=truth(data, 0),
    )  # fmt: skip
    assert panels_in(tmp_path / "ellipse_000_steps.png") == 4, "scan, segment, labels, reference"
    assert result["overlap"] is None
    assert set(result["training_range"]["figures"]) >= {"radius_long_mm", "slice_mm"}


def test_what_the_record_says_of_the_pose(data: Path, predictor: Predictor, tmp_path: Path) -> None:
    (result,) = segment([scan(data, 0)], predictor, tmp_path)
    overlap, judged = result["overlap"], result["training_range"]
    for when in ("before", "start", "after"):
        assert set(overlap[when]) == {"body", "bone"}
        assert all(0 <= value <= 1 for value in overlap[when].values())
    agreement = overlap["agreement"]
    assert set(agreement) == {"before", "start", "after"}
    assert overlap["kept"] in ("start", "correction")
    assert (agreement["after"] > agreement["start"]) == (overlap["kept"] == "correction")
    assert agreement["after"] >= agreement["start"]
    found = labels_of(tmp_path / "ellipse_000_seg.nii.gz").data[0] > 0
    shown = found.flatten(1).any(1).nonzero()[:, 0].tolist()
    compared = overlap["compared"]
    assert compared["by"] == "slices where something was found"
    assert [compared["first"], compared["last"]] == [shown[0], shown[-1]]
    assert judged["known"] is True and judged["far_sd"] == 1.0
    assert {"angle_deg", "scale_x", "shift_y_mm", "overlap"} <= set(judged["figures"])
    assert judged["figures"]["slice_mm"]["distance_sd"] == 0.0
    json.dumps(result)


def test_slices_are_said_to_be_compared_by_what_they_were(
    data: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single voxel of the scan is enough, whatever the grid that the method looked at."""
    image = read(scan(data, 0)).volume
    last = image.grid.shape[0] - 1
    middle = tuple(n // 2 for n in image.grid.shape)

    def compared(labels: torch.Tensor) -> dict[str, object]:
        found = Volume(labels, image.grid)
        decided = Decided(
            labels=found,
            removed=(),
            small_ml=0.0,
            lone=LoneTumours(),
            tumour=(2,),
            notable_ml=0.5,
        )
        monkeypatch.setattr("kidseg.segment.predictor.postprocessed", lambda *_: decided)
        return dict(predictor(image).facts["overlap"]["compared"])

    nothing = torch.zeros(1, *image.grid.shape, dtype=torch.uint8)
    assert compared(nothing) == {"first": 0, "last": last, "by": "all slices"}
    for row, column in product(range(2), repeat=2):
        labels = nothing.clone()
        labels[0, middle[0], middle[1] + row, middle[2] + column] = 1
        said = {"first": middle[0], "last": middle[0], "by": "slices where something was found"}
        assert compared(labels) == said


def far(result: dict[str, object]) -> list[str]:
    warnings = result["warnings"]
    assert isinstance(warnings, list)
    return [w["cause"] for w in warnings if w["code"] == "outside-training-range"]


def test_a_scan_of_another_size_is_flagged(
    data: Path, predictor: Predictor, tmp_path: Path
) -> None:
    """The same voxels, said to be twice as large. One of the training set is not flagged."""
    own = read(scan(data, 0)).volume
    grid = Grid.from_spacing(own.grid.shape, (20.0, 8.0, 8.0))
    giant = save(Volume(own.data, grid), tmp_path / "giant.nii.gz")
    header = load_model(predictor.path).header
    trained = [i for i in range(4) if f"ellipse_{i:03d}" not in held_out(data)]
    assert header["training_range"]["slice_mm"]["n"] == len(trained)
    results = segment([scan(data, trained[0]), giant], predictor, tmp_path / "out")
    assert not [cause for cause in far(results[0]) if "radius" in cause or "_mm" in cause]
    (cause,) = far(results[1])
    for name in ("radius_long_mm", "radius_short_mm", "slice_mm"):
        assert f"{name} " in cause


def held_out(data: Path) -> list[str]:
    content = json.loads((data.parent / "run" / "cases.json").read_text())
    return list(content["validation"])


def test_a_model_without_a_range_says_so(data: Path, predictor: Predictor, tmp_path: Path) -> None:
    """As written before there were any."""
    file = load_model(predictor.path)
    header = {name: value for name, value in file.header.items() if name != "training_range"}
    save_model(tmp_path / "old.safetensors", file.parts, header)
    (result,) = segment([scan(data, 0)], tmp_path / "old.safetensors", tmp_path, device="cpu")
    assert result["training_range"] == {"known": False, "far_sd": 1.0, "figures": {}}
    assert not far(result)


def test_labels_stay_if_the_figure_fails(
    data: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More pixels than matplotlib can draw."""
    monkeypatch.setattr("kidseg.segment.figure._PANEL_PIXELS", 2**20)
    (result,) = segment([scan(data, 0)], predictor, tmp_path, figures=True)
    codes = [warning["code"] for warning in result["warnings"]]
    assert codes.count("no-figure") == 1
    assert result["outputs"] == ["ellipse_000_seg.nii.gz"]
    assert (tmp_path / "ellipse_000_seg.nii.gz").exists()
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["scans"] == [json.loads(json.dumps(result))] and not record["failed"]


def test_a_figure_that_is_there_stays(data: Path, predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "ellipse_000_steps.png").write_text("mine")
    assert code_of([scan(data, 0)], predictor, tmp_path) == "output-exists"
    assert not (tmp_path / "ellipse_000_seg.nii.gz").exists()


def test_a_folder_where_the_figure_belongs_is_refused_before_the_work(
    data: Path, predictor: Predictor, tmp_path: Path
) -> None:
    (tmp_path / "ellipse_000_steps.png").mkdir()
    with pytest.raises(UsageError, match="a folder of this name"):
        segment([scan(data, 0)], predictor, tmp_path, figures=True, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["ellipse_000_steps.png"]


def code_of(
    scans: list[Path], predictor: Predictor, out: Path, reference: Path | None = None
) -> str:
    with pytest.raises(KidsegError) as error:
        segment(scans, predictor, out, figures=True, reference=reference)
    return error.value.code


def test_a_reference_must_fit(data: Path, predictor: Predictor, tmp_path: Path) -> None:
    labels = labels_of(truth(data, 0))
    shifted = Volume(labels.data, labels.grid.crop((0, 1, 0), labels.grid.shape))
    save(shifted, tmp_path / "shifted.nii.gz")
    other = Volume(labels.data * 3, labels.grid)
    save(other, tmp_path / "other.nii.gz")
    out = tmp_path / "out"
    one = [scan(data, 0)]
    assert code_of(one, predictor, out, tmp_path / "shifted.nii.gz") == "label-grid-mismatch"
    assert code_of(one, predictor, out, tmp_path / "other.nii.gz") == "unexpected-labels"
    assert not list(out.glob("*_seg.nii.gz")), "refused before it was segmented"
    both = [scan(data, 0), scan(data, 1)]
    assert code_of(both, predictor, tmp_path / "x", truth(data, 0)) == "one-reference"
    assert code_of(one, predictor, tmp_path / "x", tmp_path / "none") == "not-found"
    strange = save(make_ellipse_patient(7).image, tmp_path / "strange.nii.gz")
    assert code_of([strange], predictor, tmp_path / "x", data) == "unknown-case"
    with pytest.raises(UsageError) as error:
        segment(one, predictor, tmp_path / "x", reference=data)
    assert error.value.code == "reference-unused"
    assert not (tmp_path / "x").exists()


def test_a_bad_reference_stops_no_other_scan(
    data: Path, predictor: Predictor, tmp_path: Path
) -> None:
    write_ellipse_dataset(tmp_path / "data", 2)
    labels = labels_of(truth(data, 1))
    save(labels.slices(0, 4), truth(tmp_path / "data", 1), overwrite=True)
    with pytest.raises(BatchError, match="is not that of the scan"):
        segment(
            [scan(data, 0), scan(data, 1)],
            predictor,
            tmp_path / "out",
            figures=True,
            reference=tmp_path / "data",
        )
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {
        *("ellipse_000_seg.nii.gz", "ellipse_000_steps.png"),
        *("result.json", "summary.csv", "cohort.html"),
    }


def test_a_data_set_with_other_labels_is_refused(
    data: Path, predictor: Predictor, tmp_path: Path
) -> None:
    write_ellipse_dataset(tmp_path / "data", 1)
    path = tmp_path / "data" / "dataset.json"
    path.write_text(path.read_text().replace('"tumour"', '"spleen"'))
    with pytest.raises(InputError) as error:
        segment([scan(data, 0)], predictor, tmp_path, figures=True, reference=tmp_path / "data")
    assert error.value.code == "other-labels"


def test_numbers_in_another_order_and_voxels_that_do_not_count(
    data: Path, predictor: Predictor, tmp_path: Path
) -> None:
    """nnU-Net's ignore label, and kidney 4, tumour 7, mean the same as 1 and 2."""
    from kidseg.segment.truth import find_references

    write_ellipse_dataset(tmp_path / "data", 1)
    path = tmp_path / "data" / "dataset.json"
    content = json.loads(path.read_text())
    content["labels"] = {"background": 0, "kidney": 1, "tumour": 2, "ignore": 3}
    path.write_text(json.dumps(content))
    labels = labels_of(truth(data, 0))
    marked = labels.data.clone()
    marked[0, 0] = 3
    save(Volume(marked, labels.grid), truth(tmp_path / "data", 0), overwrite=True)
    own = scan(tmp_path / "data", 0)
    found = find_references({own: "ellipse_000"}, tmp_path / "data", predictor.schema, None)
    on_scan, ignore = found[own].on(labels.grid)
    assert ignore is not None and int(ignore.data.sum()) == labels.data[0, 0].numel()
    assert torch.equal(on_scan.data[0, 1:], labels.data[0, 1:])
    assert not on_scan.data[0, 0].any()


def test_the_representative_slice() -> None:
    grid = Grid.from_spacing((5, 4, 4), (1.0, 1.0, 1.0))
    nothing = Volume(torch.zeros((1, 5, 4, 4), dtype=torch.uint8), grid)
    found, wanted = nothing.data.clone(), nothing.data.clone()
    found[0, 3, 0, :2] = 1
    wanted[0, 1] = 2
    assert representative_slice(Volume(found, grid), Volume(wanted, grid)) == 3
    assert representative_slice(nothing, Volume(wanted, grid)) == 1
    assert representative_slice(nothing, nothing) == representative_slice(nothing) == 2


def test_pixels_keep_their_proportions(tmp_path: Path) -> None:
    """40 x 20 black pixels of 1 x 2 mm make a square."""
    from matplotlib.image import imread

    panel = Panel(title="", values=np.full((40, 20), -1000.0), pixel=(1.0, 2.0))
    draw_panels(tmp_path / "a.png", [panel], KIDNEY_TUMOUR)
    dark = imread(tmp_path / "a.png")[..., :3].max(-1) < 0.01
    rows, columns = ((dark.mean(axis) > 0.3).sum() for axis in (1, 0))  # not those of letters
    assert abs(int(rows) - int(columns)) <= 2 and rows > 100


@pytest.mark.parametrize(("count", "across", "down"), [(6, 6, 1), (7, 4, 2)])
def test_many_panels_continue_in_further_rows(
    count: int, across: int, down: int, tmp_path: Path
) -> None:
    """None is lost, none is smaller: all the black squares are found."""
    from matplotlib.image import imread
    from scipy import ndimage

    panel = Panel(title="", values=np.full((20, 20), -1000.0), pixel=(1.0, 1.0), right=None)
    draw_panels(tmp_path / "a.png", [panel] * count, KIDNEY_TUMOUR, title="a")
    image = imread(tmp_path / "a.png")[..., :3]
    assert image.shape[1] == pytest.approx(across * 2.7 * 140, abs=1)
    found = ndimage.find_objects(ndimage.label(image.max(-1) < 0.01)[0])
    sides = [[piece.stop - piece.start for piece in place] for place in found]
    squares = [side for side in sides if min(side) > 100]
    assert len(squares) == count and np.ptp(squares) <= 2
    tops = {place[0].start for place, side in zip(found, sides, strict=True) if min(side) > 100}
    assert len(tops) == down


def test_on_the_command_line(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a reader should know of a scan is said there, not only in the record."""
    own = read(scan(data, 0)).volume
    grid = Grid.from_spacing(own.grid.shape, (20.0, 8.0, 8.0))
    giant = save(Volume(own.data, grid), tmp_path / "giant.nii.gz")
    reference = save(Volume(labels_of(truth(data, 0)).data, grid), tmp_path / "truth.nii.gz")
    words = ["segment", giant, "-m", model, "-o", tmp_path / "out", "--device", "cpu"]
    assert call_cli(*words, "--figures", "--reference-labels", reference) == 0
    assert (
        "giant: the patient is outside the training range of the model" in capsys.readouterr().out
    )
    assert panels_in(tmp_path / "out" / "giant_steps.png") == 6


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["a$_$b", "$\\frac$", "患者"])
def test_names_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    """No formula, nor a warning about letters that the font does not have."""
    values = np.full((20, 20), -1000.0)
    labels = np.ones((20, 20), np.uint8)
    panel = Panel(title=name, values=values, pixel=(1.0, 1.0), labels=labels)
    schema = LabelSchema.from_names({1: f"{name} kidney"})
    draw_panels(tmp_path / "a.png", [panel], schema, title=name)
    assert (tmp_path / "a.png").stat().st_size > 0
