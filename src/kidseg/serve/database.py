"""The SQLite files of a server: whole after a kill, safe for many threads."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kidseg.errors import ModelError
from kidseg.io.atomic import disk_full

__all__ = ["Database"]

# Without room for its shared memory, a table cannot even be read. Source: sqlite.org/rescode.html.
_FULL = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMMAP,
}


@dataclass(frozen=True)
class Database:
    """An SQLite file.

    Attributes:
        path: of the file.
    """

    path: Path

    def create(self, schema: str) -> None:
        """Create the tables that are missing."""
        with self.connected() as base:
            base.execute("PRAGMA journal_mode=WAL")
            base.executescript(schema)

    @contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        """A connection of this block.

        Raises:
            ResourceError: "disk-full".
            ModelError: "damaged-table": the file is not that of a server.
        """
        try:
            base = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            try:
                base.row_factory = sqlite3.Row
                base.execute("PRAGMA synchronous=FULL")
                yield base
            finally:
                base.close()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode in _FULL:
                raise disk_full(self.path) from error
            raise ModelError(
                f"this table cannot be used ({error})",
                path=self.path,
                code="damaged-table",
                next_step="Choose another folder, or move this file elsewhere.",
            ) from error

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other writer interleaves with; errors as `connected`."""
        with self.connected() as base:
            base.execute("BEGIN IMMEDIATE")
            try:
                yield base
            except BaseException:
                if base.in_transaction:  # a full disk has ended it
                    base.execute("ROLLBACK")
                raise
            base.execute("COMMIT")

    def remove_unknown(self, folder: Path, table: str) -> None:
        """Remove the folders whose names are no ids of a table; the folder of all is made."""
        folder.mkdir(exist_ok=True, mode=0o700)
        with self.connected() as base:
            known = {row["id"] for row in base.execute(f"SELECT id FROM {table}")}  # noqa: S608
        for path in folder.iterdir():
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)
