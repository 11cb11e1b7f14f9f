"""The rules of the cascade by hand, and phantoms of every anatomy: never a failure, always said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anatomies import ANATOMIES, NEWBORN, newborn, rendered
from anatomies import GRID as PHANTOM
from cascades import NETS, TARGET, config_with
from cohorts import PLAN
from kidseg.cohort.subject import Material, Subject, prepare
from kidseg.config import FineConfig, ThresholdConfig, TumourConfig
from kidseg.device import choose_device
from kidseg.errors import UsageError
from kidseg.geometry import Grid, Volume, resample
from kidseg.intensity import Scaling
from kidseg.labels import KIDNEY_TUMOUR, Target
from kidseg.methods.cascade.chain import Chain, _rows
from kidseg.methods.cascade.components import (
    components_of,
    kidneys_among,
    threshold_ml,
)
from kidseg.methods.cascade.crops import (
    centred,
    coarse_grid,
    framed_box,
    inside,
    kidney_crop,
    sagittal_crop,
    union_grid,
    voxel_box,
)
from kidseg.methods.cascade.decisions import Rules, Targets
from kidseg.methods.cascade.kept_lesions import boxes_around, combined, touching
from kidseg.methods.cascade.system_c import Cascade
from kidseg.pipeline import (
    Predicted,
    Progress,
    Region,
    Segment,
    advance,
    opinions_of,
    restore,
    rows_of,
)
from kidseg.segment import Predictor

CPU = choose_device("cpu", "fp32")
SCAN = Grid.from_spacing((20, 40, 50), (3, 1, 1), centre_mm=(10, 20, 30))
Box = tuple[slice, slice, slice]


def painted(grid: Grid, *boxes: Box) -> Tensor:
    mask = torch.zeros(grid.shape, dtype=torch.bool)
    for box in boxes:
        mask[box] = True
    return mask


def box(z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]) -> Box:
    return slice(*z), slice(*y), slice(*x)


# Components and thresholds


def test_components_are_those_that_share_a_corner_largest_first() -> None:
    mask = painted(SCAN, box((2, 4), (5, 7), (5, 9)), box((4, 5), (7, 8), (9, 10)))
    mask[10, 30, 40] = True
    first, second = components_of(mask, SCAN)
    assert first.volume_ml == pytest.approx(17 * 0.003)
    assert second.volume_ml == pytest.approx(0.003)
    assert (first.low, first.high) == ((2, 5, 5), (4, 7, 9))
    assert second.low == second.high == (10, 30, 40)
    assert second.centre_mm == pytest.approx(SCAN.mm((10.0, 30.0, 40.0)).tolist())
    middle = (np.array([2.5, 5.5, 6.5]) * 16 + np.array([4, 7, 9])) / 17
    assert first.centre_mm == pytest.approx(SCAN.mm(middle).tolist())
    assert components_of(torch.zeros(SCAN.shape, dtype=torch.bool), SCAN) == ()


def test_kidneys_are_the_large_components_or_else_the_largest() -> None:
    mask = painted(SCAN, *(box((2, 3), (1, 2), (k, k + n)) for k, n in ((1, 9), (20, 5), (40, 1))))
    components = components_of(mask, SCAN)
    assert len(kidneys_among(components, 5 * 0.003 - 1e-9)) == 2
    assert len(kidneys_among(components, 0.0)) == 3
    (only,) = kidneys_among(components, 1.0)
    assert only is components[0]
    assert kidneys_among((), 1.0) == ()


def test_the_papers_threshold_is_18_ml_and_ours_grows_with_the_body() -> None:
    paper = ThresholdConfig(min_voxels=10000)
    spacing = (3.0, 0.7816, 0.7816)
    for radius in (None, 50.0, 200.0):
        assert threshold_ml(paper, spacing, radius) == pytest.approx(18.327, abs=1e-3)
    ours = ThresholdConfig(min_volume_ml=16.0, body_radius_mm=150.0)
    for radius, wanted in ((75.0, 2.0), (150.0, 16.0), (300.0, 16.0), (None, 16.0)):
        assert threshold_ml(ours, spacing, radius) == pytest.approx(wanted)
    assert threshold_ml(ours, spacing, float("nan")) == 16.0


# Grids


def test_slices_are_padded_to_squares_and_resized() -> None:
    """40 x 50 pixels of 1 mm: 50 x 50, then 10 x 10 of 5 mm around the same centre."""
    grid = coarse_grid(SCAN, 10)
    assert grid.shape == (20, 10, 10)
    assert grid.spacing_mm.tolist() == pytest.approx([3, 5, 5])
    assert grid.centre_mm.tolist() == pytest.approx(SCAN.centre_mm.tolist())
    odd = coarse_grid(Grid.from_spacing((2, 3, 6), (1, 1, 1)), 6)
    assert odd.index(Grid.from_spacing((2, 3, 6), (1, 1, 1)).mm((0.0, 0.0, 0.0))).tolist() == (
        pytest.approx([0, 1, 0])
    )


def test_sagittal_slices_lie_around_the_centre() -> None:
    """All columns; 4 slices and 6 rows around slice 9, row 21, as voxels of the scan."""
    grid = sagittal_crop(SCAN, SCAN.mm((8.5, 20.5, 3.0)).tolist(), (4, 6))
    assert grid.shape == (50, 4, 6)
    assert SCAN.index(grid.mm((0.0, 0.0, 0.0))).tolist() == pytest.approx([7, 18, 0])
    assert SCAN.index(grid.mm((49.0, 3.0, 5.0))).tolist() == pytest.approx([10, 23, 49])
    beyond = sagittal_crop(SCAN, SCAN.mm((0.0, 0.0, 0.0)).tolist(), (4, 6))
    assert SCAN.index(beyond.mm((0.0, 0.0, 0.0))).tolist() == pytest.approx([-2, -2, 0])


def kidney_in(*boxes: Box) -> Any:
    (component,) = components_of(painted(SCAN, *boxes), SCAN)
    return component


def test_a_crop_lies_around_the_centroid_of_a_kidney() -> None:
    """16 pixels around rows 10..13 and columns 20..25; slices 5..8, and one beyond."""
    kidney = kidney_in(box((5, 9), (10, 14), (20, 26)))
    crop = kidney_crop(SCAN, kidney, FineConfig(size=16, margin_mm=3.0), 4)
    start = SCAN.index(crop.mm((0.0, 0.0, 0.0))).tolist()
    assert start == pytest.approx([4, 4, 15]) and crop.shape == (6, 16, 16)
    inside = kidney_crop(SCAN, kidney, FineConfig(size=16, margin_mm=300.0, grow=False), 4)
    assert inside.shape == (20, 16, 16), "not beyond the scan along its slices"


@pytest.mark.parametrize("grow", [True, False])
def test_a_large_kidney_makes_its_crop_grow(grow: bool) -> None:
    """30 columns; a margin of 2 on both sides, in multiples of 4. The rows stay."""
    kidney = kidney_in(box((5, 9), (10, 14), (10, 40)))
    crop = kidney_crop(SCAN, kidney, FineConfig(size=16, margin_mm=2.0, grow=grow), 4)
    start = SCAN.index(crop.mm((0.0, 0.0, 0.0))).tolist()
    if grow:
        assert crop.shape == (6, 16, 36) and start == pytest.approx([4, 4, 7])
    else:
        assert crop.shape == (6, 16, 16) and start == pytest.approx([4, 4, 17])


def test_the_box_has_a_frame_in_pixels_and_one_in_millimetres_inside_the_scan() -> None:
    kidney = kidney_in(box((5, 9), (10, 14), (20, 26)))
    config = TumourConfig(frame_px=7, frame_mm=9.0)
    grid = framed_box(SCAN, [kidney], config)
    assert SCAN.index(grid.mm((0.0, 0.0, 0.0))).tolist() == pytest.approx([2, 3, 13])
    assert grid.shape == (10, 18, 20)
    whole = framed_box(SCAN, [kidney], TumourConfig(frame_px=100, frame_mm=100.0))
    assert whole.same_as(SCAN)
    both = components_of(
        painted(SCAN, box((5, 6), (5, 6), (5, 6)), box((9, 10), (9, 10), (30, 31))), SCAN
    )
    two = framed_box(SCAN, both, TumourConfig(frame_px=0, frame_mm=0.0))
    assert two.shape == (5, 5, 26)


def test_regions_together_are_a_part_of_the_scan() -> None:
    one, other = SCAN.crop((2, 3, 4), (5, 6, 7)), SCAN.crop((4, 1, 20), (10, 2, 8))
    grid = union_grid(SCAN, [one, other])
    assert grid.same_as(SCAN.crop((2, 1, 4), (12, 8, 24)))
    assert union_grid(SCAN, [one]).same_as(one)


def test_voxels_of_other_grids_are_found_in_the_scan() -> None:
    """A voxel of 2 x 2 pixels touches both; sagittal slices are columns."""
    coarse = SCAN.resized((20, 20, 25))
    low, high = voxel_box(SCAN, coarse, torch.tensor([3, 4, 5]), torch.tensor([3, 4, 6]))
    assert (low, high) == ([3, 8, 10], [3, 9, 13])
    sagittal = SCAN.permuted((2, 0, 1))
    assert voxel_box(SCAN, sagittal, torch.tensor([7, 3, 9]), torch.tensor([8, 4, 9])) == (
        [3, 9, 7],
        [4, 9, 8],
    )
    assert centred(SCAN, 10).shape == (20, 10, 10)
    assert SCAN.index(centred(SCAN, 60).mm((0.0, 0.0, 0.0))).tolist() == pytest.approx([0, -10, -5])


# Lesions


def test_lesions_that_touch_no_kidney_are_dropped() -> None:
    """One inside, one at a corner, one a voxel away, one far away."""
    kidney = painted(SCAN, box((5, 8), (10, 15), (10, 15)))
    found = painted(SCAN, box((6, 7), (11, 13), (11, 12)))
    found[8, 15, 15] = True
    found[6, 12, 16:18] = True
    found[15, 30, 30] = True
    lesions = touching(found, kidney, SCAN)
    assert lesions.kept.nonzero().tolist() == [[6, 11, 11], [6, 12, 11], [8, 15, 15]]
    assert lesions.kept_ml == pytest.approx((0.006, 0.003))
    assert lesions.dropped_ml == pytest.approx((0.006, 0.003))
    none = touching(found, torch.zeros_like(found), SCAN)
    assert not none.kept.any() and len(none.dropped_ml) == 4
    assert touching(torch.zeros_like(found), kidney, SCAN).kept_ml == ()


def test_boxes_lie_around_each_lesion() -> None:
    mask = painted(SCAN, box((1, 2), (1, 2), (1, 2)), box((2, 3), (2, 3), (2, 3)))
    mask[10, 10, 10] = True
    boxes = boxes_around(mask)
    assert int(boxes.sum()) == 8 + 1 and boxes[1:3, 1:3, 1:3].all() and boxes[10, 10, 10]


@pytest.mark.parametrize(
    ("kidney", "tumour", "label"),
    [
        (0.0, 0.0, 0),
        (0.9, 0.1, 1),
        (0.9, 0.49, 1),
        (0.9, 0.51, 2),
        (0.5001, 0.49, 1),
        (0.1, 0.51, 2),
        (0.1, 0.49, 0),
        (1.0, 1.0, 2),
        (0.0, 1.0, 2),
    ],
)
def test_a_tumour_is_what_is_more_probable_than_not(
    kidney: float, tumour: float, label: int
) -> None:
    found = combined(torch.tensor([[[kidney]]]), torch.tensor([[[tumour]]]))
    assert int(found.argmax(0)) == label and float(found.sum()) == pytest.approx(1.0)
    assert found.shape == (3, 1, 1, 1) and bool((found >= 0).all())


# Steps


def subject_on(grid: Grid = SCAN, labels: Tensor | None = None) -> Subject:
    image = Volume(torch.zeros((1, *grid.shape), dtype=torch.int16), grid)
    known = None if labels is None else Volume(labels[None], grid)
    return Subject(id="a", image=image, scalings=(Scaling(),), labels=known)


def says(mask: Tensor) -> Segment:
    """Finds a mask of the scan."""

    def segment(progress: Progress, region: Region) -> Volume:
        labels = Volume(mask[None].to(torch.uint8), SCAN)
        found = resample(labels, region.grid, mode="nearest").data[0].float()
        return Volume(torch.stack([1 - found, found]), region.grid)

    return segment


def chain_of(found: Mapping[str, Tensor], *settings: str) -> Chain:
    """Networks that find these masks; nothing if there is none."""
    config = config_with(
        "spacing_mm=[3,1,1]",
        "coarse.size=50",
        "correct.size=[20,40]",
        "kidney.min_volume_ml=0.03",
        "fine.size=16",
        "fine.margin_mm=3",
        "refine.almost_nothing.min_volume_ml=0.01",
        *settings,
    )
    rules = Rules(config=config, targets=Targets.of(TARGET), subject=subject_on())
    empty = torch.zeros(SCAN.shape, dtype=torch.bool)
    return Chain(rules=rules, segment={name: says(found.get(name, empty)) for name in NETS})


RIGHT, LEFT = box((5, 9), (10, 14), (5, 11)), box((5, 9), (10, 14), (35, 41))
"""96 voxels, 0.288 ml each, on either side of column 24.5."""


def run(chain: Chain) -> Progress:
    return advance(chain.rules.subject.image, chain.steps)


def labels_of(progress: Progress) -> Tensor:
    target = progress.found[0].target
    assert target is not None
    return restore(progress.found, SCAN, target).data[0]


@pytest.mark.parametrize(
    ("boxes", "kidneys"),
    [
        ([], 0),
        ([RIGHT], 1),
        ([RIGHT, LEFT], 2),
        ([RIGHT, LEFT, box((15, 19), (30, 34), (20, 26))], 3),
        ([box((5, 9), (10, 14), (5, 41))], 1),
    ],
)
def test_two_kidneys_are_normal_and_anything_else_is_not(boxes: list[Box], kidneys: int) -> None:
    """Specks below the threshold do not count."""
    specks = [box((1, 2), (30, 31), (k, k + 3)) for k in (5, 20)]
    chain = chain_of({"coarse": painted(SCAN, *boxes, *specks)})
    progress = run(chain)
    note = progress.notes["coarse"]
    assert note.facts["kidneys"] == kidneys and note.facts["below_threshold"] == 2
    assert note.facts["normal"] == (kidneys == 2)
    assert len(progress.steps["correct"]) == (kidneys != 2)
    assert progress.notes["correct"].facts["ran"] == (kidneys != 2)
    assert f"{kidneys} kidney" in note.text and ("abnormal" in note.text) == (kidneys != 2)


def test_a_correction_replaces_what_was_found_before_it() -> None:
    both = painted(SCAN, RIGHT, LEFT)
    found = {"coarse": painted(SCAN, RIGHT), "correct": both, "fine": both}
    progress = run(chain_of(found))
    assert [region.name for region in progress.steps["fine"]] == ["right", "left"]
    assert progress.notes["correct"].facts["normal"]
    assert torch.equal(labels_of(progress) == 1, both)
    (region,) = progress.steps["correct"]
    assert region.grid.shape == (50, 20, 40)


def test_a_correction_that_finds_nothing_does_not_count() -> None:
    one = painted(SCAN, RIGHT)
    progress = run(chain_of({"coarse": one, "fine": one}))
    assert progress.notes["correct"].facts["found_nothing"]
    assert "found nothing" in progress.notes["correct"].text
    assert torch.equal(labels_of(progress) == 1, one)


@pytest.mark.parametrize(("corrected", "further"), [(0, True), (1, False), (2, False), (3, True)])
def test_a_correction_further_from_two_counts_and_is_said(corrected: int, further: bool) -> None:
    """From one kidney to so many; 0: to a part of it below the threshold."""
    part, third = box((5, 6), (10, 11), (5, 8)), box((11, 15), (30, 34), (20, 26))
    known = [[part], [RIGHT], [RIGHT, LEFT], [RIGHT, LEFT, third, box((5, 9), (25, 29), (20, 26))]]
    mask = painted(SCAN, *known[corrected])
    progress = run(chain_of({"coarse": painted(SCAN, RIGHT), "correct": mask, "fine": mask}))
    note = progress.notes["correct"]
    assert note.facts["kidneys"] == int(known[corrected] != [part]) * len(known[corrected])
    assert note.facts["further"] == further and ("further from 2" in note.text) == further
    codes = [each.code for each in note.findings]
    assert ("correction-further" in codes) == further
    assert torch.equal(labels_of(progress) == 1, mask), "as in the paper, it counts all the same"


def test_a_kidney_of_which_the_fine_network_finds_nothing_is_said() -> None:
    progress = run(chain_of({"coarse": painted(SCAN, RIGHT, LEFT), "fine": painted(SCAN, RIGHT)}))
    note = progress.notes["fine"]
    assert note.facts["empty"] == ["left"] and note.facts["regions"] == ["right", "left"]
    assert note.text == "right, left: 0.3 ml in all; nothing found in left"
    (finding,) = note.findings
    assert finding.code == "kidney-not-confirmed" and "(left, 0.3 ml)" in finding.cause
    assert [region.name for region in progress.steps["tumour"]] == ["right"]


def test_corrections_go_on_until_the_case_is_normal() -> None:
    """At most as many as are configured; with none, the coarse result stands."""
    one, both = painted(SCAN, RIGHT), painted(SCAN, RIGHT, LEFT)
    found = {"coarse": one, "correct": one, "fine": both}
    progress = run(chain_of(found, "correct.iterations=3"))
    ran = [len(progress.steps[name]) for name in ("correct", "correct 2", "correct 3")]
    assert ran == [1, 1, 1]
    progress = run(chain_of({**found, "correct": both}, "correct.iterations=3"))
    assert [len(progress.steps[f"correct{n}"]) for n in ("", " 2", " 3")] == [1, 0, 0]
    progress = run(chain_of(found, "correct.iterations=0"))
    assert list(progress.steps) == ["coarse", "fine", "tumour", "refine"]
    assert len(progress.steps["fine"]) == 1


def test_the_correction_looks_around_the_kidneys_or_the_middle_of_the_body() -> None:
    """Large components alone count, by their volumes; without any, the middle of the scan."""
    chain = chain_of({"coarse": painted(SCAN, RIGHT, box((18, 19), (38, 39), (0, 3)))})
    progress = run(chain)
    assert SCAN.index(chain.rules.centre_mm(progress)).tolist() == pytest.approx([6.5, 11.5, 7.5])
    halved = box((5, 9), (10, 14), (35, 38))
    uneven = chain_of({"coarse": painted(SCAN, RIGHT, halved)})
    centre = SCAN.index(uneven.rules.centre_mm(run(uneven))).tolist()
    assert centre == pytest.approx([6.5, 11.5, (2 * 7.5 + 36) / 3])
    nothing = chain_of({})
    centre = nothing.rules.centre_mm(run(nothing))
    assert centre == pytest.approx(SCAN.centre_mm.tolist())


def test_kidneys_are_named_by_their_side_and_never_alike() -> None:
    """Two on the left, as in crossed ectopia: regions of one name would be averaged."""
    boxes = [RIGHT, LEFT, box((15, 19), (30, 34), (35, 41))]
    mask = painted(SCAN, *boxes)
    progress = run(chain_of({"coarse": mask, "correct": mask, "fine": mask}))
    names = [region.name for region in progress.steps["fine"]]
    assert sorted(names) == ["left", "left 2", "right"]
    assert torch.equal(labels_of(progress) == 1, mask)
    facts = progress.notes["fine"].facts
    assert facts["regions"] == names and facts["volume_ml"] == pytest.approx(3 * 0.288)


def test_what_lies_on_both_sides_is_named_so() -> None:
    """A horseshoe kidney, by the share of its voxels; a tongue across the midline is none."""
    for kidney, name in (
        (box((5, 9), (10, 14), (5, 41)), "both sides"),
        (box((5, 9), (10, 14), (5, 27)), "right"),
        (box((5, 9), (10, 14), (23, 45)), "left"),
    ):
        mask = painted(SCAN, kidney)
        progress = run(chain_of({"coarse": mask, "correct": mask, "fine": mask}))
        assert [region.name for region in progress.steps["fine"]] == [name]
        assert progress.notes["fine"].text == f"{name}: {int(mask.sum()) * 0.003:.1f} ml in all"


def test_a_kidney_that_two_crops_show_counts_once() -> None:
    """As in a small child, whose abdomen is no larger than a crop."""
    both = painted(SCAN, RIGHT, LEFT)
    progress = run(chain_of({"coarse": both, "fine": both}, "fine.size=96"))
    for region in progress.steps["fine"]:
        assert region.found is not None and int((region.found.data[1] > 0.5).sum()) == 192
    note = progress.notes["fine"]
    assert note.facts["volume_ml"] == pytest.approx(0.576) and "right, left: 0.6 ml" in note.text


def test_what_is_found_beyond_the_scan_is_not_there() -> None:
    """Padding that is taken for kidney is no part of its volume, its centre or its side."""
    corner = painted(SCAN, box((5, 9), (0, 4), (0, 6)))

    def with_padding(progress: Progress, region: Region) -> Volume:
        found = says(corner)(progress, region).data[1]
        beyond = torch.ones_like(found)
        beyond[inside(SCAN, region.grid)] = 0
        found = torch.maximum(found, beyond)
        return Volume(torch.stack([1 - found, found]), region.grid)

    known = chain_of({})
    nets = dict.fromkeys(("coarse", "correct", "fine"), with_padding)
    progress = run(replace(known, segment={**known.segment, **nets}))
    (kidney,) = known.rules.kidneys(progress)
    assert kidney.volume_ml == pytest.approx(0.288)
    assert kidney.centre_mm == pytest.approx(SCAN.mm((6.5, 1.5, 2.5)).tolist())
    assert progress.notes["fine"].text == "right: 0.3 ml in all"
    assert torch.equal(labels_of(progress) == 1, corner)


def test_parts_below_the_threshold_are_left_out_and_said() -> None:
    """4 voxels of 0.003 ml beside two kidneys; if nothing is large, all but the largest part."""
    speck, smaller = box((15, 16), (30, 31), (5, 9)), box((15, 16), (30, 31), (40, 42))
    both = painted(SCAN, RIGHT, LEFT)
    progress = run(chain_of({"coarse": painted(SCAN, RIGHT, LEFT, speck), "fine": both}))
    note = progress.notes["coarse"]
    assert note.facts["left_out_ml"] == pytest.approx(0.012)
    assert note.text.endswith("normal; 1 smaller part left out, 0.0 ml in all")
    assert not labels_of(progress)[15].any()
    note = run(chain_of({"coarse": painted(SCAN, speck, smaller)})).notes["coarse"]
    assert note.facts["left_out_ml"] == pytest.approx(0.006) and note.facts["kidneys"] == 0
    assert "left out" not in run(chain_of({"coarse": both})).notes["coarse"].text


def test_a_kidney_beyond_the_slices_of_the_correction_is_said() -> None:
    """It looks at 8 of 20 slices around the centroid of three, of which it sees one."""
    ends = [box((0, 2), (10, 14), (5, 11)), box((18, 20), (10, 14), (35, 41))]
    middle = box((9, 11), (10, 14), (22, 28))
    mask = painted(SCAN, *ends, middle)
    found = {"coarse": mask, "correct": mask, "fine": mask}
    shallow = ("correct.size=[8,40]", "unet.size=8", "unet.bottleneck=4")
    progress = run(chain_of(found, *shallow))
    note = progress.notes["correct"]
    assert note.facts["unseen"] == 2 and "did not see 0.3 ml of 2 kidneys" in note.text
    (finding,) = [each for each in note.findings if each.code == "kidney-beyond-correction"]
    assert finding.path == "a" and "that the step before found" in finding.cause
    assert [region.name for region in progress.steps["fine"]] == ["both sides"]
    wide = run(chain_of(found)).notes["correct"]
    assert wide.facts["unseen"] == 0 and not wide.findings
    long = painted(SCAN, box((4, 14), (10, 14), (5, 11)))
    part = run(chain_of({"coarse": long, "correct": long}, *shallow)).notes["correct"].facts
    assert part["unseen"] == 1 and part["unseen_ml"] == pytest.approx(0.144), "2 of its 10 slices"


def test_a_kidney_below_the_threshold_is_taken_if_there_is_no_other_and_it_is_said() -> None:
    speck = painted(SCAN, box((5, 6), (10, 11), (5, 8)))
    progress = run(chain_of({"coarse": speck, "fine": speck}))
    assert torch.equal(labels_of(progress) == 1, speck)
    (finding,) = progress.notes["coarse"].findings
    assert finding.code == "small-kidney" and "0.0 ml" in finding.cause and finding.path == "a"


def test_without_any_kidney_the_result_is_empty_and_says_so() -> None:
    progress = run(chain_of({"tumour": painted(SCAN, RIGHT), "refine": painted(SCAN, RIGHT)}))
    assert not labels_of(progress).any()
    texts = {name: note.text for name, note in progress.notes.items()}
    assert texts["fine"] == "no kidney to look at"
    assert texts["tumour"] == texts["refine"] == "not run: no kidney"
    coarse = chain_of({"coarse": painted(SCAN, RIGHT)})
    assert not labels_of(run(coarse)).any(), "the fine network has the last word"


def test_a_kidney_that_its_crop_cuts_is_said() -> None:
    wide = painted(SCAN, box((5, 9), (10, 14), (10, 40)), box((15, 19), (10, 14), (10, 40)))
    found = {"coarse": wide, "fine": wide}
    cut = run(chain_of(found, "fine.grow=false"))
    assert cut.notes["fine"].findings[0].code == "kidney-cut-by-crop"
    assert not run(chain_of(found)).notes["fine"].findings


def test_components_and_lesions_of_a_case_are_computed_once() -> None:
    """By region, so that a correction and a further progress have their own."""
    chain = chain_of({"coarse": painted(SCAN, RIGHT), "correct": painted(SCAN, RIGHT, LEFT)})
    rules, progress = chain.rules, run(chain)
    (coarse,), (correct,) = progress.steps["coarse"], progress.steps["correct"]
    assert rules.components(coarse) is rules.components(coarse)
    assert (len(rules.components(coarse)), len(rules.components(correct))) == (1, 2)
    both = painted(SCAN, RIGHT, LEFT)
    chain = chain_of({"coarse": both, "fine": both, "tumour": painted(SCAN, LESION)})
    found, again = run(chain), run(chain)
    assert chain.rules.lesions(found) is chain.rules.lesions(found)
    assert chain.rules.lesions(found) is not chain.rules.lesions(again)


LESION = box((6, 8), (11, 13), (37, 43))
"""24 voxels, 0.072 ml, at and beyond the side of the left kidney."""


def with_lesions(**found: Tensor) -> dict[str, Tensor]:
    both = painted(SCAN, RIGHT, LEFT)
    return {"coarse": both, "fine": both, **found}


def test_tumours_are_refined_inside_those_that_were_detected() -> None:
    """What the 2D network finds elsewhere does not count; the kidney keeps the rest."""
    detected = painted(SCAN, LESION)
    wider = painted(SCAN, box((6, 8), (10, 12), (37, 43)), box((6, 8), (11, 13), (6, 8)))
    progress = run(chain_of(with_lesions(tumour=detected, refine=wider)))
    labels = labels_of(progress)
    assert torch.equal(labels == 2, detected & wider)
    assert torch.equal(labels == 1, painted(SCAN, RIGHT, LEFT) & ~(detected & wider))
    assert progress.notes["refine"].facts["mode"] == "refined"
    assert progress.notes["refine"].facts["regions"] == ["left"]
    assert progress.notes["tumour"].facts["kept_ml"] == pytest.approx([0.072])


def test_or_inside_their_bounding_box() -> None:
    """A diagonal lesion: its box has further voxels."""
    detected = torch.zeros(SCAN.shape, dtype=torch.bool)
    detected[6, 11, 38], detected[7, 12, 39], detected[6, 11, 39] = True, True, True
    wider = painted(SCAN, LEFT)
    settings = ("refine.almost_nothing.min_volume_ml=0.001",)
    lesion = run(chain_of(with_lesions(tumour=detected, refine=wider), *settings))
    assert torch.equal(labels_of(lesion) == 2, detected)
    boxed = run(
        chain_of(with_lesions(tumour=detected, refine=wider), *settings, "refine.inside=box")
    )
    assert torch.equal(labels_of(boxed) == 2, painted(SCAN, box((6, 8), (11, 13), (38, 40))))


def test_where_almost_nothing_was_detected_all_regions_are_searched() -> None:
    """Three voxels, 0.009 ml; what the search finds away from the kidneys is dropped."""
    speck = painted(SCAN, box((6, 7), (11, 12), (37, 40)))
    inside = painted(SCAN, box((6, 8), (11, 13), (6, 9)))
    away = painted(SCAN, box((6, 8), (16, 17), (6, 9)))
    found = with_lesions(tumour=speck, refine=inside | away)
    progress = run(chain_of(found))
    assert torch.equal(labels_of(progress) == 2, inside)
    note = progress.notes["refine"]
    assert note.facts["mode"] == "searched" and note.facts["regions"] == ["right", "left"]
    assert "searched 2 regions" in note.text and "0.01 ml" in note.text
    assert note.facts["dropped_ml"] == pytest.approx([0.018]) and "1 lesion of 0.0 ml" in note.text
    (finding,) = note.findings
    assert finding.code == "lesions-dropped" and "the 2D network found" in finding.cause
    more = run(chain_of(found, "refine.almost_nothing.min_volume_ml=0.008"))
    assert more.notes["refine"].facts["mode"] == "refined" and not (labels_of(more) == 2).any()


def test_lesions_away_from_the_kidneys_are_dropped_and_said() -> None:
    """Before they count as detected: alone, they lead to a search."""
    apart = painted(SCAN, box((6, 8), (15, 17), (37, 43)))
    progress = run(chain_of(with_lesions(tumour=apart, refine=apart)))
    assert not (labels_of(progress) == 2).any()
    note = progress.notes["tumour"]
    assert note.facts["dropped_ml"] == pytest.approx([0.072]) and note.facts["kept"] == 0
    (finding,) = note.findings
    assert finding.code == "lesions-dropped" and "1 lesion" in finding.cause
    assert progress.notes["refine"].facts["mode"] == "searched"


def test_a_lesion_in_two_regions_counts_once_and_is_kept_as_a_whole() -> None:
    """A bar from the right kidney into the frame of the left one, which overlaps its own.

    There are 16 columns: 5 in the right kidney, 11 beyond it. The frame of the left kidney, 20
    pixels wide, shows only columns that do not touch a kidney in it.
    """
    bar = painted(SCAN, box((6, 8), (11, 13), (6, 22)))
    settings = ("tumour.frame_px=20",)
    progress = run(chain_of(with_lesions(tumour=bar, refine=bar), *settings))
    right, left = progress.steps["tumour"]
    assert right.grid.shape[2] == 5 + 6 + 20 and left.grid.shape[2] == 20 + 6 + 9
    note = progress.notes["tumour"]
    assert note.facts["kept_ml"] == pytest.approx([16 * 4 * 0.003]) and not note.findings
    assert progress.notes["refine"].facts["regions"] == ["right", "left"]
    assert torch.equal(labels_of(progress) == 2, bar)
    assert progress.notes["refine"].facts["dropped"] == 0, "the right region keeps what touches it"
    half = "refine.almost_nothing.min_volume_ml=0.25"
    searched = run(chain_of(with_lesions(tumour=bar, refine=bar), *settings, half))
    assert searched.notes["refine"].facts["mode"] == "searched", "0.19 ml, not twice as much"


def test_a_tumour_may_reach_beyond_the_kidney_into_its_frame() -> None:
    detected = painted(SCAN, LESION)
    progress = run(chain_of(with_lesions(tumour=detected, refine=detected)))
    assert torch.equal(labels_of(progress) == 2, detected)
    (right, left) = progress.steps["refine"]
    assert left.grid.shape == (4 + 2 * 3, 4 + 2 * 3, 6 + 2 * 3) and right.name == "right"


def test_targets_are_kidney_and_tumour() -> None:
    targets = Targets.of(Target(channels=((1, 3), (2,)), writes=(1, 2)))
    assert targets.renal == Target(channels=((1, 3, 2),), writes=(1,))
    assert targets.tumour == Target(channels=((2,),))
    for other in (Target(channels=((1,),)), Target(channels=((1, 2), (2,)), exclusive=False)):
        with pytest.raises(ValueError, match="two exclusive channels"):
            Targets.of(other)


# Settings


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("cohort.target=labels", 'must be "two"'),
        ("coarse.size=63", "coarse.size must be a multiple of 2"),
        ("correct.size=[8,47]", "correct.size must be a multiple of 2"),
        ("fine.size=31", "fine.size must be a multiple of 2"),
        ("refine.size=31", "refine.size must be a multiple of 2"),
        ("tumour.patch=[3,16,16]", "tumour.patch must be multiples of 2"),
        ("spacing_mm=[3,0,1]", "spacing_mm must be positive"),
        ("unet.dimensions=3", "unet.dimensions must be 2"),
        ("tumour.unet.dimensions=2", "tumour.unet.dimensions 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config_with(setting)


# Phantoms of every anatomy


def subject_of(drawn: tuple[Tensor, Tensor], grid: Grid, name: str) -> Subject:
    hu, labels = drawn
    return prepare(
        Volume(hu[None], grid),
        Material(),
        PLAN.channels,
        name=name,
        labels=Volume(labels[None], grid),
    )


def phantom(kind: str) -> Subject:
    return subject_of(rendered(kind), PHANTOM, kind)


def phantom_config(*more: str) -> Any:
    return config_with(
        "spacing_mm=[12,8,8]", "coarse.size=40", "correct.size=[16,40]", "fine.size=16", *more
    )


def method_of(config: Any, seed: int = 0) -> Cascade:
    method = Cascade.build(config, TARGET, PLAN, seed=seed, device=CPU)
    for net in method.parts.values():
        net.eval()
    return method


class Sloped(nn.Module):
    """Surer of the foreground the further to the last column."""

    multiple = (1, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        along = torch.arange(image.shape[-1]).float() - 3.0
        along = along.expand(len(image), 1, *image.shape[2:])
        return [torch.cat([-along, along], dim=1)]


@pytest.mark.parametrize("flip", [False, True])
def test_every_network_but_the_sagittal_one_sees_the_mirror_image_if_told(flip: bool) -> None:
    subject = phantom("one")
    config = replace(phantom_config(), test_time_flip=flip)
    method = Cascade(config, TARGET, PLAN, {name: Sloped().eval() for name in NETS}, CPU)
    chain = method.chain(subject)
    region = Region(grid=PHANTOM.crop((4, 10, 10), (4, 16, 16)))
    fine = replace(region, found=chain.segment["fine"](Progress(image=subject.image), region))
    progress = Progress(image=subject.image, steps={"fine": (fine,)})
    for name in NETS:
        data = chain.segment[name](progress, region).data
        same = torch.allclose(data, data.flip(-1), atol=1e-6)
        assert same == (flip and name != "correct"), name


@pytest.mark.ci
@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_perfect_networks_find_every_anatomy(anatomy: str) -> None:
    """Exactly, on the scan's own voxels; what is not two leads to a correction, and is said."""
    subject = phantom(anatomy)
    chain = method_of(phantom_config()).chain(subject, by_truth=True)
    progress = advance(subject.image, chain.steps)
    target = progress.found[0].target
    assert target is not None and subject.labels is not None
    labels = restore(progress.found, subject.image.grid, target)
    assert torch.equal(labels.data, subject.labels.data)
    kidneys = {"two": 2, "bilateral": 2, "absent": 0}.get(anatomy, 1)
    note = progress.notes["coarse"].facts
    assert note["kidneys"] == kidneys and note["normal"] == (kidneys == 2)
    assert len(progress.steps["correct"]) == (kidneys != 2)
    assert len(progress.steps["fine"]) == kidneys and not progress.notes["fine"].findings
    tumours = anatomy not in ("two", "horseshoe", "absent")
    mode = "refined" if tumours else "searched" if kidneys else "none"
    assert progress.notes["refine"].facts["mode"] == mode


def test_a_newborns_two_small_kidneys_are_normal_by_our_threshold_not_by_the_papers() -> None:
    """In voxels of the paper; its 10000 of them are 18.3 ml in a body of any size."""
    subject = subject_of(newborn(), NEWBORN, "newborn")
    assert subject.labels is not None and subject.body is not None
    kidneys = components_of(subject.labels.data[0] > 0, NEWBORN)
    assert len(kidneys) == 2 and all(5 < each.volume_ml < 18.3 for each in kidneys)
    assert subject.body.radius_mm < 75
    steps, facts = {}, {}
    for name, settings in {"ours": (), "paper": ("kidney.min_voxels=10000",)}.items():
        config = config_with("spacing_mm=[3,0.7816,0.7816]", "correct.size=[32,128]", *settings)
        chain = method_of(config).chain(subject, by_truth=True)
        progress = advance(subject.image, [chain.coarse(), *chain.corrections()])
        steps[name], facts[name] = progress.steps, progress.notes["coarse"].facts
    assert facts["ours"]["normal"] and facts["ours"]["kidneys"] == 2
    assert not steps["ours"]["correct"]
    assert not facts["paper"]["normal"] and facts["paper"]["kidneys"] == 0
    assert facts["paper"]["below_threshold"] == 2 and len(steps["paper"]["correct"]) == 1


@pytest.mark.ci
@pytest.mark.parametrize("anatomy", ANATOMIES)
def test_networks_that_know_nothing_never_fail(anatomy: str) -> None:
    """Random weights of two seeds; the result tells what ran."""
    subject = phantom(anatomy)
    for seed in (0, 1):
        method = method_of(phantom_config("correct.iterations=2", "tumour.overlap=0"), seed)
        predictor = Predictor(method=method, schema=KIDNEY_TUMOUR, sha256="", path=Path("m"))
        result = predictor(subject.image, anatomy)
        assert result.labels.grid is subject.image.grid
        notes = result.facts["notes"]
        assert list(notes) == ["coarse", "correct", "correct 2", "fine", "tumour", "refine"]
        assert all(note["text"] for note in notes.values())
        codes = {finding.code for finding in result.findings}
        for note in result.progress.notes.values():
            assert {finding.code for finding in note.findings} <= codes
        assert set(result.facts["grids"]) == set(notes)
        for region in result.facts["grids"]["correct"]:
            assert region["slices"] == "across"


def test_opinions_of_the_fine_and_the_refining_network_are_joined() -> None:
    """By hand: tumour is a part of what the fine network found, and at most all of it."""
    grid = Grid.from_spacing((1, 1, 1), (1.0, 1.0, 1.0))
    data = torch.ones(2, 1, 1, 1)
    renal = Predicted(data, grid, ((10.0,), (8.0,)))
    tumour = Predicted(data, grid, ((4.0,), (9.0,)))
    assert _rows(renal, tumour) == ((6.0, 4.0), (0.0, 9.0))
    assert _rows(renal, None) == ((10.0, 0.0), (8.0, 0.0))
    assert _rows(Volume(data, grid), Volume(data, grid)) == (), "a single opinion"


def test_a_mirrored_case_has_two_opinions() -> None:
    subject = phantom("two")
    chain = method_of(replace(phantom_config(), test_time_flip=True)).chain(subject, by_truth=True)

    def mirrored(renal: Segment) -> Segment:
        def both(progress: Progress, region: Region) -> Volume:
            found = renal(progress, region)
            row = rows_of(found, chain.rules.targets.renal)[0]
            return Predicted(found.data, found.grid, (row, (2 * row[0],)))

        return both

    chain = replace(chain, segment={**chain.segment, "fine": mirrored(chain.segment["fine"])})
    progress = advance(subject.image, [*chain.steps])
    one, other = opinions_of(progress.found, chain.rules.targets.both)
    assert one[0] > 0 and other == pytest.approx((2 * one[0], 0.0))


def test_the_report_is_of_the_body_alone() -> None:
    subject = phantom("two")
    method = method_of(phantom_config())
    placement = method.report(subject, advance(subject.image, []))
    assert placement.figures["pixel_mm"] == pytest.approx(8.0) and not placement.overlap
    assert not method.facts
    assert Cascade.material(replace(phantom_config(), spacing_mm=(3.0, 0.7, 0.8)), PLAN) == (
        Material(pixel_mm=0.8)
    )
