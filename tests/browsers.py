"""A real browser without a window: Chromium, driven by Selenium, with software WebGL."""

from __future__ import annotations

import base64
import io
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

ARGUMENTS = (
    *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1100"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)


@contextmanager
def browser() -> Iterator[Any]:
    """A browser that logs its console and its network; skips if it is not installed."""
    pytest.importorskip("selenium", reason="selenium is not installed: pip install 'kidseg[dev]'")
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    from selenium.webdriver import Chrome
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))  # downloads nothing
    try:
        yield driver
    finally:
        driver.quit()


def until(driver: Any, script: str, seconds: float = 120.0) -> None:
    """Wait until a JavaScript expression is true."""
    end = time.monotonic() + seconds
    while not driver.execute_script(f"return Boolean({script})"):
        assert time.monotonic() < end, f"not after {seconds} s: {script}"
        time.sleep(0.1)


def requests(driver: Any) -> list[str]:
    """Addresses that were asked for since the last call, without those that contain their data."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    return [address for address in asked if not address.startswith(("data:", "blob:"))]


def complaints(driver: Any) -> list[str]:
    """Errors and warnings in the console since the last call."""
    return [
        entry["message"]
        for entry in driver.get_log("browser")
        if entry["level"] in ("SEVERE", "WARNING")
    ]


def pixels(driver: Any, canvas: str, seconds: float = 60.0) -> np.ndarray:
    """(rows, columns, 3) of what a canvas shows once it is at rest."""
    end = time.monotonic() + seconds
    last, now = None, _shown(driver, canvas)
    while last is None or not np.array_equal(last, now):
        assert time.monotonic() < end, f"'{canvas}' was never the same twice in {seconds} s"
        last, now = now, _shown(driver, canvas)
    return now


def changed(driver: Any, canvas: str, before: np.ndarray, seconds: float = 60.0) -> np.ndarray:
    """The same, as soon as it clearly differs from an earlier picture."""
    end = time.monotonic() + seconds
    while np.abs((now := pixels(driver, canvas)) - before).mean() <= 0.3:
        assert time.monotonic() < end, f"'{canvas}' shows the same after {seconds} s"
    return now


def _shown(driver: Any, canvas: str) -> np.ndarray:
    """What a canvas shows two frames from now: what was drawn in answer to an event is in it."""
    driver.execute_async_script(
        "const [done] = arguments; requestAnimationFrame(() => requestAnimationFrame(() => done()))"
    )
    shot = driver.find_element("id", canvas).screenshot_as_png
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)


def violations(driver: Any, axe: Path) -> list[str]:
    """What axe-core finds, as lines."""
    # A policy that allows the page's own scripts only does not bind the driver.
    driver.execute_script(axe.read_text(encoding="utf-8"))
    found = driver.execute_async_script(
        "const done = arguments[0];"
        "axe.run().then((r) => done(r.violations.map((v) => v.id + ': ' + v.help + ' ' +"
        " v.nodes.map((n) => n.html.slice(0, 160) + ' ' + n.failureSummary).join(' | '))),"
        " (e) => done(['axe failed: ' + e]));"
    )
    return list(found)


def printed(driver: Any, path: Path) -> list[str]:
    """Print the page as PDF; the text of each page."""
    pypdf = pytest.importorskip("pypdf")
    found = driver.execute_cdp_cmd(
        "Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True}
    )
    path.write_bytes(base64.b64decode(found["data"]))
    return [page.extract_text() for page in pypdf.PdfReader(path).pages]
