"""Takes the pictures of the report's pages in docs, in Chromium without a window.

    kidseg phantom patient --patients 1 --seed 3 --ages 4-6 --size 256 --set "slice_mm=[2.0,2.0]"
    kidseg segment patient/imagesTr/phantom_0000_0000.nii.gz -o result --formats nii,html
    kidseg phantom many --patients 24 --ages 0-90 --size 256 --seed 4711 \
        --set "slice_mm=[2.0,5.0]" --set window_share=0.5
    kidseg segment many/imagesTr -o labels
    kidseg evaluate labels many -o scores
    python docs/report_pictures.py result/phantom_0000_report.html scores/cohort.html

Needs selenium, chromium, chromedriver and pdftoppm (poppler-utils). `FOLDER`, a third argument, is
where to write; docs by default.
"""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from browsers import browser, printed, until

WIDTH = 1300
DPI = 70


def shot(driver: Any, first: str, last: str, path: Path) -> None:
    """The part of the page from the top of one element to the bottom of another one."""
    low, high = driver.execute_script(
        "document.querySelector('footer').style.position = 'static';"  # else it is in the middle
        " return [document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY,"
        " document.querySelector(arguments[1]).getBoundingClientRect().bottom + scrollY]",
        first,
        last,
    )
    clip = {"x": 0, "y": low, "width": WIDTH, "height": high - low, "scale": 1}
    found = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True}
    )
    save(Image.open(io.BytesIO(base64.b64decode(found["data"]))), path)


def save(picture: Image.Image, path: Path) -> None:
    """As a PNG of 256 colours, which is a third of the size."""
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def shoot_print(driver: Any, path: Path) -> None:
    """The printed pages, side by side."""
    with tempfile.TemporaryDirectory() as folder:
        pdf = Path(folder) / "page.pdf"
        printed(driver, pdf)
        subprocess.run(["pdftoppm", "-r", str(DPI), "-png", pdf, pdf.with_name("p")], check=True)
        pages = [Image.open(page).convert("RGB") for page in sorted(pdf.parent.glob("p*.png"))]
        gap = 12
        size = (sum(p.width + gap for p in pages) + gap, pages[0].height + 2 * gap)
        sheet = Image.new("RGB", size, "#888888")
        for k, page in enumerate(pages):
            sheet.paste(page, (gap + k * (page.width + gap), gap))
        save(sheet, path)


def main(report: Path, cohort: Path, folder: Path) -> None:
    """All pictures of two pages."""
    with browser() as driver:
        driver.set_window_size(WIDTH, 1100)
        driver.set_script_timeout(600)
        driver.get(report.resolve().as_uri())
        until(driver, "window.report && window.report.ready", 600)
        driver.execute_async_script("setTimeout(arguments[0], 3000)")
        shot(driver, "body", "section[aria-labelledby='h-volumes']", folder / "report.png")
        shot(driver, "#criteria", "#review", folder / "report_criteria.png")
        driver.execute_script("document.querySelector('footer').style.position = ''")
        shoot_print(driver, folder / "report_print.png")
        driver.get(cohort.resolve().as_uri())
        until(driver, "document.querySelector('#overlay img')?.naturalWidth")
        shot(driver, "body", "#cases", folder / "cohort.png")


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(given[0], given[1], given[2] if len(given) > 2 else Path(__file__).parent)
