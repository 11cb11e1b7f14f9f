"""Patient data of the cases: patients.csv of any data set, and the clinical tables of KiTS."""

from __future__ import annotations

import csv
import io
import json
import math
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from kidseg.cases.case import Case, Side
from kidseg.csv_table import csv_text, original_text
from kidseg.errors import Finding, InputError, Severity, not_found

__all__ = [
    "PATIENTS_CSV",
    "Person",
    "load_json",
    "read_kits_table",
    "read_patients_csv",
    "with_persons",
    "write_patients_csv",
]

PATIENTS_CSV = "patients.csv"
_COLUMNS = ("case", "patient", "age_years", "sex", "side")
_TIME = "time_point"
_OLDEST_YEARS = 130.0


@dataclass(frozen=True, kw_only=True)
class Person:
    """Patient data of one case; None where the table has no value."""

    patient: str | None = None
    age_years: float | None = None
    side: Side | None = None
    time_point: str | None = None


def read_patients_csv(
    root: Path, known: Iterable[str]
) -> tuple[dict[str, Person], tuple[Finding, ...]]:
    """Read patients.csv at the root of a data set, by case; empty if there is no table.

    Columns: `case` is required; `patient`, `age_years`, `side` ("left", "right", "bilateral") and
    `time_point` (any text) may be missing or empty; other columns are ignored. Between columns are
    commas, or semicolons; ages may have a decimal comma.

    Args:
        root: of the data set.
        known: ids of its cases; a row for another case is a finding.

    Returns:
        The valid rows, and findings: errors "bad-table", "bad-row" (with the line number),
        "duplicate-row"; the warning "unknown-case".
    """
    path = root / PATIENTS_CSV
    if not path.is_file():
        return {}, ()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        found = _table(path, f"cannot be read as UTF-8 text ({error})")
        return {}, (replace(found, next_step="Save it as CSV in UTF-8."),)
    separator = _separator(text)
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        names = [(name or "").strip() for name in rows.fieldnames or ()]
    except csv.Error as error:
        return {}, (_table(path, f"the first line is not a valid header ({error})"),)
    if "case" not in names or len(set(names)) != len(names):
        cause = f"the header must contain 'case' and name each column once, not {names}"
        return {}, (_table(path, cause),)
    rows.fieldnames = names
    return _read_rows(rows, path, set(known))


def _separator(text: str) -> str:
    """What is between the columns: a semicolon where the decimal sign is a comma, as in Excel."""
    head, _, _ = text.partition("\n")
    return ";" if ";" in head and "," not in head else ","


def read_kits_table(path: Path) -> tuple[dict[str, Person], tuple[Finding, ...]]:
    """Read ages from the clinical table of a KiTS challenge; empty if there is no table.

    Source: `data/kits.json` of github.com/neheller/kits19 and kits21, `dataset/kits23.json` of
    kits23: a list of {"case_id", "age_at_nephrectomy", ...}; early versions have no ages.
    """
    if not path.is_file():
        return {}, ()
    try:
        content = load_json(path)
    except InputError as error:
        return {}, (error.as_finding(),)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        return {}, (_table(path, "not a list of cases"),)
    persons, findings = {}, []
    for number, row in enumerate(content, start=1):
        case, age = row.get("case_id"), row.get("age_at_nephrectomy")
        is_number = isinstance(age, int | float) and not isinstance(age, bool)
        if not isinstance(case, str):
            findings.append(_table(path, f"entry {number} has no case_id"))
        elif case in persons:
            findings.append(_table(path, f"entry {number}: case '{case}' has an earlier entry"))
        elif age is None:
            persons[case] = Person()
        elif is_number and 0 <= age <= _OLDEST_YEARS:
            persons[case] = Person(age_years=float(age))
        else:
            findings.append(
                _table(path, f"entry {number} ({case}): invalid age {reprlib.repr(age)}")
            )
    return persons, tuple(findings)


def with_persons(cases: Iterable[Case], persons: Mapping[str, Person]) -> tuple[Case, ...]:
    """The cases updated with the table's values; missing values are left unchanged."""

    def described(case: Case) -> Case:
        person = persons.get(case.id, Person())
        return replace(
            case,
            patient=person.patient or case.patient,
            age_years=case.age_years if person.age_years is None else person.age_years,
            side=person.side or case.side,
            time_point=person.time_point or case.time_point,
        )

    return tuple(described(case) for case in cases)


def write_patients_csv(
    root: Path, rows: Iterable[Mapping[str, Any]], *, overwrite: bool = False
) -> Path:
    """Write patients.csv: case, patient, age_years, sex, side; if any is known, time_point.

    Args:
        root: of the data set.
        rows: one mapping per case; other keys are left out, missing ones and None stay empty.
        overwrite: replace a table that exists.

    Raises:
        UsageError, InputError, ResourceError: as `kidseg.io.atomic.writing`.
        KeyError: a row without "case".
    """
    from kidseg.io.atomic import writing

    rows = list(rows)
    columns = (*_COLUMNS, *([_TIME] if any(row.get(_TIME) for row in rows) else []))
    cells = ([row["case"], *(row.get(name) for name in columns[1:])] for row in rows)
    text = csv_text(columns, cells)
    path = root / PATIENTS_CSV
    with writing(path, overwrite=overwrite) as file:
        file.write(text.encode(errors="backslashreplace"))
    return path


def load_json(path: Path) -> Any:
    """Load a JSON file.

    Raises:
        InputError: "not-found", "unreadable"; "bad-json", also if a key occurs twice (the last
            value would win silently), a number is not finite, or text contains characters that no
            file can have (NUL, halves of UTF-16 pairs).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(
            text,
            object_pairs_hook=_unique_keys,
            parse_constant=_not_a_number,
            parse_float=_finite,
        )
        _check_text(content)
    except FileNotFoundError as error:
        raise not_found(path, "file") from error
    except OSError as error:
        raise InputError(
            f"cannot be read ({error.strerror})",
            path=path,
            code="unreadable",
            next_step="Check its name and permissions.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"not valid JSON ({error})",
            path=path,
            code="bad-json",
            next_step="Fix the file or download it again.",
        ) from error
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f"{reprlib.repr(twice)} occurs twice")
    return content


def _not_a_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{reprlib.repr(text)} is too large")
    return number


def _check_text(content: Any) -> None:
    """Check all keys and values that are text; without recursion, so at any depth."""
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting += [*part, *part.values()]
        elif isinstance(part, list):
            waiting += part
        elif isinstance(part, str):
            part.encode()  # raises UnicodeEncodeError, a ValueError
            if "\0" in part:
                raise ValueError("text contains a NUL character")


def _read_rows(
    rows: csv.DictReader[str], path: Path, known: set[str]
) -> tuple[dict[str, Person], tuple[Finding, ...]]:
    persons: dict[str, Person] = {}
    findings: list[Finding] = []

    def note(code: str, cause: str, severity: Severity = "error") -> None:
        findings.append(_table(path, f"line {rows.reader.line_num}: {cause}", code, severity))

    try:
        for row in rows:
            if None in row:
                note("bad-row", "more values than columns")
                continue
            cells = {name: original_text((value or "").strip()) for name, value in row.items()}
            case = cells["case"]
            if case in persons:
                note("duplicate-row", f"case '{case}' has an earlier row")
            elif case and case not in known:
                note("unknown-case", f"there is no case '{case}'", "warning")
            elif person := _person(cells, note):
                persons[case] = person
    except csv.Error as error:
        note("bad-row", str(error))
    return persons, tuple(findings)


def _person(cells: Mapping[str, str], note: Callable[[str, str], None]) -> Person | None:
    if not cells["case"]:
        note("bad-row", "the case is missing")
        return None
    age_years: float | None = None
    if text := cells.get("age_years"):
        try:
            age_years = float(text.replace(",", "."))
        except ValueError:
            age_years = math.nan
        if not 0 <= age_years <= _OLDEST_YEARS:
            note("bad-row", f"'{text}' is not a valid age in years")
            return None
    side = cells.get("side", "").lower() or None
    if side is not None and side not in get_args(Side):
        note("bad-row", f"'{side}' is not one of {', '.join(get_args(Side))}")
        return None
    return Person(
        patient=cells.get("patient") or None,
        age_years=age_years,
        side=cast("Side | None", side),
        time_point=cells.get(_TIME) or None,
    )


def _table(
    path: Path, cause: str, code: str = "bad-table", severity: Severity = "error"
) -> Finding:
    return Finding(
        code=code, path=str(path), cause=cause, next_step="Fix the table.", severity=severity
    )
