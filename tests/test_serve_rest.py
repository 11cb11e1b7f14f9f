"""Jobs over HTTP, with a real server and the real process that segments."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import sqlite3
import sys
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

import kidseg
from dicom_files import series as dicom_series
from kidseg.io import ReadOptions, read
from kidseg.io.atomic import disk_full
from kidseg.io.label_formats import FORMATS
from kidseg.measure.measuring import Request, measure
from kidseg.measure.person import Patient
from kidseg.report import templates
from kidseg.segment import segment
from kidseg.serve.answers import as_parameters
from kidseg.serve.audit_log import AuditLog
from kidseg.serve.job import Job
from kidseg.serve.job_measures import measured
from kidseg.serve.jobs import JobTable
from kidseg.serve.policy import Limits
from kidseg.serve.scan_process import STAGES, _Stages, uncertainty_of
from serving import Running, make_model, running, scan_of, until, zipped

API = "/api/v1/jobs"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve")
    make_model(root)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Running]:
    limits = Limits(upload_bytes=300_000, stall_s=0.3, uploads=2, gone_s=0.2)
    with running(root / "server", root / "run" / "model.safetensors", limits=limits) as found:
        until(lambda: found.client.get("/api/v1/health").json()["status"] == "ok")
        yield found


@pytest.mark.requirement("server")
def test_an_upload_gives_the_labels_that_segment_gives(server: Running, root: Path) -> None:
    scan = scan_of(root)
    made = server.upload(scan, formats="nii,seg.nrrd")
    job = server.ended(made["id"])
    assert (job["state"], job["progress"], job["ahead"], job["error"]) == ("done", 1, 0, None)
    assert job["result"]["labels"] == {"1": "kidney", "2": "tumour"}
    assert 0 <= job["result"]["uncertainty"] <= 1 and job["result"]["distance_sd"] >= 0
    files = {f["name"]: f for f in server.client.get(f"{API}/{job['id']}/results").json()}
    assert {f["format"] for f in files.values()} == {"nii", "seg.nrrd", "measures", "record"}
    got = server.client.get(files["scan_seg.nii.gz"]["href"])
    assert len(got.content) == files["scan_seg.nii.gz"]["size"]
    (entry,) = segment([scan], root / "run", root / "direct", device="cpu")
    assert got.content == (root / "direct" / entry["outputs"][0]).read_bytes()
    record = server.client.get(files["result.json"]["href"]).json()["scans"][0]
    assert record["path"] == "scan.nii.gz" and record["model"]["path"] == "model.safetensors"
    assert record["volumes_ml"] == job["result"]["volumes_ml"]
    place = server.service.jobs.place(job["id"])
    until(lambda: [path.name for path in place.iterdir()] == ["results-1"])  # its scan is not kept


def test_a_report_is_not_offered_without_its_viewer(
    server: Running, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which pip does not bring: the page would ask for it by default, and each job would fail."""
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    formats = server.client.get("/api/v1/health").json()["formats"]
    assert "html" not in formats and {"nii", "stl"} <= set(formats)
    with scan_of(root).open("rb") as file:
        answer = server.client.post(f"{API}?formats=nii,html", files={"file": file})
    assert answer.json()["code"] == "missing-viewer" and answer.is_client_error


@pytest.mark.requirement("server")
def test_progress_comes_as_events_and_ends_with_the_job(server: Running, root: Path) -> None:
    with server.held():
        made = server.upload(scan_of(root))
        behind = server.upload(scan_of(root, 1))
        seen: list[dict] = []
        with server.client.stream("GET", f"{API}/{behind['id']}/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    seen.append(json.loads(line[6:]))
                if len(seen) == 1:
                    os.kill(server.worker, signal.SIGCONT)
    assert seen[0]["state"] == "queued" and seen[0]["ahead"] == 1
    assert seen[-1]["state"] == "done" and seen[-1]["result"]["files"]
    progress = [view["progress"] for view in seen]
    assert progress == sorted(progress) and server.job(made["id"])["state"] == "done"


@pytest.mark.requirement("privacy")
def test_a_zip_of_dicom_gives_dicom_and_its_names_stay_inside(
    server: Running, tmp_path: Path
) -> None:
    def named(ds: Dataset, k: int) -> None:
        ds.PatientName, ds.PatientID = "Doe^Jane", "ID-4711"

    folder = dicom_series(tmp_path / "series", edit=named)
    files = {f"Doe_Jane/{path.name}": path.read_bytes() for path in folder.iterdir()}
    archive = tmp_path / "Doe_Jane.zip"
    archive.write_bytes(zipped(files))
    job = server.ended(server.upload(archive, formats="nii")["id"])
    assert job["state"] == "done", job["error"]
    assert {f["format"] for f in job["result"]["files"]} == {"nii", "measures", "record"}
    everything = server.log + json.dumps(job)
    names = [str(path) for path in server.service.serving.folder.rglob("*")]
    assert "Doe" not in everything + "".join(names) and "ID-4711" not in everything


@pytest.mark.slow
def test_every_format_is_a_result(server: Running, tmp_path: Path) -> None:
    """Of a DICOM series, whose objects bear the name of their patient for their client alone."""
    folder = dicom_series(tmp_path / "series")
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped({path.name: path.read_bytes() for path in folder.iterdir()}))
    formats = server.client.get("/api/v1/health").json()["formats"]
    job = server.ended(server.upload(archive, formats=",".join(formats), figures=True)["id"])
    assert job["state"] == "done", job["error"]
    kinds = {f["format"] for f in job["result"]["files"]}
    empty = {name for name in formats if FORMATS[name].may_be_missing}
    assert {*formats, "figure", "measures", "record"} - empty <= kinds
    for file in job["result"]["files"]:
        got = server.client.get(file["href"])
        assert len(got.content) == file["size"] > 0, file["name"]


@pytest.mark.row(25)
@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 415, "empty-file"),
        (b"hello", 415, "not-a-scan"),
        (b"<!doctype html>", 415, "not-a-scan"),
    ],
)
def test_what_is_no_scan_is_refused_at_once(
    server: Running, content: bytes, status: int, code: str
) -> None:
    answer = server.client.post(API, files={"file": ("../../x.nii.gz", content)})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert not any(server.service.door.folder.iterdir())


@pytest.mark.row(25)
def test_a_hostile_zip_fails_by_itself(server: Running, root: Path) -> None:
    sound = server.upload(scan_of(root))
    bad = server.client.post(
        API, content=zipped({"../../evil.txt": b"x"}), headers={"Content-Type": "application/zip"}
    )
    job = server.ended(bad.json()["id"])
    assert (job["state"], job["error"]["code"], job["result"]) == ("failed", "unsafe-name", None)
    assert job["error"]["next_step"] and server.ended(sound["id"])["state"] == "done"
    answer = server.client.get(f"{API}/{job['id']}/results")
    assert (answer.status_code, answer.json()["code"]) == (409, "not-done")
    until(lambda: not server.service.jobs.place(job["id"]).exists())


def test_results_are_reached_by_their_names_alone(server: Running, root: Path) -> None:
    job = server.ended(server.upload(scan_of(root))["id"])
    for name in ("..%2f..%2faudit.jsonl", "%2e%2e", "scan.nii.gz", "temporary", "x%00", "%2fetc"):
        answer = server.client.get(f"{API}/{job['id']}/results/{name}")
        assert answer.status_code == 404, name


@pytest.mark.requirement("server")
def test_bodies_that_are_too_large_end_early(server: Running) -> None:
    big = b"\0" * 400_000
    answer = server.client.post(API, files={"file": ("x", big)})
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")

    def unannounced() -> Iterator[bytes]:
        for _ in range(40):
            yield b"\0" * 10_000

    answer = server.client.post(
        API, content=unannounced(), headers={"Content-Type": "application/octet-stream"}
    )
    assert answer.status_code == 413 and not any(server.service.door.folder.iterdir())


@pytest.mark.fault("client gone")
def test_a_stalled_upload_is_given_up_and_a_broken_one_forgotten(server: Running) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    head = (
        f"POST {API} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 1000\r\n"
        "Content-Type: application/octet-stream\r\n\r\nabc"
    ).encode()
    with socket.create_connection(("127.0.0.1", port)) as stalled:
        stalled.sendall(head)
        until(lambda: any(server.service.door.folder.iterdir()))
        assert b"408 Request Timeout" in stalled.recv(100)
    assert not any(server.service.door.folder.iterdir())
    with socket.create_connection(("127.0.0.1", port)) as broken:
        broken.sendall(head)
        until(lambda: any(server.service.door.folder.iterdir()))
    until(lambda: not any(server.service.door.folder.iterdir()))
    with (
        socket.create_connection(("127.0.0.1", port)) as first,
        socket.create_connection(("127.0.0.1", port)) as second,
    ):
        first.sendall(head)
        second.sendall(head)
        until(lambda: server.service.door._busy == 2)
        answer = server.client.post(API, files={"file": ("x", b"1")})
        assert (answer.status_code, answer.json()["code"]) == (429, "too-many-uploads")
        assert answer.headers["Retry-After"]


@pytest.mark.parametrize(
    "body",
    [
        b"--x\r\n\r\nno disposition\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\ncut',
        b"no boundary at all",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
        + b"y" * 70_000
        + b"\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--x--\r\n',
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 20 + b"--x--\r\n",
        b"--x\r\n" + b"H: v\r\n" * 100 + b"\r\n1\r\n--x--\r\n",
    ],
)
def test_forms_that_are_none_are_refused(server: Running, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = server.client.post(API, content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad-form")
    plain = server.client.post(API, files={"other": ("x", b"1")})
    assert (plain.status_code, plain.json()["code"]) == (422, "no-scan")


@pytest.mark.requirement("server")
@pytest.mark.fault("worker killed")
def test_a_killed_process_costs_its_job_only(server: Running, root: Path) -> None:
    with server.held() as pid:
        lost = server.upload(scan_of(root))
        next_one = server.upload(scan_of(root, 1))
        until(lambda: server.job(lost["id"])["state"] == "running")
        os.kill(pid, signal.SIGKILL)
        failed = server.ended(lost["id"])
    assert (failed["state"], failed["error"]["code"]) == ("failed", "worker-killed")
    assert "memory" in failed["error"]["cause"]
    assert server.ended(next_one["id"])["state"] == "done"
    assert server.worker != pid
    until(lambda: not server.service.jobs.place(lost["id"]).exists())


@pytest.mark.slow
def test_cancelling_ends_the_process_of_a_running_job(server: Running, root: Path) -> None:
    with server.held() as pid:
        job, behind = server.upload(scan_of(root)), server.upload(scan_of(root, 1))
        until(lambda: server.job(job["id"])["state"] == "running")
        cancelled = server.client.post(f"{API}/{behind['id']}/cancel").json()
        assert cancelled["state"] == "cancelled"
        assert server.client.delete(f"{API}/{job['id']}").status_code == 204
        assert server.ended(job["id"])["state"] == "cancelled"
    assert server.worker != pid
    until(lambda: not server.service.jobs.place(job["id"]).exists())
    assert server.client.delete(f"{API}/{job['id']}").status_code == 204
    assert server.client.get(f"{API}/{job['id']}").status_code == 404
    assert {"job-cancel-asked", "job-cancelled", "job-removed"} <= set(server.events())


@pytest.mark.fault("client gone")
def test_a_job_ends_with_its_client_where_that_is_asked(server: Running, root: Path) -> None:
    with server.held():
        alone = server.upload(scan_of(root))
        left = server.upload(scan_of(root), stay=True)
        followed = server.upload(scan_of(root), stay=True)
        with server.client.stream("GET", f"{API}/{followed['id']}/events") as answer:
            assert next(answer.iter_lines())
            assert server.ended(left["id"])["state"] == "cancelled"
            until(lambda: not server.service.jobs.place(left["id"]).exists())
            assert server.job(followed["id"])["state"] == "queued"
        assert server.ended(followed["id"])["state"] == "cancelled"
        assert server.job(alone["id"])["state"] == "running"
    assert server.ended(alone["id"])["state"] == "done"


def test_your_jobs_are_listed_in_parts(server: Running, root: Path) -> None:
    for number in range(3):
        server.ended(server.upload(scan_of(root, number))["id"])
    first = server.client.get(API, params={"limit": 2}).json()
    rest = server.client.get(API, params={"after": first["next"], "limit": 500}).json()
    whole = server.client.get(API, params={"limit": 500}).json()
    assert first["jobs"] + rest["jobs"] == whole["jobs"] and len(first["jobs"]) == 2
    assert rest["next"] is None


def test_the_document_describes_every_route_with_its_answers(server: Running) -> None:
    document = server.client.get("/api/v1/openapi.json").json()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            problem = operation["responses"]["default"]["content"]
            assert "application/problem+json" in problem, (path, method)
            ok = next(
                answer for status, answer in operation["responses"].items() if status[0] == "2"
            )
            assert "content" in ok or method in ("head", "delete"), (path, method)
            assert all(content["schema"] for content in ok.get("content", {}).values()), path
    assert "multipart/form-data" in str(document["paths"][API]["post"]["requestBody"])


@pytest.mark.requirement("server")
@pytest.mark.slow
def test_a_stopped_server_goes_on_where_it_was(root: Path, tmp_path: Path) -> None:
    """Also with jobs of a server that was killed, and a job that took too long."""
    model = root / "run" / "model.safetensors"
    with running(tmp_path, model) as server, server.held():
        running_one, waiting = server.upload(scan_of(root)), server.upload(scan_of(root, 1))
        until(lambda: server.job(running_one["id"])["state"] == "running")
    table = sqlite3.connect(tmp_path / "jobs.sqlite")
    states = table.execute("SELECT state, attempt FROM jobs ORDER BY number").fetchall()
    assert states == [("queued", 0), ("queued", 0)]
    # As kill -9 leaves it: running, with half of the results.
    table.execute("UPDATE jobs SET state = 'running', attempt = 1 WHERE id = ?", (waiting["id"],))
    table.commit()
    table.close()
    half = tmp_path / "jobs" / waiting["id"] / "results-1"
    half.mkdir()
    (half / "scan_seg.nii.gz").write_bytes(b"half")
    (tmp_path / "incoming" / "upload").mkdir()
    with running(tmp_path, model) as server:
        for job in (running_one, waiting):
            assert server.ended(job["id"])["state"] == "done"
        got = server.client.get(f"{API}/{waiting['id']}/results/scan_seg.nii.gz").content
        place = server.service.jobs.place(waiting["id"])
        until(lambda: [p.name for p in place.iterdir()] == ["results-2"])
        (place / "check.nii.gz").write_bytes(got)
        read(place / "check.nii.gz", ReadOptions(values="labels"))
        assert "job-recovered" in server.events()
        assert not any(server.service.door.folder.iterdir())


@pytest.mark.slow
def test_a_job_that_takes_too_long_fails(root: Path, tmp_path: Path) -> None:
    limits = Limits(job_s=0.3)
    model = root / "run" / "model.safetensors"
    with running(tmp_path, model, limits=limits) as server, server.held():
        job = server.ended(server.upload(scan_of(root))["id"])
    assert (job["state"], job["error"]["code"]) == ("failed", "job-timeout")


@pytest.mark.slow
def test_a_damaged_model_is_told_and_loses_no_job(root: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    whole = (root / "run" / "model.safetensors").read_bytes()
    model.write_bytes(whole[:-100])
    with running(tmp_path / "server", model) as server:
        job = server.upload(scan_of(root))
        until(lambda: server.client.get("/api/v1/health").json()["status"] == "unusable")
        assert server.job(job["id"])["state"] == "queued"


def test_a_body_of_any_kind_is_answered(server: Running) -> None:
    for kind in ("text/plain", "application/json", "multipart/form-data", ""):
        answer = server.client.post(API, content=b"x", headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported-type")


def test_a_job_has_the_measures_of_the_command(server: Running, root: Path, tmp_path: Path) -> None:
    """The same JSON, but for places and the name of the machine; what is known of the patient."""
    person = {"height_cm": 92.0, "weight_kg": 13.5, "age_years": 3.0, "sex": "female"}
    job = server.ended(server.upload(scan_of(root), formats="stl", **person)["id"])
    assert job["state"] == "done" and job["formats"] == ["nii", "stl"]
    answer = server.client.get(f"{API}/{job['id']}/measures")
    assert answer.headers["content-type"] == "application/json"
    got = answer.json()
    name = next(f["name"] for f in job["result"]["files"] if f["format"] == "measures")
    assert server.client.get(f"{API}/{job['id']}/results/{name}").json() == got
    assert got["person"] == person
    segment([scan_of(root)], root / "run", tmp_path, device="cpu")
    request = Request(ct=scan_of(root), person=Patient(**person))  # type: ignore[arg-type]
    known = measure(tmp_path / "ellipse_000_seg.nii.gz", request).as_dict()
    same = ("format", "structures", "sides", "patient", "criteria", "person", "midline", "versions")
    assert {key: got[key] for key in same} == json.loads(json.dumps({k: known[k] for k in same}))
    assert [w["code"] for w in got["warnings"]] == [w["code"] for w in known["warnings"]]
    assert known.keys() == got.keys() and got["files"]["ct"][0]["path"] == "scan.nii.gz"


@pytest.mark.requirement("privacy")
def test_results_tell_nothing_of_the_machine(server: Running, root: Path) -> None:
    job = server.ended(server.upload(scan_of(root))["id"])
    assert len(job["result"]["files"]) == 3
    for file in job["result"]["files"]:
        text = server.client.get(file["href"]).content
        for place in (root, Path(sys.prefix), Path(kidseg.__file__).parent):
            assert str(place).encode() not in text, file["name"]
        assert f'"{socket.gethostname()}"'.encode() not in text, file["name"]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"height_cm": 1.8}, 400, "implausible-patient"),
        ({"height_cm": "nan"}, 400, "implausible-patient"),
        ({"weight_kg": "inf"}, 400, "implausible-patient"),
        ({"height_cm": 100, "weight_kg": 200}, 400, "implausible-patient"),
        ({"age_years": "three"}, 422, "invalid-request"),
        ({"sex": "x"}, 422, "invalid-request"),
    ],
)
def test_what_no_patient_is_is_refused_before_the_upload(
    server: Running, query: dict[str, Any], status: int, code: str
) -> None:
    answer = server.client.post(API, params=query, files={"file": ("x", b"not a scan")})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_labels_that_cannot_be_measured_are_still_a_result(tmp_path: Path) -> None:
    (tmp_path / "scan_seg.nii.gz").write_bytes(b"damaged")
    entry = {"outputs": ["scan_seg.nii.gz", "scan_steps.png"], "warnings": []}
    found = measured(tmp_path, entry, Request())
    assert [w["code"] for w in found["warnings"]] == ["not-measured"] and "outputs" not in found
    assert [path.name for path in tmp_path.iterdir()] == ["scan_seg.nii.gz"]


def test_stages_are_sent_as_they_begin_and_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now, sent = [0.0], list[tuple[str, float]]()
    monkeypatch.setattr("kidseg.serve.scan_process.time.monotonic", lambda: now[0])
    stages = _Stages(lambda kind, word: sent.append(word))
    stages("read")
    for k in range(101):
        now[0] += 0.1
        stages("segment", k / 100)
    for k in range(11):
        stages("decide", k / 10)
    stages("measure")
    names = [name for name, _ in sent]
    assert list(dict.fromkeys(names)) == list(STAGES)
    assert 15 < names.count("segment") < 25 and names.count("decide") == 1
    progress = [done for _, done in sent]
    assert progress == sorted(progress) and progress[0] == 0 and progress[-1] < 1


def test_progress_within_a_scan_is_seen(server: Running, root: Path) -> None:
    """As the process says it, in the middle of a stage."""
    table = server.service.jobs
    with server.held():
        job = server.upload(scan_of(root))
        until(lambda: server.job(job["id"])["state"] == "running")
        table.advance(table.get(job["id"]), "segment", 0.4242)
        seen = server.job(job["id"])
        assert (seen["stage"], seen["progress"]) == ("segment", 0.4242)
    assert server.ended(job["id"])["state"] == "done"


@pytest.mark.parametrize(
    ("doubt", "volume", "expected"),
    [(0, 100, 0), (50, 100, 0.2), (50, 0, 1), (0, 0, 1), (1e9, 1, pytest.approx(1))],
)
def test_labels_in_doubt_are_uncertain(doubt: float, volume: float, expected: float) -> None:
    """By hand: 50 ml of doubt about 100 ml, 50 / (200 + 50)."""
    structures = {"kidney": {"doubtful_ml": doubt / 2, "volume_ml": volume / 2}}
    structures["tumour"] = structures["kidney"]
    assert uncertainty_of({"structures": structures}) == expected


def test_what_goes_wrong_beside_a_job_is_not_its_fault(
    server: Running, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as cleaning up: the job is done, and the next answer is for the next job."""
    dispatcher, pid = server.service.dispatcher, server.worker

    def broken(*_: object, **__: object) -> None:
        dispatcher._cleaned = 0.0
        raise FileNotFoundError("it was removed meanwhile")

    monkeypatch.setattr(dispatcher, "housekeeping", broken)
    dispatcher._cleaned = 0.0
    jobs = [server.upload(scan_of(root, number)) for number in (0, 1)]
    done = [server.ended(job["id"]) for job in jobs]
    assert [job["state"] for job in done] == ["done", "done"] and server.worker == pid
    assert done[0]["result"]["volumes_ml"] != done[1]["result"]["volumes_ml"]


@pytest.mark.fault("disk full")
@pytest.mark.parametrize("sound", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_job_whose_end_cannot_be_written_is_done_again(
    server: Running, root: Path, monkeypatch: pytest.MonkeyPatch, sound: bool
) -> None:
    """Its scan is there until its end is in the table."""
    end, refused = JobTable.end, list[str]()

    def full_once(self: JobTable, job: Job, *given: Any, **more: Any) -> bool:
        if not refused:
            refused.append(job.id)
            raise disk_full(self.folder)
        return end(self, job, *given, **more)

    monkeypatch.setattr(JobTable, "end", full_once)
    monkeypatch.setattr("kidseg.serve.dispatcher._RESTART_S", 0.1)
    if sound:
        sent = server.upload(scan_of(root))
    else:
        headers = {"Content-Type": "application/zip"}
        content = zipped({"../evil.txt": b"x"})
        sent = server.client.post(API, content=content, headers=headers).json()
    job = server.ended(sent["id"])
    assert refused == [sent["id"]]
    assert job["state"] == ("done" if sound else "failed"), job["error"]
    assert sound or job["error"]["code"] == "unsafe-name"


@pytest.mark.slow
@pytest.mark.fault("disk full")
def test_a_log_that_cannot_be_written_costs_no_result(
    server: Running, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = AuditLog.write

    def full(self: AuditLog, event: str, **facts: Any) -> None:
        if event == "job-done":
            raise OSError("no room")
        write(self, event, **facts)

    monkeypatch.setattr(AuditLog, "write", full)
    monkeypatch.setattr("kidseg.serve.dispatcher._RESTART_S", 0.1)
    job = server.ended(server.upload(scan_of(root))["id"])
    monkeypatch.undo()
    assert job["state"] == "done" and len(job["result"]["files"]) == 3
    assert server.ended(server.upload(scan_of(root))["id"])["state"] == "done"


@pytest.mark.row(25)
def test_zips_that_are_not_one_series_fail_by_themselves(server: Running, tmp_path: Path) -> None:
    one, two = dicom_series(tmp_path / "one"), dicom_series(tmp_path / "two")
    images = {f"{path.parent.name}/{path.name}": path.read_bytes() for path in one.iterdir()}
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    locked = bytearray(zipped(images))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # as if encrypted
        for found in re.finditer(re.escape(signature), bytes(locked)):
            locked[found.start() + flags] |= 1
    others = {f"two/{path.name}": path.read_bytes() for path in two.iterdir()}
    third = enumerate(dicom_series(tmp_path / "three", uid="1.2.4").iterdir())
    bad = {
        "absolute": zipped({"/etc/passwd": b"x"}),
        "drive": zipped({"C:\\x": b"x"}),
        "link": zip_of([(link, b"/etc/passwd")]),
        "twice": zip_of([("a", b"x"), ("a", b"y")]),
        "locked": bytes(locked),
        "bomb": zipped({"a": b"\0" * 50_000_000}),
        "empty": zipped({}),
        "no image": zipped({"a.txt": b"hello"}),
        "cut off": zipped(images)[:-30],
        "two studies": zipped({**images, **others}),
        "two series": zipped({**images, **{f"3/{k}": path.read_bytes() for k, path in third}}),
    }
    headers = {"Content-Type": "application/zip"}
    ids = {}
    for name, content in bad.items():
        answer = server.client.post(API, content=content, headers=headers)
        if answer.status_code == 415:
            assert answer.json()["code"] and answer.json()["next_step"], name
            continue
        assert answer.status_code == 201, (name, answer.text)
        ids[name] = answer.json()["id"]
    for name, id_ in ids.items():
        job = server.ended(id_)
        assert job["state"] == "failed" and job["error"]["next_step"], (name, job)
        assert job["error"]["code"] not in ("scan-failed", "worker-killed"), (name, job["error"])
        until(lambda i=id_: not server.service.jobs.place(i).exists())
        assert "--" not in job["error"]["next_step"], "it has no command line"
        assert name != "two series" or "series=" in job["error"]["next_step"]


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("for example --series 3.2.", "for example series=3.2."),
        ("Read it with --series 1.2.3 --repair.", "Read it with series=1.2.3 repair=true."),
        ("Use --trust sform or --trust qform.", "Use trust=sform or trust=qform."),
        ("Use --trust to choose the other.", "Use trust to choose the other."),
        ("Use 1--2.", "Use 1--2."),
    ],
)
def test_a_next_step_names_parameters_instead_of_options(said: str, asked: str) -> None:
    assert as_parameters(said) == asked


def zip_of(entries: Sequence[tuple[str | zipfile.ZipInfo, bytes]]) -> bytes:
    data = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(data, "w") as archive:
        warnings.simplefilter("ignore")  # a name that comes twice
        for name, content in entries:
            archive.writestr(name, content)
    return data.getvalue()
