"""Fetch a file of an npm package, of one version, checked against its integrity hash.

The viewer of the report, NiiVue, is not in the repository: `make` fetches it, and so does

    python -m kidseg.report.vendor

before a wheel is built or in an installation without it. Requires npm, which decides from where;
imports the standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FOLDER", "NIIVUE", "NpmFile", "fetch"]

FOLDER = Path(__file__).parent / "vendored"
"""Where the fetched files of the report lie; package data."""


@dataclass(frozen=True, kw_only=True)
class NpmFile:
    """A file of an npm package.

    Attributes:
        package: its name.
        version: exactly this.
        integrity: of the archive, as npm's lock files have it: base64 of its SHA-512.
        member: the file in the archive.
        sha256: of the file.
        licence: of the package.
    """

    package: str
    version: str
    integrity: str
    member: str
    sha256: str
    licence: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.member.rpartition("/")[2]


NIIVUE = NpmFile(
    package="@niivue/niivue",
    version="0.69.0",
    integrity="YMjQvJgD1W2b7DuoxkwlC4VxbrgIePRJ5qyQzXKxi2v2MBVg285P/CIQyg46oDDGDIcaNlbd+MhtO/edMbXJkA==",
    member="package/dist/niivue.umd.js",
    sha256="47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af",
    licence="BSD-2-Clause, copyright (c) 2021 Niivue",
)
"""The viewer; https://niivue.com."""


def fetch(file: NpmFile, folder: Path) -> Path:
    """Fetch a file into a folder; nothing is done if it is there already.

    Raises:
        RuntimeError: npm is missing or fails, or the archive or file is not the expected one.
    """
    target = folder / file.name
    if target.is_file() and _sha256(target.read_bytes()) == file.sha256:
        return target
    content = _member(_archive(file), file)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    temporary.write_bytes(content)
    temporary.replace(target)
    return target


def _archive(file: NpmFile) -> bytes:
    """The package's archive, by npm, from wherever npm is configured to take packages."""
    wanted = f"{file.package}@{file.version}"
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", wanted, "--ignore-scripts", "--pack-destination", folder]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
        except FileNotFoundError:
            raise RuntimeError(f"{wanted} is fetched by npm, which is not installed") from None
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"npm could not fetch {wanted}: {error.stderr.strip()}") from error
        archives = list(Path(folder).glob("*.tgz"))
        if len(archives) != 1:
            raise RuntimeError(f"npm wrote {len(archives)} archives for {wanted}")
        return archives[0].read_bytes()


def _member(archive: bytes, file: NpmFile) -> bytes:
    """The file in the archive, after both hashes were checked."""
    digest = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if digest != file.integrity:
        raise RuntimeError(f"{file.package}: the archive is not that of {file.version}: {digest}")
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as opened:
        found = opened.extractfile(file.member)
        content = b"" if found is None else found.read()
    if _sha256(content) != file.sha256:
        raise RuntimeError(f"{file.package}: {file.member} is not the expected file")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{fetch(NIIVUE, FOLDER)}\n")
    except RuntimeError as failed:
        sys.exit(f"{failed}. Without it kidseg writes no HTML reports.")
