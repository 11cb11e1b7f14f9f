"""Invalid settings are named in the words of the file, with the keys of their own section."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kidseg.config import METHODS, PhantomConfig, StudyConfig, load, meanings
from kidseg.errors import UsageError

KINDS = [*METHODS.values(), PhantomConfig, StudyConfig]
VALUES = ["-1", "0", "1e9", "nan", "inf", "true", '"x"', "[]", "[[1]]", "[1, 'a']", "{x = 1}"]
VALUES += ["1979-05-27", "''", '"null"', "[0.5, 0.5]", "{a = {method = 'plain'}}"]
FOREIGN = ("Config", "pydantic", "Input should", "validation error", "literal[", "function-")


def refusal(kind: type, *overrides: str, file: Path | None = None) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(kind, overrides=overrides, file=file)
    assert caught.value.code == "bad-setting"
    assert not [word for word in FOREIGN if word in str(caught.value)], str(caught.value)
    assert caught.value.next_step
    return caught.value


def test_an_unknown_key_is_answered_with_the_keys_of_its_section() -> None:
    error = refusal(METHODS["homogenized"], "pose.localizer.kernel=[3,3]")
    assert "did you mean 'pose.localizer.kernels'" in error.cause
    assert "Keys of [pose.localizer]: angle_limit_deg" in error.next_step
    assert "budget_clock" not in error.next_step, "keys of another section"
    assert "kidseg config homogenized" in error.next_step


def test_a_key_of_another_section_is_found() -> None:
    error = refusal(METHODS["plain"], "batch_size=3")
    assert "did you mean 'segment.batch_size'" in error.cause
    assert "Keys at the top: " in error.next_step


def test_a_key_that_resembles_none_has_no_guess() -> None:
    assert "did you mean" not in refusal(PhantomConfig, "wavelength=3").cause


@pytest.mark.parametrize(
    ("kind", "override", "words"),
    [
        (PhantomConfig, "size=8", "'size' must be at least 32, not 8"),
        (PhantomConfig, "size=2.5", "'size' must be a whole number, not 2.5"),
        (PhantomConfig, 'size="128"', "'size' must be a whole number, not \"128\""),
        (PhantomConfig, "tumour_share=1.5", "'tumour_share' must be at most 1, not 1.5"),
        (PhantomConfig, "tumour_share=nan", "'tumour_share' must be a finite number"),
        (PhantomConfig, "ages_years=[1]", "'ages_years' must be a list of 2 values, not [1]"),
        (PhantomConfig, "ages_years=[1,2,3]", "'ages_years' must be a list of 2 values"),
        (PhantomConfig, "ages_years=[1,true]", "'ages_years[1]' must be a number, not true"),
        (PhantomConfig, "ages_years=3", "'ages_years' must be a list, not 3"),
        (PhantomConfig, "phase=late", '"excretory", "unenhanced" or "mixed", not "late"'),
        (PhantomConfig, "max_slices=many", "'max_slices' must be a whole number, not \"many\""),
        (METHODS["plain"], "unet.skips=16", '\'unet.skips\' must be "all", "long" or 32, not 16'),
        (METHODS["plain"], "unet.size=100", "'unet': halving 100 pixels does not reach 8"),
        (METHODS["plain"], "unet=5", "'unet' must be a table, not 5"),
        (METHODS["plain"], "segment.optimizer.momentum=1", "must be below 1, not 1"),
        (METHODS["plain"], "segment.optimizer.learning_rate=0", "must be above 0, not 0"),
        (METHODS["homogenized"], "crop=3", "'crop' must be a table, not 3"),
        (METHODS["homogenized"], "pose.flip=1", "'pose.flip' must be true or false, not 1"),
        (METHODS["homogenized"], "pose.localizer.size=66", "must be a multiple of 4, not 66"),
        (StudyConfig, "seeds=[]", "'seeds' must be a list of at least 1 value, not []"),
        (StudyConfig, "seeds=[1.5]", "'seeds[0]' must be a whole number, not 1.5"),
        (StudyConfig, "methods={}", "'methods' must be a table with at least one entry"),
        (StudyConfig, "methods.a.set=[]", "'methods.a.method' is missing"),
        (StudyConfig, 'methods={"a/b"={method="plain"}}', "the name 'methods.a/b' may have"),
        (StudyConfig, "methods.a.presets=x", "did you mean 'methods.a.preset'"),
    ],
)
def test_what_a_value_must_be_is_said(kind: type, override: str, words: str) -> None:
    assert words in refusal(kind, override).cause


def test_the_file_is_named_only_if_the_problem_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("size = 8\n")
    assert refusal(PhantomConfig, file=file).path == str(file)
    assert refusal(PhantomConfig, "phase=late", file=file).path == str(file)
    file.write_text("size = 64\n")
    assert refusal(PhantomConfig, "phase=late", file=file).path is None


def test_all_problems_are_listed_at_once() -> None:
    cause = refusal(PhantomConfig, "size=8", "fase=late", "tumour_share=2").cause
    assert all(word in cause for word in ("'size'", "'fase'", "'tumour_share'"))


@pytest.mark.ci
@given(data=st.data())
def test_no_value_of_any_setting_brings_foreign_words(data: st.DataObject) -> None:
    """Each setting with values of every TOML type: valid, or refused in our own words."""
    kind = data.draw(st.sampled_from(KINDS))
    key = data.draw(st.sampled_from(sorted(meanings(kind)))).replace("*", "a")
    try:
        load(kind, overrides=[f"{key}={data.draw(st.sampled_from(VALUES))}"])
    except UsageError as caught:
        error = caught
    else:
        return
    assert not [word for word in FOREIGN if word in str(error)], str(error)
    assert error.next_step
