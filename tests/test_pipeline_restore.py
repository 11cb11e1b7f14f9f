"""The way back onto the scan: one interpolation, then the decision."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch

from kidseg.errors import ModelError
from kidseg.geometry import Grid, Volume, posed, resample
from kidseg.pipeline import decided, restore

SCAN = Grid.from_spacing((6, 64, 80), (3, 1, 1), centre_mm=(5, -7, 30))


def test_restoring_is_one_resample_and_a_decision() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = posed(SCAN, angle_rad=0.2).resized((6, 40, 50))
    found = Volume(torch.rand(3, *grid.shape, generator=generator).softmax(0), grid)
    whole = resample(found, SCAN, fill=(1.0, 0.0, 0.0)).data.argmax(0)
    assert torch.equal(restore(found, SCAN).data[0], whole.to(torch.uint8))


def test_the_most_probable_label_is_decided_and_the_lower_on_a_tie() -> None:
    data = torch.tensor([[0.2, 0.4, 0.3], [0.5, 0.4, 0.2], [0.3, 0.2, 0.5]]).reshape(3, 1, 1, 3)
    grid = SCAN.crop((0, 0, 0), (1, 1, 3))
    found = decided(Volume(data, grid))
    assert found.grid is grid and found.data.dtype == torch.uint8
    assert found.data.flatten().tolist() == [1, 0, 2]


def test_outside_everything_and_on_ties_it_is_background() -> None:
    far = SCAN.crop((0, 500, 500), (6, 8, 8))
    certain = torch.stack([torch.zeros(far.shape), torch.ones(far.shape)])
    assert not restore(Volume(certain, far), SCAN).data.any()
    tie = Volume(torch.full((2, *SCAN.shape), 0.5), SCAN)
    assert not restore(tie, SCAN).data.any()


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


@pytest.mark.parametrize(
    "content",
    ["noise", "nearly tied", "a rounding below", "ties", "all of one label", "spots", "more spots"],
)
@pytest.mark.parametrize("place", ["copied", "volume", "each slice", "space", "slices"])
def test_restored_labels_are_those_of_all_voxels_resampled(place: str, content: str) -> None:
    found_anything = 0
    for seed in range(15):
        rng = np.random.default_rng([seed, len(place), len(content)])
        scan = random_scan(rng)
        found = random_probabilities(rng, random_grid(rng, scan, place), content)
        fill = [1.0] + [0.0] * (found.channels - 1)
        whole = resample(found, scan, fill=fill).data.argmax(0).to(torch.uint8)
        assert torch.equal(restore(found, scan).data[0], whole), f"seed {seed}"
        found_anything += int(whole.any())
    assert found_anything >= 3 or content == "a rounding below"


def test_only_what_lies_around_something_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = []
    module = importlib.import_module("kidseg.pipeline.restore")
    whole = module.sample_window

    def counted(*given):  # type: ignore[no-untyped-def]
        sampled.append(math.prod(len(line) for line in given[3]))
        return whole(*given)

    monkeypatch.setattr(module, "sample_window", counted)
    grid = posed(SCAN, angle_rad=torch.full((6,), 0.1), scale=torch.ones(6, 2))
    data = torch.zeros(2, *SCAN.shape)
    data[0] = 1.0
    assert not restore(Volume(data, grid), SCAN).data.any()
    assert not sampled
    data[:, 2, 30:34, 40:44] = torch.tensor([0.0, 1.0])[:, None, None]
    assert restore(Volume(data, grid), SCAN).data.sum() > 10
    # One slice; 4 x 4 pixels and their neighbours, 6 x 6, turned by 0.1.
    assert len(sampled) == 1
    assert sampled[0] <= 9 * 9


def test_the_edge_value_holds_half_a_voxel_beyond() -> None:
    """One row of pixels, all label, fills two rows of half its size to their ends."""
    scan = Grid.from_spacing((1, 40, 8), (1, 0.5, 0.5))
    only = scan.resized((1, 20, 4)).crop((0, 10, 0), (1, 1, 4))
    certain = torch.stack([torch.zeros(only.shape), torch.ones(only.shape)])
    labels = restore(Volume(certain, only), scan).data[0, 0]
    assert labels[20:22].all()
    assert labels.sum() == 2 * 8


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("turn_rad", [0.0, 0.2])  # decided at once, and sampled
def test_probabilities_that_are_no_numbers_are_refused(
    value: float, channel: int, turn_rad: float
) -> None:
    data = torch.zeros(2, *SCAN.shape)
    data[0] = 1.0
    found = Volume(data, posed(SCAN, angle_rad=turn_rad))
    assert not restore(found, SCAN).data.any()
    data[channel, 3, 32, 40] = value
    with pytest.raises(ModelError, match=r"slice 3 of 6\. .*fp32") as raised:
        restore(found, SCAN)
    assert raised.value.code == "not-finite-probabilities"
