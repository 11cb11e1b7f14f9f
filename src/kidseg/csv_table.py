"""Tables as comma-separated values that spreadsheet programs do not run.

A program that opens a table takes a cell for a formula if it begins with =, +, -, @, a tab or the
end of a line, quoted or not; so a scan's name could run commands. Such text gets an apostrophe in
front, after which it is text to all of them, and `original_text` takes it away again.

Source: OWASP, "CSV Injection". Text with a semicolon is quoted, since some languages separate cells
by it. Format: RFC 4180, with line feeds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["csv_text", "original_text"]

_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # also in full width
_QUOTED = re.compile('[,;"\t\r\n]')


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The table, each line with an end; None is an empty cell; floats are written without loss."""
    return "".join(",".join(map(_cell, row)) + "\n" for row in (header, *rows))


def original_text(cell: str) -> str:
    """The text of which `csv_text` has made this cell; the cell itself if it is of others."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def _cell(value: Any) -> str:
    if not isinstance(value, str):
        return "" if value is None else str(value)
    text = f"'{value}" if _FORMULA.match(value) else value
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text
