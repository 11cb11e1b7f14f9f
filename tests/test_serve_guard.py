"""Who gets in: tokens, addresses, pages of other servers, rates; what is refused at the start."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hmac import compare_digest
from pathlib import Path
from types import SimpleNamespace

import httpx
import nibabel
import numpy as np
import pytest
import torch

from kidseg.checkpoint import save_model
from kidseg.errors import InputError, KidsegError, ModelError, UsageError
from kidseg.model_file import find_model
from kidseg.serve.application import create_app
from kidseg.serve.audit_log import AuditLog
from kidseg.serve.folder_lock import locked_folder
from kidseg.serve.guard import LOCAL, Rate, Tickets
from kidseg.serve.job import Job, Kind
from kidseg.serve.job import Request as JobRequest
from kidseg.serve.job_results import file_answer
from kidseg.serve.jobs import JobTable
from kidseg.serve.listening import configured, serve
from kidseg.serve.policy import Limits, Serving, check_serving, is_loopback, read_tokens
from kidseg.serve.refusals import RefusedError
from kidseg.serve.service import Service, _service
from serving import Direct
from test_serve_jobs import add

TOKENS = {"a" * 16: "first", "b" * 16: "second"}


RESULT = {
    "outputs": ["scan_seg.nii.gz"],
    "model": {"sha256": "a", "method": "plain"},
    "labels": {},
    "volumes_ml": {},
    "warnings": [],
    "uncertainty": 0.0,
    "distance_sd": 0.0,
}


@contextmanager
def answering(folder: Path, **more: object) -> Iterator[tuple[Direct, Service]]:
    """The application, without the process that segments."""
    folder.mkdir(exist_ok=True)
    serving = Serving(model=folder / "none", folder=folder, **more)  # type: ignore[arg-type]
    service = _service(serving, folder, AuditLog.opened(folder / "audit.jsonl"))
    yield Direct(create_app(service)), service


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.requirement("privacy")
def test_a_token_is_asked_for_everywhere_but_at_the_door(tmp_path: Path) -> None:
    with answering(tmp_path, tokens=TOKENS) as (client, service):
        for path in ("/api/v1/jobs", "/api/v1/nothing", "/info/", "/datastore/image?image=x"):
            answer = client.get(path)
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.json()["code"] == "token-required"
        for path in ("/", "/api/v1/health", "/api/v1/openapi.json", "/page/page.css"):
            assert client.get(path).status_code == 200, path
        for wrong in ("c" * 16, "a" * 15, "a" * 17, "", "é"):
            answer = client.get(
                "/api/v1/jobs", headers={b"Authorization": b"Bearer " + wrong.encode()}
            )
            assert answer.status_code == 401 and answer.json()["code"] == "wrong-token"
        assert (
            client.get("/api/v1/jobs", headers={"Authorization": "Basic YTph"}).status_code == 401
        )
        assert client.get("/api/v1/jobs", headers=bearer("a" * 16)).json() == {
            "jobs": [],
            "next": None,
        }
        assert "a" * 15 not in service.audit.path.read_text()


@pytest.mark.requirement("privacy")
def test_clients_do_not_see_each_other(tmp_path: Path) -> None:
    with answering(tmp_path, tokens=TOKENS) as (client, service):
        job = add(service.jobs, "first")
        mine = client.get(f"/api/v1/jobs/{job}", headers=bearer("a" * 16))
        assert mine.json()["id"] == job
        other = bearer("b" * 16)
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/cancel"),
            ("GET", "/events"),
            ("GET", "/results"),
            ("GET", "/results/scan_seg.nii.gz"),
        ):
            answer = client.request(method, f"/api/v1/jobs/{job}{path}", headers=other)
            assert answer.status_code == 404, path
        assert client.get("/api/v1/jobs", headers=other).json()["jobs"] == []
        assert service.jobs.get(job).state == "queued"


def with_report(service: Service, owner: str) -> str:
    """The address of the results of a job that is done: labels and a report."""
    add(service.jobs, owner)
    job = service.jobs.claim()
    outputs = ["scan_seg.nii.gz", "scan_report.html"]
    assert job is not None and service.jobs.end(job, "done", result={**RESULT, "outputs": outputs})
    service.jobs.results(job).mkdir()
    for name in outputs:
        (service.jobs.results(job) / name).write_text("<p>report</p>")
    return f"/api/v1/jobs/{job.id}/results"


def assert_shown_apart(answer: httpx.Response) -> None:
    """A page to look at, without access to the server and what the browser keeps for it."""
    assert (answer.status_code, answer.text) == (200, "<p>report</p>")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "content-disposition" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy_of(answer).split(";"))
    assert rules["sandbox"].split() == ["allow-scripts", "allow-downloads"]  # not its own origin
    for rule in ("connect-src", "base-uri", "form-action", "frame-ancestors"):
        assert rules[rule] == "'none'"


def policy_of(answer: httpx.Response) -> str:
    (policy,) = answer.headers.get_list("content-security-policy")
    return policy


@pytest.mark.requirement("server")
def test_a_report_is_shown_in_the_browser_apart_from_the_server(tmp_path: Path) -> None:
    with answering(tmp_path, tokens=TOKENS) as (client, service):
        base = with_report(service, "first")
        report, mine, other = f"{base}/scan_report.html", bearer("a" * 16), bearer("b" * 16)
        assert_shown_apart(client.get(f"{report}?view=true", headers=mine))
        saved = client.get(report, headers=mine)
        assert saved.headers["content-disposition"] == 'attachment; filename="scan_report.html"'
        assert "sandbox" not in policy_of(saved)
        labels = client.get(f"{base}/scan_seg.nii.gz?view=true", headers=mine)
        assert labels.headers["content-disposition"].startswith("attachment")
        assert client.get(f"{report}?view=true", headers=other).status_code == 404
        assert client.get(f"{report}?view=true").status_code == 401
    with answering(tmp_path / "open") as (client, service):
        assert_shown_apart(client.get(f"{with_report(service, LOCAL)}/scan_report.html?view=true"))


@pytest.mark.requirement("privacy")
def test_a_link_to_a_report_needs_no_token_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(tmp_path, tokens=TOKENS) as (client, service):
        base, mine, other = with_report(service, "first"), bearer("a" * 16), bearer("b" * 16)
        ask = f"{base}/scan_report.html/link"
        links = [client.post(ask, headers=mine).json() for _ in range(2)]
        assert links[0]["href"] != links[1]["href"] and links[0]["valid_s"] == 120
        for link in links:
            assert_shown_apart(client.get(link["href"]))
        href = links[0]["href"]
        for wrong in (
            href[:-1],
            href.partition("&")[0],
            href.replace("scan_report.html", "scan_seg.nii.gz"),
            href.replace("view=true&", ""),
            f"{base}?{href.partition('?')[2]}",
        ):
            assert client.get(wrong).status_code == 401, wrong
        for method in ("POST", "DELETE", "HEAD"):
            assert client.request(method, href).status_code == 401
        assert client.post(ask).status_code == 401
        assert client.post(ask, headers=other).status_code == 404
        for name in ("scan_seg.nii.gz", "other_report.html"):
            assert client.post(f"{base}/{name}/link", headers=mine).status_code == 404
        ticket = href.partition("ticket=")[2]
        assert len(ticket) >= 40 and ticket not in service.audit.path.read_text()
        later = time.monotonic() + links[0]["valid_s"] + 1
        monkeypatch.setattr("kidseg.serve.guard.time.monotonic", lambda: later)
        assert client.get(href).status_code == 401


def test_head_has_the_headers_of_get_and_nothing_else(tmp_path: Path) -> None:
    with answering(tmp_path) as (client, service):
        results, queued = with_report(service, LOCAL), add(service.jobs, LOCAL)
        for path, status in (
            ("/", 200),
            ("/api/v1/health", 200),
            (f"{results}/scan_seg.nii.gz", 200),
            (f"{results}/none", 404),
            ("/api/v1/nothing", 404),
            ("/datastore/image?image=none", 404),
        ):
            head, get = client.request("HEAD", path), client.get(path)
            assert (head.status_code, head.content) == (status, b""), path
            assert {**head.headers, "date": ""} == {**get.headers, "date": ""}
        events = client.request("HEAD", f"/api/v1/jobs/{queued}/events")  # does not wait for them
        assert events.status_code == 200 and events.headers["content-type"].startswith(
            "text/event-stream"
        )


def test_long_headers_are_refused_however_fast_they_come(tmp_path: Path) -> None:
    with answering(tmp_path) as (client, _):
        assert client.get("/api/v1/health", headers={"X": "a" * 15_000}).status_code == 200
        answer = client.get("/api/v1/health", headers={"X": "a" * 17_000})
        assert (answer.status_code, answer.json()["code"]) == (431, "headers-too-large")


def test_a_parameter_that_does_not_exist_and_a_second_file_are_refused(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), tmp_path / "s.nii")
    scan = (tmp_path / "s.nii").read_bytes()
    with answering(tmp_path / "server") as (client, service):
        ask = {"files": [("file", ("a.nii", scan))]}
        answer = client.request("POST", "/api/v1/jobs?heigth_cm=92", **ask)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
        assert "heigth_cm" in answer.json()["detail"]
        for method, path in (("POST", "/api/v1/jobs"), ("PUT", "/datastore/?image=x")):
            answer = client.request(method, path, files=[*ask["files"], ("file", ("b.nii", scan))])
            assert (answer.status_code, answer.json()["code"]) == (422, "several-files"), path
        assert service.jobs.of_owner(LOCAL) == [] and not any(service.door.folder.iterdir())


def test_the_login_of_monai_label_takes_the_token_as_the_password(tmp_path: Path) -> None:
    with answering(tmp_path, tokens=TOKENS) as (client, _):
        assert client.get("/auth/").json()["enabled"] is True
        right = client.post("/auth/token", data={"username": "x", "password": "a" * 16}).json()
        assert right == {"access_token": "a" * 16, "token_type": "bearer"}
        assert client.get("/auth/token/valid", headers=bearer("a" * 16)).status_code == 200
        for body, status in (
            (b"password=wrong", 401),
            (b"", 401),
            (b"a=1&" * 30, 422),
            (b"a" * 20_000, 413),
            (b"\xff=%ff&password=%00", 401),
        ):
            assert client.post("/auth/token", content=body).status_code == status, body[:20]


def test_each_guess_is_compared_with_all_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In constant time each, whichever it is: how long it takes tells nothing."""
    tokens = {letter * 16: letter for letter in "abcd"}
    compared: list[bytes] = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return compare_digest(given, known)

    monkeypatch.setattr("kidseg.serve.guard.hmac.compare_digest", compare)
    with answering(tmp_path, tokens=tokens) as (client, _):
        for guess in (*tokens, "x" * 16, "", "a"):
            compared.clear()
            client.get("/info/", headers=bearer(guess))
            assert compared == [token.encode() for token in tokens], guess


def test_clients_behind_one_address_do_not_use_up_each_others_requests(tmp_path: Path) -> None:
    """As behind a proxy."""
    limits = Limits(requests_per_minute=3)
    with answering(tmp_path, tokens=TOKENS, limits=limits) as (client, _):
        first, second = ({"headers": bearer(token)} for token in TOKENS)
        got = [client.get("/info/", **first).status_code for _ in range(4)]
        assert got == [200] * 3 + [429]
        assert client.get("/info/", **second).status_code == 200
        got = [client.get("/info/").status_code for _ in range(4)]
        assert got == [401] * 3 + [429]


@pytest.mark.requirement("server")
def test_wrong_tokens_behind_a_proxy_count_for_who_sent_them(tmp_path: Path) -> None:
    """As a proxy that is believed says; what a client says of itself counts for nothing."""
    limits = Limits(failures_per_minute=3)

    def statuses(client: Direct, *senders: str, token: str = "x" * 16) -> list[int]:
        asked = [{**bearer(token), "X-Forwarded-For": sender} for sender in senders]
        return [client.get("/info/", headers=headers).status_code for headers in asked]

    guesser = [f"192.0.2.{k}, 192.0.2.1" for k in range(10, 14)]  # names others before itself
    for proxies, locked_out in (("127.0.0.1",), False), (("10.0.0.0/8",), True), ((), True):
        more = {"tokens": TOKENS, "limits": limits, "proxies": proxies}
        with answering(tmp_path / f"{len(proxies)}{locked_out}", **more) as (_, service):
            config = configured(service)
            config.load()
            client = Direct(config.loaded_app)
            assert statuses(client, *guesser) == [401] * 3 + [429]
            right = statuses(client, "192.0.2.2", "192.0.2.10", token="a" * 16)
            assert right == ([429] * 2 if locked_out else [200] * 2)


@pytest.mark.parametrize("proxy", ["*", "0.0.0.0/0", "::/0", "proxy.example", "10.0.0.1/8", ""])
def test_not_everybody_is_a_proxy(tmp_path: Path, proxy: str) -> None:
    serving = Serving(model=tmp_path, folder=tmp_path, proxies=("::1", "10.0.0.0/8", proxy))
    with pytest.raises(UsageError) as refused:
        check_serving(serving)
    assert refused.value.code == "bad-proxy"
    check_serving(replace(serving, proxies=("::1", "10.0.0.0/8")))


def test_guessing_tokens_is_slowed_down(tmp_path: Path) -> None:
    limits = Limits(failures_per_minute=3)
    with answering(tmp_path, tokens=TOKENS, limits=limits) as (client, service):
        answers = [client.get("/info/", headers=bearer(f"{k:016d}")) for k in range(5)]
        assert [a.status_code for a in answers] == [401, 401, 401, 429, 429]
        assert int(answers[-1].headers["Retry-After"]) >= 1
        assert service.audit.path.read_text().count("wrong-token") == 3


@pytest.mark.fault("disk full")
def test_a_log_that_is_full_is_said_to_who_has_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with answering(tmp_path, tokens=TOKENS) as (client, _):
        monkeypatch.setattr("kidseg.serve.audit_log._append", full)
        answer = client.get("/info/", headers=bearer("x" * 16))
        assert (answer.status_code, answer.json()["code"]) == (507, "disk-full")


@pytest.mark.requirement("server")
def test_too_many_requests_are_told_when_to_come_again(tmp_path: Path) -> None:
    with answering(tmp_path, limits=Limits(requests_per_minute=5)) as (client, _):
        answers = [client.get("/api/v1/health") for _ in range(7)]
        assert [a.status_code for a in answers] == [200] * 5 + [429] * 2
        assert answers[-1].json()["code"] == "too-many-requests"
        assert int(answers[-1].headers["Retry-After"]) >= 1


@pytest.mark.requirement("privacy")
def test_a_page_of_another_server_gets_nothing(tmp_path: Path) -> None:
    with answering(tmp_path) as (client, _):
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:9999"},
            {"Host": "evil.example:8000"},  # a name that points here
            {"Host": ""},
        ):
            answer = client.post("/api/v1/jobs", headers=headers, content=b"")
            assert answer.status_code == 403 and answer.json()["code"] == "other-origin", headers
        own = {"Origin": "http://127.0.0.1:8000"}
        assert client.get("/api/v1/jobs", headers=own).status_code == 200
        for name in ("localhost:8000", "[::1]:8000", "127.0.0.1"):
            assert client.get("/api/v1/jobs", headers={"Host": name}).status_code == 200


def test_every_answer_has_the_headers_that_keep_a_browser_safe(tmp_path: Path) -> None:
    with answering(tmp_path) as (client, _):
        for path in ("/", "/api/v1/health", "/nothing", "/api/v1/jobs/x", "/page/../x"):
            headers = client.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"


def test_errors_are_problem_documents(tmp_path: Path) -> None:
    with answering(tmp_path) as (client, _):
        for method, path, status, code in (
            ("GET", "/nothing", 404, "not-found"),
            ("PUT", "/api/v1/jobs", 405, "wrong-method"),
            ("GET", "/api/v1/jobs/12", 422, "invalid-request"),
            ("GET", "/api/v1/jobs?after=99999999999999999999", 422, "invalid-request"),
            ("POST", "/api/v1/jobs?formats=doc", 400, "unknown-format"),
            ("POST", "/api/v1/jobs?formats=sr", 400, "missing-format"),
            ("POST", "/api/v1/jobs", 415, "unsupported-type"),
            ("GET", "/page/secret", 404, "not-found"),
        ):
            answer = client.request(method, path)
            problem = answer.json()
            assert answer.headers["content-type"] == "application/problem+json", path
            assert (answer.status_code, problem["status"], problem["code"]) == (
                status,
                status,
                code,
            )
            assert problem["detail"] and problem["next_step"]
            assert str(tmp_path) not in answer.text


@pytest.mark.fault("disk full")
def test_a_full_disk_is_said_before_anything_is_received(tmp_path: Path) -> None:
    with answering(tmp_path, limits=Limits(spare_bytes=2**60)) as (client, service):
        answer = client.post("/api/v1/jobs", files={"file": ("x", b"1")})
        assert (answer.status_code, answer.json()["code"]) == (507, "disk-full")
        assert not any(service.door.folder.iterdir())


@pytest.mark.fault("disk full")
@pytest.mark.parametrize("form", [True, False])
def test_the_spare_room_of_the_disk_is_kept_while_uploads_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: bool
) -> None:
    """Several at once, or of an unknown length, do not fill it for the jobs that run."""
    disk, spare, sizes = 20 * 2**20, 10 * 2**20, [0]

    def usage(folder: Path) -> SimpleNamespace:
        files = [path for path in folder.rglob("*") if path.is_file()]
        sizes.append(sum(path.stat().st_size for path in files))
        return SimpleNamespace(free=disk - sizes[-1])

    async def unknown_length() -> AsyncIterator[bytes]:
        if form:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(20):
            yield bytes(2**20)

    monkeypatch.setattr("kidseg.serve.incoming.shutil.disk_usage", usage)
    kind = "multipart/form-data; boundary=b" if form else "application/octet-stream"
    with answering(tmp_path, limits=Limits(spare_bytes=spare)) as (client, service):
        headers = {"Content-Type": kind}
        answer = client.post("/api/v1/jobs", content=unknown_length(), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (507, "disk-full")
        assert 5 * 2**20 < max(sizes) <= disk - spare
        assert not any(service.door.folder.iterdir()) and service.door._busy == 0


@pytest.mark.requirement("server")
def test_an_upload_is_on_the_disk_before_its_job_is_in_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a power cut leaves no job without its scan."""
    synced, queued = set[int](), list[bool]()
    fsync, add_job = os.fsync, JobTable.add

    def noted(file: int) -> None:
        synced.add(os.fstat(file).st_ino)
        fsync(file)

    def seen(self: JobTable, job: str, owner: str, kind: Kind, request: JobRequest) -> Job:
        queued.append((self.place(job) / request.scan).stat().st_ino in synced)
        return add_job(self, job, owner, kind, request)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(JobTable, "add", seen)
    nibabel.save(
        nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), tmp_path / "x.nii.gz"
    )
    content = (tmp_path / "x.nii.gz").read_bytes()
    with answering(tmp_path / "server") as (client, _):
        raw = {"content": content, "headers": {"Content-Type": "application/gzip"}}
        for sent in ({"files": {"file": ("x", content)}}, raw):
            assert client.post("/api/v1/jobs", **sent).status_code == 201
    assert queued == [True, True]


@pytest.mark.requirement("privacy")
def test_a_fault_of_the_server_tells_nothing_of_the_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with answering(tmp_path) as (client, service):

        def broken(self: object) -> dict[str, int]:
            raise RuntimeError("Doe^Jane")

        monkeypatch.setattr(type(service.jobs), "counts", broken)
        answer = client.get("/api/v1/health")
        assert answer.status_code == 500 and answer.json()["code"] == "server-fault"
        assert "Doe" not in answer.text + caplog.text
        assert "RuntimeError at" in caplog.text and "test_serve_guard.py" in caplog.text


def test_rates_are_of_each_address_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("kidseg.serve.guard.time.monotonic", lambda: now[0])
    rate = Rate(60)
    assert [rate.wait_s("a") for _ in range(60)] == [0.0] * 60
    assert rate.wait_s("a") == pytest.approx(1.0) and rate.wait_s("b") == 0.0
    now[0] = 1.0
    assert rate.wait_s("a") == 0.0 and rate.wait_s("a") > 0
    for k in range(20_000):
        rate.wait_s(str(k))
    assert len(rate._buckets) <= 10_000
    tickets = Tickets(valid_s=10)
    tickets.give("x")
    assert tickets.holds("x") and not tickets.holds("y")
    now[0] = 12.0
    assert not tickets.holds("x")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_other_machines_require_a_token(tmp_path: Path, host: str) -> None:
    serving = Serving(model=tmp_path, folder=tmp_path, host=host)
    with pytest.raises(UsageError, match="token is required") as refused:
        check_serving(serving)
    assert refused.value.code == "token-required"
    check_serving(Serving(model=tmp_path, folder=tmp_path, host=host, tokens=TOKENS))
    assert not is_loopback(host)


def test_this_machine_alone_does_not(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_serving(Serving(model=tmp_path, folder=tmp_path, host=host))


def test_half_of_what_tls_needs_is_refused(tmp_path: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.write_text("")
    base = {"model": tmp_path, "folder": tmp_path}
    for more in ({"certificate": pem}, {"key": pem}):
        with pytest.raises(UsageError, match="both"):
            check_serving(Serving(**base, **more))
    with pytest.raises(InputError, match="no such file"):
        check_serving(Serving(**base, certificate=pem, key=tmp_path / "none"))


def test_tokens_are_read_from_a_file_of_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "tokens"

    def read(text: str, mode: int = 0o600) -> dict[str, str]:
        path.write_text(text)
        path.chmod(mode)
        return read_tokens(path)

    assert read(f"# us\n{'x' * 20}\n\nward {'y' * 20}\n") == {
        "x" * 20: "client-1",
        "y" * 20: "ward",
    }
    for text, code in (
        ("", "bad-token"),
        ("short\n", "bad-token"),
        (f"a b {'x' * 20}\n", "bad-token"),
        (f"{'x' * 20}\n{'x' * 20}\n", "bad-token"),
        (f"a {'x' * 20}\na {'y' * 20}\n", "bad-token"),
        (f"server {'x' * 20}\n", "bad-token"),
    ):
        with pytest.raises(InputError) as refused:
            read(text)
        assert refused.value.code == code and "x" * 20 not in str(refused.value)
    with pytest.raises(InputError, match="may read") as refused:
        read("x" * 20, 0o644)
    assert refused.value.code == "token-readable"
    with pytest.raises(InputError, match="cannot be read"):
        read_tokens(tmp_path / "none")


def test_one_server_for_a_folder(tmp_path: Path) -> None:
    with (
        locked_folder(tmp_path, "server"),
        pytest.raises(KidsegError, match="another server") as refused,
        locked_folder(tmp_path, "server"),
    ):
        pass
    assert refused.value.code == "folder-in-use"
    with locked_folder(tmp_path, "server"):  # the first has ended
        pass


@pytest.mark.parametrize(
    "name", [b"[", b"[::1", b"127.0.0.1]:80", b"\xe2\x84\x80", b"a b", b"\xff"]
)
def test_names_that_are_none_are_refused(tmp_path: Path, name: bytes) -> None:
    for tokens in ({}, TOKENS):
        with answering(tmp_path / str(len(tokens)), tokens=tokens) as (client, _):
            for headers in ({b"Host": name}, {b"Origin": b"http://" + name}):
                if tokens and b"Host" in headers:
                    continue  # a token is what counts
                answer = client.get("/api/v1/health", headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (403, "other-origin")


def test_bodies_that_are_no_uploads_are_small(tmp_path: Path) -> None:
    with answering(tmp_path) as (client, _):
        big = b"x" * 2_000_000

        async def unannounced() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield big[:50_000]

        form = {"Content-Type": "application/x-www-form-urlencoded"}
        parts = {"Content-Type": "multipart/form-data; boundary=x"}
        begin = b'--x\r\nContent-Disposition: form-data; name="info"\r\n\r\n'
        for method, path, more in (
            ("POST", "/train/kidseg", {"json": {"a": "x" * 2_000_000}}),
            ("POST", "/activelearning/first", {"content": unannounced()}),
            ("PUT", "/datastore/image/info?image=a", {"content": big, "headers": form}),
            ("PUT", "/datastore/image/info?image=a", {"content": begin + big, "headers": parts}),
            ("POST", "/auth/token", {"content": big}),
        ):
            answer = client.request(method, path, **more)  # type: ignore[arg-type]
            assert (answer.status_code, answer.json()["code"]) == (413, "too-large"), path


@pytest.mark.fault("client gone")
def test_a_body_that_stalls_is_given_up(tmp_path: Path) -> None:
    async def stalled() -> AsyncIterator[bytes]:
        yield b'{"a":'
        await asyncio.sleep(5)

    with answering(tmp_path, limits=Limits(stall_s=0.05)) as (client, _):
        answer = client.post(
            "/train/kidseg", content=stalled(), headers={"Content-Type": "application/json"}
        )
        assert (answer.status_code, answer.json()["code"]) == (408, "upload-stalled")


async def slow() -> AsyncIterator[bytes]:
    for _ in range(50):
        yield b"x"
        await asyncio.sleep(0.02)


def test_an_upload_that_goes_on_for_too_long_is_given_up(tmp_path: Path) -> None:
    with answering(tmp_path, limits=Limits(upload_s=0.1)) as (client, service):
        answer = client.post(
            "/api/v1/jobs", content=slow(), headers={"Content-Type": "application/octet-stream"}
        )
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (408, "upload-slow")
        assert problem["next_step"] and not any(service.door.folder.iterdir())


def test_an_upload_may_take_long_while_enough_of_it_comes(tmp_path: Path) -> None:
    with answering(tmp_path, limits=Limits(upload_s=0.5, upload_rate=20)) as (client, _):
        answer = client.post(
            "/api/v1/jobs", content=slow(), headers={"Content-Type": "application/octet-stream"}
        )
        assert answer.json()["code"] == "not-a-scan" and answer.elapsed.total_seconds() > 0.5


def test_a_body_that_is_no_text_is_a_bad_request(tmp_path: Path) -> None:
    with answering(tmp_path) as (client, _):
        answer = client.post(
            "/train/kidseg", content=b"\xff\xfe{", headers={"Content-Type": "application/json"}
        )
        assert (answer.status_code, answer.json()["code"]) == (400, "bad-request")
        assert answer.json()["next_step"]


def test_an_upload_that_cannot_begin_leaves_its_place_to_others(tmp_path: Path) -> None:
    limits = Limits(uploads=1)
    with answering(tmp_path, limits=limits) as (client, service):
        boundary = {"Content-Type": f"multipart/form-data; boundary={'x' * 300}"}
        answer = client.post("/api/v1/jobs", content=b"x", headers=boundary)
        assert (answer.status_code, answer.json()["code"]) == (422, "bad-form")
        service.door.folder.rmdir()
        service.door.folder.write_bytes(b"in the way")
        for _ in range(3):
            answer = client.post("/api/v1/jobs", files={"file": ("x", b"1")})
            assert (answer.status_code, answer.json()["code"]) == (500, "server-fault")
        assert service.door._busy == 0


def test_results_that_vanish_are_not_there(tmp_path: Path) -> None:
    """As when a job is removed or expires while its results are asked for."""
    with answering(tmp_path) as (client, service):
        id_ = add(service.jobs, LOCAL)
        job = service.jobs.claim()
        assert job is not None and service.jobs.end(job, "done", result=RESULT)
        shutil.rmtree(service.jobs.place(id_))
        base = f"/api/v1/jobs/{id_}"
        assert client.get(base).json()["result"]["files"] == []
        assert client.get(f"{base}/results").json() == []
        for path in ("results/scan_seg.nii.gz", "results/result.json", "measures"):
            assert client.get(f"{base}/{path}").status_code == 404
        codes = [client.request("DELETE", base).status_code for _ in range(2)]
        assert codes == [204, 404]
        with pytest.raises(RefusedError, match="no such file"):
            file_answer(service.jobs.results(job) / "scan_seg.nii.gz", "x")


def test_an_address_that_is_taken_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        serving = Serving(model=find_model(None), folder=tmp_path / "server", port=port)
        with pytest.raises(UsageError, match=str(port)) as refused:
            serve(serving, lambda _: pytest.fail("it began"))
    assert refused.value.code == "address-in-use" and not (tmp_path / "server").exists()


def test_a_model_of_several_channels_is_refused_at_the_start(tmp_path: Path) -> None:
    for name, plan in (("two", {"channels": [{}, {}]}), ("none", {})):
        path = tmp_path / f"{name}.safetensors"
        save_model(path, {"segment": {"weight": torch.zeros(1)}}, {"plan": plan})
        serving = Serving(model=path, folder=tmp_path / "server", port=0)
        with pytest.raises(ModelError, match=name) as refused:
            serve(serving, lambda _: pytest.fail("it began"))
        assert refused.value.code == ("several-channels" if plan else "damaged-model")
        assert refused.value.next_step and not (tmp_path / "server").exists()


@pytest.mark.parametrize(
    "said",
    [
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": "\\ud800"}',
        '{"\\ud800": 1}',
        '{"a":' * 2000 + "1" + "}" * 2000,
        '{"a": ' + "9" * 5000 + "}",
        "[]",
        "null",
    ],
)
def test_what_is_said_of_an_image_harms_nobody_else(tmp_path: Path, said: str) -> None:
    """It is sent to all clients, so that what cannot be sent is refused."""
    with answering(tmp_path) as (client, service):
        (service.door.folder / "x").write_bytes(b"x")
        service.images.add("😀", service.door.folder / "x", {})
        place = {"params": {"image": "😀"}}
        known = {"info": '{"a": "\\ud83d\\ude00", "checksum": "none"}'}
        assert (
            client.request("PUT", "/datastore/image/info", data=known, **place).status_code == 200
        )
        answer = client.request("PUT", "/datastore/image/info", data={"info": said}, **place)
        assert (answer.status_code, answer.json()["code"]) == (422, "bad-form")
        info = client.get("/datastore/image/info", **place).json()
        assert info["a"] == "😀" and info["checksum"].startswith("SHA256:")
        everything = client.get("/datastore/?output=all").json()
        assert list(everything["objects"]) == ["😀"]


def test_of_an_image_only_so_much_is_said(tmp_path: Path) -> None:
    """However often."""
    with answering(tmp_path) as (client, service):
        (service.door.folder / "x").write_bytes(b"x")
        service.images.add("one", service.door.folder / "x", {})
        answers = []
        for key in "abc":
            said = {"info": json.dumps({key: "x" * 60_000})}
            answers.append(client.request("PUT", "/datastore/image/info?image=one", data=said))
        assert [answer.status_code for answer in answers] == [200, 200, 413]
        assert answers[-1].json()["code"] == "too-large"
        assert set(service.images.get("one").info) == {"a", "b"}
