from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from kidseg.config import PhantomConfig, dump, load, schema
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
        ("size=8", "greater than or equal to 32"),
        ("ages_years=[5, 2]", "must rise"),
        ("phase=late", "'phase"),
        ("size", "is no setting"),
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
    with pytest.raises(InputError, match="is no TOML"):
        load(PhantomConfig, file=broken)


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
