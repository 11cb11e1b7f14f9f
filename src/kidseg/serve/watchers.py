"""Which clients follow which jobs, so that a job can end with its client."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Watchers"]


@dataclass(frozen=True, eq=False)
class Watchers:
    """The clients that follow jobs; for any number of threads.

    Attributes:
        gone_s: after which a job that must not be left alone counts as abandoned.
    """

    gone_s: float
    _alone_since: dict[str, float] = field(default_factory=dict)
    _count: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def require(self, job: str) -> None:
        """From now on, the job must not be left alone."""
        with self._lock:
            self._alone_since[job] = time.monotonic()

    @contextmanager
    def following(self, job: str) -> Iterator[None]:
        """A client follows the job within this block."""
        with self._lock:
            self._count[job] = self._count.get(job, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._count[job] -= 1
                if not self._count[job]:
                    del self._count[job]
                if job in self._alone_since:
                    self._alone_since[job] = time.monotonic()

    def release(self, job: str) -> None:
        """The job may be left alone, because it has ended."""
        with self._lock:
            self._alone_since.pop(job, None)

    def abandoned(self) -> list[str]:
        """The jobs that were left alone for too long; each is told once."""
        now = time.monotonic()
        with self._lock:
            found = [
                job
                for job, since in self._alone_since.items()
                if job not in self._count and now - since >= self.gone_s
            ]
            for job in found:
                del self._alone_since[job]
        return found
