"""Published criteria with their thresholds, from one versioned file, and whether they are met.

Never a treatment: a criterion says what was published, what was measured, and how sure that is.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from kidseg.errors import InputError, UsageError
from kidseg.measure.quantity import (
    Comparison,
    Quantity,
    Unit,
    Verdict,
    all_of,
    any_of,
    compared,
)

__all__ = [
    "DEFAULT",
    "MEASURES",
    "Answer",
    "Condition",
    "ConditionAnswer",
    "Criteria",
    "Criterion",
    "Settings",
    "answered",
    "entered_facts",
    "read_criteria",
]

DEFAULT = Path(__file__).with_name("criteria.toml")
"""The file of the package."""

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

MEASURES: Mapping[str, Unit] = {
    "tumour volume": "mL",
    "number of tumours": "1",
    "sides with a tumour": "1",
    "parenchyma remaining": "%",
    "kidney volume": "mL",
    "kidney volume for body surface": "mL/m2",
    "excess of the larger kidney": "%",
}
"""What conditions can name, and its unit."""

_NEEDED = {"kidney volume for body surface": "; it needs the height and weight of the patient"}

Per = Literal["tumour-side", "kidney-side", "patient"]


@checked(frozen=True, kw_only=True, config=_STRICT)
class Settings:
    """How structures are counted and estimated; the file says what each is."""

    smallest_tumour_ml: float
    margin_mm: float
    midline_mm: float
    midline_estimated_mm: float
    exophytic_least: float


@checked(frozen=True, kw_only=True, config=_STRICT)
class RenalScore:
    """Thresholds of the R.E.N.A.L. score."""

    source: str
    radius_cm: tuple[float, float]
    exophytic: float


@checked(frozen=True, kw_only=True, config=_STRICT)
class Condition:
    """A threshold of a measure, or a fact that is entered."""

    measure: str | None = None
    comparison: Comparison | None = None
    threshold: float | None = None
    unit: Unit | None = None
    entered: str | None = None
    wanted: bool | None = None

    def __post_init__(self) -> None:
        measured = (self.measure, self.comparison, self.threshold, self.unit)
        known = (self.entered, self.wanted)
        if None in measured + known and not (
            (None not in measured and known == (None, None))
            or (None not in known and measured == (None,) * 4)
        ):
            raise ValueError(
                "a condition has measure, comparison, threshold and unit; or entered and wanted"
            )
        if self.measure is not None and MEASURES.get(self.measure) != self.unit:
            allowed = ", ".join(f"{name} ({unit})" for name, unit in MEASURES.items())
            raise ValueError(f"'{self.measure}' in {self.unit} is none of {allowed}")


@checked(frozen=True, kw_only=True, config=_STRICT)
class Criterion:
    """A published criterion."""

    id: str
    title: str
    about: str
    per: Per
    combine: Literal["all", "any"]
    confirmed: bool
    source: str
    conditions: tuple[Condition, ...]


@checked(frozen=True, kw_only=True, config=_STRICT)
class Criteria:
    """The content of a file of criteria."""

    version: str
    signed_off: str
    settings: Settings
    renal: RenalScore
    entered: dict[str, str]
    criterion: tuple[Criterion, ...]

    def __post_init__(self) -> None:
        names = [one.id for one in self.criterion]
        if len(set(names)) != len(names):
            raise ValueError(f"the ids of the criteria are not unique: {names}")
        used = {c.entered for one in self.criterion for c in one.conditions if c.entered}
        if unknown := sorted(used - set(self.entered)):
            raise ValueError(f"[entered] does not explain {', '.join(unknown)}")


@dataclass(frozen=True, kw_only=True)
class ConditionAnswer:
    """Whether one condition is met.

    Attributes:
        text: the condition in words.
        verdict: "cannot tell" if the interval contains the threshold, or nothing is known.
        quantity: what was measured; None if it was entered, or could not be measured.
        reason: what was entered, or why it cannot be told; else "".
        fact: name of what is entered; None: it is measured.
    """

    text: str
    verdict: Verdict
    quantity: Quantity | None = None
    reason: str = ""
    fact: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Whether a criterion is met.

    Attributes:
        criterion: with its source.
        subject: "right", "left" or "patient".
        verdict: of all conditions together.
        conditions: of the criterion, in its order.
    """

    criterion: Criterion
    subject: str
    verdict: Verdict
    conditions: tuple[ConditionAnswer, ...]


def read_criteria(path: Path = DEFAULT) -> Criteria:
    """Read a file of criteria.

    Raises:
        InputError: "bad-criteria": it cannot be read, or a key is missing, unknown or invalid.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        # TOML has arrays, strict validation takes tuples: via JSON they are the same.
        return TypeAdapter(Criteria).validate_json(_json(content), strict=True)
    except OSError as error:
        cause = f"it cannot be read ({error.strerror})"
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        cause = f"'{where}': {first['msg']}" if where else first["msg"]
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, no plain data
        cause = f"it is not valid TOML ({error})"
    raise InputError(
        cause,
        path=path,
        code="bad-criteria",
        next_step=f"The file of the package shows how it is written: {DEFAULT}.",
    )


def entered_facts(texts: Sequence[str], criteria: Criteria) -> dict[str, bool]:
    """Facts as entered: NAME=yes or NAME=no.

    Raises:
        UsageError: "bad-entered": another form, an unknown name, or both answers.
    """
    facts: dict[str, bool] = {}
    for text in texts:
        name, _, answer = text.partition("=")
        value = {"yes": True, "no": False}.get(answer.strip().lower())
        name = name.strip()
        if value is None or name not in criteria.entered or facts.get(name, value) != value:
            known = ", ".join(criteria.entered)
            raise UsageError(
                f"'{text}' is not one of the facts that can be entered, with yes or no, once",
                code="bad-entered",
                next_step=f"Write NAME=yes or NAME=no; the names are {known}.",
            )
        facts[name] = value
    return facts


def answered(
    criterion: Criterion,
    subject: str,
    measures: Mapping[str, Quantity],
    entered: Mapping[str, bool],
    explained: Mapping[str, str],
) -> Answer:
    """Whether a criterion is met.

    Args:
        criterion: of the file.
        subject: "right", "left" or "patient".
        measures: of the subject, by the names of `MEASURES`; what is missing cannot be told.
        entered: facts.
        explained: what each fact is.
    """
    conditions = tuple(
        _measured(condition, condition.measure, measures)
        if condition.measure is not None
        else _entered(condition, entered, explained)
        for condition in criterion.conditions
    )
    combine = all_of if criterion.combine == "all" else any_of
    verdict = combine(condition.verdict for condition in conditions)
    return Answer(criterion=criterion, subject=subject, verdict=verdict, conditions=conditions)


def _measured(condition: Condition, name: str, measures: Mapping[str, Quantity]) -> ConditionAnswer:
    assert condition.comparison is not None and condition.threshold is not None
    unit = "" if condition.unit == "1" else f" {condition.unit}".replace("mL", "ml")
    text = f"{name} {condition.comparison} {condition.threshold:g}{unit}"
    if (quantity := measures.get(name)) is None:
        reason = f"not measured{_NEEDED.get(name, '')}"
        return ConditionAnswer(text=text, verdict="cannot tell", reason=reason)
    verdict = compared(quantity, condition.comparison, condition.threshold)
    reason = "" if verdict != "cannot tell" else "the threshold lies within the uncertainty"
    return ConditionAnswer(text=text, verdict=verdict, quantity=quantity, reason=reason)


def _entered(
    condition: Condition, entered: Mapping[str, bool], explained: Mapping[str, str]
) -> ConditionAnswer:
    name = condition.entered or ""
    text = f"{explained[name]} = {'yes' if condition.wanted else 'no'}"
    if name not in entered:
        step = f"not entered: --entered {name}=yes or {name}=no"
        return ConditionAnswer(text=text, verdict="cannot tell", reason=step, fact=name)
    verdict: Verdict = "met" if entered[name] == condition.wanted else "not met"
    reason = f"entered: {'yes' if entered[name] else 'no'}"
    return ConditionAnswer(text=text, verdict=verdict, reason=reason, fact=name)


def _json(content: Any) -> str:
    import json

    try:
        return json.dumps(content)
    except TypeError as error:  # such as a date
        raise ValueError(str(error)) from None
