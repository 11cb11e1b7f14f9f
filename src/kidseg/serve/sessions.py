"""The sessions of a server: images that clients keep for a while, each for itself alone."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from kidseg.serve.database import Database
from kidseg.serve.images import FILE
from kidseg.serve.job import new_id
from kidseg.serve.refusals import removed

__all__ = ["Session", "SessionStore"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    file TEXT NOT NULL,
    created REAL NOT NULL,
    used REAL NOT NULL
);
"""


@dataclass(frozen=True, kw_only=True)
class Session:
    """An image that is kept for a while, for its client alone."""

    id: str
    path: Path
    created: float
    used: float


@dataclass(frozen=True, kw_only=True)
class SessionStore:
    """The sessions in a folder; for any number of threads.

    Attributes:
        folder: has `FILE` and the folders of sessions.
    """

    folder: Path

    @classmethod
    def opened(cls, folder: Path) -> SessionStore:
        """Open the sessions of a folder; folders that the table does not name are removed."""
        store = cls(folder=folder)
        store.base.create(_SCHEMA)
        store.base.remove_unknown(folder / "sessions", "sessions")
        return store

    @property
    def base(self) -> Database:
        """The file of the table."""
        return Database(self.folder / FILE)

    def begin(self, owner: str, file: Path) -> Session:
        """Keep an image for its client; the file is moved."""
        session = new_id()
        place = self.folder / "sessions" / session
        place.mkdir(mode=0o700)
        kept = file.rename(place / f"image{''.join(file.suffixes)}")
        now = time.time()
        with self.base.writing() as base:
            base.execute(
                "INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", (session, owner, kept.name, now, now)
            )
        return Session(id=session, path=kept, created=now, used=now)

    def get(self, session: str, owner: str) -> Session:
        """A session of this client, which is used now.

        Raises:
            RefusedError: 404.
        """
        with self.base.writing() as base:
            base.execute("UPDATE sessions SET used = ? WHERE id = ?", (time.time(), session))
            row = base.execute(
                "SELECT * FROM sessions WHERE id = ? AND owner = ?", (session, owner)
            ).fetchone()
        if row is None:
            raise removed("session")
        path = self.folder / "sessions" / row["id"] / row["file"]
        return Session(id=row["id"], path=path, created=row["created"], used=row["used"])

    def end(self, session: Session) -> None:
        """Remove a session and its image."""
        with self.base.writing() as base:
            base.execute("DELETE FROM sessions WHERE id = ?", (session.id,))
        shutil.rmtree(session.path.parent, ignore_errors=True)

    def expire(self, unused_s: float, set_s: float = 0.0) -> int:
        """Remove those that were not used for long; their number.

        Args:
            unused_s: after which they are removed.
            set_s: by which the clock was set forward; see `kidseg.serve.set_clock`.
        """
        now = time.time()
        with self.base.writing() as base:
            if set_s:
                base.execute("UPDATE sessions SET used = used + ?", (set_s,))
            # If the clock was set back, they were used now.
            base.execute("UPDATE sessions SET used = ? WHERE used > ?", (now, now))
            rows = base.execute(
                "DELETE FROM sessions WHERE used <= ? RETURNING id", (now - unused_s,)
            ).fetchall()
        for row in rows:
            shutil.rmtree(self.folder / "sessions" / row["id"], ignore_errors=True)
        return len(rows)
