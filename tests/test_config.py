from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kidseg.config import (
    METHODS,
    CropConfig,
    OptimizerConfig,
    PhantomConfig,
    StageConfig,
    dump,
    load,
    passed_on,
    schema,
)
from kidseg.errors import InputError, UsageError


def test_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("size = 256\nages_years = [0, 5]\n")
    config = load(PhantomConfig, file=file, overrides=["size=128", "phase=excretory"])
    assert config == PhantomConfig(size=128, ages_years=(0.0, 5.0), phase="excretory")
    assert load(PhantomConfig) == PhantomConfig()


def test_dump_reads_back_equal(tmp_path: Path) -> None:
    config = PhantomConfig(size=64, max_slices=12, slice_mm=(1.0, 2.5))
    file = tmp_path / "c.toml"
    file.write_text(dump(config))
    assert load(PhantomConfig, file=file) == config


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("sizes=3", "unknown key 'sizes'"),
        ("size=big", "'size'"),
        ('size="128"', "'size'"),
        ("size=8", "must be at least 32, not 8"),
        ("ages_years=[5, 2]", "must be ascending"),
        ("phase=late", "'phase"),
        ("size", "is not a setting"),
        ("size.x=3", "'size"),
    ],
)
def test_wrong_settings_are_named(override: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        load(PhantomConfig, overrides=[override])


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(PhantomConfig, file=tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("size = = 3")
    with pytest.raises(InputError, match="not valid TOML") as raised:
        load(PhantomConfig, file=broken)
    assert raised.value.code == "not-toml"
    broken.write_bytes(b"\xef\xbb\xbfsize = 64\r\n")  # as editors of Windows write it
    assert load(PhantomConfig, file=broken).size == 64
    broken.write_bytes("size = 64\n# Größe\n".encode("latin-1"))
    with pytest.raises(InputError, match="line 2 has a byte that is not UTF-8") as raised:
        load(PhantomConfig, file=broken)
    assert "UTF-8" in raised.value.next_step and "codec" not in raised.value.cause
    assert raised.value.code == "not-toml"


def test_a_table_is_needed_above_a_nested_key(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("size = 256\n")
    with pytest.raises(UsageError, match="is a value, not a table"):
        load(PhantomConfig, file=file, overrides=["size.x=3"])


def test_configs_are_frozen_and_have_a_schema() -> None:
    with pytest.raises(FrozenInstanceError):
        PhantomConfig().size = 3  # type: ignore[misc]
    assert schema(PhantomConfig)["properties"]["size"]["minimum"] == 32


def test_config_imports_no_torch() -> None:
    code = "import sys, kidseg.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_none_is_written_as_null_and_read_back(tmp_path: Path) -> None:
    from kidseg.config import CropConfig, HomogenizedConfig

    config = HomogenizedConfig(crop=CropConfig(output="half"))
    file = tmp_path / "config.toml"
    file.write_text(dump(config))
    assert load(HomogenizedConfig, file=file) == config
    assert load(HomogenizedConfig, file=file, overrides=["crop=null"]).crop is None
    without = load(HomogenizedConfig, overrides=["pose.body_width=null"])
    assert without.pose.body_width is None
    file.write_text(dump(without))
    assert load(HomogenizedConfig, file=file) == without


def test_a_setting_of_a_section_that_is_off_switches_it_on(tmp_path: Path) -> None:
    from kidseg.config import CropConfig, HomogenizedConfig

    file = tmp_path / "config.toml"
    file.write_text(dump(HomogenizedConfig()))
    for base in (None, {"crop": None}):
        read = load(HomogenizedConfig, base=base, file=file, overrides=["crop.output=half"])
        assert read.crop == CropConfig(output="half")


def test_presets_lie_under_a_file_and_overrides(tmp_path: Path) -> None:
    from kidseg.config import PlainConfig, preset
    from kidseg.registry import presets

    assert {"demo", "paper-128", "paper-512"} <= set(presets())
    base = preset("paper-512", "plain")
    file = tmp_path / "mine.toml"
    file.write_text("[segment]\nbatch_size = 6\n")
    config = load(PlainConfig, base=base, file=file, overrides=["view.size=256"])
    assert (config.segment.batch_size, config.view.size, config.network.size) == (6, 256, 256)
    assert config.segment.optimizer.momentum == 0.99
    assert preset("paper-512", "plain") == base, "what was handed out is the caller's own"
    for name, method in (("best", "plain"), ("demo", "common2")):
        with pytest.raises(UsageError) as error:
            preset(name, method)
        assert error.value.code == "unknown-preset"


@pytest.mark.parametrize(
    ("settings", "side", "halvings"),
    [
        (["view.size=64"], 64, 3),
        (["view.size=512"], 512, 6),
        (["view.size=512", "crop.output=half"], 256, 5),
        (["crop.output=quarter"], 32, 2),
        (["view.size=96", "unet.bottleneck=6"], 96, 4),
        (["view.size=96", "unet.size=96", "unet.bottleneck=6"], 96, 4),
    ],
)
def test_the_depth_follows_the_networks_own_input(
    settings: list[str], side: int, halvings: int
) -> None:
    from kidseg.config import HomogenizedConfig

    config = load(HomogenizedConfig, overrides=settings)
    assert (config.network.size, config.network.halvings) == (side, halvings)
    given = any(text.startswith("unet.size") for text in settings)
    assert (config.unet.size is not None) == given, "a setting that is not given stays open"


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (["view.size=96"], "unet.bottleneck=6"),
        (["view.size=160"], "unet.bottleneck=10"),
        (["view.size=32", "crop.output=quarter"], "unet.bottleneck=4"),
        (["view.size=99"], "a power of two"),
    ],
)
def test_an_input_that_does_not_reach_the_bottleneck_is_refused(
    settings: list[str], advice: str
) -> None:
    for method in ("plain", "homogenized"):
        if "crop.output=quarter" in settings and method == "plain":
            continue
        with pytest.raises(UsageError, match="does not reach a bottleneck of 8") as error:
            load(METHODS[method], overrides=settings)
        assert advice in error.value.cause
        if advice.startswith("unet"):
            load(METHODS[method], overrides=[*settings, advice])


@pytest.mark.parametrize(
    ("method", "stage", "settings"),
    [
        ("plain", "segment", ["view.size=16", "unet.bottleneck=1"]),
        ("homogenized", "segment", ["view.size=32", "crop.output=half", "unet.bottleneck=1"]),
        ("homogenized", "joint", ["unet.bottleneck=1", "schedule=joint", "pose.per=slice"]),
        ("multistage", "coarse.stage", ["coarse_size=16"]),
        ("multistage", "resnet.stage", ["box=32", "resnet.net.levels=5"]),
        ("cascade", "correct.stage", ["correct.size=[16, 16]"]),
        ("cascade", "refine.stage", ["refine.size=8", "unet.size=64"]),
        ("cascade", "tumour.stage", ["tumour.patch=[4, 4, 4]"]),
    ],
)
def test_batches_that_a_norm_cannot_normalise_are_refused(
    method: str, stage: str, settings: list[str]
) -> None:
    """One image, and a single pixel at the deepest level: no training could begin."""
    name = f"{stage}.batch_size"
    with pytest.raises(
        UsageError, match=rf"{name} must be at least 2".replace(".", r"\.")
    ) as error:
        load(METHODS[method], overrides=[*settings, f"{name}=1"])
    assert error.value.code == "bad-setting"
    load(METHODS[method], overrides=[*settings, f"{name}=2"])


@pytest.mark.parametrize(
    ("method", "setting", "words"),
    [
        ("plain", "unet.dimensions=3", "dimensions must be 2"),
        ("homogenized", "unet.dimensions=3", "dimensions must be 2"),
        ("cascade", "unet.dimensions=3", "dimensions must be 2"),
        ("cascade", "unet.size=null", "size must be set"),
        ("cascade", "tumour.unet.size=null", "size must be set"),
        ("cascade", "correct.iterations=1000000000", "at most 100"),
    ],
)
def test_networks_that_the_method_cannot_train_are_refused(
    method: str, setting: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words) as error:
        load(METHODS[method], overrides=[setting])
    assert error.value.code == "bad-setting"


def test_presets_of_other_methods_are_not_advised() -> None:
    from kidseg.config import preset
    from kidseg.registry import presets

    with pytest.raises(UsageError) as error:
        preset("demo", "plain3d")
    assert error.value.code == "unknown-preset"
    assert not any(name in (error.value.next_step or "") for name in presets())
    with pytest.raises(UsageError) as error:
        preset("nothing", "homogenized")
    assert "demo" in (error.value.next_step or "")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "must be positive"),
        ({"spacing_mm": (-1.0, 1.0, 1.0)}, "must be positive"),
        ({"patch": (0, 8, 8)}, "must be positive"),
        ({"patch": (8, 8, -8)}, "must be positive"),
        ({"patch": (8, 8)}, "patch"),
        ({"features": 0}, "greater than or equal to 1"),
        ({"max_features": 0}, "greater than or equal to 1"),
        ({"overlap": 1.0}, "less than 1"),
        ({"overlap": -0.1}, "greater than or equal to 0"),
        ({"foreground_share": 1.1}, "less than or equal to 1"),
    ],
)
def test_blocks_that_cannot_be_are_refused(settings: dict[str, object], words: str) -> None:
    from kidseg.config import BlocksConfig

    with pytest.raises(ValueError, match=words):
        BlocksConfig(**settings)  # type: ignore[arg-type]


def test_blocks_of_the_plan_and_edges_of_what_is_allowed() -> None:
    from kidseg.config import BlocksConfig, Plain3dConfig

    assert Plain3dConfig().blocks == BlocksConfig()
    assert BlocksConfig().patch is BlocksConfig().spacing_mm is None
    BlocksConfig(spacing_mm=(0.1, 3.0, 1.0), patch=(1, 1, 1), overlap=0.0, foreground_share=1.0)
    read = load(Plain3dConfig, overrides=["blocks.patch=[8,16,16]", "blocks.spacing_mm=[5,1,1]"])
    assert read.blocks.patch == (8, 16, 16) and read.blocks.spacing_mm == (5.0, 1.0, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_the_processors_clock_does_not_count_workers(method: str) -> None:
    with pytest.raises(UsageError, match="does not count workers"):
        load(METHODS[method], overrides=["budget_clock=processor", "workers=2"])
    for settings in (["budget_clock=processor", "workers=0"], ["workers=2"]):
        assert load(METHODS[method], overrides=settings)
    assert load(METHODS[method], overrides=["budget_clock=processor"]).workers is None
    with pytest.raises(UsageError, match="workers"):
        load(METHODS[method], overrides=["workers=-1"])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_setting_one_key_of_a_table_changes_only_that_key(method: str) -> None:
    """Each number of each table: all other settings stay at the defaults of the method."""
    default = asdict(load(METHODS[method]))
    changed = 0
    for path, value in _leaves(default):
        if len(path) < 2 or type(value) is not int:
            continue
        try:
            config = load(METHODS[method], overrides=[f"{'.'.join(path)}={value * 2 or 1}"])
        except UsageError:  # it must fit to other settings
            continue
        different = [p for p, v in _leaves(asdict(config)) if v != _at(default, p)]
        assert different == [path]
        changed += 1
    assert changed > 1


def test_a_section_that_is_switched_on_has_its_own_defaults() -> None:
    config = load(METHODS["homogenized"], overrides=["crop.stage.epochs=3"])
    default = CropConfig().stage
    assert config.crop.stage == replace(default, epochs=3)


def _leaves(tree: dict[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, *path, name)
        else:
            yield (*path, name), value


def _at(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _stages(config: Any) -> dict[str, StageConfig]:
    """The stages of a method by the name of their setting."""
    own = {field.name: getattr(config, field.name) for field in fields(config)}
    found = {name: value for name, value in own.items() if isinstance(value, StageConfig)}
    for name, value in own.items():
        if is_dataclass(value) and not isinstance(value, StageConfig):
            found |= {f"{name}.{key}": stage for key, stage in _stages(value).items()}
    return found


@pytest.mark.parametrize("method", list(METHODS))
def test_a_model_does_not_pass_on_how_long_its_own_training_was(method: str) -> None:
    kind: Any = METHODS[method]
    long = StageConfig(
        epochs=777,
        min_epochs=3,
        patience=333,
        batch_size=6,
        steps=1000,
        budget_s=691.0,
        average=0.99,
        optimizer=OptimizerConfig(learning_rate=0.5),
    )
    settings = [
        f"{name}.{key}={value}"
        for name in _stages(kind())
        for key, value in asdict(long).items()
        if key != "optimizer"
    ]
    settings += [f"{name}.optimizer.learning_rate=0.5" for name in _stages(kind())]
    settings += ["budget_s=691", "workers=7", "cohort.validation_share=0.01", "test_time_flip=true"]
    model = load(kind, overrides=settings)
    assert model.workers == 7 and all(each.epochs == 777 for each in _stages(model).values())

    started, usual = load(kind, base=passed_on(asdict(model), method)), kind()
    assert started.test_time_flip and started.workers is None is started.budget_s
    assert started.cohort == usual.cohort
    assert _stages(started).keys() == _stages(usual).keys() and _stages(usual)
    for name, stage in _stages(started).items():
        own = _stages(usual)[name]
        assert stage == replace(
            own,
            batch_size=6,
            average=0.99,
            optimizer=replace(own.optimizer, learning_rate=0.5),
        ), name
    again = passed_on(asdict(started), method)
    assert load(kind, base=again) == started, "what is the default stays"


def test_what_a_method_switches_on_passes_on_no_length_either() -> None:
    crop = {"crop": {"target": "slice", "stage": {"epochs": 777, "batch_size": 6}}}
    assert passed_on(crop, "homogenized") == {
        "crop": {"target": "slice", "stage": {"batch_size": 6}}
    }
    assert passed_on({"crop": None, "budget_clock": "processor"}, "homogenized") == {"crop": None}
