"""What a server serves, to whom, and within which limits."""

from __future__ import annotations

import ipaddress
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kidseg.errors import InputError, UsageError

__all__ = ["SERVER", "Limits", "Serving", "check_serving", "is_loopback", "read_tokens"]

SERVER = "server"
"""Owner of the jobs of the server itself."""

_LEAST = 16
_HOW_TO_CREATE = (
    "python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > token; chmod 600 token"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of size, time, rate and number.

    Attributes:
        upload_bytes: of one request.
        headers_s: until the headers of a request are complete.
        stall_s: without a byte, after which an upload is given up.
        upload_s: of one upload, and as much longer as its bytes take at `upload_rate`.
        upload_rate: bytes per second that are enough, however long an upload takes. Source: as
            MinRate of Apache's mod_reqtimeout.
        uploads: at the same time.
        label_bytes: voxels of labels, and of their image, that the server reads into its memory.
        waiting: jobs in the queue.
        waiting_of_one: of one client.
        requests_per_minute: of one client at one address; as many may come at once.
        failures_per_minute: wrong tokens of one address.
        job_s: running time of a job.
        attempts: of a job that the end of the server interrupted.
        gone_s: after which a job whose client is asked to stay is cancelled without it.
        keep_s: after its end, a job and its results are removed.
        session_s: after its last use, a session is removed.
        disk_bytes: of all jobs; beyond it, ended jobs are removed, the oldest first.
        spare_bytes: of the disk that are kept free.
    """

    upload_bytes: int = 4 * 2**30
    headers_s: float = 30.0
    stall_s: float = 30.0
    upload_s: float = 1800.0
    upload_rate: int = 64 * 1024
    uploads: int = 8
    label_bytes: int = 2 * 2**30
    waiting: int = 100
    waiting_of_one: int = 25
    requests_per_minute: int = 1200
    failures_per_minute: int = 20
    job_s: float = 3600.0
    attempts: int = 2
    gone_s: float = 30.0
    keep_s: float = 24 * 3600.0
    session_s: float = 3600.0
    disk_bytes: int = 100 * 2**30
    spare_bytes: int = 2**30


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A server.

    Attributes:
        model: file of the model to begin with.
        folder: for jobs, images, models and the audit log.
        device: see `kidseg.device.choose_device`.
        host: address to listen on.
        port: to listen on; 0: any that is free.
        tokens: {token: name of the client}; empty: everybody who reaches a loopback address.
        certificate: PEM file for TLS; None: plain HTTP.
        key: PEM file of its private key.
        limits: of requests and jobs.
        proxies: addresses or networks of proxies that are believed: a request through them is from
            the last address in its header X-Forwarded-For that is none of theirs.
        training: arguments of `kidseg train` in which a training by clients differs from the
            defaults, such as ("--set", "segment.epochs=20").
    """

    model: Path
    folder: Path
    device: str = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    certificate: Path | None = None
    key: Path | None = None
    limits: Limits = field(default_factory=Limits)
    proxies: tuple[str, ...] = ()
    training: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """The URL of the server."""
        scheme = "http" if self.certificate is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Is it an address that only this machine reaches?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_in_use(host: str, port: int, error: Exception) -> UsageError:
    """The error for an address and port that cannot be listened on."""
    reason = getattr(error, "strerror", None) or error
    return UsageError(
        f"{host}:{port} cannot be listened on ({reason})",
        code="address-in-use",
        next_step="Choose another --host or --port; 0 is any free port.",
    )


def check_serving(serving: Serving) -> None:
    """Check what can be checked before the server starts.

    Raises:
        UsageError: "token-required": others could reach it, and no token is set; "key-missing": a
            certificate without key, or the other way round; "bad-proxy".
        InputError: "not-found": certificate or key; "bad-certificate": they cannot be used.
    """
    if not serving.tokens and not is_loopback(serving.host):
        raise UsageError(
            f"other machines reach the address {serving.host}, so a token is required",
            code="token-required",
            next_step=f"Create one ({_HOW_TO_CREATE}) and add --token-file token.",
        )
    if (serving.certificate is None) != (serving.key is None):
        raise UsageError(
            "TLS requires both a certificate and its key",
            code="key-missing",
            next_step="Give --certificate and --key.",
        )
    for proxy in serving.proxies:
        _check_proxy(proxy)
    for path in (serving.certificate, serving.key):
        if path is not None and not path.is_file():
            raise InputError(
                "there is no such file",
                path=path,
                code="not-found",
                next_step="Give PEM files of the certificate and its key.",
            )
    if serving.certificate is not None and serving.key is not None:
        _check_tls(serving.certificate, serving.key)


def _check_proxy(proxy: str) -> None:
    try:
        if ipaddress.ip_network(proxy).prefixlen:
            return
    except ValueError:
        pass
    raise UsageError(
        f"{proxy} is neither an address nor a network of proxies",
        code="bad-proxy",
        next_step="Give the address from which the proxy reaches the server, such as 127.0.0.1 or"
        " 10.1.2.0/24.",
    )


def _check_tls(certificate: Path, key: Path) -> None:
    try:
        # A pass phrase is not asked for: a service has no terminal.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            certificate, key, password=""
        )
    except OSError as error:  # ssl.SSLError is one
        reason = getattr(error, "reason", None) or error.strerror or "a pass phrase is needed"
        raise InputError(
            f"this certificate cannot be used with the key {key} ({reason})",
            path=certificate,
            code="bad-certificate",
            next_step="Give PEM files: the certificate, with those between it and its authority,"
            " and its own key, which this user may read, without a pass phrase.",
        ) from error


def read_tokens(path: Path) -> dict[str, str]:
    """{token: name of the client} of a file with a line "TOKEN" or "NAME TOKEN" for each client.

    Clients do not see each other's jobs. Empty lines and those that start with # do not count.

    Raises:
        InputError: "not-found"; "token-readable": others may read the file; "bad-token": none, a
            line of another form, one that is too short, or one that occurs twice.
    """
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _bad_file(path, "the file of tokens cannot be read", "not-found") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise InputError(
            "other users of this machine may read the tokens",
            path=path,
            code="token-readable",
            next_step=f"Run: chmod 600 {path}",
        )
    tokens: dict[str, str] = {}
    lines = [line.split() for line in text.splitlines() if line.strip() and line[0] != "#"]
    for number, words in enumerate(lines, start=1):
        token, name = words[-1], words[0] if len(words) == 2 else f"client-{number}"
        unusable = not token.isascii() or not token.isprintable() or len(token) < _LEAST
        taken = token in tokens or name in (*tokens.values(), SERVER)
        if len(words) > 2 or unusable or taken:
            raise _bad_file(path, f"entry {number} is not a token of its own", "bad-token")
        tokens[token] = name
    if not tokens:
        raise _bad_file(path, "there is no token in it", "bad-token")
    return tokens


def _bad_file(path: Path, cause: str, code: str) -> InputError:
    return InputError(
        cause,
        path=path,
        code=code,
        next_step=f"Write a line for each client, TOKEN or NAME TOKEN, with at least {_LEAST}"
        f" characters each: {_HOW_TO_CREATE}",
    )
