"""Draw the anatomy of one person: a child or an adult, usual or of the broad cohort."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kidseg.phantom import growth
from kidseg.phantom.adult import draw_adult
from kidseg.phantom.anatomy import Anatomy, KidneyForm, TumourForm
from kidseg.phantom.child import (
    AFTER_CHEMOTHERAPY,
    AT_SURGERY,
    BEFORE_CHEMOTHERAPY,
    FIRST_OF_TWO,
    draw_child,
    draw_treated_volume_ml,
)
from kidseg.phantom.disease import necrotic, varied_child
from kidseg.phantom.tumour import resized

__all__ = ["after_chemotherapy", "draw_anatomy"]

_TREATED_SHARE = 0.5
"""Share of the children of the broad cohort after their first chemotherapy: half the scans."""


def draw_anatomy(
    rng: np.random.Generator,
    age_years: float,
    *,
    tumour: TumourForm | None = None,
    kidneys: KidneyForm | None = None,
    broad: bool = False,
    first_of_two: bool = False,
) -> Anatomy:
    """Draw a person of this age; older than 16 years an adult.

    Args:
        rng: random generator.
        age_years: 0 to 90.
        tumour: "one-sided", "bilateral" or "none"; by default one-sided or bilateral at random.
        kidneys: form; by default "separate", "single" or "horseshoe" at random.
        broad: children with the wide ranges of the broad cohort; adults always have them.
        first_of_two: the tumours of a child are those before chemotherapy, of which
            `after_chemotherapy` makes the others. By default those at surgery; in the broad cohort
            before or after.

    Raises:
        ValueError: an age outside 0..90.
    """
    low, high = growth.AGE_RANGE_YEARS
    if not low <= age_years <= high:
        raise ValueError(f"age {age_years} is not within {low:g} to {high:g} years")
    if age_years > growth.CHILD_AGES_YEARS[1]:
        return draw_adult(rng, age_years, tumour=tumour, kidneys=kidneys)
    treated = broad and rng.random() < _TREATED_SHARE and not first_of_two
    volumes = AT_SURGERY
    if first_of_two:
        volumes = FIRST_OF_TWO
    elif broad:
        volumes = AFTER_CHEMOTHERAPY if treated else BEFORE_CHEMOTHERAPY
    child = draw_child(rng, age_years, tumour=tumour, kidneys=kidneys, volumes=volumes)
    return varied_child(rng, child, treated=treated) if broad else child


def after_chemotherapy(rng: np.random.Generator, child: Anatomy) -> Anatomy:
    """The same child after the first chemotherapy: each tumour has another volume, mostly less."""
    tumours = []
    for tumour in child.tumours:
        volume_ml = draw_treated_volume_ml(rng, tumour.volume_ml, child.body)
        tumours.append(necrotic(rng, resized(tumour, child.body, volume_ml)))
    return replace(child, tumours=tuple(tumours))
