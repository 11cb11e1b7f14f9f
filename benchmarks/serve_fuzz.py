"""Requests of every kind against the OpenAPI document of a real server: no 5xx, no other faults.

    python benchmarks/serve_fuzz.py --schemathesis PROGRAM -m MODEL [--scan SCAN] [--examples 50]
                                    [--token]

PROGRAM is schemathesis in an environment of its own. The server has one image and one job, so that
more routes have something to answer. With --token it asks for a token, which schemathesis sends.
Exit code: that of schemathesis, or 1 if the server is gone, or has said a fault on its standard
error, whose lines are then printed.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from serve_load import start

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


FAULT = re.compile(r"a request failed|cleaning up failed|dispatcher failed|Traceback|Exception in")


def faults(log: str) -> list[str]:
    """The lines of a server's standard error that tell of a fault of its own."""
    return [line for line in log.splitlines() if FAULT.search(line)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemathesis", required=True)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--token", action="store_true")
    arguments = parser.parse_args()
    port = 20000 + os.getpid() % 20000
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as name, (Path(name) / "log").open("w") as log:
        headers, more = {}, []
        if arguments.token:
            tokens = Path(name) / "tokens"
            tokens.touch(0o600)
            tokens.write_text(token := secrets.token_urlsafe(32))
            headers, more = {"Authorization": f"Bearer {token}"}, ["--token-file", tokens]
        server = start(arguments, Path(name) / "server", port, *more, log=log)
        try:
            if arguments.scan is not None:
                body = arguments.scan.read_bytes()
                for method, path in (("POST", "api/v1/jobs"), ("PUT", "datastore/?image=one")):
                    sent = {"files": {"file": body}, "headers": headers}
                    httpx.request(method, f"{url}/{path}", **sent).raise_for_status()
            command = [arguments.schemathesis, "run", f"{url}/api/v1/openapi.json"]
            command += ["--checks", ",".join(CHECKS), "--max-examples", str(arguments.examples)]
            command += ["--rate-limit", "1000/m", "--phases", "examples,coverage,fuzzing"]
            command += [word for pair in headers.items() for word in ("-H", ": ".join(pair))]
            code = subprocess.run(command, check=False, cwd=name).returncode
            health = httpx.get(f"{url}/api/v1/health", timeout=30).json()
            gone = health["status"] != "ok" or server.poll() is not None
        finally:
            server.terminate()
            server.wait()
        found = faults((Path(name) / "log").read_text())
        print("\n".join(found))
        return code or int(gone or bool(found))


if __name__ == "__main__":
    sys.exit(main())
