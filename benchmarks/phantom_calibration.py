"""Compare the digital patients with real children: HU, sizes and appearance.

    python benchmarks/phantom_calibration.py -n 40 --docs docs
    python benchmarks/phantom_calibration.py -n 12 --real REAL_DATA -o OUT

The first command writes docs/phantom.md and its figures (digital patients only). The second writes
OUT/contact_sheet.png: 12 digital and 12 real slices with the same window and pixel scale; REAL_DATA
is a folder with kits19_slices/*_ct.nii.gz, amos_ct/*_ct.nii.gz. docs never contains real images.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kidseg.config import PhantomConfig
from kidseg.io import load
from kidseg.phantom import ORGANS, make_patient
from kidseg.phantom.growth import effective_diameter_mm, kidney_length_mm

SEED = 2021
LOWEST_HU, HIGHEST_HU = -1024, 3071
# HU of the labelled voxels of 80 children with renal tumours, early arterial contrast.
TARGET = {"mean": 77.0, "SD": 68.0, "0.5 %": -36.0, "99.5 %": 303.0}
SOFT_TISSUE = (-160.0, 240.0)
KITS = (0.0, 255.0)
"""HU in kits19_slices are clipped to this range."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One digital patient, reduced to counts, sizes and one slice."""

    truth: dict[str, Any]
    labelled: np.ndarray
    per_organ: dict[int, np.ndarray]
    lengths_mm: list[float]
    volumes_ml: list[float]
    diameter_mm: float
    plane: np.ndarray
    plane_labels: np.ndarray


def measure(task: tuple[PhantomConfig, int, int]) -> Measured:
    """Make patient (config, seed, index) and measure it."""
    config, seed, index = task
    patient = make_patient(config, seed=seed, index=index)
    hu, labels, organs = (v.data[0].numpy() for v in (patient.scan, patient.labels, patient.organs))
    per_organ = {n: histogram(hu[organs == n]) for n in np.unique(organs).tolist() if n in ORGANS}
    lengths, volumes = healthy_kidneys(labels, patient)
    middle = int((labels > 0).sum((1, 2)).argmax())
    return Measured(
        truth=patient.truth,
        labelled=histogram(hu[labels > 0]),
        per_organ=per_organ,
        lengths_mm=lengths,
        volumes_ml=volumes,
        diameter_mm=abdominal_diameter_mm(hu, labels, patient.scan.grid.spacing_mm.tolist()),
        plane=hu[middle],
        plane_labels=labels[middle],
    )


def histogram(values: np.ndarray) -> np.ndarray:
    """Counts of each HU from -1024 to 3071."""
    return np.bincount(
        values.ravel().astype(np.int64) - LOWEST_HU, minlength=HIGHEST_HU - LOWEST_HU + 1
    )


def healthy_kidneys(labels: np.ndarray, patient: Any) -> tuple[list[float], list[float]]:
    """Length (mm, along the longest axis) and volume (ml) of complete kidneys without tumour."""
    from scipy import ndimage

    ill = {tumour["side"] for tumour in patient.truth["tumours"]}
    if len(ill) == 2 or patient.truth["anatomy"]["form"] != "separate":
        return [], []
    grid = patient.scan.grid
    parts, count = ndimage.label(labels > 0)
    lengths, volumes = [], []
    for part in range(1, count + 1):
        index = np.argwhere(parts == part)
        ml = len(index) * float(grid.voxel_ml)
        cut = index[:, 0].min() == 0 or index[:, 0].max() == labels.shape[0] - 1
        if ml < 3 or cut or (labels[parts == part] == 2).any():
            continue
        mm = grid.mm(index).numpy()
        along = np.linalg.svd(mm - mm.mean(0), full_matrices=False)[2][0]
        span = mm @ along
        lengths.append(float(span.max() - span.min()))
        volumes.append(ml)
    return lengths, volumes


def abdominal_diameter_mm(hu: np.ndarray, labels: np.ndarray, spacing: list[float]) -> float:
    """Diameter of the circle of the body's cross-section area in the slices with kidneys."""
    from scipy import ndimage

    kept = (labels > 0).any((1, 2))
    areas = []
    for plane in hu[kept][::4] > -300:
        body, _ = ndimage.label(ndimage.binary_opening(plane, iterations=2))
        sizes = np.bincount(body.ravel())
        if len(sizes) > 1:
            areas.append(ndimage.binary_fill_holes(body == 1 + sizes[1:].argmax()).sum())
    return float(np.sqrt(4 / np.pi * np.median(areas) * spacing[1] * spacing[2]))


def figures(counts: np.ndarray) -> dict[str, float]:
    """Mean, SD and outer percentiles of a histogram of HU."""
    hu = np.arange(LOWEST_HU, HIGHEST_HU + 1)
    share = counts / counts.sum()
    mean = float((share * hu).sum())
    below = np.cumsum(share)
    return {
        "mean": mean,
        "SD": float(np.sqrt((share * (hu - mean) ** 2).sum())),
        "0.5 %": float(hu[np.searchsorted(below, 0.005)]),
        "99.5 %": float(hu[np.searchsorted(below, 0.995)]),
    }


def made(n: int, config: PhantomConfig, jobs: int, first: int = 0) -> list[Measured]:
    """Patients first .. first + n - 1, measured."""
    tasks = [(config, SEED, k) for k in range(first, first + n)]
    if jobs == 1:
        return [measure(task) for task in tasks]
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return list(pool.map(measure, tasks))


def table(head: list[str], rows: list[list[object]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def hu_tables(patients: list[Measured]) -> str:
    """HU of labelled voxels compared with the real values, and of every organ."""
    pooled = sum(p.labelled for p in patients)
    each = sum(p.labelled / p.labelled.sum() for p in patients)
    arterial = [p for p in patients if p.truth["phase"] == "early-arterial"]
    rows = [["real children", *(f"{v:.0f}" for v in TARGET.values())]]
    for name, counts in (
        ("digital, every voxel", pooled),
        ("digital, every patient the same weight", each),
        ("digital, early arterial only, every voxel", sum(p.labelled for p in arterial)),
    ):
        rows.append([name, *(f"{v:.0f}" for v in figures(counts).values())])
    text = table(["HU of labelled voxels", *TARGET], rows) + "\n"
    rows = []
    for phase in ("early-arterial", "portal-venous", "excretory", "unenhanced"):
        chosen = [p for p in patients if p.truth["phase"] == phase]
        for number, name in ORGANS.items():
            found = [p.per_organ[number] for p in chosen if number in p.per_organ]
            total = sum(found) if found else np.zeros(1)
            if phase != "early-arterial" and not any(
                word in name
                for word in (
                    "kidney",
                    "cortex",
                    "medulla",
                    "pelvis",
                    "tumour",
                    "aorta",
                    "cava",
                    "liver",
                    "spleen",
                )
            ):
                continue
            if total.sum() > 0:
                f = figures(total)
                rows.append(
                    [
                        phase,
                        name,
                        f"{f['mean']:.0f}",
                        f"{f['SD']:.0f}",
                        len(found),
                        int(total.sum()),
                    ]
                )
    return text + table(["phase", "organ", "mean HU", "SD", "patients", "voxels"], rows)


def size_table(patients: list[Measured]) -> str:
    """Kidneys, tumours and bodies by age band, compared with the formulas."""
    rows = []
    for low, high in ((0, 1), (1, 2), (2, 5), (5, 10), (10, 17)):
        band = [p for p in patients if low <= p.truth["age_years"] < high]
        lengths = [(x, kidney_length_mm(p.truth["age_years"])) for p in band for x in p.lengths_mm]
        volumes = [v for p in band for v in p.volumes_ml]
        tumours = [t["volume_ml"] for p in band for t in p.truth["tumours"]]
        bodies = [(p.diameter_mm, effective_diameter_mm(p.truth["age_years"])) for p in band]
        rows.append(
            [
                f"{low}-{min(high, 16)}",
                len(band),
                *spread(lengths),
                f"{np.mean(volumes):.0f}" if volumes else "",
                *spread(bodies),
                f"{np.median(tumours):.0f} ({min(tumours):.0f}-{max(tumours):.0f})"
                if tumours
                else "",
            ]
        )
    head = ["age", "patients", "kidney length mm", "formula", "kidney ml", "diameter mm", "formula"]
    return table([*head, "tumour ml: median (range)"], rows)


def spread(pairs: list[tuple[float, float]]) -> tuple[str, str]:
    """Mean and SD of the measured values, mean of the expected ones."""
    if not pairs:
        return "", ""
    values = np.array(pairs)
    return f"{values[:, 0].mean():.0f} (SD {values[:, 0].std():.0f})", f"{values[:, 1].mean():.0f}"


def draw_growth(patients: list[Measured], path: Path) -> None:
    """Kidney length and volume, body diameter and tumour volume by age."""
    import matplotlib.pyplot as plt

    ages = np.linspace(0, 16, 161)
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")

    def dots(axis: Any, pairs: list[tuple[float, float]], title: str) -> None:
        axis.plot(*np.array(pairs).reshape(-1, 2).T, "o", ms=3.5, alpha=0.7)
        axis.set(xlabel="age (years)", title=title)

    pairs = [(p.truth["age_years"], x) for p in patients for x in p.lengths_mm]
    dots(axes[0], pairs, "Healthy kidney, length (mm)")
    axes[0].plot(ages, [kidney_length_mm(a) for a in ages], "k-", lw=1)
    dots(
        axes[1],
        [(p.truth["age_years"], v) for p in patients for v in p.volumes_ml],
        "Healthy kidney, volume (ml)",
    )
    # An ellipsoid of the expected length, 0.46 of it wide and deep.
    axes[1].plot(
        ages, [np.pi / 6 * 0.46**2 * (kidney_length_mm(a) / 10) ** 3 for a in ages], "k-", lw=1
    )
    dots(
        axes[2],
        [(p.truth["age_years"], p.diameter_mm) for p in patients],
        "Body, effective diameter (mm)",
    )
    axes[2].plot(ages, [effective_diameter_mm(a) for a in ages], "k-", lw=1)
    dots(
        axes[3],
        [(p.truth["age_years"], t["volume_ml"]) for p in patients for t in p.truth["tumours"]],
        "Tumour, volume (ml)",
    )
    axes[3].set_yscale("log")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_histogram(patients: list[Measured], path: Path) -> None:
    """HU of labelled voxels, with the real mean, SD and percentiles."""
    import matplotlib.pyplot as plt

    counts = sum(p.labelled / p.labelled.sum() for p in patients)
    hu = np.arange(LOWEST_HU, HIGHEST_HU + 1)
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    axis.fill_between(hu, counts / counts.sum(), step="mid", alpha=0.6, label="digital patients")
    for key in ("0.5 %", "mean", "99.5 %"):
        axis.axvline(TARGET[key], color="k", lw=1, ls=":" if "%" in key else "-")
    axis.set(xlim=(-150, 450), xlabel="HU of labelled voxels", yticks=[])
    axis.set_title("lines: mean and outer percentiles of real children", fontsize=9)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_slices(patients: list[Measured], path: Path) -> None:
    """Twelve digital patients by age, soft-tissue window."""
    import matplotlib.pyplot as plt

    chosen = sorted(patients, key=lambda p: p.truth["age_years"])
    chosen = [chosen[k] for k in np.linspace(0, len(chosen) - 1, 12).round().astype(int)]
    figure, axes = plt.subplots(3, 4, figsize=(10, 7.9), layout="constrained")
    for axis, patient in zip(axes.flat, chosen, strict=True):
        axis.imshow(patient.plane, cmap="gray", vmin=SOFT_TISSUE[0], vmax=SOFT_TISSUE[1])
        axis.set_title(f"{patient.truth['age_years']:.1f} y, {patient.truth['phase']}", fontsize=8)
        axis.axis("off")
    figure.savefig(path, dpi=75, pil_kwargs={"optimize": True})
    plt.close(figure)


def real_slices(folder: Path) -> list[tuple[np.ndarray, tuple[float, float], str]]:
    """Twelve real slices: (pixels, window, name)."""
    import warnings

    wanted = ["00025_s064", "00042_s144", "00067_s165", "00102_s196", "00107_s038", "00135_s142",
              "00139_s038", "00186_s073", "00199_s078", "00108_s026"]  # fmt: skip
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in wanted:
            path = folder / "kits19_slices" / f"case_{name}_ct.nii.gz"
            found.append((load(path, values="any").data[0, 0].numpy(), KITS, name))
        amos = load(folder / "amos_ct" / "amos_0013_ct.nii.gz").data[0]
    return found + [(amos[k].numpy(), SOFT_TISSUE, f"amos {k}") for k in (3, 8)]


def draw_contact_sheet(
    patients: list[Measured], real: list[tuple[np.ndarray, tuple[float, float], str]], path: Path
) -> None:
    """Real slices above digital ones, in pairs with the same window, without scaling pixels."""
    import matplotlib.pyplot as plt

    size = 512
    figure = plt.figure(figsize=(6 * size / 100, 4 * size / 100), dpi=100)
    for k, (plane, window, name) in enumerate(real):
        row, column = 2 * (k // 6), k % 6
        patient = patients[k % len(patients)]
        age = f"digital, {patient.truth['age_years']:.1f} y, {patient.truth['phase']}"
        for offset, image, title in ((0, plane, name), (1, patient.plane, age)):
            axis = figure.add_axes((column / 6, 1 - (row + offset + 1) / 4, 1 / 6, 1 / 4))
            axis.imshow(image, cmap="gray", vmin=window[0], vmax=window[1], interpolation="nearest")
            axis.text(6, 20, title, color="0.7", fontsize=8)
            axis.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def document(patients: list[Measured], size: int) -> str:
    """docs/phantom.md."""
    return f"""# The digital patient, calibrated

`kidseg phantom` draws abdomens of children from birth to 16 years, renders them and scans them.
Adults and the broad cohort (`--ages 0-90`) have [a page of their own](phantom_broad.md).
This page is written by

    python benchmarks/phantom_calibration.py -n {len(patients)} --size {size} --docs docs

(seed {SEED}); the pictures are made at 512 pixels.

![Twelve digital patients, window -160..240 HU](phantom_slices.png)

## HU

Real: 80 children with renal tumours, early arterial contrast. "Labelled" is kidney and tumour.

{hu_tables(patients)}
![HU of labelled voxels](phantom_hu.png)

## Sizes

Formulas: kidney length 4.98 + 0.155 x months cm below one year and 6.79 + 0.22 x years above
(Rosenbaum et al., AJR 1984); effective diameter of the abdomen (AAPM Report 204, 2011). Lengths
and volumes are measured on the labels of kidneys without tumour, diameters on the scan in the
slices with kidneys (a large tumour widens the body).

{size_table(patients)}
![Sizes by age; lines are the formulas](phantom_growth.png)
"""


def main() -> None:
    """Measure, and write the requested output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=48, help="digital patients to measure")
    parser.add_argument("--size", type=int, default=256, help="pixels along a side")
    parser.add_argument("--max-slices", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--docs", type=Path, help="write phantom.md and its pictures here")
    parser.add_argument("--real", type=Path, help="folder of real slices, for the contact sheet")
    parser.add_argument("-o", "--out", type=Path, help="folder of the contact sheet")
    options = parser.parse_args()
    if options.real is not None:
        if options.out is None or not options.real.is_dir():
            parser.error("--real needs an existing folder, and -o")
        options.out.mkdir(parents=True, exist_ok=True)
        full = made(12, PhantomConfig(max_slices=48), options.jobs, first=1000)
        draw_contact_sheet(full, real_slices(options.real), options.out / "contact_sheet.png")
        print(options.out / "contact_sheet.png")
        return
    patients = made(
        options.n, PhantomConfig(size=options.size, max_slices=options.max_slices), options.jobs
    )
    print(hu_tables(patients))
    print(size_table(patients))
    if options.docs is not None:
        pictured = made(12, PhantomConfig(max_slices=48), options.jobs, first=500)
        draw_slices(pictured, options.docs / "phantom_slices.png")
        draw_growth(patients, options.docs / "phantom_growth.png")
        draw_histogram(patients, options.docs / "phantom_hu.png")
        (options.docs / "phantom.md").write_text(document(patients, options.size))


if __name__ == "__main__":
    main()
