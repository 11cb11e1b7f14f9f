"""Digests of files: what they are is fixed, for stamps of finished studies hold them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kidseg.cases import Case
from kidseg.io.content import joint_sha256, sha256_of, sha256_of_all
from kidseg.study.partition import _content as content_in_study
from kidseg.train.case_selection import digests_of


def raw(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def files(folder: Path) -> tuple[Path, Path, Path]:
    """Two files, and a folder with two more."""
    series = folder / "series"
    (series / "deep").mkdir(parents=True)
    (series / "deep" / "1.dcm").write_bytes(b"first")
    (series / "z.dcm").write_bytes(b"last")
    for name in ("image", "labels"):
        (folder / name).write_bytes(name.encode())
    return folder / "image", folder / "labels", series


def test_digests_by_hand(tmp_path: Path) -> None:
    image, labels, series = files(tmp_path)
    assert sha256_of(image) == raw(b"image").hex()
    assert sha256_of_all([image]) == raw(raw(b"image")).hex()
    assert sha256_of_all([series]) == raw(raw(b"first") + raw(b"last")).hex()
    whole = raw(raw(b"image") + raw(b"first") + raw(b"last") + raw(b"labels")).hex()
    assert sha256_of_all([image, series, labels]) == whole
    assert sha256_of_all([]) == joint_sha256([]) == raw(b"").hex()


def test_names_and_dates_do_not_count_but_order_does(tmp_path: Path) -> None:
    image, labels, _ = files(tmp_path)
    before = sha256_of_all([image, labels])
    assert sha256_of_all([labels, image]) != before
    assert sha256_of_all([image.rename(tmp_path / "other"), labels]) == before


def test_digests_of_cases_in_stamps_stay_what_they_were(tmp_path: Path) -> None:
    """A file of two channels counts twice in a study's stamp, and once in a training's record."""
    image, labels, series = files(tmp_path)
    once = Case(id="a", images=(image, series), labels=labels, patient="a")
    joint = raw(raw(b"image") + raw(b"first") + raw(b"last") + raw(b"labels")).hex()
    assert content_in_study(once) == digests_of(once)[1] == joint
    twice = Case(id="b", images=(image, image), labels=None, patient="b")
    assert content_in_study(twice) == raw(2 * raw(b"image")).hex()
    assert digests_of(twice)[1] == raw(raw(b"image")).hex()
