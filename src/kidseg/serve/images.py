"""The images of a server and their labels: what clients label, and what is learned from.

The images are one data set, which all clients share. A client may name an image; the server makes
the names of files, and an id of its own.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kidseg.io.content import sha256_of
from kidseg.serve.database import Database
from kidseg.serve.job import new_id
from kidseg.serve.refusals import RefusedError, no_such

__all__ = ["FILE", "FINAL", "ORIGINAL", "Image", "ImageStore", "LabelEntry"]

FINAL = "final"
"""Tag of labels that a person has approved."""

ORIGINAL = "original"
"""Tag of labels that a model has made."""

Role = Literal["learned", "kept"]

FILE = "images.sqlite"
"""Name of the file with the tables of images and sessions."""

_NAME = 256
_TAG = 64
_INFO = 2**17
_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    file TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    created REAL NOT NULL,
    info TEXT NOT NULL,
    role TEXT,
    model TEXT,
    uncertainty REAL,
    distance_sd REAL
);
CREATE TABLE IF NOT EXISTS labels (
    image TEXT NOT NULL REFERENCES images (id),
    tag TEXT NOT NULL,
    file TEXT NOT NULL,
    created REAL NOT NULL,
    info TEXT NOT NULL,
    PRIMARY KEY (image, tag)
);
CREATE TABLE IF NOT EXISTS models (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    file TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    created REAL NOT NULL,
    facts TEXT NOT NULL
);
"""


@dataclass(frozen=True, kw_only=True)
class LabelEntry:
    """Labels of an image.

    Attributes:
        path: of the file.
        info: what their client or the server says of them.
        created: seconds since 1970.
    """

    path: Path
    info: Mapping[str, Any]
    created: float


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image.

    Attributes:
        id: made by the server.
        name: by its client; the id, if it gave none.
        path: of the file.
        sha256: of its content.
        created: seconds since 1970.
        info: what its client says of it.
        role: what the labels are for: a model has learned from them, or they are kept out of every
            training to compare models on; None: not decided yet.
        model: digest of the model that `uncertainty` and `distance_sd` are of.
        uncertainty: see `kidseg.serve.scan_process.uncertainty_of`.
        distance_sd: from the training range of the model.
        labels: {tag: labels}.
    """

    id: str
    name: str
    path: Path
    sha256: str
    created: float
    info: Mapping[str, Any]
    role: Role | None
    model: str | None
    uncertainty: float | None
    distance_sd: float | None
    labels: Mapping[str, LabelEntry]


@dataclass(frozen=True, kw_only=True)
class ImageStore:
    """The images in a folder; for any number of threads.

    Attributes:
        folder: has `FILE` and the folders of images.
    """

    folder: Path

    @classmethod
    def opened(cls, folder: Path) -> ImageStore:
        """Open the images of a folder; folders that the table does not name are removed."""
        store = cls(folder=folder)
        store.base.create(_SCHEMA)
        store.base.remove_unknown(folder / "images", "images")
        return store

    @property
    def base(self) -> Database:
        """The file of the tables."""
        return Database(self.folder / FILE)

    # ---- images --------------------------------------------------------------------------------

    def add(self, name: str | None, file: Path, info: Mapping[str, Any]) -> Image:
        """Add an image, or replace the one of this name, unless a person has labelled that.

        The same image again is the one that is there, with its labels.

        Args:
            name: by the client; None: the id.
            file: on the same disk; it is moved.
            info: what the client says of it.

        Raises:
            RefusedError: 422 "bad-name"; 409 "image-labelled".
        """
        image = new_id()
        name = name or image
        if len(name) > _NAME or not name.isprintable():
            raise _bad_name(f"an image has a name of 1 to {_NAME} printable characters")
        place = self.folder / "images" / image
        place.mkdir(mode=0o700)
        kept = place / f"image{''.join(file.suffixes)}"
        try:
            digest = sha256_of(file)
            file.rename(kept)
            with self.base.writing() as base:
                old = base.execute("SELECT * FROM images WHERE name = ?", (name,)).fetchone()
                if old is not None and old["sha256"] == digest:
                    labels = base.execute("SELECT * FROM labels WHERE image = ?", (old["id"],))
                    same = self._image(old, labels.fetchall())
                    shutil.rmtree(place)
                    return same
                if old is not None:
                    _check_unlabelled(base, old["id"])
                    _forget(base, old["id"])
                base.execute(
                    "INSERT INTO images (id, name, file, sha256, created, info)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (image, name, kept.name, digest, time.time(), json.dumps(dict(info))),
                )
                row = base.execute("SELECT * FROM images WHERE id = ?", (image,)).fetchone()
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        if old is not None:
            shutil.rmtree(self.folder / "images" / old["id"], ignore_errors=True)
        return self._image(row, [])  # others may have replaced it already

    def get(self, image: str) -> Image:
        """An image by its id or its name.

        Raises:
            RefusedError: 404.
        """
        with self.base.connected() as base:
            row = base.execute(
                "SELECT * FROM images WHERE id = ? OR name = ? ORDER BY id = ? DESC",
                (image, image, image),
            ).fetchone()
            if row is None:
                raise no_such("image")
            labels = base.execute("SELECT * FROM labels WHERE image = ?", (row["id"],)).fetchall()
        return self._image(row, labels)

    def all(self) -> list[Image]:
        """All images, the oldest first."""
        with self.base.connected() as base:
            rows = base.execute("SELECT * FROM images ORDER BY number").fetchall()
            labels = base.execute("SELECT * FROM labels").fetchall()
        by_image: dict[str, list[Any]] = {}
        for label in labels:
            by_image.setdefault(label["image"], []).append(label)
        return [self._image(row, by_image.get(row["id"], [])) for row in rows]

    def remove(self, image: Image) -> None:
        """Remove an image and its labels."""
        with self.base.writing() as base:
            _forget(base, image.id)
        shutil.rmtree(self.folder / "images" / image.id, ignore_errors=True)

    def describe(self, image: Image, info: Mapping[str, Any]) -> None:
        """Add to what is said of an image.

        Raises:
            RefusedError: 413 "too-large": that is too much.
        """
        text = json.dumps({**image.info, **info})
        if len(text) > _INFO:
            raise RefusedError(
                413,
                f"more than {_INFO} characters are said of the image",
                code="too-large",
                next_step="Say less of it, or remove it and add it again.",
            )
        with self.base.writing() as base:
            base.execute("UPDATE images SET info = ? WHERE id = ?", (text, image.id))

    def judge(self, image: str, model: str, uncertainty: float, distance_sd: float) -> None:
        """Record how a model did on an image."""
        with self.base.writing() as base:
            base.execute(
                "UPDATE images SET model = ?, uncertainty = ?, distance_sd = ? WHERE id = ?",
                (model, uncertainty, distance_sd, image),
            )

    def assign(self, role: Role, images: list[str]) -> None:
        """Decide what the labels of images are for, from now on."""
        with self.base.writing() as base:
            base.executemany(
                "UPDATE images SET role = ? WHERE id = ?", [(role, image) for image in images]
            )

    # ---- labels --------------------------------------------------------------------------------

    def save_label(self, image: Image, tag: str, file: Path, info: Mapping[str, Any]) -> LabelEntry:
        """Save labels of an image, instead of those of this tag.

        Args:
            image: of the labels.
            tag: such as `FINAL`.
            file: on the same disk; it is moved.
            info: what is said of them.

        Raises:
            RefusedError: 422 "bad-name"; 404: the image was removed meanwhile.
        """
        if not tag.isprintable() or not 1 <= len(tag) <= _TAG:
            raise _bad_name(f"a tag has 1 to {_TAG} printable characters")
        kept = image.path.with_name(f"labels-{new_id()}{''.join(file.suffixes)}")
        entry = LabelEntry(path=kept, info=dict(info), created=time.time())
        try:
            file.rename(kept)
        except FileNotFoundError:
            raise no_such("image") from None
        try:
            with self.base.writing() as base:
                if (
                    base.execute("SELECT 1 FROM images WHERE id = ?", (image.id,)).fetchone()
                    is None
                ):
                    raise no_such("image")
                old = base.execute(
                    "SELECT file FROM labels WHERE image = ? AND tag = ?", (image.id, tag)
                ).fetchone()
                base.execute(
                    "INSERT OR REPLACE INTO labels (image, tag, file, created, info)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (image.id, tag, kept.name, entry.created, json.dumps(entry.info)),
                )
        except BaseException:
            kept.unlink(missing_ok=True)
            raise
        if old is not None:
            kept.with_name(old["file"]).unlink(missing_ok=True)
        return entry

    def remove_label(self, image: Image, tag: str) -> None:
        """Remove the labels of a tag.

        Raises:
            RefusedError: 404.
        """
        if tag not in image.labels:
            raise no_such("label")
        with self.base.writing() as base:
            base.execute("DELETE FROM labels WHERE image = ? AND tag = ?", (image.id, tag))
        image.labels[tag].path.unlink(missing_ok=True)

    # ---- models --------------------------------------------------------------------------------

    def add_model(self, file: Path, sha256: str, facts: Mapping[str, Any]) -> None:
        """Record a model that is the current one from now on."""
        with self.base.writing() as base:
            base.execute(
                "INSERT INTO models (file, sha256, created, facts) VALUES (?, ?, ?, ?)",
                (file.name, sha256, time.time(), json.dumps(dict(facts))),
            )

    def model(self) -> Path | None:
        """The file of the model that was trained last and is better than those before."""
        with self.base.connected() as base:
            row = base.execute("SELECT file FROM models ORDER BY number DESC LIMIT 1").fetchone()
        return None if row is None else self.folder / "models" / row["file"]

    def _image(self, row: Any, labels: list[Any]) -> Image:
        content = dict(row)
        place = self.folder / "images" / content["id"]
        del content["number"]
        return Image(
            **{key: content[key] for key in content if key not in ("file", "info")},
            path=place / row["file"],
            info=json.loads(row["info"]),
            labels={
                label["tag"]: LabelEntry(
                    path=place / label["file"],
                    info=json.loads(label["info"]),
                    created=label["created"],
                )
                for label in labels
            },
        )


def _check_unlabelled(base: Any, image: str) -> None:
    labels = "SELECT 1 FROM labels WHERE image = ? AND tag = ?"
    if base.execute(labels, (image, FINAL)).fetchone() is not None:
        raise RefusedError(
            409,
            "another image of this name has labels that a person has submitted",
            code="image-labelled",
            next_step="Give the image another name, or remove the one that is there first.",
        )


def _forget(base: Any, image: str) -> None:
    base.execute("DELETE FROM labels WHERE image = ?", (image,))
    base.execute("DELETE FROM images WHERE id = ?", (image,))


def _bad_name(cause: str) -> RefusedError:
    return RefusedError(422, cause, code="bad-name", next_step="Choose another name.")
