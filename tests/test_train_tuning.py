"""Fine-tuning: what is loaded from a model, what goes on learning, and what stays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cascades import config_with
from cohorts import PLAN, TARGET, VOLUMES, make_cohort
from ellipses import write_ellipse_dataset
from kidseg.checkpoint import load_model, save_model
from kidseg.cli.summaries import training_notes, training_text
from kidseg.config import (
    BlocksConfig,
    HomogenizedConfig,
    LocalizerConfig,
    MultistageConfig,
    NnUnetConfig,
    Plain3dConfig,
    PlainConfig,
    PoseConfig,
    ResidualConfig,
    StageConfig,
    StagedNetConfig,
    UNetConfig,
    ViewConfig,
)
from kidseg.device import choose_device
from kidseg.errors import KidsegWarning, UsageError
from kidseg.geometry import Grid, Volume
from kidseg.io import save
from kidseg.labels import Target
from kidseg.methods.cascade.system_c import Cascade
from kidseg.methods.homogenized.system_a import Homogenized
from kidseg.methods.method import Method
from kidseg.methods.multistage.system_b import Multistage
from kidseg.methods.nnunet_networks import NnUnet
from kidseg.methods.plain import Plain
from kidseg.methods.plain3d import Plain3d
from kidseg.plan import Plan
from kidseg.stage import Stage
from kidseg.train import Setup, make_store, train
from kidseg.train.tuning import load_weights, select_trainable
from nnunet_folders import RESIDUAL
from weights import weights_of

CPU = choose_device("cpu", "fp32")
CONFIG = PlainConfig(
    view=ViewConfig(size=32),
    unet=UNetConfig(size=64, features=2),
    segment=StageConfig(epochs=1, batch_size=4, steps=1),
)
KIDNEY = Target(channels=((1,),))
NET = StagedNetConfig(
    net=ResidualConfig(levels=3, features=2, max_features=4), stage=CONFIG.segment
)
LOCALIZER = LocalizerConfig(size=32, pooled=4, hidden=(16, 8))
# With residual encoders.
IMPORTED = replace(
    VOLUMES,
    configurations={"3d_fullres": replace(VOLUMES.configurations["3d_fullres"], topology=RESIDUAL)},
)


def plain(seed: int = 0, target: Target = TARGET, config: PlainConfig = CONFIG) -> Plain:
    return Plain.build(config, target, PLAN, seed=seed, device=CPU)


def tensors(method: Method) -> dict[str, dict[str, Tensor]]:
    return {
        part: {name: tensor.clone() for name, tensor in net.state_dict().items()}
        for part, net in method.parts.items()
    }


def flat(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}.{name}": t for part, state in parts.items() for name, t in state.items()}


def test_all_is_taken_over_by_networks_of_the_same_form() -> None:
    model, method = tensors(plain(1)), plain(0)
    model["segment"]["encode.0.norm.running_mean"].fill_(7.0)
    weights = method.parts["segment"].state_dict()
    taken = load_weights(method, model)
    assert taken.loaded == len(weights) and not (taken.fresh or taken.reshaped or taken.unused)
    for name, tensor in method.parts["segment"].state_dict().items():
        assert torch.equal(tensor, model["segment"][name]), name
    assert str(taken) == f"{taken.loaded} tensors loaded from the model"
    model["segment"]["heads.0.weight"].fill_(99.0)
    assert not (method.parts["segment"].state_dict()["heads.0.weight"] == 99).any(), "a copy"


def test_a_model_of_single_slices_gives_the_same_between_neighbours() -> None:
    """Until it is trained, whatever the neighbours show."""
    single, wide = plain(1), plain(0, config=replace(CONFIG, reach=2))
    taken = load_weights(wide, tensors(single))
    assert taken.widened and not taken.reshaped and not taken.fresh and not taken.unused
    assert f"{len(taken.widened)} see neighbouring slices now: segment.encode.0." in str(taken)
    images = torch.randn(2, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    nets = (single.parts["segment"].eval(), wide.parts["segment"].eval())
    (before,), (after,) = nets[0](images[:, 2:3]), nets[1](images)
    torch.testing.assert_close(after, before)
    again = load_weights(plain(0, config=replace(CONFIG, reach=2)), tensors(wide))
    assert not again.widened and again.loaded == taken.loaded


def test_heads_of_other_labels_stay_fresh_and_are_named() -> None:
    model, method = tensors(plain(1)), plain(0, KIDNEY)
    before = flat(tensors(method))
    taken = load_weights(method, model)
    heads = {name for name in before if ".heads." in name}
    assert set(taken.reshaped) == heads and heads and not taken.fresh and not taken.unused
    assert taken.loaded == len(before) - len(heads)
    for name, tensor in flat(tensors(method)).items():
        wanted = before if name in heads else flat(model)
        assert torch.equal(tensor, wanted[name]), name
    assert f"{len(heads)} newly initialised (other shape in the model)" in str(taken)


def test_what_the_model_lacks_and_what_is_not_used_is_named() -> None:
    """One head less, and one part more, in the model."""
    model, method = tensors(plain(1)), plain(0)
    fresh = {f"segment.{name}" for name in list(model["segment"]) if name.startswith("up.0.")}
    for name in fresh:
        del model["segment"][name.removeprefix("segment.")]
    model["pose"] = {"weight": torch.ones(3), "bias": torch.ones(1)}
    before = flat(tensors(method))
    taken = load_weights(method, model)
    assert set(taken.fresh) == fresh and taken.unused == ("pose.weight", "pose.bias")
    assert taken.loaded == len(before) - len(fresh) and not taken.reshaped
    after = flat(tensors(method))
    assert all(torch.equal(after[name], before[name]) for name in fresh)
    text = str(taken)
    assert "newly initialised (missing in the model): segment.up.0." in text
    assert "2 of the model not used: pose.weight, pose.bias" in text
    assert taken.as_dict() == asdict(taken)


def test_of_many_names_four_are_said() -> None:
    model, method = tensors(plain(1)), plain(0)
    model["other"] = {str(k): torch.ones(1) for k in range(6)}
    assert str(load_weights(method, model)).endswith(": other.0, other.1, other.2, other.3, ...")


@pytest.mark.parametrize("model", [{}, {"pose": {"weight": torch.ones(3)}}])
def test_a_model_of_which_nothing_fits_is_refused(model: dict[str, dict[str, Tensor]]) -> None:
    with pytest.raises(UsageError, match="no weights") as error:
        load_weights(plain(), model)
    assert error.value.code == "nothing-taken-over" and error.value.next_step


# What is trained


METHODS: dict[str, Any] = {
    "plain": lambda: plain(),
    "cascade": lambda: Cascade.build(config_with(), TARGET, PLAN, device=CPU),
    "plain3d": lambda: Plain3d.build(
        Plain3dConfig(
            blocks=BlocksConfig(patch=(8, 32, 32), features=2),
            segment=CONFIG.segment,
            augment="none",
        ),
        TARGET,
        VOLUMES,
        device=CPU,
    ),
    "nnunet": lambda: NnUnet.build(
        NnUnetConfig(configuration="3d_fullres", segment=CONFIG.segment, augment="none"),
        TARGET,
        IMPORTED,
        device=CPU,
    ),
    "multistage": lambda: Multistage.build(
        MultistageConfig(coarse_size=32, box=16, coarse=NET, resunet=NET, resnet=NET),
        TARGET,
        PLAN,
        device=CPU,
    ),
    "homogenized": lambda: Homogenized.build(
        HomogenizedConfig(
            view=ViewConfig(size=32),
            unet=UNetConfig(size=64, features=2),
            segment=CONFIG.segment,
            pose=PoseConfig(localizer=LOCALIZER, teacher=0.0, stage=CONFIG.segment),
        ),
        TARGET,
        PLAN,
        device=CPU,
    ),
}


def stages_of(method: Method) -> list[Stage]:
    plan = VOLUMES if method.name == "plain3d" else PLAN
    cohort = replace(make_cohort(2, 1, ViewConfig(size=32)), plan=plan)
    return list(method.stages(cohort))


def names_of(net: nn.Module, beginnings: Iterable[str]) -> set[str]:
    begin = tuple(beginnings)
    return {name for name, _ in net.named_parameters() if name.startswith(begin)}


@pytest.mark.parametrize("name", METHODS)
def test_regimes_choose_parts_of_the_network(name: str) -> None:
    """Levels count from the finest; of the encoder all but its first two stay, with "ends"."""
    method = METHODS[name]()
    every = stages_of(method)
    others = [stage for stage in every if stage.name == "pose"]
    for stage in every:
        if stage not in others:
            check_regimes(method, stage)
    assert not any(select_trainable(other, method, "decoder") for other in others), "nothing"
    assert len(others) == (name == "homogenized") and len(every) > len(others)


def check_regimes(method: Method, stage: Stage) -> None:
    net = stage.net
    assert select_trainable(stage, method, "all") is stage
    decoder = select_trainable(stage, method, "decoder")
    assert decoder is not None and decoder.trainable is not None
    assert set(decoder.trainable) == names_of(net, ("up.", "decode.", "last.", "heads."))
    kept = {one.partition(".")[0] for one, _ in net.named_parameters()} - {"encode", "down"}
    kept -= {"bridge", "bottleneck"}
    assert kept == {one.partition(".")[0] for one in decoder.trainable}, "all after the coarsest"
    ends = select_trainable(stage, method, "ends")
    assert ends is not None and ends.trainable is not None
    blocks = [f"{block}.{k}." for block in ("encode", "down", "up", "decode") for k in (0, 1)]
    assert set(ends.trainable) == names_of(net, (*blocks, "last.", "heads."))
    everything = {one for one, _ in net.named_parameters()}
    for chosen in (decoder, ends):
        assert 0 < len(set(chosen.trainable or ())) < len(everything)
        assert (chosen.name, chosen.net, chosen.config) == (stage.name, net, stage.config)


@pytest.mark.parametrize(
    ("tune", "beginnings"),
    [
        ("segment.*", [""]),
        ("*", [""]),
        ("segment.heads.*", ["heads."]),
        ("segment.heads.0.weight", ["heads.0.weight"]),
        ("segment.heads.*, segment.up.0.*", ["heads.", "up.0."]),
        ("segment.encode.[01].*", ["encode.0.", "encode.1."]),
        ("pose.*,segment.heads.*", ["heads."]),
    ],
)
def test_patterns_choose_parameters(tune: str, beginnings: list[str]) -> None:
    method = plain()
    (stage,) = stages_of(method)
    chosen = select_trainable(stage, method, tune)
    assert chosen is not None and set(chosen.trainable or ()) == names_of(stage.net, beginnings)


def test_patterns_of_one_part_leave_the_other_stages_out() -> None:
    method = METHODS["homogenized"]()
    pose, segment = stages_of(method)
    assert select_trainable(segment, method, "pose.*") is None
    chosen = select_trainable(pose, method, "pose.*")
    assert chosen is not None and chosen.trainable == tuple(
        n for n, _ in pose.net.named_parameters()
    )


@pytest.mark.parametrize("tune", ["decode", "heads.*", "", ",", "Segment.*"])
def test_patterns_that_name_nothing_are_refused(tune: str) -> None:
    method = plain()
    (stage,) = stages_of(method)
    with pytest.raises(UsageError, match="no parameter name matches") as error:
        select_trainable(stage, method, tune)
    assert error.value.code == "nothing-to-tune"
    assert "decoder" in (error.value.next_step or "")
    assert "segment.encode.0." in (error.value.next_step or "")


# From a model to a model


TINY = (
    "view.size=32",
    "unet.size=32",
    "unet.features=4",
    "precision=fp32",
    "segment.epochs=2",
    "segment.min_epochs=0",
    "segment.steps=2",
    "segment.batch_size=6",
)
SHORT = TINY[4:]
GAINING = (  # enough to become better than what TINY has learned
    *SHORT,
    "segment.steps=20",
    "segment.optimizer.name=adam",
    "segment.optimizer.learning_rate=0.01",
    "segment.optimizer.weight_decay=0",
)
POSE = (
    "pose.localizer.size=32",
    "pose.localizer.pooled=4",
    "pose.localizer.hidden=[16,8]",
    "pose.teacher=0.0",
    "pose.stage.epochs=1",
    "pose.stage.min_epochs=0",
    "pose.stage.steps=1",
    "pose.stage.batch_size=6",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in "run", of "data"; and "other": brighter, of finer pixels, of kidneys alone."""
    root = tmp_path_factory.mktemp("tuning")
    write_ellipse_dataset(root / "data", 3)
    train(root / "data", root / "run", Setup(method="plain", overrides=TINY), device="cpu")
    labels = {"labels": {"background": 0, "kidney": 1}}
    for name, patient in write_ellipse_dataset(root / "other", 3, seed=1, tells=labels).items():
        grid = Grid.from_spacing((8, 64, 64), (8.0, 3.0, 3.0))
        image = Volume(patient.image.data + 300, grid)
        save(image, root / "other" / "imagesTr" / f"{name}_0000.nii.gz", overwrite=True)
        kidney = Volume((patient.labels.data > 0).byte(), grid)
        save(kidney, root / "other" / "labelsTr" / f"{name}.nii.gz", overwrite=True)
    return root


def model_of(run: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    model = load_model(run / "model.safetensors")
    return dict(model.header), flat({part: dict(state) for part, state in model.parts.items()})


def start_of(root: Path) -> Path:
    return root / "run" / "model.safetensors"


def goes_on(root: Path, out: Path, data: str = "data", **asked: Any) -> dict[str, Any]:
    how = {name: asked.pop(name) for name in ("resume", "overwrite", "progress") if name in asked}
    setup = Setup(start=start_of(root), **asked)
    return train(root / data, out, setup, device="cpu", **how)


def test_only_the_decoder_moves_and_no_statistic_of_a_frozen_norm(
    root: Path, tmp_path: Path
) -> None:
    summary = goes_on(root, tmp_path / "run", tune="decoder", overrides=GAINING)
    (_, before), (_, after) = model_of(root / "run"), model_of(tmp_path / "run")
    assert before.keys() == after.keys()
    moving = ("segment.up.", "segment.decode.", "segment.heads.")
    still = [name for name in before if not name.startswith(moving)]
    assert any("running_var" in name for name in still)
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == (name in still), name
    assert summary["start"]["tune"] == "decoder" and summary["start"]["loaded"] == len(before)
    sha256 = load_model(start_of(root)).sha256
    assert summary["start"]["sha256"] == sha256
    note = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (note["start"], note["tune"]) == (str(start_of(root)), "decoder")
    assert note["files"]["start.safetensors"] == sha256
    kept = tmp_path / "run" / "start.safetensors"
    assert kept.read_bytes() == start_of(root).read_bytes()
    assert summary["method"] == "plain", "the model's, which was not named"
    start, best = summary["start"]["validation"]["segment"], summary["stages"]["segment"]
    assert best["epoch"] >= 0 and start["score"] < best["score"]
    assert "not-better" not in {finding["code"] for finding in summary["findings"]}
    assert "before" in training_text(summary, tmp_path / "run")


def test_a_model_that_no_epoch_improves_is_kept_and_that_is_said(
    root: Path, tmp_path: Path
) -> None:
    worse = [*SHORT, "segment.optimizer.learning_rate=100", "segment.steps=3"]
    summary = goes_on(root, tmp_path / "run", overrides=worse)
    (_, before), (_, after) = model_of(root / "run"), model_of(tmp_path / "run")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert summary["stages"]["segment"]["epoch"] == -1
    assert summary["validation"]["segment"] == summary["start"]["validation"]["segment"]
    (said,) = (one for one in summary["findings"] if one["code"] == "not-better")
    assert "whose weights are kept" in said["cause"] and said["next_step"]
    assert any("whose weights are kept" in line for line in training_notes(summary, tmp_path))
    new = goes_on(root, tmp_path / "other", "other", overrides=SHORT)
    assert new["start"]["validation"] == {}, "its outputs are others, which have learned nothing"
    assert new["stages"]["segment"]["epoch"] >= 0


def test_calibration_of_the_model_is_not_in_the_new_one_and_that_is_said(
    root: Path, tmp_path: Path
) -> None:
    model = load_model(start_of(root))
    calibrated = {"decision": {"tumour": 2.0}, "intervals": {"level": 0.9}}
    start = tmp_path / "start.safetensors"
    save_model(start, model.parts, {**model.header, **calibrated})
    setup = Setup(start=start, overrides=[*SHORT, "segment.epochs=1"])
    summary = train(root / "data", tmp_path / "run", setup, device="cpu")
    (said,) = (one for one in summary["findings"] if one["code"] == "calibration-left-out")
    assert "weights of the decision and intervals of volumes" in said["cause"]
    assert said["path"] == str(start) and f"--weights-of {start}" in said["next_step"]
    assert not set(calibrated) & set(load_model(tmp_path / "run" / "model.safetensors").header)
    assert any("weights of the decision" in line for line in training_notes(summary, tmp_path))
    plain = goes_on(root, tmp_path / "plain", overrides=["segment.epochs=1"])
    assert "calibration-left-out" not in {one["code"] for one in plain["findings"]}


def test_the_plan_travels_with_the_model(root: Path, tmp_path: Path) -> None:
    """Clip values and spacing are the model's; cases and labels those of the new data."""
    summary = goes_on(root, tmp_path / "run", "other", overrides=["segment.epochs=1"])
    fresh = Setup(method="plain", overrides=[*TINY, "segment.epochs=1"])
    train(root / "other", tmp_path / "fresh", fresh, device="cpu")
    old, new, own = (
        Plan.from_dict(model_of(run)[0]["plan"])
        for run in (root / "run", tmp_path / "run", tmp_path / "fresh")
    )
    assert new.channels == old.channels and new.median_spacing_mm == old.median_spacing_mm
    assert new.configurations == old.configurations
    assert own.channels != old.channels and own.median_spacing_mm == (8.0, 3.0, 3.0)
    assert new.labels == {1: "kidney"} and old.labels == {1: "kidney", 2: "tumour"}
    assert list(new.training) == summary["cases"]["training"]
    assert json.loads((tmp_path / "run" / "plan.json").read_text()) == json.loads(
        json.dumps(new.as_dict())
    )
    heads = {name for name in model_of(root / "run")[1] if ".heads." in name}
    assert set(summary["start"]["reshaped"]) == heads and summary["start"]["fresh"] == ()
    assert model_of(tmp_path / "run")[0]["labels"]["names"] == {"1": "kidney"}


def write_as_t1(data: Path, out: Path) -> None:
    """The data set with the files of another, whose channel is called T1."""
    out.mkdir()
    for folder in ("imagesTr", "labelsTr"):
        (out / folder).symlink_to(data / folder)
    content = json.loads((data / "dataset.json").read_text())
    content["channel_names"] = {"0": "T1"}
    (out / "dataset.json").write_text(json.dumps(content))


def test_other_channels_are_refused_and_other_names_told(root: Path, tmp_path: Path) -> None:
    write_ellipse_dataset(tmp_path / "two", 3, channels=("T1", "T2"))
    with pytest.raises(UsageError) as error:
        goes_on(root, tmp_path / "a", str(tmp_path / "two"))
    assert error.value.code == "other-channels"
    write_as_t1(root / "data", tmp_path / "t1")
    with pytest.warns(KidsegWarning, match=r"\['CT'\]; these are \['T1'\]"):
        goes_on(root, tmp_path / "b", str(tmp_path / "t1"), overrides=["segment.epochs=1"])


def test_a_store_is_checked_like_the_files(root: Path, tmp_path: Path) -> None:
    """Number and normalisation of channels; and that its pixels are those of the model's plan."""
    write_ellipse_dataset(tmp_path / "two", 3, channels=("T1", "T2"))
    make_store(tmp_path / "two", tmp_path / "of-two", Setup(method="plain"), full=True)
    with pytest.raises(UsageError) as error:
        goes_on(root, tmp_path / "a", str(tmp_path / "of-two"))
    assert error.value.code == "other-channels"

    write_as_t1(root / "data", tmp_path / "t1")
    make_store(tmp_path / "t1", tmp_path / "of-t1", Setup(method="plain"), full=True)
    with (
        pytest.warns(KidsegWarning, match=r"\['CT'\]; these are \['T1'\]"),
        pytest.raises(UsageError) as error,
    ):
        goes_on(root, tmp_path / "b", str(tmp_path / "of-t1"))
    assert error.value.code == "store-of-other-settings"

    # Of 4 mm, as its own settings ask for; the model's ask for 8 mm.
    write_ellipse_dataset(tmp_path / "fine", 3, fine=3)
    overrides = ["view.size=64", "unet.size=64"]
    make_store(tmp_path / "fine", tmp_path / "of-fine", Setup(method="plain", overrides=overrides))
    with pytest.raises(UsageError) as error:
        goes_on(root, tmp_path / "c", str(tmp_path / "of-fine"))
    assert error.value.code == "store-of-other-settings"


def test_as_many_labels_of_other_names_are_told(root: Path, tmp_path: Path) -> None:
    labels = {"labels": {"background": 0, "liver": 1, "spleen": 2}}
    write_ellipse_dataset(tmp_path / "liver", 3, tells=labels)
    with pytest.warns(KidsegWarning, match=r"\['kidney', 'tumour'\]; these are \['liver', 'spl"):
        goes_on(root, tmp_path / "a", str(tmp_path / "liver"), overrides=["segment.epochs=1"])


def test_networks_of_another_width_take_over_nothing(root: Path, tmp_path: Path) -> None:
    """Counters of norms and biases of heads of as many labels would fit; they are no weights."""
    with pytest.raises(UsageError) as error:
        goes_on(root, tmp_path / "run", overrides=["unet.features=6"])
    assert error.value.code == "nothing-taken-over"
    assert not (tmp_path / "run" / "model.safetensors").exists()


class Stop(Exception):
    """A training is stopped."""


def stop(what: str, done: int, *_: Any) -> None:
    if (what, done) == ("segment", 1):
        raise Stop


@pytest.mark.ci
def test_resumed_without_naming_the_model_it_ends_with_the_same_bits(
    root: Path, tmp_path: Path
) -> None:
    """Its model may be gone by then; another, or another part, is refused."""
    model = tmp_path / "model.safetensors"
    model.write_bytes(start_of(root).read_bytes())
    setup = Setup(start=model, tune="ends", seed=4, overrides=SHORT)
    train(root / "data", tmp_path / "whole", setup, device="cpu")
    out = tmp_path / "broken"
    with pytest.raises(Stop):
        train(root / "data", out, setup, device="cpu", progress=stop)
    other = model.rename(tmp_path / "moved.safetensors")
    with pytest.raises(UsageError) as error:
        train(root / "data", out, replace(setup, start=other, tune="decoder"), resume=True)
    assert error.value.code == "other-settings" and "tune ends" in str(error.value)
    changed = tmp_path / "whole" / "model.safetensors"
    with pytest.raises(UsageError) as error:
        train(root / "data", out, replace(setup, start=changed), resume=True)
    assert error.value.code == "other-settings"
    train(root / "data", out, Setup(seed=4), device="cpu", resume=True)
    weights = [weights_of(run / "model.safetensors") for run in (tmp_path / "whole", out)]
    assert weights[0] == weights[1]
    again = train(root / "data", out, replace(setup, start=other), device="cpu", resume=True)
    assert again["start"]["tune"] == "ends"


def test_nothing_to_tune_is_said_before_the_data_set_is_opened(root: Path, tmp_path: Path) -> None:
    setup = Setup(start=start_of(root), tune="segment.nothing.*")
    with pytest.raises(UsageError) as error:
        train(root / "nowhere", tmp_path / "run", setup, device="cpu")
    assert error.value.code == "nothing-to-tune"
    assert not (tmp_path / "run").exists()


def test_a_run_from_no_model_is_not_resumed_with_one(root: Path, tmp_path: Path) -> None:
    setup = Setup(method="plain", overrides=TINY)
    out = tmp_path / "run"
    with pytest.raises(Stop):
        train(root / "data", out, setup, device="cpu", progress=stop)
    with pytest.raises(UsageError) as error:
        train(root / "data", out, replace(setup, start=start_of(root)), device="cpu", resume=True)
    assert error.value.code == "other-settings"


def test_a_run_is_not_replaced_by_one_that_goes_on_from_its_model(
    root: Path, tmp_path: Path
) -> None:
    """The model would be removed before it is read for good."""
    out = tmp_path / "run"
    out.mkdir()
    model = out / "model.safetensors"
    model.write_bytes(start_of(root).read_bytes())
    with pytest.raises(UsageError) as error:
        train(root / "data", out, Setup(start=model), device="cpu", overwrite=True)
    assert error.value.code == "output-exists"
    assert model.read_bytes() == start_of(root).read_bytes()


@pytest.mark.ci
def test_stages_with_nothing_to_tune_are_left_out(root: Path, tmp_path: Path) -> None:
    """The decoder of System A is the U-Net's; its pose and its reference stay to the bit."""
    setup = Setup(method="homogenized", overrides=[*TINY, *POSE, "segment.epochs=1"])
    train(root / "data", tmp_path / "first", setup, device="cpu")
    start = tmp_path / "first" / "model.safetensors"
    again = Setup(start=start, tune="decoder", overrides=GAINING)
    summary = train(root / "data", tmp_path / "second", again, device="cpu")
    assert set(summary["stages"]) == {"segment"} == set(summary["seconds"]) - {"prepare"}
    (old, before), (new, after) = model_of(tmp_path / "first"), model_of(tmp_path / "second")
    for name, tensor in before.items():
        if name.startswith(("pose.", "reference.")):
            assert torch.equal(tensor, after[name]), name
    assert not torch.equal(before["segment.heads.0.weight"], after["segment.heads.0.weight"])
    for figure in ("radii_mm", "field_mm"):
        assert new["reference"][figure] == old["reference"][figure]


def test_a_regime_that_names_nothing_is_refused_before_training(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        goes_on(root, tmp_path / "run", tune="segment.decoder.*")
    assert error.value.code == "nothing-to-tune"
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.slow
def test_on_the_command_line(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kidseg", "train", str(root / "data"), "--json"]
    how = ["--device", "cpu", "--set", "segment.epochs=1"]
    asked = ["-o", str(tmp_path / "run"), "--from", str(start_of(root)), "--tune", "decoder", *how]
    done = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["start"]["tune"] == "decoder" and summary["method"] == "plain"
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    refused = ["-o", str(tmp_path / "none"), "--tune", "decoder", *how]
    done = subprocess.run([*command, *refused], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["code"] == "tune-without-model"
