"""The cascade's training: what each network is shown, its loss, its score; from files to labels."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cascades import NETS, SETTINGS, TARGET, Oracle, config_with, oracles
from cohorts import PLAN, make_cohort
from ellipses import write_ellipse_dataset
from kidseg.checkpoint import read_header
from kidseg.cohort.cohort import Cohort
from kidseg.cohort.subject import Subject
from kidseg.device import choose_device
from kidseg.geometry import Volume
from kidseg.labels import Target
from kidseg.methods import METHODS, method_named
from kidseg.methods.cascade.decisions import Targets
from kidseg.methods.cascade.system_c import Cascade
from kidseg.methods.cascade.training import binary_loss
from kidseg.pipeline import advance
from kidseg.segment import segment
from kidseg.stage import Stage, TrainStep
from kidseg.train import Setup, make_store, train
from weights import weights_of

CPU = choose_device("cpu", "fp32")
NOW = TrainStep(seed=0, epoch=0, step=0)


def cohort_of(training: int = 2, validation: int = 1) -> Cohort:
    return replace(make_cohort(training, validation), target=TARGET)


def stages_of(
    cohort: Cohort, *settings: str, parts: Mapping[str, nn.Module] | None = None
) -> dict[str, Stage]:
    method = Cascade(config_with(*settings), TARGET, PLAN, parts or oracles(), CPU)
    return {stage.name: stage for stage in method.stages(cohort)}


# What is shown


def test_a_method_is_bound_to_fresh_networks() -> None:
    assert method_named("cascade") is METHODS["cascade"] is Cascade and Cascade.name == "cascade"
    first, same = (Cascade.build(config_with(), TARGET, PLAN, device=CPU) for _ in range(2))
    assert tuple(first.parts) == NETS
    for name in NETS:
        pairs = zip(first.parts[name].parameters(), same.parts[name].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    convolutions = {
        name: next(p for p in first.parts[name].parameters() if p.ndim > 1) for name in NETS
    }
    assert {name: p.shape[1] for name, p in convolutions.items()} == {
        **dict.fromkeys(NETS, 1),
        "refine": 2,
    }
    assert convolutions["tumour"].ndim == 5 and convolutions["refine"].ndim == 4
    names = [step.name for step in first.steps(cohort_of().validation[0])]
    assert names == list(NETS)


@pytest.mark.parametrize("crops", ["truth", "predicted"])
def test_each_network_is_shown_its_place(crops: str) -> None:
    """By the reference labels, or by networks that see the same: nearly the same places."""
    stages = stages_of(cohort_of(), f"crops={crops}")
    assert tuple(stages) == NETS
    sizes = {name: tuple(stage.batch(NOW).image.shape[1:]) for name, stage in stages.items()}
    assert sizes == {
        "coarse": (1, 64, 64),
        "correct": (1, 8, 48),
        "fine": (1, 32, 32),
        "tumour": (1, 4, 16, 16),
        "refine": (2, 32, 32),
    }
    for stage in stages.values():
        batch, again = stage.batch(NOW), stage.batch(NOW)
        assert batch.valid is None and len(batch.names) == len(batch.labels) == 4
        assert torch.equal(batch.image, again.image)
        assert batch.image.shape[2:] == batch.labels.shape[1:]
        halves = [stage.batch(replace(NOW, rank=rank, world=2)) for rank in range(2)]
        for k in range(4):
            assert torch.equal(halves[k % 2].image[k // 2], batch.image[k])
    refined = stages["refine"].batch(NOW)
    mask, renal = refined.image[:, 1], (refined.labels > 0).float()
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert float((mask == renal).float().mean()) > (0.9999 if crops == "truth" else 0.97)
    assert (refined.labels == 2).flatten(1).any(1).sum() >= 2, "half of them with tumour"
    fine = stages["fine"].batch(NOW)
    assert (fine.labels[:, 12:20, 12:20] > 0).flatten(1).any(1).all(), "a kidney in the middle"


def test_crops_do_not_grow_in_training() -> None:
    """Though kidneys with tumours are larger: all crops of a batch are of one size."""
    stage = stages_of(cohort_of(), "fine.size=16", "fine.grow=true")["fine"]
    for step in range(4):
        assert stage.batch(replace(NOW, step=step)).image.shape[2:] == (16, 16)


class Blind(Oracle):
    """Finds nothing."""

    def forward(self, image: Tensor) -> list[Tensor]:
        (found,) = super().forward(image)
        return [torch.tensor([5.0, -5.0]).reshape(1, 2, 1, 1).expand_as(found) + 0 * found]


def test_predicted_places_are_those_after_the_correction() -> None:
    """Where the coarse network finds nothing, as it is used."""
    cohort = cohort_of(1, 1)
    cohort = replace(cohort, training=tuple(map(without_noise, cohort.training)))
    blind = {**oracles(), "coarse": Blind(tumour=False).eval()}
    seen, corrected, left = (
        stages_of(cohort, "crops=predicted", f"correct.iterations={n}", parts=parts)["fine"]
        .batch(NOW)
        .image
        for n, parts in ((1, oracles()), (1, blind), (0, blind))
    )
    assert torch.equal(seen, corrected) and not torch.equal(seen, left)


class Shifted(Oracle):
    """Finds everything so many rows further down."""

    def __init__(self, rows: int) -> None:
        super().__init__(tumour=False)
        self.rows = rows

    def forward(self, image: Tensor) -> list[Tensor]:
        return [found.roll(self.rows, 2) for found in super().forward(image)]


def without_noise(subject: Subject) -> Subject:
    """So that the oracles find the labels exactly."""
    assert subject.labels is not None
    labels, data = subject.labels.data, subject.image.data.clamp(max=40)
    data[labels == 1], data[labels == 2] = 180, 90
    return replace(subject, image=Volume(data, subject.image.grid))


@pytest.mark.parametrize("crops", ["truth", "predicted"])
@pytest.mark.parametrize("net", ["coarse", "fine"])
def test_places_shift_with_what_was_predicted(net: str, crops: str) -> None:
    """Those of the fine network with the coarse result, those of tumours with the fine one.

    By whole pixels: those of the coarse grid are the scan's own. By the reference labels nothing
    shifts. Nor do the places of tumours with the coarse result: in a shifted crop the fine network
    still sees where the kidneys are.
    """
    rows, cohort = 3, cohort_of(1, 1)
    cohort = replace(cohort, training=tuple(map(without_noise, cohort.training)))
    right, wrong = (
        {
            name: stage.batch(NOW).image
            for name, stage in stages_of(cohort, f"crops={crops}", parts=parts).items()
        }
        for parts in (oracles(), {**oracles(), net: Shifted(rows).eval()})
    )
    shifted = {"coarse": {"fine"}, "fine": {"tumour", "refine"}}[net]
    for name in ("fine", "tumour", "refine"):
        one, other = right[name], wrong[name]
        if crops == "truth" or name not in shifted:
            assert torch.equal(one, other), name
        else:
            assert not torch.equal(one, other), name
        if crops == "predicted" and name in shifted - {"tumour"}:
            assert torch.equal(one[:, 0, rows:], other[:, 0, :-rows]), name
    if crops == "predicted" and net == "fine":
        assert torch.equal(right["refine"][:, 1], wrong["refine"][:, 1]), "the mask goes along"


def test_blocks_are_a_third_each() -> None:
    """The middle voxel of each block, over three steps."""
    stage = stages_of(cohort_of())["tumour"]
    middle = [
        int(label)
        for step in range(3)
        for label in stage.batch(replace(NOW, step=step)).labels[:, 2, 8, 8]
    ]
    assert sorted(middle) == [0] * 4 + [1] * 4 + [2] * 4


def test_an_epoch_of_the_last_network_shows_each_slice_with_tumour_once() -> None:
    cohort = cohort_of()
    stages = stages_of(cohort, "refine.stage.steps=null", "coarse.stage.steps=null")
    tumours = 0
    for subject in cohort.training:
        assert subject.labels is not None
        tumours += int((subject.labels.data == 2).flatten(2).any(2).sum())
    assert stages["coarse"].steps == 16 // 4
    # A tumour near the middle is in the regions of both kidneys.
    assert math.ceil(2 * tumours / 4) <= stages["refine"].steps <= math.ceil(4 * tumours / 4)


def test_half_of_the_last_networks_slices_show_tumour_each_once_in_an_epoch() -> None:
    stage = stages_of(cohort_of(), "refine.stage.steps=null")["refine"]
    shown: list[bytes] = []
    for step in range(stage.steps):
        batch = stage.batch(replace(NOW, step=step))
        with_tumour = (batch.labels == 2).flatten(1).any(1)
        assert with_tumour.tolist().count(True) == 2, "of four"
        shown += [image.numpy().tobytes() for image in batch.image[with_tumour]]
    assert stage.steps > 1
    repeated = len(shown) - len(set(shown))
    assert repeated <= 1, "the last batch is filled up"


def test_without_corrections_there_is_no_such_stage_and_networks_are_left_in_eval_mode() -> None:
    method = Cascade.build(config_with("correct.iterations=0"), TARGET, PLAN, device=CPU)
    names = []
    for stage in method.stages(cohort_of(1, 1)):
        assert all(not method.parts[name].training for name in names)
        names.append(stage.name)
    assert names == ["coarse", "fine", "tumour", "refine"]


def test_the_networks_share_the_time_of_a_run_as_their_budgets() -> None:
    budgets = {"coarse": 10.0, "fine": 30.0, "tumour": 40.0, "refine": 20.0}
    settings = [f"{name}.stage.budget_s={s}" for name, s in budgets.items()]
    stages = stages_of(cohort_of(1, 1), *settings, "correct.iterations=0")
    left, used = 100.0, {}
    for name, stage in stages.items():
        used[name] = stage.share * left
        left -= used[name]
    assert used == pytest.approx(budgets)


def test_cases_without_kidneys_are_no_failure() -> None:
    cohort = cohort_of(1, 1)
    (subject,) = cohort.training
    assert subject.labels is not None
    empty = subject.with_labels(Volume(torch.zeros_like(subject.labels.data), subject.labels.grid))
    for stage in stages_of(replace(cohort, training=(empty,))).values():
        batch = stage.batch(NOW)
        assert not batch.labels.any()
        assert bool(stage.loss(stage.net, batch)["loss"].isfinite())


# Loss and score


def test_losses_by_hand() -> None:
    """One pixel of four is kidney; probabilities 0.8 there, 0.2 elsewhere."""
    labels = torch.tensor([[[1, 0], [0, 0]]])
    renal = Target(channels=((1,),))
    kidney = torch.where(labels == 1, 0.8, 0.2)
    logits = torch.stack([1 - kidney, kidney], dim=1).log()
    dice = 2 * 0.8 / (0.8**2 + 3 * 0.2**2 + 1)
    wanted = {"dice": 1 - dice, "cross-entropy": -math.log(0.8)}
    wanted["both"] = wanted["dice"] + wanted["cross-entropy"]
    for kind, value in wanted.items():
        for over in ("batch", "sample"):
            found = binary_loss([logits], labels, renal, kind, over)
            assert float(found) == pytest.approx(value, abs=1e-4)
    two = torch.cat([logits, logits.flip(1)])
    both = torch.cat([labels, labels])
    assert float(binary_loss([two], both, renal, "dice", "sample")) != pytest.approx(
        float(binary_loss([two], both, renal, "dice", "batch"))
    )
    valid = labels == 1
    ignored = binary_loss([logits], labels, renal, "dice", "batch", valid)
    assert float(ignored) == pytest.approx(1 - 2 * 0.8 / (0.8**2 + 1), abs=1e-4)


@pytest.mark.parametrize("over", ["batch", "sample"])
def test_each_network_minimises_its_own_loss(over: Any) -> None:
    """Dice of the kidneys, cross entropy of the 3D network's tumours, or as told."""
    cohort = cohort_of(1, 1)
    targets = Targets.of(TARGET)
    told = {"coarse": "both", "correct": "dice", "tumour": "cross-entropy", "refine": "dice"}
    settings = [f"dice_over={over}", "coarse.loss=both"]
    stages = stages_of(cohort, *settings)
    values = {}
    for name, stage in stages.items():
        batch = stage.batch(NOW)
        target = targets.tumour if name in ("tumour", "refine") else targets.renal
        with torch.no_grad():
            # Unsure, so that each loss has a value of its own.
            levels = [0.01 * level for level in stage.net(batch.image)]
            wanted = binary_loss(levels, batch.labels, target, told.get(name, "dice"), over)
            stage.net.scale.fill_(0.01)  # type: ignore[operator, union-attr]
            values[name] = float(stage.loss(stage.net, batch)["loss"])
            others = {
                float(binary_loss(levels, batch.labels, target, kind, each))
                for kind in ("dice", "cross-entropy", "both")
                for each in ("batch", "sample")
            }
        assert values[name] == pytest.approx(float(wanted), rel=1e-4), name
        assert sum(other == pytest.approx(values[name], rel=1e-4) for other in others) <= 2, name


def test_perfect_networks_are_scored_as_one() -> None:
    """Those for kidneys by kidneys with tumours, the 3D one by tumours, the last by the result."""
    stages = stages_of(cohort_of(1, 2))
    with torch.no_grad():
        figures = {name: stage.validate() for name, stage in stages.items()}
    assert all(each["score"] > 0.85 for each in figures.values()), figures
    for name in ("coarse", "fine"):
        assert set(figures[name]) == {"score", "dice_kidney+tumour"}
    assert set(figures["tumour"]) == {"score", "dice_tumour"}
    last = figures["refine"]
    assert last["score"] == pytest.approx((last["dice_kidney+tumour"] + last["dice_tumour"]) / 2)
    assert set(last) == {"score", "dice_kidney", "dice_kidney+tumour", "dice_tumour"}


def test_a_network_that_has_learned_scores_other_than_before() -> None:
    """The steps before it are computed once, its own every time."""
    parts = oracles()
    stages = stages_of(cohort_of(1, 1), parts=parts)
    with torch.no_grad():
        good = stages["fine"].validate()["score"]
        seen = len(parts["coarse"].seen)  # type: ignore[arg-type]
        parts["fine"].scale.fill_(-1.0)  # type: ignore[operator, union-attr]
        assert stages["fine"].validate()["score"] < good
    assert len(parts["coarse"].seen) == seen  # type: ignore[arg-type]


# From files


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cascade") / "data"
    write_ellipse_dataset(root, 3)
    return root


@pytest.mark.ci
def test_from_files_to_labels_resumed_and_fine_tuned(data: Path, tmp_path: Path) -> None:
    """One run in one go, and one that is stopped in its third stage: equal to the bit.

    Then from a store, then fine-tuned in one part; what happened stands in result.json.
    """
    settings = [*SETTINGS, "fine.stage.epochs=2"]
    setup = Setup(method="cascade", overrides=settings, validation=["ellipse_002"])

    class Stop(Exception):
        pass

    def stop(what: str, done: int, *_: Any) -> None:
        if (what, done) == ("fine", 1):
            raise Stop

    summary = train(data, tmp_path / "whole", setup, device="cpu")
    assert tuple(summary["stages"]) == NETS
    with pytest.raises(Stop):
        train(data, tmp_path / "broken", setup, device="cpu", progress=stop)
    train(data, tmp_path / "broken", setup, device="cpu", resume=True)
    make_store(data, tmp_path / "store", setup)
    stored = Setup(method="cascade", overrides=settings)
    train(tmp_path / "store", tmp_path / "stored", stored, device="cpu")
    model = tmp_path / "whole" / "model.safetensors"
    weights = weights_of(model)
    for name in ("broken", "stored"):
        assert weights_of(tmp_path / name / "model.safetensors") == weights, name
    header = read_header(model)
    assert header["labels"]["target"]["channels"] == [[1], [2]]
    assert header["config"]["correct"]["size"] == [8, 48]

    tuned = Setup(method="cascade", start=model, tune="refine.*", overrides=settings)
    more = train(data, tmp_path / "tuned", replace(tuned, validation=["ellipse_002"]), device="cpu")
    assert tuple(more["stages"]) == ("refine",)

    scan = data / "imagesTr" / "ellipse_000_0000.nii.gz"
    (result,) = segment([scan], model, tmp_path / "out", figures=True, reference=data)
    notes = json.loads((tmp_path / "out" / "result.json").read_text())["scans"][0]["notes"]
    assert list(notes) == list(NETS) and result["notes"] == notes
    assert notes["coarse"]["normal"] == (notes["coarse"]["kidneys"] == 2)
    assert (tmp_path / "out" / "ellipse_000_steps.png").exists()


def test_what_was_found_before_is_kept_apart_from_the_next_step() -> None:
    """The mask of the 2-channel network is that of the fine network."""
    cohort = cohort_of(1, 1)
    method = Cascade(config_with(), TARGET, PLAN, oracles(), CPU)
    subject = cohort.validation[0]
    progress = advance(subject.image, method.steps(subject))
    shapes = method.parts["refine"].seen  # type: ignore[union-attr]
    assert {shape[1] for shape in shapes} == {2}  # type: ignore[union-attr]
    assert list(progress.notes) == list(NETS)
