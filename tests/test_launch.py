"""Clusters: the settings of dask arrive, and what Kubernetes is to start is valid to it."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed", reason="the package distributed is not installed")

import dask

from kidseg.errors import ResourceError, UsageError
from kidseg.launch import SETTINGS, _environment, _exports, cluster_object, start_cluster

DOCS = Path(__file__).parents[1] / "docs" / "cohort.md"


def test_settings_arrive_as_variables_of_a_job_script() -> None:
    """A shell reads the lines, and dask the variables."""
    read = "import json, dask; print(json.dumps(dask.config.config))"
    script = "\n".join([*_exports(), f"'{sys.executable}' -c '{read}'"])
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    for name, value in SETTINGS.items():
        arrived = dask.config.get(name, config=found, default="absent")
        if isinstance(value, dict):
            arrived = {key: arrived[key] for key in value}
        assert arrived == value, name


def test_slurm_must_know_what_a_job_may_use(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue", reason="the package dask-jobqueue is not installed")
    with pytest.raises(UsageError) as refused:
        start_cluster("slurm", 1, tmp_path, tmp_path)
    assert refused.value.code == "no-resources" and "CORES=8" in refused.value.next_step


def test_without_a_scheduler_of_jobs_no_worker_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dask_jobqueue", reason="the package dask-jobqueue is not installed")
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch
    with (
        dask.config.set({"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "1GB"}),
        pytest.raises(ResourceError, match="sbatch") as refused,
    ):
        start_cluster("slurm", 1, tmp_path, tmp_path)
    assert refused.value.code == "no-workers" and "settings of the cluster" in str(refused.value)


# Kubernetes


@pytest.fixture(params=["plain", "of the docs"])
def described(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Dask's configuration describes a cluster; where it is from."""
    pytest.importorskip("dask_kubernetes", reason="the package dask-kubernetes is not installed")
    settings: dict[str, Any] = {
        "kubernetes.image": "registry/kidseg:1",
        "kubernetes.env": {"THREADS": 8, "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "0.9"},
        "kubernetes.resources": {"limits": {"cpu": "8", "memory": "16Gi"}},
    }
    if request.param == "of the docs":
        (text,) = re.findall(
            r"```yaml\n(# /shared/kidseg-cluster.yaml.*?)```", DOCS.read_text(), re.S
        )
        file = tmp_path / "cluster.yaml"
        file.write_text(text)
        settings = {"kubernetes.custom-cluster-spec": str(file)}
    with dask.config.set(settings):
        yield request.param


def deployed(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What the operator makes of a DaskCluster, by its own functions."""
    controller = importlib.import_module("dask_kubernetes.operator.controller.controller")
    name, spec = found["metadata"]["name"], found["spec"]
    scheduler = spec["scheduler"]
    return [
        controller.build_scheduler_deployment_spec(name, scheduler["spec"], {}, {}),
        controller.build_scheduler_service_spec(name, scheduler["service"], {}, {}),
        controller.build_worker_deployment_spec(
            f"{name}-default", "kidseg", name, "0123456789", spec["worker"]["spec"], {}, {}
        ),
    ]


def test_kubernetes_accepts_what_the_operator_makes(described: str) -> None:
    """By its published schemas, which refuse unknown fields."""
    validator = pytest.importorskip("kubernetes_validate")
    objects = deployed(cluster_object(3))
    assert [each["kind"] for each in objects] == ["Deployment", "Service", "Deployment"]
    for each in objects:
        validator.validate(each, validator.latest_version(), strict=True)
    wrong = json.loads(json.dumps(objects[2]))
    wrong["spec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, validator.latest_version(), strict=True)


def test_a_cluster_of_kubernetes_has_what_kidseg_needs(described: str) -> None:
    validation = importlib.import_module("dask_kubernetes.operator.validation")
    one, other = cluster_object(3), cluster_object(3)
    assert one["metadata"]["name"] != other["metadata"]["name"], "runs do not share a cluster"
    validation.validate_cluster_name(one["metadata"]["name"])
    assert (one["apiVersion"], one["kind"]) == ("kubernetes.dask.org/v1", "DaskCluster")
    spec = one["spec"]
    assert spec["worker"]["replicas"] == 3 and spec["idleTimeout"] == 600
    scheduler, service, worker = deployed(one)
    labels = scheduler["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items(), "the service finds the scheduler"
    (container,) = worker["spec"]["template"]["spec"]["containers"]
    words = container["args"]
    assert words[words.index("--nthreads") + 1] == "1"
    assert [word for word in words if "dashboard" in word and word[-1] == "d"][-1] == (
        "--no-dashboard"
    )
    for each in (scheduler, worker):
        (container,) = each["spec"]["template"]["spec"]["containers"]
        names = [variable["name"] for variable in container["env"]]
        assert len(names) == len(set(names))
        assert not [name for name in names if "HTTP" in name], "asked for its health by HTTP"
        assert {name for name in _environment() if "HTTP" not in name} <= set(names)
        assert all(isinstance(variable["value"], str) for variable in container["env"])


@pytest.mark.parametrize("own", ["/nowhere/cluster.yaml", {"spec": {}}, ["a"], "text"])
def test_no_description_of_a_cluster_is_said(own: Any, tmp_path: Path) -> None:
    pytest.importorskip("dask_kubernetes", reason="the package dask-kubernetes is not installed")
    if own == "text":
        own = str(tmp_path / "cluster.yaml")
        Path(own).write_text("a: [")
    with (
        dask.config.set({"kubernetes.custom-cluster-spec": own}),
        pytest.raises(UsageError, match="custom-cluster-spec") as error,
    ):
        cluster_object(1)
    assert error.value.code == "bad-workers"
