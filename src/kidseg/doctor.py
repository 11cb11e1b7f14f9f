"""`kidseg doctor`: does kidseg work on this machine, and with what?"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kidseg.body import body_mask
from kidseg.config import PhantomConfig, UNetConfig
from kidseg.device import choose_device, has_pytorch
from kidseg.errors import InputError, KidsegError, ResourceError
from kidseg.geometry import Volume
from kidseg.io import read, save
from kidseg.io.checks import available_memory_bytes
from kidseg.io.dicom_write import write_series
from kidseg.io.orientation import canonical
from kidseg.nets import UNet
from kidseg.phantom import make_patient
from kidseg.provenance import provenance

__all__ = ["DECODERS", "EXTRAS", "Checkup", "examine"]

LIBRARIES = ("scipy", "nibabel", "isal", "pydicom", "safetensors", "pydantic", "matplotlib")

DECODERS = {
    "pyjpegls": "JPEG-LS",
    "python-gdcm": "lossless JPEG",
    "pylibjpeg": "JPEG 2000, by the next",
    "pylibjpeg-openjpeg": "JPEG 2000",
}
"""Packages with which pydicom reads compressed DICOM, and what each decodes."""

EXTRAS = {
    "train": (("batchgeneratorsv2",), 'nnU-Net\'s own augmentation (setting augment = "nnunet")'),
    "dicom": (("highdicom", "contourpy"), "DICOM SEG and RTSTRUCT"),
    "pacs": (
        ("dicomweb-client", "pynetdicom", "requests"),
        "the hospital's archive: kidseg dicomweb and kidseg node",
    ),
    "serve": (
        ("fastapi", "starlette", "uvicorn", "python-multipart"),
        "the server: kidseg serve",
    ),
    "mesh": (("scikit-image", "trimesh"), "surfaces: STL, OBJ, GLB"),
    "cluster": (
        ("dask", "distributed", "cryptography"),
        "several scans at a time: --jobs and --cluster",
    ),
    "onnx": (
        ("onnx", "onnxscript", "onnxruntime"),
        "networks as ONNX graphs: kidseg export-onnx, and models that it wrote",
    ),
    "clinic": (
        ("highdicom", "contourpy", "scikit-image", "trimesh", "dicomweb-client", "pynetdicom"),
        "all that a clinic needs: the extras dicom, mesh and pacs",
    ),
}
"""{extra: (its packages, what it is for)}: installed with pip install 'kidseg[EXTRA]'."""

_LEAST_FREE_BYTES = 100 * 2**20
_GB = 1e9
_NETWORK_TOLERANCE = 0.05
"""Of logits of about 1, computed in reduced precision."""
_FAILURES = (
    *(ArithmeticError, AttributeError, ImportError, LookupError, MemoryError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
_SELF_TEST = PhantomConfig(size=32, max_slices=6, slice_mm=(4.0, 5.0), ages_years=(2.0, 6.0))


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What was found.

    Attributes:
        facts: plain data: versions, host, date, PyTorch, libraries, decoders, extras, device,
            threads, memory, folders, tests.
        problems: in the order in which they were found.
    """

    facts: Mapping[str, Any]
    problems: tuple[KidsegError, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        problems = [problem.as_finding().as_dict() for problem in self.problems]
        return {"sound": not self.problems, "problems": problems, **self.facts}


def examine(device: str = "auto", *, folders: Sequence[Path] | None = None) -> Checkup:
    """Examine installation, devices, memory, space, and read and write a digital patient.

    Without PyTorch, the starter segments that patient; else a network of random weights is run.

    Args:
        device: to test the network on; see `choose_device`.
        folders: whose space and permissions are examined; by default that of temporary files and
            the current one.
    """
    problems: list[KidsegError] = []

    def attempt(test: Callable[[], Any]) -> Any:
        try:
            return test()
        except KidsegError as error:
            problems.append(error)
            return None

    if folders is None:
        folders = list(dict.fromkeys((Path(tempfile.gettempdir()), Path.cwd())))
    attempt(_check_temporary)
    decoders = {name: _installed(name) for name in DECODERS}
    attempt(lambda: _check_decoders(decoders))
    memory = available_memory_bytes()
    chosen = attempt(lambda: choose_device(device)) or choose_device("cpu")
    facts = {
        **provenance(),
        "pytorch": has_pytorch(),
        "libraries": {name: _installed(name) for name in LIBRARIES},
        "decoders": decoders,
        "extras": {
            extra: {"installed": all(map(_installed, packages)), "for": purpose}
            for extra, (packages, purpose) in EXTRAS.items()
        },
        "device": {"name": str(chosen.torch), "precision": chosen.precision},
        "threads": {"torch": torch.get_num_threads(), "usable_cores": _usable_cores()},
        "memory_available_gb": None if memory is None else round(memory / _GB, 1),
        "folders": [
            {"path": str(path), "free_gb": attempt(partial(_free_gb, path))} for path in folders
        ],
        "tests": [_timed(name, test, attempt) for name, test in _tests(chosen.torch).items()],
    }
    return Checkup(facts=facts, problems=tuple(problems))


def _installed(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _check_decoders(found: Mapping[str, str | None]) -> None:
    left_out = set() if has_pytorch() else {"python-gdcm"}
    if missing := [k for k, version in found.items() if version is None and k not in left_out]:
        raise ResourceError(
            f"compressed DICOM cannot be read in full: {', '.join(missing)} is not installed",
            next_step=f"Run: pip install {' '.join(missing)}",
            code="decoder-missing",
        )


def _check_temporary() -> None:
    """Check that temporary files go where the environment wants them; else Python chooses."""
    used = tempfile.gettempdir()
    named = next((name for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)), None)
    if named is None or Path(os.environ[named]).resolve() == Path(used).resolve():
        return
    raise InputError(
        f"{named} is set to this folder, but it cannot be written to; temporary files go to {used}",
        path=os.environ[named],
        next_step=f"Create the folder, or set {named} to one that you may write to.",
        code="not-writable",
    )


def _usable_cores() -> int | None:
    """Cores that this process may use, which may be fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _free_gb(path: Path) -> float:
    """Free space of a folder in GB, after writing to it."""
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(4096))
            file.flush()
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise InputError(
            f"cannot be written to: {error.strerror}",
            path=path,
            next_step="Set TMPDIR to, or work in, a folder that you may write to.",
            code="not-writable",
        ) from error
    if free < _LEAST_FREE_BYTES:
        raise ResourceError(
            f"only {free / 2**20:.0f} MiB are free",
            path=path,
            next_step="Free some space, or set TMPDIR to another disk.",
            code="disk-full",
        )
    return round(free / _GB, 1)


def _timed(name: str, test: Callable[[], None], attempt: Callable[..., Any]) -> dict[str, Any]:
    start = time.perf_counter()
    passed = attempt(lambda: _passed(name, test))
    return {"test": name, "passed": bool(passed), "seconds": round(time.perf_counter() - start, 2)}


def _passed(name: str, test: Callable[[], None]) -> bool:
    """Run a test; whatever goes wrong in it is a problem of this machine or installation."""
    try:
        test()
    except KidsegError:
        raise
    except _FAILURES as error:
        raise _failed(name, error) from error
    return True


def _failed(name: str, error: BaseException) -> KidsegError:
    return ResourceError(
        f"the self test '{name}' failed: {type(error).__name__}: {error}",
        next_step="Install kidseg again with constraints.txt; if it stays, report this message.",
        code="self-test-failed",
    )


def _tests(device: torch.device) -> dict[str, Callable[[], None]]:
    """The self tests, on one small digital patient."""

    @cache
    def scan() -> Volume:
        made = make_patient(_SELF_TEST, seed=1, index=0).scan
        return Volume(made.data.round(), made.grid)

    def nifti() -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "scan.nii.gz"
            save(scan(), file)
            _check_equal(read(file).volume, scan())

    def compressed_dicom() -> None:
        from pydicom import dcmread
        from pydicom.uid import JPEG2000Lossless

        with tempfile.TemporaryDirectory() as folder:
            for file in write_series(scan(), Path(folder) / "series", facts={"seed": "1"}):
                image = dcmread(file)
                image.compress(JPEG2000Lossless)
                image.save_as(file)
            _check_equal(read(Path(folder) / "series").volume, scan())

    def body() -> None:
        share = float(body_mask(scan()).data.float().mean())
        if not 0.05 < share < 0.95:
            raise ValueError(f"the body is {share:.0%} of the scan")

    def network() -> None:
        torch.manual_seed(0)
        net = UNet(UNetConfig(size=32, features=4), 1, 3).eval()
        image = scan().data[0, :2, None].float() / 1000
        with torch.no_grad():
            expected = net(image)[0]
            found = net.to(device)(image.to(device))[0].cpu()
        worst = float((found - expected).abs().max())
        if not worst < _NETWORK_TOLERANCE:
            raise ValueError(f"{device} differs from the processor by {worst:.3g}")

    def starter() -> None:
        from kidseg.segment import load_predictor

        image = canonical(scan())
        if not load_predictor(None, "cpu")(image).labels.grid.same_as(image.grid):
            raise ValueError("the labels are not on the scan's voxels")

    return {
        "write and read NIfTI": nifti,
        "write and read compressed DICOM": compressed_dicom,
        "find the body of a digital patient": body,
        **({"run a network": network} if has_pytorch() else {"segment it by the starter": starter}),
    }


def _check_equal(found: Volume, written: Volume) -> None:
    a, b = canonical(found), canonical(written)
    if not a.grid.same_as(b.grid, 1e-3):
        raise ValueError("the position has changed")
    if not torch.equal(a.data.float(), b.data.float()):
        raise ValueError("the values have changed")
