"""Listen and answer, until stopped."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kidseg.serve.application import create_app
from kidseg.serve.policy import Serving, address_in_use, check_serving
from kidseg.serve.served_model import check_served
from kidseg.serve.service import Service, open_service

__all__ = ["configured", "serve"]

_CONNECTIONS = 512
_GOODBYE_S = 5
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def serve(serving: Serving, ready: Callable[[Serving], None]) -> None:
    """Serve until SIGINT or SIGTERM. A job that is running then is queued again.

    Args:
        serving: what is served, and how.
        ready: called when connections are accepted, with the port that was chosen.

    Raises:
        UsageError: see `check_serving`; "address-in-use": address and port cannot be listened on.
        ModelError: see `check_served`.
        UsageError, InputError, ModelError, ResourceError: see `open_service`.
    """
    check_serving(serving)
    check_served(serving.model)
    with _listening(serving) as door, open_service(serving) as service:
        server = uvicorn.Server(configured(service))
        ready(replace(serving, port=door.getsockname()[1]))
        server.run(sockets=[door])


def configured(service: Service) -> uvicorn.Config:
    """How uvicorn serves a service."""
    serving = service.serving
    return uvicorn.Config(
        create_app(service),
        log_level="warning",
        http=_prompt_http(serving.limits.headers_s),
        access_log=False,  # addresses have names that clients give to images
        server_header=False,
        proxy_headers=bool(serving.proxies),
        forwarded_allow_ips=[*serving.proxies],
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GOODBYE_S,
        ssl_certfile=serving.certificate,
        ssl_keyfile=serving.key,
    )


def _prompt_http(headers_s: float) -> type[asyncio.Protocol]:
    """uvicorn's HTTP by h11, which limits the size of headers; here also their time.

    What a client still sends of a request that was answered before its end, such as an upload that
    was refused, is read and discarded for as long: many clients send all before they look at the
    answer, which would be lost if the connection ended at once.
    """

    class PromptHttp(H11Protocol):
        _late: asyncio.TimerHandle | None = None
        _awaited = ""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._limit()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._limit()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._unlimit()

        def _limit(self) -> None:
            """The time counts from the first call in which headers, or a rest, are awaited."""
            awaited = self._what_is_awaited()
            if awaited != self._awaited:
                self._unlimit()
                self._awaited = awaited
            if awaited and self._late is None:
                self._late = self.loop.call_later(headers_s, self._end)

        def _what_is_awaited(self) -> str:
            """Headers, or the rest of a request that was answered; "": what has other limits."""
            if self.conn.their_state is h11.IDLE:
                return "headers"
            is_answered = self.conn.our_state in (h11.DONE, h11.MUST_CLOSE)
            return "rest" if is_answered and self.conn.their_state is h11.SEND_BODY else ""

        def _unlimit(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _end(self) -> None:
            begun, _ = self.conn.trailing_data
            # Browsers keep connections in reserve, and would show an answer to nothing.
            if begun and self._awaited == "headers":
                self.transport.write(_TOO_LATE)
            self.transport.close()

    return PromptHttp


def _listening(serving: Serving) -> socket.socket:
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((serving.host, serving.port))
        door.listen(2048)
    except (OSError, OverflowError) as error:
        door.close()
        raise address_in_use(serving.host, serving.port, error) from error
    return door
