"""Settings of a study: methods compared on one data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator
from pydantic.dataclasses import dataclass

from kidseg.config.catalogue import METHODS
from kidseg.config.checked import CHECKED

__all__ = ["StudyCommonConfig", "StudyConfig", "StudyDataConfig", "StudyMethodConfig"]

_FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


def _known_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"unknown method '{name}'; choose one of {', '.join(METHODS)}")
    return name


_Seed = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyCommonConfig:
    """Settings common to all methods of a study."""

    set: tuple[str, ...] = ()
    """Settings, each "key=value"; they override presets and files, but not a method's own."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyMethodConfig:
    """One row of a study's table."""

    method: Annotated[
        str,
        AfterValidator(_known_method),
        WithJsonSchema({"type": "string", "enum": list(METHODS)}),
    ]
    """Name of the method."""
    preset: str | None = None
    """Name of a preset of the package. None: the method's defaults."""
    config: str | None = None
    """TOML file of settings, relative to the study's file; overrides the preset. None: no file."""
    set: tuple[str, ...] = ()
    """Settings, each "key=value"; they override all others."""
    model: str | None = None
    """Model to fine-tune: a file or run folder, relative to the study's file, or the name of a
    model of the package. None: training starts from scratch.
    """
    start: str | None = None
    """Method above this one whose model, of the same seed, is fine-tuned. None: see model."""
    tune: str | None = None
    """What is fine-tuned, as for `kidseg train --tune`. None: all parameters."""
    data: str | None = None
    """Which of the other data sets it is trained on. None: the study's own."""
    patients: int | None = Field(default=None, ge=1)
    """Number of training patients, which each seed draws at random; fewer are a part of more.
    None: all.
    """

    @model_validator(mode="after")
    def _check_tune(self) -> StudyMethodConfig:
        if self.tune is not None and self.model is None and self.start is None:
            raise ValueError("tune requires a model to fine-tune")
        if self.model is not None and self.start is not None:
            raise ValueError("give either model, a file, or start, a method of this study")
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyDataConfig:
    """A data set and its test cases."""

    dataset: str | None = None
    """Folder of the data set in any layout, relative to the study's file. None: named on the
    command line, by --dataset, or by --other for one of `others`.
    """
    test: tuple[str, ...] = ()
    """Ids of the test cases; empty: test_patients are drawn."""
    test_patients: int | None = Field(default=None, ge=1)
    """Number of test patients, drawn at random, stratified by age and side. None: the cases of
    test.
    """

    @model_validator(mode="after")
    def _check_test(self) -> StudyDataConfig:
        if bool(self.test) == (self.test_patients is not None):
            raise ValueError("give either test, the ids of cases, or test_patients, a number")
        return self


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyConfig(StudyDataConfig):
    """Methods, a data set, its test part and the seeds."""

    methods: dict[_FolderName, StudyMethodConfig] = Field(min_length=1)
    """The methods to compare, each a row of the tables, by the name used there and for folders."""
    common: StudyCommonConfig = StudyCommonConfig()
    """Settings common to all methods."""
    others: dict[_FolderName, StudyDataConfig] = Field(default_factory=dict)
    """Further data sets, by name, for methods to be trained on; all methods are tested on the test
    cases of each, too.
    """
    split_seed: int = Field(default=0, ge=0)
    """Seed of the test and validation split. The split is the same for all methods and seeds, so
    that runs differ only in method and seed.
    """
    validation_share: float = Field(default=0.2, gt=0, lt=1)
    """Fraction of the other patients used for validation."""
    seeds: tuple[_Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    """Each method is trained once with each seed."""
    protocol: Literal["native", "kits19", "kits23"] = "native"
    """Scoring protocol of the evaluation."""
    cyst: Literal["tumour", "kidney", "background"] | None = None
    """What a cyst counts as in the evaluation. None: as defined by the protocol."""

    @model_validator(mode="after")
    def _check_together(self) -> StudyConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds contains a seed twice")
        above: set[str] = set()
        for name, method in self.methods.items():
            if method.start is not None and method.start not in above:
                raise ValueError(
                    f"methods.{name}: no method '{method.start}' above it to start from"
                )
            if method.data is not None and method.data not in self.others:
                raise ValueError(f"methods.{name}: no data set '{method.data}' in others")
            above.add(name)
        return self
