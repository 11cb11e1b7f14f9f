"""The design of a study: arms with resolved settings, and data sets with their parts."""

from __future__ import annotations

import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kidseg.config import StudyConfig, StudyMethodConfig, dump, load
from kidseg.errors import KidsegWarning, UsageError
from kidseg.model_file import STARTER, find_model
from kidseg.study.partition import Partition, check_model, check_partitions, partition
from kidseg.train.setup import Setup, resolve, settings_from
from kidseg.train.trained_images import TrainedImages, images_of_model
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
        start: name of the arm whose model is fine-tuned, if any.
        tune: parameters to fine-tune, if not all.
        data: name of the data set to train on; "" for the study's own.
        patients: number of training patients, if not all.
        images: from which the model has learned; None without one.
    """

    name: str
    method: str
    preset: str | None
    config: Path | None
    overrides: tuple[str, ...]
    settings: str
    model: Path | None = None
    start: str | None = None
    tune: str | None = None
    data: str = ""
    patients: int | None = None
    images: TrainedImages | None = None

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of its figures should know."""
        if self.images is None or self.images.complete:
            return ()
        return (
            f"methods.{self.name}: {self.model} does not say from which images it has learned, so"
            " that test patients may be among them",
        )


@dataclass(frozen=True, kw_only=True)
class Design:
    """A validated study, ready to run.

    Attributes:
        config: the study's settings.
        arms: the methods to compare.
        main: the study's own data set, on which all arms are tested first of all.
        others: further data sets, on whose test cases they are tested, too.
    """

    config: StudyConfig
    arms: tuple[Arm, ...]
    main: Partition
    others: tuple[Partition, ...] = ()

    @property
    def runs(self) -> tuple[tuple[Arm, int], ...]:
        """Each arm with each seed; all arms with the first seed come first."""
        return tuple((arm, seed) for seed in self.config.seeds for arm in self.arms)

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """All data sets, the study's own first."""
        return (self.main, *self.others)

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
        others = {
            one.name: replace(self.config.others[one.name], **_located_parts(one))
            for one in self.others
        }
        return replace(self.config, methods=methods, others=others, **_located_parts(self.main))

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def trained_on(self, arm: Arm) -> Partition:
        """The data set that an arm is trained on."""
        return next(one for one in self.partitions if one.name == arm.data)

    def training_of(self, arm: Arm, seed: int) -> tuple[str, ...]:
        """The training cases of a run: all, or those of as many patients as the arm has."""
        return self.trained_on(arm).of_patients(arm.patients, seed)


def design(
    file: Path, *, dataset: Path | None = None, others: Mapping[str, Path] | None = None
) -> Design:
    """Read and validate a study's file and split its data sets.

    Args:
        file: TOML; see `kidseg.config.StudyConfig`.
        dataset: overrides the data set in the file.
        others: override other data sets in the file, by name.

    Raises:
        InputError: the file cannot be read; as `partition`, `check_partitions` and `check_model`.
        ModelError: as `resolve` and `images_of_model`.
        UsageError: "bad-setting", with the key; "no-dataset"; "unknown-dataset"; "unknown-preset";
            as `partition`.
    """
    config = load(StudyConfig, file=file)
    arms: dict[str, Arm] = {}
    for name, table in config.methods.items():
        arms[name] = _arm(name, table, config, file, arms)
    folders = _folders(config, file, dataset, others or {})
    main, *further = (
        partition(name, folder, config.others[name] if name else config, config)
        for name, folder in folders.items()
    )
    check_partitions([main, *further], file)
    for arm in arms.values():
        _check_start(arm, [main, *further])
    found = Design(config=config, arms=tuple(arms.values()), main=main, others=tuple(further))
    _check_patients(found, file)
    return found


def _folders(
    config: StudyConfig, file: Path, dataset: Path | None, others: Mapping[str, Path]
) -> dict[str, Path]:
    """The folder of each data set by its name, the study's own, "", first."""
    if unknown := sorted(set(others) - set(config.others)):
        raise UsageError(
            f"the study has no other data set '{unknown[0]}'",
            path=file,
            code="unknown-dataset",
            next_step=f"Name one of: {', '.join(config.others)}."
            if config.others
            else "Leave out --other.",
        )
    given = {"": dataset, **others}
    folders = {}
    for name, own in {"": config, **config.others}.items():
        if given.get(name) is None and own.dataset is None:
            raise UsageError(
                f"the study's data set '{name}' is in no folder"
                if name
                else "the study has no data set",
                path=file,
                code="no-dataset",
                next_step=f"Use --other {name}=FOLDER, or set others.{name}.dataset in the file."
                if name
                else "Use --dataset, or set dataset in the file.",
            )
        folders[name] = given.get(name) or file.parent / (own.dataset or "")
    return folders


def _located_parts(one: Partition) -> dict[str, Any]:
    return {"dataset": str(one.data.root.resolve()), "test": one.test, "test_patients": None}


def _arm(
    name: str, table: StudyMethodConfig, config: StudyConfig, file: Path, above: Mapping[str, Arm]
) -> Arm:
    """The arm of a table; `above` are those it may start from."""
    overrides = (*config.common.set, *table.set)
    if any(text.partition("=")[0].strip() == "cohort.validation_share" for text in overrides):
        raise UsageError(
            f"methods.{name}: all methods have the same validation patients",
            path=file,
            next_step="Set validation_share at the top of the file instead.",
            code="bad-setting",
        )
    images = None
    chosen = None if table.config is None else (file.parent / table.config).resolve()
    try:
        model = None if table.model is None else find_model(_located(table.model, file))
        setup = Setup(
            method=table.method,
            preset=table.preset,
            config_file=chosen,
            overrides=overrides,
            start=model,
            tune=None if table.start else table.tune,
        )
        if table.start is not None:
            settings = _settings_after(above[table.start], setup)
        else:
            resolved = resolve(setup)
            check_tune(resolved.method, resolved.config, resolved.plan, table.tune or "all")
            settings = dump(resolved.config)
            if resolved.start is not None:
                images = images_of_model(resolved.start.header, model)
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
        model=model,
        start=table.start,
        tune=table.tune,
        data=table.data or "",
        patients=table.patients,
        images=images,
    )


def _settings_after(first: Arm, setup: Setup) -> str:
    """The settings of an arm that starts from the model of another."""
    if setup.method != first.method:
        raise UsageError(
            f"it starts from '{first.name}', which has method '{first.method}'",
            code="other-method",
            next_step="Use the same method for both.",
        )
    return dump(settings_from(tomllib.loads(first.settings), setup, first.method))


def _check_start(arm: Arm, partitions: Sequence[Partition]) -> None:
    """Check that the model an arm starts from has not learned from a test image.

    Warns if the model does not say, or not of all, which images these were.
    """
    if arm.model is None or arm.images is None:
        return
    check_model(arm.images, arm.model, partitions, arm.name)
    for text in arm.remarks:
        warnings.warn(text, KidsegWarning, stacklevel=4)


def _located(model: str, file: Path) -> Path | str:
    """A model relative to the study's file; as it is if there is none, or if it is the starter."""
    beside = file.parent / model
    return beside.resolve() if model != STARTER and beside.exists() else model


def _check_patients(found: Design, file: Path) -> None:
    for arm in found.arms:
        one = found.trained_on(arm)
        known = one.n_patients(one.training)
        if arm.patients is not None and arm.patients > known:
            raise UsageError(
                f"methods.{arm.name}: {arm.patients} training patients are more than the"
                f" {known} there are",
                path=file,
                code="too-few-patients",
                next_step="Use fewer, or fewer test and validation patients.",
            )
