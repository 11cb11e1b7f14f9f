"""The guard before all routes: who asks, how often, and from which page; headers of all answers."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from kidseg.errors import KidsegError, ResourceError, quoted
from kidseg.serve.arrival import arriving, stalled
from kidseg.serve.audit_log import AuditLog
from kidseg.serve.policy import Serving, is_loopback
from kidseg.serve.refusals import PROBLEM_TYPE, RefusedError, headers_of, problem_of

__all__ = ["LOCAL", "Guard", "Rate", "Tickets", "server_fault"]

LOCAL = "local"
"""Name of the client where no token is required."""

_OPEN = {"/", "/auth/", "/auth/token", "/api/v1/health", "/api/v1/openapi.json"}
_OPEN_FOLDER = "/page/"
_MAX_ADDRESSES = 10_000
_BODY_BYTES = 2**20
_HEADER_BYTES = 2**14

_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self';"
    b" img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    b" frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
    b"cross-origin-resource-policy": b"same-origin",
}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("kidseg.serve")


@dataclass(eq=False)
class Rate:
    """How often each address may do something: a bucket of tokens each.

    Attributes:
        per_minute: as many at once, and as many per minute.
    """

    per_minute: int
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def wait_s(self, address: str, *, take: bool = True) -> float:
        """Seconds until the address may do it again; 0: now."""
        now = time.monotonic()
        left, since = self._buckets.pop(address, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - since) * self.per_minute / 60.0)
        wait = 0.0 if left >= 1.0 else (1.0 - left) * 60.0 / self.per_minute
        self._buckets[address] = (left - 1.0 if take and not wait else left, now)
        if len(self._buckets) > _MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return wait


@dataclass(eq=False)
class Tickets:
    """Addresses that answer GET without token for a short time, and that cannot be guessed.

    3D Slicer downloads the next image of a data store without the token that it was given, and a
    browser opens a page in a window of its own without it.

    Attributes:
        valid_s: of a ticket.
    """

    valid_s: float = 120.0
    _until: dict[str, float] = field(default_factory=dict)

    def give(self, address: str) -> None:
        """From now on, for a short time, this path with its query needs no token."""
        now = time.monotonic()
        self._until = {key: until for key, until in self._until.items() if until > now}
        self._until[address] = now + self.valid_s

    def holds(self, address: str) -> bool:
        """Does this path with its query need no token?"""
        return self._until.get(address, 0.0) > time.monotonic()


@dataclass(eq=False)
class Guard:
    """ASGI middleware; sets scope["state"]["client"] to the name of the client.

    Attributes:
        app: that answers.
        serving: tokens and limits.
        audit: log.
        tickets: addresses without token.
    """

    app: App
    serving: Serving
    audit: AuditLog
    tickets: Tickets

    def __post_init__(self) -> None:
        self.requests = Rate(self.serving.limits.requests_per_minute)
        self.failures = Rate(self.serving.limits.failures_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                known = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((name, value) for name, value in _HEADERS.items() if name not in known),
                ]
            await send(message)

        try:
            self._admit(scope)
            await self.app(scope, self._small_body(scope, receive), send_guarded)
        except (RefusedError, ResourceError) as refusal:
            if begun:
                raise
            await send_problem(refusal, send_guarded)
        except Exception as error:
            # Neither the message nor the request: they may have names of patients.
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            where = (
                "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
            )
            _log.error("a request failed: %s at %s", type(error).__name__, where)
            if not begun:
                await send_problem(server_fault(), send_guarded)

    def _small_body(self, scope: Scope, receive: Receive) -> Receive:
        """Receive the body of a request, which is small and does not stall unless it is an upload.

        Whoever receives uploads sets scope["state"]["is_upload"], and has limits of its own.
        """
        size, complete, limits = 0, False, self.serving.limits

        async def received() -> Message:
            nonlocal size, complete
            if complete or scope["state"].get("is_upload"):
                return await receive()
            try:
                message = await arriving(receive(), limits.stall_s)
            except TimeoutError:
                raise stalled(limits.stall_s) from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > _BODY_BYTES:
                raise RefusedError(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"the request is larger than {_BODY_BYTES} bytes",
                    code="too-large",
                    next_step="Upload files to a route that takes them.",
                )
            return message

        return received

    def _admit(self, scope: Scope) -> None:
        """Find out who asks.

        Raises:
            RefusedError: 401, 403, 429, 431.
        """
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _HEADER_BYTES:
            raise RefusedError(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the headers of the request are longer than {_HEADER_BYTES} bytes",
                code="headers-too-large",
                next_step="Send the request without headers that it does not need.",
            )
        address = (scope.get("client") or ("", 0))[0]
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        _check_origin(headers, any_host=bool(self.serving.tokens))
        client = self._client(headers, address)
        # Behind a proxy all clients have its address.
        if wait := self.requests.wait_s(f"{address} {client or ''}"):
            raise _too_often("requests", wait)
        if client is None and not self._is_open(scope):
            raise RefusedError(
                HTTPStatus.UNAUTHORIZED,
                "a token of this server is required",
                code="token-required",
                next_step="Send the header 'Authorization: Bearer TOKEN'.",
            )
        scope.setdefault("state", {})["client"] = client

    def _client(self, headers: MutableMapping[str | bytes, str], address: str) -> str | None:
        """The name of the client; None without a token where one is required."""
        if not self.serving.tokens:
            return LOCAL
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        return self.named(token.strip(), address)

    def named(self, token: str, address: str) -> str:
        """The client with this token.

        Raises:
            RefusedError: 401 "wrong-token"; 429 after several of them.
        """
        if wait := self.failures.wait_s(address, take=False):
            raise _too_often("wrong tokens", wait)
        found = None
        for known, name in self.serving.tokens.items():  # all of them, in constant time
            if hmac.compare_digest(token.encode("utf-8", "replace"), known.encode()):
                found = name
        if found is None:
            self.failures.wait_s(address)
            self.audit.write("wrong-token")
            raise RefusedError(
                HTTPStatus.UNAUTHORIZED,
                "this is not a token of this server",
                code="wrong-token",
                next_step="Ask whoever runs the server for one.",
            )
        return found

    def _is_open(self, scope: Scope) -> bool:
        """May everybody have this?"""
        path = scope["path"]
        if path in _OPEN or path.startswith(_OPEN_FOLDER):
            return True
        query = scope.get("query_string", b"").decode("latin-1")
        return scope["method"] == "GET" and self.tickets.holds(f"{path}?{query}")


async def send_problem(error: KidsegError, send: Send) -> None:
    """Answer with a problem document."""
    problem = problem_of(error)
    body = json.dumps(problem).encode()
    headers = {"Content-Type": PROBLEM_TYPE, "Content-Length": str(len(body)), **headers_of(error)}
    await send(
        {
            "type": "http.response.start",
            "status": problem["status"],
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


def _check_origin(headers: MutableMapping[Any, str], *, any_host: bool) -> None:
    """Refuse pages of other servers, which the browser of a user would let in by its address.

    Without a token, also names other than those of this machine: they may be of a page whose server
    made its name point to this machine (DNS rebinding).
    """
    host, origin = headers.get(b"host", ""), headers.get(b"origin")
    try:
        name = urlsplit(f"//{host}").hostname or ""
        page = host if origin is None else urlsplit(origin).netloc
    except ValueError:  # such as a bracket that does not close
        raise _foreign("the name of the server, or of the page, is none") from None
    if not any_host and not is_loopback(name):
        raise _foreign(f"the server is not known by the name {quoted(name[:100])}")
    if page != host:
        raise _foreign("the request is from a page of another server")


def _foreign(cause: str) -> RefusedError:
    return RefusedError(
        HTTPStatus.FORBIDDEN,
        cause,
        code="other-origin",
        next_step="Open the page of this server at its own address.",
    )


def _too_often(what: str, wait_s: float) -> RefusedError:
    return RefusedError(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"too many {what} from this address",
        code="too-many-requests",
        next_step="Try again later.",
        retry_after_s=wait_s,
    )


def server_fault() -> RefusedError:
    """The answer 500, which tells nothing."""
    return RefusedError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "the server failed",
        code="server-fault",
        next_step="Please report it, with the line in the log of the server.",
    )
