"""The three-dimensional baseline: its batches, its loss, what it sees, from files to labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cohorts import PLAN, TARGET, VOLUMES, make_cohort
from ellipses import make_ellipse_patient, write_ellipse_dataset
from kidseg.checkpoint import read_header
from kidseg.cohort.block import draw_blocks
from kidseg.cohort.body_grid import body_grid
from kidseg.cohort.cohort import Cohort, patient_dice
from kidseg.config import BlocksConfig, BodyConfig, Plain3dConfig, StageConfig
from kidseg.device import choose_device
from kidseg.errors import UsageError
from kidseg.geometry import Volume, resample
from kidseg.io import ReadOptions, read, save
from kidseg.labels import KIDNEY_TUMOUR, Target
from kidseg.methods import METHODS, method_named
from kidseg.methods.plain3d import Plain3d
from kidseg.pipeline import advance, restore
from kidseg.plan import Plan
from kidseg.segment import load_predictor, segment
from kidseg.stage import Stage, TrainStep
from kidseg.train import Setup, train
from weights import weights_of

CPU = choose_device("cpu", "fp32")
CONFIG = Plain3dConfig(
    blocks=BlocksConfig(patch=(4, 24, 24)),
    segment=StageConfig(epochs=1, batch_size=4, steps=2),
    augment="none",
)
NOW = TrainStep(seed=0, epoch=0, step=0)
TINY = (
    "precision=fp32",
    "augment=none",
    "blocks.patch=[8,32,32]",
    "blocks.features=4",
    "blocks.max_features=16",
    "blocks.overlap=0.25",
    "segment.epochs=2",
    "segment.steps=2",
    "segment.batch_size=2",
)
LEARNING = (
    "blocks.spacing_mm=[10,8,8]",
    "blocks.patch=[8,16,16]",
    "blocks.features=8",
    "segment.epochs=2",
    "segment.steps=30",
    "segment.optimizer.name=adam",
    "segment.optimizer.learning_rate=0.01",
)


class Oracle(nn.Module):
    """Tells tissues apart by their intensity: what a perfect network would say of these."""

    def __init__(self, regions: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.regions = regions
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> list[Tensor]:
        self.seen.append(tuple(image.shape))
        hu = image * 50 + 130
        kinds = [torch.tensor([-1000.0, 30.0, 500.0]), torch.tensor([180.0]), torch.tensor([90.0])]
        clipped = [kind.clamp(40, 230).reshape(-1, 1, 1, 1) for kind in kinds]
        away = [(hu - kind).abs().amin(1, True) for kind in clipped]
        logits = [-one for one in away]
        if self.regions:  # kidney and tumour; tumour
            logits = [away[0] - torch.minimum(away[1], away[2]), away[0].minimum(away[1]) - away[2]]
        return [torch.cat(logits, dim=1) * self.scale]


def cohort_of(training: int = 2, validation: int = 1) -> Cohort:
    return replace(make_cohort(training, validation), plan=VOLUMES)


def method_with(
    net: nn.Module,
    config: Plain3dConfig = CONFIG,
    plan: Plan = VOLUMES,
    target: Target = TARGET,
) -> Plain3d:
    return Plain3d(config, target, plan, {"segment": net}, CPU)


def stage_of(cohort: Cohort, config: Plain3dConfig = CONFIG, net: nn.Module | None = None) -> Stage:
    method = method_with(net or Oracle(), config, cohort.plan, cohort.target)
    (stage,) = method.stages(cohort)
    return stage


def loss_of(stage: Stage, step: TrainStep = NOW) -> float:
    batch = stage.batch(step).to(torch.device("cpu"))
    return float(stage.loss(stage.net, batch)["loss"].detach())


def test_a_perfect_network_is_scored_as_one() -> None:
    """On the scans' own voxels; where it sees coarser ones, as far as these are as fine."""
    cohort = cohort_of(1, 2)
    with torch.no_grad():
        figures = stage_of(cohort).validate()
        coarse = replace(CONFIG, blocks=BlocksConfig(spacing_mm=(10, 6, 6), patch=(4, 24, 24)))
        less = stage_of(cohort, coarse).validate()
    assert figures["score"] > 0.92, figures
    mean = (figures["dice_kidney+tumour"] + figures["dice_tumour"]) / 2
    assert figures["score"] == pytest.approx(mean)
    assert 0.8 < less["score"] < figures["score"]


def test_a_perfect_network_finds_the_labels_on_the_scans_grid() -> None:
    """In windows that are smaller than the scan, and larger; the loss is small, too."""
    cohort = cohort_of(1, 1)
    subject = cohort.validation[0]
    for patch in ((4, 24, 24), (12, 80, 80)):
        config = replace(CONFIG, blocks=BlocksConfig(patch=patch))
        net = Oracle().eval()
        method = method_with(net, config)
        progress = advance(subject.image, method.steps(subject))
        assert {shape[2:] for shape in net.seen} == {method.patch}
        (region,) = progress.found
        assert region.grid.shape == subject.image.grid.shape
        labels = restore(progress.found, subject.image.grid, method.target)
        assert labels.grid is subject.image.grid and subject.labels is not None
        dice = patient_dice(labels, subject.labels, KIDNEY_TUMOUR)
        assert all(value is not None and value > 0.9 for value in dice.values()), dice
    assert loss_of(stage_of(cohort)) < 0.7


def test_bodies_of_one_size_are_learned_and_labelled_on_the_scans_grid() -> None:
    """A perfect network on bodies reduced to 60 mm, upright, and enlarged to 100 mm."""
    cohort = cohort_of(2, 1)
    subject = cohort.validation[0]
    for body in (BodyConfig(max_radius_mm=60.0, upright=True), BodyConfig(min_radius_mm=100.0)):
        config = replace(CONFIG, body=body)
        net = Oracle()
        stage = stage_of(cohort, config, net)
        with torch.no_grad():
            score = stage.validate()["score"]
        assert score > (0.85 if body.min_radius_mm else 0.75), score
        batch = stage.batch(NOW)
        grids = [
            body_grid(each, body, method_with(net).planned.spacing_mm) for each in cohort.training
        ]
        drawn = draw_blocks(
            cohort.training, grids, (4, 24, 24), NOW, batch_size=4, foreground_share=1 / 3
        )
        for row, block in enumerate(drawn):
            labels = cohort.training[block.case].labels
            assert labels is not None and not block.grid.same_as(subject.image.grid)
            expected = resample(labels, block.grid, mode="nearest").data[0]
            assert torch.equal(batch.labels[row], expected)
        method = method_with(net, config)
        progress = advance(subject.image, method.steps(subject))
        figures = method.report(subject, progress).figures
        plain = method_with(net).report(subject, progress).figures
        assert set(plain) < set(figures)
        assert subject.body is not None
        enlarged = subject.body.radius_mm / (body.min_radius_mm or body.max_radius_mm or 1.0)
        assert figures["scale_x"] == pytest.approx(enlarged, rel=0.05)
        assert Plain3d.material(config, VOLUMES).pixel_mm == (2.0 if body.min_radius_mm else 4.0)


def test_bodies_are_found_in_ct_only() -> None:
    channels = (replace(VOLUMES.channels[0], scheme="zscore"),)
    config = replace(CONFIG, body=BodyConfig(upright=True))
    plan = replace(VOLUMES, channels=channels)
    Plain3d.build(CONFIG, TARGET, plan, device=CPU)
    with pytest.raises(UsageError, match="not CT") as error:
        Plain3d.build(config, TARGET, plan, device=CPU)
    assert error.value.code == "body-not-ct" and "body" in error.value.next_step


def test_a_method_is_bound_to_fresh_networks() -> None:
    first, same, other = (
        Plain3d.build(CONFIG, TARGET, VOLUMES, seed=seed, device=CPU) for seed in (0, 0, 1)
    )
    assert method_named("plain3d") is METHODS["plain3d"] is Plain3d and first.name == "plain3d"
    assert (first.config, first.target, first.plan) == (CONFIG, TARGET, VOLUMES)
    for weights, again, others in zip(
        *(method.parts["segment"].parameters() for method in (first, same, other)), strict=True
    ):
        assert torch.equal(weights, again)
        assert weights.std() == 0 or not torch.equal(weights, others)
    assert first.facts == {"blocks": {"spacing_mm": [10.0, 4.0, 4.0], "patch": [4, 24, 24]}}
    material = Plain3d.material(CONFIG, VOLUMES)
    assert material.pixel_mm == 4.0 and material.masks is None
    cohort = cohort_of()
    (stage,) = first.stages(cohort)
    assert stage.net is first.parts["segment"] and (stage.name, stage.steps) == ("segment", 2)
    given = replace(CONFIG, segment=replace(CONFIG.segment, steps=None, batch_size=2))
    assert stage_of(cohort_of(5, 1), given).steps == 2, "each case once"
    assert stage_of(cohort_of(1, 1), given).steps == 1
    (step,) = first.steps(cohort.validation[0])
    assert step.name == "segment" and step.target == TARGET
    placement = first.report(cohort.validation[0], advance(cohort.validation[0].image, []))
    assert placement.figures and not placement.overlap


def test_a_plan_of_single_slices_has_no_volumes() -> None:
    for refused in (
        lambda: Plain3d.build(CONFIG, TARGET, PLAN, device=CPU),
        lambda: Plain3d.material(CONFIG, PLAN),
    ):
        with pytest.raises(UsageError, match="single slices") as error:
            refused()
        assert error.value.code == "no-volumes" and "plain" in (error.value.next_step or "")


def test_a_batch_shows_its_blocks_and_names_their_cases() -> None:
    """Image and labels at the same voxels; the processes' parts are those of the whole."""
    cohort = cohort_of()
    net = Oracle()
    stage = stage_of(cohort, net=net)
    batch = stage.batch(NOW)
    assert not net.seen and batch.valid is None
    assert batch.image.shape == (4, 1, 4, 24, 24) and batch.labels.shape == (4, 4, 24, 24)
    grids = [subject.image.grid for subject in cohort.training]
    drawn = draw_blocks(
        cohort.training, grids, (4, 24, 24), NOW, batch_size=4, foreground_share=1 / 3
    )
    assert batch.names == tuple(cohort.training[block.case].id for block in drawn)
    for row, block in enumerate(drawn):
        subject = cohort.training[block.case]
        assert subject.labels is not None
        labels = resample(subject.labels, block.grid, mode="nearest").data[0]
        assert torch.equal(batch.labels[row], labels)
        hu = resample(subject.image, block.grid, fill=-1000).data
        torch.testing.assert_close(batch.image[row], (hu.clamp(40, 230) - 130) / 50)
    halves = [stage.batch(replace(NOW, rank=rank, world=2)) for rank in range(2)]
    for k in range(4):
        assert torch.equal(halves[k % 2].image[k // 2], batch.image[k])
    assert loss_of(stage) == loss_of(stage) != loss_of(stage, replace(NOW, step=1))


@pytest.mark.parametrize("augment", ["none", "nnunet"])
def test_an_ignore_label_counts_nowhere(augment: Any) -> None:
    """Wrong labels below row 32 are seen in the loss, unless they are ignored there."""
    if augment == "nnunet":
        pytest.importorskip("batchgeneratorsv2", reason="nnU-Net's augmentation is an extra")
    anywhere = replace(CONFIG.blocks, foreground_share=0.0)
    cohort, config = cohort_of(), replace(CONFIG, augment=augment, blocks=anywhere)

    def stage_with(kept: slice, wrong: int) -> Stage:
        subjects = []
        for subject in cohort.training:
            assert subject.labels is not None
            ignore = torch.ones_like(subject.labels.data, dtype=torch.bool)
            ignore[:, :, kept] = False
            labels = subject.labels.data.clone()
            labels[:, :, :32] = wrong
            grid = subject.labels.grid
            subjects.append(
                replace(subject.with_labels(Volume(labels, grid)), ignore=Volume(ignore, grid))
            )
        return stage_of(replace(cohort, training=tuple(subjects)), config)

    lower = [loss_of(stage_with(slice(32, 64), wrong)) for wrong in (1, 2)]
    upper = [loss_of(stage_with(slice(0, 32), wrong)) for wrong in (1, 2)]
    if augment == "none":
        assert lower[0] == lower[1] and upper[0] != upper[1]
        batch = stage_with(slice(32, 64), 1).batch(NOW)
        assert batch.valid is not None and batch.valid.dtype == torch.bool
        assert 0 < batch.valid.float().mean() < 1
        assert batch.to(torch.device("cpu")).valid.equal(batch.valid)
    assert max(lower) < min(upper)


def test_only_some_cases_have_voxels_that_do_not_count() -> None:
    cohort = cohort_of()
    ignore = torch.ones_like(cohort.training[0].image.data, dtype=torch.bool)
    first = replace(cohort.training[0], ignore=Volume(ignore, cohort.training[0].image.grid))
    batch = stage_of(replace(cohort, training=(first, cohort.training[1]))).batch(NOW)
    assert set(batch.names) == {"ellipse_000", "ellipse_001"}
    for name, valid in zip(batch.names, batch.valid, strict=True):
        assert bool(valid.any()) == bool(valid.all()) == (name == "ellipse_001")


def test_augmented_blocks_keep_their_size_and_are_of_the_step() -> None:
    pytest.importorskip("batchgeneratorsv2", reason="nnU-Net's augmentation is an extra")
    cohort = cohort_of()
    stage = stage_of(cohort, replace(CONFIG, augment="nnunet"))
    batch, again = stage.batch(NOW), stage.batch(NOW)
    assert batch.image.shape == (4, 1, 4, 24, 24) and batch.labels.shape == (4, 4, 24, 24)
    assert torch.equal(batch.image, again.image) and torch.equal(batch.labels, again.labels)
    assert not torch.equal(batch.image, stage_of(cohort).batch(NOW).image)
    halves = [stage.batch(replace(NOW, rank=rank, world=2)) for rank in range(2)]
    for k in range(4):
        assert torch.equal(halves[k % 2].image[k // 2], batch.image[k])


def test_regions_that_overlap_are_learned_each_on_its_own() -> None:
    target = Target(channels=((1, 2), (2,)), exclusive=False)
    cohort = replace(cohort_of(), target=target)
    stage = stage_of(cohort, net=Oracle(regions=True))
    with torch.no_grad():
        figures = stage.validate()
    assert figures["score"] > 0.85, figures
    good = loss_of(stage)
    with torch.no_grad():
        stage.net.scale.fill_(-1.0)  # type: ignore[operator, union-attr]
    assert good < loss_of(stage) - 1.0


# From files


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain3d") / "data"
    write_ellipse_dataset(root, 4)
    return root


def trained(data: Path, out: Path, *more: str, **setup: Any) -> dict[str, Any]:
    asked = Setup(method="plain3d", overrides=[*TINY, *more], **setup)
    return train(data, out, asked, device="cpu")


def test_it_learns_and_segments_on_the_scans_grid(data: Path, tmp_path: Path) -> None:
    summary = trained(data, tmp_path / "run", *LEARNING)
    assert summary["method"] == "plain3d" and set(summary["stages"]) == {"segment"}
    assert summary["validation"]["segment"]["dice"]["kidney+tumour"] > 0.5
    model = tmp_path / "run" / "model.safetensors"
    header = read_header(model)
    assert header["blocks"] == {"spacing_mm": [10.0, 8.0, 8.0], "patch": [8, 16, 16]}
    assert header["config"]["blocks"]["patch"] == [8, 16, 16]
    predictor = load_predictor(model, "cpu")
    patient = make_ellipse_patient(17)
    moved = Volume(patient.image.data, patient.image.grid.crop((3, -5, 9), (8, 64, 64)))
    for image in (patient.image, moved):
        found = predictor(image)
        assert found.labels.grid is image.grid and found.labels.data.dtype == torch.uint8
        there = found.labels.data > 0
        truth = patient.labels.data > 0
        assert 2 * (there & truth).sum() / (there.sum() + truth.sum()) > 0.5
        assert found.facts["grids"]["segment"][0]["shape"] == [8, 32, 32]
    segment([save(moved, tmp_path / "scan.nii.gz")], model, tmp_path / "out", device="cpu")
    written = read(tmp_path / "out" / "scan_seg.nii.gz", ReadOptions(values="labels")).volume
    assert written.grid.same_as(moved.grid) and torch.equal(written.data, found.labels.data)


@pytest.mark.ci
@pytest.mark.parametrize("augment", ["none", "nnunet"])
def test_the_same_seed_gives_the_same_bits(data: Path, tmp_path: Path, augment: str) -> None:
    if augment == "nnunet":
        pytest.importorskip("batchgeneratorsv2", reason="nnU-Net's augmentation is an extra")
    digests = []
    more = (f"augment={augment}", "segment.epochs=1")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        trained(data, tmp_path / name, *more, seed=seed, validation=["ellipse_003"])
        digests.append(weights_of(tmp_path / name / "model.safetensors"))
    assert digests[0] == digests[1] != digests[2]


def test_stopped_and_resumed_it_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    setup = Setup(method="plain3d", overrides=TINY)

    class Stop(Exception):
        pass

    def stop(what: str, done: int, *_: Any) -> None:
        if (what, done) == ("segment", 1):
            raise Stop

    train(data, tmp_path / "whole", setup, device="cpu")
    with pytest.raises(Stop):
        train(data, tmp_path / "broken", setup, device="cpu", progress=stop)
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    train(data, tmp_path / "broken", setup, device="cpu", resume=True)
    weights = [weights_of(tmp_path / name / "model.safetensors") for name in ("whole", "broken")]
    assert weights[0] == weights[1]
    lines = (tmp_path / "broken" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]


def test_blocks_of_too_few_slices_to_augment_are_refused_before_reading() -> None:
    """As planned for scans of two slices; larger blocks, or no augmentation, are accepted."""
    thin = replace(VOLUMES.configurations["3d_fullres"], patch_size=(2, 32, 32))
    plan = replace(VOLUMES, configurations={**VOLUMES.configurations, "3d_fullres": thin})
    with pytest.raises(UsageError, match=r"blocks\.patch=\[4, 32, 32\]") as error:
        Plain3d.material(Plain3dConfig(), plan)
    assert error.value.code == "small-blocks"
    Plain3d.material(Plain3dConfig(augment="none"), plan)
    Plain3d.material(Plain3dConfig(blocks=BlocksConfig(patch=(4, 32, 32))), plan)


@pytest.mark.parametrize("settings", [{"patch": (2, 4, 4)}, {"spacing_mm": (300.0, 300.0, 300.0)}])
def test_blocks_too_small_for_a_network_are_refused_before_reading(settings: Any) -> None:
    with pytest.raises(UsageError, match="too small to be halved") as error:
        Plain3d.material(Plain3dConfig(blocks=BlocksConfig(**settings), augment="none"), VOLUMES)
    assert error.value.code == "small-blocks"
