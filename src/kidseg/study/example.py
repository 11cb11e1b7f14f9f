"""An example of a study, with the meaning of every setting."""

from __future__ import annotations

from kidseg.config import StudyCommonConfig, StudyConfig, StudyMethodConfig, explain

__all__ = ["EXAMPLE", "example"]

EXAMPLE = StudyConfig(
    dataset="patients",
    test_patients=4,
    seeds=(0,),
    common=StudyCommonConfig(set=("budget_s=200.0",)),
    methods={
        name: StudyMethodConfig(method=name, preset="demo") for name in ("plain", "homogenized")
    },
)
"""Two methods on 20 digital patients: minutes on two cores."""

_TITLE = """\
A study: methods trained, tested and compared on one data set. "null" stands for no value. It runs \
as it is on digital patients:

kidseg phantom patients --patients 20 --size 128 --set max_slices=24

kidseg study study.toml -o study"""


def example() -> str:
    """The example as TOML, which `design` can read."""
    return explain(EXAMPLE, _TITLE)
