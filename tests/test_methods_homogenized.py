"""System A: the reference, the pose, the crop, and what the U-Net then sees."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from cohorts import PLAN, VIEW, make_cohort
from ellipses import make_ellipse_patient
from kidseg.body import Moments
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Subject, masks_at
from kidseg.config import (
    CropConfig,
    HomogenizedConfig,
    LocalizerConfig,
    OptimizerConfig,
    PoseConfig,
    StageConfig,
    UNetConfig,
)
from kidseg.device import choose_device
from kidseg.errors import UsageError
from kidseg.geometry import in_plane_pose, posed
from kidseg.losses import soft_dice
from kidseg.methods import method_named
from kidseg.methods.homogenized.crop_stage import boxes, crop_stage, cropped, found_boxes
from kidseg.methods.homogenized.pose_stage import (
    located,
    overlap,
    pose_inputs,
    pose_stage,
    registered,
)
from kidseg.methods.homogenized.reference import Reference, chosen, medoid, start_grid
from kidseg.nets import build
from kidseg.nets.stn import CROP_OUTPUTS, pose_outputs
from kidseg.stage import Moment, Stage
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
NOW = Moment(seed=0, epoch=0, step=0)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return make_cohort()


def loss_of(stage: Stage, net: torch.nn.Module, now: Moment) -> float:
    return float(stage.loss(net, now)["loss"].detach())


@cache
def adopted(cohort: Cohort, config: PoseConfig = POSE) -> Reference:
    reference = Reference(config)
    reference.adopt(chosen(cohort.training, config.reference), config, VIEW)
    return reference


def test_the_medoid_is_the_one_that_is_like_the_others(cohort: Cohort) -> None:
    """Of one patient twice, and one unlike it, one of the two."""
    a, b = cohort.training[0], cohort.training[1]
    assert medoid([b, a, a]) != 0
    assert medoid([a]) == 0


def test_the_reference_may_be_named(cohort: Cohort) -> None:
    assert chosen(cohort.training, "ellipse_002").id == "ellipse_002"
    with pytest.raises(UsageError, match="ellipse_006") as error:
        chosen(cohort.training, "ellipse_006")
    assert error.value.code == "unknown-case"


@pytest.mark.parametrize("mode", ["slice", "volume"])
@pytest.mark.parametrize("start", ["identity", "moments"])
@pytest.mark.parametrize("target", ["body", "body+bone"])
def test_the_reference_overlaps_with_itself(
    cohort: Cohort, mode: str, start: str, target: str
) -> None:
    config = replace(POSE, reference_mode=mode, start=start, target=target)
    reference = adopted(cohort, config)
    subject = chosen(cohort.training, None)
    assert reference.case == subject.id
    own = overlap(subject, start_grid(subject, config, reference, 48), config, reference)
    assert own.shape == ((2,) if target == "body+bone" else (1,))
    assert (own > 0.99).all()


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
        grid = start_grid(subject, POSE, reference, 48)
        pose = in_plane_pose(grid, subject.image.grid)
        assert float(pose.angle_rad[0]) == pytest.approx(patient.angle_rad, abs=math.radians(2))
        width = float(grid.spacing_mm[0, 2]) * 48 * POSE.fill  # type: ignore[operator]
        assert width / 2 == pytest.approx(90 * patient.size, rel=0.05)
    identity = start_grid(cohort.training[0], replace(POSE, start="identity"), reference, 48)
    assert identity.same_as(cohort.training[0].base)


def test_a_fresh_network_changes_nothing(cohort: Cohort) -> None:
    reference = adopted(cohort)
    net = build(LOCALIZER, pose_inputs(POSE), pose_outputs(LOCALIZER)).eval()
    subject = cohort.training[1]
    grid = located(net, POSE, reference, subject, PLAN, 48)
    assert grid.same_as(start_grid(subject, POSE, reference, 48), 1e-6)


def turned(subject: Subject, angle_deg: float, size: float) -> Subject:
    """The same scan, whose moments are told wrongly: what the network has to put right."""
    own = subject.body
    told = Moments(
        own.centre_mm + torch.tensor([6.0, -4.0]),
        own.angle_rad + math.radians(angle_deg),
        own.radii_mm * size,
    )
    return replace(subject, body=told)


def test_the_pose_is_learned_and_undoes_what_it_never_saw(cohort: Cohort, tmp_path: Path) -> None:
    """Validated on a patient whose moments are wrong; tried on another with other errors."""
    reference = adopted(cohort)
    config = replace(POSE, cut=0.0, stage=replace(STAGE, epochs=12, batch_size=24))
    net = build(LOCALIZER, pose_inputs(POSE), pose_outputs(LOCALIZER))
    first, second = cohort.validation
    wrong = (turned(first, -8.0, 0.9), turned(first, 10.0, 1.12))
    stage = pose_stage(net, config, replace(cohort, validation=wrong), reference, 48)
    fitted = fit(stage, Run(folder=tmp_path, device=CPU.torch))
    assert fitted.score > stage.validate()["start"] + 0.03
    right = start_grid(second, POSE, reference, 48)
    for angle_deg, size in ((10.0, 1.1), (-8.0, 0.92)):
        other = turned(second, angle_deg, size)
        start = start_grid(other, POSE, reference, 48)
        before = overlap(other, start, POSE, reference)
        grid = located(net, POSE, reference, other, PLAN, 48)
        after = overlap(other, grid, POSE, reference)
        assert float(after[0]) > float(before[0]) + 0.005
        off = in_plane_pose(grid, right)
        assert float(torch.rad2deg(off.angle_rad.abs())[0]) < 4.0
        assert float(off.scale.mean()) == pytest.approx(1.0, abs=0.06)


def test_registration_undoes_a_wrong_start(cohort: Cohort) -> None:
    """By the masks alone it finds back to within a degree of where the moments lead."""
    reference = adopted(cohort)
    subject = cohort.training[1]
    wrong = start_grid(turned(subject, 9.0, 0.9), POSE, reference, 48)
    right = start_grid(subject, POSE, reference, 48)
    (found,) = registered([subject], [wrong], POSE, reference)
    off = in_plane_pose(found, right)
    assert float(torch.rad2deg(off.angle_rad.abs()).max()) < 1.5
    assert float((off.scale - 1).abs().max()) < 0.03
    assert float(off.shift_mm.abs().max()) < 3.0
    alone = replace(POSE, teacher=0.0)
    net = build(LOCALIZER, pose_inputs(POSE), pose_outputs(LOCALIZER))
    losses = pose_stage(net, alone, cohort, reference, 48).loss(net, NOW)
    assert set(losses) == {"loss"}
    taught = pose_stage(net, POSE, cohort, reference, 48).loss(net, NOW)
    assert float(taught["overlap_loss"].detach()) == float(losses["loss"].detach())
    assert float(taught["distance"].detach()) > 0.1


def test_the_pose_of_a_volume_is_one_and_of_slices_their_own(cohort: Cohort) -> None:
    reference = adopted(cohort)
    net = build(LOCALIZER, pose_inputs(POSE), pose_outputs(LOCALIZER), seed=3)
    torch.nn.init.normal_(net.head[-1].weight, std=0.1, generator=torch.Generator().manual_seed(0))
    subject = cohort.training[0]
    for per, alike in (("volume", True), ("slice", False)):
        grid = located(net.eval(), replace(POSE, per=per), reference, subject, PLAN, 48)
        angles = in_plane_pose(grid, subject.image.grid).angle_rad
        assert bool((angles - angles[0]).abs().max() < 1e-9) == alike


def test_the_jitter_is_of_the_moment_and_shared_between_processes(cohort: Cohort) -> None:
    reference = adopted(cohort)
    net = build(LOCALIZER, pose_inputs(POSE), pose_outputs(LOCALIZER))
    config = replace(POSE, teacher=0.0)
    stage = pose_stage(net, config, cohort, reference, 48)
    whole = loss_of(stage, net, NOW)
    assert loss_of(stage, net, NOW) == whole
    halves = [loss_of(stage, net, replace(NOW, rank=r, world=2)) for r in range(2)]
    assert sum(halves) / 2 == pytest.approx(whole, abs=1e-6)
    still = replace(config, jitter_deg=0.0, jitter_scale=0.0, jitter_shift=0.0, cut=0.0)
    calm = pose_stage(net, still, cohort, reference, 48)
    assert loss_of(calm, net, NOW) < whole - 0.05


def test_a_cut_field_hides_from_the_network_and_not_from_the_loss(cohort: Cohort) -> None:
    """A network that does nothing loses nothing by it; one that looks sees something else."""
    reference = adopted(cohort)
    stages = [
        pose_stage(net, replace(POSE, teacher=0.0, cut=cut), cohort, reference, 48)
        for net in [build(LOCALIZER, pose_inputs(POSE), pose_outputs(LOCALIZER), seed=3)]
        for cut in (0.0, 1.0)
    ]
    whole, cut = (loss_of(stage, stage.net, NOW) for stage in stages)
    assert whole == cut
    last = list(stages[0].net.parameters())[-2]
    torch.nn.init.normal_(last, std=1.0, generator=torch.Generator().manual_seed(0))
    whole, cut = (loss_of(stage, stage.net, NOW) for stage in stages)
    assert abs(whole - cut) > 1e-3


CROP = CropConfig(localizer=LOCALIZER, stage=STAGE, output="half")


def test_boxes_hold_the_labels(cohort: Cohort) -> None:
    reference = adopted(cohort)
    subject = cohort.training[0]
    grid = start_grid(subject, POSE, reference, 48)
    patient = boxes(subject, grid, CROP)
    assert patient.half.unique(dim=0).shape[0] == 1
    own = boxes(subject, grid, replace(CROP, target="slice"))
    first, last = subject.labelled_or_all
    assert (own.half[first : last + 1] <= patient.half[0] + 1e-6).all()
    assert torch.equal(own.half[0], patient.half[0]), "without labels: the patient's"
    whole = boxes(subject, grid, replace(CROP, target="slice", empty="identity"))
    assert torch.equal(whole.half[0], torch.ones(2))


def test_the_crop_is_learned_and_covers(cohort: Cohort, tmp_path: Path) -> None:
    reference = adopted(cohort)
    grids = {
        subject.id: start_grid(subject, POSE, reference, 48)
        for subject in (*cohort.training, *cohort.validation)
    }
    net = build(LOCALIZER, 3, CROP_OUTPUTS)
    stage = crop_stage(
        net,
        CROP,
        cohort,
        [grids[subject.id] for subject in cohort.training],
        [grids[subject.id] for subject in cohort.validation],
        2,
    )
    fitted = fit(stage, Run(folder=tmp_path, device=CPU.torch))
    figures = stage.validate()
    assert fitted.score > 0.85 and figures["covered"] > 0.98
    subject = cohort.validation[0]
    grid = cropped(net, CROP, subject, grids[subject.id], PLAN, 2, 24)
    assert grid.shape == (8, 24, 24)
    box = found_boxes(net, CROP, subject, grids[subject.id], PLAN, 2)
    wide = float(box.half[0, 0]) * (1 + LOCALIZER.margin)
    ratio = float(grid.spacing_mm[0, 2] * 24) / float(grids[subject.id].spacing_mm[0, 2] * 48)
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


def test_stages_and_steps_follow_the_settings(cohort: Cohort) -> None:
    method = method_named("homogenized")
    nets = method.networks(CONFIG, 3, 0)
    for net in nets.values():
        net.eval()
    stages = list(method.stages(CONFIG, nets, cohort, CPU))
    assert [stage.name for stage in stages] == ["pose", "crop", "segment", "joint"]
    steps = method.steps(CONFIG, nets, PLAN, cohort.validation[0], CPU)
    assert [step.name for step in steps] == ["pose", "crop", "segment"]
    bare = replace(CONFIG, crop=None, schedule="sequential")
    nets = method.networks(bare, 3, 0)
    assert [stage.name for stage in method.stages(bare, nets, cohort, CPU)] == ["pose", "segment"]
    facts = method.facts(bare, nets, cohort)
    assert facts["reference"]["case"] in {s.id for s in cohort.training}
    assert facts["training_range"]["overlap"]["n"] == len(cohort.training)


def test_trained_together_the_segmentation_moves_pose_and_crop(cohort: Cohort) -> None:
    method = method_named("homogenized")
    nets = method.networks(CONFIG, 3, 0)
    *_, joint = method.stages(CONFIG, nets, cohort, CPU)
    joint.net.train()
    joint.loss(joint.net, NOW)["loss"].backward()
    for name in ("pose", "crop", "segment"):
        last = list(nets[name].parameters())[-1]
        assert last.grad is not None and float(last.grad.abs().sum()) > 0, name


def test_losses_on_the_original_and_on_the_networks_grid_agree_without_a_pose(
    cohort: Cohort,
) -> None:
    """Where the pose is the identity, the way back is none."""
    config = replace(
        CONFIG, crop=None, schedule="sequential", pose=replace(CONFIG.pose, start="identity")
    )
    method = method_named("homogenized")
    values = []
    for space in ("original", "network"):
        chosen_config = replace(config, loss_space=space)
        nets = method.networks(chosen_config, 3, 0)
        for net in nets.values():
            net.eval()
        _, segment = method.stages(chosen_config, nets, cohort, CPU)
        values.append(loss_of(segment, segment.net, NOW))
    assert values[0] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "joint", "pose": POSE}, "per 'slice'"),
        ({"augment": "nnunet"}, "loss_space"),
        ({"augment": "nnunet", "loss_space": "network"}, "does not augment"),
        ({"crop": replace(CROP, output="quarter")}, "multiples of 8"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **changes)


def test_masks_of_a_turned_grid_turn() -> None:
    """A check of direction: on a grid turned with the body, the body stands upright."""
    subject = make_cohort(1, 0).training[0]
    own = subject.body
    grid = posed(subject.base, angle_rad=own.angle_rad)
    still = masks_at(subject, grid).data[:1]
    mirrored = still.flip(-1)
    first, last = subject.labelled_or_all
    upright = soft_dice(
        still[:, first:last].transpose(0, 1), mirrored[:, first:last].transpose(0, 1)
    )
    assert float(upright.mean()) > 0.97
