"""The multi-stage method: what it finds in any number of kidneys, how it is trained, from files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anatomies import ANATOMIES, rendered
from anatomies import GRID as VOXELS
from cohorts import PLAN, TARGET, VIEW, make_cohort
from ellipses import write_ellipse_dataset
from kidseg.checkpoint import read_header
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import prepare
from kidseg.complete import complete
from kidseg.config import (
    CohortConfig,
    MultistageConfig,
    PlainConfig,
    PostprocessConfig,
    UNetConfig,
    load,
)
from kidseg.device import choose_device
from kidseg.errors import InputError, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.labels import KIDNEY_TUMOUR, KIDNEY_TUMOUR_CYST, LabelSchema, Target
from kidseg.losses import soft_dice
from kidseg.methods import METHODS, method_named
from kidseg.methods.multistage.system_b import Multistage, label_weights
from kidseg.methods.plain import Plain
from kidseg.methods.segmentation import validated_steps
from kidseg.pipeline import Region, advance, restore
from kidseg.segment import load_predictor, segment
from kidseg.segment.predictor import Predictor, Segmentation
from kidseg.stage import Stage, TrainStep
from kidseg.train import Setup, make_store, train
from weights import weights_of

CPU = choose_device("cpu", "fp32")
NOW = TrainStep(seed=0, epoch=0, step=0)
NETS = ("coarse", "resunet", "resnet")
STEPS = ("coarse", "kidneys", "resunet", "resnet", "ensemble")
SMALL = tuple(
    f"{net}.{setting}"
    for net in NETS
    for setting in (
        "net.levels=2",
        "net.features=2",
        "net.max_features=4",
        "stage.epochs=1",
        "stage.steps=1",
        "stage.batch_size=6",
    )
)
CONFIG = load(
    MultistageConfig,
    overrides=[*SMALL, "slice_mm=5", "coarse_size=32", "box=16", "resnet.net.blocks=1"],
)

# Slices, rows and columns; the patient's right side is at the first columns.
Box = tuple[slice, slice, slice]
RIGHT: Box = (slice(2, 9), slice(16, 26), slice(8, 20))
LEFT: Box = (slice(3, 10), slice(16, 26), slice(44, 56))
BRIDGE: Box = (slice(5, 7), slice(18, 22), slice(20, 44))
TUMOUR: Box = (slice(5, 8), slice(10, 20), slice(46, 54))
OTHER: Box = (slice(4, 6), slice(22, 30), slice(6, 12))
SPECK: Box = (slice(6, 7), slice(36, 38), slice(30, 32))
KINDS: dict[str, tuple[tuple[Box, int], ...]] = {
    "two": ((RIGHT, 1), (LEFT, 1), (TUMOUR, 2)),
    "healthy": ((RIGHT, 1), (LEFT, 1)),
    "single": ((LEFT, 1), (TUMOUR, 2)),
    "horseshoe": ((RIGHT, 1), (LEFT, 1), (BRIDGE, 1)),
    "fused by a tumour": ((RIGHT, 1), (LEFT, 1), (BRIDGE, 2)),
    "tumours on both sides": ((RIGHT, 1), (LEFT, 1), (TUMOUR, 2), (OTHER, 2)),
    "absent": (),
}
REGIONS = {
    "two": ["right", "left"],
    "healthy": ["right", "left"],
    "single": ["left"],
    "horseshoe": ["both sides"],
    "fused by a tumour": ["both sides"],
    "tumours on both sides": ["right", "left"],
    "absent": [],
}
GRID = Grid.from_spacing((12, 48, 64), (5.0, 4.0, 4.0))


def patient(*boxes: tuple[Box, int]) -> tuple[Volume, Volume]:
    """A body of 30 HU with kidneys of 180 and tumours of 90: image and labels."""
    hu = torch.full((1, *GRID.shape), -1000, dtype=torch.int16)
    labels = torch.zeros((1, *GRID.shape), dtype=torch.uint8)
    hu[:, :, 4:44, 4:60] = 30
    for box, label in boxes:
        labels[0][box], hu[0][box] = label, {0: 180, 1: 180, 2: 90, 3: 225}[label]
    return Volume(hu, GRID), Volume(labels, GRID)


def cohort_of(training: list[str], validation: list[str], **settings: Any) -> Cohort:
    subjects = []
    for name in (*training, *validation):
        image, labels = patient(*KINDS[name])
        material = Multistage.material(CONFIG, PLAN)
        subjects.append(prepare(image, material, PLAN.channels, name=name, labels=labels))
    return Cohort(
        training=tuple(subjects[: len(training)]),
        validation=tuple(subjects[len(training) :]),
        schema=KIDNEY_TUMOUR,
        target=TARGET,
        plan=PLAN,
        config=CohortConfig(),
        **settings,
    )


class Oracle(nn.Module):
    """Tells tissues of the middle slice apart by their intensity, as a perfect network would."""

    multiple = (4, 4)

    def __init__(self, gain: float = 1.0, values: tuple[float, ...] = (40.0, 180.0, 90.0)) -> None:
        super().__init__()
        self.gain, self.values = nn.Parameter(torch.tensor(gain)), values
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> list[Tensor]:
        self.seen.append(tuple(image.shape))
        hu = image[:, image.shape[1] // 2, None] * 50 + 130
        away = [(hu - value).abs() for value in self.values]
        return [-torch.cat(away, dim=1) * self.gain]


class Constant(nn.Module):
    """The same probabilities everywhere."""

    multiple = (4, 4)

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, image: Tensor) -> list[Tensor]:
        shape = (len(image), 1, *image.shape[2:])
        return [self.logits.reshape(1, -1, 1, 1).expand(shape[0], -1, *shape[2:])]


class Sloped(nn.Module):
    """Surer of kidney the further to the last column."""

    multiple = (4, 4)

    def forward(self, image: Tensor) -> list[Tensor]:
        along = torch.arange(image.shape[-1]).float().expand(len(image), 1, *image.shape[2:])
        return [torch.cat([0 * along, along / 10, -along], dim=1)]


def method_of(config: MultistageConfig = CONFIG, **nets: nn.Module) -> Multistage:
    parts = {name: nets.get(name, Oracle()).eval() for name in ("coarse", *config.ensemble)}
    return Multistage(config, TARGET, PLAN, parts, CPU)


def segmented(method: Multistage, image: Volume) -> Segmentation:
    predictor = Predictor(method=method, schema=KIDNEY_TUMOUR, sha256="", path=Path("model"))
    return predictor(image)


# What is found


@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_kidneys_is_found_and_said(kind: str) -> None:
    """By perfect networks without an error; also in a scan of other slices."""
    image, labels = patient(*KINDS[kind])
    result = segmented(method_of(), image)
    assert torch.equal(result.labels.data, labels.data)
    steps = result.progress.steps
    assert tuple(steps) == STEPS
    for name in ("resunet", "resnet", "ensemble"):
        assert [region.name for region in steps[name]] == REGIONS[kind]
    said = result.facts["notes"]["kidneys"]
    assert [region["name"] for region in said["regions"]] == REGIONS[kind]
    assert all(name in said["text"] for name in REGIONS[kind])
    codes = {finding.code for finding in result.findings}
    assert ("no-kidney-region" in codes) == ("nothing-found" in codes) == (kind == "absent")


def test_the_two_networks_are_two_opinions() -> None:
    """One finds both kidneys and their tumours, the other nothing; half of 1 and 0 is no label."""
    image, labels = patient(*KINDS["two"])
    result = segmented(method_of(resnet=Constant(0.98, 0.01, 0.01)), image)
    review = result.review
    assert len(review.rows) == 2 and not any(review.rows[0])
    whole = float((labels.data > 0).sum()) * float(labels.grid.voxel_ml)
    assert review.opinions_ml("kidney+tumour") == pytest.approx([0.0, whole], rel=0.05)
    assert result.facts["review"]["interval"] == "doubt"
    alike = segmented(method_of(), image).facts["review"]
    assert alike["opinions"] == 1 and alike["interval"] is None


FOUND = {
    "two": {"right", "left"},
    "bilateral": {"right", "left"},
    "one": {"right"},
    "fused": {"right"},
    "horseshoe": {"both sides"},
    "fused by a tumour": {"both sides"},
    "absent": set(),
}


def coarsely(**nets: nn.Module) -> Multistage:
    """For voxels of 12 x 8 x 8 mm, as which the coarse network must still see an isthmus."""
    return method_of(replace(CONFIG, slice_mm=12.0, reduction=1), **nets)


@pytest.mark.parametrize("kind", ANATOMIES)
def test_digital_patients_of_every_anatomy_are_found_and_said(kind: str) -> None:
    """By perfect networks: what the coarse network sees of it, in a region per kidney."""
    hu, labels = rendered(kind)
    seen = torch.tensor([30, 180, 90], dtype=torch.int16)[labels.int()]
    seen[(hu < -300) & (labels == 0)] = -1000
    result = segmented(coarsely(), Volume(seen[None], VOXELS))
    regions = result.facts["notes"]["kidneys"]["regions"]
    assert {region["name"] for region in regions} == FOUND[kind]
    assert float(soft_dice((result.labels.data > 0)[None], (labels > 0)[None, None])) > 0.9
    assert result.facts["notes"]["kidneys"]["text"] and set(result.facts["grids"]) == set(STEPS)


@pytest.mark.parametrize("seed", [0, 1])
def test_networks_that_know_nothing_never_fail(seed: int) -> None:
    """Random weights; the result tells what ran."""
    hu, _ = rendered("horseshoe")
    config = replace(CONFIG, slice_mm=12.0)
    method = Multistage.build(config, TARGET, PLAN, seed=seed, device=CPU)
    for net in method.parts.values():
        net.eval()
    result = segmented(method, Volume(hu[None], VOXELS))
    assert list(result.facts["notes"]) == ["kidneys", "resunet", "resnet"]
    assert all(note["text"] for note in result.facts["notes"].values())
    codes = {finding.code for finding in result.findings}
    for note in result.progress.notes.values():
        assert {finding.code for finding in note.findings} <= codes


def test_grids_of_the_stages() -> None:
    """Slices of 5 mm; pixels of 8 mm, then of 4 mm around each kidney, from its first slice on."""
    nets = {name: Oracle() for name in NETS}
    progress = advance(patient(*KINDS["two"])[0], method_of(**nets).steps(subject_of("two")))
    (coarse,) = progress.steps["coarse"]
    assert coarse.grid.shape == (12, 24, 32) and coarse.grid.spacing_mm.tolist() == [5.0, 8.0, 8.0]
    right, left = progress.steps["ensemble"]
    assert right.grid.shape == (7, 16, 16) and left.grid.shape == (7, 16, 16)
    assert left.grid.spacing_mm.tolist() == [5.0, 4.0, 4.0]
    assert GRID.index(left.grid.mm((0, 0, 0))).round().tolist() == [3.0, 10.0, 42.0]
    assert {shape[1:] for shape in nets["coarse"].seen} == {(5, 24, 32)}, "five slices"
    assert {shape[1:] for shape in nets["resnet"].seen} == {(5, 16, 16)}


def subject_of(kind: str) -> Any:
    return cohort_of([kind], []).training[0]


def test_neighbours_come_from_the_scan_beyond_a_region_and_repeat_at_its_ends() -> None:
    """At 3 mm, the two slices above the last one are the last one."""
    subject = subject_of("two")
    method = method_of(replace(CONFIG, slice_mm=3.0))
    grid = method._full(subject)
    assert grid.shape == (20, 48, 64)
    view = method._view(subject)
    whole = view.image(subject.image, grid)
    for k in (0, 1, 10, 18, 19):
        rows = [min(max(k + offset, 0), 19) for offset in range(-2, 3)]
        torch.testing.assert_close(whole[k], whole[rows, 2], atol=1e-5, rtol=0)
        alone = view.image(subject.image, grid.slices(k, k + 1))[0]
        torch.testing.assert_close(alone, whole[k], atol=1e-5, rtol=0)


def test_the_slices_that_repeat_are_those_of_the_resampled_scan() -> None:
    """At 10 mm, where the scan's own first and last slice lie further out, and differ."""
    subject = subject_of("two")
    noise = torch.from_numpy(np.random.default_rng(0).integers(40, 230, subject.image.data.shape))
    subject = replace(subject, image=Volume(noise.to(torch.int16), GRID))
    method = method_of(replace(CONFIG, slice_mm=10.0))
    grid = method._full(subject)
    whole = method._view(subject).image(subject.image, grid)
    for k in range(grid.shape[0]):
        rows = [min(max(k + offset, 0), grid.shape[0] - 1) for offset in range(-2, 3)]
        torch.testing.assert_close(whole[k], whole[rows, 2], atol=1e-5, rtol=0)


def test_small_components_of_stage_1_are_dropped_and_said() -> None:
    """A speck of 0.64 ml on its grid; the threshold is in ml of an adult, or in voxels."""
    image, _ = patient(*KINDS["single"], (SPECK, 0))
    for kidneys, dropped in (
        (PostprocessConfig(min_volume_ml=0.0), 0),
        (PostprocessConfig(min_voxels=1), 0),
        (PostprocessConfig(min_voxels=2), 1),
    ):
        config = replace(CONFIG, kidneys=kidneys, postprocess=PostprocessConfig(min_volume_ml=0.0))
        result = segmented(method_of(config), image)
        said = result.facts["notes"]["kidneys"]
        assert said["dropped"]["count"] == dropped
        assert ("dropped" in said["text"]) == bool(dropped)
        assert len(said["regions"]) == 2 - dropped
        assert bool(result.labels.data[0][SPECK].any()) == (not dropped)


def test_where_all_components_are_small_nothing_is_found_and_the_reason_is_said() -> None:
    image, _ = patient(*KINDS["single"])
    config = replace(CONFIG, kidneys=PostprocessConfig(min_voxels=100_000))
    result = segmented(method_of(config), image)
    assert not result.labels.data.any()
    (finding,) = (each for each in result.findings if each.code == "no-kidney-region")
    assert "its largest component" in finding.cause and "kidneys.min_volume_ml" in finding.next_step
    assert result.facts["notes"]["kidneys"]["dropped"]["count"] == 1


def test_small_components_of_stage_2_are_dropped_and_said() -> None:
    """A speck beside the kidney, within its region; by the one network that sees it."""
    beside: Box = (slice(6, 7), slice(26, 27), slice(54, 55))
    image, _ = patient(((slice(3, 10), slice(16, 24), slice(44, 52)), 1), (beside, 0))
    for voxels, count in ((1, 0), (2, 1)):
        config = replace(CONFIG, postprocess=PostprocessConfig(min_voxels=voxels))
        result = segmented(method_of(config, resnet=Constant(0.5, 0.3, 0.2)), image)
        said = result.facts["notes"]["resunet"]
        assert said["dropped"]["count"] == count and ("dropped" in said["text"]) == bool(count)
        assert result.facts["notes"]["resnet"]["dropped"]["count"] == 0
        (found,) = (region.found for region in result.progress.steps["resunet"])
        assert found is not None
        there = found.grid.index(GRID.mm((6, 26, 54))).round().int().tolist()
        assert (float(found.data[0, *there]) == 1.0) == bool(count)
        assert bool(result.labels.data[0][beside].any()) == (not count)


def test_the_ensemble_is_the_mean_probability() -> None:
    """0.2, 0.5, 0.3 and 0.4, 0.1, 0.5 are 0.3, 0.3, 0.4: tumour, where the first says kidney."""
    nets = {"resunet": Constant(0.2, 0.5, 0.3), "resnet": Constant(0.4, 0.1, 0.5)}
    subject = subject_of("single")
    method = method_of(**nets)
    (region,) = advance(subject.image, method.steps(subject)).found
    assert region.found is not None
    expected = torch.tensor([0.3, 0.3, 0.4])[:, None, None, None]
    torch.testing.assert_close(region.found.data, expected.expand_as(region.found.data))
    alone = method_of(replace(CONFIG, ensemble=("resunet",)), **nets)
    (region,) = advance(subject.image, alone.steps(subject)).found
    assert region.found is not None
    assert float(region.found.data[1].min()) == pytest.approx(0.5)


@pytest.mark.parametrize("flip", [False, True])
def test_every_network_sees_the_mirror_image_if_told(flip: bool) -> None:
    """A slope and its mirror image are the same on both sides."""
    nets = {name: Sloped() for name in NETS}
    config = replace(CONFIG, test_time_flip=flip, kidneys=PostprocessConfig(min_volume_ml=0.0))
    subject = subject_of("two")
    steps = advance(subject.image, method_of(config, **nets).steps(subject)).steps
    for name in ("coarse", "resunet", "resnet"):
        for region in steps[name]:
            assert region.found is not None
            data = region.found.data
            assert torch.allclose(data, data.flip(-1), atol=1e-6) == flip


def test_a_calibrated_decision_is_that_of_the_result_alone() -> None:
    """Weights that make all of a region tumour leave the regions as they are."""
    subject = subject_of("two")
    plain = method_of(**{name: Oracle(0.02) for name in NETS})
    sure = replace(TARGET, weights=(1e-9, 1.0, 1e3))
    calibrated = Multistage(CONFIG, sure, PLAN, plain.parts, CPU)
    one, other = (advance(subject.image, each.steps(subject)) for each in (plain, calibrated))
    for name in STEPS:
        for first, second in zip(one.steps[name], other.steps[name], strict=True):
            assert first.grid.same_as(second.grid)
            assert first.found is not None and second.found is not None
            assert torch.equal(first.found.data, second.found.data)
    assert other.found[0].target == sure and other.steps["resnet"][0].target == TARGET
    labels = restore(other.found, GRID, sure).data
    assert int((labels == 2).sum()) > int((restore(one.found, GRID, TARGET).data == 2).sum())


def test_a_calibrated_decision_does_not_change_where_the_networks_look() -> None:
    """Its weights, here for less background, were chosen with these regions, and for the result."""
    method = method_of(coarse=Constant(0.6, 0.3, 0.1), resunet=Constant(0.5, 0.3, 0.2))
    target = replace(TARGET, weights=(0.1, 1.0, 1.0))
    calibrated = Multistage(CONFIG, target, PLAN, method.parts, CPU)
    subject = subject_of("two")
    for each in (method, calibrated):
        progress = advance(subject.image, each.steps(subject))
        assert not progress.steps["resunet"] and not progress.steps["ensemble"]
    oracle = Oracle()
    grids = []
    for each in (method, calibrated):
        parts = {**each.parts, "coarse": oracle.eval()}
        own = Multistage(CONFIG, each.target, PLAN, parts, CPU)
        progress = advance(subject.image, own.steps(subject))
        grids.append([region.grid for region in progress.steps["resunet"]])
        assert progress.notes["resunet"].facts["dropped"]["count"] == 0
        assert progress.found[0].target == each.target, "the result is decided with them"
    assert all(a.same_as(b) for a, b in zip(*grids, strict=True)) and len(grids[0]) == 2


def test_a_method_of_one_step_has_no_figures_but_those_of_its_training() -> None:
    cohort = make_cohort(1, 1)
    config = PlainConfig(view=VIEW, unet=UNetConfig(size=64, features=2))
    assert validated_steps(Plain.build(config, TARGET, PLAN, device=CPU), cohort) == {}


# Training


def stages_of(method: Multistage, cohort: Cohort) -> dict[str, Stage]:
    return {stage.name: stage for stage in method.stages(cohort)}


@torch.no_grad()
def test_stages_are_scored_by_what_stage_1_finds() -> None:
    cohort = cohort_of(["two"], ["two", "single"])
    stages = stages_of(method_of(), cohort)
    assert list(stages) == list(NETS)
    for stage in stages.values():
        assert stage.validate()["dice_kidney+tumour"] > 0.99
    blind = stages_of(method_of(coarse=Constant(0.9, 0.05, 0.05)), cohort)
    assert blind["resnet"].validate()["score"] == 0.0


def test_three_networks_share_the_time_of_a_run() -> None:
    """CONFIG gives no network a budget of its own: a third, half of the rest, the rest."""
    shares = [stage.share for stage in stages_of(method_of(), cohort_of(["two"], ["two"])).values()]
    assert shares == pytest.approx([1 / 3, 1 / 2, 1.0])


@torch.no_grad()
def test_figures_of_every_stage_and_network_and_of_the_ensemble() -> None:
    """As in the paper's table 2: mean and SD over the validation cases after each step."""
    cohort = cohort_of(["two"], ["two", "single", "healthy"])
    method = method_of(resunet=Constant(0.2, 0.5, 0.3))
    figures = validated_steps(method, cohort)
    assert list(figures) == ["coarse", "kidneys", "resunet", "resnet", "ensemble"]
    assert figures["resnet"]["tumour"] == {"mean": 1.0, "sd": 0.0, "n": 2}
    assert figures["resnet"]["kidney+tumour"]["n"] == 3
    assert figures["resunet"]["kidney+tumour"]["mean"] < 0.9, "it says kidney everywhere"
    assert figures["resunet"]["tumour"]["mean"] == 0
    assert figures["ensemble"]["kidney+tumour"]["mean"] > 0.99, "the other is surer"
    assert figures["coarse"] == figures["kidneys"], "nothing was dropped"


def places_of(stage: Stage) -> list[tuple[int, ...]]:
    return [place.grid.shape for place in stage.batch.places]  # type: ignore[attr-defined]


def test_regions_of_training_by_truth_or_as_predicted() -> None:
    """Where stage 1 finds nothing, those of the labels; slices without kidney are left out."""
    cohort = cohort_of(["two", "horseshoe"], ["two"])
    truth = [(7, 16, 16), (7, 16, 16), (8, 16, 48)]
    blind, cut = Constant(0.9, 0.05, 0.05), Oracle()
    stage = stages_of(method_of(coarse=blind), cohort)["resunet"]
    assert places_of(stage) == truth
    predicted = replace(CONFIG, regions="predicted")
    for net in (blind, cut):
        assert places_of(stages_of(method_of(predicted, coarse=net), cohort)["resunet"]) == truth
    everything = stages_of(method_of(predicted, coarse=Constant(0.1, 0.8, 0.1)), cohort)["resunet"]
    assert places_of(everything) == [(12, 48, 64)] * 2
    index = everything.batch.index  # type: ignore[attr-defined]
    assert index.every[index.every[:, 0] == 0, 1].tolist() == [*range(2, 10)]
    coarse = stages_of(method_of(), cohort)["coarse"]
    assert places_of(coarse) == [(12, 32, 32)] * 2


@torch.no_grad()
def test_cases_without_kidneys_are_no_failure() -> None:
    """Neither in training, of whose places they have none in stage 2, nor in validation."""
    cohort = cohort_of(["absent", "two"], ["absent", "two"])
    for settings in (CONFIG, replace(CONFIG, regions="predicted")):
        stages = stages_of(method_of(settings), cohort)
        assert places_of(stages["resunet"]) == [(7, 16, 16)] * 2
        for stage in stages.values():
            assert bool(stage.loss(stage.net, stage.batch(NOW))["loss"].isfinite())
            assert stage.validate()["score"] > 0.99
    healthy = cohort_of(["healthy"], ["healthy"])
    for stage in stages_of(method_of(), healthy).values():
        assert not (stage.batch(NOW).labels == 2).any(), "other slices take the tumours' share"


def test_without_a_kidney_in_training_it_is_refused_before_stage_1_trains() -> None:
    """As where the labels of all training cases are those of other organs."""
    with pytest.raises(InputError, match="no training case shows kidney or tumour") as error:
        next(iter(method_of().stages(cohort_of(["absent"], ["two"]))))
    assert error.value.code == "no-kidney-shown"


def test_each_network_has_its_own_weights_and_augmentation() -> None:
    """Table 1's rows differ; ln 3 for every pixel, times the weight of its label."""
    unsure = {name: Constant(1 / 3, 1 / 3, 1 / 3) for name in NETS}
    unsure["coarse"] = Oracle()  # which finds the regions
    weights = {"coarse": (1.0, 2.0, 3.0), "resunet": (4.0, 5.0, 6.0), "resnet": (7.0, 8.0, 9.0)}
    settings = [f"{name}.weights={list(each)}" for name, each in weights.items()]
    settings += [f"{name}.augmentation.cropped_share=0.{k}" for k, name in enumerate(NETS)]
    config = load(
        MultistageConfig, overrides=[*SMALL, "slice_mm=5", "coarse_size=32", "box=16", *settings]
    )
    stages = stages_of(method_of(config, **unsure), cohort_of(["two"], ["two"]))
    for k, (name, stage) in enumerate(stages.items()):
        batch = stage.batch(NOW)
        assert stage.batch.augmentation.cropped_share == pytest.approx(k / 10)  # type: ignore[attr-defined]
        if name == "coarse":
            continue
        shares = [float((batch.labels == label).double().mean()) for label in range(3)]
        by_hand = sum(w * share for w, share in zip(weights[name], shares, strict=True))
        loss = float(stage.loss(stage.net, batch)["loss"].detach())
        assert loss == pytest.approx(math.log(3) * by_hand, rel=1e-4), name


def test_the_loss_by_hand() -> None:
    """Probabilities 0.5, 0.25, 0.25: ln 2 for background, 2 ln 2 for each other pixel."""
    config = load(MultistageConfig, overrides=[*SMALL, "slice_mm=5", "coarse_size=32", "box=16"])
    stage = stages_of(
        method_of(config, coarse=Constant(0.5, 0.25, 0.25)), cohort_of(["two"], ["two"])
    )["coarse"]
    batch = stage.batch(NOW)
    shares = [float((batch.labels == k).double().mean()) for k in range(3)]
    ln2 = torch.tensor(2.0).log()
    expected = ln2 * (0.3 * shares[0] + 1.0 * 2 * shares[1] + 3.0 * 2 * shares[2])
    loss = stage.loss(stage.net, batch)["loss"]
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert batch.image.shape == (6, 5, 32, 32) and loss.requires_grad


def test_weights_by_label() -> None:
    """A label that is not learned is background."""
    target = Target.of_labels(KIDNEY_TUMOUR_CYST)
    weights = label_weights(KIDNEY_TUMOUR_CYST, target, CONFIG.resnet)
    assert weights[:4].tolist() == pytest.approx([0.2, 0.25, 0.55, 0.25])
    learned = label_weights(WITH_LIVER, Target.of_labels(WITH_LIVER), CONFIG.resnet)
    assert learned[:4].tolist() == pytest.approx([0.2, 0.25, 0.55, 0.25])
    alone = label_weights(WITH_LIVER, Target.two(WITH_LIVER), CONFIG.resnet)
    assert alone[:4].tolist() == pytest.approx([0.2, 0.25, 0.55, 0.2])


# Other organs


WITH_LIVER = LabelSchema.from_names({1: "kidney", 2: "tumour", 3: "liver"})
# Touches the right kidney, reaches beyond the midline, and higher than both kidneys.
LIVER: Box = (slice(6, 12), slice(6, 16), slice(8, 40))
ORGANS = ((RIGHT, 1), (LEFT, 1), (TUMOUR, 2), (LIVER, 3))


def with_liver(target: Target, config: MultistageConfig = CONFIG) -> tuple[Multistage, Cohort]:
    """Perfect networks, and a cohort of one patient."""
    values = (40.0, 180.0, 90.0, 225.0)[: target.outputs]
    parts = {name: Oracle(values=values).eval() for name in NETS}
    image, labels = patient(*ORGANS)
    material = Multistage.material(config, PLAN)
    subject = prepare(image, material, PLAN.channels, name="liver", labels=labels)
    subject = replace(subject, renal=WITH_LIVER.ids_of("kidney", "tumour", "cyst"))
    cohort = replace(
        cohort_of(["two"], ["two"]),
        training=(subject,),
        validation=(subject,),
        schema=WITH_LIVER,
        target=target,
    )
    return Multistage(config, target, PLAN, parts, CPU), cohort


def test_regions_are_those_of_kidneys_whatever_other_organs_are_labelled() -> None:
    """A liver that touches a kidney is not one with it; it is found around the kidneys alone."""
    method, _ = with_liver(Target.of_labels(WITH_LIVER))
    image, labels = patient(*ORGANS)
    predictor = Predictor(method=method, schema=WITH_LIVER, sha256="", path=Path("model"))
    result = predictor(image)
    regions = result.facts["notes"]["kidneys"]["regions"]
    assert [(each["name"], each["shape"]) for each in regions] == [
        ("right", [7, 16, 16]),
        ("left", [7, 16, 16]),
    ]
    renal = labels.data.masked_fill(labels.data == 3, 0)
    assert torch.equal(result.labels.data.masked_fill(result.labels.data == 3, 0), renal)
    found, true = (int((data == 3).sum()) for data in (result.labels.data, labels.data))
    assert 0 < found < true


@pytest.mark.parametrize("as_it_is", [True, False])
def test_other_organs_do_not_take_the_place_of_kidneys_in_training(as_it_is: bool) -> None:
    """Neither in the regions, by truth or as predicted, nor in the shares of a batch."""
    target = Target.of_labels(WITH_LIVER) if as_it_is else Target.two(WITH_LIVER)
    for regions in ("truth", "predicted") if as_it_is else ("truth",):
        method, cohort = with_liver(target, replace(CONFIG, regions=regions))
        stages = stages_of(method, cohort)
        assert places_of(stages["resunet"]) == [(7, 16, 16)] * 2
        background, kidney, tumour, _ = stages["coarse"].batch.index.groups  # type: ignore[attr-defined]
        assert background.tolist() == [0, 1, 10, 11], "the liver's slices among them"
        assert kidney.tolist() == [2, 3, 4, 8, 9] and tumour.tolist() == [5, 6, 7]


def test_a_small_false_kidney_at_a_liver_is_dropped() -> None:
    """Components are those of kidneys, so that a liver does not save a speck that touches it."""
    speck: Box = (slice(9, 10), slice(8, 10), slice(38, 40))
    config = replace(CONFIG, kidneys=PostprocessConfig(min_voxels=2))
    method, _ = with_liver(Target.of_labels(WITH_LIVER), config)
    image, _ = patient(*ORGANS, (speck, 1))
    predictor = Predictor(method=method, schema=WITH_LIVER, sha256="", path=Path("model"))
    said = predictor(image).facts["notes"]["kidneys"]
    assert said["dropped"]["count"] == 1
    assert [each["name"] for each in said["regions"]] == ["right", "left"]


def test_cysts_as_hard_negatives_need_a_label() -> None:
    config = replace(CONFIG, hard_negatives=0.2)
    cohort = cohort_of(["two"], ["two"])
    with pytest.raises(UsageError, match="no label for them") as error:
        stages_of(method_of(config), cohort)
    assert error.value.code == "no-cyst-label"
    with_cysts = replace(cohort, schema=KIDNEY_TUMOUR_CYST)
    shares = stages_of(method_of(config), with_cysts)["coarse"].batch.index.shares  # type: ignore[attr-defined]
    assert shares == pytest.approx((1 / 3, 1 / 3 - 0.2, 1 / 3, 0.2))


def test_regions_that_overlap_are_learned_each_on_its_own() -> None:
    """A region-based target: two outputs without background."""
    target = Target(channels=((1, 2), (2,)), exclusive=False)
    method = Multistage.build(CONFIG, target, PLAN, device=CPU)
    cohort = replace(cohort_of(["two"], ["two"]), target=target)
    for stage in method.stages(cohort):
        assert float(stage.loss(stage.net, stage.batch(NOW))["loss"].detach()) > 0
        stage.net.eval()
        with torch.no_grad():
            assert 0 <= stage.validate()["score"] <= 1


def test_a_method_is_bound_to_fresh_networks() -> None:
    """Each with weights of its own, also where two have the same architecture."""
    first, same, other = (
        Multistage.build(CONFIG, TARGET, PLAN, seed=seed, device=CPU) for seed in (0, 0, 1)
    )
    assert method_named("multistage") is METHODS["multistage"] is Multistage
    assert set(first.parts) == set(NETS)
    for name in NETS:
        kernels = [m.parts[name].heads[0].weight for m in (first, same, other)]  # type: ignore[union-attr,index]
        assert torch.equal(kernels[0], kernels[1]) and not torch.equal(kernels[0], kernels[2])
    coarse, resunet = (first.parts[name].heads[0].weight for name in NETS[:2])  # type: ignore[union-attr,index]
    assert not torch.equal(coarse, resunet)
    assert first.material(CONFIG, PLAN).pixel_mm is None
    assert set(
        Multistage.build(replace(CONFIG, ensemble=("resnet",)), TARGET, PLAN, device=CPU).parts
    ) == {
        "coarse",
        "resnet",
    }


# From files

TINY = (
    *SMALL,
    *(f"{net}.stage.epochs=2" for net in NETS),
    "resnet.net.blocks=1",
    "slice_mm=null",
    "coarse_size=32",
    "box=32",
    "precision=fp32",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("multistage") / "data"
    write_ellipse_dataset(root, 3)
    return root


def trained(data: Path, out: Path, **setup: Any) -> dict[str, Any]:
    asked = Setup(method="multistage", overrides=TINY, validation=["ellipse_002"], **setup)
    return train(data, out, asked, device="cpu")


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run") / "run"
    return out, trained(data, out)


def test_a_run_tells_the_figures_of_every_step(run: tuple[Path, dict[str, Any]]) -> None:
    out, summary = run
    assert set(summary["stages"]) == set(NETS)
    assert list(summary["steps"]) == ["coarse", "kidneys", "resunet", "resnet", "ensemble"]
    assert set(summary["steps"]["ensemble"]) == {"kidney", "kidney+tumour", "tumour"}
    dice = summary["validation"]["resunet"]["dice"]["kidney"]
    assert summary["steps"]["resunet"]["kidney"]["mean"] == pytest.approx(dice)
    assert json.loads((out / "summary.json").read_text())["steps"] == summary["steps"]
    header = read_header(out / "model.safetensors")
    assert header["selection"]["steps"] == summary["steps"]
    assert header["plan"]["channels"][0]["clip"] == [-30.0, 300.0]


@pytest.mark.ci
def test_stopped_and_resumed_it_ends_with_the_same_bits(
    data: Path, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Within the last stage, whose regions and dropout are those of before."""

    class Stop(Exception):
        pass

    def stop(what: str, done: int, *_: Any) -> None:
        if (what, done) == ("resnet", 1):
            raise Stop

    setup = Setup(method="multistage", overrides=TINY, validation=["ellipse_002"])
    with pytest.raises(Stop):
        train(data, tmp_path / "broken", setup, device="cpu", progress=stop)
    train(data, tmp_path / "broken", setup, device="cpu", resume=True)
    whole, broken = (weights_of(out / "model.safetensors") for out in (run[0], tmp_path / "broken"))
    assert whole == broken


@pytest.mark.ci
def test_a_store_gives_the_same_bits(
    data: Path, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    setup = Setup(method="plain", validation=["ellipse_002"])
    make_store(data, tmp_path / "store", setup, full=True)
    trained(tmp_path / "store", tmp_path / "run")
    assert weights_of(tmp_path / "run" / "model.safetensors") == weights_of(
        run[0] / "model.safetensors"
    )


def test_a_model_segments_scans_and_can_be_fine_tuned(
    data: Path, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    model = run[0] / "model.safetensors"
    scan = data / "imagesTr" / "ellipse_002_0000.nii.gz"
    (result,) = segment([scan], model, tmp_path / "out", device="cpu")
    assert {"coarse", "kidneys", "ensemble"} <= set(result["grids"])
    assert result["notes"]["kidneys"]["text"]
    scaling = load_predictor(model, "cpu").method.plan.channels[0].clip
    assert scaling == (-30.0, 300.0)
    tuned = trained(data, tmp_path / "tuned", start=model, tune="decoder")
    assert set(tuned["stages"]) == set(NETS) and tuned["start"]["fresh"] == ()
    one = trained(data, tmp_path / "one", start=model, tune="resnet.heads.*")
    assert set(one["stages"]) == {"resnet"}


def test_drawn_slices_do_not_train_it(
    data: Path, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Its regions are those of the kidneys that it finds itself."""
    scan = data / "imagesTr" / "ellipse_000_0000.nii.gz"
    drawn = data / "labelsTr" / "ellipse_000.nii.gz"
    for dry_run in (True, False):
        with pytest.raises(UsageError, match="'multistage' segments each kidney") as error:
            complete(scan, drawn, tmp_path / "out", model=run[0], dry_run=dry_run)
        assert error.value.code == "not-trainable"


# Settings


@pytest.mark.parametrize(
    ("setting", "cause"),
    [
        ("ensemble=[]", "at least one network"),
        ('ensemble=["resnet","resnet"]', "each once"),
        ("box=250", "box must be a multiple of 16, not 250"),
        ("coarse_size=40", "coarse_size must be a multiple of 16"),
        ("coarse.weights=[0,0,0]", "not all 0"),
        ("resnet.weights=[1,-1,1]", "must not be negative"),
        ("hard_negatives=0.5", "hard_negatives"),
        ("cohort.clip_hu=[300,-30]", "minimum first"),
        ("cohort.target=tumour", "stage 1 finds kidneys"),
    ],
)
def test_settings_that_do_not_fit_are_refused(setting: str, cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        load(MultistageConfig, overrides=[setting])


def test_regions_are_named_once() -> None:
    """As many regions as kidneys in every step, so that places never average with each other."""
    subject = subject_of("two")
    regions: tuple[Region, ...] = advance(subject.image, method_of().steps(subject)).found
    assert sorted(region.name for region in regions) == ["left", "right"]
