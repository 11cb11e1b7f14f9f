"""Any labels are measured without a failure: random blobs on oblique, anisotropic grids."""

from __future__ import annotations

import json

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from kidseg.geometry import Grid, Volume
from kidseg.labels import LabelSchema
from kidseg.measure.criteria import read_criteria
from kidseg.measure.measurement import Measurement, measure_parts
from kidseg.measure.midline import estimated_midline
from kidseg.measure.parts import Labelled, Parts, find_parts
from kidseg.measure.person import Patient
from kidseg.measure.response import changes
from solids import rotation

SCHEMA = LabelSchema.from_names({1: "kidney", 2: "tumour", 3: "cyst", 4: "ureter", 5: "tumour 2"})
CRITERIA = read_criteria()


def measured(
    seed: int, shape: tuple[int, int, int], spacing_mm: tuple[float, ...], most: int
) -> tuple[Parts, Measurement]:
    rng = np.random.default_rng(seed)
    smooth = [
        ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.5, 2)) for _ in range(6)
    ]
    data = np.argmax(smooth, axis=0).astype(np.uint8)
    data[data > most] = 0
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(seed % 4)
    grid = Grid.from_spacing(shape, spacing_mm).moved(torch.from_numpy(matrix))
    volume = Volume(torch.from_numpy(data)[None], grid)
    labelled = Labelled(
        labels=volume,
        schema=SCHEMA,
        midline=estimated_midline(volume, SCHEMA, is_cropped=seed % 2 == 0),
        tracking={5: "tumour 2"} if seed % 3 else {},
        is_cropped=seed % 2 == 0,
    )
    parts = find_parts(labelled, 0.02)
    person = Patient(height_cm=90.0, weight_kg=12.0)
    found = measure_parts(
        labelled, parts, CRITERIA, person=person, margin_mm=2.0, entered={}, opinions=[labelled]
    )
    return parts, found


@settings(max_examples=8)
@example(seed=473152, shape=(1, 1, 1), spacing_mm=(0.7, 0.7, 0.7), most=0)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    spacing_mm=st.tuples(*[st.sampled_from([0.7, 1.0, 2.0, 5.0])] * 3),
    most=st.integers(0, 5),
)
def test_any_labels_are_measured_and_compared(
    seed: int, shape: tuple[int, int, int], spacing_mm: tuple[float, ...], most: int
) -> None:
    before = measured(seed, shape, spacing_mm, most)
    after = measured(seed + 1, (9, 10, 11), (2.0, 1.5, 1.5), 5)
    for _, found in (before, after):
        json.dumps(found.as_dict(), allow_nan=False)
        for structure in found.structures:
            for quantity in structure.quantities:
                low, high = quantity.low, quantity.high
                assert low is None or low <= quantity.value, quantity
                assert high is None or quantity.value <= high, quantity
            assert not structure.borders or structure.quantities[0].high is None
    for change in changes(before, after):
        json.dumps(change.as_dict(), allow_nan=False)
        assert change.change.value == change.volume_after.value - change.volume_before.value
