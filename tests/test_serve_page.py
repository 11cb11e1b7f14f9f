"""The web page, in a real browser: drop a scan, watch it, get the results."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest

from browsers import ARGUMENTS
from dicom_files import series as dicom_series
from serving import Running, make_model, running, scan_of, until

PAGE = files("kidseg.serve") / "page"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # W3C WebDriver, section 12.2


def test_the_page_loads_nothing_from_elsewhere_and_has_no_script_in_it() -> None:
    """So that the policy that the guard sends lets it work, and lets nothing else in."""
    text = (PAGE / "index.html").read_text()
    for link in re.findall(r'(?:src|href)="([^"]+)"', text):
        assert link.startswith("/page/") and (PAGE / link.removeprefix("/page/")).is_file()
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", text)
    script = (PAGE / "page.js").read_text()
    assert not re.search(r"https?:|innerHTML|insertAdjacentHTML|\beval\b|document\.write", script)
    assert "Not a medical device" in text
    for element in re.findall(r'\$\("([^"]+)"\)', script):
        assert f'id="{element}"' in text, element


class Browser:
    """A page in headless Chromium, by the WebDriver protocol."""

    def __init__(self, port: int, downloads: Path) -> None:
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)
        options = {
            "args": [
                *ARGUMENTS,
                *("--disable-background-networking", "--window-size=900,1200"),
            ],
            "prefs": {"download.default_directory": str(downloads)},
        }
        wanted = {
            "alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        }
        made = self.client.post("/session", json={"capabilities": wanted}).json()["value"]
        self.session = f"/session/{made['sessionId']}"

    def do(self, what: str, **content: Any) -> Any:
        answer = self.client.post(f"{self.session}/{what}", json=content).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def run(self, script: str) -> Any:
        return self.do("execute/sync", script=f"return {script}", args=[])

    def find(self, selector: str) -> str:
        return self.do("element", using="css selector", value=selector)[ELEMENT]

    def type(self, selector: str, text: str) -> None:
        self.do(f"element/{self.find(selector)}/value", text=text)

    def click(self, selector: str) -> None:
        self.do(f"element/{self.find(selector)}/click")

    def drop(self, selector: str, file: Path) -> None:
        """Drag a file from outside of the browser over an element, and let go."""
        place = f"document.querySelector('{selector}').getBoundingClientRect()"
        x, y = (self.run(f"{place}.{side} + 9") for side in ("x", "y"))
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": x, "y": y, "data": data}
            self.do("goog/cdp/execute", cmd="Input.dispatchDragEvent", params=event)

    def turn_to_other_window(self) -> None:
        """To the one that was opened last; once there are two."""

        def windows() -> list[str]:
            return self.client.get(f"{self.session}/window/handles").json()["value"]

        until(lambda: len(windows()) == 2)
        here = self.client.get(f"{self.session}/window").json()["value"]
        self.do("window", handle=next(each for each in windows() if each != here))

    def picture(self, path: Path) -> Path:
        answer = self.client.get(f"{self.session}/screenshot").json()["value"]
        path.write_bytes(base64.b64decode(answer))
        return path

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.do("se/log", type="browser")]


@contextmanager
def browsing(downloads: Path) -> Iterator[Browser]:
    program = shutil.which("chromedriver")
    assert program
    with subprocess.Popen([program, "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout
        said = next(line for line in driver.stdout if "successfully on port" in line)
        browser = Browser(int(re.findall(r"port (\d+)", said)[0]), downloads)
        try:
            yield browser
        finally:
            with suppress(httpx.HTTPError):  # it would hide what went wrong before
                browser.client.delete(browser.session)
            driver.terminate()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    make_model(root)
    return root


DROPPED_SERIES = """(() => {
  const moved = new DataTransfer();
  for (let k = 0; k < 25; k++) moved.items.add(new File(["x"], `${k}.dcm`));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: moved }));
})()"""


def open_page(server: Running, browser: Browser) -> None:
    until(lambda: server.service.dispatcher.facts)
    browser.do("url", url=server.url)
    until(lambda: ": ok" in browser.run("document.getElementById('health').textContent"))


@pytest.mark.requirement("server")
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs chromium-driver")
def test_a_scan_is_dropped_followed_and_saved(root: Path, tmp_path: Path) -> None:
    model = root / "run" / "model.safetensors"
    with running(tmp_path / "server", model) as server, browsing(tmp_path) as browser:
        open_page(server, browser)
        scan = tmp_path / "Doe Jane <b>.nii.gz"
        scan.write_bytes(scan_of(root).read_bytes())
        with server.held():
            browser.run("document.addEventListener('drop', (e) => { window.dropped = e; }, true)")
            browser.drop("#drop", scan)
            until(lambda: "running" in browser.run("document.querySelector('.state').textContent"))
            assert browser.run("dropped.isTrusted && dropped.defaultPrevented")
            assert not browser.run("document.querySelector('.over')")
            assert browser.run("document.querySelector('h2').textContent") == scan.name
            browser.picture(tmp_path / "running.png")
        until(lambda: browser.run("document.querySelectorAll('.done .file').length") >= 3)
        until(lambda: browser.run("document.querySelector('.found img')?.naturalWidth") or 0)
        rows = browser.run("document.querySelector('.found table').innerText")
        (job,) = server.client.get("/api/v1/jobs").json()["jobs"]
        for name, volume in job["result"]["volumes_ml"].items():
            assert name in rows and f"{volume:.1f}" in rows
        browser.picture(tmp_path / "done.png")
        browser.click(".file")
        until(lambda: (tmp_path / "scan_seg.nii.gz").is_file())
        href = job["result"]["files"][0]["href"]
        assert (tmp_path / "scan_seg.nii.gz").read_bytes() == server.client.get(href).content
        assert_report_is_seen(browser, job)
        browser.type("#file", f"{root / 'run' / 'plan.json'}\n{root / 'run' / 'config.toml'}")
        refused = "[...document.querySelectorAll('.failed')].map((each) => each.innerText)"
        until(lambda: len(browser.run(refused)) == 2)
        for name, said in zip(("config.toml", "plan.json"), browser.run(refused), strict=True):
            assert name in said and "supported format" in said
        browser.picture(tmp_path / "refused.png")
        assert_a_series_is_chosen(browser, tmp_path)
        browser.run(DROPPED_SERIES)
        assert "25 files" in browser.run("document.getElementById('message').textContent")
        assert len(browser.run(refused)) == 3
        browser.do("refresh")  # the job is still there, under a name that tells nothing
        until(lambda: browser.run("document.querySelectorAll('.done').length") == 2)
        assert "Doe" not in browser.run("document.body.innerText")
        for left in (2, 1, 0):
            browser.click(".job .actions button")
            until(lambda: browser.run("document.querySelectorAll('.job').length") == left)  # noqa: B023
        until(lambda: server.client.get("/api/v1/jobs").json()["jobs"] == [])
        stored = [p for p in (tmp_path / "server").rglob("*") if p.is_file()]
        assert not [p for p in stored if b"Doe" in p.read_bytes() or "Doe" in p.name]
        complaints = browser.complaints()
        assert all("415" in each for each in complaints), complaints


def assert_a_series_is_chosen(browser: Browser, folder: Path) -> None:
    """Of a study with two series the page says what there is, and takes the one that is named."""
    for uid in ("1.2.3", "1.2.4"):
        dicom_series(folder / "study" / uid, uid=uid)
    shutil.make_archive(str(folder / "study"), "zip", folder / "study")
    state, first = "document.querySelector('.state').textContent", "study.zip"
    browser.type("#file", str(folder / first))
    until(lambda: first in browser.run("document.querySelector('h2').textContent"))
    until(lambda: "failed" in browser.run(state))
    assert "series=" in browser.run(state) and "--" not in browser.run(state)
    browser.click("summary")
    browser.type("#series", "1.2.4")
    browser.type("#file", str(folder / first))
    until(lambda: browser.run("document.querySelectorAll('.job').length") == 5)
    until(lambda: browser.run(state) == "done")
    browser.run("document.querySelector('#series').value = ''")


def assert_report_is_seen(browser: Browser, job: dict[str, Any]) -> None:
    """In a window of its own, with its volumes, without a complaint, and apart from the server."""
    if not any(file["format"] == "html" for file in job["result"]["files"]):
        pytest.fail("there is no report: see kidseg.report.vendor")
    here = browser.client.get(f"{browser.session}/window").json()["value"]
    assert (said := browser.complaints()) == [], "\n".join(said)
    browser.click(".report")
    browser.turn_to_other_window()
    until(lambda: "kidney" in browser.run("document.body?.innerText || ''"))
    text = browser.run("document.body.innerText")
    for volume in job["result"]["volumes_ml"].values():
        assert re.search(rf"\b{volume:.1f}\b|\b{volume:.0f}\b", text), volume
    assert browser.run("window.origin") == "null" and browser.run("window.opener") is None
    assert (said := browser.complaints()) == [], "\n".join(said)
    browser.client.delete(f"{browser.session}/window")
    browser.do("window", handle=here)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs chromium-driver")
def test_a_report_is_seen_although_a_token_is_required(root: Path, tmp_path: Path) -> None:
    token = "t" * 30
    model = root / "run" / "model.safetensors"
    with running(tmp_path / "server", model, token=token) as server, browsing(tmp_path) as browser:
        job = server.ended(server.upload(scan_of(root), formats="nii,html")["id"])
        assert job["state"] == "done", job["error"]
        open_page(server, browser)
        browser.type("#token", token)
        browser.click("#login button")
        until(lambda: browser.run("document.querySelectorAll('.done .report').length") == 1)
        assert [each for each in browser.complaints() if "401" not in each] == []
        assert_report_is_seen(browser, job)
        assert {"page-linked", "result-sent"} <= set(server.events())
        assert token not in server.log


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromedriver") is None, reason="needs chromium-driver")
def test_a_token_is_asked_for_and_a_job_can_be_cancelled(root: Path, tmp_path: Path) -> None:
    token = "t" * 30
    model = root / "run" / "model.safetensors"
    with running(tmp_path / "server", model, token=token) as server, browsing(tmp_path) as browser:
        open_page(server, browser)
        until(lambda: not browser.run("document.getElementById('login').hidden"))
        browser.type("#token", token)
        browser.click("#login button")
        until(lambda: browser.run("document.getElementById('login').hidden"))
        with server.held():
            browser.type("#file", str(scan_of(root)))
            until(
                lambda: (
                    "running" in browser.run("document.querySelector('.state')?.textContent || ''")
                )
            )
            browser.click(".job .actions button")
            until(lambda: browser.run("document.querySelectorAll('.cancelled').length") == 1)
        assert server.client.get("/api/v1/jobs").json()["jobs"][0]["state"] == "cancelled"
