"""Time and memory to read and write each format, relative to peers in the same run.

    python benchmarks/io_formats.py [--shape 100 512 512] [--repeats 5] [--json]

Peers: nibabel and SimpleITK for NIfTI, SimpleITK for NRRD and MetaImage, pydicom for DICOM. The
tools take turns, so that changes of the machine affect all of them; times are medians. Memory is
the peak above the memory at the start (Linux only). All files are in the page cache. kidseg also
verifies checksums, geometry and Hounsfield units, and returns the canonical order.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK
import torch

from kidseg import io
from kidseg.geometry import Grid, Volume
from kidseg.io import dicom
from kidseg.io.orientation import affine_of_grid

MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One tool at one job: median seconds, peak MiB above the start, MiB on disk."""

    format: str
    content: str
    job: str
    tool: str
    median_s: float
    peak_mib: float
    file_mib: float


def ct_like(shape: tuple[int, int, int]) -> Volume:
    """Air around an ellipse of tissue with noise of 15 HU, which compresses like real CT."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    inside = (x / 0.8) ** 2 + (y / 0.6) ** 2 + 0 * z < 1
    values = rng.normal(0, 15, shape).astype(np.float32) + np.where(inside, 40, -1000)
    grid = Grid.from_spacing(shape, (3.0, 0.75, 0.75))
    return Volume(torch.from_numpy(values.astype(np.int16))[None], grid)


def label_like(like: Volume) -> Volume:
    """Two kidneys, one with a tumour."""
    sizes = [np.linspace(-1, 1, n) for n in like.grid.shape]
    z, y, x = np.meshgrid(*sizes, indexing="ij", sparse=True)
    data = np.zeros(like.grid.shape, np.uint8)
    for side in (-0.4, 0.4):
        data[((x - side) / 0.12) ** 2 + (y / 0.12) ** 2 + (z / 0.5) ** 2 < 1] = 1
    data[((x - 0.45) / 0.1) ** 2 + (y / 0.1) ** 2 + ((z - 0.3) / 0.2) ** 2 < 1] = 2
    return Volume(torch.from_numpy(data)[None], like.grid)


def itk_image(volume: Volume) -> SimpleITK.Image:
    """The same volume for SimpleITK."""
    image = SimpleITK.GetImageFromArray(volume.data[0].numpy())
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_of_grid(volume.grid)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def writers(volume: Volume, ending: str) -> dict[str, Callable[[Path], object]]:
    """Functions that write a file, by tool."""
    image = itk_image(volume)
    tools: dict[str, Callable[[Path], object]] = {
        "kidseg": lambda path: io.save(volume, path, overwrite=True),
        "SimpleITK": lambda path: SimpleITK.WriteImage(image, str(path), ending != ".nii"),
    }
    if ending.startswith(".nii"):
        array, affine = volume.data[0].numpy().transpose(2, 1, 0), affine_of_grid(volume.grid)
        tools["nibabel"] = lambda path: nib.save(nib.Nifti1Image(array, affine), path)
    return tools


def readers(content: str, ending: str) -> dict[str, Callable[[Path], object]]:
    """Functions that read a file into an array, by tool."""
    options = io.ReadOptions(values="ct" if content == "CT" else "labels")
    tools: dict[str, Callable[[Path], object]] = {
        "kidseg": lambda path: io.read(path, options),
        "SimpleITK": lambda path: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))),
    }
    if ending.startswith(".nii"):
        tools["nibabel"] = lambda path: np.asarray(nib.load(path).dataobj).copy()
    return tools


def series_by_pydicom(folder: Path) -> np.ndarray:
    """Read every file, sort by position and rescale."""
    slices = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    slices.sort(key=lambda s: float(s.ImagePositionPatient[2]))
    return np.stack(
        [s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices]
    ).astype(np.int16)


def series_by_itk(folder: Path) -> np.ndarray:
    """SimpleITK's series reader."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    array: np.ndarray = SimpleITK.GetArrayFromImage(reader.Execute())
    return array


def resident_mib(field: str) -> float:
    """A field of /proc/self/status in MiB; NaN if it is missing."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measured(act: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and peak MiB above the start."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed memory
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        peak_known = True
    except OSError:
        peak_known = False
    before, start = resident_mib("VmRSS"), time.perf_counter()
    act()
    seconds = time.perf_counter() - start
    return seconds, resident_mib("VmHWM") - before if peak_known else float("nan")


def compared(
    tools: dict[str, Callable[[], object]], repeats: int
) -> dict[str, tuple[float, float]]:
    """Median seconds and median peak by tool; the tools take turns, after one warm-up."""
    for act in tools.values():
        act()
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in tools}
    for turn in range(repeats):
        names = list(tools)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            results[name].append(measured(tools[name]))
    return {
        name: (statistics.median(s for s, _ in runs), statistics.median(m for _, m in runs))
        for name, runs in results.items()
    }


def size_mib(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file()) / MIB


def file_rows(volume: Volume, content: str, ending: str, folder: Path, repeats: int) -> list[Row]:
    """Write a file, then read the one that kidseg wrote."""
    rows = []
    paths = {tool: folder / f"{tool}{ending}" for tool in writers(volume, ending)}
    writing = {
        t: (lambda w=w, p=paths[t]: w(p))  # type: ignore[misc]
        for t, w in writers(volume, ending).items()
    }
    for tool, (seconds, peak) in compared(writing, repeats).items():
        rows.append(Row(ending, content, "write", tool, seconds, peak, size_mib(paths[tool])))
    source = paths["kidseg"]
    reading = {
        t: (lambda r=r: r(source))  # type: ignore[misc]
        for t, r in readers(content, ending).items()
    }
    for tool, (seconds, peak) in compared(reading, repeats).items():
        rows.append(Row(ending, content, "read", tool, seconds, peak, size_mib(source)))
    return rows


def dicom_rows(volume: Volume, folder: Path, repeats: int) -> list[Row]:
    """An uncompressed series as written by kidseg."""
    series = folder / "series"

    def write() -> None:
        shutil.rmtree(series, ignore_errors=True)
        dicom.write_series(volume, series, facts={"seed": "benchmark"})

    ((seconds, peak),) = compared({"kidseg": write}, repeats).values()
    rows = [Row("DICOM", "CT", "write", "kidseg", seconds, peak, size_mib(series))]
    reading: dict[str, Callable[[], object]] = {
        "kidseg": lambda: io.read(series),
        "pydicom": lambda: series_by_pydicom(series),
        "SimpleITK": lambda: series_by_itk(series),
    }
    for tool, (seconds, peak) in compared(reading, repeats).items():
        rows.append(Row("DICOM", "CT", "read", tool, seconds, peak, size_mib(series)))
    return rows


def table(rows: list[Row]) -> str:
    """Markdown: one row per job with kidseg's figures, and kidseg / peer for each peer."""
    lines = [
        "| format | content | job | kidseg | peak | file | time, memory and size as ratios |",
        "|---|---|---|---|---|---|---|",
    ]
    jobs = dict.fromkeys((r.format, r.content, r.job) for r in rows)
    for job in jobs:
        ours, *peers = sorted(
            (r for r in rows if (r.format, r.content, r.job) == job),
            key=lambda r: r.tool != "kidseg",
        )
        ratios = "; ".join(
            f"{p.tool}: {ours.median_s / p.median_s:.2f}, {ours.peak_mib / max(p.peak_mib, 1):.2f}"
            + (f", {ours.file_mib / p.file_mib:.2f}" if ours.job == "write" else "")
            for p in peers
        )
        lines.append(
            f"| {ours.format} | {ours.content} | {ours.job} | {1000 * ours.median_s:.0f} ms "
            f"| {ours.peak_mib:.0f} MiB | {ours.file_mib:.1f} MiB | {ratios or '-'} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", type=int, nargs=3, default=(100, 512, 512))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    nz, ny, nx = arguments.shape
    scan = ct_like((nz, ny, nx))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for content, volume in [("CT", scan), ("labels", label_like(scan))]:
            for ending in (".nii", ".nii.gz", ".nrrd", ".mha"):
                rows += file_rows(volume, content, ending, folder, arguments.repeats)
        rows += dicom_rows(scan, folder, arguments.repeats)
    if arguments.json:
        print(json.dumps({"shape": [nz, ny, nx], "rows": [asdict(row) for row in rows]}))
    else:
        print(f"{nz} x {ny} x {nx} voxels, median of {arguments.repeats}; ratios are kidseg / peer")
        print()
        print(table(rows))


if __name__ == "__main__":
    main()
