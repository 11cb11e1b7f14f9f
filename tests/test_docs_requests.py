"""The requests that the page of the server shows are answered as it says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from serving import make_model, running, scan_of, until

PAGE = Path(__file__).parents[1] / "docs" / "server.md"
ADDRESS = "http://127.0.0.1:8000"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_requests_of_the_page_are_answered(tmp_path: Path) -> None:
    lines = re.findall(r"^    (curl .*)$", PAGE.read_text(), re.MULTILINE)
    assert len(lines) >= 4 and all(ADDRESS in line for line in lines)
    model, job, answers = make_model(tmp_path), "", []
    shutil.copy(scan_of(tmp_path), tmp_path / "scan.nii.gz")
    with running(tmp_path / "server", model) as server:
        until(lambda: server.client.get("/api/v1/health").json()["status"] == "ok", 300)
        for line in lines:
            curl, *words = shlex.split(
                line.replace(ADDRESS, server.url).replace("/ID/", f"/{job}/")
            )
            command = [curl, "--fail", "--silent", *words]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
            answers.append(done.stdout)
            job = job or json.loads(done.stdout)["id"]
    upload, events, _, measures = answers
    assert json.loads(upload)["state"] in ("queued", "running")
    assert b'"state":"done"' in events.splitlines()[-2]
    assert (tmp_path / "scan_seg.nii.gz").stat().st_size > 100
    assert json.loads(measures)["structures"] is not None
