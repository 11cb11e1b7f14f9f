"""Sealed records: what was written, or an error."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kidseg.errors import ModelError
from kidseg.records import Record, canonical, checked, parsed, read_file, sealed, unsealed

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
contents = st.dictionaries(st.text().filter(lambda key: key != "sha256"), plain, max_size=4)


@given(contents)
def test_a_sealed_record_comes_back(content: dict[str, Any]) -> None:
    for indent in (None, 2):
        found = unsealed(json.dumps(sealed(content), indent=indent).encode())
        del found["sha256"]
        assert canonical(found) == canonical(content)


@given(contents, contents)
def test_the_seal_of_another_content_is_refused(one: dict[str, Any], two: dict[str, Any]) -> None:
    if canonical(one) == canonical(two):
        return
    mixed = {**two, "sha256": sealed(one)["sha256"]}
    with pytest.raises(ValueError, match="altered"):
        unsealed(json.dumps(mixed).encode())
    with pytest.raises(ValueError, match="altered"):
        unsealed(json.dumps(two).encode())


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"3", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 9999],
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parsed(text)


@dataclass(frozen=True, kw_only=True)
class Item(Record):
    name: str
    sizes: tuple[int, ...]
    share: float
    by_number: dict[int, str]


ITEM = {"name": "a", "sizes": [1, 2], "share": 1, "by_number": {"3": "c"}}


def test_fields_are_checked_and_named() -> None:
    assert checked(Item, ITEM) == Item(name="a", sizes=(1, 2), share=1.0, by_number={3: "c"})
    wrong: dict[str, list[object]] = {
        "name": [None, 3, ["a"]],
        "sizes": [None, "12", [1.5], ["1"], {"0": 1}, [True]],
        "share": ["1", None, float("nan"), float("inf"), True],
        "by_number": [[], {"x": "c"}, {"3": 4}],
        "other": [1],
    }
    for name, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                checked(Item, {**ITEM, name: value})
    for name in ITEM:
        with pytest.raises(ValueError, match=name):
            checked(Item, {key: value for key, value in ITEM.items() if key != name})
    for content in (None, 3, [], "x", {"name": object()}):
        with pytest.raises(ValueError, match=r"."):
            checked(Item, content)


def test_a_missing_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(ModelError, match="cannot be read") as error:
            read_file(path, code="damaged-thing", next_step="Restore it.")
        assert (error.value.code, error.value.path) == ("damaged-thing", str(path))
