"""Scans per hour of one process and of several workers on this machine, and whether labels differ.

Run: python benchmarks/cohort.py [--scans 12] [--size 256] [--jobs 1 2]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(*words: object) -> tuple[float, float]:
    """Run kidseg; (wall time, CPU time of it and its workers) in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "kidseg", *map(str, words), "--quiet"], check=True)
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def labels_in(folder: Path) -> str:
    """One digest of the labels of all scans."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*_seg.nii.gz")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=12)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        run("phantom", root / "data", "--patients", arguments.scans, "--size", arguments.size)
        scans = root / "data" / "imagesTr"
        ways = {"one process": ()} | {
            f"{jobs} worker{'s' * (jobs > 1)}": ("--cluster", "local", "--jobs", jobs)
            for jobs in arguments.jobs
        }
        print(f"{arguments.scans} scans, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        print("| | wall s | CPU s | CPU s a scan | wall, of one process | labels |")
        print("|---|--:|--:|--:|--:|---|")
        first: tuple[float, str] | None = None
        for way, options in ways.items():
            out = root / way.replace(" ", "-")
            wall, cpu = run("segment", scans, "-o", out, *options)
            digest = labels_in(out)
            first = first or (wall, digest)
            same = "same" if digest == first[1] else "DIFFERENT"
            print(
                f"| {way} | {wall:.0f} | {cpu:.0f} | {cpu / arguments.scans:.1f}"
                f" | {wall / first[0]:.2f} | {same} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
