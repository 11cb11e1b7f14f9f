"""Lean people: who changes, that organs lie at the kidneys, and that labels of kidneys remain."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from anatomies import shown, without_and_with
from kidseg.config import KidneyForm, PhantomConfig
from kidseg.phantom.anatomy import ORGANS, Anatomy
from kidseg.phantom.apposition import with_apposed_organs
from kidseg.phantom.patient import draw_patient
from kidseg.phantom.people import draw_anatomy
from kidseg.phantom.render import KIDNEY, Rendering

STEP_MM = 3.0
NUMBER = {name: number for number, name in ORGANS.items()}


def person(kidneys: KidneyForm = "separate") -> Anatomy:
    rng = np.random.default_rng(4)
    return draw_anatomy(rng, 60.0, tumour="none", kidneys=kidneys, broad=True)


def lean(seed: int, kidneys: KidneyForm = "separate") -> Anatomy:
    return with_apposed_organs(np.random.default_rng(seed), person(kidneys))


@cache
def usual() -> Rendering:
    return shown(person(), STEP_MM, "early-arterial")


@cache
def shown_lean(seed: int) -> Rendering:
    return shown(lean(seed), STEP_MM, "early-arterial")


def surface_share(rendering: Rendering, organ: str, side: int) -> float:
    """Of the voxels around one kidney (1 right, -1 left), those of an organ within two voxels."""
    _, _, columns = rendering.labels.shape
    half = np.arange(columns) > columns / 2
    kidney = (rendering.labels == KIDNEY) & (half if side > 0 else ~half)
    around = ndimage.binary_dilation(kidney, iterations=2) & ~kidney
    return float((rendering.organs[around] == NUMBER[organ]).mean())


@pytest.mark.ci
def test_without_the_setting_nobody_changes_and_with_it_only_neighbours_and_fat() -> None:
    for before, after in without_and_with("apposed_share"):
        assert before.neighbours is None and after.neighbours is not None
        look = replace(after.look, perirenal_mm=before.look.perirenal_mm)
        assert replace(after, neighbours=None, look=look) == before


def test_it_adds_to_the_neighbours_that_a_person_has() -> None:
    config = PhantomConfig(ages_years=(0.0, 90.0), neighbour_share=1.0)
    before, after = (
        draw_patient(replace(config, apposed_share=share), seed=3, index=1).anatomy.neighbours
        for share in (0.0, 1.0)
    )
    assert before is not None and after is not None
    assert after.extensions[: len(before.extensions)] == before.extensions
    assert replace(after, extensions=(), bed=1.0, film_mm=0.0) == replace(
        before, extensions=(), bed=1.0
    )


@pytest.mark.slow
def test_liver_and_spleen_lie_at_the_kidneys() -> None:
    """The side that the scan shows on the right of its columns is the patient's left."""
    people = [shown_lean(seed) for seed in range(4)]
    for organ, most in (("liver", 0.1), ("spleen", 0.02)):
        sides = [
            (surface_share(usual(), organ, side), [surface_share(p, organ, side) for p in people])
            for side in (1, -1)
        ]
        before, after = max(sides, key=lambda each: max(each[1]))
        assert max(after) > before + most
        if organ == "liver":
            assert min(after) > before


@pytest.mark.ci
def test_kidneys_keep_their_labels() -> None:
    for seed in range(4):
        assert np.array_equal(shown_lean(seed).labels, usual().labels)


def test_without_a_kidney_there_is_nothing_to_lie_at() -> None:
    neighbours = lean(1, "absent").neighbours
    assert neighbours is not None and neighbours.extensions == ()
