"""Names of methods and presets: one list, and all that is named is there."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import fields

from kidseg import config, methods
from kidseg.cli.options import Method, Preset
from kidseg.registry import METHODS, PRESETS, presets


def test_every_method_that_is_named_has_settings_and_a_class() -> None:
    assert tuple(config.METHODS) == METHODS == tuple(methods.METHODS)
    assert METHODS[0] == "homogenized" and len(set(METHODS)) == len(METHODS)
    for name in METHODS:
        assert methods.method_named(name).name == name
        assert issubclass(config.METHODS[name], config.MethodConfig)


def test_presets_are_the_files_of_the_package_and_load() -> None:
    assert presets() == tuple(sorted(presets())) and "demo" in presets()
    for name in presets():
        tables = set(tomllib.loads((PRESETS / f"{name}.toml").read_text())) - {"common"}
        assert tables and tables <= set(METHODS)
        for method in tables:
            config.load(config.METHODS[method], base=config.preset(name, method))


def test_what_methods_of_a_preset_have_in_common_is_a_setting_of_one_of_them() -> None:
    """Methods leave out what they lack, so a misspelt key would be left out by all."""
    for name in presets():
        tables = tomllib.loads((PRESETS / f"{name}.toml").read_text())
        common = set(tables.pop("common", {}))
        known = {f.name for method in tables for f in fields(config.METHODS[method])}
        assert common <= known, name
    assert "view" not in config.preset("demo", "cascade")
    assert config.preset("demo", "cascade")["unet"]["size"] == 128


def test_the_command_line_names_them_all() -> None:
    for option, names in ((Method, METHODS), (Preset, presets())):
        text = option.__metadata__[0].help  # type: ignore[attr-defined]
        assert all(name in text for name in names)


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, kidseg.registry\n"
        "sys.exit(bool({'torch', 'numpy', 'pydantic', 'kidseg.config'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
