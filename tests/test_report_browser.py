"""The report and the page of a cohort in a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest

from axe import AXE, FOLDER
from browsers import browser, changed, complaints, pixels, printed, requests, until, violations
from commands import call_cli
from ellipses import write_ellipse_dataset
from kidseg.io import ReadOptions, read, save
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.report.cohort_page import Case, Cell, Picture, cohort_page
from kidseg.report.overlay import draw_overlay
from kidseg.table import place_text
from pages import make_content, page_of, with_viewer

pytestmark = [pytest.mark.slow, with_viewer]


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the report of a patient made of ellipses, with a picture of steps."""
    overlay = draw_overlay(None, np.ones((20, 60), np.uint8), None, KIDNEY_TUMOUR, (1.0, 1.0))
    page = tmp_path_factory.mktemp("page") / "child_report.html"
    page.write_text(page_of(make_content(steps=overlay)), encoding="utf-8")
    return page.as_uri()


@pytest.fixture
def opened(driver: Any, report: str) -> Any:
    """The browser at the report, whatever page an earlier test left it at."""
    if driver.current_url != report:
        driver.get(report)
        until(driver, "window.report && window.report.ready")
    return driver


def at(driver: Any) -> list[float]:
    """The slice, row and column under the crosshair."""
    found = driver.execute_script("return window.report.here()")
    return [float(v) for v in found]


def press(driver: Any, canvas: str, *keys: str) -> None:
    driver.find_element("id", canvas).send_keys(*keys)


def slide(driver: Any, selector: str, value: float) -> None:
    driver.execute_script(
        "const s = document.querySelector(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        selector,
        value,
    )


def test_it_opens_without_complaints_and_fetches_nothing(opened: Any) -> None:
    assert complaints(opened) == []
    asked = requests(opened)
    assert [a for a in asked if not a.endswith("/child_report.html")] == []


def test_planes_and_surfaces_are_drawn(opened: Any) -> None:
    planes, solid = pixels(opened, "planes"), pixels(opened, "solid")
    assert planes.std() > 20, "the planes are blank"
    green, orange = (np.array(label.rgb) for label in KIDNEY_TUMOUR.labels)
    for colour in (green, orange):  # in their colours, whatever the light
        hue = colour / np.linalg.norm(colour)
        norm = np.linalg.norm(solid, axis=-1)
        alike = (solid @ hue > 0.97 * norm) & (norm > 60)
        assert alike.sum() > 200, colour


@pytest.mark.parametrize(
    ("selector", "value"),
    [
        ("#level", 300),
        ("#width", 60),
        ("#opacity", 100),
        ("input[data-axis='0']", 1),
        ("input[data-axis='1']", 14),
        ("input[data-axis='2']", 20),
    ],
)
def test_sliders_change_the_picture(opened: Any, selector: str, value: float) -> None:
    before = pixels(opened, "planes")
    slide(opened, selector, value)
    changed(opened, "planes", before)
    if "axis" in selector:
        axis = int(selector[-3])
        assert at(opened)[axis] == pytest.approx(value, abs=0.51)


def test_the_sliders_of_the_planes_are_named_and_go_to_both_ends(opened: Any) -> None:
    shape = opened.execute_script("return JSON.parse(document.getElementById('data').text).shape")
    for axis, name in enumerate(("axial", "coronal", "sagittal")):
        slider = opened.find_element("css selector", f"input[data-axis='{axis}']")
        assert name in slider.accessible_name.lower()
        assert int(slider.get_attribute("max")) == shape[axis] - 1
        for end in (0, shape[axis] - 1):
            slide(opened, f"input[data-axis='{axis}']", end)
            assert at(opened)[axis] == pytest.approx(end, abs=0.51)


def test_window_presets_are_told_and_change_the_picture(opened: Any) -> None:
    from selenium.webdriver.common.by import By

    seen = None
    for button in opened.find_elements(By.CSS_SELECTOR, "button[data-low]"):
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        low, high = (float(button.get_attribute(f"data-{end}")) for end in ("low", "high"))
        assert opened.find_element(By.ID, "level-text").text == f"{(low + high) / 2:.0f}"
        seen = pixels(opened, "planes") if seen is None else changed(opened, "planes", seen)


def test_arrow_keys_move_the_slices_and_turn_the_surfaces(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    # Not at an end, where another test may have left it.
    for axis, place in enumerate((3, 20, 20)):
        slide(opened, f"input[data-axis='{axis}']", place)
    start = at(opened)
    for keys, axis, step in (
        ((Keys.ARROW_UP, Keys.ARROW_UP), 0, 2),
        ((Keys.ARROW_DOWN,), 0, -1),
        ((Keys.ARROW_RIGHT,), 2, 1),
        ((Keys.PAGE_DOWN,), 1, 1),
    ):
        press(opened, "planes", *keys)
        wanted = start[axis] + step
        until(opened, f"Math.abs(window.report.here()[{axis}] - {wanted}) < 0.51", 30)
        start = at(opened)
    before = pixels(opened, "solid")
    press(opened, "solid", Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    changed(opened, "solid", before)


def test_the_tab_key_reaches_everything_in_order(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    opened.execute_script("document.querySelector('.skip').focus()")
    seen: list[str] = []
    for _ in range(60):
        active = opened.switch_to.active_element
        seen.append(active.get_attribute("id") or active.get_attribute("data-place") or active.text)
        active.send_keys(Keys.TAB)
        if seen[-1] == "review-1":
            break
    assert seen[0].startswith("Skip")
    wanted = ["removed-0", "level", "width", "opacity", "label-1", "measure", "planes", "solid"]
    assert [name for name in seen if name in wanted] == wanted
    assert seen[-2:] == ["review-0", "review-1"]


def test_a_slice_to_review_moves_the_viewer(opened: Any) -> None:
    from selenium.webdriver.common.by import By

    for k, wanted in enumerate(make_content().record["review"]["slices"]):
        button = opened.find_element(By.CSS_SELECTOR, f"button[data-place='review-{k}']")
        opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        millimetres = opened.execute_script(
            "const r = window.report.planes; return [...r.frac2mm(r.scene.crosshairPos, 0, true)]"
        )
        assert millimetres[2] == pytest.approx(wanted["position_mm"], abs=5.1)


def test_the_position_is_written_as_elsewhere(opened: Any) -> None:
    for axis, index in enumerate((0, 3, 2)):
        slide(opened, f"input.slice[data-axis='{axis}']", index)
    millimetres = opened.execute_script(
        "const r = window.report.planes; return [...r.frac2mm(r.scene.crosshairPos, 0, true)]"
    )
    assert min(abs(v) for v in millimetres[:3]) > 0.1
    said = opened.find_element("id", "at").text
    assert said.startswith(f"At {place_text(millimetres[:3])}")


def test_a_distance_can_be_drawn(opened: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    measure = opened.find_element(By.ID, "measure")
    measure.click()
    canvas = opened.find_element(By.ID, "planes")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    drag = ActionChains(opened).move_to_element_with_offset(canvas, -120, 60).click_and_hold()
    for _ in range(5):
        drag = drag.move_by_offset(10, 6).pause(0.05)
    drag.release().perform()
    found = opened.execute_script(
        "return window.report.planes.document.completedMeasurements.map((m) => m.distance)"
    )
    assert len(found) == 1 and found[0] > 5
    opened.find_element(By.ID, "clear").click()
    assert not opened.execute_script(
        "return window.report.planes.document.completedMeasurements.length"
    )
    measure.click()


def test_views_switch(opened: Any) -> None:
    from selenium.webdriver.common.by import By

    for name, shown in (("planes", "planes"), ("solid", "solid"), ("both", "planes")):
        opened.find_element(By.CSS_SELECTOR, f"button[data-view='{name}']").click()
        for canvas in ("planes", "solid"):
            is_shown = opened.find_element(By.ID, canvas).is_displayed()
            assert is_shown is (name == "both" or canvas == shown)
    assert complaints(opened) == []


def test_a_report_has_no_faults_of_accessibility(opened: Any) -> None:
    assert violations(opened, axe_script()) == []


def axe_script() -> Path:
    path = FOLDER / AXE.name
    if not path.is_file():
        pytest.skip("axe-core was not fetched: python tests/axe.py")
    return path


def test_it_prints_on_two_pages_and_each_says_what_it_is_for(opened: Any, tmp_path: Path) -> None:
    pages = printed(opened, tmp_path / "report.pdf")
    assert len(pages) == 2
    for text in pages:
        assert " ".join(text.split()).endswith("Research use only. Not a medical device. child")
    assert "Warnings" in pages[0] and "Volumes and sizes" in pages[0] and "Provenance" in pages[1]
    assert "Draw a distance" not in pages[0]


@pytest.mark.parametrize("width", [1300, 800, 500])
def test_nothing_is_covered_or_beyond_the_side_of_a_narrow_window(opened: Any, width: int) -> None:
    size = opened.get_window_size()
    opened.set_window_size(width, 900)
    time.sleep(1.0)
    try:
        stage, planes, solid = (
            opened.find_element("id", name).rect for name in ("stage", "planes", "solid")
        )
        for canvas in (planes, solid):
            assert canvas["height"] > 100 and canvas["width"] > 100
            assert canvas["y"] + canvas["height"] <= stage["y"] + stage["height"] + 1
        wide = opened.execute_script("return document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0
    finally:
        opened.set_window_size(size["width"], size["height"])


def test_without_webgl_there_are_still_pictures(driver: Any, tmp_path: Path) -> None:
    page = tmp_path / "child.html"
    page.write_text(page_of(make_content()), encoding="utf-8")
    off = driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {"source": "HTMLCanvasElement.prototype.getContext = () => null"},
    )
    driver.get(page.as_uri())
    until(driver, "!document.getElementById('trouble').hidden")
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", off)
    assert driver.find_element("css selector", "#still img").is_displayed()
    assert not driver.find_element("id", "viewer").is_displayed()


@pytest.fixture
def cohort(driver: Any, tmp_path: Path) -> Any:
    shown = np.zeros((40, 40), np.uint8)
    shown[10:20, 10:30] = 1
    png = draw_overlay(None, shown, shown, KIDNEY_TUMOUR, (1.0, 1.0))
    cases = [
        Case(
            name=name,
            cells=[Cell(text=text, value=value)],
            pictures=[Picture(png=png, alt=f"slice of {name}")],
        )
        for name, text, value in (("b10", "0.2", 0.2), ("b9", "0.9", 0.9), ("a", "-", None))
    ]
    page = tmp_path / "cohort.html"
    page.write_text(cohort_page("Scores", ["Dice"], cases), encoding="utf-8")
    driver.get(page.as_uri())
    return driver


def names(driver: Any) -> list[str]:
    return [b.text for b in driver.find_elements("css selector", "button.case")]


def test_columns_of_a_cohort_sort(cohort: Any) -> None:
    case, dice = cohort.find_elements("css selector", "button.sort")
    dice.click()
    assert names(cohort) == ["b10", "b9", "a"], "what is not known comes last"
    dice.click()
    assert names(cohort) == ["b9", "b10", "a"]
    assert cohort.find_elements("css selector", "th")[1].get_attribute("aria-sort") == "descending"
    case.click()
    assert names(cohort) == ["a", "b9", "b10"], "numbers in names count as numbers"


def test_a_click_shows_the_case(cohort: Any) -> None:
    assert (
        cohort.find_element("css selector", "#overlay img").get_attribute("alt") == "slice of b10"
    )
    cohort.find_elements("css selector", "button.case")[1].click()
    picture = cohort.find_element("css selector", "#overlay img")
    assert picture.is_displayed() and picture.get_attribute("alt") == "slice of b9"
    assert cohort.execute_script("return arguments[0].naturalWidth", picture) > 100
    assert complaints(cohort) == []
    assert [a for a in requests(cohort) if not a.endswith(".html")] == []


def test_the_picture_of_a_case_is_above_the_table_in_a_narrow_window(cohort: Any) -> None:
    size = cohort.get_window_size()
    cohort.set_window_size(500, 900)
    try:
        picture = cohort.find_element("css selector", "#overlay img").rect
        table = cohort.find_element("css selector", "table.sortable").rect
        assert picture["height"] > 50 and picture["y"] + picture["height"] <= table["y"]
    finally:
        cohort.set_window_size(size["width"], size["height"])


def test_a_cohort_has_no_faults_of_accessibility(cohort: Any) -> None:
    assert violations(cohort, axe_script()) == []


STUDY = """
seeds = [0]
validation_share = 0.25
test_patients = 2

[common]
set = ["view.size=32", "unet.size=32", "unet.features=4", "precision=fp32",
  "segment.epochs=2", "segment.min_epochs=0", "segment.steps=1", "segment.batch_size=6"]

[methods.one]
method = "plain"

[methods.other]
method = "plain"
set = ["segment.epochs=3"]
"""


def run(*arguments: str | Path) -> None:
    assert call_cli(*arguments, "--quiet") == 0


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What evaluate, compare and study write: of labels of which one is half missing, and right."""
    root = tmp_path_factory.mktemp("commands")
    write_ellipse_dataset(root / "data", 6)
    for name in ("half", "right"):
        (root / name).mkdir()
        for file in (root / "data" / "labelsTr").iterdir():
            labels = read(file, ReadOptions(values="labels")).volume
            if name == "half" and "001" in file.name:
                labels.data[:, :, :, 30:] = 0
            save(labels, root / name / file.name)
        run("evaluate", root / name, root / "data", "-o", root / f"scores_{name}")
    run("compare", root / "scores_half", root / "scores_right", "-o", root / "compared")
    (root / "study.toml").write_text(STUDY)
    study = ("study", root / "study.toml", "-o", root / "study")
    run(*study, "--dataset", root / "data", "--device", "cpu")
    return root


@pytest.mark.parametrize(
    ("page", "cases", "pictures"),
    [
        ("scores_half/cohort.html", 6, 1),
        ("compared/compare.html", 6, 2),
        ("study/study.html", 2, 2),
    ],
)
def test_pages_that_commands_write_sort_and_show_their_cases(
    driver: Any, commands: Path, page: str, cases: int, pictures: int
) -> None:
    from selenium.webdriver.common.keys import Keys

    requests(driver), complaints(driver)
    driver.get((commands / page).as_uri())
    first = names(driver)
    assert len(first) == cases
    if "study" not in page:
        assert first[0] == "ellipse_001", "the worst case, or that in which they differ"
    shown = driver.find_elements("css selector", "#overlay img")
    assert len(shown) == pictures
    assert all(
        driver.execute_script("return arguments[0].naturalWidth", image) > 100
        and image.get_attribute("alt")
        for image in shown
    )
    title, dice = driver.find_elements("css selector", "button.sort")[:2]
    dice.click()
    scores = [
        float(cell.get_attribute("data-value"))
        for cell in driver.find_elements("css selector", "tbody tr td:nth-child(2)")
    ]
    assert scores == sorted(scores)
    title.send_keys(Keys.ENTER)
    assert names(driver) == sorted(first)
    last = driver.find_elements("css selector", "button.case")[-1]
    last.send_keys(Keys.ENTER)
    assert last.get_attribute("aria-pressed") == "true"
    captions = driver.find_elements("css selector", "#overlay figcaption")
    assert len(captions) == pictures and all(c.text.startswith(last.text) for c in captions)
    for link in driver.find_elements("css selector", "nav a"):
        assert Path(url2pathname(urlsplit(link.get_attribute("href")).path)).is_file()
    assert violations(driver, axe_script()) == []
    assert complaints(driver) == []
    assert [a for a in requests(driver) if not a.endswith(".html")] == []
