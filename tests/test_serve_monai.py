"""The protocol of MONAI Label: by plain requests, and (slow) by its own client."""

from __future__ import annotations

import email
import gzip
import json
import socket
import time
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from kidseg.errors import InputError
from kidseg.header import read_header
from kidseg.io import ReadOptions, read
from kidseg.labels import KIDNEY_TUMOUR
from kidseg.members import ensemble
from kidseg.segment import segment
from kidseg.serve.application import create_app
from kidseg.serve.audit_log import AuditLog
from kidseg.serve.images import FINAL, Image, ImageStore
from kidseg.serve.learned_from import names_said, read_submitted
from kidseg.serve.learning import divided, mean_dice
from kidseg.serve.next_sample import STRATEGIES, choose_next
from kidseg.serve.policy import Limits, Serving
from kidseg.serve.refusals import RefusedError
from kidseg.serve.service import _service
from kidseg.serve.sessions import SessionStore
from serving import Direct, Running, make_model, running, scan_of, until

PATIENT = "Doe^Jane 4711"
TRAINING = ("--set", "segment.epochs=2", "--set", "segment.min_epochs=0")


def labels_of(root: Path, number: int = 0) -> Path:
    return root / "data" / "labelsTr" / f"ellipse_{number:03d}.nii.gz"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("monai")
    make_model(root, 5)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Running]:
    model = root / "run" / "model.safetensors"
    with running(root / "server", model, limits=Limits(session_s=3600), training=TRAINING) as found:
        until(lambda: found.client.get("/info/").json()["labels"])
        yield found


def parts_of(answer: Any) -> tuple[dict[str, Any], bytes, str]:
    """(params, file, its name) of a multipart answer."""
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + answer.content)
    params, image = message.get_payload()
    assert 'name="image"' in image["Content-Disposition"]
    text = params.get_payload(decode=True)
    return json.loads(text), image.get_payload(decode=True), image.get_filename()


def put(server: Running, path: str, field: str, file: Path, **params: Any) -> Any:
    with file.open("rb") as opened:
        files = {field: (f"/tmp/{PATIENT}.nii.gz", opened)}
        return server.client.put(path, files=files, data={"params": json.dumps(params)})


def assert_same_file(given: bytes, direct: bytes) -> None:
    """Two NIfTI files of labels; if they differ, the message has where, and both as base64."""
    first, second = (nibabel.Nifti1Image.from_bytes(gzip.decompress(f)) for f in (given, direct))
    one, two = (np.asarray(image.dataobj) for image in (first, second))
    both = {"given": b64encode(given).decode(), "direct": b64encode(direct).decode()}
    assert one.shape == two.shape, both
    differ = [(*map(int, at), int(one[*at]), int(two[*at])) for at in np.argwhere(one != two)]
    assert not differ, (len(differ), "voxels (i, j, k, given, direct)", differ[:20], both)
    headers = (first.header, second.header)
    assert headers[0].binaryblock == headers[1].binaryblock, ([*map(str, headers)], both)
    assert given == direct, both


@pytest.mark.requirement("slicer")
def test_the_labels_come_back_with_their_names(server: Running, root: Path) -> None:
    info = server.client.get("/info/").json()
    assert info["labels"] == ["kidney", "tumour"] and "config" not in info
    assert info["models"]["kidseg"]["type"] == "segmentation" and set(info["strategies"]) == set(
        STRATEGIES
    )
    with scan_of(root).open("rb") as file:
        answer = server.client.post(
            "/infer/kidseg?image=abc", files={"file": file}, data={"params": "{}"}
        )
    params, image, name = parts_of(answer)
    (entry,) = segment([scan_of(root)], root / "run", root / "direct", device="cpu")
    assert params["model"]["sha256"] == entry["model"]["sha256"]
    assert_same_file(image, (root / "direct" / "ellipse_000_seg.nii.gz").read_bytes())
    assert params["label_names"] == {"kidney": 1, "tumour": 2} and name.endswith(".nii.gz")
    session = put(server, "/session/", "files", scan_of(root)).json()["session_id"]
    for output, kind in (("image", "application/gzip"), ("json", "application/json")):
        answer = server.client.post(f"/infer/kidseg?session_id={session}&output={output}")
        assert answer.status_code == 200 and answer.headers["content-type"] == kind
    assert server.client.get(f"/session/{session}").json()["name"] == session
    assert server.client.delete(f"/session/{session}").status_code == 200
    assert server.client.post(f"/infer/kidseg?session_id={session}").status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/infer/other", 404, "not-found"),
        ("/infer/kidseg", 422, "no-scan"),
        ("/infer/kidseg?image=none", 404, "not-found"),
        ("/infer/kidseg?session_id=none", 404, "not-found"),
        ("/activelearning/none", 404, "not-found"),
        ("/train/other", 404, "not-found"),
        ("/train/kidseg", 409, "too-few-labels"),
    ],
)
def test_what_cannot_be_done_is_said(server: Running, path: str, status: int, code: str) -> None:
    answer = server.client.post(path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.requirement("privacy")
def test_images_are_labelled_and_their_names_stay_out_of_files_and_logs(
    server: Running, root: Path
) -> None:
    client = server.client
    added = put(server, f"/datastore/?image={PATIENT}", "file", scan_of(root, 1), client_id="x")
    assert added.json() == {"image": PATIENT}
    until(lambda: client.get("/datastore/?output=stats").json()["label_tags"].get("original"))
    objects = client.get("/datastore/?output=all").json()["objects"]
    original = objects[PATIENT]["labels"]["original"]["info"]["params"]
    assert original == {"label_names": {"kidney": 1, "tumour": 2}}
    got = client.get("/datastore/label", params={"label": PATIENT, "tag": "original"})
    assert 'filename="' in got.headers["content-disposition"]
    image = client.get("/datastore/image", params={"image": PATIENT})
    assert image.content == scan_of(root, 1).read_bytes()
    sample = client.post("/activelearning/most_uncertain", json={"client_id": None}).json()
    assert sample["id"] == PATIENT and sample["name"].endswith(".nii.gz")
    digest = sample["checksum"]
    check = {"image": PATIENT, "check_sum": digest}
    assert client.head("/datastore/image", params=check).status_code == 200
    check["check_sum"] = digest.replace(digest[-1], "x")
    assert client.head("/datastore/image", params=check).status_code == 404
    assert 0 <= sample["uncertainty"] <= 1 and sample["distance_sd"] >= 0
    # 3D Slicer: the values of a label volume count its segments, whatever their order.
    swapped = root / "swapped.nii.gz"
    volume = nibabel.load(labels_of(root, 1))
    data = np.asarray(volume.dataobj)
    nibabel.save(nibabel.Nifti1Image(np.array([0, 2, 1], np.uint8)[data], volume.affine), swapped)
    said = [{"name": "tumour", "idx": 1}, {"name": "kidney", "idx": 2}]
    saved = put(server, f"/datastore/label?image={PATIENT}", "label", swapped, label_info=said)
    assert saved.json() == {"image": PATIENT, "label": PATIENT}
    assert client.post("/activelearning/first").json() == {}
    stats = client.get("/datastore/").json()
    assert (stats["total"], stats["completed"]) == (1, 1)
    for edit, code in (
        ([{"name": "spleen"}, {"name": "kidney"}], "unknown-segment"),
        ([{"name": "kidney"}, {"name": "kidney"}], "bad-label-info"),
        ("kidney", "bad-label-info"),
    ):
        wrong = put(server, f"/datastore/label?image={PATIENT}", "label", swapped, label_info=edit)
        assert (wrong.status_code, wrong.json()["code"]) == (422, code)
    names = [str(path) for path in server.service.serving.folder.rglob("*")]
    assert "Doe" not in server.log + "".join(names)
    assert (
        client.delete("/datastore/label", params={"id": PATIENT, "tag": "final"}).status_code == 200
    )
    assert client.delete("/datastore/", params={"id": PATIENT}).status_code == 200
    assert client.get("/datastore/image", params={"image": PATIENT}).status_code == 404
    assert not any((server.service.serving.folder / "images").iterdir())


@pytest.mark.slow
@pytest.mark.fault("client gone")
def test_a_client_that_goes_ends_its_inference(server: Running, root: Path) -> None:
    body = scan_of(root).read_bytes()
    port = int(server.url.rsplit(":", 1)[1])
    head = (
        f"POST /infer/kidseg HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        f"Content-Type: application/gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with server.held(), socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head.encode() + body)
        until(lambda: server.service.jobs.counts()["running"] == 1)
    until(lambda: "client-gone" in server.events() and "job-cancelled" in server.events())
    assert server.service.jobs.counts()["running"] == 0


# ---- parts -------------------------------------------------------------------------------------


def image_of(id_: str, **more: Any) -> Image:
    known = {
        "name": id_,
        "path": Path(id_),
        "sha256": "",
        "created": 0.0,
        "info": {},
        "model": None,
    }
    free = {"role": None, "uncertainty": None, "distance_sd": None, "labels": {}}
    return Image(id=id_, **{**known, **free, **more})


def test_the_next_image_is_the_one_of_the_strategy() -> None:
    labelled = image_of("l", uncertainty=0.9, distance_sd=9.0, labels={FINAL: None})
    images = [
        labelled,
        image_of("a", uncertainty=0.1, distance_sd=3.0),
        image_of("b", uncertainty=0.4, distance_sd=0.5),
        image_of("c"),
    ]
    chosen = {name: choose_next(name, images) for name in STRATEGIES}
    ids = {name: image.id for name, image in chosen.items() if image}
    assert (ids["first"], ids["most_uncertain"], ids["farthest"]) == ("a", "b", "a")
    assert {choose_next("random", images).id for _ in range(99)} == {"a", "b", "c"}  # type: ignore[union-attr]
    for name in STRATEGIES:
        assert choose_next(name, [labelled]) is None and choose_next(name, []) is None
        assert choose_next(name, [image_of("c"), image_of("d")]).id in "cd"  # type: ignore[union-attr]


@pytest.mark.requirement("own model")
@pytest.mark.requirement("no leak")
def test_kept_images_are_kept_for_ever_and_nothing_is_learned_from_them() -> None:
    images = [image_of(str(k)) for k in range(3)]
    sides: dict[str, str] = {}
    for count in (3, 4, 9, 20):
        images = [image_of(str(k), role=sides.get(str(k))) for k in range(count)]
        learned, kept = divided(images)
        assert len(learned) + len(kept) == count and len(kept) == max(1, round(count / 5))
        for side, group in (("learned", learned), ("kept", kept)):
            for image in group:
                assert sides.setdefault(image.id, side) == side


def test_the_score_of_a_model_is_the_mean_over_structures() -> None:
    structures = {"kidney": {"dice": {"mean": 0.8}}, "tumour": {"dice": {"mean": 0.4}}}
    assert mean_dice({"structures": structures}) == pytest.approx(0.6)
    structures["tumour"]["dice"]["mean"] = None  # type: ignore[assignment]
    assert mean_dice({"structures": structures}) == 0.8 and mean_dice({"structures": {}}) == 0


@pytest.mark.requirement("own model")
def test_submitted_labels_get_the_numbers_of_the_model(root: Path, tmp_path: Path) -> None:
    scan, right = scan_of(root), read(labels_of(root), ReadOptions(values="labels")).volume
    same = read_submitted(scan, labels_of(root), {}, KIDNEY_TUMOUR)
    assert same.data.equal(right.data) and same.grid.same_as(right.grid)
    segment([scan], root / "run", tmp_path, formats=("seg.nrrd", "nii"), device="cpu")
    by_number = read_submitted(scan, tmp_path / "ellipse_000_seg.nii.gz", {}, KIDNEY_TUMOUR)
    names = {1: "tumour", 2: "kidney"}  # the file itself says otherwise, and counts
    by_segment = read_submitted(scan, tmp_path / "ellipse_000.seg.nrrd", names, KIDNEY_TUMOUR)
    assert by_segment.data.equal(by_number.data) and by_number.data.any()
    volume = nibabel.load(labels_of(root))
    moved = volume.affine.copy()
    moved[0, 3] += 1
    nibabel.save(nibabel.Nifti1Image(np.asarray(volume.dataobj), moved), tmp_path / "moved.nii.gz")
    with pytest.raises(InputError) as refused:
        read_submitted(scan, tmp_path / "moved.nii.gz", {}, KIDNEY_TUMOUR)
    assert refused.value.code == "grid-mismatch"
    with pytest.raises(InputError):  # 2 has no name
        read_submitted(scan, labels_of(root), {1: "kidney"}, KIDNEY_TUMOUR)
    assert names_said({"label_info": [{"name": "a", "idx": 4}, {"name": "b"}]}) == {1: "a", 2: "b"}
    assert names_said({}) == {} == names_said({"label_info": []})


@pytest.mark.requirement("privacy")
def test_sessions_end_when_they_are_not_used(tmp_path: Path) -> None:
    store = SessionStore.opened(tmp_path)
    scan = tmp_path / "scan.nii"
    scan.write_bytes(b"x")
    session = store.begin("me", scan)
    assert store.get(session.id, "me").path.read_bytes() == b"x"
    with pytest.raises(RefusedError):
        store.get(session.id, "other")
    assert store.expire(60) == 0 and store.expire(-1) == 1
    assert not session.path.exists()
    stray = [tmp_path / name / "stray" for name in ("images", "sessions")]
    stray[0].mkdir(parents=True)
    stray[1].mkdir()
    ImageStore.opened(tmp_path)
    SessionStore.opened(tmp_path)
    assert not any(path.exists() for path in stray)


def test_an_image_of_the_same_name_replaces_one_that_nobody_has_labelled(tmp_path: Path) -> None:
    store = ImageStore.opened(tmp_path)

    def added(name: str | None, content: bytes) -> Image:
        (tmp_path / "scan.nii.gz").write_bytes(content)
        return store.add(name, tmp_path / "scan.nii.gz", {"a": 1})

    first = added("x", b"1")
    for tag in (FINAL, FINAL, "other"):
        (tmp_path / "l.nii.gz").write_bytes(b"l")
        store.save_label(first, tag, tmp_path / "l.nii.gz", {})
    assert len(list(first.path.parent.iterdir())) == 3 and set(store.get("x").labels) == {
        FINAL,
        "other",
    }
    again = added("x", b"1")
    assert again == store.get("x") and set(again.labels) == {FINAL, "other"}
    assert [i.id for i in store.all()] == [first.id] and first.path.read_bytes() == b"1"
    with pytest.raises(RefusedError) as refused:
        added("x", b"2")
    assert (refused.value.status, refused.value.code) == (409, "image-labelled")
    assert store.get("x") == again and len(list((tmp_path / "images").iterdir())) == 1
    store.remove_label(again, FINAL)
    second = added("x", b"2")
    assert not first.path.parent.exists() and store.get("x").id == second.id
    assert store.get("x").labels == {} and store.get(second.id).info == {"a": 1}
    unnamed = added(None, b"3")
    assert unnamed.name == unnamed.id and [i.id for i in store.all()] == [second.id, unnamed.id]
    for name in ("x" * 257, "a\nb", "a\0"):
        with pytest.raises(RefusedError) as refused:
            added(name, b"4")
        assert refused.value.code == "bad-name"


# ---- MONAI Label's own client ------------------------------------------------------------------


@pytest.mark.requirement("slicer")
@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("monailabel") is None, reason="needs monailabel (pip install --no-deps) and requests"
)
@pytest.mark.parametrize("token", ["", "t" * 20])
def test_the_client_of_slicer_works_unchanged(root: Path, tmp_path: Path, token: str) -> None:
    """From no label to a model of one's own, with a server that asks for a token and without."""
    from monailabel.client import MONAILabelClient

    with running(
        tmp_path / "server", root / "run" / "model.safetensors", token=token, training=TRAINING
    ) as server:
        until(lambda: server.service.dispatcher.facts)
        client = MONAILabelClient(server.url, tmpdir=str(tmp_path))
        assert client.auth_enabled() == bool(token)
        if token:
            with pytest.raises(Exception, match="1"):
                client.info()
            client.update_auth(client.auth_token("anybody", token))
            assert client.auth_valid_token()
        info = client.info()
        assert info["labels"] == ["kidney", "tumour"]
        session = client.create_session(str(scan_of(root)))["session_id"]
        assert client.get_session(session)["name"] == session
        results = [
            client.infer("kidseg", "ignored", {}, session_id=session),
            client.infer("kidseg", "ignored", {}, file=str(scan_of(root))),
        ]
        client.remove_session(session)
        for k in range(5):
            assert client.upload_image(str(scan_of(root, k)), f"case {k}") == {"image": f"case {k}"}
        results.append(client.infer("kidseg", "case 0", {"result_extension": ".nrrd"}))
        first, *others = (read(file, ReadOptions(values="labels")).volume for file, _ in results)
        for other in others:
            assert other.data.equal(first.data) and other.grid.same_as(first.grid)
        assert all(params["label_names"] == {"kidney": 1, "tumour": 2} for _, params in results)
        until(lambda: server.client.get("/datastore/").json()["label_tags"].get("original") == 5)
        label_info = [{"name": "kidney", "idx": 1}, {"name": "tumour", "idx": 2}]
        for strategy in ("first", "most_uncertain", "farthest", "random", "first"):
            sample = client.next_sample(strategy, {})
            # 3D Slicer downloads the image without the token, and checks its digest.
            import hashlib
            import urllib.request
            from urllib.parse import quote_plus

            uri = f"{server.url}/datastore/image?image={quote_plus(sample['id'])}"
            content = urllib.request.urlopen(uri).read()
            assert sample["checksum"] == "SHA256:" + hashlib.sha256(content).hexdigest()
            number = next(k for k in range(5) if scan_of(root, k).read_bytes() == content)
            objects = client.datastore()["objects"]
            labels = objects[sample["id"]]["labels"]["original"]["info"]["params"]["label_names"]
            assert list(labels) == ["kidney", "tumour"]
            assert Path(client.download_label(sample["id"], "original")).stat().st_size
            client.save_label(
                sample["id"], str(labels_of(root, number)), params={"label_info": label_info}
            )
        assert client.next_sample("first", {}) == {}
        assert client.info()["datastore"]["completed"] == 5
        assert not client.train_status(check_if_running=True)
        started = client.train_start("kidseg", {"tune": "all"})
        assert started["status"] == "RUNNING" and client.train_status(check_if_running=True)
        seen = set()
        deadline = time.monotonic() + 300
        while (status := client.train_status())["status"] == "RUNNING":
            assert time.monotonic() < deadline
            seen.add((status["stage"], status["epoch"]))
            time.sleep(0.2)
        assert status["status"] == "DONE", status
        assert (
            "segment" in {stage for stage, _ in seen}
            and client.info()["train_stats"]["kidseg"]["total_epochs"] == 2
        )
        dice, taken = status["dice"], status["new_model"]
        assert taken == (dice["after"] > dice["before"]) and "Dice" in status["result"]
        before = info["datastore"]
        assert before["completed"] == 0
        if taken:
            until(lambda: server.service.dispatcher.facts["sha256"] == server.service.model().stem)
        client.train_start("kidseg", {})
        time.sleep(3)
        stopped = client.train_stop()
        assert stopped["status"] == "STOPPED" and stopped["end_ts"]
        assert not any((server.service.serving.folder / "trainings").iterdir())
        assert {"training-started", "training-done", "training-stopped"} <= set(server.events())


def test_labels_of_an_image_that_is_gone_leave_nothing(tmp_path: Path) -> None:
    """As when another client removes the image meanwhile."""
    (tmp_path / "server").mkdir()
    store = ImageStore.opened(tmp_path / "server")
    for gone in ("row", "row and files"):
        (tmp_path / "scan.nii").write_bytes(b"x")
        image = store.add("name", tmp_path / "scan.nii", {})
        if gone == "row":
            with store.base.writing() as base:
                base.execute("DELETE FROM images")
        else:
            store.remove(image)
        (tmp_path / "labels.nii").write_bytes(b"x")
        with pytest.raises(RefusedError, match="no such image"):
            store.save_label(image, FINAL, tmp_path / "labels.nii", {})
        assert not list(image.path.parent.glob("labels*"))
        with store.base.connected() as base:
            assert base.execute("SELECT * FROM labels").fetchall() == []


def test_who_adds_what_others_replace_or_remove_at_once_is_not_told_that_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is last wins; all have done what they were to do."""
    store = ImageStore.opened(tmp_path)

    def add(number: int) -> Image:
        file = tmp_path / f"scan{number}.nii"
        file.write_bytes(bytes([number]))
        return store.add("same", file, {})

    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(add, range(16)))
    assert len({image.id for image in added}) == 16
    assert [image.id for image in store.all()] == [store.get("same").id]
    assert [path.name for path in (tmp_path / "images").iterdir()] == [store.get("same").id]
    labels = tmp_path / "labels.nii"
    labels.write_bytes(b"x")
    image = store.get("same")
    monkeypatch.setattr(ImageStore, "get", lambda self, image: pytest.fail("it may be gone"))
    saved = store.save_label(image, FINAL, labels, {"a": 1})
    assert saved.path.read_bytes() == b"x" and store.all()[0].labels[FINAL] == saved


def test_an_image_that_cannot_be_added_leaves_nothing(tmp_path: Path) -> None:
    store = ImageStore.opened(tmp_path)
    with pytest.raises(FileNotFoundError):
        store.add("name", tmp_path / "none.nii", {})
    assert store.all() == [] and not any((tmp_path / "images").iterdir())


def test_sessions_expire_although_the_clock_was_set_back(tmp_path: Path) -> None:
    store = SessionStore.opened(tmp_path)
    (tmp_path / "scan.nii").write_bytes(b"x")
    store.begin("me", tmp_path / "scan.nii")
    with store.base.writing() as base:
        base.execute("UPDATE sessions SET used = used + 86400")
    assert store.expire(3600) == 0
    with store.base.connected() as base:
        assert base.execute("SELECT used FROM sessions").fetchone()[0] <= time.time()
    assert store.expire(0) == 1


def test_sessions_do_not_expire_because_the_clock_is_set_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SessionStore.opened(tmp_path)
    (tmp_path / "scan.nii").write_bytes(b"x")
    session = store.begin("me", tmp_path / "scan.nii")
    later = time.time() + 1e9
    monkeypatch.setattr("kidseg.serve.sessions.time.time", lambda: later)
    assert store.expire(3600, set_s=1e9) == 0 and session.path.exists()
    assert store.expire(3600, set_s=0.0) == 0
    monkeypatch.setattr("kidseg.serve.sessions.time.time", lambda: later + 3601)
    assert store.expire(3600) == 1 and not session.path.exists()


@pytest.mark.row(6)
@pytest.mark.requirement("server")
def test_labels_that_would_fill_the_memory_of_the_server_are_refused(
    root: Path, tmp_path: Path
) -> None:
    """A few kilobytes may have any number of equal voxels."""
    limits = Limits(label_bytes=2**20)
    model = root / "run" / "model.safetensors"
    serving = Serving(model=model, folder=tmp_path, limits=limits)
    service = _service(serving, tmp_path, AuditLog.opened(tmp_path / "audit.jsonl"))
    client = Direct(create_app(service))
    zeros = np.zeros((1025, 1024, 1), np.uint8)
    nibabel.save(nibabel.Nifti1Image(zeros, np.eye(4)), tmp_path / "zeros.nii.gz")
    pairs = {
        "both": (tmp_path / "zeros.nii.gz", tmp_path / "zeros.nii.gz", 413),
        "image": (tmp_path / "zeros.nii.gz", labels_of(root), 413),
        "none": (scan_of(root), labels_of(root), 200),
    }
    for name, (image, labels, status) in pairs.items():
        sent = {"file": image.read_bytes()}
        assert client.request("PUT", f"/datastore/?image={name}", files=sent).status_code == 200
        sent = {"label": labels.read_bytes()}
        answer = client.request("PUT", f"/datastore/label?image={name}", files=sent)
        assert answer.status_code == status, name
        assert status == 200 or answer.json()["code"] == "too-large"
        assert (FINAL in service.images.get(name).labels) == (status == 200)
    assert not any(service.door.folder.iterdir())


@pytest.mark.requirement("server")
def test_labels_that_are_read_leave_threads_for_other_requests(root: Path, tmp_path: Path) -> None:
    """They are read one after the other; those that wait count as uploads."""
    model = root / "run" / "model.safetensors"
    serving = Serving(model=model, folder=tmp_path, limits=Limits(uploads=2))
    service = _service(serving, tmp_path, AuditLog.opened(tmp_path / "audit.jsonl"))
    client = Direct(create_app(service))
    sent = {"file": scan_of(root).read_bytes()}
    assert client.request("PUT", "/datastore/?image=x", files=sent).status_code == 200

    def save(_: object) -> int:
        labels = {"label": labels_of(root).read_bytes()}
        return client.request("PUT", "/datastore/label?image=x", files=labels).status_code

    with ThreadPoolExecutor(2) as pool:
        with service.reading:
            waiting = pool.map(save, range(2))
            until(lambda: service.door._busy == 2)
            assert save(None) == 429
        assert [*waiting] == [200, 200]
    assert save(None) == 200 and service.door._busy == 0


@pytest.fixture
def pair(root: Path, tmp_path: Path) -> Path:
    """An ensemble of two members."""
    run = root / "run" / "model.safetensors"
    ensemble([run, run], tmp_path / "two.safetensors")
    return tmp_path / "two.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(("options", "members"), [((), 2), (("--method=plain",), 1)])
def test_each_member_of_an_ensemble_is_trained(
    pair: Path, root: Path, tmp_path: Path, options: tuple[str, ...], members: int
) -> None:
    """They are an ensemble again; with a method, its first member is trained, and stands alone."""
    said = [{"name": "kidney"}, {"name": "tumour"}]
    with running(tmp_path / "server", pair, training=(*TRAINING, *options)) as server:
        until(lambda: server.service.dispatcher.facts)
        for k in range(3):
            put(server, f"/datastore/?image=case {k}", "file", scan_of(root, k))
            path = f"/datastore/label?image=case {k}"
            put(server, path, "label", labels_of(root, k), label_info=said)
        server.client.post("/train/kidseg", json={"tune": "decoder"})
        until(lambda: server.client.get("/train/").json()["status"] != "RUNNING", 600)
        status = server.client.get("/train/").json()
        assert status["status"] == "DONE", status
        assert (status["member"], status["members"]) == (members, members)
        assert status["new_model"] == (status["dice"]["after"] > status["dice"]["before"])
        if status["new_model"]:
            assert len(read_header(server.service.model()).get("members", [1])) == members
            until(lambda: server.service.dispatcher.facts["sha256"] == server.service.model().stem)
