"""A real server on a socket: headers of a request that are never complete are not waited for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn

from kidseg.serve.audit_log import AuditLog
from kidseg.serve.listening import _listening, configured
from kidseg.serve.policy import Limits, Serving
from kidseg.serve.service import _service
from serving import until

HEADERS_S = 1.0
LARGEST = 1000
REQUEST = b"GET /api/v1/health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
END = b"\r\n"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A server without the process that segments."""
    folder = tmp_path_factory.mktemp("server")
    limits = Limits(headers_s=HEADERS_S, stall_s=30.0, upload_bytes=LARGEST)
    serving = Serving(model=folder / "none", folder=folder, port=0, limits=limits)
    service = _service(serving, folder, AuditLog.opened(folder / "audit.jsonl"))
    with _listening(serving) as door:
        server = uvicorn.Server(configured(service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            until(lambda: server.started)
            yield door.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        yield client


def answer(client: socket.socket) -> bytes:
    """One answer with its body; b"" if the connection was ended instead."""
    found = b""
    while b"\r\n\r\n" not in found:
        if not (more := client.recv(4096)):
            return found
        found += more
    head, _, body = found.partition(b"\r\n\r\n")
    (size,) = (int(line[15:]) for line in head.lower().split(b"\r\n") if b"content-length:" in line)
    while len(body) < size:
        body += client.recv(4096)
    return head


def is_late(client: socket.socket) -> bool:
    return answer(client).startswith(b"HTTP/1.1 408 ") and client.recv(1) == b""


@pytest.mark.fault("client gone")
@pytest.mark.parametrize("begun", [b"", b"G", REQUEST, REQUEST + b"X-More: "])
def test_headers_that_do_not_come_end_the_connection(port: int, begun: bytes) -> None:
    with connected(port) as client:
        since = time.monotonic()
        client.sendall(begun)
        assert is_late(client) if begun else answer(client) == b""
        assert time.monotonic() - since >= 0.9 * HEADERS_S


@pytest.mark.fault("client gone")
def test_headers_that_come_too_slowly_end_it_too(port: int) -> None:
    """Each byte is in time, but not their sum."""
    with connected(port) as client:
        client.settimeout(0.1)
        for letter in (REQUEST + b"X-More: " + b"x" * 100).decode():
            client.sendall(letter.encode())
            try:
                found = client.recv(4096)
            except TimeoutError:
                continue
            assert found.startswith(b"HTTP/1.1 408 ")
            return
        pytest.fail("the server waits for ever")


def test_so_do_those_of_a_later_request(port: int) -> None:
    with connected(port) as client:
        client.sendall(REQUEST + END)
        assert answer(client).startswith(b"HTTP/1.1 200 ")
        client.sendall(REQUEST)
        assert is_late(client)


def test_a_request_whose_body_takes_longer_is_answered(port: int) -> None:
    """Its headers were in time; what follows has limits of its own."""
    body = b'{"a": 1}'
    head = b"PUT /datastore/image/info?image=none HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connected(port) as client:
        client.sendall(head)
        time.sleep(1.5 * HEADERS_S)
        client.sendall(body)
        assert answer(client).startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 422 "))


def test_requests_one_after_the_other_take_as_long_as_they_like(port: int) -> None:
    with connected(port) as client:
        for _ in range(3):
            client.sendall(REQUEST + END)
            assert answer(client).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.6 * HEADERS_S)


def test_requests_that_come_at_once_are_all_answered(port: int) -> None:
    with connected(port) as client:
        client.sendall((REQUEST + END) * 2 + REQUEST + b"Connection: close\r\n" + END)
        found = b""
        while more := client.recv(4096):
            found += more
    assert found.count(b"HTTP/1.1 200 ") == 3


def upload(size: int) -> bytes:
    head = b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n" % size
    return head + b"Content-Type: application/octet-stream\r\n\r\n"


@pytest.mark.fault("client gone")
@pytest.mark.parametrize("pause_s", [0.01, 60.0])
def test_an_upload_that_is_refused_is_not_read_to_its_end(port: int, pause_s: float) -> None:
    """It goes on after the answer, in small blocks, or stops: the connection ends."""
    with connected(port) as client:
        client.sendall(upload(10**12))
        assert answer(client).startswith(b"HTTP/1.1 413 ")
        since, is_open = time.monotonic(), True
        while is_open and time.monotonic() - since < 10 * HEADERS_S:
            try:
                client.sendall(b"x" * 1000)
                client.settimeout(pause_s)
                is_open = client.recv(1) != b""
            except TimeoutError:
                continue
            except ConnectionError:
                is_open = False
        assert not is_open and time.monotonic() - since >= 0.9 * HEADERS_S


def test_the_rest_of_a_refused_upload_is_taken_and_the_connection_goes_on(port: int) -> None:
    """A client that sends all before it looks at the answer finds it."""
    size = 10**6
    with connected(port) as client:
        client.sendall(upload(size) + b"x" * size)
        assert answer(client).startswith(b"HTTP/1.1 413 ")
        time.sleep(0.5 * HEADERS_S)
        client.sendall(REQUEST + END)
        assert answer(client).startswith(b"HTTP/1.1 200 ")
