"""What is trained: settings laid over one another, and a model to go on from."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cohorts import PLAN, TARGET, VOLUMES
from kidseg.checkpoint import load_model, save_model
from kidseg.config import (
    HomogenizedConfig,
    LocalizerConfig,
    Plain3dConfig,
    PlainConfig,
    PoseConfig,
    UNetConfig,
    ViewConfig,
)
from kidseg.device import choose_device
from kidseg.errors import InputError, KidsegWarning, ModelError, UsageError
from kidseg.methods import METHODS
from kidseg.methods.homogenized.system_a import Homogenized
from kidseg.methods.plain import Plain
from kidseg.plan import Plan
from kidseg.registry import METHODS as NAMES
from kidseg.train import Setup
from kidseg.train.setup import plan_from_model, resolve

CPU = choose_device("cpu", "fp32")
CONFIG = PlainConfig(
    view=ViewConfig(size=48), unet=UNetConfig(size=64, features=4), precision="fp32"
)


def write_model(
    path: Path, change: Callable[[dict[str, Any]], object] = lambda _: None, plan: Plan = PLAN
) -> Path:
    """A model of method 'plain', fresh; its header changed."""
    method = Plain.build(CONFIG, TARGET, plan, device=CPU)
    header = {"method": "plain", "config": asdict(CONFIG), "plan": plan.as_dict()}
    change(header)
    save_model(path, {name: net.state_dict() for name, net in method.parts.items()}, header)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("setup") / "model.safetensors")


def test_without_a_model_it_is_the_method_that_is_named_or_the_first() -> None:
    first = resolve(Setup())
    assert first.method is METHODS[NAMES[0]] and first.config == HomogenizedConfig()
    assert first.start is None and first.plan is None
    chosen = resolve(Setup(method="plain3d", overrides=["segment.epochs=7"]))
    assert chosen.method is METHODS["plain3d"] and isinstance(chosen.config, Plain3dConfig)
    assert chosen.config.segment.epochs == 7


def test_with_a_model_it_is_the_models_method_settings_and_plan(model: Path) -> None:
    chosen = resolve(Setup(start=model))
    assert chosen.method is Plain and chosen.config == CONFIG and chosen.plan == PLAN
    assert chosen.start is not None and set(chosen.start.parts) == {"segment"}
    assert resolve(Setup(start=model, method="plain")).config == CONFIG
    (model.parent / "run").mkdir()
    shutil.copy(model, model.parent / "run" / "model.safetensors")
    assert resolve(Setup(start=model.parent / "run")).config == CONFIG


def test_the_length_of_a_training_is_not_the_models(model: Path, tmp_path: Path) -> None:
    known = load_model(model)
    config = {**known.header["config"], "workers": 7, "budget_s": 691.0}
    config["segment"] = {**config["segment"], "steps": 1000, "epochs": 3, "batch_size": 5}
    config["cohort"] = {**config["cohort"], "validation_share": 0.01, "label_share": 0.2}
    file = tmp_path / "far.safetensors"
    save_model(file, known.parts, {**known.header, "config": config})
    here: PlainConfig = resolve(Setup(start=file)).config
    assert here == replace(
        CONFIG,
        segment=replace(CONFIG.segment, batch_size=5),
        cohort=replace(CONFIG.cohort, label_share=0.2),
    )
    asked = resolve(Setup(start=file, overrides=["workers=3", "segment.steps=4"])).config
    assert (asked.workers, asked.segment.steps) == (3, 4)


def test_settings_lie_over_one_another(model: Path, tmp_path: Path) -> None:
    """Defaults, the model's, the preset's, the file's, those that are named; key by key."""
    file = tmp_path / "mine.toml"
    file.write_text("[segment]\nbatch_size = 7\nsteps = 9\n")

    def resolved(**asked: Any) -> PlainConfig:
        found: PlainConfig = resolve(Setup(start=model, **asked)).config
        return found

    over_all = resolved(preset="demo", config_file=file, overrides=["segment.steps=11"])
    # view.size: default 128, model 48, preset 96; features: 32, 4, 12; the depth is the model's.
    assert (over_all.view.size, over_all.unet.features) == (96, 12)
    assert over_all.network.halvings == CONFIG.network.halvings == 3
    assert over_all.network.supervised == CONFIG.network.supervised == 1
    assert over_all.precision == "fp32", "the model's, of which the others say nothing"
    assert over_all.view.bone_hu == 220.0, "the default of all"
    # batch_size: preset 16, file 7; steps: preset 20, file 9, override 11.
    assert (over_all.segment.batch_size, over_all.segment.steps) == (7, 11)
    assert over_all.segment.budget_s == 150.0, "the preset's beside the file's"
    less = resolved(config_file=file)
    assert (less.view.size, less.segment.batch_size, less.segment.steps) == (48, 7, 9)
    assert less.segment.optimizer.name == "sgd"
    alone = resolve(Setup(method="plain", preset="demo", config_file=file)).config
    assert (alone.view.size, alone.precision, alone.segment.batch_size) == (96, "auto", 7)


@pytest.mark.parametrize(
    ("asked", "error", "code"),
    [
        ({"method": "plain3d"}, UsageError, "other-method"),
        ({"method": "best"}, UsageError, "other-method"),
        ({"preset": "best"}, UsageError, "unknown-preset"),
        ({"overrides": ["view.sizes=3"]}, UsageError, "bad-setting"),
        ({"config_file": Path("nowhere.toml")}, InputError, "unreadable"),
    ],
)
def test_what_does_not_go_with_the_model_is_refused(
    model: Path, asked: dict[str, Any], error: type[UsageError | InputError], code: str
) -> None:
    with pytest.raises(error) as caught:
        resolve(Setup(start=model, **asked))
    assert caught.value.code == code and caught.value.next_step
    if code == "other-method":
        assert str(model) in str(caught.value) and "'plain'" in str(caught.value)


def test_a_reference_is_a_setting_of_methods_that_have_one() -> None:
    name = 'case "1" \\ é'
    assert resolve(Setup(reference=name)).config.pose.reference == name
    asked = Setup(method="homogenized", overrides=["pose.reference=b"], reference="a")
    assert resolve(asked).config.pose.reference == "a"
    for method in ("plain", "plain3d"):
        with pytest.raises(UsageError, match="no reference") as error:
            resolve(Setup(method=method, reference="a"))
        assert error.value.code == "no-reference" and error.value.next_step


SMALL_POSE = PoseConfig(localizer=LocalizerConfig(size=32, hidden=(8, 8)), reference="old")
HOMOGENIZED = HomogenizedConfig(
    view=ViewConfig(size=32), pose=SMALL_POSE, unet=UNetConfig(features=2), precision="fp32"
)


def test_a_model_keeps_its_reference_and_its_depth(tmp_path: Path) -> None:
    method = Homogenized.build(HOMOGENIZED, TARGET, PLAN, device=CPU)
    header = {"method": "homogenized", "config": asdict(HOMOGENIZED), "plan": PLAN.as_dict()}
    file = tmp_path / "model.safetensors"
    save_model(file, {name: net.state_dict() for name, net in method.parts.items()}, header)
    assert resolve(Setup(start=file)).config.pose.reference == "old"
    assert resolve(Setup(start=file, reference="old")).config.pose.reference == "old"
    for asked in ({"reference": "new"}, {"overrides": ["pose.reference=new"]}):
        with pytest.raises(UsageError, match="keeps its reference") as error:
            resolve(Setup(start=file, **asked))
        assert error.value.code == "reference-of-model"
    # Other masks or slices of it would be those of another patient.
    for setting in (
        "reference_slices=8",
        "target=body",
        "reference_mode=slice",
        "localizer.size=64",
    ):
        name = f"pose.{setting.partition('=')[0]}".replace(".", r"\.")
        with pytest.raises(UsageError, match=rf"keeps its reference.* {name} would need") as error:
            resolve(Setup(start=file, overrides=[f"pose.{setting}"]))
        assert error.value.code == "reference-of-model"
    resolve(Setup(start=file, overrides=["pose.stage.epochs=3", "pose.iterations=1"]))
    larger = resolve(Setup(start=file, overrides=["view.size=64"])).config
    assert larger.view.size == 64 and larger.network == HOMOGENIZED.network


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("plain", ["view.size=160", "unet.size=256"], ("256", "160", "unet.bottleneck=5")),
        ("plain", ["view.size=64", "unet.size=32"], ("32", "64", "unet.bottleneck=16")),
        ("homogenized", ["unet.size=128", "crop.output=half"], ("128", "64", "unet.bottleneck=4")),
    ],
)
def test_a_depth_for_images_of_another_size_is_refused_but_not_of_earlier_runs(
    method: str, settings: list[str], said: tuple[str, str, str], tmp_path: Path
) -> None:
    """The setting that is advised gives that depth. A run of an earlier version is resumed."""
    setup = Setup(method=method, overrides=settings)
    with pytest.raises(UsageError) as error:
        resolve(setup)
    assert error.value.code == "bad-setting"
    assert all(word in f"{error.value.cause} {error.value.next_step}" for word in said)
    earlier = resolve(setup, resumed=True).config
    left = [text for text in settings if not text.startswith("unet.size")]
    instead = resolve(Setup(method=method, overrides=[*left, said[2]])).config
    assert instead.network.halvings == earlier.network.halvings
    own = f"unet.size={earlier.input_size}"
    same = resolve(Setup(method=method, overrides=[*left, own, said[2]])).config
    assert same.network == instead.network


@pytest.mark.parametrize("preset", ["demo", "starter"])
@pytest.mark.parametrize("method", ["plain", "homogenized"])
def test_presets_have_the_networks_that_they_had(preset: str, method: str) -> None:
    """When they said the depth by the size of other images."""
    sides = {"demo": (96, 128), "starter": (160, 256)}[preset]
    config = resolve(Setup(method=method, preset=preset)).config
    earlier = UNetConfig(
        size=sides[1], features=config.unet.features, max_features=config.unet.max_features
    )
    assert config.network == earlier.of_input(sides[0])


def test_a_crop_of_half_the_side_has_a_level_less_with_a_preset_too() -> None:
    overrides = ["crop.output=half"]
    half = resolve(Setup(method="homogenized", preset="demo", overrides=overrides)).config.network
    assert (half.size, half.halvings, half.supervised) == (48, 3, 1)


@pytest.mark.parametrize("tune", ["all", "decoder", "ends", "segment.*"])
def test_a_part_of_no_model_cannot_be_trained(tune: str) -> None:
    with pytest.raises(UsageError, match="requires a model") as error:
        resolve(Setup(method="plain", tune=tune))
    assert error.value.code == "tune-without-model" and "--from" in (error.value.next_step or "")


@pytest.mark.parametrize("method", ["best", "unet"])
def test_an_unknown_method_is_refused(method: str) -> None:
    with pytest.raises(UsageError) as error:
        resolve(Setup(method=method))
    assert error.value.code == "unknown-method"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda header: header.pop("plan"), "damaged-model"),
        (lambda header: header.pop("config"), "damaged-model"),
        (lambda header: header.update(config=3), "damaged-model"),
        (lambda header: header.update(config="small"), "damaged-model"),
        (lambda header: header.update(plan="small"), "bad-plan"),
        (lambda header: header.update(plan=None), "bad-plan"),
        (lambda header: header["plan"].pop("channels"), "bad-plan"),
        (lambda header: header["plan"].update(format=99), "bad-plan"),
    ],
)
def test_a_header_that_does_not_say_what_it_must_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], code: str
) -> None:
    path = write_model(tmp_path / "model.safetensors", change)
    with pytest.raises(ModelError) as error:
        resolve(Setup(start=path))
    assert error.value.code == code


def test_a_model_that_is_none_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises((ModelError, InputError)):
        resolve(Setup(start=tmp_path / "nothing.safetensors"))
    broken = tmp_path / "broken.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    broken.write_bytes(content)
    with pytest.raises(ModelError) as error:
        resolve(Setup(start=broken))
    assert error.value.code == "damaged-model"


def test_the_models_plan_is_kept_for_other_cases() -> None:
    """Values and voxels stay; cases and labels are the new ones."""
    found = plan_from_model(VOLUMES, ["CT"], ["a", "b"], {1: "kidney"})
    assert found == replace(VOLUMES, training=("a", "b"), labels={1: "kidney"})
    assert VOLUMES.training == () and VOLUMES.labels == {1: "kidney", 2: "tumour"}


def test_another_number_of_channels_is_refused_and_other_names_are_told() -> None:
    with pytest.raises(UsageError, match=r"requires 1 channel\(s\), the data set has 2") as error:
        plan_from_model(PLAN, ["CT", "T1"], ["a"], {1: "kidney"})
    assert error.value.code == "other-channels"
    with pytest.warns(KidsegWarning, match=r"\['CT'\]; these are \['T1'\]"):
        found = plan_from_model(PLAN, ["T1"], ["a"], {1: "kidney"})
    assert found.channels == PLAN.channels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan_from_model(PLAN, ["CT"], ["a"], {1: "kidney"})
