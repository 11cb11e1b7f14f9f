"""The scripts that make the starter run as one, on few small patients with few steps (slow)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kidseg.header import read_header

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = {
    "phantom": "--set size=32 --set max_slices=3",
    "train": "--set segment.steps=1 --set segment.epochs=1 --set segment.min_epochs=0",
    "homogenized": "--set pose.stage.steps=1 --set pose.stage.epochs=1",
}
"""Added to a command, by its name and the method that it trains."""
MOST_PATIENTS = 24
"""Larger cohorts are made of ten patients: intervals need nineteen of two cohorts."""

PARTS = ("first", "second", "third", "fourth", "between", "sixth", "seventh", "eighth", "ninth")
"""The trainings."""

KIDSEG = f"""\
import subprocess, sys
small, command = {SMALL!r}, sys.argv[1:]
if "--patients" in command:
    k = command.index("--patients") + 1
    command[k] = command[k] if int(command[k]) <= {MOST_PATIENTS} else "10"
if "--resume" not in command:
    command += small.get(command[0], "").split()
    if command[0] == "train" and "homogenized" in command:
        command += small["homogenized"].split()
sys.exit(subprocess.run([sys.executable, "-m", "kidseg", *command]).returncode)
"""


def make(out: Path, script: str) -> None:
    """Run a script of `benchmarks` with small cohorts and trainings."""
    small = out.with_name("kidseg.py")
    small.write_text(KIDSEG)
    words = {"KIDSEG": f"{sys.executable} {small}", "PYTHON": sys.executable}
    environment = {**os.environ, **words, "PYTHONWARNINGS": "ignore"}
    subprocess.run(["bash", BENCHMARKS / script, out], check=True, env=environment)


@pytest.mark.slow
def test_the_starter_is_made_by_one_command(tmp_path: Path) -> None:
    """All its trainings, and those that follow; run again, nothing is trained again."""
    out = tmp_path / "out"
    make(out, "starter.sh")
    make(out, "starter_neighbours.sh")
    make(out, "starter_gpu.sh")
    assert len(list((out / "ninth" / "cohort" / "imagesTr").iterdir())) == 40
    trained = [f"{part}/run-{method}" for part in PARTS for method in ("homogenized", "plain")]
    models = {name: (out / name / "model.safetensors").stat().st_mtime_ns for name in trained}
    for name, reach in (
        ("fifth", 0),
        ("smooth", 0),
        ("sixth", 2),
        ("seventh", 2),
        ("lean", 0),
        ("ninth", 0),
        ("tenth", 0),
        ("twelfth", 0),
    ):
        header = read_header(out / name / "starter.safetensors")
        assert len(header["members"]) == (3 if name == "twelfth" else 2) and header["intervals"]
        assert len(header["calibration"]["cases"]) == 20
        assert header["config"]["reach"] == reach
    for script in ("starter.sh", "starter_neighbours.sh", "starter_gpu.sh"):
        make(out, script)
    assert models == {
        name: (out / name / "model.safetensors").stat().st_mtime_ns for name in trained
    }
