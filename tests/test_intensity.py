"""Intensity statistics and normalisation: hand-computed, and the limits they must reach."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kidseg.intensity import (
    AIR_HU,
    Normalisation,
    Scaling,
    Statistics,
    as_input,
    normalise,
    pool,
    sample,
    scalings,
)

STATISTICS = Statistics(
    mean=80.0,
    sd=20.0,
    median=75.0,
    min=-90.0,
    max=500.0,
    percentile_00_5=-40.0,
    percentile_99_5=300,
)


def channel(name: str, *, inside_only: bool = False) -> Normalisation:
    return Normalisation.of_channel(name, STATISTICS, inside_only=inside_only)


def test_ct_is_clipped_then_standardised_with_the_data_set() -> None:
    hu = torch.tensor([[-1000, -40, 80, 100, 300, 3000]], dtype=torch.int16)
    expected = torch.tensor([[-6.0, -6.0, 0.0, 1.0, 11.0, 11.0]])
    assert torch.allclose(normalise(hu, [channel("CT")]), expected)
    assert hu[0, 0] == -1000  # the input is left alone


def test_a_fixed_range_replaces_the_percentiles_of_ct() -> None:
    """-30 to 300; mean 80 and SD 20 as before."""
    hu = torch.tensor([[-1000, -40, 80, 100, 300, 3000]], dtype=torch.int16)
    fixed = replace(channel("CT"), clip=(-30.0, 300.0))
    expected = torch.tensor([[-5.5, -5.5, 0.0, 1.0, 11.0, 11.0]])
    assert torch.allclose(normalise(hu, [fixed]), expected)
    assert Normalisation.from_dict(json.loads(json.dumps(fixed.as_dict()))) == fixed
    other = replace(channel("T1"), clip=(-30.0, 300.0))
    assert torch.equal(normalise(hu, [other]), normalise(hu, [channel("T1")]))


def test_other_channels_are_standardised_each_with_itself() -> None:
    image = torch.tensor([[1.0, 3.0, 5.0, 7.0], [10.0, 10.0, 10.0, 10.0]])
    out = normalise(image, [channel("T1"), channel("T2")])
    sd = 5**0.5
    assert torch.allclose(out[0], torch.tensor([-3 / sd, -1 / sd, 1 / sd, 3 / sd]))
    assert (out[1] == 0).all()  # a constant image is no division by zero


def test_inside_only_leaves_the_outside_at_zero() -> None:
    image = torch.tensor([[0.0, 2.0, 4.0, 0.0]])
    inside = torch.tensor([False, True, True, False])
    how = [channel("T1", inside_only=True)]
    assert torch.allclose(normalise(image, how, inside), torch.tensor([[0.0, -1.0, 1.0, 0.0]]))
    empty = torch.zeros(4, dtype=torch.bool)
    assert torch.equal(normalise(image, how, empty), image)
    with pytest.raises(ValueError, match="non-zero region"):
        normalise(image, how)


def test_named_schemes() -> None:
    image = torch.tensor([[50.0, 100.0, 150.0]])
    names = {
        "rescale_to_0_1": [0.0, 0.5, 1.0],
        "rgb_to_0_1": [50 / 255, 100 / 255, 150 / 255],
        "noNorm": [50.0, 100.0, 150.0],
    }
    for name, expected in names.items():
        assert torch.allclose(normalise(image, [channel(name)]), torch.tensor([expected])), name
    assert torch.equal(
        normalise(torch.full((1, 3), 7.0), [channel("rescale_to_0_1")]), torch.zeros(1, 3)
    )
    with pytest.raises(ValueError, match=r"0\.\.255"):
        normalise(torch.tensor([[-1.0]]), [channel("rgb_to_0_1")])


def test_scheme_follows_the_name_of_the_channel() -> None:
    schemes = [channel(name).scheme for name in (" ct ", "CT", "MRI", "zscore", "RGB_to_0_1")]
    assert schemes == ["ct", "ct", "zscore", "zscore", "rgb_to_0_1"]
    assert not channel("CT", inside_only=True).inside_only
    assert channel("MRI", inside_only=True).inside_only


def test_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="2 channels, but the plan 1"):
        normalise(torch.zeros(2, 3), [channel("CT")])


def test_normalisation_survives_json() -> None:
    one = channel("T1", inside_only=True)
    assert Normalisation.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_each_case_weighs_the_same() -> None:
    """A case of 2 voxels counts as much as one of 2000."""
    small, large = np.array([0, 100]), np.repeat([200, 300], 1000)
    pooled = pool([sample(small), None, sample(large)])
    assert pooled is not None
    assert pooled.mean == pytest.approx(150.0)
    assert pooled.sd == pytest.approx(np.std([0, 100, 200, 300]))
    assert (pooled.min, pooled.max, pooled.median) == (0, 300, 100)


def test_no_foreground_gives_none() -> None:
    assert sample(np.array([], dtype=np.int16)) is None
    assert pool([None, sample(np.array([]))]) is None


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1), st.booleans())
def test_it_is_the_limit_of_drawing_with_replacement(seed: int, fractional: bool) -> None:
    """nnU-Net draws; over many draws its figures approach ours."""
    rng = np.random.default_rng(seed)
    cases = [rng.normal(60 * k, 40, size=rng.integers(500, 3000)) for k in range(3)]
    if not fractional:
        cases = [case.round() for case in cases]
    pooled = pool([sample(case) for case in cases])
    assert pooled is not None
    drawn = np.concatenate([rng.choice(case, 200_000) for case in cases])
    assert pooled.mean == pytest.approx(drawn.mean(), abs=0.5)
    assert pooled.sd == pytest.approx(drawn.std(), abs=0.5)
    for share, value in [(0.5, pooled.percentile_00_5), (50, pooled.median)]:
        low, high = np.percentile(drawn, [share - 0.3 if share > 1 else 0.4, share + 0.3])
        assert low - 1 <= value <= high + 1


def test_many_distinct_values_are_merged_without_moving_the_figures() -> None:
    values = np.random.default_rng(0).normal(100, 30, 300_000)
    reduced = sample(values)
    assert reduced is not None and len(reduced.values) == 2**16
    assert reduced.counts.sum() == len(values)
    pooled = pool([reduced])
    assert pooled is not None
    assert pooled.mean == pytest.approx(values.mean()) and pooled.sd == pytest.approx(values.std())
    assert (pooled.min, pooled.max) == (values.min(), values.max())
    for mine, share in [(pooled.percentile_00_5, 0.5), (pooled.percentile_99_5, 99.5)]:
        assert mine == pytest.approx(np.percentile(values, share), abs=0.05)


def test_order_of_voxels_does_not_matter() -> None:
    values = np.random.default_rng(1).integers(-100, 300, 5000)
    assert pool([sample(values)]) == pool([sample(values[::-1].copy())])


# ---- scalings of each case -----------------------------------------------------------------------


def test_outside_of_a_ct_is_air_and_of_all_else_nothing() -> None:
    names = ("CT", "T1", "zscore", "rescale_to_0_1", "rgb_to_0_1", "noNorm")
    assert [channel(name).padding_value for name in names] == [AIR_HU, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_scalings_by_hand() -> None:
    image = torch.tensor([[50.0, 100.0, 150.0, 200.0]])
    sd = (50**2 * 5 / 4) ** 0.5
    expected = {
        "CT": Scaling(low=-40.0, high=300.0, shift=80.0, scale=20.0),
        "T1": Scaling(shift=125.0, scale=sd),
        "rescale_to_0_1": Scaling(shift=50.0, scale=150.0),
        "rgb_to_0_1": Scaling(scale=255.0),
        "noNorm": Scaling(),
    }
    for name, wanted in expected.items():
        (found,) = scalings(image, [channel(name)])
        for part in ("low", "high", "shift", "scale"):
            one, other = getattr(found, part), getattr(wanted, part)
            assert one == (None if other is None else pytest.approx(other)), name
    inside = torch.tensor([True, True, False, False])
    (found,) = scalings(image, [channel("T1", inside_only=True)], inside)
    assert found == Scaling(shift=75.0, scale=25.0, inside_only=True)


def two_patients() -> tuple[torch.Tensor, torch.Tensor]:
    """(2 channels, 4 and 3 slices, 6, 5), of quite other values."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand((2, 4, 6, 5), generator=generator) * 100 + 40
    second = torch.rand((2, 3, 6, 5), generator=generator) * 3000 - 500
    second[:, :, :2] = 0.0
    return first, second


@pytest.mark.parametrize("inside_only", [False, True])
def test_patients_in_one_batch_are_normalised_each_with_its_own(inside_only: bool) -> None:
    """To the bit as if alone, whichever slices are drawn, in whichever order."""
    how = [channel(name, inside_only=inside_only) for name in ("T1", "T2")]
    patients = two_patients()
    own = [scalings(p, how, (p != 0).any(0)) for p in patients]
    assert own[0] != own[1]
    alone = [as_input(p, [s]) for p, s in zip(patients, own, strict=True)]
    for seen, patient in zip(alone, patients, strict=True):
        assert seen.shape == (patient.shape[1], 2, 6, 5)
        torch.testing.assert_close(
            seen.transpose(0, 1), normalise(patient, how, (patient != 0).any(0))
        )
    drawn = [(1, 2), (0, 3), (1, 0), (0, 3), (0, 1)]
    batch = torch.stack([patients[case][:, k] for case, k in drawn], dim=1)
    together = as_input(batch, [own[case] for case, _ in drawn])
    for row, (case, k) in enumerate(drawn):
        assert torch.equal(together[row], alone[case][k])
    assert torch.equal(batch[:, 0], patients[1][:, 2]), "the input is left alone"


def test_of_a_ct_the_batch_is_normalised_as_ever() -> None:
    """One scaling for all, or each case's own: clip, subtract, divide, to the bit."""
    hu = torch.randint(-1024, 2000, (1, 5, 6, 7), generator=torch.Generator().manual_seed(0))
    hu = hu.to(torch.int16)
    wanted = (hu.float().clamp(-40, 300) - 80) / 20
    own = scalings(hu, [channel("CT")])
    for each in ([own], [own] * 5, [scalings(hu[:, :1], [channel("CT")])] * 5):
        assert torch.equal(as_input(hu, each), wanted.transpose(0, 1))
    assert torch.equal(normalise(hu, [channel("CT")]), wanted)


def test_what_lies_outside_of_the_image_stays_0_inside_only() -> None:
    """Also where a grid reaches beyond the scan, which is filled with `padding_value`."""
    how = [channel(name, inside_only=True) for name in ("T1", "T2")]
    patient = two_patients()[0]
    own = scalings(patient, how, torch.ones(patient.shape[1:], dtype=torch.bool))
    wide = torch.zeros((2, 4, 10, 5))
    wide[:, :, 2:8] = patient
    seen = as_input(wide, [own])
    assert not seen[:, :, :2].any() and not seen[:, :, 8:].any()
    assert torch.equal(seen[:, :, 2:8], as_input(patient, [own]))


def test_gradients_pass_through_what_networks_see() -> None:
    image = torch.linspace(-200, 500, 24).reshape(1, 2, 3, 4).requires_grad_()
    own = scalings(image.detach(), [channel("CT")])
    other = (Scaling(shift=3.0, scale=4.0),)
    as_input(image, [own, other]).sum().backward()
    assert image.grad is not None
    inside = (image[0, 0] > -40) & (image[0, 0] < 300)
    torch.testing.assert_close(image.grad[0, 0], inside / 20.0)
    assert (image.grad[0, 1] == 0.25).all()


def test_scalings_of_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="1 channels, but the plan 2"):
        scalings(torch.zeros(1, 2, 2, 2), [channel("T1"), channel("T2")])
