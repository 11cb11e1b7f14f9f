"""Regions of any kind, and what a network may have found there."""

from __future__ import annotations

import math

import numpy as np
import torch

from kidseg.geometry import Grid, Volume, posed
from kidseg.labels import Target
from kidseg.pipeline.steps import Region

SCAN = Grid.from_spacing((6, 64, 80), (3, 1, 1), centre_mm=(5, -7, 30))
PLACES = ["copied", "volume", "each slice", "space", "slices"]


def labels_of(channels: int) -> Target:
    """Background, then the labels 1, 2, ..."""
    return Target(channels=tuple((number,) for number in range(1, channels)))


def region(found: Volume, name: str = "") -> Region:
    return Region(grid=found.grid, name=name, found=found)


def random_scan(rng: np.random.Generator) -> Grid:
    shape = (int(rng.integers(1, 6)), *rng.integers(5, 40, 2).tolist())
    return Grid.from_spacing(shape, rng.uniform(0.3, 4.0, 3).tolist())


def random_grid(rng: np.random.Generator, scan: Grid, kind: str) -> Grid:
    """Where a network could have looked: bigger, smaller, turned, beside the scan."""
    nz = scan.shape[0]
    rows, columns = (int(n) for n in rng.integers(3, 40, 2))
    if kind == "copied":
        return scan.crop((0, *rng.integers(-5, 5, 2).tolist()), (nz, rows, columns))
    if kind == "space":
        angle, scale, shift = rng.uniform(-1, 1, (3, 3))
        turned = posed(
            scan,
            angle_rad=torch.from_numpy(angle),
            scale=torch.from_numpy(np.exp(scale * 0.4)),
            shift_mm=torch.from_numpy(shift * 8),
        )
        return turned.resized((int(rng.integers(1, 8)), rows, columns))
    if kind == "slices":
        return scan.resized((int(rng.integers(1, 10)), rows, columns))
    lead = (nz,) if kind == "each slice" else ()
    turned = posed(
        scan,
        angle_rad=torch.from_numpy(np.asarray(rng.uniform(-math.pi, math.pi, lead))),
        scale=torch.from_numpy(np.exp(rng.uniform(-0.7, 0.7, (*lead, 2)))),
        shift_mm=torch.from_numpy(rng.uniform(-15, 15, (*lead, 2))),
    )
    return turned.resized((nz, rows, columns)).crop((0, *rng.uniform(-4, 4, 2)), (nz, rows, 9))


def random_probabilities(rng: np.random.Generator, grid: Grid, kind: str) -> Volume:
    classes = int(rng.integers(2, 5))
    shape = (classes, *grid.shape)
    if kind == "noise":
        data = rng.dirichlet(np.ones(classes), grid.shape).transpose(3, 0, 1, 2)
    elif kind == "nearly tied":  # within a few roundings of each other
        data = 1 / classes + rng.integers(-3, 4, shape) * 6e-8
    elif kind == "a rounding below":  # background everywhere, but what will rounding make of it?
        data = np.full(shape, rng.uniform(0.1, 0.4, grid.shape))
        data[0] = np.nextafter(data[0].astype(np.float32), np.float32(1))
    else:
        data = np.zeros(shape)
        data[0] = 1.0
        if kind == "ties":
            data[1] = rng.integers(0, 3, grid.shape) / 2
            data[0] = 1 - data[1]
        elif kind == "all of one label":
            data[0], data[-1] = 0.0, 1.0
        else:  # spots, at the edges too
            for _ in range(int(rng.integers(0, 4))):
                z, y, x = (int(rng.integers(0, n)) for n in grid.shape)
                data[:, z : z + 2, y : y + 4, x : x + 4] = rng.dirichlet(np.ones(classes))[
                    :, None, None, None
                ]
    return Volume(torch.from_numpy(np.ascontiguousarray(data)).float(), grid)
