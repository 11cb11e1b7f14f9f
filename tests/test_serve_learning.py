"""Which model is served after a training: the new one, only if it is better on the kept images."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from kidseg.checkpoint import load_model, save_model
from kidseg.header import read_header
from kidseg.io.atomic import disk_full
from kidseg.io.content import sha256_of
from kidseg.members import ensemble
from kidseg.serve.application import create_app
from kidseg.serve.audit_log import AuditLog
from kidseg.serve.calibration_kept import judges_of
from kidseg.serve.learning import Learner
from kidseg.serve.policy import Serving
from kidseg.serve.service import _service
from kidseg.serve.training_state import Learning
from serving import Running, make_model, running, scan_of, until
from test_serve_monai import TRAINING, labels_of, put


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("learning")
    make_model(root)
    return root


def served(server: Running) -> str:
    """The digest of the model that the server names, once it has loaded its current one."""
    until(lambda: server.client.get("/api/v1/health").json()["status"] == "ok")
    return str(server.client.get("/api/v1/health").json()["model"]["sha256"])


def label_all(server: Running, root: Path) -> None:
    for k in range(3):
        put(server, f"/datastore/?image=case {k}", "file", scan_of(root, k))
        said = [{"name": "kidney"}, {"name": "tumour"}]
        path = f"/datastore/label?image=case {k}"
        put(server, path, "label", labels_of(root, k), label_info=said)


@pytest.mark.slow
@pytest.mark.requirement("own model")
def test_only_a_better_model_is_served_also_after_a_restart(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings are real; only what they score is given, so that both happen."""
    scores: Mapping[str, float] = {}
    trained: list[str] = []

    def scored(self: Learner, name: str, model: Path, place: Path) -> float:
        if name == "after":
            trained.append(sha256_of(model))
        return scores[name]

    monkeypatch.setattr(Learner, "_score", scored)
    first = root / "run" / "model.safetensors"
    expected = sha256_of(first)
    for before, after in ((0.6, 0.5), (0.5, 0.5), (0.5, 0.6), (0.7, 0.6)):
        scores = {"before": before, "after": after}
        with running(tmp_path / "server", first, training=TRAINING) as server:
            assert served(server) == expected, "as before the restart"
            if not trained:
                label_all(server, root)
            server.client.post("/train/kidseg", json={}).raise_for_status()
            until(lambda s=server: s.client.get("/train/").json()["status"] != "RUNNING", 600)
            status = server.client.get("/train/").json()
            assert status["status"] == "DONE", status
            assert status["dice"] == scores and status["new_model"] == (after > before)
            assert trained[-1] != expected, "a training makes another model"
            if after > before:
                expected = trained[-1]
            until(lambda s=server, e=expected: served(s) == e)
            kept = [sha256_of(file) for file in (tmp_path / "server" / "models").iterdir()]
            assert kept == ([] if expected == sha256_of(first) else [expected])
    assert len(set(trained)) >= 2 and expected == trained[2]


@pytest.mark.slow
@pytest.mark.requirement("own model")
@pytest.mark.parametrize("ensembled", [False, True])
def test_calibrated_weights_are_kept_unless_they_harm_where_nothing_was_learned(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ensembled: bool
) -> None:
    """The images that are kept out to compare the models have no say; intervals are left out.

    The model finds kidneys in each image: of nothing found, Dice is the same with any weights.
    """
    scores = {"before": 0.0, "after": 1.0}
    monkeypatch.setattr(Learner, "_score", lambda self, name, model, place: scores[name])
    run = trained / "run" / "model.safetensors"
    ensemble([run], tmp_path / "stacks", only_in="stacks")
    ensemble([run, tmp_path / "stacks"] if ensembled else [run], tmp_path / "model")
    known = load_model(tmp_path / "model")
    for weights, kept in (({"kidney": 1.0 + 1e-9}, True), ({"background": 1e6}, False)):
        first = tmp_path / f"{kept}.safetensors"
        calibration = {"decision": weights, "intervals": intervals()}
        save_model(first, known.parts, {**known.header, **calibration})
        with running(tmp_path / f"server-{kept}", first, training=TRAINING) as server:
            label_all(server, trained)
            server.client.post("/train/kidseg", json={"tune": "decoder"}).raise_for_status()
            until(lambda s=server: s.client.get("/train/").json()["status"] != "RUNNING", 600)
            status = server.client.get("/train/").json()
            assert status["status"] == "DONE" and status["new_model"], status
            header = read_header(server.service.model())
            held = [image.id for image in server.service.images.all() if image.role == "kept"]
        assert header["decision"] == (weights if kept else {})
        assert len(held) == 1 and f"case_{held[0]}" not in header["calibration"]["cases"]
        assert "intervals" not in header
        limits = [one["config"]["budget_s"] for one in header.get("members", (header,))]
        assert limits == ([1800.0, 1800.0] if ensembled else [3600.0]), "an hour, shared"
        only_in = [member.get("only_in") for member in header.get("members", ())]
        assert only_in == ([None, "stacks"] if ensembled else [])
        told, no_intervals = status["calibration"]
        assert f"were {'kept' if kept else 'left out'}" in told and told in status["result"]
        assert "intervals of volumes" in no_intervals and no_intervals in status["result"]


@pytest.mark.requirement("own model")
def test_a_training_that_fails_is_said_and_the_next_may_start(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Here somebody has removed the folder of the trainings while the server ran."""
    first = root / "run" / "model.safetensors"
    with running(tmp_path / "server", first, training=TRAINING) as server:
        label_all(server, root)
        (tmp_path / "server" / "trainings").rmdir()
        for _ in range(2):
            server.client.post("/train/kidseg", json={"tune": "decoder"}).raise_for_status()
            until(lambda: server.client.get("/train/").json()["status"] != "RUNNING")
            status = server.client.get("/train/").json()
            assert status["status"] == "ERROR" and "FileNotFoundError" in status["error"]["cause"]
            assert status["error"]["code"] == "training-failed"
        (tmp_path / "server" / "trainings").mkdir()
        server.client.post("/train/kidseg", json={"tune": "decoder"}).raise_for_status()
        second = server.client.post("/train/kidseg", json={"tune": "decoder"})
        assert (second.status_code, second.json()["code"]) == (429, "training-runs")
        assert int(second.headers["Retry-After"]) > 0
        server.client.delete("/train/").raise_for_status()
        assert server.client.get("/train/").json()["status"] == "STOPPED"
    log = (tmp_path / "server" / "audit.jsonl").read_text()
    assert log.count("training-failed") == 2
    said = [each.getMessage() for each in caplog.records if "training" in each.getMessage()]
    failed = "the training failed (training-failed); the model stays"
    assert said == [failed, failed, "the training was stopped; the model stays"]


@pytest.mark.slow
@pytest.mark.fault("disk full")
def test_a_training_that_fails_gives_a_full_disk_its_room_back(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the log has no room for its end either."""
    write = AuditLog.write

    def full(self: AuditLog, event: str, **facts: Any) -> None:
        if event.startswith("training-") and event != "training-started":
            raise disk_full(self.path)
        write(self, event, **facts)

    monkeypatch.setattr(AuditLog, "write", full)
    first = root / "run" / "model.safetensors"
    with running(tmp_path / "server", first, training=("--set", "none=1")) as server:
        label_all(server, root)
        server.client.post("/train/kidseg", json={}).raise_for_status()
        until(lambda: not server.service.learner.is_running)
        assert server.client.get("/train/").json()["status"] == "ERROR"
        assert not any((tmp_path / "server" / "trainings").iterdir())


@pytest.mark.requirement("server")
def test_a_training_that_stops_leaves_threads_for_other_requests(tmp_path: Path) -> None:
    """However many clients stop it."""
    audit = AuditLog.opened(tmp_path / "audit.jsonl")
    service = _service(Serving(model=tmp_path / "none", folder=tmp_path), tmp_path, audit)
    app, learner, ended = create_app(service), service.learner, threading.Event()

    async def stopped() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert (await client.delete("/train/")).status_code == 404
            learner._trainings["a"] = Learning(id="a", state="RUNNING", started=0.0)
            learner._thread = threading.Thread(target=ended.wait)
            learner._thread.start()
            clients = [asyncio.create_task(client.delete("/train/")) for _ in range(100)]
            try:
                await asyncio.sleep(0.2)
                said = await asyncio.wait_for(client.get("/train/"), 10)
                assert said.json()["status"] == "RUNNING" and not any(c.done() for c in clients)
                learner._say(state="STOPPED")
            finally:
                ended.set()
            return await asyncio.gather(*clients)

    answers = asyncio.run(stopped())
    assert {(each.status_code, each.json()["status"]) for each in answers} == {(200, "STOPPED")}


@pytest.mark.requirement("server")
def test_who_stops_a_training_hears_of_that_one_though_another_has_started(tmp_path: Path) -> None:
    """Between two looks at it: another client starts one as soon as it is allowed to."""
    audit = AuditLog.opened(tmp_path / "audit.jsonl")
    service = _service(Serving(model=tmp_path / "none", folder=tmp_path), tmp_path, audit)
    app, learner, ended = create_app(service), service.learner, threading.Event()

    async def stopped() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            learner._trainings["a"] = Learning(id="a", state="RUNNING", started=0.0)
            learner._thread = first = threading.Thread(target=ended.wait)
            first.start()
            asked = asyncio.create_task(client.delete("/train/"))
            while not learner._stopping.is_set():
                await asyncio.sleep(0.01)
            learner._say(state="STOPPED")
            ended.set()
            first.join()
            learner._trainings["b"] = Learning(id="b", state="RUNNING", started=1.0)
            return await asyncio.wait_for(asked, 10)

    answer = asyncio.run(stopped()).json()
    assert (answer["id"], answer["status"]) == ("a", "STOPPED")


def test_how_a_training_ended_is_said_in_a_line() -> None:
    done = Learning(id="x", state="DONE", started=0.0, before=0.61, after=0.64, taken=True)
    assert "0.610 before and 0.640 after" in str(done) and "new model is used" in str(done)
    assert str(replace(done, taken=False)).endswith("the model stays")


def intervals() -> dict[str, Any]:
    ends = {"kidney": [-1.0, 1.0]}
    known = {"level": 0.9, "temperature": 1.0, "adapt": "none", "scans": "ellipses"}
    return {**known, "ends": ends, "cases": [str(k) for k in range(19)]}


def test_weights_are_judged_where_no_member_has_learned(tmp_path: Path) -> None:
    runs = []
    for number, validation in enumerate((["a", "b"], ["b", "c"])):
        runs.append(tmp_path / f"run-{number}")
        runs[-1].mkdir()
        (runs[-1] / "cases.json").write_text(json.dumps({"validation": validation}))
    assert judges_of(runs[:1]) == ["a", "b"] and judges_of(runs) == ["b"]
    (runs[1] / "cases.json").write_text(json.dumps({"validation": ["c"]}))
    assert judges_of(runs) == []


@pytest.mark.slow
@pytest.mark.requirement("own model")
def test_the_next_image_is_that_of_the_largest_value_that_is_stored(
    root: Path, tmp_path: Path
) -> None:
    """As the model judged the images that were uploaded; without those that are labelled."""
    with running(tmp_path / "server", root / "run" / "model.safetensors") as server:
        for k in range(3):
            put(server, f"/datastore/?image=case {k}", "file", scan_of(root, k))

        def values(of: str) -> dict[str, float]:
            asked = [server.client.get(f"/datastore/image/info?image=case {k}") for k in range(3)]
            return {info.json()["id"]: info.json()[of] for info in asked}

        until(lambda: None not in values("distance_sd").values(), 300)
        said = [{"name": "kidney"}, {"name": "tumour"}]
        for left in (3, 2, 1):
            for strategy, of in (("most_uncertain", "uncertainty"), ("farthest", "distance_sd")):
                known = {name: values(of)[name] for name in unlabelled(server)}
                assert len(known) == left
                chosen = server.client.post(f"/activelearning/{strategy}").json()
                assert chosen[of] == max(known.values()) == known[chosen["id"]]
            number = int(chosen["id"].split()[1])
            path = f"/datastore/label?image={chosen['id']}"
            assert put(server, path, "label", labels_of(root, number), label_info=said).is_success
        assert unlabelled(server) == []


def unlabelled(server: Running) -> list[str]:
    objects = server.client.get("/datastore/?output=all").json()["objects"]
    return [name for name, entry in objects.items() if "final" not in entry["labels"]]
