"""The chain of steps: what each locates, finds and hands on to those after it."""

from __future__ import annotations

import time

import pytest
import torch

from kidseg.geometry import Grid, Slices, Volume, boxed, posed, resample
from kidseg.labels import Target
from kidseg.pipeline import Note, Progress, Region, Step, advance, restore

SCAN = Grid.from_spacing((6, 64, 80), (3, 1, 1), centre_mm=(5, -7, 30))
BRIGHT = Target(channels=((1,),))


def bright_box() -> Volume:
    """100 HU in a box of air; its own reference."""
    data = torch.full((1, *SCAN.shape), -1000.0)
    data[0, 1:5, 20:40, 30:60] = 100.0
    return Volume(data, SCAN)


def threshold(progress: Progress, region: Region) -> Volume:
    """Probabilities of background and bright, as a ramp between -1000 and 100 HU."""
    assert isinstance(progress.image, Volume)
    seen = resample(progress.image, region.grid, fill=-1000.0)
    bright = ((seen.data[0] + 1000) / 1100).clamp(0, 1)
    return Volume(torch.stack([1 - bright, bright]), region.grid)


def found_of(region: Region) -> Volume:
    assert region.found is not None
    return region.found


def test_one_step_on_the_scans_own_grid_is_exact() -> None:
    scan = bright_box()
    progress = advance(scan, [Step(name="all", locate=lambda p: p.last, segment=threshold)])
    (region,) = progress.found
    labels = restore([region], scan.grid, BRIGHT)
    assert torch.equal(labels.data[0] == 1, scan.data[0] > 0)
    assert region.grid is scan.grid and labels.grid.same_as(SCAN)
    assert set(progress.seconds) == {"all"} and progress.image is scan


@pytest.mark.parametrize("slicewise", [False, True])
def test_pose_then_crop_comes_back_onto_the_scan(slicewise: bool) -> None:
    scan = bright_box()
    angle = torch.full((SCAN.shape[0],), 0.3) if slicewise else torch.tensor(0.3)
    scale = torch.full((*angle.shape, 2), 0.7)
    seen = []

    def pose(progress: Progress) -> list[Region]:
        assert progress.found == () and not progress.steps
        (whole,) = progress.last
        shift = torch.zeros_like(scale)
        return [Region(grid=posed(whole.grid, angle_rad=angle, scale=scale, shift_mm=shift))]

    def crop(progress: Progress) -> list[Region]:
        (region,) = progress.last
        seen.append(region.grid)
        grid = region.grid
        nz = 1 if grid.is_slicewise else grid.shape[0]
        low, high = torch.tensor([[-0.5, 3.5, 3.5], [nz - 0.5, 61.5, 73.5]])
        return [Region(grid=boxed(grid, low, high, (grid.shape[0], 58, 70)))]

    steps = [
        Step(name="pose", locate=pose),
        Step(name="crop", locate=crop, segment=threshold),
    ]
    progress = advance(scan, steps)
    assert progress.steps["pose"][0].grid is seen[0]
    assert progress.steps["pose"][0].found is None
    assert found_of(progress.found[0]).grid.shape == (6, 58, 70)
    got, want = restore(progress.found, scan.grid, BRIGHT).data[0] == 1, scan.data[0] > 0
    assert 2 * (got & want).sum() / (got.sum() + want.sum()) > 0.97


def coarse(progress: Progress) -> list[Region]:
    return [Region(grid=progress.last[0].grid.resized((6, 32, 40)))]


def near(progress: Progress) -> list[Region]:
    """Around what was found."""
    found = found_of(progress.found[0])
    hit = (found.data[1] > 0.5).nonzero()
    start, stop = hit.amin(0) - 2, hit.amax(0) + 3
    return [Region(grid=found.grid.crop(start.tolist(), (stop - start).tolist()))]


def test_a_later_step_sees_what_was_found() -> None:
    scan = bright_box()
    steps = [
        Step(name="coarse", locate=coarse, segment=threshold),
        Step(name="fine", locate=near, segment=threshold),
    ]
    progress = advance(scan, steps)
    (fine,) = progress.steps["fine"]
    assert progress.found == progress.last == (fine,)
    assert fine.grid.shape[1] < 32
    got, want = restore([fine], scan.grid, BRIGHT).data[0] == 1, scan.data[0] > 0
    assert 2 * (got & want).sum() / (got.sum() + want.sum()) > 0.9


def test_what_was_found_stays_found_where_later_steps_only_locate() -> None:
    """And a step that segments may read it, though its region is another."""
    scan = bright_box()
    read = []

    def second(progress: Progress, region: Region) -> Volume:
        read.append((progress.found, region))
        return threshold(progress, region)

    steps = [
        Step(name="coarse", locate=coarse, segment=threshold),
        Step(name="where", locate=near),
        Step(name="fine", locate=lambda p: p.last, segment=second),
    ]
    looked = advance(scan, steps[:2])
    assert looked.found == looked.steps["coarse"]
    assert looked.last == looked.steps["where"] and looked.last[0].found is None
    progress = advance(scan, steps)
    ((earlier, region),) = read
    assert earlier == progress.steps["coarse"]
    assert region is progress.steps["where"][0], "as located; what is found is kept beside it"
    assert progress.found == progress.steps["fine"]
    assert progress.steps["fine"][0].grid is region.grid and region.found is None


def test_a_step_with_nothing_to_do_leaves_the_step_before() -> None:
    """ "Normal: no correction"; at the very start, the whole image."""
    scan = bright_box()
    never: list[Region] = []

    def segment(progress: Progress, region: Region) -> Volume:
        never.append(region)
        return threshold(progress, region)

    nothing = Step(name="nothing", locate=lambda _: ())
    progress = advance(scan, [nothing])
    assert progress.steps == {"nothing": ()} and progress.found == ()
    assert progress.last[0].grid is scan.grid and progress.last[0].found is None

    steps = [
        Step(name="coarse", locate=coarse, segment=threshold),
        Step(name="correct", locate=lambda _: (), segment=segment),
        Step(name="fine", locate=lambda p: p.last, segment=threshold),
    ]
    between = advance(scan, steps[:2])
    assert between.last == between.found == between.steps["coarse"]
    progress = advance(scan, steps)
    assert not never
    assert list(progress.steps) == list(progress.seconds) == ["coarse", "correct", "fine"]
    assert progress.steps["correct"] == ()
    assert progress.steps["fine"][0].grid is progress.steps["coarse"][0].grid


def test_steps_go_on_from_where_others_ended() -> None:
    """The same as all at once; the earlier steps do not run again."""
    scan, ran = bright_box(), []

    def counted(progress: Progress, region: Region) -> Volume:
        ran.append(len(progress.steps))
        return threshold(progress, region)

    steps = [
        Step(name="coarse", locate=coarse, segment=counted),
        Step(name="fine", locate=near, segment=counted),
    ]
    begun = advance(scan, steps[:1])
    progress = advance(begun, steps[1:])
    assert ran == [0, 1] and list(progress.steps) == list(progress.seconds) == ["coarse", "fine"]
    assert list(begun.steps) == ["coarse"] and progress.steps["coarse"] is begun.steps["coarse"]
    whole = advance(scan, steps)
    assert torch.equal(found_of(whole.found[0]).data, found_of(progress.found[0]).data)


def test_a_step_says_what_it_decided() -> None:
    """With its own regions before it; steps that say nothing have no note."""
    steps = [
        Step(name="silent", locate=lambda p: p.last),
        Step(
            name="coarse",
            locate=coarse,
            segment=threshold,
            note=lambda p: Note(text=f"{len(p.steps['coarse'])} region", facts={"n": len(p.steps)}),
        ),
    ]
    progress = advance(bright_box(), steps)
    assert progress.notes == {"coarse": Note(text="1 region", facts={"n": 2})}


def test_several_regions_are_each_segmented_and_keep_order_and_names() -> None:
    """Two halves of the scan, and an opinion more on the first."""
    scan = bright_box()
    names = ("left", "right", "left")
    starts = (0, 40, 0)

    def halves(progress: Progress) -> list[Region]:
        grid = progress.last[0].grid
        return [
            Region(grid=grid.crop((0, 0, start), (6, 64, 40)), name=name)
            for name, start in zip(names, starts, strict=True)
        ]

    steps = [
        Step(name="where", locate=halves),
        Step(name="what", locate=lambda p: p.last, segment=threshold),
    ]
    progress = advance(scan, steps)
    assert len(progress.steps["where"]) == len(progress.found) == 3
    assert all(region.found is None for region in progress.steps["where"])
    assert tuple(region.name for region in progress.found) == names
    for region, start in zip(progress.found, starts, strict=True):
        bright = scan.data[0, :, :, start : start + 40] > 0
        assert found_of(region).grid is region.grid
        assert torch.equal(found_of(region).data[1] > 0.5, bright)


def test_seconds_are_those_of_each_step() -> None:
    """To locate and to segment."""

    def slow(progress: Progress) -> tuple[Region, ...]:
        time.sleep(0.05)
        return progress.last

    def slower(progress: Progress, region: Region) -> Volume:
        time.sleep(0.1)
        return threshold(progress, region)

    steps = [
        Step(name="slow", locate=slow),
        Step(name="both", locate=slow, segment=slower),
        Step(name="none", locate=lambda _: ()),
    ]
    start = time.perf_counter()
    seconds = advance(bright_box(), steps).seconds
    took = time.perf_counter() - start
    assert list(seconds) == ["slow", "both", "none"]
    assert seconds["slow"] >= 0.05 and seconds["both"] >= 0.15
    assert sum(seconds.values()) <= took
    assert seconds["none"] < took - 0.2 + 0.001


def test_nothing_is_known_at_the_start() -> None:
    scan = bright_box()
    progress = advance(scan, [])
    assert not progress.steps and not progress.seconds and progress.found == ()
    assert progress.last[0].grid is scan.grid


def test_slices_of_a_batch_go_through_the_same_chain() -> None:
    """They have no whole image to start from: the first step says where they are."""
    scan = bright_box()
    slices = Slices.of([scan], [(0, 4), (0, 1)])
    place = Grid((2, *SCAN.shape[1:]), SCAN.slicewise().mm_from_index[[4, 1]])
    steps = [
        Step(name="start", locate=lambda _: [Region(grid=place)]),
        Step(name="stay", locate=lambda p: p.last),
    ]
    progress = advance(slices, steps)
    assert progress.last[0].grid is place and progress.image is slices
    with pytest.raises(ValueError, match="run a locating step first"):
        advance(slices, steps[1:])
    with pytest.raises(ValueError, match="run a locating step first"):
        _ = advance(slices, [Step(name="nothing", locate=lambda _: ())]).last


def test_progress_is_told_evenly_over_steps_and_regions() -> None:
    """By hand: two steps that segment, one of them in two regions, each told at its middle."""

    def half(progress: Progress, region: Region) -> Volume:
        progress.on_progress(0.5)
        return threshold(progress, region)

    def located(count: int) -> list[Region]:
        return [Region(grid=SCAN, name=str(k)) for k in range(count)]

    steps = [
        Step(name="one", locate=lambda _: located(1), segment=half),
        Step(name="only located", locate=lambda _: located(3)),
        Step(name="two", locate=lambda _: located(2), segment=half),
        Step(name="nowhere", locate=lambda _: located(0), segment=half),
    ]
    told: list[float] = []
    progress = advance(bright_box(), steps, told.append)
    ends = [1 / 3, 2 / 3, 1.0]
    assert told == pytest.approx([1 / 6, ends[0], (1 + 0.25) / 3, (1 + 0.75) / 3, *ends[1:]])
    progress.on_progress(7.0)
    assert len(told) == 6, "what is kept tells nobody"
