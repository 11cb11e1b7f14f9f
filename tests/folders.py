"""What is in folders."""

from __future__ import annotations

from pathlib import Path


def touch(folder: Path, *names: str) -> list[Path]:
    """Empty files, in folders that are made."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder and its folders: {relative path: content}."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def names_in(folder: Path) -> set[str]:
    """Names of the files and folders in a folder."""
    return {path.name for path in folder.iterdir()}
