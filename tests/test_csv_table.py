"""Tables of comma-separated values: nothing in them is a formula, and all can be read back."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kidseg.csv_table import csv_text, original_text

TRICKY = st.text(alphabet="'=+-@\t\r\n,;\" a1\uff1d", max_size=8)


def cells_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def test_usual_cells_are_as_they_are() -> None:
    rows = [["anna", None, 0.1, -2.5, 3], ["o'neill", "", 1e-9, "a b", True]]
    assert csv_text(["name", "b", "c", "d", "e"], rows) == (
        "name,b,c,d,e\nanna,,0.1,-2.5,3\no'neill,,1e-09,a b,True\n"
    )


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", '"\'\t=1"'),
        ("'=1", "''=1"),
        ("a;=1", '"a;=1"'),
        ('=HYPERLINK("x","y")', '"\'=HYPERLINK(""x"",""y"")"'),
    ],
)
def test_text_that_programs_take_for_a_formula_becomes_text(name: str, cell: str) -> None:
    assert csv_text(["name", "value"], [[name, 1]]) == f"name,value\n{cell},1\n"
    assert original_text(cells_of(csv_text([name], []))[0][0]) == name


@given(st.lists(st.lists(TRICKY | st.text(max_size=8), min_size=2, max_size=2), max_size=4))
def test_any_text_comes_back_and_no_cell_is_a_formula(rows: list[list[str]]) -> None:
    cells = cells_of(csv_text(["a", "b"], rows))
    assert [list(map(original_text, row)) for row in cells[1:]] == rows
    assert not any(cell.startswith(tuple("=+-@\t\r\n")) for row in cells for cell in row)


@given(st.text(max_size=6).filter(lambda text: not text.startswith("'")))
def test_cells_that_others_wrote_are_as_they_are(cell: str) -> None:
    assert original_text(cell) == cell
