"""Bringing probabilities back onto the scan: what is computed, against computing all of it.

    python benchmarks/restore_speed.py [--slices 100] [-k 3]

Two kidneys and a tumour as soft ellipses in 60 of 100 slices, turned and scaled, of several sizes,
onto 512 x 512. "All" resamples every voxel, slice by slice, then argmax. The labels must be equal.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from kidseg.device import tune_allocator
from kidseg.geometry import Grid, Volume, posed, resample
from kidseg.pipeline import restore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("-k", type=int, default=3, help="times each")
    options = parser.parse_args()
    tune_allocator()
    scan = Grid.from_spacing((options.slices, 512, 512), (2.5, 0.7, 0.7))
    print("| network's grid | restore (ms/slice) | all (ms/slice) | ratio |")
    print("|---|---|---|---|")
    for side in (128, 256, 512):
        for per, lead in (("slice", (options.slices,)), ("volume", ())):
            angle, scale = torch.full(lead, 0.2), torch.full((*lead, 2), 0.9)
            grid = posed(scan, angle_rad=angle, scale=scale, shift_mm=torch.zeros_like(scale))
            found = kidneys(grid.resized((options.slices, side, side)))
            times: dict[str, list[float]] = {"restore": [], "all": []}
            for _ in range(options.k):
                labels = []
                for name, way in (("restore", restored), ("all", all_of_it)):
                    began = time.perf_counter()
                    labels.append(way(found, scan))
                    times[name].append(1000 * (time.perf_counter() - began) / options.slices)
                assert torch.equal(*labels)
                assert labels[0].any()
            ours, every = (statistics.median(values) for values in times.values())
            print(f"| {side} x {side}, per {per} | {ours:.2f} | {every:.2f} | {every / ours:.1f} |")


def kidneys(grid: Grid) -> Volume:
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


def restored(found: Volume, scan: Grid) -> torch.Tensor:
    return restore(found, scan).data[0]


def all_of_it(found: Volume, scan: Grid) -> torch.Tensor:
    out = torch.empty(scan.shape, dtype=torch.uint8)
    for k in range(scan.shape[0]):
        part = found.slices(k, k + 1) if found.grid.is_slicewise else found
        seen = resample(part, scan.slices(k, k + 1), fill=(1.0, 0.0, 0.0))
        out[k] = seen.data[:, 0].argmax(0)
    return out


if __name__ == "__main__":
    main()
