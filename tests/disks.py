"""Disks that are really full: small file systems in memory."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["mounted", "small_disk"]


def mounted(folder: Path, options: str) -> bool:
    """Mount a file system on a folder; False where that is not possible."""
    command = ["mount", "-t", "tmpfs", "-o", options, "kidseg-test", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes, mounted on a new folder; its files are gone afterwards."""
    folder.mkdir(exist_ok=True)
    if not mounted(folder, f"size={size}"):
        pytest.skip("file systems cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
