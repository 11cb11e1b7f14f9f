"""Listen and answer, until stopped."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

import uvicorn

from kidseg.errors import UsageError
from kidseg.serve.application import create_app
from kidseg.serve.policy import Serving, check_serving
from kidseg.serve.served_model import check_served
from kidseg.serve.service import open_service

__all__ = ["serve"]

_CONNECTIONS = 512
_GOODBYE_S = 5


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
        config = uvicorn.Config(
            create_app(service),
            log_level="warning",
            http="h11",  # limits the size of headers
            access_log=False,  # addresses have names that clients give to images
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=_GOODBYE_S,
            ssl_certfile=serving.certificate,
            ssl_keyfile=serving.key,
        )
        server = uvicorn.Server(config)
        ready(replace(serving, port=door.getsockname()[1]))
        server.run(sockets=[door])


def _listening(serving: Serving) -> socket.socket:
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((serving.host, serving.port))
        door.listen(2048)
    except (OSError, OverflowError) as error:
        door.close()
        raise UsageError(
            f"{serving.host}:{serving.port} cannot be listened on ({error})",
            code="address-in-use",
            next_step="Choose another --host or --port; 0 is any free port.",
        ) from error
    return door
