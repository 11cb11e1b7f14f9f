"""What every configuration has in common."""

from __future__ import annotations

from pydantic import ConfigDict

__all__ = ["CHECKED"]

CHECKED = ConfigDict(extra="forbid", strict=True)
"""Unknown keys and values of another type are refused."""
