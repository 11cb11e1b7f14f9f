"""The method of imported models: its grids, its batches, and networks that are averaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cohorts import TARGET, VOLUMES, make_cohort
from ellipses import make_ellipse_patient
from kidseg.cohort.cohort import Cohort, patient_dice
from kidseg.cohort.subject import Subject, prepare
from kidseg.config import METHODS, BodyConfig, NnUnetConfig, ResizingConfig, StageConfig, load
from kidseg.device import choose_device
from kidseg.errors import UsageError
from kidseg.geometry import Volume, in_plane_pose
from kidseg.io.orientation import axes_of
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.methods import METHODS as CLASSES
from kidseg.methods import method_named
from kidseg.methods.nnunet_networks import NnUnet
from kidseg.pipeline import advance, restore
from kidseg.plan import Configuration, Plan
from kidseg.stage import TrainStep
from nnunet_folders import FLAT, THICK

CPU = choose_device("cpu", "fp32")
TRAINING = StageConfig(epochs=1, batch_size=3, steps=1)
IN_2D = Configuration(
    spacing_mm=(4.0, 4.0),
    median_shape=(64.0, 64.0),
    patch_size=(24, 28),
    batch_size=2,
    topology=FLAT,
)
IN_3D = replace(
    IN_2D,
    spacing_mm=(10.0, 4.0, 4.0),
    median_shape=(8.0, 64.0, 64.0),
    patch_size=(4, 24, 28),
    topology=THICK,
)
PLAN = replace(VOLUMES, configurations={"2d": IN_2D, "3d": IN_3D})


class Tissues(nn.Module):
    """Tells background, kidney and tumour of the ellipses by their intensity alone."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> list[Tensor]:
        self.seen.append(tuple(image.shape))
        hu = image * 50 + 130
        away = [(hu - near).abs() for near in (30.0, 180.0, 90.0)]
        away[0] = torch.minimum(away[0], (hu - 40).abs())
        away[0] = torch.minimum(away[0], (hu - 230).abs())
        return [-torch.cat(away, dim=1) * self.gain]


def config_of(**settings: Any) -> NnUnetConfig:
    return NnUnetConfig(**{"augment": "none", "segment": TRAINING, **settings})


def method_of(config: NnUnetConfig, *nets: nn.Module, plan: Plan = PLAN) -> NnUnet:
    parts = {f"segment{k or ''}": net.eval() for k, net in enumerate(nets)}
    return NnUnet(config, TARGET, plan, parts, CPU)


def subject_of(seed: int = 0) -> Subject:
    patient = make_ellipse_patient(seed)
    material = NnUnet.material(config_of(), PLAN)
    return prepare(patient.image, material, PLAN.channels, name="a", labels=patient.labels)


def labels_of(method: NnUnet, subject: Subject) -> Volume:
    found = advance(subject.image, method.steps(subject)).found
    return restore(found, subject.image.grid, TARGET)


def cohort_of() -> Cohort:
    return replace(make_cohort(2, 1), plan=PLAN)


def test_it_is_a_method_by_name() -> None:
    assert method_named("nnunet") is CLASSES["nnunet"] is NnUnet
    assert METHODS["nnunet"] is NnUnetConfig and NnUnet.material(config_of(), PLAN).pixel_mm is None


def test_the_network_sees_fractions_of_hu() -> None:
    """As nnU-Net's do, which also crop by them; where values are averaged they are rounded."""
    image = make_ellipse_patient(0).image
    image = Volume(image.data.float() + 0.3, image.grid)
    for way, whole in ((ResizingConfig(), False), (None, True)):
        material = NnUnet.material(config_of(resizing=way), PLAN)
        found = prepare(image, material, PLAN.channels, name="a").image.data
        assert found.is_floating_point() != whole
        assert whole or torch.equal(found, image.data)


@pytest.mark.parametrize("configuration", ["2d", "3d"])
@pytest.mark.parametrize("axes", ["SPL", "SAR", "SRA", "IPL"])
def test_a_perfect_network_is_perfect_in_any_order_of_axes(configuration: str, axes: str) -> None:
    subject, net = subject_of(), Tissues()
    method = method_of(config_of(configuration=configuration, axes=axes), net)
    found = labels_of(method, subject)
    assert subject.labels is not None and found.grid is subject.image.grid
    dice = patient_dice(found, subject.labels, KIDNEY_TUMOUR)
    assert all(value is not None and value > 0.9 for value in dice.values()), dice
    window = PLAN.configurations[configuration].patch_size
    assert {shape[2:] for shape in net.seen} == {window}
    assert axes_of(method._grid(subject)) == axes


@pytest.mark.parametrize("configuration", ["2d", "3d"])
def test_both_ways_of_interpolation_are_none_on_the_networks_voxels(configuration: str) -> None:
    subject = subject_of()
    ways = [
        labels_of(
            method_of(config_of(configuration=configuration, resizing=way), Tissues()), subject
        )
        for way in (ResizingConfig(), None)
    ]
    assert torch.equal(ways[0].data, ways[1].data) and len(ways[0].data.unique()) == 3


def test_a_scan_is_interpolated_once_on_request() -> None:
    coarse = replace(IN_3D, spacing_mm=(10.0, 5.0, 5.0))
    plan = replace(PLAN, configurations={"3d": coarse})
    subject = subject_of()
    turned = {"configuration": "3d", "axes": "SRA"}
    once = method_of(config_of(**turned, resizing=None), Tissues(), plan=plan)
    assert axes_of(subject.image.grid) == "SPL"
    (region,) = advance(subject.image, once.steps(subject)).found
    assert region.grid.shape == (8, 51, 51) and axes_of(region.grid) == "SPL"
    twice = method_of(config_of(**turned), Tissues(), plan=plan)
    (region,) = advance(subject.image, twice.steps(subject)).found
    assert region.grid.shape == subject.image.grid.shape
    for method in (once, twice):
        assert subject.labels is not None
        dice = patient_dice(labels_of(method, subject), subject.labels, KIDNEY_TUMOUR)
        assert all(value is not None and value > 0.75 for value in dice.values()), dice


@pytest.mark.parametrize(("configuration", "axes"), [("2d", "SPL"), ("3d", "SPL"), ("3d", "SRA")])
def test_bodies_are_brought_to_a_size_and_pose(configuration: str, axes: str) -> None:
    """An enlarged body has smaller voxels; a perfect network stays perfect on the scan's own."""
    patient = make_ellipse_patient(3, sizes=(0.75, 0.8))
    body = BodyConfig(min_radius_mm=80.0, upright=True)
    config = config_of(configuration=configuration, axes=axes, body=body)
    material = NnUnet.material(config, PLAN)
    assert material.pixel_mm == pytest.approx(4.0 * 50 / 80)  # of a newborn's body
    subject = prepare(patient.image, material, PLAN.channels, name="a", labels=patient.labels)
    method = method_of(config, Tissues())
    (region,) = advance(subject.image, method.steps(subject)).found
    assert subject.body is not None and subject.body.radius_mm < 65
    factor = subject.body.radius_mm / 80.0
    slice_mm = 10.0 if configuration == "2d" else 10.0 * factor
    expected = [slice_mm, 4.0 * factor, 4.0 * factor]
    assert region.grid.spacing_mm.tolist() == pytest.approx(expected, rel=0.05)
    pose = in_plane_pose(region.grid, subject.image.grid)
    assert float(pose.angle_rad) == pytest.approx(patient.angle_rad, abs=0.05)
    figures = method.report(subject, advance(subject.image, method.steps(subject))).figures
    assert figures["scale_x"] == pytest.approx(factor, rel=0.05)
    assert subject.labels is not None
    dice = patient_dice(labels_of(method, subject), subject.labels, KIDNEY_TUMOUR)
    assert all(value is not None and value > 0.8 for value in dice.values()), dice
    (stage,) = method.stages(replace(cohort_of(), training=(subject,), validation=(subject,)))
    batch = stage.batch(TrainStep(seed=0, epoch=0, step=0))
    assert batch.image.shape[2:] == PLAN.configurations[configuration].patch_size


def test_only_the_nonzero_voxels_are_seen() -> None:
    subject = subject_of()
    image = subject.image.data.clone()
    image[:, :2], image[:, :, :20], image[..., -7:] = 0, 0, 0
    cut = replace(subject, image=Volume(image, subject.image.grid))
    (region,) = advance(cut.image, method_of(config_of(), Tissues()).steps(cut)).found
    assert region.grid.shape == (6, 44, 57)


def test_merged_networks_are_averaged_by_their_logits() -> None:
    subject, config = subject_of(), config_of()
    sure, unsure = Tissues(2.0), Tissues(-0.5)
    merged = method_of(config, sure).merged([method_of(config, unsure)])
    assert merged is not None and list(merged.parts) == ["segment", "segment1"]
    expected = labels_of(method_of(config, Tissues(0.75)), subject)
    same = (labels_of(merged, subject).data == expected.data).double().mean()
    assert same > 0.999  # but for near-ties
    assert method_of(config, sure).merged([method_of(config_of(axes="IPL"), unsure)]) is None
    other = replace(PLAN, configurations={"2d": replace(IN_2D, patch_size=(32, 32))})
    assert method_of(config, sure).merged([method_of(config, unsure, plan=other)]) is None
    trained_longer = config_of(segment=training_of(epochs=9))
    assert method_of(config, sure).merged([method_of(trained_longer, unsure)]) is not None


def training_of(**changes: Any) -> StageConfig:
    return StageConfig(**{"epochs": 1, "batch_size": 3, "steps": 1, **changes})


@pytest.mark.parametrize(("name", "size"), [("2d", (24, 28)), ("3d", (4, 24, 28))])
@pytest.mark.parametrize("augment", ["none", "nnunet"])
def test_batches_are_patches_of_the_networks_dimensions(
    name: str, size: tuple[int, ...], augment: Any
) -> None:
    cohort = cohort_of()
    config = config_of(configuration=name, augment=augment, axes="SAR")
    (stage,) = method_of(config, Tissues(0.2)).stages(cohort)
    step = TrainStep(seed=1, epoch=0, step=0)
    batch, again = stage.batch(step), stage.batch(step)
    assert batch.image.shape == (3, 1, *size) and batch.labels.shape == (3, *size)
    assert torch.equal(batch.image, again.image) and torch.equal(batch.labels, again.labels)
    assert int((batch.labels > 0).sum()) > 0
    loss = stage.loss(stage.net, batch)["loss"]
    loss.backward()
    assert bool(loss.isfinite()) and next(stage.net.parameters()).grad is not None


def test_a_perfect_network_has_a_perfect_score() -> None:
    (stage,) = method_of(config_of(configuration="3d"), Tissues()).stages(cohort_of())
    with torch.no_grad():
        assert stage.validate()["score"] > 0.9


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for settings, code in (
        ({"configuration": "3d_lowres"}, "no-configuration"),
        ({"configuration": "2d", "mirror_axes": (0, 2)}, "bad-setting"),
    ):
        with pytest.raises(UsageError) as caught:
            method_of(config_of(**settings), Tissues())
        assert caught.value.code == code
    channel = replace(PLAN.channels[0], scheme="zscore")
    turned, mr = config_of(body=BodyConfig(upright=True)), replace(PLAN, channels=(channel,))
    with pytest.raises(UsageError, match="not CT") as caught:
        method_of(turned, Tissues(), plan=mr)
    assert caught.value.code == "body-not-ct"
    flat = replace(IN_3D, patch_size=(2, 24, 28))
    plan = replace(PLAN, configurations={"3d": flat})
    config = config_of(configuration="3d", augment="nnunet")
    with pytest.raises(UsageError, match="patches of at least 4") as caught:
        next(method_of(config, Tissues(), plan=plan).stages(cohort_of()))
    assert caught.value.code == "small-blocks"
    for wrong in ('axes="SPX"', 'axes="SSP"', "mirror_axes=[3]", "mirror_axes=[1,1]", "overlap=1"):
        with pytest.raises(UsageError):
            load(NnUnetConfig, overrides=[wrong])
