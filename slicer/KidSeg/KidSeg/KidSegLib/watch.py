"""What the window and the work in the background tell each other: messages, and to stop."""

from __future__ import annotations

import queue
import threading

from .problems import CancelledError

__all__ = ["Watch"]


class Watch:
    """Messages and progress from the work to the user, and the user's wish to cancel."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._done = 0.0

    @property
    def done(self) -> float:
        """How much of the work is done, 0 to 1, as far as it is told."""
        return self._done

    def advance(self, done: float) -> None:
        """So much is done, 0 to 1; it never goes back."""
        self._done = max(self._done, min(1.0, done))

    def say(self, text: str) -> None:
        """Tell the user."""
        self._messages.put(text)

    def messages(self) -> list[str]:
        """What was said since the last call."""
        found = []
        while True:
            try:
                found.append(self._messages.get_nowait())
            except queue.Empty:
                return found

    def cancel(self) -> None:
        """Ask the work to stop."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Was the work asked to stop?"""
        return self._cancelled.is_set()

    def check(self) -> None:
        """Raise CancelledError if the work was asked to stop."""
        if self.is_cancelled:
            raise CancelledError

    def wait(self, seconds: float) -> None:
        """Wait; raise CancelledError as soon as the work is asked to stop."""
        self._cancelled.wait(seconds)
        self.check()
