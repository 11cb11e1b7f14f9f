"""The baseline: its batches, its loss, what it sees at inference, how cases are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cohorts import PLAN, TARGET, VOLUMES, base_of, make_cohort, whole_of
from ellipses import in_two_channels, make_ellipse_patient
from kidseg.cohort.cohort import Cohort, patient_dice
from kidseg.cohort.frame import frame
from kidseg.cohort.items import draw
from kidseg.cohort.subject import prepare
from kidseg.config import METHODS as CONFIGS
from kidseg.config import PlainConfig, StageConfig, UNetConfig, ViewConfig, load
from kidseg.device import choose_device
from kidseg.errors import UsageError
from kidseg.geometry import Volume, resample
from kidseg.intensity import Normalisation, Scaling
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.losses import segmentation_loss
from kidseg.methods import METHODS, method_named
from kidseg.methods.plain import Plain
from kidseg.methods.segmentation import StageGrids, segmentation_stage
from kidseg.pipeline import Planes, advance, restore
from kidseg.stage import Stage, TrainStep

CPU = choose_device("cpu", "fp32")
CONFIG = PlainConfig(
    view=ViewConfig(size=48),
    unet=UNetConfig(size=64, features=4),
    segment=StageConfig(epochs=1, batch_size=6, steps=2),
)
NOW = TrainStep(seed=0, epoch=0, step=0)


def view(scalings: Sequence[Sequence[Scaling]]) -> Planes:
    return Planes(scalings=scalings, padding=PLAN.padding, device=CPU)


def loss_of(stage: Stage, net: nn.Module, step: TrainStep) -> float:
    batch = stage.batch(step).to(torch.device("cpu"))
    return float(stage.loss(net, batch)["loss"].detach())


def plain_with(net: nn.Module, cohort: Cohort, config: PlainConfig = CONFIG) -> Plain:
    """The method, bound to this network."""
    return Plain(config, cohort.target, cohort.plan, {"segment": net}, CPU)


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


@pytest.mark.parametrize(("size", "least", "most"), [(64, 0.92, 0.65), (48, 0.84, 0.6)])
def test_a_perfect_network_is_scored_as_one(size: int, least: float, most: float) -> None:
    """On the scans' own pixels, as far as those that it sees, of 4 and 5.3 mm, are as fine."""
    seen = ViewConfig(size=size)
    cohort = make_cohort(view=seen)
    stage = segmentation_stage(
        Oracle(),
        CONFIG.segment,
        cohort,
        StageGrids(
            training=[base_of(subject, seen) for subject in cohort.training],
            validation=[whole_of(subject, seen) for subject in cohort.validation],
        ),
        target=TARGET,
        view=view,
    )
    with torch.no_grad():
        figures = stage.validate()
    assert figures["score"] > least, figures
    mean = (figures["dice_kidney+tumour"] + figures["dice_tumour"]) / 2
    assert figures["score"] == pytest.approx(mean)
    assert loss_of(stage, stage.net, NOW) < most


def test_a_method_is_bound_to_fresh_networks() -> None:
    cohort = make_cohort(1, 1)
    first, same, other = (
        Plain.build(CONFIG, cohort.target, PLAN, seed=seed, device=CPU) for seed in (0, 0, 1)
    )
    assert method_named("plain") is METHODS["plain"] is Plain and first.name == "plain"
    assert (first.config, first.target, first.plan) == (CONFIG, cohort.target, PLAN)
    assert list(first.parts) == ["segment"] and not first.facts
    for weights, again, others in zip(
        *(method.parts["segment"].parameters() for method in (first, same, other)), strict=True
    ):
        assert torch.equal(weights, again)
        assert weights.std() == 0 or not torch.equal(weights, others)
    (step,) = first.steps(cohort.validation[0])
    assert step.name == "segment" and step.target == cohort.target
    (stage,) = first.stages(cohort)
    assert stage.net is first.parts["segment"] and stage.trainable is None


def test_the_batch_depends_on_the_step_alone() -> None:
    cohort = make_cohort(3, 1)
    (stage,) = plain_with(Oracle(), cohort).stages(cohort)
    first = loss_of(stage, stage.net, NOW)
    other = loss_of(stage, stage.net, replace(NOW, step=1))
    assert loss_of(stage, stage.net, NOW) == first != other


def test_the_dice_of_the_loss_is_over_the_batch_or_each_slice() -> None:
    cohort = make_cohort(3, 1)
    values = []
    for over in ("batch", "sample"):
        config = replace(CONFIG, dice_over=over)
        (stage,) = plain_with(Oracle(), cohort, config).stages(cohort)
        logits: list[Tensor] = []
        stage.net.register_forward_hook(lambda *call: logits.extend(call[2]))  # noqa: B023
        values.append(loss_of(stage, stage.net, NOW))
        labels = stage.batch(NOW).reference.labels.data[0]
        expected = segmentation_loss(logits, labels, target=TARGET, over=over).detach()
        assert values[-1] == float(expected)
    assert values[0] != values[1]


def test_a_batch_names_its_slices_and_shows_these() -> None:
    """Those of the whole batch, dealt out to the processes; no network has touched it."""
    cohort = make_cohort(3, 1)
    net = Oracle()
    (stage,) = plain_with(net, cohort).stages(cohort)
    whole = stage.batch(NOW)
    drawn = draw(cohort.index, NOW, 6)
    assert whole.names == tuple(f"ellipse_{case:03d} slice {k + 1}" for case, k in drawn)
    assert not net.seen
    halves = [stage.batch(replace(NOW, rank=rank, world=2)) for rank in range(2)]
    assert [halves[k % 2].names[k // 2] for k in range(6)] == list(whole.names)
    image = view(whole.scalings).image(whole.image, whole.grid)
    for row, (case, k) in enumerate(drawn):
        subject = cohort.training[case]
        own = view([subject.scalings]).image(subject.image, base_of(subject))[k]
        torch.testing.assert_close(image[row], own, atol=1e-5, rtol=1e-5)
        assert subject.labels is not None
        labels = resample(subject.labels, base_of(subject), mode="nearest").data[0, k]
        assert torch.equal(whole.reference.labels.data[0, row], labels)


def test_ignored_pixels_do_not_count() -> None:
    cohort = make_cohort(3, 1)
    grids = [base_of(subject) for subject in cohort.training]

    def loss_with(part: slice) -> float:
        """The loss, all other rows being ignored, of reference labels that are wrong above 32."""
        subjects = []
        for subject in cohort.training:
            assert subject.labels is not None
            ignore = torch.ones_like(subject.labels.data, dtype=torch.bool)
            ignore[:, :, part] = False
            wrong = subject.labels.data.clone()
            wrong[:, :, :32] = 2
            subjects.append(
                replace(
                    subject,
                    labels=Volume(wrong, subject.labels.grid),
                    ignore=Volume(ignore, subject.labels.grid),
                )
            )
        changed = replace(cohort, training=tuple(subjects))
        stage = segmentation_stage(
            Oracle(),
            CONFIG.segment,
            changed,
            StageGrids(
                training=grids, validation=[whole_of(subject) for subject in changed.validation]
            ),
            target=TARGET,
            view=view,
        )
        return loss_of(stage, stage.net, NOW)

    assert loss_with(slice(32, 64)) < 0.7 < 2.0 < loss_with(slice(0, 32))


def test_at_inference_the_whole_body_is_seen() -> None:
    near = ViewConfig(size=48, pixel_mm=2.0)
    cohort = make_cohort(1, 1, near)
    subject, net = cohort.validation[0], Oracle().eval()
    method = plain_with(net, cohort, replace(CONFIG, view=near))
    progress = advance(subject.image, method.steps(subject))
    assert progress.found[0].found is not None
    labels = restore(progress.found, subject.image.grid, method.target)
    assert labels.grid is subject.image.grid
    whole = whole_of(subject, near)
    assert {shape[2:] for shape in net.seen} == {whole.shape[1:]}
    assert whole.shape[2] > 48
    assert subject.labels is not None
    dice = patient_dice(labels, subject.labels, KIDNEY_TUMOUR)
    assert all(value is not None and value > 0.8 for value in dice.values())


def test_dice_of_a_patient_by_hand() -> None:
    subject = make_cohort(1, 1).training[0]
    grid = base_of(subject).slices(0, 1)

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
    s = 10 * 48 * float(grid.voxel_ml.mean())  # ten rows
    found_in_vain = patient_dice(labels(*[2] * 10), labels(1), KIDNEY_TUMOUR, smooth_ml=s)
    assert found_in_vain["tumour"] == pytest.approx(1 / 2)
    known = patient_dice(labels(1, 1, 2), labels(1, 2, 2), KIDNEY_TUMOUR, smooth_ml=s)
    assert known["tumour"] == pytest.approx((2 + 10) / (3 + 10))
    assert patient_dice(labels(1), labels(1), KIDNEY_TUMOUR, smooth_ml=s)["tumour"] == 1
    ignore = Volume(labels(0, 1).data > 0, grid)
    assert patient_dice(labels(1, 1), labels(1, 2), KIDNEY_TUMOUR, ignore)["kidney"] == 1


def test_cases_without_a_region_count_in_no_mean() -> None:
    cohort = make_cohort(1, 2)
    nothing = [Volume(torch.zeros_like(s.labels.data), s.image.grid) for s in cohort.validation]  # type: ignore[union-attr]
    unlabelled = tuple(
        replace(s, labels=n) for s, n in zip(cohort.validation, nothing, strict=True)
    )

    def score(of: Cohort) -> dict[str, float]:
        return of.score([of.dice(case, found) for case, found in enumerate(nothing)])

    assert score(replace(cohort, validation=unlabelled)) == {"score": 0.0}
    assert score(cohort)["score"] == 0.0


def test_the_score_is_the_mean_over_patients_then_regions() -> None:
    cohort = make_cohort(1, 2)
    assert cohort.selection == ("kidney+tumour", "tumour")
    figures = cohort.score(
        [
            {"kidney": 0.5, "kidney+tumour": 0.6, "tumour": None},
            {"kidney": 0.7, "kidney+tumour": 0.8, "tumour": 0.3},
        ]
    )
    means = {"dice_kidney": 0.6, "dice_kidney+tumour": 0.7, "dice_tumour": 0.3}
    assert figures == pytest.approx({"score": (0.7 + 0.3) / 2, **means})


def test_dice_of_a_case_leaves_out_what_does_not_count() -> None:
    """Its own labels have Dice 1; wrong ones do not show where they are ignored."""
    cohort = make_cohort(1, 2)
    subject = cohort.validation[1]
    assert subject.labels is not None
    assert set(cohort.dice(1, subject.labels).values()) == {1.0}
    assert cohort.dice(0, subject.labels) != cohort.dice(1, subject.labels)
    wrong, where = subject.labels.data.clone(), torch.zeros_like(subject.labels.data).bool()
    where[:, 3] = True
    wrong[where] = 2
    found = Volume(wrong, subject.labels.grid)
    assert (cohort.dice(1, found)["tumour"] or 0) < 1
    ignoring = replace(subject, ignore=Volume(where, subject.image.grid))
    changed = replace(cohort, validation=(cohort.validation[0], ignoring))
    assert set(changed.dice(1, found).values()) == {1.0}


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="a multiple of 8"):
        PlainConfig(view=ViewConfig(size=50), unet=UNetConfig(size=64))
    with pytest.raises(UsageError) as error:
        method_named("best")
    assert error.value.code == "unknown-method"


def test_augmented_batches_have_the_networks_size() -> None:
    pytest.importorskip("batchgeneratorsv2", reason="nnU-Net's augmentation is an extra")
    cohort = make_cohort(2, 1)
    net = Oracle()
    config = replace(CONFIG, augment="nnunet")
    (stage,) = plain_with(net, cohort, config).stages(cohort)
    first = loss_of(stage, net, NOW)
    assert net.seen[-1] == (6, 1, 48, 48)
    assert loss_of(stage, net, NOW) == first


MR = replace(
    PLAN,
    channels=tuple(
        Normalisation.of_channel(name, PLAN.channels[0].statistics) for name in ("T1", "T2")
    ),
)


def mr_cohort() -> Cohort:
    """Two patients, the second ten times as bright as the first; and one to validate."""
    subjects = []
    for seed, gain in enumerate((1.0, 10.0, 3.0)):
        patient = in_two_channels(make_ellipse_patient(seed), gain)
        subjects.append(
            prepare(
                patient.image,
                Plain.material(CONFIG, MR),
                MR.channels,
                name=f"mr_{seed}",
                labels=patient.labels,
            )
        )
    cohort = make_cohort(1, 1)
    return replace(cohort, training=tuple(subjects[:2]), validation=(subjects[2],), plan=MR)


def test_patients_of_an_mr_are_each_normalised_with_their_own_in_a_batch() -> None:
    """What the network sees of a slice is what it sees of the patient alone; 0 around the scan."""
    cohort = mr_cohort()
    assert cohort.training[0].scalings != cohort.training[1].scalings
    method = Plain.build(CONFIG, cohort.target, MR, device=CPU)
    (stage,) = method.stages(cohort)
    batch = stage.batch(NOW)
    shown: list[Tensor] = []

    def called(image: Tensor) -> list[Tensor]:
        shown.append(image)
        return list(method.parts["segment"](image))

    stage.loss(called, batch)  # type: ignore[arg-type]
    (image,) = shown
    assert image.shape == (6, 2, 48, 48)
    drawn = draw(cohort.index, NOW, 6)
    assert {case for case, _ in drawn} == {0, 1}
    view = Planes(scalings=(), padding=MR.padding, device=CPU)
    for row, (case, k) in enumerate(drawn):
        subject = cohort.training[case]
        own = replace(view, scalings=[subject.scalings]).image(
            subject.image, frame(subject, CONFIG.view, MR, 8).base
        )
        torch.testing.assert_close(image[row], own[k], atol=1e-5, rtol=1e-5)
    seen = {
        case: image[[row for row, (c, _) in enumerate(drawn) if c == case]].std() for case in (0, 1)
    }
    assert 0.5 < float(seen[0] / seen[1]) < 2.0, "ten times as bright no more"
    method.parts["segment"].eval()
    (region,) = advance(cohort.validation[0].image, method.steps(cohort.validation[0])).found
    assert region.found is not None and region.found.channels == 3


def test_style_is_for_ct_alone() -> None:
    cohort = mr_cohort()
    method = Plain.build(replace(CONFIG, augment="style"), cohort.target, MR, device=CPU)
    with pytest.raises(UsageError) as refused:
        list(method.stages(cohort))
    assert refused.value.code == "style-not-ct" and '"nnunet"' in refused.value.next_step


SMALL = ("view.size=32", "unet.size=32", "unet.features=4")
OF_ONE_NETWORK = {
    "homogenized": SMALL,
    "plain": SMALL,
    "plain3d": (),
    "nnunet": ("configuration=3d_fullres", "mirror_axes=[2]"),
}


@pytest.mark.parametrize("name", OF_ONE_NETWORK)
def test_every_method_flips_at_inference_if_it_is_set_to(name: str) -> None:
    """Its segmentation network then sees twice as many images."""
    cohort = replace(make_cohort(1, 1), plan=VOLUMES)
    kind, subject = CONFIGS[name], cohort.validation[0]
    found, calls = [], []
    for flip in (False, True):
        config = replace(load(kind, overrides=OF_ONE_NETWORK[name]), test_time_flip=flip)
        method = METHODS[name].build(config, TARGET, VOLUMES, device=CPU)
        for net in method.parts.values():
            net.eval()
        if name == "homogenized":
            next(iter(method.stages(cohort)))  # takes the reference
        seen: list[int] = []
        method.parts["segment"].register_forward_hook(lambda *_, seen=seen: seen.append(1))
        (region,) = advance(subject.image, method.steps(subject)).found
        assert region.found is not None
        found.append(region.found.data)
        calls.append(len(seen))
    assert calls[1] == 2 * calls[0] > 0
    assert not torch.equal(found[0], found[1])
