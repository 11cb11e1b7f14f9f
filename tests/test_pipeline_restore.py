"""The way back: labels as if everything were sampled, whatever the regions."""

from __future__ import annotations

import importlib
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kidseg.errors import ModelError
from kidseg.geometry import Grid, Volume, posed, resample
from kidseg.labels import Target
from kidseg.pipeline.deciding import decide
from kidseg.pipeline.restore import restore, sample
from kidseg.pipeline.steps import Region
from probabilities import (
    PLACES,
    SCAN,
    labels_of,
    random_grid,
    random_probabilities,
    random_scan,
    region,
)

KIDNEY_TUMOUR = Target(channels=((1,), (2,)))
seeds = st.integers(0, 2**31 - 1)


def one(found: Volume, scan: Grid) -> Volume:
    return restore([region(found)], scan, labels_of(found.channels))


# ---- one region --------------------------------------------------------------------------------


def test_restoring_is_one_resample_and_a_decision() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = posed(SCAN, angle_rad=0.2).resized((6, 40, 50))
    found = Volume(torch.rand(3, *grid.shape, generator=generator).softmax(0), grid)
    whole = resample(found, SCAN, fill=(1.0, 0.0, 0.0)).data.argmax(0)
    assert torch.equal(one(found, SCAN).data[0], whole.to(torch.uint8))


def test_outside_everything_and_on_ties_it_is_background() -> None:
    far = SCAN.crop((0, 500, 500), (6, 8, 8))
    certain = torch.stack([torch.zeros(far.shape), torch.ones(far.shape)])
    assert not one(Volume(certain, far), SCAN).data.any()
    tie = Volume(torch.full((2, *SCAN.shape), 0.5), SCAN)
    assert not one(tie, SCAN).data.any()


@pytest.mark.ci
@pytest.mark.parametrize(
    "content",
    ["noise", "nearly tied", "a rounding below", "ties", "all of one label", "spots", "more spots"],
)
@pytest.mark.parametrize("place", PLACES)
def test_restored_labels_are_those_of_all_voxels_resampled(place: str, content: str) -> None:
    found_anything = 0
    for seed in range(15):
        rng = np.random.default_rng([seed, len(place), len(content)])
        scan = random_scan(rng)
        found = random_probabilities(rng, random_grid(rng, scan, place), content)
        fill = [1.0] + [0.0] * (found.channels - 1)
        whole = resample(found, scan, fill=fill).data.argmax(0).to(torch.uint8)
        assert torch.equal(one(found, scan).data[0], whole), f"seed {seed}"
        found_anything += int(whole.any())
    assert found_anything >= 3 or content == "a rounding below"


def count_sampled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pixels each call of the sampler is asked for, as it goes."""
    sampled: list[int] = []
    module = importlib.import_module("kidseg.pipeline.restore")
    whole = module.sample_window

    def counted(*given):  # type: ignore[no-untyped-def]
        sampled.append(math.prod(len(line) for line in given[3]))
        return whole(*given)

    monkeypatch.setattr(module, "sample_window", counted)
    return sampled


def test_only_what_lies_around_something_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = count_sampled(monkeypatch)
    grid = posed(SCAN, angle_rad=torch.full((6,), 0.1), scale=torch.ones(6, 2))
    data = torch.zeros(2, *SCAN.shape)
    data[0] = 1.0
    assert not one(Volume(data, grid), SCAN).data.any()
    assert not sampled
    data[:, 2, 30:34, 40:44] = torch.tensor([0.0, 1.0])[:, None, None]
    assert one(Volume(data, grid), SCAN).data.sum() > 10
    # One slice; 4 x 4 pixels and their neighbours, 6 x 6, turned by 0.1.
    assert len(sampled) == 1
    assert sampled[0] <= 9 * 9


def test_the_edge_value_holds_half_a_voxel_beyond() -> None:
    """One row of pixels, all label, fills two rows of half its size to their ends."""
    scan = Grid.from_spacing((1, 40, 8), (1, 0.5, 0.5))
    only = scan.resized((1, 20, 4)).crop((0, 10, 0), (1, 1, 4))
    certain = torch.stack([torch.zeros(only.shape), torch.ones(only.shape)])
    labels = one(Volume(certain, only), scan).data[0, 0]
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
    assert not one(found, SCAN).data.any()
    data[channel, 3, 32, 40] = value
    with pytest.raises(ModelError, match=r"slice 4 of 6\. .*fp32") as raised:
        one(found, SCAN)
    assert raised.value.code == "not-finite-probabilities"


# ---- several regions ---------------------------------------------------------------------------


def all_of_it(regions: list[Region], scan: Grid, target: Target) -> torch.Tensor:
    """What `restore` says it gives, with every probability at every voxel."""
    fill = torch.tensor(target.background, dtype=torch.float64)[:, None, None, None]
    chosen, backgrounds = [], []
    for name in dict.fromkeys(r.name for r in regions):
        opinions = [r.found for r in regions if r.name == name and r.found is not None]
        seen = [resample(found, scan, fill=math.nan).data.double() for found in opinions]
        covered = [~s.isnan() for s in seen]
        number = torch.stack(covered).sum(0)
        mean = torch.stack([s.nan_to_num(0.0) for s in seen]).sum(0) / number.clamp(min=1)
        mean = torch.where(number > 0, mean, fill)
        if target.weights:
            weights = torch.tensor(target.weights, dtype=torch.float64)[:, None, None, None]
            together = mean[1:].sum(0)
            mean = mean * weights
            if target.exclusive:  # the most likely channel stands for all of them
                best = mean[1:].argmax(0) == torch.arange(len(mean) - 1)[:, None, None, None]
                mean[1:] = together * best
        if target.exclusive:
            chosen.append(mean.argmax(0))
            backgrounds.append(mean[0])
        else:
            each = torch.arange(1, len(mean) + 1)[:, None, None, None]
            chosen.append(((mean > 0.5) * each).amax(0))
            backgrounds.append(1 - mean.amax(0))
    if not regions:
        return torch.zeros(scan.shape, dtype=torch.uint8)
    least = torch.stack(backgrounds) == torch.stack(backgrounds).amin(0)
    winner = torch.where(least, torch.stack(chosen), 255).amin(0)
    return torch.tensor((0, *target.writes), dtype=torch.uint8)[winner]


def random_regions(rng: np.random.Generator, scan: Grid, target: Target) -> list[Region]:
    regions = []
    for _ in range(int(rng.integers(1, 5))):
        grid = random_grid(rng, scan, PLACES[rng.integers(len(PLACES))])
        shape = (target.outputs, *grid.shape)
        kind = int(rng.integers(3))
        if target.exclusive:
            data = np.moveaxis(rng.dirichlet(np.ones(target.outputs), grid.shape), -1, 0)
            if kind == 1:  # ties
                data = rng.integers(0, 3, shape) / 2
                if target.weights:  # where the background is certain, nothing else is possible
                    data = np.where(data[:1] == 1, np.eye(len(data))[0][:, None, None, None], data)
        else:
            data = rng.uniform(0, 1, shape)
            if kind == 1:  # ties and what rounding makes of a half
                data = 0.5 + rng.integers(-3, 2, shape) * 3e-8
        if kind == 2:  # spots in certain background
            there = rng.random(grid.shape) < 0.02
            background = np.reshape(target.background, (-1, 1, 1, 1))
            data = np.where(there, data, background)
        name = ("left", "right")[rng.integers(2)]
        regions.append(region(Volume(torch.from_numpy(data.copy()).float(), grid), name))
    return regions


TARGETS = [
    KIDNEY_TUMOUR,
    Target(channels=((2, 3), (1,)), writes=(3, 1)),
    Target(channels=((1, 2), (2,)), exclusive=False, writes=(1, 2)),
    Target(channels=((4, 2), (2,), (1,)), exclusive=False, writes=(4, 2, 1)),
    Target(channels=((1,), (2,)), weights=(0.3, 1.0, 1.7)),
    Target(channels=((1,), (2,)), weights=(4.0, 1.0, 0.5)),
    Target(channels=((1, 2), (2,)), exclusive=False, writes=(1, 2), weights=(1.3, 0.6)),
]


@pytest.mark.ci
@given(seeds, st.sampled_from(TARGETS))
@settings(max_examples=150)
def test_several_regions_are_decided_as_if_all_voxels_were_sampled(
    seed: int, target: Target
) -> None:
    rng = np.random.default_rng(seed)
    scan = random_scan(rng)
    regions = random_regions(rng, scan, target)
    assert torch.equal(restore(regions, scan, target).data[0], all_of_it(regions, scan, target))


@given(seeds, st.sampled_from(TARGETS))
@settings(max_examples=40)
def test_the_order_of_regions_has_no_say(seed: int, target: Target) -> None:
    rng = np.random.default_rng(seed)
    scan = random_scan(rng)
    regions = random_regions(rng, scan, target)[:3]
    first, *others = (
        restore(order, scan, target).data for order in itertools.permutations(regions)
    )
    assert all(torch.equal(first, other) for other in others)


@given(seeds, st.sampled_from(TARGETS), st.sampled_from(["", "again"]))
@settings(max_examples=40)
def test_the_same_region_twice_is_that_region(seed: int, target: Target, other: str) -> None:
    """As a second opinion, and as another place."""
    rng = np.random.default_rng(seed)
    scan = random_scan(rng)
    found = random_regions(rng, scan, target)[0].found
    assert found is not None
    once = restore([region(found)], scan, target)
    twice = restore([region(found), region(found, other)], scan, target)
    assert torch.equal(once.data, twice.data)


def cut(found: Volume, start: int, stop: int, name: str) -> Region:
    """Columns start .. stop - 1."""
    grid = found.grid.crop((0, 0, start), (*found.grid.shape[:2], stop - start))
    return region(Volume(found.data[..., start:stop], grid), name)


@given(seeds, st.booleans())
@settings(max_examples=40)
def test_overlapping_regions_meet_without_a_seam(seed: int, exclusive: bool) -> None:
    rng = np.random.default_rng(seed)
    target = TARGETS[0 if exclusive else 2]
    nz, ny, nx = 3, 30, 40
    scan = Grid.from_spacing((nz, ny, nx), (3, 1, 1))
    logits = torch.from_numpy(rng.normal(size=(target.outputs, nz, 8, 10))) * 3
    coarse = Volume(logits, scan.resized((nz, 8, 10)))

    def field(grid: Grid) -> Volume:
        smooth = resample(coarse, grid).data
        data = smooth.softmax(0) if exclusive else smooth.sigmoid()
        return Volume(data, grid)

    stop, start = 15 + int(rng.integers(3, 10)), 15 - int(rng.integers(3, 10))
    # On the scan's own voxels: to the last one.
    whole = field(scan)
    parts = [cut(whole, 0, stop, "left"), cut(whole, start, nx, "right")]
    got = restore(parts, scan, target)
    assert torch.equal(got.data, restore([region(whole)], scan, target).data)
    # Turned: half a voxel of the regions from the two borders inside, where nothing is a near tie.
    whole = field(posed(scan, angle_rad=0.3))
    parts = [cut(whole, 0, stop, "left"), cut(whole, start, nx, "right")]
    got = restore(parts, scan, target)
    want = restore([region(whole)], scan, target)
    index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in scan.shape), indexing="ij"), -1)
    column = whole.grid.index(scan.mm(index.double()))[..., 2]
    away = ((column - (stop - 0.5)).abs() > 0.51) & ((column - (start - 0.5)).abs() > 0.51)
    seen = resample(whole, scan, fill=target.background).data
    top = seen.sort(0, descending=True).values
    clear = top[0] - top[1] > 1e-5 if exclusive else ((seen - 0.5).abs() > 1e-5).all(0)
    assert away.float().mean() > 0.8
    assert torch.equal(got.data[0][away & clear], want.data[0][away & clear])


def flat(*values: float, grid: Grid = SCAN) -> Volume:
    data = torch.tensor(values)[:, None, None, None].expand(len(values), *grid.shape)
    return Volume(data, grid)


def test_by_hand() -> None:
    """Kidney 0.5 on the left, tumour 0.6 on the right; they overlap in columns 30..39."""
    left = flat(0.4, 0.5, 0.1, grid=SCAN.crop((0, 0, 0), (6, 64, 40)))
    right = flat(0.3, 0.1, 0.6, grid=SCAN.crop((0, 0, 30), (6, 64, 50)))
    labels = restore([region(left, "left"), region(right, "right")], SCAN, KIDNEY_TUMOUR).data
    assert (labels[..., :30] == 1).all() and (labels[..., 30:] == 2).all()
    # As two opinions the mean of the overlap is (0.35, 0.3, 0.35): a tie, and background is lower.
    labels = restore([region(left), region(right)], SCAN, KIDNEY_TUMOUR).data
    assert (labels[..., :30] == 1).all() and (labels[..., 40:] == 2).all()
    mean = torch.stack([left.data[:, 0, 0, 0], right.data[:, 0, 0, 0]]).double().mean(0)
    assert (labels[..., 30:40] == int(mean.argmax())).all()


def test_the_surest_place_may_make_background_of_another_ones_kidney() -> None:
    """0.4 background is more than 0.3 of each label, and less than the 0.45 beside 0.55."""
    surest, other = flat(0.4, 0.3, 0.3), flat(0.45, 0.55, 0.0)
    assert (restore([region(other)], SCAN, KIDNEY_TUMOUR).data == 1).all()
    both = [region(surest, "a"), region(other, "b")]
    assert not restore(both, SCAN, KIDNEY_TUMOUR).data.any()


def test_weights_of_the_channels_by_hand() -> None:
    """0.5, 0.3, 0.1: background against 0.4 of both; the tumour with a weight above 3."""
    for weights, label in [
        ((), 0),
        ((0.5, 1.0, 1.0), 1),
        ((0.81, 1.0, 1.0), 0),  # 0.405 against 0.4
        ((0.79, 1.0, 1.0), 1),  # 0.395
        ((1.0, 1.0, 50.0), 0),
        ((0.5, 1.0, 2.9), 1),
        ((0.5, 1.0, 3.1), 2),
    ]:
        found, target = flat(0.5, 0.3, 0.1), Target(channels=((1,), (2,)), weights=weights)
        for grid in (SCAN, posed(SCAN, angle_rad=0.2).crop((0, -40, -40), (6, 150, 150))):
            labels = restore([region(flat(0.5, 0.3, 0.1, grid=grid))], SCAN, target)
            assert (labels.data == label).all(), weights
        assert (decide(found, target).data == label).all()
    overlapping = Target(channels=((1,),), exclusive=False, weights=(2.0,))
    assert (restore([region(flat(0.26))], SCAN, overlapping).data == 1).all()
    assert not restore([region(flat(0.24))], SCAN, overlapping).data.any()


def test_weights_count_after_the_mean_of_an_ensemble() -> None:
    """Mean (0.5, 0.3, 0.2): background; with half the weight the kidney, in any order."""
    both = [region(flat(0.8, 0.1, 0.1)), region(flat(0.2, 0.5, 0.3))]
    assert not restore(both, SCAN, KIDNEY_TUMOUR).data.any()
    weighted = Target(channels=((1,), (2,)), weights=(0.5, 1.0, 1.0))
    for regions in (both, both[::-1]):
        assert (restore(regions, SCAN, weighted).data == 1).all()


def test_equally_sure_places_give_the_lower_channel() -> None:
    one_way, other_way = flat(0.2, 0.5, 0.3), flat(0.2, 0.3, 0.5)
    target = Target(channels=((7,), (3,)))
    for both in itertools.permutations([region(one_way, "a"), region(other_way, "b")]):
        assert (restore(both, SCAN, target).data == 7).all()


def test_overlapping_channels_are_written_in_order_above_a_half() -> None:
    target = Target(channels=((1, 2), (2,)), exclusive=False)
    for values, label in [((0.6, 0.5), 1), ((0.6, 0.51), 2), ((0.4, 0.51), 2), ((0.5, 0.5), 0)]:
        assert (restore([region(flat(*values))], SCAN, target).data == label).all()


def test_opinions_count_where_they_cover() -> None:
    """0.4 alone is none; with 0.7 beside it the mean, 0.55, is one; 0.7 alone too."""
    target = Target(channels=((1,),), exclusive=False)
    low, high = flat(0.4, grid=SCAN.crop((0, 0, 0), (6, 64, 40))), flat(0.7)
    high = Volume(high.data[..., 20:], SCAN.crop((0, 0, 20), (6, 64, 60)))
    labels = restore([region(low), region(high)], SCAN, target).data
    assert not labels[..., :20].any() and labels[..., 20:].all()


def test_nothing_found_anywhere_is_background() -> None:
    assert not restore([], SCAN, KIDNEY_TUMOUR).data.any()
    assert restore([], SCAN, KIDNEY_TUMOUR).data.shape == (1, *SCAN.shape)
    far = [region(flat(0, 1, 0, grid=SCAN.crop((k, 0, 0), SCAN.shape))) for k in (-6, 6)]
    assert not restore(far, SCAN, KIDNEY_TUMOUR).data.any()
    near = [*far, region(flat(0, 0, 1), "here")]
    assert (restore(near, SCAN, KIDNEY_TUMOUR).data == 2).all()


def test_probabilities_are_left_as_they_were() -> None:
    """Their memory may be shared, or a file's."""
    found = flat(0.2, 0.8, 0.0).astype(torch.float64)
    before = found.data.clone()
    restore([region(found), region(found), region(found, "b")], SCAN, KIDNEY_TUMOUR)
    assert torch.equal(found.data, before)


def test_two_kidneys_are_sampled_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = count_sampled(monkeypatch)
    left, right = (posed(SCAN, angle_rad=0.1).crop((0, 0, first), (6, 64, 30)) for first in (0, 50))
    regions = []
    for name, grid in (("left", left), ("right", right)):
        data = torch.zeros(3, *grid.shape)
        data[0] = 1.0
        data[:, 2, 30:34, 10:14] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
        regions.append(region(Volume(data, grid), name))
    assert restore(regions, SCAN, KIDNEY_TUMOUR).data.sum() > 20
    assert len(sampled) == 2 and max(sampled) <= 9 * 9

    # Of two places that overlap, their common window once each.
    sampled.clear()
    twice = [regions[0], region(regions[0].found, "again")]  # type: ignore[arg-type]
    restore(twice, SCAN, KIDNEY_TUMOUR)
    assert len(sampled) == 2


def test_halves_that_rounding_makes_more_of_are_not_missed() -> None:
    """The weights of an interpolation may add up to more than 1."""
    turn = {"angle_rad": (0.1, 0.2, 0.3), "scale": (1.0, 1.0, 1.0), "shift_mm": (0.0, 0.0, 0.0)}
    target = Target(channels=((1,),), exclusive=False)
    halves = [region(flat(0.5, grid=posed(SCAN, **turn)))]
    want = all_of_it(halves, SCAN, target)
    assert want.any()
    assert torch.equal(restore(halves, SCAN, target).data[0], want)


def test_what_is_no_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="region 'left' has no probabilities"):
        restore([Region(grid=SCAN, name="left")], SCAN, KIDNEY_TUMOUR)
    with pytest.raises(ValueError, match="region 'left' has 2 channels, the target 3"):
        restore([region(flat(0.5, 0.5), "left")], SCAN, KIDNEY_TUMOUR)
    some = SCAN.slicewise().slices(0, 3)
    with pytest.raises(ValueError, match="cannot be paired"):
        restore([region(flat(1, 0, 0, grid=some))], SCAN, KIDNEY_TUMOUR)
    bad = flat(0.5, math.nan, 0.5)
    with pytest.raises(ModelError, match="of region 'left' are not finite in slice 1 of 6"):
        restore([region(bad, "left")], SCAN, KIDNEY_TUMOUR)


def test_on_its_own_grid_labels_are_decided_as_when_they_are_restored() -> None:
    """A background that wins, ties, regions that overlap; the same where the two grids are one."""
    generator = torch.Generator().manual_seed(0)
    for exclusive in (True, False):
        target = Target(channels=((1, 2), (5,)), exclusive=exclusive, writes=(2, 7))
        shape = (target.outputs, *SCAN.shape)
        data = torch.rand(shape, generator=generator)
        data[:, 0, :9] = 0.5
        found = Volume(data.softmax(0) if exclusive else data, SCAN)
        labels = decide(found, target)
        assert labels.data.unique().tolist() == [0, 2, 7] and labels.grid is SCAN
        assert labels.data.dtype == torch.uint8 and not labels.data[0, 0, :9].any()
        assert torch.equal(labels.data, restore([region(found)], SCAN, target).data)
    by_hand = torch.tensor([[0.9, 0.9, 0.4], [0.2, 0.6, 0.7]])[:, None, None]
    grid = Grid.from_spacing((1, 1, 3), (1, 1, 1))
    target = Target(channels=((1, 2), (2,)), exclusive=False, writes=(1, 2))
    assert decide(Volume(by_hand, grid), target).data.flatten().tolist() == [1, 2, 2]


# ---- several decisions ---------------------------------------------------------------------------

WEIGHTS = [(), (0.3, 1.0, 1.7), (4.0, 1.0, 0.5), (0.03, 1.0, 2.0), (1.0, 1.0, 1.0)]


@given(seeds, st.permutations(WEIGHTS), st.integers(1, 5))
@settings(max_examples=20)
def test_sampled_once_the_labels_are_those_of_each_target(
    seed: int, weights: list[tuple[float, ...]], count: int
) -> None:
    targets = [Target(channels=((1,), (2,)), weights=each) for each in weights[:count]]
    rng = np.random.default_rng(seed)
    scan = random_scan(rng)
    regions = random_regions(rng, scan, Target(channels=((1,), (2,)), weights=WEIGHTS[1]))
    samples = sample(regions, scan, targets)
    for target in targets:
        assert torch.equal(samples.decided(target).data, restore(regions, scan, target).data)


def test_overlapping_channels_are_sampled_once_too() -> None:
    """Where any threshold is passed: 0.3 with a weight of 2, and with 1."""
    targets = [
        Target(channels=((1,),), exclusive=False, weights=(weight,)) for weight in (2.0, 0.5, 1.0)
    ]
    samples = sample([region(flat(0.3))], SCAN, targets)
    assert [int(samples.decided(target).data.max()) for target in targets] == [1, 0, 0]


def test_the_sampler_is_asked_once_for_all_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled = count_sampled(monkeypatch)
    grid = posed(SCAN, angle_rad=0.2)
    targets = [Target(channels=((1,), (2,)), weights=each) for each in WEIGHTS]
    samples = sample([region(flat(0.52, 0.38, 0.1, grid=grid))], SCAN, targets)
    asked = len(sampled)
    labels = [samples.decided(target).data.max() for target in targets]
    assert asked == len(sampled) == SCAN.shape[0] and labels == [0, 1, 0, 1, 0]


def test_targets_of_other_meaning_are_not_decided_together() -> None:
    other = Target(channels=((2,), (1,)))
    for targets in ([KIDNEY_TUMOUR, other], []):
        with pytest.raises(ValueError, match="only in their weights"):
            sample([region(flat(0.5, 0.4, 0.1))], SCAN, targets)
