"""The series of an archive and how far each is, in an SQLite file; whole whatever is killed.

A series is known by its UID and a digest of its images: it is processed once, and once more only if
images were added; what was not sent of it before that is left out. A step that was interrupted is
done again; results are made before any is sent, so sending again sends the same objects.
"""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kidseg.serve.database import Database

__all__ = ["IMAGES_MISSING", "OPEN", "Series", "SeriesQueue", "State", "digest_of"]

State = Literal["arriving", "known", "here", "segmented", "sent", "aside", "replaced"]
OPEN: tuple[State, ...] = ("known", "here", "segmented")
"""States with a next step: fetch, segment, send."""

IMAGES_MISSING = "images-missing"
"""Code of a series of which only a part is here."""

_LONGEST_S = 300.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    study TEXT NOT NULL,
    series TEXT NOT NULL,
    digest TEXT NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,
    code TEXT NOT NULL DEFAULT '',
    UNIQUE (series, digest)
);
CREATE TABLE IF NOT EXISTS images (
    series TEXT NOT NULL,
    image TEXT NOT NULL,
    PRIMARY KEY (series, image)
);
"""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series in the table.

    Attributes:
        number: in the order of arrival; names its folder.
        study: Study Instance UID.
        series: Series Instance UID.
        digest: of its images; see `digest_of`.
        state: "arriving": its images are being moved here; "known": to be fetched; "here": to be
            segmented; "segmented": to be sent; "sent"; "aside": given up; "replaced": it has other
            images now, and is removed.
        attempts: failures of the present step.
        code: of the last failure.
    """

    number: int
    study: str
    series: str
    digest: str
    state: State
    attempts: int
    code: str


def digest_of(instances: Iterable[str]) -> str:
    """SHA-256 of the SOP Instance UIDs of a series, in any order."""
    return hashlib.sha256("\n".join(sorted(set(instances))).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class SeriesQueue:
    """The series in a folder.

    Attributes:
        folder: has series.sqlite and a folder for the files of each series.
        wait_s: before the second attempt; twice as long before each further one, at most 5 minutes.
    """

    folder: Path
    wait_s: float = 5.0

    @classmethod
    def opened(cls, folder: Path, wait_s: float = 5.0) -> SeriesQueue:
        """Open the table of a folder, or begin one, and remove what a kill left of what is over.

        Raises:
            ModelError: "damaged-table".
            ResourceError: "disk-full".
        """
        (folder / "series").mkdir(parents=True, exist_ok=True, mode=0o700)
        queue = cls(folder=folder, wait_s=wait_s)
        queue._database.create(_SCHEMA)
        for each in queue.all():
            if each.state == "sent":
                queue.forget_files(each.number)
            elif each.state == "replaced":
                queue._remove(each.number)
        return queue

    @property
    def _database(self) -> Database:
        return Database(self.folder / "series.sqlite")

    def place(self, number: int) -> Path:
        """The folder of the files of a series."""
        return self.folder / "series" / f"{number:06d}"

    def add(self, study: str, series: str, digest: str, state: State) -> int | None:
        """Add a series; its number, or None if it is known with these images."""
        with self._database.writing() as base:
            row = base.execute(
                "INSERT OR IGNORE INTO series (study, series, digest, state) VALUES (?, ?, ?, ?)",
                (study, series, digest, state),
            )
            return row.lastrowid if row.rowcount else None

    def known(self, series: str, digest: str) -> Series | None:
        """A series with these images; None if it is not known."""
        with self._database.connected() as base:
            row = base.execute(
                "SELECT * FROM series WHERE series = ? AND digest = ?", (series, digest)
            ).fetchone()
        return None if row is None else _series(row)

    def next_due(self) -> Series | None:
        """The first series with a step to be done now."""
        now = time.time()
        with self._database.connected() as base:
            row = base.execute(
                f"SELECT * FROM series WHERE state IN ({_marks(OPEN)})"  # noqa: S608
                " AND (due <= ? OR due > ?) ORDER BY number",
                (*OPEN, now, now + _LONGEST_S),  # due later than ever: the clock was set back
            ).fetchone()
        return None if row is None else _series(row)

    def all(self) -> list[Series]:
        """All series, in the order of arrival."""
        with self._database.connected() as base:
            return [_series(row) for row in base.execute("SELECT * FROM series ORDER BY number")]

    def advance(self, number: int, state: State) -> None:
        """A step was done."""
        with self._database.writing() as base:
            base.execute(
                "UPDATE series SET state = ?, attempts = 0, due = 0, code = '' WHERE number = ?",
                (state, number),
            )

    def put_off(self, series: Series, code: str) -> float:
        """A step failed: it is done again after a while; seconds until then."""
        wait = min(_LONGEST_S, self.wait_s * 2.0**series.attempts)
        with self._database.writing() as base:
            base.execute(
                "UPDATE series SET attempts = ?, due = ?, code = ? WHERE number = ?",
                (series.attempts + 1, time.time() + wait, code, series.number),
            )
        return wait

    def set_aside(self, number: int, code: str) -> None:
        """Give up a series. Its files stay, to be looked at."""
        with self._database.writing() as base:
            base.execute(
                "UPDATE series SET state = 'aside', code = ? WHERE number = ?", (code, number)
            )

    def replace_others(self, series: str, digest: str) -> list[int]:
        """A series has these images now: remove what waits or was set aside with other ones.

        Returns:
            Numbers of what was removed.
        """
        others = [
            each.number
            for each in self.all()
            if each.series == series and each.digest != digest and each.state in (*OPEN, "aside")
        ]
        for number in others:
            self.advance(number, "replaced")  # so that nothing stays if this is interrupted
            self._remove(number)
        return others

    def retry_aside(self, state: State) -> list[int]:
        """Do the series that were set aside again, from this state on; their numbers.

        Left out are those with images missing, and, where images are not fetched again, those
        without images.
        """
        found = [
            each.number
            for each in self.all()
            if each.state == "aside" and each.code != IMAGES_MISSING
            if state == "known" or any(self.place(each.number).glob("images/*"))
        ]
        for number in found:
            self.advance(number, state)
        return found

    def images(self, series: str) -> frozenset[str]:
        """Names of all images of a series that have arrived; see `remember`."""
        with self._database.connected() as base:
            rows = base.execute("SELECT image FROM images WHERE series = ?", (series,))
            return frozenset(row["image"] for row in rows)

    def remember(self, series: str, images: Iterable[str]) -> None:
        """Images of a series have arrived."""
        with self._database.writing() as base:
            base.executemany(
                "INSERT OR IGNORE INTO images VALUES (?, ?)", [(series, name) for name in images]
            )

    def forget_files(self, number: int) -> None:
        """Remove the files of a series whose results were sent."""
        shutil.rmtree(self.place(number), ignore_errors=True)

    def _remove(self, number: int) -> None:
        self.forget_files(number)
        with self._database.writing() as base:
            base.execute("DELETE FROM series WHERE number = ?", (number,))


def _series(row: sqlite3.Row) -> Series:
    return Series(**{name: row[name] for name in Series.__dataclass_fields__})


def _marks(values: Iterable[str]) -> str:
    return ", ".join("?" for _ in values)
