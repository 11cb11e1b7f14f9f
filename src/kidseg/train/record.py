"""The record of a run: its method, settings, cases and plan, from which it can be resumed.

    config.toml     the resolved settings
    plan.json       the plan
    cases.json      training and validation cases, and the hashes of their files
    start.safetensors   the model to fine-tune, if there is one
    roi_rules.toml  which structures of DICOM annotations are which labels, if rules were given
    run.json        method, preset, seed, what is tuned; the digests of the files above; sealed

run.json is written last: only a run that has one can be resumed. Its digest identifies the run in
the training states.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kidseg.cases.roi_rules import ROI_RULES, RoiRules, load_rules
from kidseg.config import METHODS, dump, load
from kidseg.errors import ModelError, UsageError
from kidseg.io.atomic import write_json, writing
from kidseg.io.content import sha256_of
from kidseg.plan import Plan
from kidseg.records import (
    AFRESH,
    SEAL,
    Record,
    checked,
    digest_of,
    parsed,
    read_file,
    sealed,
    unsealed,
)
from kidseg.train.setup import ResolvedSetup, Setup, overrides_of
from kidseg.train.software import software

__all__ = ["RECORD", "START", "Cases", "RunRecord", "read_record", "resumed_setup", "write_record"]

RECORD, CONFIG, PLAN, CASES, START = (
    "run.json",
    "config.toml",
    "plan.json",
    "cases.json",
    "start.safetensors",
)
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Cases(Record):
    """The training and validation cases of a run, and the hashes of their files.

    Attributes:
        training: ids.
        validation: ids.
        sha256: of the files of each case.
        unlabelled: ids of the cases without labels that train what needs none.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    sha256: Mapping[str, str]
    unlabelled: tuple[str, ...] = ()

    @property
    def ids(self) -> dict[str, list[str]]:
        """{"training", "validation", "unlabelled"}: ids, as plain data."""
        parts = ("training", "validation", "unlabelled")
        return {part: list(getattr(self, part)) for part in parts}

    @property
    def digest(self) -> str:
        """SHA-256 of the names and contents of the training cases."""
        text = json.dumps([(name, self.sha256[name]) for name in self.training])
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {**asdict(self), "digest": self.digest}


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """What was recorded when a run started.

    Attributes:
        format: of run.json.
        kidseg: version that started the run.
        method: its name.
        preset: named settings; None: none.
        seed: of all random numbers.
        tune: what is trained.
        start: path of the model to fine-tune; None: none.
        files: SHA-256 of the other files of the record.
        software: that started the run, see `software`; empty in records of earlier versions.
    """

    format: int
    kidseg: str
    method: str
    preset: str | None
    seed: int
    tune: str
    start: str | None
    files: Mapping[str, str]
    software: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Identifies the run: its seal."""
        stated = asdict(self)
        if not self.software:
            del stated["software"]
        return digest_of(stated)


def write_record(
    out: Path, setup: Setup, resolved: ResolvedSetup, used: Cases, planned: Plan
) -> RunRecord:
    """Record a run that starts; the model to fine-tune is copied."""
    from importlib.metadata import version

    write_json(out / PLAN, planned.as_dict(), overwrite=True)
    write_json(out / CASES, used.as_dict(), overwrite=True)
    with writing(out / CONFIG, overwrite=True) as file:
        file.write(dump(resolved.config).encode())
    names = [CONFIG, PLAN, CASES]
    if setup.start is not None:
        with writing(out / START, overwrite=True) as file:
            file.write(setup.start.read_bytes())
        names.append(START)
    if setup.rules is not None:
        with writing(out / ROI_RULES, overwrite=True) as file:
            file.write(setup.rules.as_toml().encode())
        names.append(ROI_RULES)
    record = RunRecord(
        format=FORMAT,
        kidseg=version("kidseg"),
        method=resolved.method.name,
        preset=setup.preset,
        seed=setup.seed or 0,
        tune=setup.tune or "all",
        start=None if setup.start is None else str(setup.start),
        files={name: sha256_of(out / name) for name in names},
        software=software(),
    )
    write_json(out / RECORD, sealed(asdict(record)), overwrite=True)
    return record


def read_record(out: Path) -> RunRecord:
    """The record of a run to resume, verified with all its files.

    Raises:
        UsageError: "nothing-to-resume".
        ModelError: "missing-record": the run has been trained, but its record is missing;
            "damaged-record": a file of the record was altered; "other-format".
    """
    file = out / RECORD
    if not file.is_file():
        _refuse_unrecorded(out)
    try:
        content = unsealed(read_file(file, code="damaged-record", next_step=AFRESH))
        if content.get("format") != FORMAT:
            raise ModelError(
                f"format {content.get('format')!r:.20} is not supported; this kidseg reads format"
                f" {FORMAT}",
                path=file,
                code="other-format",
                next_step="Resume with the version of kidseg that started the run.",
            )
        record = checked(RunRecord, {k: v for k, v in content.items() if k != SEAL})
        wanted = {CONFIG, PLAN, CASES} | ({START} if record.start is not None else set())
        if set(record.files) - {ROI_RULES} != wanted or record.method not in METHODS:
            raise ValueError("its files or its method are unknown")
    except ValueError as error:
        raise _damaged(file, str(error)) from error
    for name, known in record.files.items():
        found = read_file(out / name, code="damaged-record", next_step=AFRESH)
        if hashlib.sha256(found).hexdigest() != known:
            raise _damaged(out / name, "it was altered after the run had started")
    return record


def recorded_plan(out: Path) -> Plan:
    """The plan of a run with a verified record."""
    try:
        return Plan.from_dict(parsed((out / PLAN).read_bytes()), out / PLAN)
    except ValueError as error:
        raise _damaged(out / PLAN, str(error)) from error


def recorded_cases(out: Path) -> Cases:
    """The cases of a run with a verified record."""
    try:
        content = parsed((out / CASES).read_bytes())
        content.pop("digest", None)
        return checked(Cases, content)
    except ValueError as error:
        raise _damaged(out / CASES, str(error)) from error


def resumed_setup(out: Path, record: RunRecord, given: Setup) -> Setup:
    """The setup of a run to resume. Options that are given must be those of the run.

    Args:
        out: folder of the run.
        record: of the run.
        given: the setup as requested; whatever is left out is taken from the record.

    Raises:
        UsageError: "other-settings", "other-cases"; as `load` for invalid settings.
    """
    cases = recorded_cases(out)
    start = None
    if given.start is not None:
        start = _short(sha256_of(given.start))
    known = None if record.start is None else _short(record.files[START])
    pairs: dict[str, tuple[object, object]] = {
        "method": (record.method, given.method),
        "preset": (record.preset, given.preset),
        "seed": (record.seed, given.seed),
        "tune": (record.tune, given.tune),
        "model to fine-tune": (known, start),
    }
    for name, (was, now) in pairs.items():
        if now is not None and now != was:
            raise _other_settings(out, name, was, now)
    _check_settings(out, record, given)
    _check_cases(out, cases, given)
    rules = load_rules(out / ROI_RULES) if ROI_RULES in record.files else None
    if given.rules is not None and (rules is None or not given.rules.agrees(rules)):
        raise _other_settings(out, "rules for structures", _said(rules), _said(given.rules))
    return replace(
        given,
        method=record.method,
        preset=record.preset,
        config_file=out / CONFIG,
        overrides=(),
        reference=None,
        start=None if record.start is None else out / START,
        tune=None if record.start is None else record.tune,
        seed=record.seed,
        cases=(*cases.training, *cases.validation),
        validation=cases.validation,
        rules=rules,
    )


def _said(rules: RoiRules | None) -> str | None:
    return None if rules is None else "other ones" if rules.path is None else str(rules.path)


def _check_settings(out: Path, record: RunRecord, given: Setup) -> None:
    """Check that the file and the overrides, laid over the settings of the run, change nothing."""
    overrides = overrides_of(given, record.method)
    if given.config_file is None and not overrides:
        return
    kind = METHODS[record.method]
    recorded = asdict(load(kind, file=out / CONFIG, stored=True))
    base = tomllib.loads((out / CONFIG).read_text())
    wanted = asdict(load(kind, base=base, file=given.config_file, overrides=overrides))
    was, now = _flat(recorded), _flat(wanted)
    for name in {**was, **now}:
        if was.get(name) != now.get(name):
            raise _other_settings(out, name, was.get(name), now.get(name))


def _check_cases(out: Path, cases: Cases, given: Setup) -> None:
    used = {*cases.training, *cases.validation}
    named = used if given.cases is None else {*given.cases, *(given.validation or ())}
    validation = cases.validation if given.validation is None else given.validation
    if named != used or set(validation) != set(cases.validation):
        raise other_cases(out)


def other_cases(out: Path) -> UsageError:
    """The error for a run that is resumed with other cases than it was started with."""
    return UsageError(
        "the run was started with other cases, or their files or the names of their labels have"
        " changed",
        path=out / CASES,
        code="other-cases",
        next_step="Resume with the same data set; the split is that of the run.",
    )


def _other_settings(out: Path, name: str, was: object, now: object) -> UsageError:
    return UsageError(
        f"the run was started with {_stated(name, was)}, not {'without' if now is None else now}",
        path=out / RECORD,
        code="other-settings",
        next_step="Resume without settings: they are those of the run.",
    )


def _stated(name: str, value: object) -> str:
    return f"no {name}" if value is None else f"{name} {value}"


def _refuse_unrecorded(out: Path) -> None:
    """Raise the error for a folder without record."""
    if (out / "log.jsonl").exists() or sorted(out.glob("state-*")):
        raise ModelError(
            "the record of the run is missing, of which epochs were trained",
            path=out / RECORD,
            code="missing-record",
            next_step=AFRESH,
        )
    raise UsageError(
        "there is no run to resume",
        path=out,
        code="nothing-to-resume",
        next_step="Train without --resume.",
    )


def _damaged(path: Path, cause: str) -> ModelError:
    return ModelError(
        f"the record of the run is damaged: {cause}",
        path=path,
        code="damaged-record",
        next_step=AFRESH,
    )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their full names."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def _short(sha256: str) -> str:
    return f"{sha256[:12]}"
