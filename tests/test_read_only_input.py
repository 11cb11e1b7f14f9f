"""Inputs in folders that nobody can write into: every command reads them and leaves them alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from annotated_folders import Roi, annotated, circle
from trained import copied

_NOBODY = 65534


def command(*words: str | Path) -> list[str]:
    """Without the rights of root, which may write anywhere."""
    if os.geteuid() != 0:
        return [sys.executable, *map(str, words)]
    if shutil.which("setpriv") is None:
        pytest.skip("to drop the rights of root, setpriv is needed (util-linux)")
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]
    return [*drop, sys.executable, *map(str, words)]


def kidseg(*words: str | Path) -> subprocess.CompletedProcess[str]:
    ran = command("-m", "kidseg", *words)
    return subprocess.run(ran, capture_output=True, text=True, check=False, timeout=600)


def state(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Mode, time of change and content of everything; a file that came and went changes a time."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        stat = path.stat()
        content = sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path)] = (stat.st_mode, stat.st_mtime_ns, content)
    return found


@pytest.fixture
def read_only(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """A data set in data/, a model in run/, a series with its structure set in dicom/."""
    root = copied(trained, tmp_path / "in")
    rois = [Roi(name="RTKIDNEY1", contours=[circle(k) for k in range(4)])]
    annotated(root / "dicom", rois)
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.chown(path, _NOBODY, _NOBODY)
    before = state(root)
    yield root
    assert state(root) == before
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_nothing_can_be_written_there(read_only: Path) -> None:
    write = f"open({str(read_only / 'new')!r}, 'w')"
    ran = subprocess.run(command("-c", write), capture_output=True, text=True, check=False)
    assert "PermissionError" in ran.stderr


@pytest.mark.ci
@pytest.mark.parametrize(
    "words",
    [
        ("check", "data"),
        ("check", "dicom/images"),
        (
            "measure",
            "data/labelsTr/ellipse_000.nii.gz",
            "--ct",
            "data/imagesTr/ellipse_000_0000.nii.gz",
        ),
        ("contours", "dicom"),
    ],
)
def test_commands_that_only_look(read_only: Path, words: tuple[str, ...]) -> None:
    places = [
        word if k == 0 or word[0] == "-" else read_only / word for k, word in enumerate(words)
    ]
    ran = kidseg(*places, "--json")
    assert ran.returncode == 0, ran.stderr
    assert "error" not in json.loads(ran.stdout)


@pytest.mark.slow
def test_results_go_into_another_folder(read_only: Path, tmp_path: Path) -> None:
    scans, out = read_only / "data/imagesTr", tmp_path / "out"
    model = read_only / "run/model.safetensors"
    ran = kidseg(
        "segment", scans, "-m", model, "-o", out, "--formats", "nii,html", "--device", "cpu"
    )
    assert ran.returncode == 0, ran.stderr
    assert len(list(out.glob("*_seg.nii.gz"))) == 4
    ran = kidseg("measure", out, "--ct", scans, "-o", tmp_path / "measures")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.ci
def test_a_result_that_would_go_there_is_refused_before_the_work(read_only: Path) -> None:
    scans, model = read_only / "data/imagesTr", read_only / "run/model.safetensors"
    ran = kidseg("segment", scans, "-m", model, "-o", read_only / "out", "--json")
    assert ran.returncode == 3, ran.stderr
    assert json.loads(ran.stdout)["error"]["code"] == "not-writable"
