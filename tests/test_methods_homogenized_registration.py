"""Registration by masks: what agreement weighs, and that symmetry alone sets a patient upright."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from cohorts import PLAN, base_of, make_cohort, material_of, start_of
from ellipses import make_ellipse_patient
from kidseg.body import Moments
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Subject, prepare
from kidseg.config import LocalizerConfig, PoseConfig
from kidseg.geometry import Volume, in_plane_pose
from kidseg.losses import soft_dice
from kidseg.methods.homogenized.pose_stage import PoseTransformer
from kidseg.methods.homogenized.reference import Reference
from kidseg.methods.homogenized.registration import (
    agreement,
    best_agreement,
    flip_symmetry,
    minimize_pose,
    registration_slices,
    upright,
)
from kidseg.methods.homogenized.scene import MASKS
from kidseg.nets import build
from kidseg.nets.stn import pose_outputs

LOCALIZER = LocalizerConfig(size=32, pooled=8, hidden=(32, 16))
POSE = PoseConfig(localizer=LOCALIZER)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return make_cohort(3, 1)


@cache
def adopted(subject: Subject, config: PoseConfig = POSE) -> Reference:
    reference = Reference(config)
    reference.adopt(subject, base_of(subject), config)
    return reference


def told(subject: Subject, angle_deg: float, shift_mm: float = 0.0) -> Subject:
    """The same scan, whose moments are told wrongly."""
    assert subject.body is not None
    own = subject.body.whole
    wrong = Moments(
        own.centre_mm + torch.tensor([shift_mm, 0.0]),
        own.angle_rad + math.radians(angle_deg),
        own.radii_mm,
    )
    return replace(subject, body=replace(subject.body, whole=wrong))


def test_masks_mirror_themselves_if_both_halves_are_alike() -> None:
    half = torch.zeros((1, 1, 4, 4))
    half[..., :2] = 1.0
    assert float(flip_symmetry(half)) == pytest.approx(0.0, abs=1e-4)
    assert float(flip_symmetry(half + half.flip(-1))) == pytest.approx(1.0)
    three_of_four = torch.zeros((1, 1, 1, 4))
    three_of_four[..., :3] = 1.0
    assert float(flip_symmetry(three_of_four)) == pytest.approx(2 * 2 / (3 + 3), abs=1e-4)


@pytest.mark.parametrize(
    ("bone", "symmetry", "expected"),
    [(0.0, 0.0, 1.0), (1.0, 0.0, 0.5), (0.0, 1.0, (1 + 0.5) / 2), (2.0, 1.0, (1 + 0 + 0.5) / 4)],
)
def test_agreement_is_the_weighted_mean_of_its_parts(
    bone: float, symmetry: float, expected: float
) -> None:
    """A symmetric body on the reference's, and bone on the wrong side: 1, 0, and 1 and 0 in two."""
    masks = torch.zeros((1, 2, 2, 4))
    masks[:, 0] = 1.0
    aim = masks.clone()
    masks[:, 1, :, 0], aim[:, 1, :, 3] = 1.0, 1.0
    config = replace(POSE, bone=bone, symmetry=symmetry)
    assert float(agreement(masks, aim, config)) == pytest.approx(expected, abs=1e-4)
    only_body = agreement(masks[:, :1], aim[:, :1], replace(config, target="body"))
    assert float(only_body) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [1, 2])
def test_at_an_unknown_height_the_best_level_of_the_reference_counts(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    masks, levels = (torch.rand((n, count, 6, 8), generator=generator) for n in (5, 7))
    masks[2], levels[3] = 0.0, 0.0  # both empty: perfect agreement
    for bone, symmetry in ((0.0, 0.0), (0.5, 0.0), (0.7, 1.5)):
        config = replace(POSE, bone=bone, symmetry=symmetry)
        each = [agreement(masks, level.expand_as(masks), config) for level in levels]
        found = best_agreement(masks, levels, config)
        assert torch.allclose(found, torch.stack(each).amax(0), atol=1e-6)
        assert float(found[2]) == pytest.approx(1.0)
    own = best_agreement(levels, levels, replace(POSE, symmetry=0.0))
    assert torch.allclose(own, torch.ones(7), atol=1e-5), "each is like itself"


def test_symmetry_sets_a_patient_upright(cohort: Cohort) -> None:
    """Told 12 degrees and 8 mm wrong, it comes back to its true angle; its size stays."""
    subject, patient = cohort.training[1], make_ellipse_patient(1)
    reference = adopted(subject, replace(POSE, symmetry=0.0))
    wrong = start_of(told(subject, 12.0, 8.0), POSE, reference)
    found = upright(subject, wrong, POSE, 2)
    angle = float(in_plane_pose(found, subject.image.grid).angle_rad[0])
    assert abs(math.degrees(angle - patient.angle_rad)) < 1.0
    assert float(in_plane_pose(found, wrong).scale.sub(1).abs().max()) < 1e-9


def test_the_reference_stands_upright_whatever_its_moments_say(cohort: Cohort) -> None:
    subject = told(cohort.training[0], 10.0)
    symmetric, aslant = (
        float(flip_symmetry(adopted(subject, replace(POSE, symmetry=s)).masks.float()).mean())
        for s in (1.0, 0.0)
    )
    assert symmetric > 0.97 > aslant + 0.03


def test_each_patient_is_registered_as_if_alone(cohort: Cohort) -> None:
    pair = cohort.training[:2]
    reference = adopted(pair[0], replace(POSE, symmetry=0.0))
    starts = [
        start_of(told(subject, angle), POSE, reference)
        for subject, angle in zip(pair, (8.0, -6.0), strict=True)
    ]
    none = [torch.zeros(())] * 2

    def crooked(masks: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return 1.0 - flip_symmetry(masks)

    together = minimize_pose(pair, starts, none, LOCALIZER, 2, crooked)
    for subject, start, grid in zip(pair, starts, together, strict=True):
        (alone,) = minimize_pose([subject], [start], none[:1], LOCALIZER, 2, crooked)
        assert alone.same_as(grid, 0.05)
    held = minimize_pose(pair, starts, none, LOCALIZER, 2, crooked, torch.zeros(5))
    assert all(grid.same_as(start, 1e-6) for grid, start in zip(held, starts, strict=True))


def test_registration_looks_at_labelled_slices(cohort: Cohort) -> None:
    subject = cohort.training[0]
    first, last = subject.labelled_or_all
    rows = registration_slices(subject)
    assert rows[0] == first and rows[-1] == last and len(rows) <= 12


def test_a_body_that_lies_aslant_is_centred_in_every_slice(cohort: Cohort) -> None:
    """Slices moved along by 3 mm each, and one centroid astray by a tumour: a straight axis."""
    subject = cohort.training[0]
    reference = adopted(subject)
    body = subject.body
    assert body is not None
    each, own = body.per_slice, body.whole
    count = len(each.radii_mm)
    along = (torch.arange(count) - (count - 1) / 2).double()
    centres = own.centre_mm + along[:, None] * torch.tensor([3.0, -1.0])
    aslant = replace(subject, body=replace(body, per_slice=replace(each, centre_mm=centres)))
    grid = start_of(aslant, POSE, reference)
    shift = in_plane_pose(grid, subject.image.grid).shift_mm
    assert (shift - shift.mean(0) - along[:, None] * torch.tensor([3.0, -1.0])).abs().max() < 0.1
    steps = shift.diff(dim=0)
    centres = centres.clone()
    centres[count // 2] += 20.0
    bent = replace(subject, body=replace(body, per_slice=replace(each, centre_mm=centres)))
    moved = in_plane_pose(start_of(bent, POSE, reference), subject.image.grid).shift_mm
    assert (moved.diff(dim=0) - steps).abs().max() < 3.0, "one slice does not go astray"


def test_the_pose_of_a_mirror_image_is_the_mirrored_pose(cohort: Cohort) -> None:
    """With any weights: angle and sideways shift change their signs, sizes and heights do not."""
    patient = make_ellipse_patient(0)
    subject = cohort.training[0]
    flipped = prepare(
        Volume(patient.image.data.flip(-1), patient.image.grid),
        material_of(),
        PLAN.channels,
        name="mirror",
        labels=Volume(patient.labels.data.flip(-1), patient.labels.grid),
    )
    net = build(LOCALIZER, 1 + MASKS[POSE.target], pose_outputs(LOCALIZER), seed=3).eval()
    last = list(net.parameters())[-2]
    torch.nn.init.normal_(last, std=1.0, generator=torch.Generator().manual_seed(0))
    reference = adopted(cohort.training[1])
    subject, flipped = told(subject, 10.0), told(flipped, -10.0)
    config = replace(POSE, only_better=False)
    both_sided = PoseTransformer(net=net, config=config, reference=reference, base=base_of)
    poses = [
        in_plane_pose(both_sided.locate(both_sided.scene(s)), s.image.grid)
        for s in (subject, flipped)
    ]
    start = in_plane_pose(start_of(subject, POSE, reference), subject.image.grid)
    assert (poses[0].angle_rad - start.angle_rad).abs().max() > 0.01, "the network does something"
    assert (poses[0].angle_rad + poses[1].angle_rad).abs().max() < 2e-3
    assert (poses[0].scale - poses[1].scale).abs().max() < 2e-3
    mirror = torch.tensor([-1.0, 1.0])
    assert (poses[0].shift_mm - poses[1].shift_mm * mirror).abs().max() < 0.3
    one_sided = replace(both_sided, config=replace(config, flip=False))
    other = [one_sided.locate(one_sided.scene(s)) for s in (subject, flipped)]
    angles = [in_plane_pose(g, subject.image.grid).angle_rad for g in other]
    assert (angles[0] + angles[1]).abs().max() > 5e-3, "without the mirror, it is not so"


def test_a_reference_is_itself_on_its_own_grid(cohort: Cohort) -> None:
    """Upright or not, registration of the reference with itself moves nothing."""
    subject = cohort.training[0]
    reference = adopted(subject)
    start = upright(subject, start_of(subject, POSE, reference), POSE, 2)

    def loss(masks: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
        return 1.0 - soft_dice(masks, aim).mean(1)

    aim = reference.targets([reference.level(subject, k) for k in registration_slices(subject)])
    (found,) = minimize_pose([subject], [start], [aim], LOCALIZER, 2, loss)
    off = in_plane_pose(found, start)
    assert math.degrees(float(off.angle_rad.abs().max())) < 0.5
    assert float((off.scale - 1).abs().max()) < 0.01
