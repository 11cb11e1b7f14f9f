"""Settings of a study: methods compared on one data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from kidseg.config.loading import CHECKED
from kidseg.config.methods import METHODS

__all__ = ["StudyCommonConfig", "StudyConfig", "StudyMethodConfig"]

_FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


def _known_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"unknown method '{name}'; choose one of {', '.join(METHODS)}")
    return name


_Seed = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyCommonConfig:
    """Settings common to all methods of a study.

    Attributes:
        set: settings, each "key=value"; they override presets and files, but not a method's own.
    """

    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyMethodConfig:
    """One row of a study's table.

    Attributes:
        method: name of the method.
        preset: name of a preset of the package.
        config: TOML file of settings, overrides the preset; relative to the study's file.
        set: settings, each "key=value"; they override all others.
    """

    method: Annotated[str, AfterValidator(_known_method)]
    preset: str | None = None
    config: str | None = None
    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyConfig:
    """Methods, a data set, its test part and the seeds.

    Attributes:
        methods: by the name used in tables and for folders.
        common: settings of all methods.
        dataset: folder in any layout, relative to the study's file; None: passed by the caller.
        test: ids of the test cases; or
        test_patients: number of test patients, drawn at random, stratified by age and side.
        split_seed: seed of the test and validation split. The split is the same for all methods and
            seeds, so that runs differ only in method and seed.
        validation_share: fraction of the other patients used for validation.
        seeds: each method is trained once with each seed.
        protocol: of the evaluation.
        cyst: what a cyst counts as in the evaluation; None: as defined by the protocol.
    """

    methods: dict[_FolderName, StudyMethodConfig] = Field(min_length=1)
    common: StudyCommonConfig = StudyCommonConfig()
    dataset: str | None = None
    test: tuple[str, ...] = ()
    test_patients: int | None = Field(default=None, ge=1)
    split_seed: int = Field(default=0, ge=0)
    validation_share: float = Field(default=0.2, gt=0, lt=1)
    seeds: tuple[_Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    protocol: Literal["native", "kits19", "kits23"] = "native"
    cyst: Literal["tumour", "kidney", "background"] | None = None

    @model_validator(mode="after")
    def _check_test(self) -> StudyConfig:
        if bool(self.test) == (self.test_patients is not None):
            raise ValueError("give either test, the ids of cases, or test_patients, a number")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds contains a seed twice")
        return self
