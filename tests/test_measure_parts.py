"""Kidneys and tumours found in labels: sides, lesions, specks, borders, other labels."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from findings import codes
from kidseg.geometry import Grid, Volume
from kidseg.io.orientation import reorient
from kidseg.labels import KIDNEY_TUMOUR, LabelSchema
from kidseg.measure import Midline, measure_sides
from kidseg.measure.criteria import answered, read_criteria
from kidseg.measure.mask import Mask
from kidseg.measure.measurement import Measurement, measure_parts
from kidseg.measure.midline import estimated_midline
from kidseg.measure.parts import Labelled, Parts, find_parts
from kidseg.measure.person import Patient
from kidseg.measure.position import BEYOND, POLES, PolarLines, exophytic_share
from kidseg.measure.quantity import Quantity
from kidseg.measure.sizes import volume_of
from kidseg.measure.totals import excess_of
from solids import ball, boxes, ellipsoid, oblique, positions, right_kidney

GRID = Grid.from_spacing((24, 40, 80), (3.0, 2.0, 2.0))
"""Canonical: columns run to the patient's left. A voxel is 0.012 ml; the middle is column 39.5."""

labels = partial(boxes, grid=GRID)
RIGHT = (1, slice(4, 20), slice(10, 30), slice(10, 24))
LEFT = (1, slice(4, 20), slice(10, 30), slice(56, 70))
TUMOUR = (2, slice(8, 16), slice(12, 28), slice(18, 34))  # over the medial part of the right kidney


def parts(volume: Volume, schema: LabelSchema = KIDNEY_TUMOUR, **known: object) -> Parts:
    given = {"midline": Midline.at(0.0, "body"), **known}
    return find_parts(Labelled(labels=volume, schema=schema, **given), 0.1)  # type: ignore[arg-type]


def measured(volume: Volume, schema: LabelSchema = KIDNEY_TUMOUR, **known: object) -> Measurement:
    given = {"midline": Midline.at(0.0, "body"), **known}
    labelled = Labelled(labels=volume, schema=schema, **given)  # type: ignore[arg-type]
    return measure_parts(
        labelled,
        find_parts(labelled, 0.1),
        read_criteria(),
        person=Patient(),
        margin_mm=5.0,
        entered={},
    )


def test_each_kidney_and_tumour_has_a_side_and_a_name() -> None:
    found = parts(labels(RIGHT, LEFT, TUMOUR, (2, slice(5, 8), slice(14, 20), slice(66, 74))))
    assert {side: part.id for side, part in found.kidneys.items()} == {
        "right": "right kidney",
        "left": "left kidney",
    }
    assert [part.id for part in found.tumours] == ["right tumour 1", "left tumour 1"]
    assert found.masses["tumour", "right"].mask.volume_ml == pytest.approx(8 * 16 * 16 * 0.012)
    assert codes(found) == []


def test_lesions_are_components_from_large_to_small_and_specks_are_none() -> None:
    small = (2, slice(17, 19), slice(11, 14), slice(10, 13))
    speck = (2, slice(5, 6), slice(11, 13), slice(11, 13))  # 0.048 ml
    found = parts(labels(RIGHT, LEFT, TUMOUR, small, speck))
    sizes = [part.mask.volume_ml for part in found.tumours]
    assert len(sizes) == 2 and sizes == sorted(sizes, reverse=True)
    assert found.specks["right"].mask.volume_ml == pytest.approx(0.048)
    whole = found.masses["tumour", "right"].mask.volume_ml
    assert whole == pytest.approx(sum(sizes) + 0.048)
    assert "tumour-specks" in codes(found)


def test_fragments_are_part_of_the_volume_but_not_of_the_shape() -> None:
    far = (1, slice(22, 23), slice(34, 38), slice(2, 6))  # 0.192 ml
    plain, found = measured(labels(RIGHT, LEFT)), measured(labels(RIGHT, LEFT, far))
    one, other = plain.structures[0], found.structures[0]
    for name in ("longest diameter", "height"):
        assert one.quantity(name) == other.quantity(name)
    volumes = [each.quantity("volume") for each in (one, other)]
    assert volumes[0] and volumes[1]
    assert volumes[1].value - volumes[0].value == pytest.approx(0.192)
    assert "kidney-fragments" in codes(found) and "0.19 ml" in str(found.findings)
    assert codes(plain) == []


def test_a_piece_that_the_tumour_connects_with_its_kidney_is_part_of_the_shape() -> None:
    on_it = (1, slice(8, 12), slice(12, 16), slice(34, 36))  # 0.384 ml, on the far side of it
    plain, found = (
        measured(labels(RIGHT, LEFT, TUMOUR)),
        measured(labels(RIGHT, LEFT, TUMOUR, on_it)),
    )
    one, other = (each.structures[0].quantity("longest axial diameter") for each in (plain, found))
    assert one and other and other.low is not None
    assert other.low <= one.value < other.value
    assert "kidney-pieces" in codes(found) and "0.38 ml" in str(found.findings)
    assert codes(plain) == []
    speck = (1, slice(8, 10), slice(12, 14), slice(34, 36))  # 0.096 ml
    small = measured(labels(RIGHT, LEFT, TUMOUR, speck)).structures[0]
    assert small.quantity("longest axial diameter") == one


def test_parenchyma_of_one_voxel_widens_the_contact_and_the_kidney() -> None:
    sheet = (1, slice(8, 16), slice(12, 28), slice(34, 35))  # around the end of the tumour
    plain, found = (
        measured(labels(RIGHT, LEFT, TUMOUR)),
        measured(labels(RIGHT, LEFT, TUMOUR, sheet)),
    )
    for each, is_thin in ((plain, False), (found, True)):
        contact = each.tumours[0].quantity("contact with the kidney")
        assert contact is not None and contact.high is not None
        assert ("as much again" in contact.note) is is_thin
        assert ("thin-parenchyma" in codes(each)) is is_thin
    # Faces of 6 mm2 at the sheet: 8 x 16; others: 8 x 16 + 2 x 8 x 6, and 2 x 16 x 6 of 4 mm2.
    share = 768 / (768 + 2112)
    assert contact.note.startswith(f"{100 * share:.0f} %")
    assert contact.high > (1 + share) * contact.value
    kidney = found.structures[0]
    longest, axial = (kidney.quantity(f"longest {name}diameter") for name in ("", "axial "))
    assert longest and axial and "too thin" in longest.note
    # From the kidney's corner, column and row 10, to the tumour's with the sheet, 35 and 28.
    assert axial.high == pytest.approx(2 * np.hypot(25, 18), abs=4)


@pytest.mark.parametrize("factor", [0.001, 10.0])
def test_kidneys_in_another_unit_than_millimetres_are_implausible(factor: float) -> None:
    grid = Grid.from_spacing(GRID.shape, [factor * float(s) for s in GRID.spacing_mm])
    found = measured(labels(RIGHT, LEFT, grid=grid))
    assert codes(found) == ["implausible-length"] * 2
    assert "Check the labels, and that the voxel sizes" in str(found.findings[0])


def test_a_label_with_a_tracking_id_is_one_lesion() -> None:
    schema = LabelSchema.from_names({1: "kidney", 2: "tumour 1", 3: "tumour 2"})
    boxes = (
        (2, slice(8, 10), slice(12, 16), slice(12, 16)),
        (2, slice(14, 16), slice(12, 16), slice(12, 16)),
        (3, slice(10, 12), slice(12, 16), slice(12, 16)),
    )
    found = parts(labels(RIGHT, LEFT, *boxes), schema, tracking={2: "A", 3: "B"})
    assert [part.tracking for part in found.tumours] == ["A", "B"]
    assert [part.label for part in found.tumours] == ["tumour 1", "tumour 2"]
    # Without, the three pieces are connected, but two labels: two touching lesions and a third.
    assert len(parts(labels(RIGHT, LEFT, *boxes), schema).tumours) == 3


def test_a_mass_that_connects_both_kidneys_belongs_to_the_one_it_touches_most() -> None:
    mass = (2, slice(6, 18), slice(12, 28), slice(24, 56))
    grip = (1, slice(6, 18), slice(9, 12), slice(20, 30))  # a claw of the right kidney around it
    found = parts(labels(RIGHT, LEFT, mass, grip))
    assert [part.id for part in found.tumours] == ["right tumour 1"]
    sides = measure_sides(labels(RIGHT, LEFT, mass, grip), KIDNEY_TUMOUR, Midline.at(0.0, "body"))
    assert sides is not None and sides.left.volumes_ml["tumour"] == 0.0
    assert sides.left.volumes_ml["kidney"] == pytest.approx(16 * 20 * 14 * 0.012)


def test_names_tell_the_sides_of_a_fused_kidney_and_of_one_without_a_body() -> None:
    schema = LabelSchema.from_names({1: "right kidney", 2: "left kidney"})
    bridge = (1, slice(10, 12), slice(18, 20), slice(24, 56))
    found = parts(labels(RIGHT, (2, *LEFT[1:]), bridge), schema)
    assert found.kidneys["right"].mask.volume_ml > found.kidneys["left"].mask.volume_ml
    alone = parts(labels((2, *RIGHT[1:])), schema, midline=Midline.at(0.0, "image"))
    assert list(alone.kidneys) == ["left"]


def test_names_that_contradict_the_body_are_told() -> None:
    schema = LabelSchema.from_names({1: "left kidney", 2: "right kidney"})
    found = parts(labels(RIGHT, (2, *LEFT[1:])), schema)
    assert "side-contradicted" in codes(found)
    assert found.kidneys["right"].label == "left kidney"


@pytest.mark.parametrize("order", [(2, 0, 1), (0, 2, 1)])
def test_the_order_of_the_voxels_does_not_matter(order: tuple[int, int, int]) -> None:
    volume = labels(RIGHT, LEFT, TUMOUR)
    turned = reorient(volume, GRID.permuted(order))
    one, other = measured(volume), measured(turned)
    assert [each.as_dict() for each in one.structures] == [
        each.as_dict() for each in other.structures
    ]


def test_empty_labels_are_said_and_measured() -> None:
    found = measured(labels())
    assert found.structures == () and found.sides == {} and found.answers[-1].subject == "patient"
    assert codes(found) == ["nothing-labelled"]


def test_a_single_kidney_and_a_tumour_without_kidney() -> None:
    single = measured(labels(RIGHT))
    assert "one-kidney" in codes(single) and list(single.sides) == ["right"]
    assert "excess of the larger kidney" not in single.patient
    alone = measured(labels(TUMOUR))
    assert "no-kidney" in codes(alone)
    (tumour,) = alone.tumours
    assert tumour.quantity("contact with the kidney") is None
    assert tumour.renal_score["E"].points == tumour.renal_score["L"].points == ()


def test_what_the_scan_cuts_off_is_a_lower_bound() -> None:
    found = measured(labels(RIGHT, LEFT, (2, slice(0, 8), slice(12, 28), slice(12, 22))))
    (tumour,) = found.tumours
    assert tumour.borders == ("lower",)
    volume = tumour.quantity("volume")
    assert volume is not None and volume.high is None and "lower bound" in volume.note
    assert found.sides["right"]["tumour volume"].high is None
    assert "kidney-cut" in codes(found)


def test_a_cropped_file_does_not_tell_its_border() -> None:
    data = labels(RIGHT, LEFT).data[:, 4:20, 10:30, 10:70]
    cropped = Volume(data, GRID.crop((4, 10, 10), (16, 20, 60)))
    found = measured(cropped, is_cropped=True)
    assert all(not structure.borders for structure in found.structures)
    assert "border-unknown" in codes(found) and "kidney-cut" not in codes(found)


def test_labels_that_are_not_recognized_are_measured_by_name() -> None:
    schema = LabelSchema.from_names({1: "kidney", 7: "vena cava"})
    found = measured(labels(RIGHT, LEFT, (7, slice(2, 22), slice(15, 20), slice(38, 42))), schema)
    (cava,) = [each for each in found.structures if each.meaning is None]
    assert (cava.id, cava.side) == ("vena cava", None)
    volume = cava.quantity("volume")
    assert volume is not None and volume.value == pytest.approx(20 * 5 * 4 * 0.012)


def test_the_midline_lies_between_two_kidneys_of_a_cropped_file() -> None:
    data = labels(RIGHT, LEFT).data[..., 8:72]
    volume = Volume(data, GRID.crop((0, 0, 8), (24, 40, 64)))
    midline = estimated_midline(volume, KIDNEY_TUMOUR, is_cropped=True)
    assert midline.basis == "kidneys"
    assert midline.x_mm[0] == pytest.approx(0.0, abs=2.5)
    one = estimated_midline(labels(RIGHT), KIDNEY_TUMOUR, is_cropped=True)
    assert (one.basis, one.x_mm[0]) == ("origin", 0.0)
    assert estimated_midline(labels(RIGHT), KIDNEY_TUMOUR, is_cropped=False).basis == "image"


def test_pieces_of_one_kidney_around_a_tumour_are_no_two_kidneys() -> None:
    pieces = labels(
        (1, slice(4, 20), slice(10, 30), slice(10, 14)),
        (1, slice(4, 20), slice(10, 30), slice(26, 30)),
        (2, slice(4, 20), slice(10, 30), slice(14, 26)),
    )
    assert estimated_midline(pieces, KIDNEY_TUMOUR, is_cropped=False).basis == "image"


def test_crossing_of_the_midline_is_met_not_met_or_not_told() -> None:
    def crossing(columns: slice, midline: Midline) -> str | None:
        volume = labels(RIGHT, LEFT, (2, slice(8, 16), slice(12, 28), columns))
        found = measured(volume, midline=midline).tumours[0]
        reach = found.quantity(BEYOND)
        assert reach is not None and reach.low is not None and reach.high is not None
        return found.crosses_midline

    body, image = Midline.at(0.0, "body"), Midline.at(0.0, "image")
    assert crossing(slice(18, 50), body) == "met"
    assert crossing(slice(18, 30), body) == "not met"
    assert crossing(slice(18, 40), body) == "cannot tell"
    assert crossing(slice(18, 45), body) == "met" and crossing(slice(18, 45), image) != "met"


@pytest.mark.parametrize("seed", [0, 2])
def test_polar_lines_are_thirds_of_a_tilted_kidney(seed: int) -> None:
    grid = oblique(32, (1.5, 1.0, 1.0), seed)
    kidney = ellipsoid(grid, (12, 10, 30))
    lines = PolarLines.of(kidney)
    assert lines is not None and lines.is_tilted
    assert abs(lines.axis[2]) == pytest.approx(1.0, abs=0.01)
    assert lines.upper_mm - lines.lower_mm == pytest.approx(20, abs=1.5)
    assert lines.middle_mm == pytest.approx(0.0, abs=1.0)


@pytest.mark.parametrize(("centre", "low", "high"), [(0, 0, 0), (20, 40, 62), (30, 100, 100)])
def test_exophytic_share_of_a_ball_at_the_surface_of_a_kidney(
    centre: float, low: float, high: float
) -> None:
    grid = oblique(42, (1.5, 1.2, 1.2), 5)
    tumour = ball(grid, 9, (centre, 0, 0))
    kidney = ellipsoid(grid, (20, 22, 36))
    kidney = type(kidney)(kidney.data & ~tumour.data, grid)
    share = exophytic_share(tumour, kidney)
    assert share is not None
    assert low <= share.value <= high
    assert share.low is not None and share.high is not None and share.low <= share.value


def test_the_renal_score_of_a_ball_at_the_upper_pole() -> None:
    grid = Grid.from_spacing((56, 60, 100), (2.0, 1.5, 1.5))
    place = positions(grid)
    kidney = (((place - (40, 0, -10)) / (18, 15, 40)) ** 2).sum(-1) <= 1
    tumour = ((place - (40, 0, 33)) ** 2).sum(-1) <= 14**2
    data = np.where(tumour, 2, np.where(kidney, 1, 0)).astype(np.uint8)
    (found,) = measured(Volume(torch.from_numpy(data)[None], grid)).tumours
    score = {name: component.points for name, component in found.renal_score.items()}
    assert score["R"] == (1,) and score["E"] == (1,) and score["L"][0] == 1
    assert score["N"] == score["A"] == score["hilar suffix"] == ()
    upper, _, lower = (found.quantity(name) for name in POLES)
    assert upper is not None and upper.value > 95 and lower is not None and lower.value == 0.0


def test_what_depends_on_the_whole_kidney_is_not_told_of_a_part_of_it() -> None:
    cut = (1, slice(0, 20), slice(10, 30), slice(10, 24))
    found = measured(labels(cut, LEFT, (2, slice(8, 16), slice(12, 28), slice(10, 22))))
    (tumour,) = found.tumours
    assert found.structures[0].borders == ("lower",) and not tumour.borders
    for name in ("exophytic share", *POLES):
        share = tumour.quantity(name)
        assert share is not None and share.low is share.high is None and "cuts" in share.note
    contact, volume = tumour.quantity("contact with the kidney"), tumour.quantity("volume")
    assert contact is not None and contact.high is None
    assert volume is not None and volume.high is not None
    assert tumour.renal_score["E"].points == tumour.renal_score["L"].points == ()
    remaining = found.sides["right"]["parenchyma remaining"]
    assert remaining.low is remaining.high is None
    told = {answer.criterion.id: answer.verdict for answer in found.answers}
    assert told["parenchyma-two-thirds"] == told["kidney-asymmetry"] == "cannot tell"
    assert found.patient["excess of the larger kidney"].high is None


@pytest.mark.parametrize(("apart", "told"), [(1, "cannot tell"), (5, "met")])
def test_lesions_that_a_voxel_more_would_connect_may_be_one(apart: int, told: str) -> None:
    first, second = slice(4, 8), slice(8 + apart, 12 + apart)
    boxes = [(2, each, slice(10, 18), slice(22, 30)) for each in (first, second)]
    found = measured(labels(RIGHT, LEFT, *boxes))
    number = found.sides["right"]["number of tumours"]
    assert number.value == number.high == 2 and number.low == (1 if told == "cannot tell" else 2)
    assert (found.patient["sides with a tumour"].low, number.unit) == (1, "1")
    (answer,) = [a for a in found.answers if a.criterion.id == "nephron-sparing-contraindication"]
    assert answer.conditions[0].verdict == answer.verdict == told


def test_a_lesion_with_a_tracking_id_is_one_whatever_its_contour() -> None:
    bridge = [(3, slice(k, k + 2), slice(10, 18), slice(22, 30)) for k in (4, 7)]
    schema = LabelSchema.from_names({1: "kidney", 2: "tumour", 3: "tumour 3"})
    found = measured(labels(RIGHT, LEFT, TUMOUR, *bridge), schema, tracking={3: "tumour 3"})
    number = found.sides["right"]["number of tumours"]
    assert number.low == number.value == number.high == 2


def test_specks_on_the_other_side_leave_it_open_whether_both_have_tumours() -> None:
    speck = (2, slice(5, 7), slice(12, 14), slice(60, 62))  # 0.096 ml; with a voxel more 0.3 ml
    sides = measured(labels(RIGHT, LEFT, TUMOUR, speck)).patient["sides with a tumour"]
    assert (sides.low, sides.value, sides.high) == (1, 1, 2)


def test_a_mass_on_both_kidneys_leaves_it_open_whether_it_is_unilateral() -> None:
    mass = (2, slice(6, 18), slice(12, 28), slice(24, 56))
    found = measured(labels(RIGHT, LEFT, mass))
    number = found.patient["sides with a tumour"]
    assert (number.low, number.value, number.high) == (1, 1, 2) and "both sides" in number.note
    (answer,) = (one for one in found.answers if "unilateral" in one.criterion.title)
    (condition,) = (one for one in answer.conditions if "sides with a tumour" in one.text)
    assert condition.verdict == "cannot tell" and "mass-on-both-sides" in codes(found)
    apart = measured(labels(RIGHT, LEFT, TUMOUR)).patient["sides with a tumour"]
    assert (apart.low, apart.high, apart.note) == (1, 1, "")


def test_without_a_label_for_tumours_their_number_is_not_said() -> None:
    found = measured(labels(RIGHT, LEFT), LabelSchema.from_names({1: "kidney"}))
    assert "number of tumours" not in found.patient
    assert measured(labels(RIGHT, LEFT)).patient["number of tumours"].value == 0


@given(*[st.tuples(*[st.floats(0.5, 300)] * 3)] * 2)
def test_the_excess_contains_that_of_all_volumes_in_the_intervals(
    one: tuple[float, ...], other: tuple[float, ...]
) -> None:
    both = [
        Quantity(name="v", unit="mL", low=a, value=b, high=c)
        for a, b, c in (sorted(one), sorted(other))
    ]
    found = excess_of(*both)
    assert found.low is not None and found.high is not None
    for a in (both[0].low, both[0].value, both[0].high):
        for b in (both[1].low, both[1].value, both[1].high):
            assert a is not None and b is not None
            true = 100 * (max(a, b) / min(a, b) - 1)
            assert found.low - 1e-6 <= true <= found.high * (1 + 1e-9) + 1e-6


def block_volume(shape: tuple[int, int, int]) -> Quantity:
    """The volume of a kidney that is a block of so many voxels."""
    grid = Grid.from_spacing(shape, (0.3, 0.3, 0.3))
    return volume_of(right_kidney(Mask(np.ones(shape, bool), grid)))


@pytest.mark.parametrize(
    ("larger", "smaller", "percent", "verdict"),
    [
        (165, 150, 10, "met"),
        (66, 60, 10, "cannot tell"),  # 20 % is within a voxel of either contour
        (126, 90, 40, "not met"),
        (60, 60, 0, "cannot tell"),
    ],
)
def test_an_excess_is_told_where_a_voxel_at_the_contours_does_not_matter(
    larger: int, smaller: int, percent: float, verdict: str
) -> None:
    volumes = [block_volume((n, smaller, smaller)) for n in (smaller, larger)]
    excess = excess_of(*volumes)
    assert excess.value == pytest.approx(percent)
    criteria = read_criteria()
    (asymmetry,) = [each for each in criteria.criterion if each.id == "kidney-asymmetry"]
    found = answered(asymmetry, "patient", {excess.name: excess}, {}, criteria.entered)
    assert found.verdict == verdict
