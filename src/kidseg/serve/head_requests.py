"""HEAD: the headers of the answer to GET, as every server has to give them (RFC 9110, 9.3.2)."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

__all__ = ["HeadRequests"]


class _HeadersSentError(Exception):
    """Nothing else of this answer is to be sent."""


class HeadRequests:
    """ASGI middleware: HEAD of what only answers GET.

    The answer ends with its headers, so events are not waited for.
    """

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if not self._has_no_route(scope):
            await self.app(scope, receive, send)
            return

        async def send_headers(message: Message) -> None:
            await send(message)
            await send({"type": "http.response.body", "body": b""})
            raise _HeadersSentError

        try:
            await self.app({**scope, "method": "GET"}, receive, send_headers)
        except _HeadersSentError:
            return

    def _has_no_route(self, scope: Scope) -> bool:
        return (
            scope["type"] == "http"
            and scope["method"] == "HEAD"
            and all(route.matches(scope)[0] is not Match.FULL for route in self.app.routes)
        )
