"""Draw the anatomy of one person: a child or an adult, usual or of the broad cohort."""

from __future__ import annotations

import numpy as np

from kidseg.phantom import growth
from kidseg.phantom.adult import draw_adult
from kidseg.phantom.anatomy import Anatomy, KidneyForm, TumourForm
from kidseg.phantom.child import (
    AFTER_CHEMOTHERAPY,
    AT_SURGERY,
    BEFORE_CHEMOTHERAPY,
    draw_child,
)
from kidseg.phantom.disease import varied_child

__all__ = ["draw_anatomy"]

_TREATED_SHARE = 0.5
"""Share of the children of the broad cohort after their first chemotherapy: half the scans."""


def draw_anatomy(
    rng: np.random.Generator,
    age_years: float,
    *,
    tumour: TumourForm | None = None,
    kidneys: KidneyForm | None = None,
    broad: bool = False,
) -> Anatomy:
    """Draw a person of this age; older than 16 years an adult.

    Args:
        rng: random generator.
        age_years: 0 to 90.
        tumour: "one-sided", "bilateral" or "none"; by default one-sided or bilateral at random.
        kidneys: form; by default "separate", "single" or "horseshoe" at random.
        broad: children with the wide ranges of the broad cohort; adults always have them.

    Raises:
        ValueError: an age outside 0..90.
    """
    low, high = growth.AGE_RANGE_YEARS
    if not low <= age_years <= high:
        raise ValueError(f"age {age_years} is not within {low:g} to {high:g} years")
    if age_years > growth.CHILD_AGES_YEARS[1]:
        return draw_adult(rng, age_years, tumour=tumour, kidneys=kidneys)
    if not broad:
        return draw_child(rng, age_years, tumour=tumour, kidneys=kidneys, volumes=AT_SURGERY)
    treated = rng.random() < _TREATED_SHARE
    volumes = AFTER_CHEMOTHERAPY if treated else BEFORE_CHEMOTHERAPY
    child = draw_child(rng, age_years, tumour=tumour, kidneys=kidneys, volumes=volumes)
    return varied_child(rng, child, treated=treated)
