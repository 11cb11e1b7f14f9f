"""The tutorials can be followed: all commands, in order, in an empty folder, with real parts.

What a person does in the window of 3D Slicer is done to the same scene in slicer-core, and by the
client through which its plug-in MONAILabel speaks to the server.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLICER = os.environ.get("SLICER_PYTHON", "")
BLOCK = re.compile(r"^```(\w+)\n([\s\S]*?)^```$|((?:^ {4}.*\n|^\n)+)", re.MULTILINE)
HEALTH = "api/v1/health"


def section(text: str, heading: str) -> str:
    """A page's part below a heading of second order, which begins with these words."""
    return re.split(r"^## ", text.split(f"\n## {heading}")[1], flags=re.MULTILINE)[0]


def shell_blocks(text: str, python: str = "false") -> list[str]:
    """The commands of a page as lines of a shell, of each block.

    Args:
        text: of the page.
        python: command that runs a file with lines of the Python console.
    """
    found = []
    for language, block, indented in (match.groups() for match in BLOCK.finditer(text)):
        if language == "python":
            found.append(f"cat > console.py <<'LINES'\n{block}LINES\n{python} console.py\n")
        elif language == "console":
            found.append(block)
        elif indented and indented.strip():
            found.append(re.sub("^ {4}", "", indented, flags=re.MULTILINE))
    return found


def shell_lines(text: str, python: str = "false") -> str:
    """All of them."""
    return "".join(shell_blocks(text, python))


def follow(lines: str, folder: Path, **environment: str) -> str:
    """Run lines in one shell, which stops at the first that fails; what it printed.

    The processes that it leaves in the background end with it.
    """
    end = "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-e", "-u", "-x", "-o", "pipefail", "-c", end + lines]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-5000:]}"
    return done.stdout


def on_free_ports(text: str, ports: Mapping[str, str]) -> str:
    """A text with other port numbers, in case something of this machine listens on its own."""
    for port, free in ports.items():
        text = re.sub(rf"\b{port}\b", free, text)
    return text


def free_ports(*named: str) -> dict[str, str]:
    held = [socket.socket() for _ in named]
    for each in held:
        each.bind(("127.0.0.1", 0))
    found = {port: str(each.getsockname()[1]) for port, each in zip(named, held, strict=True)}
    for each in held:
        each.close()
    return found


def page(name: str) -> str:
    return (ROOT / "docs" / f"tutorial_{name}.md").read_text()


def test_the_lines_of_a_page_are_its_commands() -> None:
    text = "# A\n\n## 1. B\n\n    one\n    two\n\nText.\n\n```python\nx\n```\n\n```toml\ny\n```\n"
    text += "\n## 2. C\n\n```console\nthree \\\n  four\n```\n"
    lines = [line for line in shell_lines(section(text, "1. B"), "run").split("\n") if line]
    assert lines == ["one", "two", "cat > console.py <<'LINES'", "x", "LINES", "run console.py"]
    assert shell_lines(section(text, "2. C")).split() == ["three", "\\", "four"]
    for name in ("researcher", "clinician", "engineer"):
        assert "kidseg segment" in shell_lines(page(name)) or name == "clinician"


def test_a_failing_line_stops_the_page(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        follow("false\ntouch after", tmp_path)
    with pytest.raises(AssertionError):
        follow("false | cat\ntouch after", tmp_path)
    assert not any(tmp_path.iterdir())
    assert follow("sleep 100 &\necho done", tmp_path) == "done\n"


@pytest.mark.slow
def test_the_researcher(tmp_path: Path) -> None:
    follow(shell_lines(page("researcher")), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not SLICER, reason="SLICER_PYTHON is not a Python with the package slicer-core")
@pytest.mark.skipif(
    find_spec("monailabel") is None, reason="needs monailabel (pip install --no-deps) and requests"
)
def test_the_clinician(tmp_path: Path) -> None:
    scene, plugin = (ROOT / "tests" / f"slicer_{name}.py" for name in ("scene", "plugin"))
    scan = tmp_path / "child" / "phantom_0000" / "ct" / "0001.dcm"
    console = shlex.join([SLICER, str(scene), "follow", str(tmp_path), str(scan)])
    lines = shell_lines(page("clinician"), console)
    ports = free_ports("8000")
    lines = lines.replace("kidseg serve", f"kidseg serve --port {ports['8000']}")
    address = f"http://127.0.0.1:{ports['8000']}"
    by_hand = f"""
until curl -s {address}/{HEALTH} | grep -q '"status":"ok"'; do sleep 1; done
{shlex.join([sys.executable, str(plugin), address])} more
"""
    assert lines.count("\nls mine/models") == 1
    follow(lines.replace("\nls mine/models", by_hand + "ls mine/models"), tmp_path)
    for name in ("corrected_report.html", "corrected_seg.dcm", "corrected_seg_tumour.stl"):
        assert (tmp_path / "report" / name).stat().st_size > 1000
    assert (tmp_path / "measures" / "corrected_measurements.json").exists()
    assert (tmp_path / "second" / "phantom_0000_seg.nii.gz").exists()


@pytest.mark.slow
def test_the_engineer(tmp_path: Path) -> None:
    """All but the container, whose commands tests/test_container.py runs."""
    needed = ("Orthanc", "openssl", "curl", "systemd-analyze")
    if missing := [name for name in needed if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}: Debian packages orthanc, openssl, curl")
    if not list(Path("/usr/share/orthanc/plugins").glob("*DicomWeb*")):
        pytest.skip("needs the Debian package orthanc-dicomweb")
    text = page("engineer").replace(section(page("engineer"), "6. "), "")
    lines = on_free_ports(shell_lines(text), free_ports("8042", "4242", "8443", "11112"))
    said = follow(lines, tmp_path, SOURCE=str(ROOT), PYTHONPATH="")
    assert said.count('Modality" : "SEG"') == 3, "one study by DICOMweb, then two"
    assert (tmp_path / "scan_seg.dcm").stat().st_size > 1000
