"""The back ends of the extension of 3D Slicer: programs, servers, containers; without a scene."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from KidSegLib.child_process import run_child
from KidSegLib.command import find_program
from KidSegLib.container import Container, check_image
from KidSegLib.job import Job
from KidSegLib.local_command import LocalCommand
from KidSegLib.measures import answers_of, measures_of, shown
from KidSegLib.problems import CancelledError, KidSegError, error_from, note_from
from KidSegLib.remarks import remarks_of
from KidSegLib.server import Server
from KidSegLib.watch import Watch

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.fixture
def job(tmp_path: Path) -> Job:
    job = Job(tmp_path / "job", "Müller^Anna", ("stl",))
    job.inside.mkdir(parents=True)
    job.outside.mkdir()
    job.scan.write_bytes(b"not a scan")
    return job


def refused(act: Any, *arguments: Any) -> KidSegError:
    with pytest.raises(KidSegError) as error:
        act(*arguments)
    return error.value


# ---- programs


def child(code: str, watch: Watch) -> Any:
    return run_child([sys.executable, "-c", code], watch, os.environ)


def test_output_log_and_exit_code_of_a_program() -> None:
    watch = Watch()
    ended = child("import sys; print('äö'); print('a\\n\\nb', file=sys.stderr); sys.exit(3)", watch)
    assert (ended.code, ended.output, ended.log) == (3, "äö\n", "a\nb")
    assert watch.messages() == ["a", "b"]


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
@pytest.mark.parametrize("deaf", [False, True])
def test_cancelling_ends_a_program_and_its_children(
    deaf: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a child that does not hear, of a program that would not end by itself."""
    monkeypatch.setattr("KidSegLib.child_process._GRACE_S", 0.2)
    code = "import signal, subprocess, sys, time\n"
    code += "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    code += "p = subprocess.Popen(['sleep', '60'])\nprint(p.pid, file=sys.stderr, flush=True)\n"
    code += "time.sleep(60)"
    watch, said, begin = Watch(), list[str](), time.monotonic()

    def cancel() -> None:
        while not said and time.monotonic() - begin < 20:
            said.extend(watch.messages())
            time.sleep(0.01)
        watch.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(CancelledError):
        child(code, watch)
    thread.join()
    assert time.monotonic() - begin < 10
    listed = subprocess.run(["ps", "-o", "stat=", said[0]], capture_output=True, text=True)
    assert listed.stdout.strip()[:1] in ("", "Z"), "gone, or waiting to be"


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_what_a_script_started_may_remove_its_files(tmp_path: Path) -> None:
    """The script hears the signal, too, and ends at once."""
    (left := tmp_path / "left").write_text("")
    code = "import pathlib, signal, sys, time\n"
    code += "def end(*_):\n    time.sleep(0.3)\n"
    code += f"    pathlib.Path({str(left)!r}).unlink()\n    sys.exit()\n"
    code += "signal.signal(signal.SIGTERM, end)\nprint('ready', file=sys.stderr, flush=True)\n"
    code += "time.sleep(60)"
    watch = Watch()

    def cancel() -> None:
        while "ready" not in watch.messages():
            time.sleep(0.01)
        watch.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    begin = time.monotonic()
    script = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}\n:"
    with pytest.raises(CancelledError):
        run_child(["/bin/sh", "-c", script], watch, os.environ)
    thread.join()
    assert not left.exists() and time.monotonic() - begin < 9, "without waiting for the whole grace"


def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    (path := tmp_path / "kidseg").write_text("#!/bin/sh\n")
    error = refused(run_child, [str(path)], Watch(), os.environ)
    assert error.code == "not-started" and "Where kidseg runs" in error.next_step


def test_programs_are_found_by_path_environment_or_name(tmp_path: Path) -> None:
    (program := tmp_path / "bin" / "kidseg").parent.mkdir()
    program.write_text("")
    for given_ in (str(program), str(tmp_path)):
        assert find_program(given_, ["kidseg"], lambda _: None) == program
    assert find_program("", ["a", "b"], {"b": "/x/b"}.get) == Path("/x/b")
    assert refused(find_program, "", ["a", "b"], lambda _: None).code == "no-program"
    assert "'nowhere'" in refused(find_program, "nowhere", ["a"], lambda _: None).cause


def test_kidseg_of_slicer_is_the_last_resort(job: Job, tmp_path: Path) -> None:
    nothing = {"PATH": str(tmp_path)}
    within = ([sys.executable, "-m", "kidseg"], dict(os.environ))
    LocalCommand(nothing, within_slicer=within).check(job)
    error = refused(LocalCommand(nothing).check, job)
    assert error.code == "no-program" and "Install kidseg" in error.next_step
    error = refused(LocalCommand(nothing, "nowhere", within).check, job)
    assert error.code == "no-program", "a path that was given is not replaced"


def test_a_refusal_of_kidseg_is_shown_in_its_own_words(job: Job, tmp_path: Path) -> None:
    program = tmp_path / "kidseg"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m kidseg "$@"\n')
    program.chmod(0o755)
    watch = Watch()
    error = refused(LocalCommand(os.environ, str(program)).segment, job, watch)
    assert error.code == "not-a-scan"
    assert "/job/" not in "".join(watch.messages())
    assert error.cause == "Müller^Anna: it is not a scan in a supported format"
    assert error.next_step.startswith("A scan is a NIfTI")
    assert "/job/" not in str(error)


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("echo Segmentation fault >&2; exit 139", "command-failed", "139: Segmentation fault"),
        ("kill -9 $$", "killed", "lack of memory"),
        ("echo no JSON", "command-failed", "without a message"),
        ("echo '{}'", "no-result", "no result"),
        ("""echo '{"results": [{"outputs": ["scan.seg.nrrd"]}]}'""", "no-result", "write"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_programs_that_fail_otherwise(
    script: str, code: str, words: str, job: Job, tmp_path: Path
) -> None:
    program = tmp_path / "kidseg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    error = refused(LocalCommand(os.environ, str(program)).segment, job, Watch())
    assert error.code == code and words in f"{error}"


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_what_segmenting_and_measuring_both_say_is_said_once(job: Job, tmp_path: Path) -> None:
    said = [{"path": "", "cause": f"{word} is cut", "next_step": "Look."} for word in "ab"]
    (folder := job.outside / "result").mkdir()
    (folder / "scan.seg.nrrd").write_bytes(b"NRRD")
    segmented = {"results": [{"outputs": ["scan.seg.nrrd"], "warnings": said[:1]}]}
    answers = [shlex.quote(json.dumps(each)) for each in (segmented, {"warnings": said})]
    program = tmp_path / "kidseg"
    program.write_text(
        f"#!/bin/sh\nif [ $1 = segment ]; then echo {answers[0]}; else echo {answers[1]}; fi\n"
    )
    program.chmod(0o755)
    found = LocalCommand(os.environ, str(program)).segment(job, Watch())
    assert found.notes == ["A is cut. Look.", "B is cut. Look."]


def test_a_model_must_exist(job: Job, tmp_path: Path) -> None:
    program = Path(sys.executable)
    for back_end in (
        LocalCommand(os.environ, str(program)),
        Container(os.environ, DIGEST, str(program)),
    ):
        error = refused(back_end.check, replace(job, model=tmp_path / "m.safetensors"))
        assert error.code == "no-model"


# ---- containers


@pytest.mark.parametrize("image", [f"kidseg@{DIGEST}", f"localhost:5000/a/b:1.2@{DIGEST}", DIGEST])
def test_images_are_named_by_their_digest(image: str) -> None:
    check_image(image)


@given(st.text(max_size=40) | st.from_regex(r"[a-z./:@-]{0,20}(sha256:)?[0-9a-f]{60,66}\n?"))
def test_images_without_a_digest_are_refused(image: str) -> None:
    digest = image.rpartition("sha256:")[2]
    name = image[: -len(digest) - len("sha256:")]
    sound = len(digest) == 64 and set(digest) <= set("0123456789abcdef") and "sha256:" in image
    if sound and (not name or (name[:-1] and name[0].isalnum() and name.endswith("@"))):
        return
    assert refused(check_image, image).code == "no-digest"


@pytest.mark.parametrize("image", ["", "kidseg", "kidseg:latest", f"-v@{DIGEST}", f"{DIGEST} -v"])
def test_tags_and_options_are_no_images(image: str, job: Job) -> None:
    assert refused(Container(os.environ, image, sys.executable).check, job).code == "no-digest"


@pytest.mark.requirement("slicer")
def test_the_container_has_no_network_and_sees_only_the_job(job: Job) -> None:
    container = Container(os.environ, f"kidseg@{DIGEST}", "/usr/bin/podman")
    argv = container.argv(job, "/usr/bin/podman", "name", ["segment", "/in/scan.nrrd"])
    assert argv[-3:] == [f"kidseg@{DIGEST}", "segment", "/in/scan.nrrd"]
    options = argv[: -len(argv) + argv.index(f"kidseg@{DIGEST}")]
    assert {"--network=none", "--read-only", "--pull=never", "--cap-drop=ALL"} <= set(options)
    volumes = [option for option in options if option.startswith("--volume=")]
    assert volumes == [f"--volume={job.inside}:/in:ro,Z", f"--volume={job.outside}:/out:Z"]
    assert job.name not in " ".join(argv)


@pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed")
def test_an_image_that_is_not_here_is_not_downloaded(job: Job) -> None:
    error = refused(Container(os.environ, f"localhost/no@{DIGEST}", "podman").segment, job, Watch())
    if error.code == "no-container":
        pytest.skip("podman runs no container here")
    assert error.code == "no-image" and "podman load" in error.next_step


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_a_container_that_does_not_start(job: Job, tmp_path: Path) -> None:
    engine = tmp_path / "podman"
    engine.write_text("#!/bin/sh\necho no daemon >&2\nexit 125\n")
    engine.chmod(0o755)
    error = refused(Container(os.environ, DIGEST, str(engine)).segment, job, Watch())
    assert error.code == "no-container" and "no daemon" in error.cause


# ---- servers


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("KidSegLib.server._TICK_S", 0.01)


class Hostile(BaseHTTPRequestHandler):
    """A server that is not to be trusted: it answers by its table."""

    answers: ClassVar[dict[str, tuple[int, dict[str, str], bytes]]] = {}
    seen: ClassVar[list[tuple[str, str, str | None]]] = []
    takes: ClassVar[int] = 2**30

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        self.seen.append((self.command, path, self.headers["Authorization"]))
        self.rfile.read(min(self.takes, int(self.headers.get("Content-Length", 0))))
        status, headers, body = self.answers.get(path, (404, {}, b""))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError):  # what is refused is not read to its end
            self.wfile.write(body)

    do_GET = do_POST = do_DELETE = answer

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server_with(**answers: Any) -> Iterator[str]:
    """The address of a server; an answer is a JSON object, or (status, headers, body)."""
    Hostile.seen.clear()
    Hostile.answers.clear()
    for name, answer in answers.items():
        if not isinstance(answer, tuple):
            answer = (200, {}, json.dumps(answer).encode())
        Hostile.answers["/api/v1/" + name.replace("__", "/").replace("_id", f"/{ID}")] = answer
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hostile)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


ID = "12345678-1234-5678-1234-567812345678"


def test_a_token_is_asked_for_where_it_is_entered(job: Job) -> None:
    told = {"code": "token-required", "detail": "a token", "next_step": "Send the header X."}
    with server_with(health=(401, {}, json.dumps(told).encode())) as address:
        error = refused(Server(address).segment, job, Watch())
    assert error.code == "token-required" and error.next_step.endswith("'Where kidseg runs'.")


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("", "bad-address"),
        ("kidseg:8000", "bad-address"),
        ("file:///etc/passwd", "bad-address"),
        ("ftp://host/", "bad-address"),
        ("http://kidseg.example:8000", "not-encrypted"),
        ("http://localhost.example", "not-encrypted"),
        ("http://10.0.0.1", "not-encrypted"),
    ],
)
def test_addresses_that_are_refused(address: str, code: str, job: Job) -> None:
    assert refused(Server(address).segment, job, Watch()).code == code


@pytest.mark.parametrize(
    "server",
    [
        Server("http://localhost:8000"),
        Server("http://127.0.0.1:8000/"),
        Server("http://[::1]:8000"),
        Server("https://kidseg.example"),
        Server("http://kidseg.example", unencrypted=True),
    ],
)
def test_addresses_that_are_accepted(server: Server, job: Job) -> None:
    server.check(job)
    error = refused(server.check, replace(job, model=Path("m")))
    assert error.code == "model-of-server"


def test_the_token_is_not_shown() -> None:
    assert "secret" not in repr(Server("https://a", "secret"))


def test_a_server_that_is_not_there(job: Job) -> None:
    error = refused(Server("http://127.0.0.1:9").segment, job, Watch())
    assert error.code == "no-connection" and "127.0.0.1:9" in error.cause


def test_a_refusal_of_the_server_is_shown_in_its_own_words(job: Job) -> None:
    problem = {"code": "too-large", "detail": "the upload is too large", "next_step": "Crop it."}
    answer = (413, {"Content-Type": "application/problem+json"}, json.dumps(problem).encode())
    with server_with(health={"status": "ok"}, jobs=answer) as address:
        error = refused(Server(address, "token").segment, job, Watch())
    assert (error.code, str(error)) == ("too-large", "The upload is too large. Crop it.")
    assert Hostile.seen[-1] == ("POST", "/api/v1/jobs", "Bearer token")


def test_a_refusal_is_heard_although_the_server_did_not_take_the_whole_scan(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers and ends the connection, as kidseg serve does after 30 s."""
    monkeypatch.setattr(Hostile, "takes", 2**16)
    job.scan.write_bytes(bytes(2**26))
    problem = {"code": "too-many-jobs", "detail": "too many jobs", "next_step": "Try later."}
    answer = (429, {"Content-Type": "application/problem+json"}, json.dumps(problem).encode())
    with server_with(health={"status": "ok"}, jobs=answer) as address:
        assert refused(Server(address).segment, job, Watch()).code == "too-many-jobs"


def test_neither_scan_nor_token_follow_a_redirection(job: Job) -> None:
    with server_with(health=(302, {"Location": "/api/v1/elsewhere"}, b""), elsewhere={}) as address:
        assert refused(Server(address, "token").segment, job, Watch()).code == "http-302"
    assert [path for _, path, _ in Hostile.seen] == ["/api/v1/health"]


DONE: dict[str, Any] = {"state": "done", "progress": 1.0}


def files(**facts: Any) -> dict[str, Any]:
    return {**DONE, "result": {"files": [{"format": "seg.nrrd", "size": 4, **facts}]}}


@pytest.mark.parametrize(
    ("created", "view", "code"),
    [
        ({"id": "../../etc"}, DONE, "unexpected-answer"),
        ({}, DONE, "unexpected-answer"),
        ({"id": ID}, DONE, "unexpected-answer"),
        ({"id": ID}, files(name="../scan.seg.nrrd"), "unexpected-answer"),
        ({"id": ID}, files(name="..\\scan.seg.nrrd"), "unexpected-answer"),
        ({"id": ID}, files(name=".bashrc"), "unexpected-answer"),
        ({"id": ID}, files(name="scan.seg.nrrd", size=3), "unexpected-answer"),
        ({"id": ID}, files(name="scan.seg.nrrd", size=5), "unexpected-answer"),
        ({"id": ID}, files(name="scan.seg.nrrd"), "unexpected-answer"),
        ({"id": ID}, {"state": "cancelled"}, "gone"),
        ({"id": ID}, {"state": "failed", "error": {"code": "x", "cause": "y"}}, "x"),
        ({"id": ID}, (200, {}, b"<html>"), "unexpected-answer"),
        ({"id": ID}, (200, {}, b"[]"), "unexpected-answer"),
    ],
)
def test_answers_of_a_server_are_not_trusted(
    created: dict[str, Any], view: Any, code: str, job: Job
) -> None:
    file = (200, {}, b"NRRD")
    routes: dict[str, Any] = {"jobs_id__results__scan.seg.nrrd": file}
    routes["jobs_id__results__result.json"] = {"scans": [{}, {}]}
    with server_with(health={"status": "ok"}, jobs=created, jobs_id=view, **routes) as address:
        error = refused(Server(address).segment, job, Watch())
    assert error.code == code
    outside = {p for p in job.folder.parent.rglob("*") if p.is_file()} - {job.scan}
    assert {path.parent for path in outside} <= {job.outside}


def test_cancelling_cancels_the_job_of_the_server(job: Job) -> None:
    running = {"state": "running", "stage": "segment", "progress": 0.5}
    watch = Watch()
    with server_with(health={"status": "ok"}, jobs={"id": ID}, jobs_id=running) as address:
        thread = threading.Thread(target=lambda: refused(Server(address).segment, job, watch))
        thread.start()
        said: list[str] = []
        while "Server: segment ..." not in said:
            said += watch.messages()
            time.sleep(0.01)
        watch.cancel()
        thread.join(10)
    assert not thread.is_alive()
    assert Hostile.seen[-1][:2] == ("DELETE", f"/api/v1/jobs/{ID}")
    assert "Uploading: 100 %" in said


MEASURES = {"patient": [{"name": "kidney volume", "value": 3.0, "unit": "mL"}], "criteria": {}}


@pytest.mark.parametrize(
    ("measures", "code"),
    [
        (MEASURES, ""),
        ({"patient": 5}, "unexpected-answer"),
        ({"sides": [1]}, "unexpected-answer"),
        ({"structures": ["x"]}, "unexpected-answer"),
        ({"criteria": {"answers": [None]}}, "unexpected-answer"),
        ((200, {}, b"[]"), "unexpected-answer"),
        ((404, {}, b""), "http-404"),
    ],
)
def test_the_measures_of_a_server_are_those_of_the_table(
    measures: Any, code: str, job: Job
) -> None:
    view = files(name="scan.seg.nrrd")
    view["result"]["files"].append({"format": "measures", "name": "scan_measurements.json"})
    routes: dict[str, Any] = {"jobs_id__results__scan.seg.nrrd": (200, {}, b"NRRD")}
    routes |= {"jobs_id__results__result.json": {"scans": [{}]}, "jobs_id__measures": measures}
    watch = Watch()
    with server_with(health={"status": "ok"}, jobs={"id": ID}, jobs_id=view, **routes) as address:
        server = Server(address)
        if code:
            assert refused(server.segment, job, watch).code == code
            return
        found = server.segment(job, watch)
    assert found.measures == MEASURES and watch.done == 1
    assert [path.name for path in job.outside.iterdir()] == ["scan.seg.nrrd"]


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_the_progress_of_the_command_is_told(job: Job, tmp_path: Path) -> None:
    program = tmp_path / "kidseg"
    lines = ["segment: 0 %", "segment: 50 %", "nonsense: 99 %", "decide: 50 %", "segment: 5 %"]
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' {shlex.join(lines)} >&2\necho \"$@\" >&2\n")
    program.chmod(0o755)
    watch = Watch()
    refused(LocalCommand(os.environ, str(program)).segment, job, watch)
    assert watch.done == pytest.approx(0.85)
    said = watch.messages()
    assert said[1:-1] == ["nonsense: 99 %"] and "--progress" in said[-1], "the bar has the rest"


@pytest.fixture
def drawing(job: Job) -> Job:
    """A job with drawn slices."""
    job.drawn_slices.write_bytes(b"not labels")
    return replace(job, drawn="My drawing", cpu=True)


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_drawn_slices_are_completed_by_the_command(drawing: Job, tmp_path: Path) -> None:
    """One entry is the answer; the bar moves in training, too."""
    (folder := drawing.outside / "result").mkdir()
    (folder / "scan.seg.nrrd").write_bytes(b"NRRD")
    entry = {"outputs": ["scan.seg.nrrd"], "warnings": [], "completed": {"slices": 2, "of": 8}}
    program, told = tmp_path / "kidseg", tmp_path / "told"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {shlex.quote(str(told))}\n'
        "if [ $1 = measure ]; then echo '{}'; exit; fi\n"
        "printf '%s\\n' 'train: 0 %' 'train: 50 %' >&2\n"
        f"echo {shlex.quote(json.dumps(entry))}\n"
    )
    program.chmod(0o755)
    watch, shares = Watch(), list[float]()
    watch.advance, advance = lambda done: (shares.append(done), advance(done)), watch.advance
    found = LocalCommand(os.environ, str(program)).segment(drawing, watch)
    completing, measuring = told.read_text().splitlines()
    assert completing.split()[:3] == ["complete", str(drawing.scan), str(drawing.drawn_slices)]
    assert "--json --progress --device cpu" in completing
    assert measuring.startswith("measure ")
    assert shares == [0.0, pytest.approx(0.3), pytest.approx(0.95)]
    assert not any("%" in text for text in watch.messages())
    assert found.record == entry and found.measures == {}
    assert remarks_of(entry) == ["2 of 8 slices were drawn; they are unchanged."]


def test_words_about_the_drawn_slices_name_them(drawing: Job, tmp_path: Path) -> None:
    refusal = {"code": "c", "path": str(drawing.drawn_slices), "cause": "bad", "next_step": ""}
    program = tmp_path / "kidseg"
    program.write_text(f"#!/bin/sh\necho {shlex.quote(json.dumps({'error': refusal}))}\nexit 3\n")
    program.chmod(0o755)
    error = refused(LocalCommand(os.environ, str(program)).segment, drawing, Watch())
    assert error.cause == "My drawing: bad"


def test_a_server_completes_no_drawn_slices(drawing: Job) -> None:
    error = refused(Server("https://kidseg.example").check, drawing)
    assert error.code == "no-completion" and "'This computer'" in error.next_step


@pytest.mark.skipif(os.name == "nt", reason="needs a shell")
def test_the_container_gets_the_drawn_slices(drawing: Job, tmp_path: Path) -> None:
    engine, told = tmp_path / "podman", tmp_path / "told"
    engine.write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(told))}\nexit 1\n')
    engine.chmod(0o755)
    refused(Container(os.environ, DIGEST, str(engine)).segment, drawing, Watch())
    words = told.read_text().splitlines()[0].partition(DIGEST)[2].split()
    assert words[:3] == ["complete", "/in/scan.nrrd", "/in/drawn.seg.nrrd"]


def test_an_upload_stops_when_it_is_cancelled(job: Job) -> None:
    watch = Watch()
    watch.cancel()
    with server_with(health={"status": "ok"}, jobs={"id": ID}) as address:
        assert isinstance(refused(Server(address).segment, job, watch), CancelledError)
    assert all(path != f"/api/v1/jobs/{ID}" for _, path, _ in Hostile.seen)


# ---- words and tables


def test_errors_say_cause_and_next_step() -> None:
    error = KidSegError("the disk is full", "Free some space.")
    assert str(error) == "The disk is full. Free some space."
    record = {"code": "c", "path": "/t/in/scan.nrrd", "cause": "bad", "next_step": "see /t/in/x"}
    error = error_from(record, {"/t/in/scan.nrrd": "CT", "/t/in/": ""})
    assert (error.cause, error.next_step, error.code) == ("CT: bad", "see x", "c")


def test_tables_of_measures() -> None:
    quantity = {"name": "volume", "value": 3, "unit": "1", "low": None, "high": 4.5}
    measures = {
        "patient": [quantity],
        "sides": {"left": [{**quantity, "unit": "mL", "note": "n"}]},
        "structures": [{"id": "left tumour 1", "quantities": [quantity]}],
        "criteria": {
            "answers": [
                {
                    "subject": "left",
                    "title": "Small",
                    "verdict": "met",
                    "conditions": [{"text": "v < 4", "verdict": "met", "reason": ""}],
                }
            ]
        },
    }
    rows = measures_of({}, measures)
    assert [row.of for row in rows] == ["patient", "left", "left tumour 1"]
    assert (rows[0].unit, rows[1].unit, rows[1].note) == ("", "ml", "n")
    assert rows[0].low != rows[0].low and (rows[0].value, rows[0].high) == (3.0, 4.5)
    assert answers_of(measures)[0][:4] == ("left", "Small", "met", "v < 4: met")
    assert answers_of(None) == []


def test_what_only_the_command_line_can_be_told_is_not_asked_for() -> None:
    told = "not entered: --entered thrombus=yes or thrombus=no"
    condition = {"text": "Thrombus = yes", "verdict": "cannot tell", "reason": told}
    answer = {"title": "Any", "verdict": "cannot tell", "conditions": [condition]}
    for fact, because in (("thrombus", "not entered"), (None, told)):
        condition["fact"] = fact
        (found,) = answers_of({"criteria": {"answers": [answer]}})
        assert found.because == f"Thrombus = yes: {because}"
    finding = {"cause": "no tumour", "next_step": "Say so: --label 2=tumour."}
    assert note_from(finding, {}).endswith(
        "--label 2=tumour. (In a terminal, with the command kidseg.)"
    )
    assert note_from({"cause": "a--b", "next_step": "Use a-b."}, {}) == "A--b. Use a-b."


def test_the_place_of_a_tumour_is_in_the_table_of_answers() -> None:
    score = {"R": {"points": [3], "reason": "106 mm"}, "N": {"points": [], "reason": "unknown"}}
    tumour = {"id": "left tumour 1", "crosses_midline": "not met", "renal_score": score}
    kidney = {"id": "left kidney", "crosses_midline": None, "renal_score": {}}
    found = answers_of({"structures": [kidney, tumour]})
    assert {each.of for each in found} == {"left tumour 1"}
    assert [each[1:4] for each in found] == [
        ("crosses the midline", "no", ""),
        ("R.E.N.A.L. R", "3", "106 mm"),
        ("R.E.N.A.L. N", "cannot tell", "unknown"),
    ]


def test_numbers_are_shown_with_three_digits() -> None:
    numbers = (124.584, 21.805, 2.8, 0.0, 95.0, -13.78, 12345.6, float("nan"), float("inf"), "x")
    assert list(map(shown, numbers)) == [
        "125",
        "21.8",
        "2.80",
        "0",
        "95",
        "-13.8",
        "12346",
        "",
        "",
        "x",
    ]


def test_the_record_says_what_the_model_is_for_and_where_to_look() -> None:
    assert remarks_of({}) == [] == remarks_of({"model": {"name": "m"}, "review": {"slices": []}})
    slices = [{"slice": n, "position_mm": 5.0 * n} for n in (12, 19, 17, 16, 18, 1)]
    record = {"model": {"name": "starter", "use": "for tests"}, "review": {"slices": slices}}
    use, look = remarks_of(record)
    assert use == "The model 'starter' is for tests."
    assert "slices 12 (S 60.0 mm), 19 (S 95.0 mm)," in look and "18 (S 90.0 mm): K and" in look


def test_without_measures_the_volumes_are_shown() -> None:
    record = {
        "volumes_ml": {"kidney": 90.0},
        "sides": {"left": {"volumes_ml": {"kidney": 63.0}, "partial": True}, "midline": "body"},
    }
    rows = measures_of(record, None)
    assert [(row.of, row.measure, row.value, row.unit) for row in rows] == [
        ("patient", "kidney volume", 90.0, "ml"),
        ("left", "kidney volume", 63.0, "ml"),
    ]
    assert "border" in rows[1].note and not rows[0].note
