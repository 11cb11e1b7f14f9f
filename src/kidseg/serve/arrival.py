"""Wait for what clients send, and give up those that stall."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from http import HTTPStatus
from typing import TypeVar

from kidseg.serve.refusals import RefusedError

__all__ = ["arriving", "stalled"]

_PARTS = 10

T = TypeVar("T")


async def arriving(awaited: Awaitable[T], seconds: float) -> T:
    """What arrives within so many seconds in which the server could have taken it.

    The time is waited in tenths: while this process stands still, such as on a machine that has
    too much to do or is suspended, one of them passes at most, and what came is then taken.

    Raises:
        TimeoutError: nothing arrived; the awaitable is cancelled.
    """
    task = asyncio.ensure_future(awaited)
    try:
        for _ in range(_PARTS):
            await asyncio.wait({task}, timeout=seconds / _PARTS)
            if task.done():
                return task.result()
        raise TimeoutError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def stalled(seconds: float) -> RefusedError:
    """The refusal 408 of a request of which nothing came for so long."""
    return RefusedError(
        HTTPStatus.REQUEST_TIMEOUT,
        f"nothing was received for {seconds:.0f} s",
        code="upload-stalled",
        next_step="Send the request again.",
    )
