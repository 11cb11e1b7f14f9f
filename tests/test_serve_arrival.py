"""Waiting for what a client sends."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from kidseg.serve.arrival import arriving


def test_what_came_while_this_process_stood_still_is_taken() -> None:
    async def received() -> bytes:
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=ours)

            def stand_still() -> None:
                time.sleep(0.5)
                theirs.send(b"x")  # and it does not come to it in time

            asyncio.get_running_loop().call_later(0.01, stand_still)
            try:
                return await arriving(reader.read(1), 0.3)
            finally:
                writer.close()

    assert asyncio.run(received()) == b"x"


def test_what_does_not_come_is_given_up_after_its_time() -> None:
    ended: list[str] = []

    async def never() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(arriving(never(), 0.2))
    assert time.monotonic() - begun >= 0.2 and ended == ["cancelled"]


def test_an_error_and_an_end_pass_through() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(arriving(fails(), 5))

    async def abandoned() -> bool:
        ended = asyncio.Event()

        async def wait() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        task = asyncio.ensure_future(arriving(wait(), 60))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return ended.is_set()

    assert asyncio.run(abandoned())
