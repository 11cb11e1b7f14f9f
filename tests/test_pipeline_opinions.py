"""Opinions: their volumes, whatever their order and number, and who watches the probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kidseg.config import PostprocessConfig
from kidseg.device import choose_device
from kidseg.geometry import Grid, Volume, resample
from kidseg.intensity import Scaling
from kidseg.labels import Target
from kidseg.methods.multistage.kidney_regions import without_small
from kidseg.pipeline import (
    Blocks,
    Planes,
    Predicted,
    Progress,
    Region,
    opinions_of,
    restore,
    rows_of,
)
from kidseg.pipeline.mirrored_windows import mean_logits
from kidseg.pipeline.opinions import Tally
from kidseg.pipeline.restore import FAINT
from kidseg.pipeline.windows import Window, part_of
from probabilities import (
    PLACES,
    labels_of,
    random_grid,
    random_probabilities,
    random_scan,
    region,
)

CPU = choose_device("cpu", "fp32")
TWO = Target(channels=((1,), (2,)))
REGIONS = Target(channels=((1, 2), (2,)), exclusive=False)
GRID = Grid.from_spacing((2, 3, 4), (5.0, 2.0, 1.0))
VOXEL_ML = 0.01


def where(*channels: int) -> Volume:
    """Certain probabilities: these outputs in the first voxels of the grid, else background."""
    data = torch.zeros(3, 24)
    data[0] = 1.0
    for k, channel in enumerate(channels):
        data[:, k] = torch.eye(3)[channel]
    return Volume(data.reshape(3, *GRID.shape), GRID)


# Volumes of an opinion


def test_the_volumes_of_an_opinion_by_hand() -> None:
    found = where(1, 2, 2, 1, 2)
    assert rows_of(found, TWO) == (pytest.approx((2 * VOXEL_ML, 3 * VOXEL_ML)),)
    assert rows_of(where(), TWO) == ((0.0, 0.0),)
    twice = replace(TWO, weights=(3.0, 1.0, 2.0))
    unsure = Volume(torch.tensor([0.4, 0.2, 0.4])[:, None, None, None].expand(3, *GRID.shape), GRID)
    assert rows_of(unsure, TWO) == ((0.0, 0.0),), "background wins a tie"
    assert rows_of(unsure, twice) == ((0.0, 0.0),)
    sure = replace(twice, weights=(1.0, 1.0, 2.0))
    assert rows_of(unsure, sure) == (pytest.approx((0.0, 24 * VOXEL_ML)),)


def test_overlapping_regions_count_where_they_write() -> None:
    data = torch.zeros(2, *GRID.shape)
    data[0, 0], data[1, 0, 0] = 0.9, 0.8
    (row,) = rows_of(Volume(data, GRID), REGIONS)
    assert row == pytest.approx((8 * VOXEL_ML, 4 * VOXEL_ML))


def test_slices_of_different_thickness_have_their_own_volume() -> None:
    matrices = GRID.slicewise().mm_from_index.clone()
    matrices[1, :, 0] *= 3
    grid = Grid(GRID.shape, matrices)
    found = where(*([1] * 24))
    ((kidney, _),) = rows_of(Volume(found.data, grid), TWO)
    assert kidney == pytest.approx(12 * VOXEL_ML + 12 * 3 * VOXEL_ML)


def test_opinions_of_members_places_and_copies() -> None:
    """Members are further opinions, places add up, and who says the same is not counted twice."""
    one, other = where(1, 1), where(1, 2, 2)
    rows = opinions_of([region(one), region(other)], TWO)
    assert rows == (pytest.approx((0.01, 0.02)), pytest.approx((0.02, 0.0)))
    assert opinions_of([region(other), region(one)], TWO) == rows
    assert opinions_of([region(one)] * 3, TWO) == opinions_of([region(one)], TWO)
    assert opinions_of([], TWO) == ()

    def of(place: str, *found: tuple[float, float]) -> Region:
        return Region(grid=GRID, name=place, found=Predicted(one.data, GRID, found))

    both = opinions_of([of("right", (1, 2), (3, 4)), of("left", (10, 20), (30, 40))], TWO)
    assert both == ((11, 22), (33, 44))
    with pytest.raises(ValueError, match=r"\[1, 2\] opinions"):
        opinions_of([of("right", (1, 2), (3, 4)), of("left", (10, 20))], TWO)


class Brighter(nn.Module):
    """Finds a kidney where the image is positive; of the left half of what it sees, nothing."""

    def forward(self, image: Tensor) -> list[Tensor]:
        kidney = image[:, :1].clone()
        kidney[..., : kidney.shape[-1] // 2] = -1.0
        none = torch.full_like(kidney, -100.0)
        return [torch.cat([torch.zeros_like(kidney), kidney, none], dim=1)]


def view(kind: str, *, flip: bool) -> Planes | Blocks:
    known = {"scalings": [(Scaling(),)], "padding": (0.0,), "device": CPU, "flip": flip}
    if kind == "planes":
        return Planes(**known)  # type: ignore[arg-type]
    return Blocks(patch=(2, 4, 4), overlap=0.5, **known)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["planes", "blocks"])
def test_a_mirrored_image_is_a_second_opinion(kind: str) -> None:
    """Five slices, more than a batch; the network sees only the right half of an image."""
    grid = Grid.from_spacing((5, 4, 4), (1.0, 1.0, 10.0))
    data = torch.full((1, *grid.shape), -5.0)
    data[..., 0] = data[..., 3] = 5.0
    data[..., :2, 2] = 5.0
    progress, place = Progress(image=Volume(data, grid)), Region(grid=grid)
    alone = view(kind, flip=False).predict(Brighter(), TWO, progress, place)
    both = view(kind, flip=True).predict(Brighter(), TWO, progress, place)
    assert isinstance(both, Predicted)
    # 20 rows: column 3 and half of column 2; in the mirror image column 0.
    assert both.rows == (pytest.approx((0.3, 0.0)), pytest.approx((0.2, 0.0)))
    assert rows_of(alone, TWO) == (pytest.approx((0.3, 0.0)),)
    turned = progress.image.data.flip(-1)
    other = view(kind, flip=False).predict(
        Brighter(), TWO, Progress(image=Volume(turned, grid)), place
    )
    assert torch.equal(both.data, (alone.data + other.data.flip(-1)) / 2)


def test_opinions_are_smoothed_as_their_mean_is() -> None:
    """Their volumes are those that each would give alone, smoothed."""
    grid = Grid.from_spacing((5, 4, 4), (1.0, 1.0, 10.0))
    image = torch.full((1, *grid.shape), -5.0)
    image[:, 1, :, :3], image[:, 2:, :, 3] = 5.0, 2.0
    place = Region(grid=grid)

    def found(smooth_mm: float, *, flip: bool, image: Tensor = image) -> Volume:
        smoothed = replace(view("planes", flip=flip), smooth_mm=smooth_mm)
        return smoothed.predict(Brighter(), TWO, Progress(image=Volume(image, grid)), place)

    both = found(2.0, flip=True)
    assert isinstance(both, Predicted)
    mirrored = rows_of(found(2.0, flip=False, image=image.flip(-1)), TWO)
    assert both.rows == (*rows_of(found(2.0, flip=False), TWO), *mirrored)
    assert both.rows != found(0.0, flip=True).rows  # type: ignore[attr-defined]


def test_small_pieces_that_are_dropped_leave_the_opinions() -> None:
    data = where(*([1] * 9), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2).data
    found = Predicted(data, GRID, ((1.0, 2.0), (3.0, 4.0)))
    kept, removed = without_small(found, TWO, PostprocessConfig(min_voxels=3), 0.05)
    assert len(removed) == 1 and isinstance(kept, Predicted) and kept.rows == found.rows


@pytest.mark.parametrize("axes", [(), (2,), (0, 1, 2)])
@pytest.mark.parametrize("window", [(4, 6, 8), (9, 9, 9)])
def test_windows_count_every_voxel_once(window: Sequence[int], axes: Sequence[int]) -> None:
    """However they overlap, and where the image is smaller than one."""
    grid = Grid.from_spacing((6, 7, 13), (2.0, 5.0, 1.0))
    nets = [Certain(1), Certain(2)]
    count = 2 * 2 ** len(axes)
    tallies = [Tally(TWO, grid) for _ in range(count)]

    def hear(number: int, logits: Tensor, box: tuple[slice, ...], share: Tensor) -> None:
        tallies[number].add(logits.softmax(0), box[0].start, share)

    image = torch.zeros(1, *grid.shape)
    known = {"overlap": 0.5, "mirror_axes": axes, "device": CPU}
    heard = mean_logits(nets, image, window, hear=hear, **known)  # type: ignore[arg-type]
    whole = 6 * 7 * 13 * 0.01
    rows = [tally.row for tally in tallies]
    assert rows[: count // 2] == [pytest.approx((whole, 0.0), rel=1e-5)] * (count // 2)
    assert rows[count // 2 :] == [pytest.approx((0.0, whole), rel=1e-5)] * (count // 2)
    assert torch.equal(heard, mean_logits(nets, image, window, **known))  # type: ignore[arg-type]


class Certain(nn.Module):
    """The same output everywhere."""

    def __init__(self, output: int) -> None:
        super().__init__()
        self.output = output

    def forward(self, image: Tensor) -> list[Tensor]:
        logits = torch.zeros(len(image), 3, *image.shape[2:])
        logits[:, self.output] = 5.0
        return [logits]


# Who watches


class Watcher:
    """Keeps all it sees; elsewhere the background is certain."""

    def __init__(self, target: Target, scan: Grid) -> None:
        fill = torch.tensor(target.background, dtype=torch.float64)[:, None, None, None]
        self.seen = fill.expand(-1, *scan.shape).clone()
        self.times = torch.zeros(scan.shape)

    def __call__(self, k: int, window: Window, probabilities: Tensor) -> None:
        part_of(self.seen[:, k], window).copy_(probabilities)
        part_of(self.times[k], window).add_(1)


@pytest.mark.parametrize("seed", range(12))
def test_labels_are_the_same_whoever_watches(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scan = random_scan(rng)
    kind = ["noise", "nearly tied", "a rounding below", "ties", "spots", "more spots"][seed % 6]
    found = [
        random_probabilities(rng, random_grid(rng, scan, PLACES[int(rng.integers(5))]), kind)
        for _ in range(3)
    ]
    found = [each for each in found if each.channels == found[0].channels]
    names = ["", "", "other"] if seed % 2 else ["a", "b", "c"]
    regions = [region(each, name) for each, name in zip(found, names, strict=False)]
    target = labels_of(found[0].channels)
    if seed % 3 == 0:
        target = replace(target, weights=tuple(rng.uniform(0.3, 3, target.outputs).tolist()))
    watcher = Watcher(target, scan)
    watched = restore(regions, scan, target, watcher)
    assert torch.equal(watched.data, restore(regions, scan, target).data)
    assert watcher.times.max() <= 1
    inside = watched.data[0] > 0
    assert watcher.times[inside].eq(1).all()


def test_a_watcher_sees_all_that_is_not_almost_certain() -> None:
    """The mean of an ensemble, and of places the one with the least background."""
    generator = torch.Generator().manual_seed(3)
    scan = Grid.from_spacing((3, 20, 24), (3.0, 1.0, 1.0))
    one, other = (
        Volume((torch.randn(3, *scan.shape, generator=generator) * 4).softmax(0), scan)
        for _ in range(2)
    )
    mean = (one.data.double() + other.data.double()) / 2
    watcher = Watcher(TWO, scan)
    restore([region(one), region(other)], scan, TWO, watcher)
    seen = watcher.times > 0
    assert torch.allclose(watcher.seen[:, seen], mean[:, seen])
    assert (mean[1:].amax(0)[~seen] <= FAINT * mean[0][~seen]).all()
    apart = Watcher(TWO, scan)
    restore([region(one, "a"), region(other, "b")], scan, TWO, apart)
    least = torch.where(one.data[0] <= other.data[0], one.data, other.data).double()
    assert torch.allclose(apart.seen[:, apart.times > 0], least[:, apart.times > 0])
    nothing = torch.zeros(3, *scan.shape)
    nothing[0] = 1.0
    blind = Watcher(TWO, scan)
    restore([region(Volume(nothing, scan))], scan, TWO, blind)
    assert not blind.times.any()


def test_a_watcher_sees_faint_regions_that_overlap() -> None:
    scan = Grid.from_spacing((1, 8, 8), (3.0, 1.0, 1.0))
    data = torch.zeros(2, *scan.shape)
    data[0, 0, 2, 3], data[0, 0, 6, 6] = 2 * FAINT, 0.5 * FAINT
    watcher = Watcher(REGIONS, scan)
    labels = restore([region(Volume(data, scan))], scan, REGIONS, watcher)
    assert not labels.data.any() and watcher.times[0, 2, 3] == 1 and not watcher.times[0, 6:].any()


def test_probabilities_are_seen_before_the_weights() -> None:
    scan = Grid.from_spacing((1, 4, 4), (3.0, 1.0, 1.0))
    target = replace(TWO, weights=(5.0, 1.0, 1.0))
    data = torch.tensor([0.2, 0.7, 0.1])[:, None, None, None].expand(3, *scan.shape)
    watcher = Watcher(target, scan)
    labels = restore([region(Volume(data, scan))], scan, target, watcher)
    assert not labels.data.any()
    assert torch.allclose(watcher.seen.float(), data)
    turned = scan.crop((0, 0, 0), (1, 4, 2))
    part = Watcher(target, scan)
    restore([region(resample(Volume(data, scan), turned))], scan, target, part)
    assert part.times[..., 2:].sum() == 0
