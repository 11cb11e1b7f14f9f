"""Paired statistics: signed-rank test, bootstrap interval, Holm's correction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["CONFIDENCE", "FEWEST_PAIRS", "N_RESAMPLES", "bootstrap_interval", "holm", "signed_rank"]

FEWEST_PAIRS = 6
"""With five pairs the smallest two-sided p of the signed-rank test is 2 / 2^5 = 0.0625. And even
the range from the smallest to the largest of n symmetrically distributed differences, in which
every bootstrap interval of their mean lies, contains its expected value with a probability of
1 - 2 / 2^n only: 94 % with five.
"""

N_RESAMPLES = 10_000
CONFIDENCE = 0.95

# Limits the memory of the bootstrap: 1000 resamples of 1000 cases are 8 MB.
_RESAMPLES_AT_ONCE = 1000


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for multiple testing, in the given order.

    The smallest of n is multiplied by n, the next by n - 1, and so on; corrected values ascend with
    the p values and are at most 1. An empty sequence gives an empty list.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand J Stat 1979.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def signed_rank(difference: np.ndarray) -> tuple[float | None, str]:
    """Two-sided p, or None and the reason.

    Zero differences are ranked with the others and then dropped (Pratt 1959), which is conservative
    and treats a tie as evidence for no difference. The p value is exact without ties or zeros up to
    50 pairs, by all permutations of signs with them up to 13, else by the normal approximation.
    """
    from scipy.stats import wilcoxon

    if difference.size < FEWEST_PAIRS:
        return None, f"{difference.size} pairs; below {FEWEST_PAIRS} no difference can reach 0.05"
    if not difference.any():
        return 1.0, ""
    return float(wilcoxon(difference, zero_method="pratt").pvalue), ""


def bootstrap_interval(
    difference: np.ndarray, seed: Sequence[int]
) -> tuple[float | None, float | None]:
    """BCa bootstrap interval of the mean; (None, None) for fewer than `FEWEST_PAIRS` values."""
    from scipy.stats import bootstrap

    if difference.size < FEWEST_PAIRS:
        return None, None
    if np.ptp(difference) == 0:
        return float(difference[0]), float(difference[0])
    found = bootstrap(
        (difference,),
        np.mean,
        n_resamples=N_RESAMPLES,
        batch=_RESAMPLES_AT_ONCE,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)
