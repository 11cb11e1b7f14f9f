"""Every setting has a meaning, and what is printed can be edited and given back."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path

import pytest

from kidseg.config import (
    METHODS,
    PhantomConfig,
    StudyConfig,
    explain,
    load,
    meanings,
    preset,
    schema,
)
from kidseg.errors import UsageError
from kidseg.registry import presets

KINDS = {**METHODS, "phantom": PhantomConfig, "study": StudyConfig}


def settings() -> list[tuple[str, str | None]]:
    """Every method with every preset that it has, and without."""
    found: list[tuple[str, str | None]] = [(method, None) for method in METHODS]
    for name in presets():
        for method in METHODS:
            try:
                preset(name, method)
            except UsageError:
                continue
            found.append((method, name))
    return found


def read_back(text: str, kind: type, folder: Path) -> object:
    file = folder / "printed.toml"
    file.write_text(text)
    return load(kind, file=file)


@pytest.mark.parametrize(("method", "name"), settings())
def test_what_is_printed_is_what_is_read_back(
    method: str, name: str | None, tmp_path: Path
) -> None:
    base = None if name is None else preset(name, method)
    config = load(METHODS[method], base=base)
    text = explain(config, "Settings.")
    assert read_back(text, METHODS[method], tmp_path) == config
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("homogenized", ["crop.output=half", "crop.target=slice", "pose.body_width=null"]),
        ("homogenized", ['pose.reference=a "b" \\ c # é', "budget_s=0.1", "segment.steps=7"]),
        ("plain", ['cohort.selection=["kidney", "a, [b]"]', "cohort.label_share=0.1"]),
        ("plain3d", ["blocks.patch=[8,16,24]", "blocks.spacing_mm=[5, 0.1, 1e-3]"]),
        (
            "cascade",
            [
                "kidney.min_voxels=5",
                "correct.size=[32,64]",
                "refine.almost_nothing.min_volume_ml=0.1",
            ],
        ),
        ("phantom", ["ages_years=[0.25, 3]", "max_slices=12", "phase=excretory"]),
    ],
)
def test_edited_settings_are_read_back_too(
    method: str, overrides: list[str], tmp_path: Path
) -> None:
    config = load(KINDS[method], overrides=overrides)
    assert config != load(KINDS[method])
    assert read_back(explain(config), KINDS[method], tmp_path) == config


def test_a_section_that_is_off_is_switched_on_as_it_says(tmp_path: Path) -> None:
    from kidseg.config import CropConfig, HomogenizedConfig

    text = explain(HomogenizedConfig())
    assert 'To use it, remove the line crop = "null"' in " ".join(text.split())

    text = re.sub(r"(?m)^crop = .*\n", "", text)
    wanted = HomogenizedConfig(crop=CropConfig())
    of_every_line = re.sub(r"(?m)^#(?=\S)", "", text)
    of_the_settings = re.sub(r"(?m)^#(?=[^#\s])", "", text)
    for edited in (of_every_line, of_the_settings):
        assert edited != text and read_back(edited, HomogenizedConfig, tmp_path) == wanted
    assert not re.search(r"(?m)^##", of_every_line)


@pytest.mark.parametrize("name", KINDS)
def test_every_setting_has_a_meaning_in_words(name: str) -> None:
    found = meanings(KINDS[name])
    assert {field.name for field in dataclasses.fields(KINDS[name])} <= set(found)
    for key, text in found.items():
        assert text.endswith((".", "?")) and text[0].isupper(), f"{key}: {text!r}"
        assert "Config" not in text and "None" not in text and "`" not in text, key


@pytest.mark.parametrize("name", KINDS)
def test_what_null_means_is_said(name: str) -> None:
    tree = schema(KINDS[name])
    sections = [tree, *tree.get("$defs", {}).values()]
    for section in sections:
        for key, node in section["properties"].items():
            if {"type": "null"} in node.get("anyOf", ()) and "description" in node:
                assert "None" in node["description"], key


def test_the_values_to_choose_among_are_listed() -> None:
    found = meanings(METHODS["homogenized"])
    for word in ('"auto"', '"fp32"', '"bf16"'):
        assert word in found["precision"]
    assert '"quarter"' in found["crop.output"]
    assert "One of" not in found["budget_s"]


def test_each_line_of_settings_has_its_comment_above() -> None:
    lines = explain(load(METHODS["homogenized"])).splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"#?\w+ = ", line):
            assert before.startswith("## " if line.startswith("#") else "# "), line
