"""Checksums of file contents. Names and dates do not count."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["joint_sha256", "sha256_of", "sha256_of_all"]


def sha256_of(path: Path) -> str:
    """SHA-256 digest of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_all(paths: Iterable[Path]) -> str:
    """Joint digest of files in the given order; the files of a folder are sorted by name.

    A file that is listed twice counts twice. Without files it is the digest of no bytes.
    """
    return joint_sha256(
        sha256_of(file)
        for path in paths
        for file in (sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path])
    )


def joint_sha256(digests: Iterable[str]) -> str:
    """SHA-256 of SHA-256 digests, each in hexadecimal, in the given order."""
    joint = hashlib.sha256()
    for digest in digests:
        joint.update(bytes.fromhex(digest))
    return joint.hexdigest()
