"""The design of a study: arms with resolved settings, split of the data set, checksums."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kidseg.cases import Case, Dataset, open_dataset
from kidseg.cases.same_images import check_apart
from kidseg.config import StudyConfig, StudyMethodConfig, dump, load
from kidseg.errors import InputError, UsageError
from kidseg.evaluate import Protocol, protocol_named
from kidseg.io.content import sha256_of_all
from kidseg.model_file import STARTER, find_model
from kidseg.splits import holdout
from kidseg.train.setup import Setup, resolve
from kidseg.train.tuning import check_tune

__all__ = ["Arm", "Design", "design"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method of a study with its settings.

    Attributes:
        name: used in tables and for folders.
        method: name of the method.
        preset: name of the preset, if any.
        config: TOML file of settings, if any.
        overrides: the study's common settings, then the arm's own.
        settings: the resolved configuration as TOML.
        model: file of the model to fine-tune, if any.
        tune: parameters to fine-tune, if not all.
        patients: number of training patients, if not all.
    """

    name: str
    method: str
    preset: str | None
    config: Path | None
    overrides: tuple[str, ...]
    settings: str
    model: Path | None = None
    tune: str | None = None
    patients: int | None = None


@dataclass(frozen=True, kw_only=True)
class Design:
    """A validated study, ready to run.

    Attributes:
        config: the study's settings.
        data: the data set.
        arms: the methods to compare.
        training: ids of the training cases.
        validation: ids of the cases for selecting weights.
        test: ids of the test cases.
        sha256: checksum of each case's files, images and labels.
        protocol: of the evaluation.
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
        """The settings with absolute paths and explicit test cases, independent of the location."""
        methods = {
            arm.name: replace(
                table,
                config=None if arm.config is None else str(arm.config),
                model=None if arm.model is None else str(arm.model.resolve()),
            )
            for arm, table in zip(self.arms, self.config.methods.values(), strict=True)
        }
        return replace(
            self.config,
            methods=methods,
            dataset=str(self.data.root.resolve()),
            test=self.test,
            test_patients=None,
        )

    def training_of(self, arm: Arm, seed: int) -> tuple[str, ...]:
        """The training cases of a run: all, or those of as many patients as the arm has."""
        if arm.patients is None:
            return self.training
        known = self.data.by_id
        patients = sorted({known[name].patient for name in self.training})
        random.Random(f"patients {seed}").shuffle(patients)
        drawn = set(patients[: arm.patients])
        return tuple(name for name in self.training if known[name].patient in drawn)

    def n_patients(self, cases: Sequence[str]) -> int:
        """Number of patients of these cases."""
        return len({self.data.by_id[name].patient for name in cases})

    def as_dict(self) -> dict[str, Any]:
        """The data set and its split, as plain data."""
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
    """Read and validate a study's file and split the data set.

    Args:
        file: TOML; see `kidseg.config.StudyConfig`.
        dataset: overrides the data set in the file.

    Raises:
        InputError: the file cannot be read; as `open_dataset` and `holdout`; "same-image": in two
            parts.
        UsageError: "bad-setting", with the key; "no-dataset"; "unknown-preset"; "unknown-case";
            "bad-split": no training cases remain, or a patient is in two parts.
    """
    config = load(StudyConfig, file=file)
    arms = tuple(_arm(name, table, config, file) for name, table in config.methods.items())
    if dataset is None and config.dataset is None:
        raise UsageError(
            "the study has no data set",
            path=file,
            code="no-dataset",
            next_step="Use --dataset, or set dataset in the file.",
        )
    data = open_dataset(dataset or file.parent / (config.dataset or ""))
    training, validation, test = _parts(data, config)
    _check_patients(arms, {data.by_id[name].patient for name in training}, file)
    known = data.by_id
    images = {name: sha256_of_all(known[name].images) for name in (*training, *validation, *test)}
    check_apart(images, training, validation, data.root)
    check_apart(images, (*training, *validation), test, data.root, other="test")
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
            f"methods.{name}: all methods have the same validation patients",
            path=file,
            next_step="Set validation_share at the top of the file instead.",
            code="bad-setting",
        )
    chosen = None if table.config is None else (file.parent / table.config).resolve()
    try:
        model = None if table.model is None else find_model(_located(table.model, file))
        setup = Setup(
            method=table.method,
            preset=table.preset,
            config_file=chosen,
            overrides=overrides,
            start=model,
            tune=table.tune,
        )
        resolved = resolve(setup)
        check_tune(resolved.method, resolved.config, resolved.plan, table.tune or "all")
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
        settings=dump(resolved.config),
        model=model,
        tune=table.tune,
        patients=table.patients,
    )


def _located(model: str, file: Path) -> Path | str:
    """A model relative to the study's file; as it is if there is none, or if it is the starter."""
    beside = file.parent / model
    return beside.resolve() if model != STARTER and beside.exists() else model


def _check_patients(arms: Sequence[Arm], patients: set[str], file: Path) -> None:
    for arm in arms:
        if arm.patients is not None and arm.patients > len(patients):
            raise UsageError(
                f"methods.{arm.name}: {arm.patients} training patients are more than the"
                f" {len(patients)} there are",
                path=file,
                code="too-few-patients",
                next_step="Use fewer, or fewer test and validation patients.",
            )


def _parts(
    data: Dataset, config: StudyConfig
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(training, validation, test) case ids; no patient is in two parts."""
    known = data.by_id
    if config.test:
        if unknown := sorted(set(config.test) - set(known)):
            raise UsageError(
                f"unknown test case(s), or without labels: {', '.join(unknown)}",
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
            f"patient {both[0]} has both test cases and other cases",
            path=data.root,
            code="bad-split",
            next_step="List all cases of a patient in test, or none.",
        )
    try:
        kept = holdout(rest, test_fraction=config.validation_share, seed=config.split_seed)
    except InputError as error:
        raise UsageError(
            f"too few patients remain besides {len(tested)} test patient(s): {error.cause}",
            path=data.root,
            code="bad-split",
            next_step="Use fewer test patients.",
        ) from error
    return kept.train, kept.test, test


def _content(case: Case) -> str:
    """SHA-256 of a case's file contents; a file of several channels is hashed once per channel."""
    return sha256_of_all([*case.images, *([] if case.labels is None else [case.labels])])
