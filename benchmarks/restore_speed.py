"""Time and peak memory of inference without the networks, compared with an older version.

    git archive 4907bbc src | tar x -C /tmp/old
    python benchmarks/restore_speed.py --old /tmp/old/src [--slices 200] [-k 3] [--only WORD]

Linux only. Each job runs in a separate process with one thread, old and new in turn; figures are
medians of CPU seconds, and of the peak memory above the start. The results must be equal. A version
without regions resamples each region onto the full scan, slice by slice, and applies argmax.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kidseg.body import body_mask, moments
from kidseg.device import tune_allocator
from kidseg.geometry import Grid, Volume, posed, resample
from kidseg.pipeline import restore
from kidseg.postprocess import remove_small

try:
    from kidseg.labels import Target
    from kidseg.pipeline.steps import Region
except ImportError:  # the older version
    Region = None  # type: ignore[assignment, misc]

Found = list[tuple[str, Volume]]
Job = Callable[[Grid], Callable[[], torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", type=Path, help="folder with an older kidseg package")
    parser.add_argument("--slices", type=int, default=200)
    parser.add_argument("-k", type=int, default=3, help="times each")
    parser.add_argument("--only", default="", help="jobs whose name contains this")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        measure(JOBS[options.job], options.slices)
        return
    print("| job | old s | new s | ratio | old MB | new MB | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name in JOBS:
        if options.only in name:
            print(row(name, options.old, options.slices, options.k), flush=True)


def row(name: str, old: Path | None, slices: int, times: int) -> str:
    runs: dict[str, list[dict[str, float]]] = {"old": [], "new": []}
    for _ in range(times):
        for which, path in (("old", old), ("new", None)):
            if which == "old" and old is None:
                continue
            command = [sys.executable, __file__, "--job", name, "--slices", str(slices)]
            here = os.environ if path is None else {**os.environ, "PYTHONPATH": str(path)}
            done = subprocess.run(command, env=here, capture_output=True, text=True, check=True)
            runs[which].append(json.loads(done.stdout))
    digests = {run["digest"] for which in runs.values() for run in which}
    assert len(digests) == 1, f"{name}: results differ"
    cells = [name]
    for key, form in (("seconds", ".2f"), ("peak_mb", ".0f")):
        before, after = (
            statistics.median(run[key] for run in runs[w]) if runs[w] else float("nan")
            for w in ("old", "new")
        )
        cells += [f"{before:{form}}", f"{after:{form}}", f"{before / max(after, 1e-3):.1f}"]
    return f"| {' | '.join(cells)} |"


def measure(job: Job, slices: int) -> None:
    torch.set_num_threads(1)
    tune_allocator()
    work = job(Grid.from_spacing((slices, 512, 512), (2.5, 0.7, 0.7)))
    ctypes.CDLL(None).malloc_trim(0)  # freed memory would hide the peak
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    began = time.process_time()
    result = work()
    seconds = time.process_time() - began
    peak = memory_mb("VmHWM") - before
    digest = hashlib.sha256(np.ascontiguousarray(result.numpy()).tobytes()).hexdigest()
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "digest": digest}))


def memory_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(key + ":")]
    return int(line.split()[1]) / 1024


# ---- the jobs ----------------------------------------------------------------------------------


def restoring(regions: Callable[[Grid], Found]) -> Job:
    def job(scan: Grid) -> Callable[[], torch.Tensor]:
        found = regions(scan)
        if Region is not None:
            places = [Region(grid=f.grid, name=name, found=f) for name, f in found]
            target = Target(channels=((1,), (2,)))
            return lambda: restore(places, scan, target).data
        if len(found) == 1:
            return lambda: restore(found[0][1], scan).data
        return lambda: all_of_it(found, scan)

    return job


def all_of_it(found: Found, scan: Grid) -> torch.Tensor:
    """Resample all probabilities at all voxels, slice by slice."""
    out = torch.empty((1, *scan.shape), dtype=torch.uint8)
    for k in range(scan.shape[0]):
        means = []
        for name in dict.fromkeys(name for name, _ in found):
            seen = [
                resample(f.slices(k, k + 1), scan.slices(k, k + 1), fill=torch.nan).data.double()
                for own, f in found
                if own == name
            ]
            inside = torch.stack([~values.isnan() for values in seen]).sum(0)
            mean = torch.stack([v.nan_to_num() for v in seen]).sum(0) / inside.clamp(min=1)
            certain = torch.tensor([1.0, 0.0, 0.0]).double()[:, None, None, None]
            means.append(torch.where(inside > 0, mean, certain))
        background = torch.stack([mean[0] for mean in means])
        chosen = torch.stack([mean.argmax(0) for mean in means])
        out[0, k] = torch.where(background == background.amin(0), chosen, 255).amin(0)[0]
    return out


def turned(scan: Grid, side: int) -> Grid:
    lead = (scan.shape[0],)
    angle, scale = torch.full(lead, 0.2), torch.full((*lead, 2), 0.9)
    grid = posed(scan, angle_rad=angle, scale=scale, shift_mm=torch.zeros_like(scale))
    return grid.resized((scan.shape[0], side, side))


def kidneys(grid: Grid) -> Volume:
    """Two kidneys and a tumour as soft ellipses in three of five slices."""
    slices, side = grid.shape[:2]
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    data = torch.zeros(3, *grid.shape)
    kidney = [
        torch.sigmoid(12 - 12 * (((x - c) / 0.14) ** 2 + ((y - 0.1) / 0.18) ** 2))
        for c in (-0.35, 0.35)
    ]
    data[1, slices // 5 : slices * 4 // 5] = torch.maximum(*kidney)
    tumour = torch.sigmoid(12 - 12 * (((x - 0.4) / 0.07) ** 2 + ((y - 0.1) / 0.07) ** 2))
    data[2, slices * 2 // 5 : slices * 3 // 5] = tumour
    data[1] *= 1 - data[2]
    data[0] = 1 - data[1] - data[2]
    return Volume(data, grid)


def noisy(grid: Grid) -> Volume:
    generator = torch.Generator().manual_seed(0)
    data = torch.empty(3, *grid.shape)
    for k in range(grid.shape[0]):
        data[:, k] = torch.randn(3, *grid.shape[1:], generator=generator).softmax(0)
    return Volume(data, grid)


def two_places(scan: Grid) -> Found:
    """Two predictions for each of two overlapping regions around the kidneys."""
    whole, found = kidneys(turned(scan, 256)), []
    for name, start in (("right", 0), ("left", 112)):
        grid = whole.grid.crop((0, 0, start), (scan.shape[0], 256, 144))
        part = Volume(whole.data[..., start : start + 144].contiguous(), grid)
        found += [(name, part), (name, part)]
    return found


def ct(grid: Grid) -> Volume:
    """int16: a body of noise in air."""
    rng = np.random.default_rng(0)
    y, x = np.ogrid[-1 : 1 : grid.shape[1] * 1j, -1 : 1 : grid.shape[2] * 1j]
    plane = np.where((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, 40, -1000)
    plane = (plane + rng.integers(-30, 30, plane.shape)).astype(np.int16)
    return Volume(torch.from_numpy(plane).expand(1, *grid.shape).clone(), grid)


def spotted(grid: Grid, density: float) -> Volume:
    """Two kidneys, and single voxels of noise in the slices between the ends."""
    rng = np.random.default_rng(0)
    data = (kidneys(grid).data[1:2] > 0.5).to(torch.uint8)
    for k in range(1, grid.shape[0] - 1):
        data[0, k] |= torch.from_numpy(rng.random(grid.shape[1:]) < density).to(torch.uint8)
    return Volume(data, grid)


def sampled(source: Callable[[Grid], Volume], target: Callable[[Grid], Grid], mode: str) -> Job:
    def job(scan: Grid) -> Callable[[], torch.Tensor]:
        volume, grid = source(scan), target(scan)
        return lambda: resample(volume, grid, mode=mode, fill=0.0).data

    return job


def patch(scan: Grid) -> Grid:
    """128 voxels of 1.2 mm along each axis, rotated in space."""
    cube = Grid.from_spacing((128, 128, 128), (1.2, 1.2, 1.2), scan.centre_mm.tolist())
    return posed(cube, angle_rad=(0.1, 0.2, 0.1), scale=(1, 1, 1), shift_mm=(0, 0, 0))


def body(scan: Grid) -> Callable[[], torch.Tensor]:
    volume = ct(scan)
    return lambda: body_mask(volume).data


def its_moments(scan: Grid) -> Callable[[], torch.Tensor]:
    volume = Volume(ct(scan).data > -300, scan)
    return lambda: moments(volume).radii_mm.mul(1e6).round()


def removal(density: float) -> Job:
    def job(scan: Grid) -> Callable[[], torch.Tensor]:
        labels = spotted(scan, density)
        return lambda: remove_small(labels, 3.0)[0].data

    return job


JOBS: dict[str, Job] = {
    "restore: 256 x 256, turned": restoring(lambda s: [("", kidneys(turned(s, 256)))]),
    "restore: 512 x 512, turned": restoring(lambda s: [("", kidneys(turned(s, 512)))]),
    "restore: the scan's voxels": restoring(lambda s: [("", kidneys(s))]),
    "restore: noise, turned": restoring(lambda s: [("", noisy(turned(s, 512)))]),
    "restore: noise, the scan's voxels": restoring(lambda s: [("", noisy(s))]),
    "restore: two places, two opinions": restoring(two_places),
    "resample: int16, turned": sampled(ct, lambda s: turned(s, 512), "linear"),
    "resample: int16, a patch in space": sampled(ct, patch, "linear"),
    "resample: labels, nearest": sampled(
        lambda s: spotted(s, 0), lambda s: turned(s, 256), "nearest"
    ),
    "body mask": body,
    "moments": its_moments,
    "remove small: few pieces": removal(1e-6),
    "remove small: noise": removal(2e-3),
}


if __name__ == "__main__":
    main()
