"""Notices that the clock of the machine was set forward, so that nothing expires by that alone.

A machine that starts with a wrong clock has it set by the network minutes later, by years.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

__all__ = ["SetClock"]

_LEAST_S = 60.0
"""Less is the clock's own inaccuracy, corrected little by little."""


def _away_s() -> float:
    """The clock, less the time since the start of the machine, sleep included."""
    # Elsewhere than on Linux, what is to expire is kept for the time of a sleep longer.
    steady = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.time() - time.clock_gettime(steady)


@dataclass
class SetClock:
    """Compares the clock with the time that passes."""

    _away_s: float = field(default_factory=_away_s)

    def forward_s(self) -> float:
        """Seconds by which the clock was set forward since the last call; 0: it was not."""
        now = _away_s()
        jump, self._away_s = now - self._away_s, now
        return jump if jump > _LEAST_S else 0.0
