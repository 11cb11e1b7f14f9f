"""System A: the reference, the pose, the crop, and what the U-Net then sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cohorts import PLAN, TARGET, VIEW, base_of, make_cohort, masks_on, material_of, start_of
from ellipses import in_fine_pixels, make_ellipse_patient
from kidseg.body import Moments
from kidseg.cohort.batch import drawn_grid, drawn_labels
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.items import draw
from kidseg.cohort.subject import Subject, prepare
from kidseg.cohort.training_range import training_range
from kidseg.config import (
    CropConfig,
    HomogenizedConfig,
    LocalizerConfig,
    OptimizerConfig,
    PoseConfig,
    StageConfig,
    UNetConfig,
    load,
    preset,
)
from kidseg.device import choose_device
from kidseg.errors import UsageError
from kidseg.geometry import Grid, Slices, Volume, in_plane_pose, posed
from kidseg.intensity import AIR_HU
from kidseg.labels import Target
from kidseg.losses import soft_dice
from kidseg.methods import METHODS, method_named
from kidseg.methods.homogenized.crop_stage import CropTransformer, target_boxes
from kidseg.methods.homogenized.field_of_view import fields_of_masks
from kidseg.methods.homogenized.pose_stage import (
    PoseTransformer,
    overall_agreement,
    overlap,
    register,
)
from kidseg.methods.homogenized.reference import (
    Reference,
    choose_reference,
    matched_levels,
    medoid,
)
from kidseg.methods.homogenized.scene import MASKS, Scene
from kidseg.methods.homogenized.system_a import Homogenized
from kidseg.nets import PlannedUNet, build
from kidseg.nets.stn import CROP_OUTPUTS, pose_outputs
from kidseg.pipeline import advance
from kidseg.stage import Stage, TrainStep
from kidseg.train import Run, fit

CPU = choose_device("cpu", "fp32")
LOCALIZER = LocalizerConfig(size=32, pooled=8, hidden=(32, 16))
STAGE = StageConfig(
    epochs=4,
    min_epochs=0,
    batch_size=12,
    steps=15,
    optimizer=OptimizerConfig(name="adam", learning_rate=3e-3, weight_decay=0.0),
)
POSE = PoseConfig(localizer=LOCALIZER, stage=STAGE)
NOW = TrainStep(seed=0, epoch=0, step=0)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return make_cohort()


def losses_of(stage: Stage, step: TrainStep = NOW) -> dict[str, torch.Tensor]:
    return stage.loss(stage.net, stage.batch(step).to(torch.device("cpu")))


def loss_of(stage: Stage, step: TrainStep = NOW) -> float:
    return float(losses_of(stage, step)["loss"].detach())


def pose_net(config: PoseConfig = POSE, seed: int = 0) -> torch.nn.Module:
    return build(
        config.localizer, 1 + MASKS[config.target], pose_outputs(config.localizer), seed=seed
    )


def transformer(
    net: torch.nn.Module, reference: Reference, config: PoseConfig = POSE
) -> PoseTransformer:
    return PoseTransformer(net=net, config=config, reference=reference, base=base_of)


def located(pose: PoseTransformer, subject: Subject) -> Grid:
    return pose.locate(pose.scene(subject))


def bases_of(cohort: Cohort) -> list[Grid]:
    return [base_of(subject) for subject in cohort.training]


@cache
def small_cohort() -> Cohort:
    return make_cohort(2, 1)


@cache
def adopted(cohort: Cohort, config: PoseConfig = POSE) -> Reference:
    reference = Reference(config)
    subject = cohort.training[choose_reference(cohort.training, bases_of(cohort), config.reference)]
    reference.adopt(subject, base_of(subject), config)
    return reference


def test_the_medoid_is_the_one_that_is_like_the_others(cohort: Cohort) -> None:
    """Of one patient twice, and one unlike it, one of the two."""
    a, b = cohort.training[0], cohort.training[1]
    assert medoid([b, a, a], [base_of(subject) for subject in (b, a, a)]) != 0
    assert medoid([a], [base_of(a)]) == 0


def test_the_reference_may_be_named(cohort: Cohort) -> None:
    bases = bases_of(cohort)
    assert choose_reference(cohort.training, bases, "ellipse_002") == 2
    assert choose_reference(cohort.training, bases, None) == medoid(cohort.training, bases)
    with pytest.raises(UsageError, match="ellipse_006") as error:
        choose_reference(cohort.training, bases, "ellipse_006")
    assert error.value.code == "unknown-case"


@pytest.mark.parametrize("mode", ["slice", "volume"])
@pytest.mark.parametrize("start", ["identity", "moments"])
@pytest.mark.parametrize("target", ["body", "body+bone"])
def test_the_reference_overlaps_with_itself(
    cohort: Cohort, mode: str, start: str, target: str
) -> None:
    config = replace(POSE, reference_mode=mode, start=start, target=target)
    reference = adopted(cohort, config)
    subject = cohort.training[medoid(cohort.training, bases_of(cohort))]
    assert reference.case == subject.id
    own = overlap(subject, start_of(subject, config, reference), config, reference)
    assert own.shape == ((2,) if target == "body+bone" else (1,))
    assert (own > 0.99).all()


@pytest.mark.parametrize("mode", ["slice", "volume"])
def test_the_reference_lies_at_the_level_of_the_kidneys(cohort: Cohort, mode: str) -> None:
    """The liver fills the first slices, where no kidney is, and has most of all voxels."""
    config = replace(POSE, reference_mode=mode)
    subject = cohort.training[0]
    assert subject.labels is not None
    data = subject.labels.data.clone()
    data[0, :2] = torch.where(data[0, :2] > 0, data[0, :2], 3)
    with_liver = replace(subject.with_labels(replace(subject.labels, data=data)), renal=(1, 2))
    alone, beside = Reference(config), Reference(config)
    alone.adopt(subject, base_of(subject), config)
    beside.adopt(with_liver, base_of(with_liver), config)
    assert torch.equal(alone.masks, beside.masks)
    levels = [[beside.level(each, k) for k in range(8)] for each in (subject, with_liver)]
    assert levels[0] == levels[1]
    start = start_of(subject, config, beside)
    assert matched_levels(with_liver, start, config, beside) == levels[0]


def test_slices_meet_at_the_same_relative_height(cohort: Cohort) -> None:
    reference = adopted(cohort)
    subject = cohort.training[0]
    first, last = subject.labelled_or_all
    levels = [reference.level(subject, k) for k in range(subject.image.grid.shape[0])]
    assert levels == sorted(levels)
    count = len(reference.masks)
    assert levels[first] == int((0.5 / 6 + 0.5) / 2 * count)
    assert levels[first] + levels[last] == count - 1
    flat = adopted(cohort, replace(POSE, reference_mode="slice"))
    assert {flat.level(subject, k) for k in range(8)} == {0}


def test_moments_put_a_patient_upright_and_in_size(cohort: Cohort) -> None:
    """The truth of the ellipses: angle and size; a symmetric body shows both by its moments."""
    reference = adopted(cohort)
    for seed, subject in enumerate(cohort.training):
        patient = make_ellipse_patient(seed)
        grid = start_of(subject, POSE, reference)
        pose = in_plane_pose(grid, subject.image.grid)
        assert float(pose.angle_rad[0]) == pytest.approx(patient.angle_rad, abs=math.radians(2))
        width = float(grid.spacing_mm[0, 2]) * 48 * POSE.body_width  # type: ignore[operator]
        assert width / 2 == pytest.approx(90 * patient.size, rel=0.05)
    identity = start_of(cohort.training[0], replace(POSE, start="identity"), reference)
    assert identity.same_as(base_of(cohort.training[0]))


def test_a_fresh_network_changes_nothing(cohort: Cohort) -> None:
    reference = adopted(cohort)
    pose = transformer(pose_net().eval(), reference)
    subject = cohort.training[1]
    grid = located(pose, subject)
    assert pose.start(subject).same_as(start_of(subject, POSE, reference))
    assert grid.same_as(start_of(subject, POSE, reference), 1e-6)


def turned(
    subject: Subject, angle_deg: float, size: float, shift_mm: tuple[float, float] = (6.0, -4.0)
) -> Subject:
    """The same scan, whose moments are told wrongly: what the network has to put right."""
    assert subject.body is not None
    own = subject.body.whole
    told = Moments(
        own.centre_mm + torch.tensor(shift_mm),
        own.angle_rad + math.radians(angle_deg),
        own.radii_mm * size,
    )
    return replace(subject, body=replace(subject.body, whole=told))


@pytest.mark.ci
def test_the_pose_is_learned_and_undoes_what_it_never_saw(cohort: Cohort, tmp_path: Path) -> None:
    """Validated on a patient whose moments are wrong; tried on another with other errors."""
    reference = adopted(cohort)
    config = replace(POSE, cut=0.0, stage=replace(STAGE, epochs=12, batch_size=24))
    pose = transformer(pose_net(config), reference, config)
    first, second = cohort.validation
    wrong = (turned(first, -8.0, 0.9), turned(first, 10.0, 1.12))
    stage = pose.stage(replace(cohort, validation=wrong))
    fitted = fit(stage, Run(folder=tmp_path, device=CPU.torch))
    with torch.no_grad():
        figures = stage.validate()
    assert fitted.score == figures["score"] > figures["start"] + 0.03
    right = start_of(second, POSE, reference)
    for angle_deg, size in ((10.0, 1.1), (-8.0, 0.92)):
        other = turned(second, angle_deg, size)
        start = start_of(other, POSE, reference)
        before = overlap(other, start, POSE, reference)
        with torch.no_grad():
            grid = located(transformer(pose.net, reference), other)
        after = overlap(other, grid, POSE, reference)
        assert float(after[0]) > float(before[0]) + 0.005
        off = in_plane_pose(grid, right)
        assert float(torch.rad2deg(off.angle_rad.abs())[0]) < 4.0
        assert float(off.scale.mean()) == pytest.approx(1.0, abs=0.06)


def test_registration_undoes_a_wrong_start(cohort: Cohort) -> None:
    """By the masks alone it finds back to within a degree of where the moments lead."""
    reference = adopted(cohort)
    subject = cohort.training[1]
    wrong = start_of(turned(subject, 9.0, 0.9), POSE, reference)
    right = start_of(subject, POSE, reference)
    (found,) = register([subject], [wrong], POSE, reference)
    off = in_plane_pose(found, right)
    assert float(torch.rad2deg(off.angle_rad.abs()).max()) < 1.5
    assert float((off.scale - 1).abs().max()) < 0.03
    assert float(off.shift_mm.abs().max()) < 3.0
    alone = replace(POSE, teacher=0.0)
    net = pose_net()
    losses = losses_of(transformer(net, reference, alone).stage(cohort))
    assert set(losses) == {"loss"}
    taught = losses_of(transformer(net, reference).stage(cohort))
    assert float(taught["overlap_loss"].detach()) == float(losses["loss"].detach())
    assert float(taught["distance"].detach()) > 0.1


def constant(outputs: list[float]) -> torch.nn.Module:
    """A network whose correction is the same for all images."""
    net = pose_net()
    with torch.no_grad():
        list(net.parameters())[-1].copy_(torch.tensor(outputs))
    return net.eval()


def agreement_at(subject: Subject, grid: Grid, reference: Reference) -> float:
    assert subject.masks is not None
    return overall_agreement(subject.masks, grid, POSE, reference)


@given(st.integers(0, 2**20), st.floats(0.05, 3.0), st.integers(1, 3))
@settings(max_examples=15)
def test_a_correction_never_ends_below_its_start(seed: int, sd: float, iterations: int) -> None:
    """Whatever the network gives: the start itself, or something better by the masks' measure."""
    cohort = small_cohort()
    reference, subject = adopted(cohort), cohort.validation[0]
    net = pose_net().eval()
    random = torch.Generator().manual_seed(seed)
    for parameter in list(net.parameters())[-2:]:
        torch.nn.init.normal_(parameter, std=sd, generator=random)
    config = replace(POSE, iterations=iterations)
    pose = transformer(net, reference, config)
    with torch.no_grad():
        start, grid = pose.start(subject), located(pose, subject)
        free = located(transformer(net, reference, replace(config, only_better=False)), subject)
    before, after, unguarded = (agreement_at(subject, g, reference) for g in (start, grid, free))
    assert after >= max(before, unguarded)
    assert (after == before) == torch.equal(grid.mm_from_index, start.mm_from_index)


@pytest.mark.parametrize("bias", [[1.5, 0, 0, 0, 0], [0, 0.6, 0.6, 0, 0], [0, 0, 0, 0.5, -0.5]])
def test_a_bad_correction_is_discarded_and_the_start_kept_exactly(
    cohort: Cohort, bias: list[float]
) -> None:
    """Turned by 86 degrees, shrunk by half, shifted by a quarter of the image."""
    reference, subject = adopted(cohort), cohort.validation[0]
    config = replace(POSE, flip=False)
    pose = transformer(constant(bias), reference, config)
    start = pose.start(subject)
    assert torch.equal(located(pose, subject).mm_from_index, start.mm_from_index)
    free = located(transformer(pose.net, reference, replace(config, only_better=False)), subject)
    assert agreement_at(subject, free, reference) < agreement_at(subject, start, reference) - 0.05


@pytest.mark.parametrize("angle_deg", [-10.0, 8.0])
def test_a_good_correction_is_kept_as_the_network_gives_it(
    cohort: Cohort, angle_deg: float
) -> None:
    """The moments are told wrongly; the network turns back by as much, once."""
    reference = adopted(cohort)
    subject = turned(cohort.validation[1], angle_deg, 1.0, (0.0, 0.0))
    net = constant([-math.radians(angle_deg), 0, 0, 0, 0])
    config = replace(POSE, iterations=1, flip=False)
    with torch.no_grad():
        kept, free = (
            located(transformer(net, reference, replace(config, only_better=only)), subject)
            for only in (True, False)
        )
    assert torch.equal(kept.mm_from_index, free.mm_from_index)
    turn = in_plane_pose(kept, transformer(net, reference).start(subject)).angle_rad
    assert float(torch.rad2deg(turn[0])) == pytest.approx(-angle_deg, abs=0.5)


def test_of_several_corrections_the_best_is_kept(cohort: Cohort) -> None:
    """The first undoes the error of the moments; the next ones turn too far."""
    reference = adopted(cohort)
    subject = turned(cohort.validation[1], 9.0, 1.0, (0.0, 0.0))
    net = constant([-math.radians(9.0), 0, 0, 0, 0])
    once, thrice = (
        located(transformer(net, reference, replace(POSE, iterations=n, flip=False)), subject)
        for n in (1, 3)
    )
    assert torch.equal(once.mm_from_index, thrice.mm_from_index)


def test_a_patient_without_a_body_keeps_its_start(cohort: Cohort) -> None:
    reference, whole = adopted(cohort), cohort.validation[0]
    assert whole.masks is not None
    empty = Volume(torch.zeros_like(whole.masks.data), whole.masks.grid)
    subject = replace(whole, masks=empty)
    pose = transformer(constant([0.5, 0, 0, 0, 0]), reference)
    grid = located(pose, subject)
    assert torch.equal(grid.mm_from_index, pose.start(subject).mm_from_index)


def test_slices_with_their_own_poses_are_not_chosen_from(cohort: Cohort) -> None:
    """Training end to end is differentiable: `only_better` is of whole patients."""
    reference, subject = adopted(cohort), cohort.validation[0]
    net, config = constant([1.5, 0, 0, 0, 0]), replace(POSE, per="slice", flip=False)
    first, second = (
        located(transformer(net, reference, replace(config, only_better=only)), subject)
        for only in (True, False)
    )
    assert torch.equal(first.mm_from_index, second.mm_from_index)
    assert not first.same_as(transformer(net, reference).start(subject))
    assert first.mm_from_index.requires_grad


def test_the_papers_presets_keep_every_correction() -> None:
    for name in ("paper-128", "paper-512"):
        assert not load(HomogenizedConfig, base=preset(name, "homogenized")).pose.only_better
    assert HomogenizedConfig().pose.only_better


def test_the_pose_of_a_volume_is_one_and_of_slices_their_own(cohort: Cohort) -> None:
    reference = adopted(cohort)
    net = pose_net(seed=3).eval()
    torch.nn.init.normal_(net.head[-1].weight, std=0.1, generator=torch.Generator().manual_seed(0))
    subject = cohort.training[0]
    for per, alike in (("volume", True), ("slice", False)):
        config = replace(POSE, per=per, only_better=False)
        grid = located(transformer(net, reference, config), subject)
        angles = in_plane_pose(grid, subject.image.grid).angle_rad
        assert bool((angles - angles[0]).abs().max() < 1e-9) == alike


def test_the_jitter_is_of_the_step_and_shared_between_processes(cohort: Cohort) -> None:
    reference = adopted(cohort)
    net = pose_net()
    config = replace(POSE, teacher=0.0)
    stage = transformer(net, reference, config).stage(cohort)
    whole = loss_of(stage)
    assert loss_of(stage) == whole
    halves = [loss_of(stage, replace(NOW, rank=r, world=2)) for r in range(2)]
    assert sum(halves) / 2 == pytest.approx(whole, abs=1e-6)
    still = replace(config, jitter_deg=0.0, jitter_scale=0.0, jitter_shift=0.0, cut=0.0)
    calm = transformer(net, reference, still).stage(cohort)
    assert loss_of(calm) < whole - 0.05


def test_a_cut_field_hides_from_the_network_and_not_from_the_loss(cohort: Cohort) -> None:
    """A network that does nothing loses nothing by it; one that looks sees something else."""
    reference = adopted(cohort)
    stages = [
        transformer(net, reference, replace(POSE, teacher=0.0, cut=cut)).stage(cohort)
        for net in [pose_net(seed=3)]
        for cut in (0.0, 1.0)
    ]
    whole, cut = (loss_of(stage) for stage in stages)
    assert whole == cut
    last = list(stages[0].net.parameters())[-2]
    torch.nn.init.normal_(last, std=1.0, generator=torch.Generator().manual_seed(0))
    whole, cut = (loss_of(stage) for stage in stages)
    assert abs(whole - cut) > 1e-3


def fine_cohort(columns: int) -> Cohort:
    """Pixels of 1 mm, masks of 2 mm; so many columns."""
    subjects = []
    for seed in range(3):
        patient = in_fine_pixels(make_ellipse_patient(seed), 4)
        scan, labels = (
            Volume(volume.data[..., :columns], volume.grid.crop((0, 0, 0), (8, 256, columns)))
            for volume in (patient.image, patient.labels)
        )
        material = replace(material_of(), pixel_mm=None)
        subjects.append(prepare(scan, material, PLAN.channels, name=str(seed), labels=labels))
    return replace(make_cohort(1, 1), training=tuple(subjects[:2]), validation=(subjects[2],))


@pytest.mark.parametrize("columns", [256, 251])
def test_a_cut_field_is_the_same_of_a_fine_image_and_its_mask_fields_masks(columns: int) -> None:
    """To a pixel of the masks; what is in the field is as it was, what is not is air and 0."""
    cohort = fine_cohort(columns)
    reference = Reference(POSE)
    reference.adopt(cohort.training[0], base_of(cohort.training[0]), POSE)
    config = replace(POSE, teacher=0.0, cut=1.0)
    batch = transformer(pose_net(), reference, config).stage(cohort).batch(NOW)
    ((rows, image),) = batch.scene.image.parts
    ((_, seen),) = batch.scene.masks.parts
    ((_, whole),) = batch.masks.parts
    assert seen.data.shape[-1] == -(-columns // 2)
    hidden = 0
    for n in range(len(rows)):
        shown = image.data[0, n] != AIR_HU
        inner = torch.zeros(seen.data.shape[2:], dtype=torch.bool)
        outer = torch.zeros_like(inner)
        boxes = [shown.any(axis).nonzero()[:, 0] / 2 for axis in (1, 0)]
        (top, left), (bottom, right) = ([int(box[end]) for box in boxes] for end in (0, -1))
        inner[top + 2 : bottom - 1, left + 2 : right - 1] = True
        outer[max(0, top - 1) : bottom + 2, max(0, left - 1) : right + 2] = True
        assert torch.equal(seen.data[:, n][:, inner], whole.data[:, n][:, inner])
        assert not bool(seen.data[:, n][:, ~outer].any())
        hidden += bool(whole.data[0, n][~outer].any())
    assert hidden > 5, "of the body"


def test_a_field_that_is_all_of_an_image_is_all_of_its_masks() -> None:
    """251 columns are 126 of the masks, of which the last reaches beyond."""
    cohort = fine_cohort(251)
    whole, left = (0, 256, 0, 251), (10, 101, 20, 120)
    found = fields_of_masks([whole, None, left], cohort, [(0, 0), (1, 3), (0, 2)])
    assert found == [(0, 128, 0, 126), None, (5, 50, 10, 60)]


CROP = CropConfig(localizer=LOCALIZER, stage=STAGE, output="half")


def test_boxes_hold_the_labels(cohort: Cohort) -> None:
    reference = adopted(cohort)
    subject = cohort.training[0]
    grid = start_of(subject, POSE, reference)
    patient = target_boxes(subject, grid, CROP, TARGET)
    assert patient.half.unique(dim=0).shape[0] == 1
    own = target_boxes(subject, grid, replace(CROP, target="slice"), TARGET)
    first, last = subject.labelled_or_all
    assert (own.half[first : last + 1] <= patient.half[0] + 1e-6).all()
    assert torch.equal(own.half[0], patient.half[0]), "without labels: the patient's"
    assert torch.equal(own.centre[0], patient.centre[0]) and bool(patient.centre[0].any())
    whole = target_boxes(subject, grid, replace(CROP, target="slice", empty="identity"), TARGET)
    assert torch.equal(whole.half[0], torch.ones(2))
    assert not bool(whole.centre[0].any())


def test_boxes_hold_the_labels_that_are_learned_alone(cohort: Cohort) -> None:
    """A labelled liver does not widen the box of networks for kidney and tumour."""
    reference = adopted(cohort)
    subject = cohort.training[0]
    grid = start_of(subject, POSE, reference)
    before = target_boxes(subject, grid, CROP, TARGET)
    assert subject.labels is not None
    data = subject.labels.data.clone()
    data[0, 3:5, 10:50, 10:50][data[0, 3:5, 10:50, 10:50] == 0] = 3
    with_liver = subject.with_labels(replace(subject.labels, data=data))
    alone = target_boxes(with_liver, grid, CROP, TARGET)
    assert torch.equal(alone.half, before.half) and torch.equal(alone.centre, before.centre)
    learned = target_boxes(with_liver, grid, CROP, Target(channels=((1,), (2,), (3,))))
    assert (learned.half > before.half).all()


def test_the_crop_is_learned_and_covers(cohort: Cohort, tmp_path: Path) -> None:
    reference = adopted(cohort)
    scenes = {
        subject.id: transformer(pose_net(), reference).scene(subject)
        for subject in (*cohort.training, *cohort.validation)
    }
    crop = CropTransformer(
        net=build(LOCALIZER, 3, CROP_OUTPUTS), config=CROP, masks=2, size=24, device=CPU.torch
    )
    stage = crop.stage(
        cohort,
        [scenes[subject.id].start for subject in cohort.training],
        [(scenes[subject.id], scenes[subject.id].start) for subject in cohort.validation],
    )
    fitted = fit(stage, Run(folder=tmp_path, device=CPU.torch))
    with torch.no_grad():
        figures = stage.validate()
    assert fitted.score > 0.85 and figures["covered"] > 0.98
    subject = cohort.validation[0]
    scene = scenes[subject.id]
    with torch.no_grad():
        grid = crop.locate(scene, scene.start)
        box = crop.boxes(scene, scene.start)
    assert grid.shape == (8, 24, 24)
    wide = float(box.half[0, 0]) * (1 + LOCALIZER.margin)
    ratio = float(grid.spacing_mm[0, 2] * 24) / float(scene.start.spacing_mm[0, 2] * 48)
    assert ratio == pytest.approx(min(1.0, wide), rel=1e-5)


CONFIG = HomogenizedConfig(
    view=VIEW,
    pose=replace(POSE, per="slice", teacher=0.0),
    crop=replace(CROP, per="slice"),
    unet=UNetConfig(size=64, features=4),
    segment=StageConfig(epochs=1, batch_size=6, steps=1),
    schedule="joint",
    joint=StageConfig(epochs=1, batch_size=6, steps=1),
)


def built(cohort: Cohort, config: HomogenizedConfig = CONFIG, seed: int = 0) -> Homogenized:
    """With networks in evaluation mode."""
    method = Homogenized.build(config, cohort.target, cohort.plan, seed=seed, device=CPU)
    for net in method.parts.values():
        net.eval()
    return method


def test_stages_and_steps_follow_the_settings(cohort: Cohort) -> None:
    assert method_named("homogenized") is METHODS["homogenized"] is Homogenized
    method = built(cohort)
    assert set(method.parts) == {"reference", "pose", "crop", "segment"}
    stages = list(method.stages(cohort))
    assert [stage.name for stage in stages] == ["pose", "crop", "segment", "joint"]
    steps = method.steps(cohort.validation[0])
    assert [step.name for step in steps] == ["pose", "crop", "segment"]
    assert [step.segment is None for step in steps] == [True, True, False]
    assert steps[-1].target == cohort.target
    bare = built(cohort, replace(CONFIG, crop=None, schedule="sequential"))
    assert bare.crop is None and set(bare.parts) == {"reference", "pose", "segment"}
    assert [stage.name for stage in bare.stages(cohort)] == ["pose", "segment"]
    assert [step.name for step in bare.steps(cohort.validation[0])] == ["pose", "segment"]
    own = bare.facts["reference"]
    assert own["case"] in {s.id for s in cohort.training}
    assert own["case"] == bare.reference.case
    assert own["radii_mm"] == bare.reference.radii_mm.tolist() and own["field_mm"] > 0


def test_training_patients_are_reported_without_segmenting(cohort: Cohort) -> None:
    """What the model file says of its training range takes the locating steps alone."""
    method = built(cohort, replace(CONFIG, crop=None, schedule="sequential"))
    next(method.stages(cohort))
    figures = []
    for subject in cohort.training:
        with torch.no_grad():
            progress = advance(subject.image, method.steps(subject)[:-1])
            placed = method.report(subject, progress)
        assert progress.found == ()
        (region,) = progress.steps["pose"]
        expected = overlap(subject, region.grid, CONFIG.pose, method.reference).tolist()
        assert list(placed.overlap["after"].values()) == pytest.approx(expected, abs=1e-5)
        figures.append(placed.figures)
    ranges = training_range(figures)
    assert ranges["overlap"]["n"] == ranges["angle_deg"]["n"] == len(cohort.training)


def test_the_steps_lead_where_the_transformers_say(cohort: Cohort) -> None:
    """One chain: what the networks are trained on is what they see at inference."""
    method = built(cohort, replace(CONFIG, schedule="sequential"))
    pose, crop, segment = method.stages(cohort)
    subject = cohort.validation[0]
    progress = advance(subject.image, method.steps(subject))
    assert method.crop is not None
    scene = method.pose.scene(subject)
    where = method.pose.locate(scene)
    assert progress.steps["pose"][0].grid.same_as(where, 1e-9)
    cropped = method.crop.locate(scene, where)
    assert progress.steps["crop"][0].grid.same_as(cropped, 1e-9)
    assert progress.steps["segment"][0].grid.same_as(cropped, 1e-9)
    assert cropped.shape == (8, 24, 24)
    for stage, step in ((crop, "pose"), (segment, "crop")):
        batch = stage.batch(NOW)
        grid = batch.scene.start if step == "pose" else batch.grid
        for row, (case, k) in enumerate(draw(cohort.index, NOW, stage.config.batch_size)):
            trained = cohort.training[case]
            assert batch.names[row] == f"{trained.id} slice {k + 1}"
            own = advance(trained.image, method.steps(trained)).steps[step][0].grid
            assert grid.slices(row, row + 1).same_as(own.slices(k, k + 1), 1e-9)
    assert pose.net is method.parts["pose"]


def test_trained_together_the_segmentation_moves_pose_and_crop(cohort: Cohort) -> None:
    method = Homogenized.build(CONFIG, cohort.target, cohort.plan, device=CPU)
    *_, joint = method.stages(cohort)
    joint.net.train()
    losses_of(joint)["loss"].backward()
    for name in ("pose", "crop", "segment"):
        last = list(method.parts[name].parameters())[-1]
        assert last.grad is not None and float(last.grad.abs().sum()) > 0, name


def chained(joint: Stage, step: TrainStep) -> Grid:
    """Where the networks look in a joint batch."""
    batch = joint.batch(step).to(torch.device("cpu"))
    with torch.no_grad():
        _, grid = joint.net(batch.scene)
    return grid


@pytest.mark.parametrize("mirrored", [True, False])
def test_trained_together_they_look_where_they_will_at_inference(
    cohort: Cohort, mirrored: bool
) -> None:
    """In mirror images too, if they are to, and to the same precision: it is one chain."""
    method = built(cohort, replace(CONFIG, pose=replace(CONFIG.pose, flip=mirrored)), seed=3)
    for name in ("pose", "crop"):
        last = list(method.parts[name].parameters())[-2]
        torch.nn.init.normal_(last, std=1.0, generator=torch.Generator().manual_seed(0))
    *_, joint = method.stages(cohort)
    grid = chained(joint, NOW)
    assert grid.mm_from_index.dtype == torch.float64
    moved = []
    for row, (case, k) in enumerate(draw(cohort.index, NOW, CONFIG.joint.batch_size)):
        subject = cohort.training[case]
        own = advance(subject.image, method.steps(subject)).steps["crop"][0].grid
        assert grid.slices(row, row + 1).same_as(own.slices(k, k + 1), 1e-3)
        moved.append(in_plane_pose(own, method.pose.start(subject)).shift_mm[k].abs().max())
    assert max(moved) > 1.0, "the networks do something"


def test_a_mirror_image_in_a_joint_batch_has_the_mirrored_pose(cohort: Cohort) -> None:
    """Where `flip` is set, with any weights; where it is not, the network sees one side."""
    angles = {}
    for mirrored in (True, False):
        config = replace(CONFIG, crop=None, pose=replace(CONFIG.pose, flip=mirrored))
        method = built(cohort, config, seed=3)
        last = list(method.parts["pose"].parameters())[-2]
        torch.nn.init.normal_(last, std=1.0, generator=torch.Generator().manual_seed(0))
        *_, joint = method.stages(cohort)
        scene = joint.batch(NOW).scene
        aslant = torch.full((scene.start.shape[0],), 0.25)
        scene = replace(scene, start=posed(scene.start, angle_rad=aslant))
        flipped = Scene(
            image=flipped_slices(scene.image),
            masks=flipped_slices(scene.masks),
            start=mirror_of(scene.start),
            scalings=scene.scalings,
        )
        turns = []
        for one in (scene, flipped):
            with torch.no_grad():
                _, grid = joint.net(one)
            turns.append(in_plane_pose(grid, one.start).angle_rad)
        assert float(turns[0].abs().max()) > 0.01
        angles[mirrored] = float((turns[0] + turns[1]).abs().max())
    assert angles[True] < 2e-3 < 5e-3 < angles[False]


def flipped_slices(image: Slices | Volume) -> Slices:
    """Each slice in a mirror, on the grid that it was on; grids are centred left to right."""
    assert isinstance(image, Slices)
    return Slices(
        parts=tuple((rows, Volume(part.data.flip(-1), part.grid)) for rows, part in image.parts)
    )


def mirror_of(grid: Grid) -> Grid:
    """The grid as in a mirror at x = 0, its columns running the same way."""
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    back = torch.eye(4, dtype=torch.float64)
    back[2, 2], back[2, 3] = -1.0, grid.shape[2] - 1.0
    return Grid(grid.shape, mirror @ grid.mm_from_index @ back)


def test_losses_on_the_original_and_on_the_networks_grid_agree_without_a_pose(
    cohort: Cohort,
) -> None:
    """Where the pose is the identity, the way back is none."""
    config = replace(
        CONFIG, crop=None, schedule="sequential", pose=replace(CONFIG.pose, start="identity")
    )
    values = []
    for space in ("original", "network"):
        _, segment = built(cohort, replace(config, loss_space=space)).stages(cohort)
        values.append(loss_of(segment))
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "joint", "pose": POSE}, "per 'slice'"),
        ({"supervision": "paper", "loss_space": "network"}, "loss_space"),
        ({"augment": "nnunet", "loss_space": "network"}, "does not support augment"),
        ({"reach": 1}, "requires reach 0"),
        ({"crop": replace(CROP, output="quarter")}, "a multiple of 8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **changes)


AFTERWARDS = replace(CONFIG, crop=None, schedule="sequential")


@pytest.mark.parametrize("augment", ["nnunet", "style"])
def test_the_inverse_warp_undoes_the_augmentation(cohort: Cohort, augment: str) -> None:
    """What is right on the augmented grid is right on the original one."""
    if augment == "nnunet":
        pytest.importorskip("batchgeneratorsv2", reason="nnU-Net's augmentation is an extra")
    config = replace(AFTERWARDS, augment=augment, segment=replace(CONFIG.segment, batch_size=12))
    method = built(cohort, config)
    _, segment = method.stages(cohort)
    batch = segment.batch(NOW)
    drawn = draw(cohort.index, NOW, 12)
    assert batch.names == cohort.names(drawn)
    bases = drawn_grid([base.slicewise() for base in bases_of(cohort)], drawn)
    assert torch.equal(batch.reference.labels.grid.mm_from_index, bases.mm_from_index)
    straight = drawn_grid([method._grid(subject, "pose") for subject in cohort.training], drawn)
    changed = (batch.grid.mm_from_index - straight.mm_from_index).abs().flatten(1).amax(1) > 1e-6
    assert int(changed.sum()) >= 3
    seen = drawn_labels(cohort.training, drawn, batch.grid).labels.data[0].long()
    logits = 20.0 * F.one_hot(seen, 3).movedim(-1, 1).float()

    def loss(grid: Grid) -> float:
        moved = replace(batch, grid=grid)
        return float(segment.loss(lambda _: [logits], moved)["loss"])  # type: ignore[arg-type]

    # What lies outside the augmented image is lost, at full price; most of it is inside.
    assert loss(batch.grid) < 0.6 < loss(straight)


def test_the_papers_supervision_reaches_the_loss(cohort: Cohort) -> None:
    """With the levels' weights not normalised, and coarse levels on the complete grid."""
    values = []
    for kind in ("paper", "normalised"):
        config = replace(
            AFTERWARDS, supervision=kind, unet=UNetConfig(size=64, features=4, supervised_to=16)
        )
        _, segment = built(cohort, config).stages(cohort)
        segment.net.train()
        values.append(loss_of(segment))
    assert values[0] / values[1] == pytest.approx(1.75, rel=0.15)


@pytest.mark.parametrize("supervision", ["paper", "normalised"])
def test_the_u_net_may_be_that_of_the_plan(cohort: Cohort, supervision: str) -> None:
    unet = UNetConfig(architecture="plan", features=4, max_features=8)
    method = built(cohort, replace(AFTERWARDS, supervision=supervision, unet=unet))
    assert isinstance(method.parts["segment"], PlannedUNet)
    _, segment = method.stages(cohort)
    segment.net.train()
    losses_of(segment)["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is not None for weight in segment.net.parameters())


@pytest.mark.parametrize("space", ["original", "network"])
def test_the_dice_of_the_loss_is_over_the_batch_or_each_slice(cohort: Cohort, space: str) -> None:
    values = []
    for over in ("batch", "sample"):
        config = replace(AFTERWARDS, loss_space=space, dice_over=over)
        _, segment = built(cohort, config).stages(cohort)
        values.append(loss_of(segment))
    assert values[0] != pytest.approx(values[1], abs=1e-4)


def test_the_scale_of_the_loss_is_a_factor(cohort: Cohort) -> None:
    reference = adopted(cohort)
    values = []
    for scale in (1.0, 100.0):
        config = replace(POSE, teacher=0.0, loss_scale=scale)
        stage = transformer(pose_net(config), reference, config).stage(cohort)
        values.append(loss_of(stage))
    assert values[1] == pytest.approx(100 * values[0], rel=1e-6)


# ---- ages, and scans without labels ------------------------------------------------------------


def aged(cohort: Cohort, ages: Sequence[float | None]) -> list[Subject]:
    pairs = zip(cohort.training, ages, strict=True)
    return [replace(subject, age_years=age) for subject, age in pairs]


def test_the_medoid_is_of_the_middle_of_the_ages(cohort: Cohort) -> None:
    """Of five, the three in the middle; the two at the ends are not chosen, though most alike."""
    bases = bases_of(cohort)
    best = medoid(cohort.training, bases)
    others = [n for n in range(5) if n != best]
    chosen = medoid(cohort.training, bases, among=others)
    for own in (0.0, 16.0):
        ages = [own if n == best else 4.0 + n for n in range(5)]
        found = choose_reference(aged(cohort, ages), bases, None)
        middle = sorted(range(5), key=ages.__getitem__)[1:-1]
        assert found in middle and found == medoid(cohort.training, bases, among=middle)
        assert chosen in others
    assert choose_reference(aged(cohort, [2.0] * 5), bases, None) == best
    three = [3.0 if n in others[:3] else None for n in range(5)]
    chosen = medoid(cohort.training, bases, among=others[:3])
    assert choose_reference(aged(cohort, three), bases, None) == chosen


def test_few_known_ages_do_not_choose_the_reference(cohort: Cohort) -> None:
    """One or two of five patients, whatever their age, would be it for being known."""
    bases = bases_of(cohort)
    best = medoid(cohort.training, bases)
    others = [n for n in range(5) if n != best]
    for known in (others[:1], others[:2], []):
        ages = [0.0 if n in known else None for n in range(5)]
        assert choose_reference(aged(cohort, ages), bases, None) == best


def without_labels(subject: Subject, name: str) -> Subject:
    none = np.zeros((0, 256), dtype=np.int64)
    return replace(subject, id=name, labels=None, ignore=None, counts=none)


def test_scans_without_labels_join_the_pose_and_nothing_else(cohort: Cohort) -> None:
    extra = without_labels(cohort.validation[0], "extra")
    joined = replace(cohort, unlabelled=(extra,))
    config = replace(CONFIG, pose=replace(POSE, per="slice"), schedule="sequential")
    for joins in (True, False):
        own = replace(config, pose=replace(config.pose, unlabelled=joins))
        stages = list(built(joined, own).stages(joined))
        for stage in stages:
            steps = (TrainStep(seed=0, epoch=0, step=k) for k in range(6))
            names = {name.split()[0] for step in steps for name in stage.batch(step).names}
            assert ("extra" in names) == (joins and stage.name == "pose")
        assert math.isfinite(loss_of(stages[0]))


def test_without_labels_slices_meet_where_they_agree_best(cohort: Cohort) -> None:
    """The reference itself, without its labels, meets its own levels or ones that look alike."""
    reference = adopted(cohort)
    subject = next(s for s in cohort.training if s.id == reference.case)
    start = start_of(subject, POSE, reference)
    known = matched_levels(subject, start, POSE, reference)
    assert known == [reference.level(subject, k) for k in range(subject.slices)]
    found = matched_levels(without_labels(subject, "it"), start, POSE, reference)
    masks = masks_on(subject, start.resized((start.shape[0], 32, 32)))
    at = [soft_dice(masks, reference.targets(levels)).mean() for levels in (found, known)]
    assert float(at[0]) >= float(at[1]) - 1e-3


def test_masks_of_a_turned_grid_turn() -> None:
    """A check of direction: on a grid turned with the body, the body stands upright."""
    subject = make_cohort(1, 0).training[0]
    assert subject.body is not None
    grid = posed(base_of(subject), angle_rad=subject.body.whole.angle_rad)
    still = masks_on(subject, grid)[:, :1]
    first, last = subject.labelled_or_all
    upright = soft_dice(still[first:last], still[first:last].flip(-1))
    assert float(upright.mean()) > 0.97
