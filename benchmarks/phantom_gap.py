"""Measure real slices minus digital ones: HU, texture, fat, shape of body and tumours.

    python benchmarks/phantom_gap.py DATA [-n 80] [--ages 17-90] [--cache FILE.npz] [--jobs 1]

DATA is a folder with kits19_slices/ and amos_ct/ (development slices, HU clipped to 0..255; never
used for training). Digital slices are clipped and JPEG-compressed in the same way. Each figure is
the median over a patient's slices; the table shows the median and the 10-90 percentile over
patients. `realism.py` uses the same slices.
"""

from __future__ import annotations

import argparse
import io
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from kidseg.config import PhantomConfig
from kidseg.io import load
from kidseg.phantom import make_patient

SEED = 2027
WINDOW_HU = (0.0, 255.0)
_SLICES_PER_PATIENT = 2
_JPEG_QUALITY = (85, 96)
# Fat and gas are 0 in the window; JPEG leaves a few HU around edges.
_FAT_HU = 12.0


@dataclass(frozen=True, eq=False)
class Slice:
    """One axial slice: HU in 0..255, labels 0, 1 kidney, 2 tumour, square pixels."""

    patient: str
    image: np.ndarray
    labels: np.ndarray
    pixel_mm: float


def real_slices(data: Path) -> list[Slice]:
    """All development slices; the labels of AMOS contain kidneys only."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted((data / "kits19_slices").glob("*_ct.nii.gz")):
            volume = load(path, values="any")
            labels = load(path.with_name(path.name.replace("_ct", "_seg")), values="labels")
            found.append(_slice(path.name.split("_s")[0], volume, labels, 0))
        for path in sorted((data / "amos_ct").glob("*_ct.nii.gz")):
            volume = load(path)
            labels = load(path.with_name(path.name.replace("_ct", "_kidney")), values="labels")
            found += [_slice(path.name[:9], volume, labels, k) for k in (2, 5, 8)]
    return found


def _slice(patient: str, volume: object, labels: object, k: int) -> Slice:
    image = np.clip(volume.data[0, k].numpy().astype(np.float32), *WINDOW_HU)  # type: ignore[attr-defined]
    pixel_mm = float(volume.grid.spacing_mm[2])  # type: ignore[attr-defined]
    return Slice(patient, image, labels.data[0, k].numpy(), pixel_mm)  # type: ignore[attr-defined]


def digital_slices(task: tuple[PhantomConfig, int]) -> list[Slice]:
    """Two slices with kidney or tumour of a digital patient."""
    config, index = task
    patient = make_patient(config, seed=SEED, index=index)
    rng = np.random.default_rng([SEED, index])
    labels = patient.labels.data[0].numpy()
    shown = np.flatnonzero((labels > 0).sum((1, 2)) > 60)
    found = []
    for k in rng.choice(shown, size=min(_SLICES_PER_PATIENT, len(shown)), replace=False):
        image = np.clip(patient.scan.data[0, int(k)].numpy().astype(np.float32), *WINDOW_HU)
        pixel_mm = float(patient.scan.grid.spacing_mm[2])
        quality = int(rng.integers(*_JPEG_QUALITY))
        found.append(Slice(f"digital {index}", jpeg(image, quality), labels[k], pixel_mm))
    return found


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """The image after JPEG compression, as most development slices."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.rint(image).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer)).astype(np.float32)


def made(n: int, config: PhantomConfig, jobs: int, cache: Path | None = None) -> list[Slice]:
    """Slices of n digital patients; read from `cache` if it exists, else written there."""
    if cache is not None and cache.exists():
        with np.load(cache, allow_pickle=False) as stored:
            return [
                Slice(str(p), i.astype(np.float32), s, float(mm))
                for p, i, s, mm in zip(*(stored[k] for k in "pism"), strict=True)
            ]
    tasks = [(config, k) for k in range(n)]
    if jobs == 1:
        groups = [digital_slices(task) for task in tasks]
    else:
        with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            groups = list(pool.map(digital_slices, tasks))
    slices = [s for group in groups for s in group]
    if cache is not None:
        np.savez_compressed(
            cache,
            p=np.array([s.patient for s in slices]),
            i=np.stack([s.image for s in slices]).astype(np.uint8),
            s=np.stack([s.labels for s in slices]),
            m=np.array([s.pixel_mm for s in slices]),
        )
    return slices


def trunk(s: Slice) -> np.ndarray:
    """Mask of the trunk inside its skin fat: convex hull of muscle, bone and organs."""
    from skimage.morphology import convex_hull_image

    radius = max(1, round(1.6 / s.pixel_mm))
    solid = ndimage.binary_opening(s.image > 12, iterations=radius)
    joined, count = ndimage.label(ndimage.binary_closing(solid, iterations=round(12 / s.pixel_mm)))
    if count == 0:
        return np.zeros(s.image.shape, dtype=bool)
    largest = joined == 1 + np.bincount(joined.ravel())[1:].argmax()
    hull: np.ndarray = convex_hull_image(largest & solid)
    return hull


def measured(s: Slice) -> dict[str, float]:
    """All figures of one slice; not a number where a structure is missing."""
    body, kidney, tumour = trunk(s), s.labels == 1, s.labels == 2
    labelled = kidney | tumour
    ring = ndimage.binary_dilation(labelled, iterations=round(6 / s.pixel_mm)) & ~labelled
    smooth = ndimage.gaussian_filter(s.image, 1.5 / s.pixel_mm)
    core = ndimage.binary_erosion(tumour, iterations=max(1, round(2 / s.pixel_mm)))
    rows, columns = np.nonzero(body)
    local = _local_sd(s.image)
    flat = body & (smooth > 35) & (smooth < 130)
    return {
        "kidney, HU": _mean(s.image[kidney]),
        "tumour, HU": _mean(s.image[tumour]),
        "kidney minus tumour, HU": _mean(s.image[kidney]) - _mean(s.image[tumour]),
        "structure of the tumour, SD of HU": float(smooth[core].std()) if core.any() else np.nan,
        "tumour's diameter, mm": _diameter(tumour) * s.pixel_mm,
        "tumour's share of the trunk": tumour.sum() / max(body.sum(), 1)
        if tumour.any()
        else np.nan,
        "fat or gas, share of the trunk": _mean(s.image[body] <= _FAT_HU),
        "fat or gas, share of a 6 mm ring": _mean(s.image[ring] <= _FAT_HU),
        "width / depth of the trunk": np.ptp(columns) / max(np.ptp(rows), 1)
        if len(rows)
        else np.nan,
        "width of the trunk, mm": np.ptp(columns) * s.pixel_mm if len(rows) else np.nan,
        "finest frequencies, log10 power": _finest(s, body),
        "noise in flat tissue, SD of HU": float(np.percentile(local[flat], 20))
        if flat.any()
        else np.nan,
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else np.nan


def _local_sd(image: np.ndarray) -> np.ndarray:
    mean = ndimage.uniform_filter(image, 7)
    square = ndimage.uniform_filter(image * image, 7)
    return np.sqrt(np.maximum(square - mean * mean, 0.0))


def _diameter(mask: np.ndarray) -> float:
    points = np.argwhere(mask)
    if len(points) < 10:
        return np.nan
    return float(pdist(points[ConvexHull(points).vertices]).max())


def _finest(s: Slice, body: np.ndarray) -> float:
    """Mean power of the trunk's box between 0.4 and 0.6 line pairs per mm."""
    box = ndimage.find_objects(body.astype(np.uint8))
    if not box:
        return np.nan
    part = s.image[box[0]]
    window = np.hanning(part.shape[0])[:, None] * np.hanning(part.shape[1])[None]
    power = np.abs(np.fft.fft2((part - part.mean()) * window)) ** 2
    f = np.hypot(
        np.fft.fftfreq(part.shape[0], s.pixel_mm)[:, None],
        np.fft.fftfreq(part.shape[1], s.pixel_mm)[None],
    )
    return float(np.log10(power[(f > 0.4) & (f < 0.6)].mean()))


def per_patient(slices: list[Slice]) -> dict[str, np.ndarray]:
    """Each figure's median over the slices of a patient: (patients,)."""
    groups: dict[str, list[dict[str, float]]] = {}
    for s in slices:
        groups.setdefault(s.patient, []).append(measured(s))
    names = next(iter(groups.values()))[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return {
            name: np.array([np.nanmedian([m[name] for m in group]) for group in groups.values()])
            for name in names
        }


def gap_table(real: list[Slice], cohorts: dict[str, list[Slice]]) -> str:
    """A markdown table: real, each cohort, and real minus cohort."""
    measured_real = per_patient(real)
    others = {name: per_patient(slices) for name, slices in cohorts.items()}
    head = ["median (10-90 percentile), n patients", "real"]
    for name in others:
        head += [name, f"real minus {name}"]
    lines = [head, ["---"] * len(head)]
    for figure, values in measured_real.items():
        line = [figure, _summary(values)]
        for other in others.values():
            line += [_summary(other[figure])]
            line += [f"{np.nanmedian(values) - np.nanmedian(other[figure]):.3g}"]
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _summary(values: np.ndarray) -> str:
    values = values[np.isfinite(values)]
    low, middle, high = np.percentile(values, [10, 50, 90])
    return f"{middle:.3g} ({low:.3g} to {high:.3g}), {len(values)}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-n", type=int, default=80, help="digital patients of each cohort")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--ages", default="17-90", help="of the broad cohort")
    parser.add_argument("--cache", type=Path, help="folder for the digital slices")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    low, high = (float(a) for a in options.ages.split("-"))
    cohorts = {}
    for name, ages in (("children", (0.0, 16.0)), ("broad", (low, high))):
        config = PhantomConfig(size=options.size, max_slices=10, ages_years=ages, tumour_share=1.0)
        cache = options.cache / f"{name}.npz" if options.cache else None
        cohorts[name] = made(options.n, config, options.jobs, cache)
    print(gap_table(real_slices(options.data), cohorts))


if __name__ == "__main__":
    main()
