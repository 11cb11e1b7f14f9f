"""The grids before any pose: where they lie, and what they hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cohorts import MULTIPLE, PLAN, base_of, frame_of, masks_on, material_of
from ellipses import make_ellipse_patient
from kidseg.cohort.frame import frame, pixel_mm
from kidseg.cohort.subject import Subject, prepare
from kidseg.config import ViewConfig
from kidseg.geometry import Grid, Volume
from kidseg.intensity import Normalisation

VIEW = ViewConfig(size=48)
NEAR = ViewConfig(size=48, pixel_mm=2.0)


def subject_of(view: ViewConfig = VIEW) -> Subject:
    image = make_ellipse_patient(0).image
    return prepare(image, material_of(view), PLAN.channels, name="a")


def test_the_pixel_is_the_plans_or_as_coarse_as_the_field_asks() -> None:
    assert pixel_mm(ViewConfig(size=64), PLAN) == pytest.approx(4.0)
    assert pixel_mm(ViewConfig(size=128), PLAN) == pytest.approx(4.0)
    assert pixel_mm(ViewConfig(size=32), PLAN) == pytest.approx(8.0)
    assert pixel_mm(ViewConfig(size=32, pixel_mm=3.0), PLAN) == pytest.approx(3.0)


def test_the_base_grid_is_centred_on_the_body() -> None:
    subject = subject_of()
    base = base_of(subject, VIEW)
    assert base.shape == (8, 48, 48)
    body = masks_on(subject, base)[:, 0]
    axis = torch.arange(48) - 23.5
    for profile in (body.sum((0, 1)), body.sum((0, 2))):
        assert abs(float((profile * axis).sum() / profile.sum())) < 0.2


def test_the_whole_grid_holds_the_body_and_is_the_base_grid_grown() -> None:
    """Pixels of 2 mm: 48 of them do not hold a body of some 180 mm."""
    subject = subject_of(NEAR)
    own = frame_of(subject, NEAR)
    rows, columns = own.whole.shape[1:]
    assert rows >= 48 and columns > 48
    assert (rows - 48) % MULTIPLE == 0 and (columns - 48) % MULTIPLE == 0
    start = ((rows - 48) // 2, (columns - 48) // 2)
    assert own.whole.crop((0, *start), (8, 48, 48)).same_as(own.base, 1e-6)
    body = masks_on(subject, own.whole)[:, 0]
    voxels = float(body.sum() * own.whole.voxel_ml)
    assert subject.masks is not None
    all_of_it = float((subject.masks.data[0] > 0).sum() * subject.image.grid.voxel_ml)
    assert voxels == pytest.approx(all_of_it, rel=0.01)


@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_no_more_is_added_than_the_body_takes(multiple: int) -> None:
    """The box of the body is inside; one multiple less on any axis, and it is not."""
    subject = subject_of(NEAR)
    own = frame(subject, NEAR, PLAN, multiple)
    assert subject.body is not None and subject.body.box is not None
    box = torch.tensor(subject.body.box, dtype=torch.float64)
    corners = torch.stack([torch.zeros(2), box[:2], box[2:]], dim=1)
    corners += torch.tensor([[0.0, -0.5, -0.5], [0.0, 0.5, 0.5]])
    at = own.base.index(subject.image.grid.mm(corners))[:, 1:]
    for axis in (1, 2):
        added = own.whole.shape[axis] - 48
        ends = at[:, axis - 1]
        beyond = max(-0.5 - float(ends[0]), float(ends[1]) - 47.5)
        assert beyond <= added / 2 + 1e-9
        assert added == 0 or beyond > (added - multiple) / 2


@pytest.mark.parametrize("what", ["no body", "no CT"])
def test_without_a_body_the_image_is_seen_whole_around_its_middle(what: str) -> None:
    grid = Grid.from_spacing((3, 64, 70), (5.0, 4.0, 4.0))
    air = Volume(torch.full((1, 3, 64, 70), -1000, dtype=torch.int16), grid)
    plan = PLAN
    if what == "no CT":
        statistics = PLAN.channels[0].statistics
        plan = replace(PLAN, channels=(Normalisation.of_channel("T1", statistics),))
    material = material_of(ViewConfig(size=32))
    if what == "no CT":
        material = replace(material, masks=None)
    subject = prepare(air, material, plan.channels, name="a")
    assert (subject.body is None) == (what == "no CT")
    near = ViewConfig(size=32, pixel_mm=4.0)
    own = frame(subject, near, plan, MULTIPLE)
    assert own.whole.shape == (3, 64, 72)
    torch.testing.assert_close(own.base.centre_mm, grid.centre_mm)
    assert subject.labelled_or_all == (0, 2)
