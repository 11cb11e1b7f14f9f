"""Which model is served after a training: the new one, only if it is better on the kept images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from kidseg.io.content import sha256_of
from kidseg.serve.learning import Learner
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
