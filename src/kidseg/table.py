"""Tables of text that fit a terminal: aligned columns, and Markdown for files."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

__all__ = ["WIDTH", "markdown_table", "place_text", "ranged", "text_table", "wrapped"]

WIDTH = 80
"""Columns of a terminal."""

_A = ord("A")
_LETTERS = 26


def ranged(
    value: float, low: float | None, high: float | None, *, exact: bool = False, whole: bool = False
) -> str:
    """A measured value and its interval: "551 (520-585)", ">551 (from 520)" for a lower bound.

    An end that is not known is "?": "551 (?-585)"; without both, "551 (?)".

    Args:
        value: the value.
        low: lower end; None if it is not known.
        high: upper end; None if it is not known; if `low` is, the value is a lower bound.
        exact: there is no interval.
        whole: it is a number of things, without decimals.
    """
    if exact:
        return f"{value:g}"
    digits = 0 if whole else _digits(value)
    text = f"{value:.{digits}f}"
    if high is None:
        return f"{text} (?)" if low is None else f">{text} (from {low:.{digits}f})"
    least = "?" if low is None else f"{low:.{digits}f}"
    dash = " to " if least.startswith("-") or high < 0 else "-"
    return f"{text} ({least}{dash}{high:.{digits}f})"


def place_text(centre_mm: Sequence[float]) -> str:
    """A position as viewers show it, such as "R 44.5, P 17.7, S 46.2 mm".

    Args:
        centre_mm: (x, y, z), RAS+.
    """
    signs = zip(("LR", "PA", "IS"), centre_mm, strict=True)
    return ", ".join(f"{names[mm > 0]} {abs(mm):.1f}" for names, mm in signs) + " mm"


def _digits(value: float) -> int:
    """Decimals: one, or two of what is below ten; none of hundreds."""
    size = abs(value)
    return 2 if size < 10 else 1 if size < 100 else 0


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, keys: int = 1) -> list[str]:
    """Lines of a table with aligned columns, none longer than `WIDTH`.

    A table that is too wide continues in another one below, with its first `keys` columns again. If
    these are wider than half of the width, letters stand for the names in them, which are listed
    above the table. Titles and values never break, so that very long ones may be too wide.

    Args:
        head: titles of the columns.
        rows: the cells of each row.
        keys: number of columns that name a row; they are aligned left, the others right.
    """
    return _lines(head, rows, keys, ("", "  ", ""), None)


def markdown_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, keys: int = 1
) -> list[str]:
    """The same in Markdown, with an empty line after each table."""
    head, *rows = ([cell.replace("|", "\\|") for cell in row] for row in (head, *rows))
    return _lines(head, rows, keys, ("| ", " | ", " |"), "-")


def wrapped(text: str, *, indent: str = "") -> list[str]:
    """The lines of a paragraph; `indent` is before all but the first."""
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _lines(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    keys: int,
    borders: tuple[str, str, str],
    rule: str | None,
) -> list[str]:
    legend, rows = _lettered(head, rows, keys, WIDTH // 2)
    lines = [*legend, *([""] if legend else [])]
    least = 1 if rule is None else len("-:")
    sides = [max(least, *(len(row[k]) for row in (head, *rows))) for k in range(len(head))]
    left, between, right = borders
    for columns in _parts(sides, keys, WIDTH - len(left) - len(right), len(between)):
        cells = [[row[k] for k in columns] for row in (head, *rows)]
        aligned = [
            [
                cell.ljust(sides[k]) if k < keys else cell.rjust(sides[k])
                for k, cell in zip(columns, line, strict=True)
            ]
            for line in cells
        ]
        if rule is not None:
            aligned.insert(1, [_rule(rule, sides[k], k < keys) for k in columns])
        lines += [f"{left}{between.join(line)}{right}".rstrip() for line in aligned]
        lines.append("")
    return lines if rule is not None else lines[:-1]


def _rule(mark: str, side: int, is_key: bool) -> str:
    return mark * side if is_key else f"{mark * (side - 1)}:"


def _parts(sides: Sequence[int], keys: int, width: int, between: int) -> list[list[int]]:
    """The columns of each table: the keys, and as many others as fit."""
    named = list(range(keys))
    parts = [list(named)]
    for k in range(keys, len(sides)):
        needed = sum(sides[c] + between for c in parts[-1]) + sides[k]
        if needed > width and len(parts[-1]) > keys:
            parts.append(list(named))
        parts[-1].append(k)
    return parts


def _lettered(
    head: Sequence[str], rows: Sequence[Sequence[str]], keys: int, most: int
) -> tuple[list[str], Sequence[Sequence[str]]]:
    """(legend, rows); letters replace the names that save most, while the keys are too wide."""
    legend: list[str] = []
    left = set(range(keys))
    while rows and left:
        least = [max(2, len(title)) for title in head[:keys]]
        sides = [max(least[k], *(len(row[k]) for row in rows)) for k in range(keys)]
        chosen = max(sorted(left), key=lambda k: sides[k] - least[k])
        if sum(sides) <= most or sides[chosen] == least[chosen]:
            break
        left.remove(chosen)
        names = list(dict.fromkeys(row[chosen] for row in rows))
        letters = {name: _letter(k + len(legend)) for k, name in enumerate(names)}
        legend += [f"{letter}: {name}" for name, letter in letters.items()]
        rows = [[letters[c] if k == chosen else c for k, c in enumerate(row)] for row in rows]
    return legend, rows


def _letter(number: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    turn, place = divmod(number, _LETTERS)
    return chr(_A + place) + (str(turn) if turn else "")
