"""The command `serve`: what it refuses, and (slow) a real process that is killed and goes on."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import Dataset

from dicom_files import series
from kidseg.cli import main
from serving import make_model, scan_of, until, zipped

API = "/api/v1/jobs"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["--host", "0.0.0.0"], 2, "token-required"),
        (["--token-file", "none"], 3, "not-found"),
        (["--key", "none"], 2, "key-missing"),
        (["-m", "none"], 6, "no-model"),
        (["--port", "70000"], 2, "usage"),
        (
            ["--host", "127.0.0.1", "--port", "1", "--certificate", "a", "--key", "b"],
            3,
            "not-found",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    exit_code: int,
    code: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments, "--json"])
    assert ended.value.code == exit_code
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_certificate_that_cannot_be_used_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No certificate, the key of another one, a key with a pass phrase, which nobody can enter."""
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    for name in "ab":
        files = ["-keyout", str(tmp_path / f"{name}.key"), "-out", str(tmp_path / f"{name}.pem")]
        subprocess.run(["openssl", *words, *files], check=True, capture_output=True)
    locked = ["-aes256", "-passout", "pass:1234", "-in", tmp_path / "a.key", "-out"]
    subprocess.run(["openssl", "rsa", *locked, tmp_path / "c.key"], check=True, capture_output=True)
    for certificate, key in (("a.key", "a.key"), ("a.pem", "b.key"), ("a.pem", "c.key")):
        given = ["--certificate", str(tmp_path / certificate), "--key", str(tmp_path / key)]
        with pytest.raises(SystemExit) as ended:
            main(["serve", "--folder", str(tmp_path / "server"), *given, "--json"])
        error = json.loads(capsys.readouterr().out)["error"]
        assert (ended.value.code, error["code"]) == (3, "bad-certificate")
        assert str(tmp_path / certificate) in error["path"] and key in error["cause"]
    assert not (tmp_path / "server").exists()


class Process:
    """A `kidseg serve` process."""

    def __init__(self, folder: Path, model: Path, *more: str) -> None:
        command = [sys.executable, "-m", "kidseg", "serve", "-m", str(model), "--json"]
        command += ["--folder", str(folder), "--port", "0", "--device", "cpu", *more]
        self.process = subprocess.Popen(
            command,
            # A shell starts background jobs with SIGINT ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        lines: list[str] = []
        for line in self.process.stdout:
            lines.append(line)
            if line.rstrip() == "}":
                break
        self.address = json.loads("".join(lines))["serving"]["address"]

    def end(self, number: int) -> tuple[int, str]:
        self.process.send_signal(number)
        return self.process.wait(60), self.process.communicate()[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serving")
    make_model(root)
    return root


def upload(client: httpx.Client, scan: Path) -> str:
    answer = client.post(API, files={"file": scan.read_bytes()})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task").iterdir()
    return [int(c) for task in text for c in (task / "children").read_text().split()]


@pytest.mark.requirement("server")
@pytest.mark.slow
def test_a_server_that_is_killed_loses_nothing_and_doubles_nothing(
    root: Path, tmp_path: Path
) -> None:
    folder, model = tmp_path / "server", root / "run" / "model.safetensors"
    server = Process(folder, model)
    jobs: list[str] = []
    for round_ in range(3):  # killed with a job running, jobs waiting, and jobs done
        with httpx.Client(base_url=server.address, timeout=60) as client:
            until(lambda c=client: c.get("/api/v1/health").json()["status"] == "ok")
            jobs += [upload(client, scan_of(root, k)) for k in range(3)]
            until(lambda c=client, j=jobs: c.get(f"{API}/{j[-2]}").json()["state"] != "queued")
        workers = children(server.process.pid)
        assert workers and server.end(signal.SIGKILL)[0] == -signal.SIGKILL, round_
        until(lambda w=workers: not [pid for pid in w if Path(f"/proc/{pid}/exe").exists()])
        server = Process(folder, model)
    second = subprocess.run(
        [sys.executable, "-m", "kidseg", "serve", "-m", model, "--folder", folder, "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2 and "another server" in second.stderr
    with httpx.Client(base_url=server.address, timeout=60) as client:
        for job in jobs:
            until(lambda j=job: client.get(f"{API}/{j}").json()["state"] in ("done", "failed"))
            assert client.get(f"{API}/{job}").json()["state"] == "done"
            results = [p.name for p in (folder / "jobs" / job).iterdir()]
            assert len(results) == 1 and results[0].startswith("results-")
        assert len(client.get(API).json()["jobs"]) == len(jobs)
    code, said = server.end(signal.SIGTERM)
    assert code == 143 and "go on after the next start" in said
    events = [json.loads(x) for x in (folder / "audit.jsonl").read_text().splitlines()]
    ends = Counter(e["job"] for e in events if e["event"] == "job-done")
    assert set(ends) == set(jobs) and set(ends.values()) == {1}
    assert not any((folder / "incoming").iterdir())
    for path in (folder, folder / "jobs", folder / "audit.jsonl", folder / "jobs.sqlite"):
        assert path.stat().st_mode & 0o077 == 0, path


def named_zip(folder: Path, keep: Callable[[int], bool] = lambda k: True) -> bytes:
    """A zip of the images of a DICOM series, of a patient whose name is in headers and paths."""

    def named(ds: Dataset, k: int) -> None:
        ds.PatientName, ds.PatientID, ds.InstitutionName = "Doe^Jane", "ID-4711", "Doe Hospital"

    images = sorted(series(folder / "Doe", edit=named).iterdir())
    kept = [path for k, path in enumerate(images) if keep(k)]
    return zipped({f"Doe_Jane/ID-4711/{path.name}": path.read_bytes() for path in kept})


def names_in(folder: Path) -> list[str]:
    """Files, of which the name or the content, packed or not, names the patient."""

    def content(path: Path) -> bytes:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data

    files = [path for path in folder.rglob("*") if path.is_file()]
    texts = {path: str(path.relative_to(folder)).encode() + content(path) for path in files}
    secret = (b"doe", b"4711")
    return [str(path) for path, text in texts.items() if any(s in text.lower() for s in secret)]


@pytest.mark.slow
@pytest.mark.requirement("privacy")
def test_a_server_keeps_and_says_no_name_and_removes_what_expires(
    root: Path, tmp_path: Path
) -> None:
    """After a job that is done, one whose series is not complete, and one that is no series."""
    folder = tmp_path / "server"
    server = Process(folder, root / "run" / "model.safetensors", "--keep-hours", "0.002")
    bodies = {
        "done": named_zip(tmp_path / "a"),
        "gap": named_zip(tmp_path / "b", lambda k: k != 2),
        "none": zipped({"Doe_Jane/ID-4711.txt": b"Doe^Jane ID-4711"}),
    }
    with httpx.Client(base_url=server.address, timeout=60) as client:
        jobs = {}
        for name, body in bodies.items():
            form = {"file": ("Doe_Jane ID-4711.zip", body)}
            jobs[name] = client.post(API, files=form).json()["id"]
        expected = {"done": "done", "gap": "failed", "none": "failed"}
        for name, job in jobs.items():
            ended: dict[str, Any] = {}

            def is_over(job: str = job, ended: dict[str, Any] = ended) -> bool:
                ended.update(client.get(f"{API}/{job}").json())
                return ended.get("state") in ("done", "failed")

            until(is_over, 300)
            assert ended["state"] == expected[name], ended
            assert "doe" not in json.dumps(ended).lower() and "4711" not in json.dumps(ended)
        assert names_in(folder) == []
        assert (folder / "jobs" / jobs["done"]).is_dir()
        for job in jobs.values():  # later than --keep-hours says, as it looks twice a minute
            until(lambda j=job: client.get(f"{API}/{j}").status_code == 404, 120)
            until(lambda j=job: not (folder / "jobs" / j).exists(), 30)  # its files follow
    code, said = server.end(signal.SIGTERM)
    assert code == 143 and "doe" not in said.lower() and "4711" not in said
    assert names_in(folder) == []
    events = [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]
    expired = {event["job"] for event in events if event["event"] == "job-expired"}
    assert expired == set(jobs.values())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_tls_and_a_token(root: Path, tmp_path: Path) -> None:
    key, certificate, token = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "token"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *more], check=True, capture_output=True)
    token.write_text("x" * 32)
    token.chmod(0o600)
    options = ["--token-file", str(token), "--certificate", str(certificate), "--key", str(key)]
    server = Process(tmp_path / "server", root / "run", *options)
    try:
        assert server.address.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=server.address, verify=trusted, timeout=60) as client:
            assert client.get(API).status_code == 401
            headers = {"Authorization": f"Bearer {'x' * 32}"}
            assert client.get(API, headers=headers).json()["jobs"] == []
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.address}/api/v1/health")  # not trusted
    finally:
        assert server.end(signal.SIGINT)[0] == 130
