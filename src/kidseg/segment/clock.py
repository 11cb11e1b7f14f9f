"""Wall times of the tasks of a segmentation."""

from __future__ import annotations

import time
from collections.abc import Mapping

__all__ = ["Clock"]


class Clock:
    """Measures the wall time of consecutive tasks."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = time.perf_counter()

    def lap(self, name: str) -> None:
        """Record the time since the last mark under this name."""
        now = time.perf_counter()
        self.seconds[name] = now - self._mark
        self._mark = now

    def add(self, seconds: Mapping[str, float]) -> None:
        """Record times measured elsewhere, and reset the mark."""
        self.seconds |= seconds
        self._mark = time.perf_counter()
