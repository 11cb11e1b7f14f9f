"""Tables of what kidseg measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["Answer", "Measure", "answers_of", "fill_table", "measures_of", "shown"]

_NOT_A_NUMBER = float("nan")
_VOLUME = "volume"
_CANNOT_TELL = "cannot tell"
_UNITS = {"1": "", "mL": "ml", "cm2": "cm²", "m2": "m²", "mL/m2": "ml/m²"}
_YES_NO = {"met": "yes", "not met": "no"}
_RENAL = "Kutikov and Uzzo, J Urol 182 (2009) 844-853"


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
    """The published criteria, and whether they are met; before them what is asked of tumours."""
    known = measures or {}
    answers = (known.get("criteria") or {}).get("answers") or []
    tumours = [each for each in known.get("structures") or [] if each.get("renal_score")]
    return [answer for tumour in tumours for answer in _of_tumour(tumour)] + [
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
    """Fill a table node with texts; see `shown`.

    Args:
        table: a vtkMRMLTableNode; what was in it is removed.
        columns: names.
        rows: as many values each.
    """
    import vtk

    table.RemoveAllColumns()
    lines = list(rows)
    for number, name in enumerate(columns):
        column = vtk.vtkStringArray()
        column.SetName(name)
        for line in lines:
            column.InsertNextValue(shown(line[number]))
        table.AddColumn(column)
    table.SetUseColumnTitleAsColumnHeader(True)
    table.Modified()


def shown(value: str | float) -> str:
    """A cell of a table: whole numbers, others with three digits; "" if it is unknown."""
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return ""
    size = abs(value)
    digits = 0 if value == round(value) or size >= 100 else 1 if size >= 10 else 2
    return f"{value:.{digits}f}"


def _of_tumour(tumour: Mapping[str, Any]) -> Iterator[Answer]:
    """Whether it crosses the midline, and its R.E.N.A.L. score."""
    of = str(tumour.get("id", ""))
    crosses = str(tumour.get("crosses_midline") or "")
    yield Answer(of, "crosses the midline", _YES_NO.get(crosses, _CANNOT_TELL), "", "")
    for name, found in tumour["renal_score"].items():
        points = " or ".join(map(str, found.get("points") or [])) or _CANNOT_TELL
        yield Answer(of, f"R.E.N.A.L. {name}", points, str(found.get("reason", "")), _RENAL)


def _measure(of: str, quantity: Mapping[str, Any]) -> Measure:
    unit = str(quantity.get("unit") or "")
    return Measure(
        of,
        str(quantity.get("name", "")),
        _number(quantity.get("value")),
        _UNITS.get(unit, unit),
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
            yield Measure(of, f"{name} {_VOLUME}", number, "ml", none, none, "", note)


def _reasons(conditions: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for condition in conditions:
        verdict, reason = condition.get("verdict"), condition.get("reason")
        if condition.get("fact") and verdict == _CANNOT_TELL:
            reason = "not entered"  # kidseg says how on its command line
        yield f"{condition.get('text', '')}: {reason or verdict}"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else _NOT_A_NUMBER
