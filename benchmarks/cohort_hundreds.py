"""A cohort of hundreds in one run: broken scans among them, killed, resumed; memory, time, sizes.

The scans are a few small digital patients, cut to a few slices, under many names: the load is that
of hundreds of scans, their variety is not. One process begins and is killed (kill -9) after a
third; workers go on, one of which is killed half-way. Prints the memory of the command over the
run, and what it leaves.

Run: python benchmarks/cohort_hundreds.py [--scans 300] [--jobs 2] [--model MODEL] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import psutil

SIZE, SLICES, PATIENTS = 64, 16, 5
ODD_NAMES = (
    "with spaces",
    "-leading-dash",
    "--help",
    "käse-日本-ñ",
    "nai\u0308ve",  # i and a combining mark
    "100%",
    "a&b <i>c</i>",
    "quo'te\"s",
    "semi;colon,comma",
    "=1+1",
    "new\nline",
    "dots.in.name",
)


@dataclass
class Course:
    """The memory of a command over the scans that it has done."""

    done: list[int] = field(default_factory=list)
    resident_mb: list[float] = field(default_factory=list)

    def note(self, done: int, process: psutil.Process) -> None:
        resident = process.memory_info().rss
        if resident:  # it has not just ended
            self.done.append(done)
            self.resident_mb.append(resident / 1e6)

    def at(self, share: float) -> float:
        """Median MB in a twentieth of the scans from this share of them on."""
        first, last = self.done[0], self.done[-1]
        low = first + share * (last - first)
        near = [
            mb
            for done, mb in zip(self.done, self.resident_mb, strict=True)
            if low <= done <= low + (last - first) / 20
        ]
        return statistics.median(near or self.resident_mb[-1:])


def kidseg(*words: object) -> list[str]:
    return [sys.executable, "-m", "kidseg", *map(str, words)]


def make_patients(root: Path) -> list[Path]:
    """A few digital patients, cut to the slices around the middle of their kidneys."""
    patients = ("--patients", PATIENTS, "--size", SIZE, "--seed", 1, "--quiet")
    subprocess.run(kidseg("phantom", root / "data", *patients), check=True)
    found = []
    for file in sorted((root / "data" / "imagesTr").glob("*.nii.gz")):
        image = nibabel.load(file)
        labels = nibabel.load(root / "data" / "labelsTr" / file.name.replace("_0000.nii", ".nii"))
        occupied = np.flatnonzero(np.asarray(labels.dataobj).any((0, 1)))
        first = max(0, int(occupied.mean()) - SLICES // 2)
        part = root / "parts" / file.name
        part.parent.mkdir(exist_ok=True)
        nibabel.save(image.slicer[:, :, first : first + SLICES], part)
        found.append(part)
    return found


def broken(file: Path) -> dict[str, Callable[[Path], object]]:
    """{name: writes a scan that cannot be segmented}."""
    data = file.read_bytes()
    image = nibabel.load(file)
    voxels = np.asarray(image.dataobj)

    def with_affine(matrix: np.ndarray) -> Callable[[Path], object]:
        made = nibabel.Nifti1Image(voxels, matrix)
        return lambda path: nibabel.save(made, path)

    return {
        "bad-truncated": lambda path: path.write_bytes(data[: len(data) // 2]),
        "bad-empty": lambda path: path.write_bytes(b""),
        "bad-html": lambda path: path.write_bytes(b"<html>not found</html>"),
        "bad-crc": lambda path: path.write_bytes(data[:-8] + b"\0" * 8),
        "bad-link": lambda path: path.symlink_to("nowhere"),
        "bad-pipe": os.mkfifo,
        "bad-sheared": with_affine(image.affine @ (np.eye(4) + 0.5 * np.eye(4, k=2))),
        "bad-four-volumes": lambda path: nibabel.save(
            nibabel.Nifti1Image(np.stack([voxels] * 4, -1), image.affine), path
        ),
        f"bad-name-{'x' * 236}": lambda path: path.write_bytes(data),
    }


def make_scans(folder: Path, patients: Sequence[Path], count: int) -> set[str]:
    """Write the scans; the names of the broken ones."""
    folder.mkdir()
    bad = broken(patients[0])
    names = [*ODD_NAMES, "one/same name", "two/same name", "deep/er/same name"]
    names += [f"hospital-{k % 7}/scan-{k:04d}" for k in range(count - len(names) - len(bad))]
    for k, name in enumerate(names):
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(patients[k % len(patients)], path)
    for k, (name, write) in enumerate(bad.items()):
        write(folder / f"hospital-{k % 7}" / f"{name}.nii.gz")
    return set(bad)


def follow(
    command: Sequence[str],
    log: Path,
    events: dict[int, Callable[[psutil.Process], object]],
) -> tuple[int, float, Course]:
    """Run a command: (exit code, wall time in seconds, memory).

    Args:
        command: to run.
        log: for what it says.
        events: {number of scans: what is done to it then}.
    """
    start, course = time.perf_counter(), Course()
    with log.open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    watched = psutil.Process(process.pid)
    left = dict(events)
    while process.poll() is None:
        lines = sum(line.startswith("[") for line in log.read_text(errors="replace").splitlines())
        if lines:
            try:
                course.note(lines, watched)
            except psutil.Error:
                break
        for number in [number for number in left if lines >= number]:
            left.pop(number)(watched)
        time.sleep(0.5)
    return process.wait(), time.perf_counter() - start, course


def kill_a_worker(command: psutil.Process) -> None:
    """Kill a process that segments, with SIGKILL."""
    workers = [
        child
        for child in command.children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]
    workers[-1].kill()
    print(f"killed a worker of {len(workers)}", flush=True)


def tell(name: str, code: int, wall: float, course: Course, scans: int) -> None:
    memory = " ".join(f"{course.at(share):.0f}" for share in (0, 0.25, 0.5, 0.75, 0.95))
    print(
        f"| {name} | {code} | {scans} | {wall:.0f} | {wall / max(1, scans):.2f} | {memory}"
        f" | {max(course.resident_mb):.0f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--out", type=Path, help="keep everything here; must not exist")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.out or Path(scratch)
        root.mkdir(exist_ok=arguments.out is None)
        bad = make_scans(root / "scans", make_patients(root), arguments.scans)
        run_cohort(root, arguments, bad)


def run_cohort(root: Path, arguments: argparse.Namespace, bad: set[str]) -> None:
    out, scans, jobs = root / "out", arguments.scans, arguments.jobs
    print(
        f"{scans} scans, {len(bad)} broken, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print("| | exit code | scans | wall s | s a scan | command MB at 0 25 50 75 95 % | most |")
    print("|---|--:|--:|--:|--:|---|--:|")
    command = kidseg("segment", root / "scans", "-m", arguments.model, "-o", out)
    third = {scans // 3: lambda process: process.send_signal(signal.SIGKILL)}
    code, wall, course = follow(command, root / "first.log", third)
    before = len(json.loads((out / "result.json").read_text())["scans"])
    tell("one process, killed", code, wall, course, course.done[-1])
    half = {scans // 3: kill_a_worker}
    again = [*command, "--resume", "-j", str(jobs)]
    code, wall, course = follow(again, root / "second.log", half)
    tell(f"resumed, {jobs} workers", code, wall, course, scans - before)
    code, wall, course = follow([*command, "--resume"], root / "third.log", {})
    tell("resumed, nothing left", code, wall, course, len(bad))
    rows = list(csv.DictReader((out / "summary.csv").open(newline="")))
    failed = {row["name"]: row["error"] for row in rows if row["error"]}
    labels = len(list(out.glob("*_seg.nii.gz")))
    left = [path.name for path in out.iterdir() if path.name.startswith(".")]
    print(f"\n{len(rows)} rows, {len(rows) - len(failed)} done, {labels} label files, left: {left}")
    print(f"failed: {json.dumps({name[:20]: code for name, code in failed.items()})}")
    print(f"failed, not broken: {sorted(set(failed) - bad)}; done, broken: {bad - set(failed)}")
    for name in ("result.json", "summary.csv", "cohort.html"):
        print(f"{name}: {(out / name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
