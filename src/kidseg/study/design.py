"""What a study compares, made definite: arms with checked settings, parts of the data, digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kidseg.cases import Case, Dataset, open_dataset
from kidseg.config import METHODS, StudyConfig, StudyMethodConfig, dump, load, preset
from kidseg.errors import InputError, UsageError
from kidseg.evaluate import Protocol, protocol_named
from kidseg.io.content import sha256_of_all
from kidseg.splits import holdout

__all__ = ["Arm", "Design", "design"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method of a study with its settings.

    Attributes:
        name: in tables and of folders.
        method: what is trained.
        preset: its name, if any.
        config: TOML file of settings, if any.
        overrides: the study's common settings, then its own.
        settings: all of it resolved, as TOML.
    """

    name: str
    method: str
    preset: str | None
    config: Path | None
    overrides: tuple[str, ...]
    settings: str


@dataclass(frozen=True, kw_only=True)
class Design:
    """A study ready to be run.

    Attributes:
        config: as it was read.
        data: the data set.
        arms: what is compared.
        training: ids of the cases to learn from.
        validation: ids of the cases to select weights by.
        test: ids of the cases that take no part in either.
        sha256: of the files of each case, image and labels.
        protocol: how the test is scored.
    """

    config: StudyConfig
    data: Dataset
    arms: tuple[Arm, ...]
    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    sha256: Mapping[str, str]
    protocol: Protocol

    @property
    def runs(self) -> tuple[tuple[Arm, int], ...]:
        """Each arm with each seed; all arms with the first seed come first."""
        return tuple((arm, seed) for seed in self.config.seeds for arm in self.arms)

    @property
    def resolved(self) -> StudyConfig:
        """The study with paths from the root and the test cases by name: the same wherever read."""
        methods = {
            arm.name: replace(table, config=None if arm.config is None else str(arm.config))
            for arm, table in zip(self.arms, self.config.methods.values(), strict=True)
        }
        return replace(
            self.config,
            methods=methods,
            dataset=str(self.data.root.resolve()),
            test=self.test,
            test_patients=None,
        )

    def n_patients(self, cases: Sequence[str]) -> int:
        """Of how many patients these cases are."""
        return len({self.data.by_id[name].patient for name in cases})

    def as_dict(self) -> dict[str, Any]:
        """The data's part, as plain data."""
        parts = {"training": self.training, "validation": self.validation, "test": self.test}
        return {
            "dataset": self.data.name,
            "digest": digest(self.sha256),
            **{
                name: {"cases": list(cases), "patients": self.n_patients(cases)}
                for name, cases in parts.items()
            },
        }


def design(file: Path, *, dataset: Path | None = None) -> Design:
    """Read a study's file, check all of it and divide the data.

    Args:
        file: TOML; see `kidseg.config.StudyConfig`.
        dataset: instead of the one that the file names.

    Raises:
        InputError: the file cannot be read; what `open_dataset` and `holdout` refuse.
        UsageError: "bad-setting", with the key; "no-dataset"; "unknown-preset"; "unknown-case";
            "bad-split": nobody is left to train on, or a patient is in two parts.
    """
    config = load(StudyConfig, file=file)
    arms = tuple(_arm(name, table, config, file) for name, table in config.methods.items())
    if dataset is None and config.dataset is None:
        raise UsageError(
            "names no data set",
            path=file,
            code="no-dataset",
            next_step="Give --dataset, or set dataset in the file.",
        )
    data = open_dataset(dataset or file.parent / (config.dataset or ""))
    training, validation, test = _parts(data, config)
    known = data.by_id
    return Design(
        config=config,
        data=data,
        arms=arms,
        training=training,
        validation=validation,
        test=test,
        sha256={name: _content(known[name]) for name in (*training, *validation, *test)},
        protocol=protocol_named(config.protocol, data.schema, config.cyst),
    )


def digest(content: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _arm(name: str, table: StudyMethodConfig, config: StudyConfig, file: Path) -> Arm:
    overrides = (*config.common.set, *table.set)
    if any(text.partition("=")[0].strip() == "cohort.validation_share" for text in overrides):
        raise UsageError(
            f"methods.{name}: all methods validate on the same patients",
            path=file,
            next_step="Set validation_share at the top of the file instead.",
            code="bad-setting",
        )
    chosen = None if table.config is None else (file.parent / table.config).resolve()
    try:
        base = None if table.preset is None else preset(table.preset, table.method)
        kind = METHODS[table.method]
        settings = dump(load(kind, base=base, file=chosen, overrides=overrides))
    except UsageError as error:
        raise UsageError(
            f"methods.{name}: {error.cause}",
            path=file,
            next_step=error.next_step,
            code=error.code,
        ) from None
    return Arm(
        name=name,
        method=table.method,
        preset=table.preset,
        config=chosen,
        overrides=overrides,
        settings=settings,
    )


def _parts(
    data: Dataset, config: StudyConfig
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(training, validation, test), each of whole patients."""
    known = data.by_id
    if config.test:
        if unknown := sorted(set(config.test) - set(known)):
            raise UsageError(
                f"there is no labelled case {', '.join(unknown)} to test on",
                path=data.root,
                code="unknown-case",
            )
        test = tuple(sorted(set(config.test)))
    else:
        test = holdout(data.cases, n_test=config.test_patients, seed=config.split_seed).test
    tested = {known[name].patient for name in test}
    rest = [case for case in data.cases if case.id not in test]
    if both := sorted(tested & {case.patient for case in rest}):
        raise UsageError(
            f"patient {both[0]} has cases in the test part and others beside it",
            path=data.root,
            code="bad-split",
            next_step="Name all cases of a patient in test, or none.",
        )
    try:
        kept = holdout(rest, test_fraction=config.validation_share, seed=config.split_seed)
    except InputError as error:
        raise UsageError(
            f"with {len(tested)} patient(s) to test on, too few are left: {error.cause}",
            path=data.root,
            code="bad-split",
            next_step="Test on fewer.",
        ) from error
    return kept.train, kept.test, test


def _content(case: Case) -> str:
    """SHA-256 of a case's files, by content alone; a file of several channels counts for each."""
    return sha256_of_all([*case.images, *([] if case.labels is None else [case.labels])])
