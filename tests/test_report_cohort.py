"""Pages of cohorts: the worst first, pictures of the right slice, links between pages."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import call_cli
from ellipses import make_ellipse_patient, write_ellipse_dataset
from kidseg.compare import compare
from kidseg.evaluate import evaluate
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions, read, save
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.report import cohort_page as module
from kidseg.report.cohort_page import Case, Cell, Picture, cohort_page, pictures_in
from kidseg.report.overlay import Found, draw_case, draw_overlay, worst_slice
from kidseg.segment.batch_page import write_batch_page
from kidseg.segment.index import record_failure, record_scan
from pages import Page, assert_loads_nothing, opened

ONE = Picture(png=b"\x89PNG one", alt="one", made_of="abc")


def image_of(png: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ of three patients; labels a/ (one of them half missing) and b/ (all right), scored."""
    root = tmp_path_factory.mktemp("scored")
    write_ellipse_dataset(root / "data", 3)
    for name in ("a", "b"):
        (root / name).mkdir()
        for file in (root / "data" / "labelsTr").iterdir():
            labels = read(file, ReadOptions(values="labels")).volume
            if name == "a" and "001" in file.name:
                labels.data[:, :, :, 30:] = 0
            save(labels, root / name / file.name)
        evaluate(root / name, root / "data", root / f"scores_{name}")
    return root


def names_in(page: Page) -> list[str]:
    keys = [a["data-key"] for t, a in page.elements if t == "button" and "data-key" in a]
    named = {key: shown[0]["case"] for key, shown in page.content["images"].items()}
    return [named[str(key)] for key in keys]


def test_an_evaluation_has_a_page_with_the_worst_case_first(scored: Path) -> None:
    page = opened(scored / "scores_a" / "cohort.html")
    assert_loads_nothing(page)
    assert names_in(page)[0] == "ellipse_001" and len(names_in(page)) == 3
    with (scored / "scores_a" / "cases.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = {a["data-value"] for _, a in page.elements if "data-value" in a}
    assert {row["dice"] for row in rows if row["dice"]} <= values
    assert "Research use only. Not a medical device." in page.words


def test_pictures_show_the_images_of_a_data_set_and_of_a_folder(
    scored: Path, tmp_path: Path
) -> None:
    (shown,) = pictures_in(scored / "scores_a" / "cohort.html")["ellipse_001"]
    assert "largest error" in shown.alt and "not shown" not in shown.alt
    labels = scored / "data" / "labelsTr"
    evaluate(scored / "a", labels, tmp_path / "without")
    (bare,) = pictures_in(tmp_path / "without" / "cohort.html")["ellipse_001"]
    assert "its image is not shown" in bare.alt
    assert image_of(bare.png).mean() < image_of(shown.png).mean()
    images = scored / "data" / "imagesTr"
    evaluate(scored / "a", labels, tmp_path / "with", images=images)
    assert pictures_in(tmp_path / "with" / "cohort.html")["ellipse_001"] == [shown]


def test_an_image_that_is_unfit_leaves_the_labels(scored: Path, tmp_path: Path) -> None:
    for file in (scored / "data" / "imagesTr").iterdir():
        (tmp_path / file.name).write_bytes(b"no image")
    out = tmp_path / "out"
    evaluate(scored / "a", scored / "data" / "labelsTr", out, images=tmp_path)
    assert all("not shown" in p.alt for (p,) in pictures_in(out / "cohort.html").values())


def test_the_images_are_an_option(scored: Path, tmp_path: Path) -> None:
    call = [
        "evaluate",
        str(scored / "b"),
        str(scored / "data" / "labelsTr"),
        "-o",
        str(tmp_path / "o"),
    ]
    assert call_cli(*call, "--images", scored / "data", "--quiet") == 0
    assert not any(
        "not shown" in p.alt for (p,) in pictures_in(tmp_path / "o/cohort.html").values()
    )


def test_a_comparison_links_its_evaluations_and_shows_their_pictures(
    scored: Path, tmp_path: Path
) -> None:
    runs = [scored / "scores_a", scored / "scores_b"]
    compare(runs, scored / "compared")
    page = opened(scored / "compared" / "compare.html")
    links = [a for a in page.addresses if a.endswith("cohort.html")]
    assert [(scored / "compared" / link).resolve() for link in links] == [
        (run / "cohort.html").resolve() for run in runs
    ]
    assert names_in(page)[0] == "ellipse_001", "the case in which they differ"
    assert [p["alt"].split(",")[0] for p in page.content["images"]["case-0"]] == [
        "scores_a", "scores_b",
    ]  # fmt: skip


def test_pictures_of_a_page_can_be_read_again(tmp_path: Path) -> None:
    cases = [Case(name="</script>", cells=[], pictures=[ONE, ONE]), Case(name="b", cells=[])]
    path = tmp_path / "page.html"
    path.write_text(cohort_page("t", [], cases), encoding="utf-8")
    assert pictures_in(path) == {"</script>": [ONE, ONE]}
    for damaged in ("", '<script type="application/json" id="data">{}</script>', "{"):
        path.write_text(damaged)
        assert pictures_in(path) == {}
    assert pictures_in(tmp_path / "missing.html") == {}


def test_a_page_is_bounded_and_says_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 2 * len(ONE.png))
    cases = [Case(name=f"c{k}", cells=[], pictures=[ONE]) for k in range(3)]
    page = Page(cohort_page("t", [], cases))
    assert list(page.content["images"]) == ["case-0", "case-1"], "the first, which are the worst"
    assert "The pictures of 1 case(s) are left out" in page.words


def test_cells_that_are_not_known_have_no_value() -> None:
    cells = [Cell(text="-"), Cell(text="0.5", value=0.5), Cell(text="open", path="a%20b.html")]
    page = Page(cohort_page("t", ["x", "y", "z"], [Case(name="c", cells=cells)]))
    assert [a.get("data-value") for t, a in page.elements if t == "td"] == [None, "0.5", None]
    assert "a%20b.html" in page.addresses


def test_the_worst_slice_has_most_wrong_pixels() -> None:
    true = np.zeros((4, 10, 10), np.uint8)
    true[2, 2:8, 2:8] = 1
    found = true.copy()
    assert worst_slice(found, true) == 2, "without errors that with most labels"
    found[1, 0, :3] = 2
    assert worst_slice(found, true) == 1


def test_an_overlay_shows_found_and_true_in_their_colours() -> None:
    found, true = (np.zeros((60, 80), np.uint8) for _ in range(2))
    found[10:30, 10:30], true[30:50, 50:70] = 1, 2
    image = np.full((60, 80), -160)
    shown = image_of(draw_overlay(image, found, true, KIDNEY_TUMOUR, (1.0, 1.0)))
    rows, columns = shown.shape[:2]
    assert columns == 360 and rows == 270
    colour = np.array(KIDNEY_TUMOUR.labels[0].rgb)
    inside = shown[20 * 9 // 2, 20 * 9 // 2]
    assert np.abs(inside - 0.35 * colour).max() < 12
    assert shown[40 * 9 // 2, 60 * 9 // 2].max() == 0, "the reference is not filled"
    edge = shown[30 * 9 // 2 : 50 * 9 // 2, 50 * 9 // 2 : 50 * 9 // 2 + 1].reshape(-1, 3)
    assert (edge.min(1) > 240).any() and (edge.min(1) < 30).any(), "it is dashed"


@pytest.mark.parametrize("spacing", [(5.0, 0.5, 0.5), (1.0, 2.0, 0.7)])
def test_a_picture_has_the_proportions_of_the_patient(spacing: tuple[float, float, float]) -> None:
    grid = Grid.from_spacing((3, 400, 300), spacing)
    labels = np.zeros(grid.shape, np.uint8)
    labels[1, 100:300, 100:200] = 1
    picture = draw_case(Found(found=labels, grid=grid, schema=KIDNEY_TUMOUR))
    rows, columns = image_of(picture.png).shape[:2]
    assert max(rows, columns) in range(355, 366) and len(picture.png) < 60_000
    high, wide = (1.5 * 200 * spacing[1], max(1.5 * 100 * spacing[2], 120.0))
    assert rows / columns == pytest.approx(high / min(wide, 300 * spacing[2]), rel=0.05)


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    """A folder of results: one with a scan, one whose scan is gone, and one that failed."""
    patient = make_ellipse_patient(0)
    (tmp_path / "scans").mkdir()
    save(patient.image, tmp_path / "scans" / "a.nii.gz")
    out = tmp_path / "out"
    out.mkdir()
    for name, warned in (("a", 0), ("b", 2)):
        save(patient.labels, out / f"{name}.tmp.nii.gz")
        warning = {"code": "w", "cause": "c", "next_step": "", "path": "", "severity": "warning"}
        entry = {
            "name": name,
            "path": str(tmp_path / "scans" / f"{name}.nii.gz"),
            "sha256": name,
            "reading": {"trust": None, "spacing_mm": None, "series": None, "repair": False},
            "outputs": [f"{name}_seg.nii.gz"],
            "labels": {"1": "kidney", "2": "tumour"},
            "model": {"sha256": "m"},
            "date": "today",
            "volumes_ml": {"kidney": 12.34},
            "warnings": [warning] * warned,
            "seconds": {"read": 1.0, "segment": 2.0},
        }
        record_scan(out, entry, {out / f"{name}.tmp.nii.gz": out / f"{name}_seg.nii.gz"})
    record_failure(out, {"name": "z", "path": "z.nii", "code": "bad", "cause": "it is <broken>"})
    return out


def test_a_batch_has_a_page_with_failures_and_warnings_first(batch: Path) -> None:
    write_batch_page(batch)
    page = opened(batch / "cohort.html")
    assert_loads_nothing(page)
    buttons = [a["data-key"] for t, a in page.elements if t == "button" and "data-key" in a]
    assert len(buttons) == 3
    z, b, a = (page.words.index(text) for text in (" z it is <broken>", " b done", " a done"))
    assert z < b < a and "12.3" in page.words and "3.0" in page.words
    shown = pictures_in(batch / "cohort.html")
    assert "not shown" not in shown["a"][0].alt and "not shown" in shown["b"][0].alt


def test_pictures_of_a_batch_are_drawn_once(batch: Path) -> None:
    write_batch_page(batch)
    first = pictures_in(batch / "cohort.html")
    (batch / "a_seg.nii.gz").unlink()  # nothing is left to draw from
    write_batch_page(batch)
    assert pictures_in(batch / "cohort.html") == first


def test_a_single_scan_has_no_cohort(tmp_path: Path) -> None:
    record_failure(tmp_path, {"name": "z", "path": "z.nii", "code": "bad", "cause": "broken"})
    write_batch_page(tmp_path)
    assert not (tmp_path / "cohort.html").exists()


def test_labels_of_a_grid_without_labels_are_drawn_too() -> None:
    grid = Grid.from_spacing((2, 20, 30), (1.0, 1.0, 1.0))
    volume = Volume(torch.zeros((1, 2, 20, 30), dtype=torch.uint8), grid)
    picture = draw_case(Found(found=volume.data[0].numpy(), grid=grid, schema=KIDNEY_TUMOUR))
    assert image_of(picture.png).shape[:2] == (240, 360) and "slice 2 of 2" in picture.alt
