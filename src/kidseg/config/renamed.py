"""Settings that had another name: old files are read, and a user is told the new name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["new_name", "with_new_names"]

_STAGED = ("coarse", "resunet", "resnet")

RENAMED: Mapping[tuple[str, str], str] = {
    **{(each, "least_ml"): "min_volume_ml" for each in ("postprocess", "kidneys")},
    **{(each, "least_voxels"): "min_voxels" for each in ("postprocess", "kidneys")},
    ("view", "bone_least_ml"): "bone_min_volume_ml",
    ("localizer", "least_side"): "min_side",
    **{(each, "turn"): "augmentation" for each in _STAGED},
    **{(each, "least_centre"): "min_centre" for each in ("turn", "augmentation")},
    ("pose", "fill"): "body_width",
    ("pose", "levels"): "reference_slices",
    ("pose", "mirrored"): "flip",
    ("style", "mirror"): "flip",
    ("net", "start"): "init",
    **{(each, "ml"): "min_volume_ml" for each in ("kidney", "almost_nothing")},
    **{(each, "voxels"): "min_voxels" for each in ("kidney", "almost_nothing")},
}
"""{(table, old name): new name}."""


def new_name(table: str, key: str) -> str | None:
    """The name that a setting has now; None if it had no other.

    Args:
        table: the last part of its table's name; "" at the top.
        key: its old name.
    """
    return RENAMED.get((table, key))


def with_new_names(settings: Mapping[str, Any], table: str = "") -> dict[str, Any]:
    """Settings as plain data, those that had another name under the new one."""
    return {
        new_name(table, key) or key: with_new_names(value, key)
        if isinstance(value, Mapping)
        else value
        for key, value in settings.items()
    }
