"""The report of a scan: complete, self-contained, escaped, small, and right in what it shows."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ellipses import make_ellipse_patient
from kidseg.errors import ModelError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, read
from kidseg.io.mesh import surface_of
from kidseg.labels import KIDNEY_TUMOUR, LabelSchema
from kidseg.report import sections, templates
from kidseg.report.cohort_page import Case, Cell, Picture, cohort_page
from kidseg.report.planes import draw_planes, fullest_slice, middle_of
from kidseg.report.scan_page import view_note
from kidseg.report.templates import viewer_script
from kidseg.report.viewing import HU_RANGE, HU_STEP, coarser, mz3, view
from pages import RECORD, Page, assert_loads_nothing, make_content, noise, page_of, with_viewer
from solids import ball, oblique

pytestmark = with_viewer
EVIL = "</script><script>window.evil=1</script><img src=x onerror=evil()>\"'&"


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(page_of(make_content()))


@pytest.mark.requirement("privacy")
def test_a_report_loads_nothing(page: Page) -> None:
    assert_loads_nothing(page)


def test_only_the_scripts_of_the_page_may_run(page: Page) -> None:
    run = [s for s in page.scripts if not s.startswith("{")]
    assert len(run) == 2 and run[0] == viewer_script()
    for text in run:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.policy


def test_warnings_come_first_and_in_words(page: Page) -> None:
    assert "The patient is outside the training range of the model. Check the labels" in page.words
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", page.text)
    assert headings[0] == "Warnings"
    assert headings[1:] == [
        "Images", "Volumes and sizes", "Criteria", "Homogenization", "Slices to review",
        "Provenance",
    ]  # fmt: skip


def test_without_warnings_a_report_says_what_that_means() -> None:
    measured = {**make_content().measured, "warnings": []}
    record = {**RECORD, "warnings": []}
    content = make_content(record=record, measured=measured, is_ct=False)
    page = Page(page_of(content))
    assert "None was raised. That does not mean that the labels are right" in page.words
    assert "bone" not in page.words and page.content["unit"] == ""  # nor is it CT


@pytest.mark.requirement("research use")
def test_intended_use_is_in_the_footer_of_each_page(page: Page) -> None:
    footer = re.search(r"<footer>(.*?)</footer>", page.text, re.S)
    assert footer is not None and "Research use only. Not a medical device." in footer.group(1)


def test_a_report_shows_the_measures_and_their_intervals(page: Page) -> None:
    content = make_content()
    volumes = sections.volumes(content.measured, content.record)
    assert [row["id"] for row in volumes["rows"]] == [
        s["id"] for s in content.measured["structures"]
    ]
    for row in volumes["rows"]:
        assert row["cells"][0] in page.words and "(" in row["cells"][0]


def test_a_report_shows_where_each_tumour_lies_and_what_it_touches(page: Page) -> None:
    content = make_content()
    lesions = sections.volumes(content.measured, content.record)["lesions"]
    tumours = [each for each in content.measured["structures"] if each["meaning"] == "tumour"]
    assert [each["name"] for each in lesions] == [each["id"] for each in tumours] != []
    for lesion in lesions:
        names = [each["name"] for each in lesion["measures"]]
        assert {"contact with the kidney", "crosses the midline", "R.E.N.A.L. R"} <= set(names)
        assert not {"volume", "longest diameter"} & set(names)
        for each in lesion["measures"]:
            assert each["text"] in page.words


def test_counts_are_whole_numbers() -> None:
    content = make_content()
    known = {"name": "number of tumours", "unit": "1", "interval": "smallest", "note": ""}
    for (value, low, high), said in (((6, 4, 6), "6 (4-6)"), ((1, 1, 1), "1")):
        count = {**known, "value": float(value), "low": float(low), "high": float(high)}
        measured = {**content.measured, "patient": [count]}
        sides = sections.volumes(measured, content.record)["sides"]
        assert said in [one["text"] for side in sides for one in side["measures"]]


def test_criteria_have_answers_sources_and_reasons(page: Page) -> None:
    answers = make_content().measured["criteria"]["answers"]
    assert "cannot tell" in {answer["verdict"] for answer in answers}
    for answer in answers:
        for text in (answer["title"], answer["about"], answer["source"]):
            assert text in page.words
    assert "not entered: --entered thrombus=yes" in page.words
    assert "not signed off by a clinician" in page.words and "to be confirmed" in page.words


def test_homogenization_says_what_is_far(page: Page) -> None:
    found = sections.homogenization(RECORD)
    far = {figure["title"]: figure["is_far"] for figure in found["figures"]}
    assert far == {"turned in the slice": True, "overlap with the reference patient": False}
    assert "41 deg" in page.words and "-25 to 27" in page.words
    for row in ("as scanned 0.50 0.60", "by moments 0.98 0.92", "homogenized 0.99 0.94"):
        assert row in page.words
    assert "the network's correction" in page.words


def test_the_pose_of_each_step_and_region_is_in_a_table() -> None:
    right = {**RECORD["grids"]["pose"][0], "name": "right"}
    crop = {
        "name": "left",
        "angle_deg": {"median": [-7.26]},
        "scale": {"median": [1.25, 0.8]},
        "shift_mm": {"median": [-12.4, 30.6]},
    }
    bare = {"name": "whole", "size_mm": 3}  # a step that does not turn is not in it
    grids = {"pose": [*RECORD["grids"]["pose"], right], "crop": [crop], "cut": [bare]}
    words = Page(page_of(make_content(record={**RECORD, "grids": grids}))).words
    table = words[words.index("Pose, medians over the slices") :]
    assert table.startswith(
        "Pose, medians over the slices step angle deg size, across x down shift mm"
        " pose 41.0 0.50 x 0.60 3, -4 pose right 41.0 0.50 x 0.60 3, -4"
        " crop left -7.3 1.25 x 0.80 -12, 31"
    )
    assert "cut" not in table[:300]
    none = Page(page_of(make_content(record={**RECORD, "grids": {}})))
    assert "Pose, medians" not in none.words


def test_what_a_record_does_not_have_is_said() -> None:
    kept = ("name", "path", "warnings", "versions")
    page = Page(page_of(make_content(record={k: RECORD[k] for k in kept})))
    words = page.words
    assert "Slices to review" not in words and "#review" not in page.addresses
    assert "It is not known what the patients of the training were like, nor by what" in words


def test_slices_to_review_lead_to_their_places(page: Page) -> None:
    grid = make_content().scan.grid
    centres = grid.mm(torch.tensor([[float(k), 0.0, 0.0] for k in range(grid.shape[0])]))[:, 2]
    for k, known in enumerate(RECORD["review"]["slices"]):
        place = page.content["places"][f"review-{k}"]
        nearest = (centres - known["position_mm"]).abs().min()
        assert abs(place[2] - known["position_mm"]) == pytest.approx(float(nearest), abs=0.01)
        assert f'data-place="review-{k}"' in page.text
    assert "40.0 (35.0-44.0) ml, 90 % interval" in page.words
    assert "10 ml, no interval is known" in page.words


def test_small_pieces_that_were_removed_are_said_and_can_be_looked_at() -> None:
    pieces = [
        {
            "volume_ml": 20.0,
            "centre_mm": [1.0, 2.0, 3.0],
            "voxels": {"2": 9},
            "reason": "no-kidney",
        },
        {"volume_ml": 2.7, "centre_mm": [-44.5, 17.7, 46.2], "voxels": {"2": 9}, "reason": "small"},
        {"volume_ml": 0.2, "centre_mm": [0.0, 0.0, 0.0], "voxels": {"1": 1}, "reason": "small"},
    ]
    totals = {"small": {"count": 2, "volume_ml": 2.9}, "no-kidney": {"count": 1, "volume_ml": 20}}
    removed = {"below_ml": 3.0, "by_reason": totals, "pieces": pieces[1:] + pieces[:1]}
    page = Page(page_of(make_content(record={**RECORD, "removed": removed})))
    assert (
        "2 pieces, 2.9 ml in all, each below 3 ml, were removed; the largest: tumour, 2.7 ml,"
        " at L 44.5, A 17.7, S 46.2 mm." in page.words
    )
    places = page.content["places"]
    assert [places[f"removed-{k}"] for k in range(3)] == [each["centre_mm"] for each in pieces]
    assert (
        "Look there: 20.0 ml, no kidney: R 1.0, A 2.0, S 3.0 mm"
        " 2.7 ml: L 44.5, A 17.7, S 46.2 mm 0.2 ml: " in page.words
    )
    assert "pieces" not in Page(page_of(make_content())).words, "none, or not known"


def test_it_is_said_that_completed_labels_are_of_a_model_trained_further() -> None:
    model = {**RECORD.get("model", {}), "name": "starter", "use": "for tests"}
    said = "The labels are those of the starter model, for tests"
    page = Page(page_of(make_content(record={**RECORD, "model": model})))
    assert f"{said}." in page.words
    start = {"sha256": "0" * 64}
    completed = {"slices": 2, "of": 9, "sha256": "1" * 64, "steps": 40, "start": start}
    page = Page(page_of(make_content(record={**RECORD, "model": model, "completed": completed})))
    assert f"{said}, trained further on the 2 drawn slices." in page.words


def test_every_button_of_a_place_has_a_place(page: Page) -> None:
    keys = {a["data-place"] for _, a in page.elements if "data-place" in a}
    assert keys == set(page.content["places"]) - {"start"}
    assert {"label-1", "label-2", "removed-0"} <= keys


@pytest.mark.requirement("privacy")
def test_neither_folders_nor_the_host_are_named(page: Page) -> None:
    assert "Jane" not in page.text and "secret-host" not in page.text
    assert "model.safetensors" in page.words and "cd" * 32 in page.words


@pytest.mark.requirement("privacy")
def test_the_command_has_names_instead_of_paths() -> None:
    command = sections.command_line(["/usr/bin/kidseg", "segment", "/a/Doe^Jane/x.nii", "-o", "/r"])
    assert command == "kidseg segment x.nii -o r"
    assert sections.command_line(["/usr/bin/pytest", "x"]) == ""


def test_names_cannot_run_or_break_the_page() -> None:
    names = {1: f"kidney {EVIL}", 2: EVIL}
    record = {
        **RECORD,
        "warnings": [{"cause": EVIL, "next_step": EVIL, "path": "", "code": ""}],
        "model": {"path": EVIL, "sha256": EVIL, "method": EVIL, "name": EVIL, "use": EVIL},
        "review": {
            **RECORD["review"],
            "structures": {EVIL: {"volume_ml": 1, "interval_ml": [0, 2]}},
        },
    }
    content = make_content(names, name=EVIL, record=record, settings=EVIL, command=EVIL)
    page = Page(page_of(content))
    assert_loads_nothing(page)
    assert len(page.scripts) == 3 and not [a for t, a in page.elements if a.get("src") == "x"]
    assert page.content["labels"][1]["name"] == EVIL
    assert EVIL in page.shown  # as text, whole


@settings(max_examples=25)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_arrives_as_it_is(text: str) -> None:
    text = text.replace("\r", "").replace("\0", "")  # which no HTML contains
    case = Case(
        name=text,
        cells=[Cell(text=text, value=1.0)],
        pictures=[Picture(png=b"", alt=text)],
    )
    page = Page(cohort_page(text, [text], [case], about=[text], warnings=[text], note=text))
    assert_loads_nothing(page)
    ((shown,),) = page.content["images"].values()
    assert shown["alt"] == shown["case"] == text
    assert page.shown.count(text) >= 5


@pytest.mark.parametrize("shape", [(120, 64, 64), (12, 200, 200)])
def test_the_bytes_of_the_view_are_bounded(shape: tuple[int, int, int]) -> None:
    scan = noise(shape, (1.0, 0.8, 0.8))
    labels = Volume(torch.zeros((1, *shape), dtype=torch.uint8), scan.grid)
    labels.data[0, 2:10, 20:60, 20:60] = 1
    found = view(scan, labels, KIDNEY_TUMOUR, size=0.02)
    assert len(found.scan) <= 130_000 and sum(len(s.mz3) for s in found.shapes) <= 24_000
    assert found.facts["resampled"] and found.facts["scan_grid"]["shape"] == list(shape)
    assert found.facts["grid"]["shape"] == list(found.grid.shape)


@pytest.mark.slow
def test_the_page_of_a_large_scan_of_noise_is_below_15_mb() -> None:
    """Noise is the hardest to compress, and labels of noise have the most surface."""
    scan = noise((200, 512, 512), (2.0, 0.7, 0.7))
    rough = ndimage.zoom(np.random.default_rng(1).normal(size=(40, 64, 64)), (5, 8, 8), order=1)
    values = np.where(rough > 0.9, 2, (rough > 0.3)).astype(np.uint8)
    labels = Volume(torch.from_numpy(values)[None], scan.grid)
    text = page_of(make_content(scan=scan, labels=labels))
    assert 8e6 < len(text.encode()) < 15e6, "small: it would be no test"
    page = Page(text)
    assert "were resampled from 2 x 0.7 x 0.7 mm to" in page.words
    assert np.prod(page.content["shape"]) > 3_000_000
    assert [shape["key"] for shape in page.content["shapes"]] == ["label-1", "label-2"]


def test_a_small_scan_is_shown_at_its_own_voxels(tmp_path: Path) -> None:
    patient = make_ellipse_patient(1)
    found = view(patient.image, patient.labels, KIDNEY_TUMOUR)
    assert not found.facts["resampled"] and found.grid.same_as(patient.image.grid)
    (tmp_path / "s.nii.gz").write_bytes(found.scan)
    (tmp_path / "l.nii.gz").write_bytes(found.labels)
    again = read(tmp_path / "s.nii.gz", ReadOptions(values="ct")).volume
    assert again.grid.same_as(patient.image.grid)
    wanted = patient.image.data.clamp(*map(int, HU_RANGE))
    assert float((again.data - wanted).abs().max()) <= HU_STEP / 2
    same = read(tmp_path / "l.nii.gz", ReadOptions(values="labels")).volume
    assert torch.equal(same.data.long(), patient.labels.data.long())


def test_it_is_said_how_the_view_differs_from_the_data(page: Page) -> None:
    scan = noise((20, 60, 60), (1.0, 0.8, 0.8))
    labels = Volume(torch.zeros((1, 20, 60, 60), dtype=torch.uint8), scan.grid)
    note = view_note(view(scan, labels, KIDNEY_TUMOUR, size=0.002))
    assert "were resampled from 1 x 0.8 x 0.8 mm to" in note and "rounded to 4 HU" in note
    assert "shown at their own voxels of 10 x 4 x 4 mm" in page.words


@pytest.mark.parametrize("voxels", [1, 1000, 4095, 10**6])
def test_coarser_grids_keep_the_extent(voxels: int) -> None:
    grid = Grid.from_spacing((16, 32, 8), (3.0, 0.5, 1.0), (4, 5, 6))
    found = coarser(grid, voxels)
    assert np.prod(found.shape) <= max(voxels, 1)
    ends = [[-0.5] * 3, [n - 0.5 for n in grid.shape]]
    own = [[-0.5] * 3, [n - 0.5 for n in found.shape]]
    assert torch.allclose(grid.mm(ends), found.mm(own))
    assert coarser(grid, 16 * 32 * 8) is grid


def test_mz3_files_contain_the_surface() -> None:
    mask = ball(oblique(12.0, (2.0, 1.0, 1.0), 1), 9.0)
    surface = surface_of(mask.data, mask.grid)
    assert surface is not None
    raw = gzip.decompress(mz3(surface))
    magic, attributes, faces, vertices, skip = struct.unpack("<HHIII", raw[:16])
    assert (magic, attributes, skip) == (0x5A4D, 3, 0)
    assert (faces, vertices) == (len(surface.faces), len(surface.vertices_mm))
    assert len(raw) == 16 + 12 * (faces + vertices)
    found = np.frombuffer(raw[16:], "<i4", 3 * faces).reshape(-1, 3)
    assert np.array_equal(found, surface.faces)
    at = np.frombuffer(raw[16 + 12 * faces :], "<f4").reshape(-1, 3)
    assert np.abs(at - surface.vertices_mm).max() < 0.01


def test_the_middle_is_in_the_fullest_slice_and_inside() -> None:
    labels = np.zeros((5, 20, 20), np.uint8)
    labels[1, 2:4, 2:4] = 1
    labels[3, 4:14, 4:14] = 2
    labels[3, 6:12, 6:12] = 0  # a ring: its centre is not inside
    k, row, column = middle_of(labels)
    assert k == fullest_slice(labels) == 3 and labels[k, row, column] == 2
    assert middle_of(np.zeros((4, 6, 8))) == (2, 3, 4) and fullest_slice(np.zeros((4, 6, 8))) == 2


def test_the_still_pictures_have_words() -> None:
    content = make_content()
    at = middle_of(content.labels.data[0].numpy())
    still = draw_planes(content.scan, content.labels, content.schema, at)
    assert still.png.startswith(b"\x89PNG") and len(still.png) < 500_000
    assert f"slice {at[0] + 1} of {content.scan.grid.shape[0]}" in still.alt
    formula = LabelSchema.from_names({n: f"$_$ {name}" for n, name in content.schema.names.items()})
    assert "$_$ kidney" in draw_planes(content.scan, content.labels, formula, at).alt


def test_a_missing_or_altered_viewer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    with pytest.raises(UsageError, match=r"python -m kidseg\.report\.vendor") as missing:
        viewer_script()
    assert missing.value.code == "missing-viewer"
    (tmp_path / "niivue.umd.js").write_text("fetch('http://elsewhere')")
    with pytest.raises(ModelError) as altered:
        viewer_script()
    assert altered.value.code == "damaged-viewer"


def test_numbers_in_the_data_are_those_of_the_grid(page: Page) -> None:
    data = page.content
    product = np.array(data["mm_from_index"]) @ np.array(data["index_from_mm"])
    assert np.allclose(product, np.eye(4), atol=1e-9)
    assert data["shape"] == list(make_content().scan.grid.shape)
    assert json.dumps(data).count("NaN") == 0


@pytest.mark.parametrize(
    ("review", "said"),
    [
        (
            {"interval": "conformal", "calibrated_on": 99, "calibrated_scans": "digital patients"},
            "were calibrated on 99 digital patients, and hold for scans like these; for others,"
            " take them as too narrow.",
        ),
        ({"interval": "conformal", "calibrated_on": 20}, "calibrated on 20 labelled scans"),
        ({"interval": "doubt"}, "are of 4 opinions, and not calibrated"),
        ({"structures": {"kidney": {"volume_ml": 40.0, "interval_ml": None}}}, ""),
    ],
)
def test_what_intervals_are_worth_is_said_beside_them(review: dict[str, Any], said: str) -> None:
    record = {**RECORD, "review": {**RECORD["review"], **review}}
    words = Page(page_of(make_content(record=record))).words
    assert (said in sections.intervals(record)) and bool(sections.intervals(record)) == bool(said)
    assert words.count("intervals of the segmentation") == (2 if said else 0) and said in words
