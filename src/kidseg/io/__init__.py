"""Files in and out; see `kidseg.io.orientation` for the one place that knows axis orders."""

from __future__ import annotations

from kidseg.io.scan import ReadOptions, Scan

__all__ = ["ReadOptions", "Scan"]
