"""Names of the methods and presets, the only list of them. Imports no heavy packages."""

from __future__ import annotations

from pathlib import Path

__all__ = ["BY_BODY", "BY_KIDNEY", "METHODS", "PRESETS", "SLICEWISE", "presets"]

METHODS = ("homogenized", "plain", "plain3d", "multistage", "cascade", "nnunet")
"""Command-line names of the methods; the first is the default."""

BY_BODY = ("homogenized",)
"""Methods that need the body of the patient, which is found in one channel of CT alone."""

BY_KIDNEY = ("multistage", "cascade")
"""Methods whose result has a region for each kidney that they find."""

SLICEWISE = ("homogenized", "plain")
"""Methods that segment all slices of a scan, one by one, in a single grid."""

PRESETS = Path(__file__).parent / "configs"
"""Folder of the package's presets, one TOML file each."""


def presets() -> tuple[str, ...]:
    """Names of the presets."""
    return tuple(sorted(file.stem for file in PRESETS.glob("*.toml")))
