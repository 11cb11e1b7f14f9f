"""Settings of earlier versions: models and runs that have them are read.

A user who writes an old name is told the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["as_now", "new_name", "with_new_names"]

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


WITHOUT_LABEL_SHARE = ("multistage", "plain3d", "nnunet")
"""Methods that ignored `cohort.label_share`, and refuse it now."""


def as_now(settings: Mapping[str, Any], method: str | None) -> dict[str, Any]:
    """Settings of any version as those of this one: new names, and none that had no effect.

    Args:
        settings: as plain data.
        method: whose they are; None if they are not a method's.
    """
    named = with_new_names(settings)
    cohort = named.get("cohort")
    if method in WITHOUT_LABEL_SHARE and isinstance(cohort, Mapping):
        named["cohort"] = {key: value for key, value in cohort.items() if key != "label_share"}
    return named


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
