"""Names of the methods and presets: all lists of them come from here. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

__all__ = ["METHODS", "PRESETS", "presets"]

METHODS = ("homogenized", "plain", "plain3d")
"""Methods by their names on the command line, the default first."""

PRESETS = Path(__file__).parent / "configs"
"""Folder of the presets that come with the package, a TOML file each."""


def presets() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(sorted(file.stem for file in PRESETS.glob("*.toml")))
