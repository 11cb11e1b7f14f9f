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
        raise ValueError(f"there is no method '{name}', only {', '.join(METHODS)}")
    return name


_Seed = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyCommonConfig:
    """What all methods of a study share.

    Attributes:
        set: settings, each "key=value", over presets and files, under a method's own.
    """

    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyMethodConfig:
    """One row of a study's table.

    Attributes:
        method: what is trained.
        preset: settings that come with the package.
        config: TOML file of settings, over the preset; its path is relative to the study's file.
        set: settings, each "key=value", over all others.
    """

    method: Annotated[str, AfterValidator(_known_method)]
    preset: str | None = None
    config: str | None = None
    set: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StudyConfig:
    """Methods, a data set, its test part and the seeds.

    Attributes:
        methods: by the name that stands in tables and names folders.
        common: settings of all methods.
        dataset: folder in any layout, relative to the study's file; None: given by the caller.
        test: ids of the test cases; or
        test_patients: how many patients are drawn for the test, stratified by age and side.
        split_seed: draws the test patients, and of the others those to validate on. These are the
            same for all methods and seeds, so that runs differ in nothing but method and seed.
        validation_share: part of the patients left for development that is validated on.
        seeds: each method is trained once with each.
        protocol: by whose rules the test is scored.
        cyst: what a cyst counts as in scores; None: as the protocol says.
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
            raise ValueError("a seed stands twice in seeds")
        return self
