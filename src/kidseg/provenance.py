"""Where and when a result was computed: versions, machine, date."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["RESEARCH_USE", "host", "provenance", "versions"]

RESEARCH_USE = "Research use only. Not a medical device."
"""The intended use, in every file that kidseg writes for people."""

_PACKAGES = ("kidseg", "torch", "numpy")
_CPU_INFO = Path("/proc/cpuinfo")


def provenance() -> dict[str, Any]:
    """The record of a result: {"versions", "host", "date"}, to be merged into its JSON file.

    "date" is UTC in ISO 8601, with seconds; equal runs differ in it. No user name, no path.
    """
    return {
        "versions": versions(),
        "host": host(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str | None]:
    """Versions of Python, kidseg, torch and numpy; None if a package has none."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def host() -> dict[str, Any]:
    """Name, operating system, processor, its cores, and GPUs of this machine.

    "gpu" lists the GPUs that torch can use; empty if torch has not been imported.
    """
    return {
        "name": platform.node(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": _gpus(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # on the path, but not installed
        return getattr(sys.modules.get(package), "__version__", None)


def _cpu() -> str:
    """The model of the processor; its architecture if the system does not tell."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def _gpus() -> list[str]:
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return []
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return ["Apple GPU (MPS)"] if torch.backends.mps.is_available() else []
