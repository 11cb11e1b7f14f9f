"""How every configuration is validated."""

from __future__ import annotations

from pydantic import ConfigDict

__all__ = ["CHECKED"]

CHECKED = ConfigDict(
    extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
)
"""Unknown keys and values of another type are errors. The docstring below each field is its meaning
in the schema, and so in `explain`."""
