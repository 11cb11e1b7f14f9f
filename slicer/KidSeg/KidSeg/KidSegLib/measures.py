"""Tables of what kidseg measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["Answer", "Measure", "answers_of", "fill_table", "measures_of"]

_NOT_A_NUMBER = float("nan")
_VOLUME = "volume"


class Measure(NamedTuple):
    """A line of the table of measures; the names of its fields are those of the columns."""

    of: str
    measure: str
    value: float
    unit: str
    low: float
    high: float
    interval: str
    note: str


class Answer(NamedTuple):
    """A line of the table of criteria."""

    of: str
    criterion: str
    answer: str
    because: str
    source: str


def measures_of(record: Mapping[str, Any], measures: Mapping[str, Any] | None) -> list[Measure]:
    """All measures of a scan.

    Args:
        record: of the scan in kidseg's result.json.
        measures: of `kidseg measure`; None: the volumes of the record are all that is known.
    """
    if measures is None:
        return list(_volumes(record))
    rows = [_measure("patient", quantity) for quantity in measures.get("patient") or []]
    for side, quantities in (measures.get("sides") or {}).items():
        rows += [_measure(side, quantity) for quantity in quantities]
    for structure in measures.get("structures") or []:
        of = str(structure.get("id") or structure.get("label") or "")
        rows += [_measure(of, quantity) for quantity in structure.get("quantities") or []]
    return rows


def answers_of(measures: Mapping[str, Any] | None) -> list[Answer]:
    """The published criteria, and whether they are met."""
    answers = ((measures or {}).get("criteria") or {}).get("answers") or []
    return [
        Answer(
            str(answer.get("subject", "")),
            str(answer.get("title", "")),
            str(answer.get("verdict", "")),
            "; ".join(_reasons(answer.get("conditions") or [])),
            str(answer.get("source", "")),
        )
        for answer in answers
    ]


def fill_table(table: Any, columns: Iterable[str], rows: Iterable[tuple[Any, ...]]) -> None:
    """Fill a table node: a column of numbers, or of texts, for each field.

    Args:
        table: a vtkMRMLTableNode; what was in it is removed.
        columns: names.
        rows: as many values each; a column with a float in it is one of numbers.
    """
    import vtk

    table.RemoveAllColumns()
    lines = list(rows)
    for number, name in enumerate(columns):
        values = [line[number] for line in lines]
        is_number = any(isinstance(value, float) for value in values)
        column = vtk.vtkDoubleArray() if is_number else vtk.vtkStringArray()
        column.SetName(name)
        for value in values:
            column.InsertNextValue(value)
        table.AddColumn(column)
    table.SetUseColumnTitleAsColumnHeader(True)
    table.Modified()


def _measure(of: str, quantity: Mapping[str, Any]) -> Measure:
    unit = str(quantity.get("unit") or "")
    return Measure(
        of,
        str(quantity.get("name", "")),
        _number(quantity.get("value")),
        "" if unit == "1" else unit,
        _number(quantity.get("low")),
        _number(quantity.get("high")),
        str(quantity.get("interval") or ""),
        str(quantity.get("note") or ""),
    )


def _volumes(record: Mapping[str, Any]) -> Iterator[Measure]:
    volumes = [("patient", record.get("volumes_ml") or {}, False)]
    for side, facts in (record.get("sides") or {}).items():
        if isinstance(facts, dict):
            volumes.append((side, facts.get("volumes_ml") or {}, bool(facts.get("partial"))))
    for of, known, partial in volumes:
        for name, value in known.items():
            note = "cut by the border of the scan" if partial else ""
            number, none = _number(value), _NOT_A_NUMBER
            yield Measure(of, f"{name} {_VOLUME}", number, "mL", none, none, "", note)


def _reasons(conditions: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for condition in conditions:
        reason = condition.get("reason") or condition.get("verdict")
        yield f"{condition.get('text', '')}: {reason}"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else _NOT_A_NUMBER
