"""Two scans of one patient: lesions matched, changes with propagated error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kidseg.geometry import Grid, Volume
from kidseg.labels import KIDNEY_TUMOUR, LabelSchema
from kidseg.measure.criteria import read_criteria
from kidseg.measure.matching import match_tumours
from kidseg.measure.measurement import Measurement, measure_parts
from kidseg.measure.midline import Midline
from kidseg.measure.parts import Labelled, Parts, find_parts
from kidseg.measure.person import Patient
from kidseg.measure.quantity import Quantity
from kidseg.measure.response import Change, changes, difference, relative_change
from solids import positions

SPACING = (4.0, 2.5, 2.5)
CRITERIA = read_criteria()
NUMBERED = LabelSchema.from_names({1: "kidney", 2: "tumour 1", 3: "tumour 2"})

Ball = tuple[Sequence[float], float]


class Scene:
    """Labels, and what is found and measured in them."""

    def __init__(self, labelled: Labelled) -> None:
        self.labelled, self.parts = labelled, find_parts(labelled, 0.1)

    @property
    def measured(self) -> tuple[Parts, Measurement]:
        known = {"person": Patient(), "margin_mm": 5.0, "entered": {}}
        return self.parts, measure_parts(self.labelled, self.parts, CRITERIA, **known)  # type: ignore[arg-type]


def scene(
    *balls: Ball,
    move_mm: Sequence[float] = (0, 0, 0),
    spacing_mm: Sequence[float] = SPACING,
    numbers: Sequence[int] = (),
    schema: LabelSchema = KIDNEY_TUMOUR,
) -> Scene:
    """Two kidneys and balls as tumours, all moved, on a grid of its own."""
    move = np.array(move_mm, dtype=float)
    shape = [int(size / step) for size, step in zip((140, 90, 180), spacing_mm, strict=True)]
    grid = Grid.from_spacing(shape, spacing_mm, move)
    place = positions(grid) - move
    data = np.zeros(grid.shape, np.uint8)
    for side in (-1, 1):
        data[(((place - (45 * side, 0, 0)) / (18, 18, 40)) ** 2).sum(-1) <= 1] = 1
    for k, (centre, radius) in enumerate(balls):
        data[((place - np.array(centre)) ** 2).sum(-1) <= radius**2] = numbers[k] if numbers else 2
    tracking = {n: schema.names[n] for n in schema.ids_of("tumour")} if numbers else {}
    labelled = Labelled(
        labels=Volume(torch.from_numpy(data)[None], grid),
        schema=schema,
        midline=Midline.at(float(move[0]), "body"),
        tracking=tracking,
    )
    return Scene(labelled)


def by_subject(found: Sequence[Change]) -> dict[str, Change]:
    return {change.subject: change for change in found}


def matches(before: Scene, after: Scene) -> list[object]:
    return [
        (tuple(p.id for p in m.before), tuple(p.id for p in m.after), m.matched)
        for m in match_tumours(before.parts, after.parts)
    ]


def ml(value: float, error: float) -> Quantity:
    return Quantity(name="volume", value=value, unit="mL", low=value - error, high=value + error)


@pytest.mark.requirement("response")
def test_errors_are_combined_as_independent() -> None:
    change = difference(ml(550, 40), ml(110, 30))
    assert (change.value, change.low, change.high) == (-440.0, -490.0, -390.0)
    relative = relative_change(ml(500, 0), ml(100, 20))
    assert relative is not None
    assert (relative.value, relative.low, relative.high) == pytest.approx((-80.0, -84.0, -76.0))
    assert relative_change(ml(0, 0), ml(100, 20)) is None


@given(
    before=st.floats(1, 2000), after=st.floats(0, 2000), errors=st.tuples(*[st.floats(0, 0.9)] * 2)
)
def test_a_change_lies_between_the_worst_cases(
    before: float, after: float, errors: tuple[float, float]
) -> None:
    old, new = ml(before, errors[0] * before), ml(after, errors[1] * after)
    assert old.low is not None and old.high is not None and new.low is not None
    assert new.high is not None
    for found, low, high in (
        (difference(old, new), new.low - old.high, new.high - old.low),
        (relative_change(old, new), -100.0, 100 * (new.high / old.low - 1)),
    ):
        assert found is not None and found.low is not None and found.high is not None
        slack = 1e-6 * (1 + abs(low) + abs(high))
        assert low - slack <= found.low <= found.value <= found.high <= high + slack


def test_a_lower_bound_has_an_open_change() -> None:
    cut = ml(300, 20).partly(True)
    assert difference(cut, ml(100, 10)).low is None
    assert difference(ml(100, 10), cut).high is None
    relative = relative_change(cut, ml(100, 10))
    assert relative is not None and relative.low == -100.0
    assert relative.high is not None and relative.high < 0


@pytest.mark.requirement("response")
def test_a_tumour_that_shrank_is_matched_by_overlap_on_another_grid() -> None:
    before = scene(((45, 15, 20), 20))
    after = scene(((45, 12, 22), 12), spacing_mm=(2.0, 3.0, 1.8))
    found = by_subject(changes(before.measured, after.measured))
    tumour = found["right tumour 1"]
    assert tumour.matched == "overlap" and tumour.before == ("right tumour 1",)
    assert tumour.relative is not None
    true = 100 * ((12 / 20) ** 3 - 1)
    assert tumour.relative.value == pytest.approx(true, abs=2)
    assert tumour.relative.low is not None and tumour.relative.high is not None
    assert tumour.relative.low < true < tumour.relative.high
    assert found["right tumours"].change.value == pytest.approx(tumour.change.value)
    assert set(found) == {"right tumours", "right kidney", "left kidney", "right tumour 1"}


def test_kidneys_align_a_patient_who_lies_elsewhere() -> None:
    balls = [((45, 0, 30), 10), ((45, 0, -30), 10)]
    before = scene(*balls)
    after = scene(((45, 0, 30), 6), ((45, 0, -30), 8), move_mm=(10, 25, 300))
    found = match_tumours(before.parts, after.parts)
    assert {match.matched for match in found} == {"overlap after aligning the kidneys"}
    for match in found:
        (old,), (new,) = match.before, match.after
        heights = [part.mask.points_mm()[:, 2].mean() for part in (old, new)]
        assert heights[1] - heights[0] == pytest.approx(300, abs=3)


def test_the_only_tumours_of_a_side_are_the_same_one() -> None:
    before, after = scene(((45, 0, 35), 8)), scene(((45, 0, -35), 6))
    assert matches(before, after) == [
        (("right tumour 1",), ("right tumour 1",), "only one on its side")
    ]


def test_new_lesions_and_lesions_that_are_gone() -> None:
    before, after = scene(((45, 0, 30), 8)), scene(((-45, 0, 30), 8))
    assert matches(before, after) == [
        (("right tumour 1",), (), "not found again"),
        ((), ("left tumour 1",), "new"),
    ]
    found = by_subject(changes(before.measured, after.measured))
    assert found["left tumour 1"].relative is None
    gone = found["right tumour 1 (before)"]
    assert gone.relative is not None and gone.relative.value == -100.0
    assert found["right tumours"].volume_after.value == 0.0


@pytest.mark.requirement("response")
def test_lesions_that_merge_or_come_apart_are_compared_together() -> None:
    one = scene(((45, 0, 0), 22))
    two = scene(((45, 0, 14), 6), ((45, 0, -14), 6))
    (split,) = match_tumours(one.parts, two.parts)
    assert (len(split.before), len(split.after)) == (1, 2)
    (merged,) = match_tumours(two.parts, one.parts)
    assert (len(merged.before), len(merged.after)) == (2, 1)
    change = by_subject(changes(one.measured, two.measured))["right tumour 1, right tumour 2"]
    volumes = [part.mask.volume_ml for part in two.parts.tumours]
    assert change.volume_after.value == pytest.approx(sum(volumes))
    assert change.volume_before.value == pytest.approx(4 / 3 * math.pi * 22**3 / 1000, rel=0.02)


def test_tracking_ids_take_precedence_over_overlap() -> None:
    before = scene(((45, 0, 30), 10), ((45, 0, -30), 10), numbers=(2, 3), schema=NUMBERED)
    after = scene(((45, 0, 30), 10), ((45, 0, -30), 10), numbers=(3, 2), schema=NUMBERED)
    found = match_tumours(before.parts, after.parts)
    assert sorted((m.before[0].tracking, m.after[0].tracking, m.matched) for m in found) == [
        ("tumour 1", "tumour 1", "tracking id"),
        ("tumour 2", "tumour 2", "tracking id"),
    ]


def test_nothing_before_and_nothing_after() -> None:
    assert [c.subject for c in changes(scene().measured, scene().measured)] == [
        "right kidney",
        "left kidney",
    ]


def test_lesions_with_different_tracking_ids_are_different() -> None:
    names = LabelSchema.from_names({1: "kidney", 2: "tumour 1", 3: "tumour 2", 4: "tumour 3"})
    balls = [((45, 0, 30), 10), ((45, 0, -30), 10)]
    before = scene(*balls, numbers=(2, 3), schema=names)
    after = scene(*balls, numbers=(4, 3), schema=names)
    found = match_tumours(before.parts, after.parts)
    assert [m.matched for m in found] == ["tracking id", "not found again", "new"]
    other = LabelSchema.from_names({1: "kidney", 2: "Wilms 7", 3: "Wilms 8"})
    renamed = scene(*balls, numbers=(2, 3), schema=other)  # no id in common: another naming
    assert [m.matched for m in match_tumours(before.parts, renamed.parts)] == ["overlap"] * 2


def test_a_tracking_id_on_both_sides_is_one_match() -> None:
    both = scene(((45, 0, 0), 20), ((-45, 0, 0), 15), numbers=(2, 2), schema=NUMBERED)
    (match,) = match_tumours(both.parts, both.parts)
    assert len(match.before) == len(match.after) == 2 and match.matched == "tracking id"


@pytest.mark.parametrize("is_later", [True, False])
def test_without_a_label_for_tumours_nothing_is_said_of_their_change(is_later: bool) -> None:
    with_tumour = scene(((45, 0, 30), 10))
    without = scene(schema=LabelSchema.from_names({1: "kidney"}))
    order = (with_tumour, without) if is_later else (without, with_tumour)
    found = changes(order[0].measured, order[1].measured)
    assert [change.subject for change in found] == ["right kidney", "left kidney"]


def test_a_lesion_whose_place_is_not_in_the_scan_is_not_said_to_be_gone() -> None:
    before = scene(((45, 15, 25), 12), ((45, 15, -20), 8))
    lower = scene(((45, 15, -20), 8)).labelled
    half = Volume(lower.labels.data[:, :17].contiguous(), lower.labels.grid.slices(0, 17))
    after = Scene(replace(lower, labels=half))
    assert all(kidney.is_partial for kidney in after.parts.kidneys.values())
    found = by_subject(changes(before.measured, after.measured))
    gone = found["right tumour 1 (before)"]
    assert gone.volume_after.high is None and "not in this scan" in gone.volume_after.note
    assert gone.change.high is None and gone.relative is not None and gone.relative.high is None
    assert found["right tumours"].volume_after.high is None, "the other lesion is not all"
    back = by_subject(changes(after.measured, before.measured))
    assert back["right tumour 1"].volume_before.high is None
    assert found["right tumour 1"].matched == "overlap", "cut kidneys do not align"


def test_a_tumour_near_the_midline_may_change_its_side() -> None:
    before, after = scene(((4, 30, 0), 12)), scene(((-4, 30, 0), 10))
    assert matches(before, after) == [(("right tumour 1",), ("left tumour 1",), "overlap")]


def test_a_small_lesion_is_found_between_coarser_voxels() -> None:
    before = scene(((45, 15, 4), 3.2), ((45, 15, -29), 6), spacing_mm=(2.0, 1.5, 1.5))
    after = scene(((45, 15, 4), 7), ((45, 15, -29), 9), spacing_mm=(9.0, 4.0, 4.0))
    for one, other in ((before, after), (after, before)):
        found = match_tumours(one.parts, other.parts)
        assert [match.matched for match in found] == ["overlap"] * 2


def test_what_became_a_speck_may_be_all_that_is_left() -> None:
    before = scene(((45, 25, 0), 8))
    after = scene(((45, 25, 0), 2.6), spacing_mm=(2, 2, 2))
    assert not after.parts.tumours and after.parts.specks
    gone = by_subject(changes(before.measured, after.measured))["right tumour 1 (before)"]
    assert gone.volume_after.value == 0.0 and gone.volume_after.high is not None
    assert gone.volume_after.high > after.parts.specks["right"].mask.volume_ml > 0
    assert gone.change.high is not None and gone.change.high > gone.change.value
