"""Can a small network tell digital slices from real ones, and by what?

    python benchmarks/realism.py DATA [-n 60] [--cohort broad] [--cache FOLDER] [--views 1,6]

Real: the development slices in DATA (see `phantom_gap.py`; adults, HU clipped to 0..255), never
used to train anything that is kept. Digital: slices of n digital patients, clipped and compressed
alike. All are resampled to 1.6 mm around the trunk. A small CNN is trained in three folds by
patient; every patient counts the same. 0.5 is "cannot tell", 1 is "always tells". The views show
the network only part of the slices: which part gives the digital ones away? The last table is where
the gradient of the whole slice's score is large, relative to an even spread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from kidseg.config import PhantomConfig
from phantom_gap import Slice, made, real_slices, trunk

SIDE, PIXEL_MM = 224, 1.6
FOLDS = 3
COHORTS = {"children": (0.0, 16.0), "broad": (0.0, 90.0), "adults": (17.0, 90.0)}


def resampled(s: Slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image 0..1, trunk, labels) at PIXEL_MM, centred on the trunk."""
    body = trunk(s)
    rows, columns = np.nonzero(body) if body.any() else (np.array([256]), np.array([256]))
    centre = np.array([rows.min() + rows.max(), columns.min() + columns.max()]) / 2
    scale = PIXEL_MM / s.pixel_mm
    smooth = ndimage.gaussian_filter(s.image, max(0.0, 0.35 * scale - 0.2))

    def moved(image: np.ndarray, order: int) -> np.ndarray:
        out: np.ndarray = ndimage.affine_transform(
            image.astype(np.float32),
            [scale, scale],
            centre - scale * (SIDE - 1) / 2,
            (SIDE, SIDE),
            order=order,
        )
        return out

    return moved(smooth, 1) / 255.0, moved(body, 0) > 0.5, moved(s.labels, 0).round().astype(int)


def whole(image: np.ndarray, body: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return image


def trunk_only(image: np.ndarray, body: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return image * body


def low_frequencies(image: np.ndarray, body: np.ndarray, labels: np.ndarray) -> np.ndarray:
    out: np.ndarray = ndimage.gaussian_filter(image * body, 4.0)
    return out


def high_frequencies(image: np.ndarray, body: np.ndarray, labels: np.ndarray) -> np.ndarray:
    out: np.ndarray = (image - ndimage.gaussian_filter(image, 1.5)) * body
    return out


def histogram(image: np.ndarray, body: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The trunk's pixels in random order: nothing but their frequencies."""
    values = np.random.default_rng(0).permutation(image[body]) if body.any() else np.zeros(1)
    return np.resize(values, image.shape)


def kidneys_only(image: np.ndarray, body: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Kidneys and tumours with 10 mm around them."""
    near = ndimage.binary_dilation(labels > 0, iterations=round(10 / PIXEL_MM))
    return image * near


def without_kidneys(image: np.ndarray, body: np.ndarray, labels: np.ndarray) -> np.ndarray:
    near = ndimage.binary_dilation(labels > 0, iterations=round(10 / PIXEL_MM))
    return image * body * ~near


VIEWS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "whole slice": whole,
    "trunk only": trunk_only,
    "low frequencies of the trunk (sigma 6 mm)": low_frequencies,
    "high frequencies of the trunk": high_frequencies,
    "histogram of the trunk": histogram,
    "kidneys and tumours, 10 mm around": kidneys_only,
    "trunk without them": without_kidneys,
}


def network() -> nn.Sequential:
    """Five convolutions with stride 2, global mean."""
    layers: list[nn.Module] = []
    widths = (1, 16, 24, 32, 48, 64)
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.GroupNorm(4, b), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 1)
    )


def trained(images: Tensor, real: Tensor, weights: Tensor, epochs: int, seed: int) -> nn.Module:
    """A network trained on these slices; both classes and all patients weigh the same."""
    torch.manual_seed(seed)
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * -(-len(images) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        drawn = torch.multinomial(weights, 16, replacement=True, generator=rng)
        batch = images[drawn]
        if torch.rand(1, generator=rng) < 0.5:
            batch = batch.flip(-1)
        shift = torch.randint(-8, 9, (2,), generator=rng).tolist()
        batch = batch.roll(shift, (-2, -1))
        loss = nn.functional.binary_cross_entropy_with_logits(net(batch)[:, 0], real[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def auc(scores: np.ndarray, real: np.ndarray) -> float:
    """Probability that a real patient scores above a digital one."""
    above = scores[real][:, None] - scores[~real][None]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def cross_validated(
    images: Tensor, patients: np.ndarray, real: np.ndarray, epochs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Tensor]:
    """(score of each patient, whether it is real, its fold, absolute input gradient)."""
    names = np.unique(patients)
    of_patient = np.array([real[patients == name][0] for name in names])
    folds = np.zeros(len(names), dtype=int)
    rng = np.random.default_rng(0)
    for kind in (False, True):
        members = rng.permutation(np.flatnonzero(of_patient == kind))
        folds[members] = np.arange(len(members)) % FOLDS
    counts = {name: (patients == name).sum() for name in names}
    share = np.array([1.0 / counts[p] for p in patients])
    for kind in (False, True):
        share[real == kind] /= share[real == kind].sum()
    scores, gradient = np.zeros(len(names)), torch.zeros_like(images)
    fold_of = np.array([folds[np.flatnonzero(names == p)[0]] for p in patients])
    for fold in range(FOLDS):
        train = torch.from_numpy(fold_of != fold)
        net = trained(
            images[train],
            torch.from_numpy(real).float()[train],
            torch.from_numpy(share)[train],
            epochs,
            fold,
        )
        held = torch.from_numpy(fold_of == fold)
        given = images[held].clone().requires_grad_()
        logits = net(given)[:, 0]
        (slope,) = torch.autograd.grad(logits.sum(), given)
        gradient[held] = slope.abs()
        found = logits.detach().sigmoid().numpy()
        for k in np.flatnonzero(folds == fold):
            scores[k] = found[patients[held.numpy()] == names[k]].mean()
    return scores, of_patient, folds, gradient


def bootstrap(scores: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """5 and 95 percentile of the AUC over resampled patients."""
    rng = np.random.default_rng(1)
    a, b = np.flatnonzero(real), np.flatnonzero(~real)
    drawn = [np.concatenate([rng.choice(a, len(a)), rng.choice(b, len(b))]) for _ in range(1000)]
    low, high = np.percentile([auc(scores[d], real[d]) for d in drawn], [5, 95])
    return float(low), float(high)


def looked_at(
    gradient: Tensor, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], chosen: np.ndarray
) -> dict[str, float]:
    """Mean gradient in each region relative to the slice's mean; median over slices."""
    found: dict[str, list[float]] = {}
    for k in np.flatnonzero(chosen):
        image, body, labels = parts[k]
        hu = 255.0 * ndimage.gaussian_filter(image, 0.7)
        other = body & (labels == 0)
        regions = {
            "outside the trunk": ~body,
            "kidney": labels == 1,
            "tumour": labels == 2,
            "fat and gas": other & (hu < 15),
            "soft tissue, 15 to 80 HU": other & (hu >= 15) & (hu < 80),
            "enhancing tissue, 80 to 180 HU": other & (hu >= 80) & (hu < 180),
            "bone, vessels, contrast": other & (hu >= 180),
        }
        slope = gradient[k, 0].numpy()
        for name, region in regions.items():
            if region.sum() > 20:
                ratio = float(slope[region].mean() / max(slope.mean(), 1e-12))
                found.setdefault(name, []).append(ratio)
    return {name: float(np.median(values)) for name, values in found.items()}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-n", type=int, default=60, help="digital patients")
    parser.add_argument("--cohort", choices=list(COHORTS), default="adults")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--cache", type=Path, help="folder for the digital slices")
    parser.add_argument("--jobs", type=int, default=1)
    numbers = ",".join(str(k) for k in range(1, len(VIEWS) + 1))
    parser.add_argument("--views", default=numbers, help=f"numbers of the views: {numbers}")
    options = parser.parse_args()
    ages = COHORTS[options.cohort]
    config = PhantomConfig(size=options.size, max_slices=10, ages_years=ages, tumour_share=1.0)
    cache = options.cache / f"{options.cohort}.npz" if options.cache else None
    slices = real_slices(options.data)
    count = len(slices)
    slices += made(options.n, config, options.jobs, cache)
    parts = [resampled(s) for s in slices]
    patients = np.array([s.patient for s in slices])
    real = np.arange(len(slices)) < count
    n_real, n_digital = len(set(patients[real])), len(set(patients[~real]))
    print(f"{n_real} real, {n_digital} digital patients ({options.cohort})\n")
    print("| the network sees | AUC (5-95 %) | accuracy, real / digital |")
    print("| --- | --- | --- |")
    chosen = [list(VIEWS)[int(number) - 1] for number in options.views.split(",")]
    of_whole: Tensor | None = None
    for name in chosen:
        view = VIEWS[name]
        images = torch.from_numpy(np.stack([view(*part) for part in parts])[:, None]).float()
        images = (images - images.mean()) / images.std()
        scores, kind, _, gradient = cross_validated(images, patients, real, options.epochs)
        low, high = bootstrap(scores, kind)
        right = [(scores[kind] > 0.5).mean(), (scores[~kind] <= 0.5).mean()]
        print(
            f"| {name} | {auc(scores, kind):.2f} ({low:.2f}-{high:.2f}) "
            f"| {right[0]:.2f} / {right[1]:.2f} |",
            flush=True,
        )
        of_whole = gradient if view is whole else of_whole
    if of_whole is None:
        return
    print("\n| gradient relative to an even spread | real | digital |\n| --- | --- | --- |")
    both = [looked_at(of_whole, parts, kind) for kind in (real, ~real)]
    for name in both[0]:
        print(f"| {name} | {both[0][name]:.2f} | {both[1].get(name, float('nan')):.2f} |")


if __name__ == "__main__":
    main()
