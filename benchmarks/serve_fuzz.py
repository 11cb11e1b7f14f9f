"""Requests of every kind against the OpenAPI document of a real server: no 5xx, no other faults.

    python benchmarks/serve_fuzz.py --schemathesis PROGRAM -m MODEL [--scan SCAN] [--examples 50]

PROGRAM is schemathesis in an environment of its own. The server has one image and one job, so that
more routes have something to answer. Exit code: that of schemathesis, or 1 if the server is gone or
has logged a fault.
"""

from __future__ import annotations

import argparse
import os
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemathesis", required=True)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--examples", type=int, default=50)
    arguments = parser.parse_args()
    port = 20000 + os.getpid() % 20000
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as name:
        server = start(arguments, Path(name) / "server", port)
        try:
            if arguments.scan is not None:
                body = arguments.scan.read_bytes()
                httpx.post(f"{url}/api/v1/jobs", files={"file": body}).raise_for_status()
                httpx.put(f"{url}/datastore/?image=one", files={"file": body}).raise_for_status()
            command = [arguments.schemathesis, "run", f"{url}/api/v1/openapi.json"]
            command += ["--checks", ",".join(CHECKS), "--max-examples", str(arguments.examples)]
            command += ["--rate-limit", "1000/m", "--phases", "examples,coverage,fuzzing"]
            code = subprocess.run(command, check=False, cwd=name).returncode
            health = httpx.get(f"{url}/api/v1/health", timeout=30).json()
            return code or int(health["status"] != "ok" or server.poll() is not None)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    sys.exit(main())
