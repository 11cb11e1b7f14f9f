"""Settings that had another name: refused with the new one, and read in files of kidseg's own."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from kidseg.checkpoint import read_header
from kidseg.config import METHODS, dump, load
from kidseg.config.renamed import RENAMED, WITHOUT_LABEL_SHARE, new_name, with_new_names
from kidseg.errors import UsageError
from kidseg.model_file import STARTER, find_model

# A setting of each old name: method, path of its table, old name, a value.
OLD = [
    ("plain", "postprocess", "least_ml", "2.5"),
    ("multistage", "kidneys", "least_ml", "2.5"),
    ("multistage", "postprocess", "least_voxels", "7"),
    ("multistage", "kidneys", "least_voxels", "7"),
    ("homogenized", "view", "bone_least_ml", "0.25"),
    ("homogenized", "pose.localizer", "least_side", "0.5"),
    ("homogenized", "crop.localizer", "least_side", "0.5"),
    ("multistage", "coarse", "turn", "{rotation_deg = 10.0}"),
    ("multistage", "resunet", "turn", "{least_centre = 0.5}"),
    ("multistage", "resnet", "turn", "{flipped_share = 0.25, least_centre = 0.5}"),
    ("multistage", "resnet.augmentation", "least_centre", "0.5"),
    ("homogenized", "pose", "fill", "0.5"),
    ("homogenized", "pose", "levels", "16"),
    ("homogenized", "pose", "mirrored", "false"),
    ("plain", "style", "mirror", "false"),
    ("multistage", "resnet.net", "start", '"truncated_normal"'),
    ("cascade", "kidney", "ml", "9.0"),
    ("cascade", "kidney", "voxels", "7"),
    ("cascade", "refine.almost_nothing", "ml", "0.25"),
    ("cascade", "refine.almost_nothing", "voxels", "7"),
]


def old_names(settings: Mapping[str, Any], table: str = "") -> dict[str, Any]:
    """The opposite of `with_new_names`."""
    old = {(t, new): key for (t, key), new in RENAMED.items() if t != "augmentation"}
    out = {}
    for key, value in settings.items():
        name = old.get((table, key), key)
        out[name] = old_names(value, name) if isinstance(value, Mapping) else value
    return out


def test_every_old_name_is_tried() -> None:
    tried = {(table.rpartition(".")[2], key) for _, table, key, _ in OLD}
    inner = {("turn", "least_centre")}  # the table itself is refused before
    assert tried | inner == set(RENAMED)


@pytest.mark.parametrize(("method", "table", "key", "value"), OLD)
def test_an_old_name_is_refused_with_the_new_one(
    method: str, table: str, key: str, value: str, tmp_path: Path
) -> None:
    now = new_name(table.rpartition(".")[2], key)
    file = tmp_path / "settings.toml"
    file.write_text(f"[{table}]\n{key} = {value}\n")
    for given in ({"overrides": [f"{table}.{key}={value}"]}, {"file": file}):
        with pytest.raises(UsageError) as caught:
            load(METHODS[method], **given)  # type: ignore[arg-type]
        assert f"'{table}.{key}' is now called '{table}.{now}'" in caught.value.cause
        assert caught.value.code == "bad-setting"
    load(METHODS[method], file=file, stored=True)


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_earlier_versions_are_read(method: str, tmp_path: Path) -> None:
    """Those of a model, and the file of a run, with old names wherever there is one."""
    overrides = {"homogenized": ["crop.output=half", "pose.flip=false", "pose.reference_slices=5"]}
    config = load(METHODS[method], overrides=overrides.get(method, []))
    old = old_names(asdict(config))
    assert old != asdict(config) and with_new_names(old) == asdict(config)
    assert load(METHODS[method], base=old) == config
    file = tmp_path / "config.toml"
    file.write_text(dump(config))
    file.write_text(tomli_w.dumps(old_names(tomllib.loads(file.read_text()))))
    assert load(METHODS[method], file=file, stored=True) == config


@pytest.mark.parametrize("method", METHODS)
def test_a_share_of_labels_that_had_no_effect_does_not_keep_a_model_from_being_read(
    method: str, tmp_path: Path
) -> None:
    """Nor a run from being resumed; where it has an effect, it stays."""
    settings = tomllib.loads(dump(load(METHODS[method])))
    settings["cohort"]["label_share"] = 0.1
    (tmp_path / "config.toml").write_text(tomli_w.dumps(settings))
    kept = 1 / 3 if method in WITHOUT_LABEL_SHARE else 0.1
    found: Any = load(METHODS[method], base=settings)
    assert found.cohort.label_share == kept
    assert load(METHODS[method], file=tmp_path / "config.toml", stored=True) == found
    if method in WITHOUT_LABEL_SHARE:
        with pytest.raises(UsageError, match="label_share has no effect here"):
            load(METHODS[method], file=tmp_path / "config.toml")


def test_every_member_of_the_starter_is_read() -> None:
    header = read_header(find_model(STARTER))
    for member in header["members"]:
        config: Any = load(METHODS[member["method"]], base=member["config"])
        assert config.postprocess.min_volume_ml == 3.0
