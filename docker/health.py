"""The health check of the container: does its server answer?

What the container runs is read from the command line of its first process, by kidseg's own parser;
of any other command it is enough that it runs. Exit code 0: healthy; 1: not, and a line says why.
"""

from __future__ import annotations

import json
import ssl
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import typer.main

from kidseg.cli import app

TIMEOUT_S = 10.0
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def health_address(words: Sequence[str]) -> str | None:
    """Where the server of this command line tells its health; None if it is no `kidseg serve`.

    Args:
        words: of a process, such as /opt/kidseg/bin/python /opt/kidseg/bin/kidseg serve --port 80.
    """
    names = [Path(word).name for word in words]
    if "serve" not in names or names[names.index("serve") - 1] != "kidseg":
        return None
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    given = command.make_context("serve", list(words[names.index("serve") + 1 :])).params
    host = EVERY_ADDRESS.get(given["host"], given["host"])
    host = f"[{host}]" if ":" in host else host
    scheme = "https" if given["certificate"] else "http"
    return f"{scheme}://{host}:{given['port']}/api/v1/health"


def unhealthy(address: str) -> str:
    """Why the server at this address is not healthy; empty if it is, or still loads its model."""
    trusted = ssl.create_default_context()
    trusted.check_hostname = False  # it is this container; nothing secret is sent
    trusted.verify_mode = ssl.CERT_NONE
    handlers = urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
    try:
        with urllib.request.build_opener(*handlers).open(address, timeout=TIMEOUT_S) as answer:
            status = json.load(answer)["status"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"the server does not answer at {address}: {error}"
    return "" if status in ("ok", "loading") else f"the server is {status}"


if __name__ == "__main__":
    first = Path("/proc/1/cmdline").read_bytes().rstrip(b"\0").decode("utf-8", "replace")
    address = health_address(first.split("\0"))
    if address and (problem := unhealthy(address)):
        sys.exit(problem)
