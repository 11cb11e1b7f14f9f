"""The baseline: its batches, its loss, what it sees at inference, how cases are scored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cohorts import PLAN, make_cohort
from kidseg.cohort.cohort import patient_dice
from kidseg.cohort.subject import hu_at
from kidseg.config import PlainConfig, StageConfig, UNetConfig, ViewConfig
from kidseg.device import choose_device
from kidseg.errors import UsageError
from kidseg.geometry import Volume, resample
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.methods import method_named
from kidseg.methods.segmentation import segmentation_stage, segmenter
from kidseg.pipeline import run
from kidseg.stage import Moment, Stage

CPU = choose_device("cpu", "fp32")
CONFIG = PlainConfig(
    view=ViewConfig(size=48),
    unet=UNetConfig(size=64, features=4),
    segment=StageConfig(epochs=1, batch_size=6, steps=2),
)
NOW = Moment(seed=0, epoch=0, step=0)


def loss_of(stage: Stage, net: nn.Module, now: Moment) -> float:
    return float(stage.loss(net, now)["loss"].detach())


class Oracle(nn.Module):
    """Tells tissues apart by their intensity: what a perfect network would say of these."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> list[Tensor]:
        self.seen.append(tuple(image.shape))
        hu = image * 50 + 130
        kinds = [torch.tensor([-1000.0, 30.0, 500.0]), torch.tensor([180.0]), torch.tensor([90.0])]
        clipped = [kind.clamp(40, 230) for kind in kinds]
        logits = [-((hu - kind[:, None, None]).abs().amin(1, True)) for kind in clipped]
        return [torch.cat(logits, dim=1) * self.scale]


def test_a_perfect_network_is_scored_as_one() -> None:
    cohort = make_cohort()
    stage = segmentation_stage(
        Oracle(),
        CONFIG.segment,
        cohort,
        training=[subject.base for subject in cohort.training],
        validation=[subject.whole for subject in cohort.validation],
        device=CPU,
    )
    with torch.no_grad():
        figures = stage.validate()
    assert figures["score"] > 0.85
    assert figures["score"] == pytest.approx((figures["kidney+tumour"] + figures["tumour"]) / 2)
    assert loss_of(stage, stage.net, NOW) < 0.6


def test_the_batch_depends_on_the_moment_alone() -> None:
    cohort = make_cohort(3, 1)
    (stage,) = method_named("plain").stages(CONFIG, {"segment": Oracle()}, cohort, CPU)
    first = loss_of(stage, stage.net, NOW)
    other = loss_of(stage, stage.net, replace(NOW, step=1))
    assert loss_of(stage, stage.net, NOW) == first != other


def test_ignored_pixels_do_not_count() -> None:
    cohort = make_cohort(3, 1)
    grids = [subject.base for subject in cohort.training]

    def loss_with(part: slice) -> float:
        """The loss, all other rows being ignored, of reference labels that are wrong above 24."""
        subjects = []
        for subject in cohort.training:
            assert subject.labels is not None
            rows = (subject.whole.shape[1] - 48) // 2
            voids = torch.ones_like(subject.labels.data, dtype=torch.bool)
            voids[:, :, rows + part.start : rows + part.stop] = False
            wrong = subject.labels.data.clone()
            wrong[:, :, : rows + 24] = 2
            subjects.append(
                replace(
                    subject,
                    labels=Volume(wrong, subject.whole),
                    voids=Volume(voids, subject.whole),
                )
            )
        changed = replace(cohort, training=tuple(subjects))
        stage = segmentation_stage(
            Oracle(), CONFIG.segment, changed, training=grids, validation=[], device=CPU
        )
        return loss_of(stage, stage.net, NOW)

    assert loss_with(slice(24, 48)) < 0.7 < 2.0 < loss_with(slice(0, 24))


def test_at_inference_the_whole_body_is_seen() -> None:
    cohort = make_cohort(1, 1, ViewConfig(size=48, pixel_mm=2.0))
    subject, net = cohort.validation[0], Oracle().eval()
    method = method_named("plain")
    steps = method.steps(CONFIG, {"segment": net}, PLAN, subject, CPU)
    outcome = run(subject.image, steps, onto=subject.image.grid)
    assert outcome.labels.grid is subject.image.grid
    assert {shape[2:] for shape in net.seen} == {subject.whole.shape[1:]}
    assert subject.whole.shape[2] > 48
    assert subject.labels is not None
    on_whole = resample(outcome.labels, subject.whole, mode="nearest")
    dice = patient_dice(on_whole, subject.labels, KIDNEY_TUMOUR)
    assert all(value is not None and value > 0.8 for value in dice.values())


def test_probabilities_are_those_of_the_network_in_any_number_of_slices() -> None:
    subject = make_cohort(1, 1).training[0]
    net = method_named("plain").networks(CONFIG, 3, 0)["segment"].eval()
    segment = segmenter(net, PLAN, CPU)
    whole = segment(hu_at(subject, subject.base))
    assert whole.data.shape == (3, 8, 48, 48)
    torch.testing.assert_close(whole.data.sum(0), torch.ones(8, 48, 48))
    one = segment(hu_at(subject, subject.base.slices(3, 4)))
    torch.testing.assert_close(one.data[:, 0], whole.data[:, 3], atol=1e-5, rtol=1e-4)


def test_dice_of_a_patient_by_hand() -> None:
    subject = make_cohort(1, 1).training[0]
    grid = subject.base.slices(0, 1)

    def labels(*rows: int) -> Volume:
        data = torch.zeros((1, 1, 48, 48), dtype=torch.uint8)
        for row, value in enumerate(rows):
            data[0, 0, row] = value
        return Volume(data, grid)

    dice = patient_dice(labels(1, 1, 2), labels(1, 2, 2), KIDNEY_TUMOUR)
    assert dice["kidney"] == pytest.approx(2 / 3)
    assert dice["tumour"] == pytest.approx(2 / 3)
    assert dice["kidney+tumour"] == 1
    assert patient_dice(labels(1), labels(0, 2), KIDNEY_TUMOUR)["tumour"] == 0
    assert patient_dice(labels(1), labels(1), KIDNEY_TUMOUR)["tumour"] is None
    void = Volume(labels(0, 1).data > 0, grid)
    assert patient_dice(labels(1, 1), labels(1, 2), KIDNEY_TUMOUR, void)["kidney"] == 1


def test_cases_without_a_region_count_in_no_mean() -> None:
    cohort = make_cohort(1, 2)
    nothing = [Volume(torch.zeros_like(s.labels.data), s.whole) for s in cohort.validation]  # type: ignore[union-attr]
    unlabelled = tuple(
        replace(s, labels=n) for s, n in zip(cohort.validation, nothing, strict=True)
    )
    assert replace(cohort, validation=unlabelled).score(nothing) == {"score": 0.0}
    assert cohort.score(nothing)["score"] == 0.0


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        PlainConfig(view=ViewConfig(size=50), unet=UNetConfig(size=64))
    with pytest.raises(UsageError) as error:
        method_named("best")
    assert error.value.code == "unknown-method"


def test_augmented_batches_have_the_networks_size() -> None:
    pytest.importorskip("batchgeneratorsv2", reason="nnU-Net's augmentation is an extra")
    cohort = make_cohort(2, 1)
    net = Oracle()
    config = replace(CONFIG, augment="nnunet")
    (stage,) = method_named("plain").stages(config, {"segment": net}, cohort, CPU)
    first = loss_of(stage, net, NOW)
    assert net.seen[-1] == (6, 1, 48, 48)
    assert loss_of(stage, net, NOW) == first
