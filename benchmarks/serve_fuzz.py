"""Requests of every kind against the OpenAPI document of a real server: no 5xx, no other faults.

    python benchmarks/serve_fuzz.py --schemathesis PROGRAM -m MODEL [--scan SCAN] [--examples 50]
                                    [--token] [--known]

PROGRAM is schemathesis in an environment of its own. The server has one image and one job, so that
more routes have something to answer. With --token it asks for a token, which schemathesis sends.
With --known (and --scan) all requests name the job, the session and the image that are there, once
the job is done, so that routes give results instead of 404; nothing is removed.
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
import time
from pathlib import Path

import httpx

from serve_load import ENDED, start

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


FAULT = re.compile(
    r"a request failed|cleaning up failed|dispatcher failed|no scan is segmented"
    r"|the end of a training is not in the log|Traceback|Exception in"
)


def faults(log: str) -> list[str]:
    """The lines of a server's standard error that tell of a fault of its own."""
    return [line for line in log.splitlines() if FAULT.search(line)]


def fill(url: str, scan: Path, headers: dict[str, str]) -> dict[str, str]:
    """Upload a scan as a job, an image and a session; the parameters that name them."""
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        answers = {}
        for method, path in (
            ("POST", "api/v1/jobs?sex=female&height_cm=100"),
            ("PUT", "datastore/?image=one"),
            ("PUT", "session/"),
        ):
            answers[path] = client.request(method, path, files={"file": scan.read_bytes()})
            answers[path].raise_for_status()
        job, _, session = (answer.json() for answer in answers.values())
        while (seen := client.get(f"api/v1/jobs/{job['id']}").json())["state"] != "done":
            if seen["state"] in ENDED:
                raise SystemExit(f"the job has {seen['state']}")
            time.sleep(0.1)
        while client.get("datastore/label", params={"label": "one", "tag": "original"}).is_error:
            time.sleep(0.1)
    image = {"query.image": "one", "query.label": "one", "query.tag": "original"}
    result = {"path.job": job["id"], "path.name": seen["result"]["files"][0]["name"]}
    return {**result, **image, "path.session": session["session_id"], "path.model": "kidseg"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schemathesis", required=True)
    parser.add_argument("-m", "--model", required=True)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("--token", action="store_true")
    parser.add_argument("--known", action="store_true")
    arguments = parser.parse_args()
    if arguments.known and arguments.scan is None:
        parser.error("--known needs --scan")
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
            known = {} if arguments.scan is None else fill(url, arguments.scan, headers)
            command = [arguments.schemathesis, "run", f"{url}/api/v1/openapi.json"]
            command += ["--checks", ",".join(CHECKS), "--max-examples", str(arguments.examples)]
            command += ["--rate-limit", "1000/m", "--phases", "examples,coverage,fuzzing"]
            if arguments.known:
                lines = [f'"{name}" = "{value}"' for name, value in known.items()]
                (Path(name) / "schemathesis.toml").write_text("\n".join(["[parameters]", *lines]))
                command += ["--exclude-method", "DELETE"]
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
