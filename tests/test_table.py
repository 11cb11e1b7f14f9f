"""Tables fit a terminal, whatever is in them, and nothing of it is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kidseg.table import markdown_table, ranged, text_table, wrapped

CELL = st.text("abc+-. 0123456789", min_size=1, max_size=24).map(lambda text: text.strip() or "-")
KEY = st.text("abc. 0", min_size=1, max_size=12).map(lambda text: text.strip() or "-")
NAME = st.text("abcdefgh_", min_size=1, max_size=90)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]], int]:
    keys = draw(st.integers(1, 2))
    columns = draw(st.integers(1, 9))
    head = draw(st.lists(KEY, min_size=keys, max_size=keys))
    head += draw(st.lists(CELL, min_size=columns, max_size=columns))
    row = st.tuples(
        st.lists(NAME, min_size=keys, max_size=keys),
        st.lists(CELL, min_size=columns, max_size=columns),
    ).map(lambda parts: parts[0] + parts[1])
    return head, draw(st.lists(row, max_size=6)), keys


@given(tables())
def test_it_fits_and_nothing_is_lost(table: tuple[list[str], list[list[str]], int]) -> None:
    head, rows, keys = table
    for lines in (text_table(head, rows, keys=keys), markdown_table(head, rows, keys=keys)):
        names = {name for row in rows for name in row[:keys]}
        listed = {line.partition(": ")[2] for line in lines} & names
        assert all(len(line) <= 80 or line.partition(": ")[2] in listed for line in lines)
        text = "\n".join(lines)
        for row in rows:
            assert all(cell in text for cell in row)
        assert all(title in text for title in head)


def test_titles_of_the_keys_count_as_their_names_do() -> None:
    """Both keys would be narrow enough by their names, and by their titles."""
    head = ["a", "b" * 24, "c"]
    for table in (text_table, markdown_table):
        lines = table(head, [["n" * 23, "m", "v" * 24]], keys=2)
        assert f"A: {'n' * 23}" in lines and max(map(len, lines)) <= 80


def test_a_wide_table_continues_below_with_its_names() -> None:
    head = ["method", *("x" * 20 for _ in range(4))]
    lines = text_table(head, [["plain", *(str(k) for k in range(4))]])
    assert [line.split()[0] for line in lines if line] == ["method", "plain"] * 2


def test_columns_are_aligned() -> None:
    assert text_table(["name", "n"], [["a", "1"], ["long name", "12"]]) == [
        "name        n",
        "a           1",
        "long name  12",
    ]
    assert markdown_table(["name", "n"], [["a", "12"]])[:3] == [
        "| name |  n |",
        "| ---- | -: |",
        "| a    | 12 |",
    ]


def test_narrow_columns_have_a_valid_rule() -> None:
    """GitHub's Markdown requires a hyphen in each."""
    rule = markdown_table(["a", "n", "p"], [["b", "1", "2"]], keys=1)[1]
    assert rule == "| -- | -: | -: |"


def test_a_bar_in_a_name_is_not_a_border() -> None:
    assert "a\\|b" in markdown_table(["name", "n"], [["a|b", "1"]])[2]


def test_long_names_have_letters() -> None:
    names = ["a" * 60, "b" * 60]
    lines = markdown_table(["run", "Dice"], [[name, "0.9"] for name in names])
    assert lines[:2] == [f"A: {names[0]}", f"B: {names[1]}"]
    assert any(line.startswith("| A ") for line in lines)
    many = text_table(["run", "Dice"], [[f"{k:050d}", "1"] for k in range(30)])
    assert any(line.startswith("Z: ") for line in many)
    assert any(line.startswith("A1: ") for line in many)


@pytest.mark.parametrize("keys", [1, 2])
def test_a_table_without_rows_has_its_head(keys: int) -> None:
    assert text_table(["a", "b", "c"], [], keys=keys) == ["a  b  c"]


def test_a_paragraph_is_wrapped_and_continued_with_its_indent() -> None:
    lines = wrapped("- rule: " + "word " * 40, indent="  ")
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("- rule") and lines[1].startswith("  word")


def test_ends_of_an_interval_that_are_not_known_are_not_bounds() -> None:
    assert ranged(551, 520, 585) == "551 (520-585)"
    assert ranged(551, 520, None) == ">551 (from 520)"
    assert ranged(551, None, 585) == "551 (?-585)"
    assert ranged(81.5, None, None) == "81.5 (?)"
