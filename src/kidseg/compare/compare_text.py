"""A comparison as text: `compare.md`, which is also printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kidseg.errors import counted
from kidseg.evaluate import METRICS
from kidseg.table import markdown_table, wrapped

__all__ = ["ALL", "as_markdown"]

ALL = "all"
"""The stratum of all patients."""

_TITLES = {
    "dice": "Dice",
    "hd95_mm": "HD95 (mm)",
    "surface_dice": "Surface Dice",
    "volume_error_ml": "Volume error (ml, absolute)",
}


def as_markdown(result: Mapping[str, Any]) -> str:
    """The tables of a comparison, its rules last.

    Args:
        result: as in `compare.json`.
    """
    lines = [f"# Comparison ({result['protocol']} protocol)", ""]
    for run in result["runs"]:
        if failed := run["not_evaluated"]:
            said = f"Could not be evaluated in {run['name']}, left out: {', '.join(failed)}"
            lines += [*wrapped(said), ""]
        if findings := run["findings"]:
            said = f"Noticed in {run['name']}, see its summary.json: {counted(findings)}"
            lines += [*wrapped(said), ""]
    for pair in result["pairs"]:
        lines += [f"## {pair['a']} against {pair['b']}: {pair['n_common']} common cases", ""]
        if pair["n_patients"] < pair["n_common"]:
            note = "each counts once, by the mean over its cases."
            lines += [*wrapped(f"These are of {pair['n_patients']} patients; {note}"), ""]
        for side in ("a", "b"):
            if only := pair[f"only_{side}"]:
                lines += [*wrapped(f"Only in {pair[side]}, left out: {', '.join(only)}"), ""]
        lines += [*wrapped(f"Difference: {pair['a']} minus {pair['b']}."), ""]
        of_pair = [one for one in result["comparisons"] if (one["a"], one["b"]) == _ends(pair)]
        for metric in METRICS:
            lines += [f"### {_TITLES[metric]}", ""]
            lines += _table([one for one in of_pair if one["metric"] == metric])
    for name, rule in result["rules"].items():
        lines += wrapped(f"- {name}: {rule}", indent="  ")
    return "\n".join(lines) + "\n"


def _ends(pair: Mapping[str, Any]) -> tuple[str, str]:
    return pair["a"], pair["b"]


def _table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The comparisons of two runs by one metric."""
    head = ["structure", "patients", "n", "first", "second", "difference [95 %]"]
    head += ["wins, ties, losses", "p", "p (Holm)"]
    rows = [
        [
            one["structure"],
            one["stratum"],
            str(one["n"]),
            _number(one["mean_a"]),
            _number(one["mean_b"]),
            f"{_number(one['mean_difference'])} [{_number(one['low'])}, {_number(one['high'])}]",
            f"{one['wins']}, {one['ties']}, {one['losses']}",
            _number(one["p"]),
            _number(one["p_holm"]),
        ]
        for one in found
    ]
    return [*markdown_table(head, rows, keys=2), *_untested(found)]


def _untested(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why there is no p for all patients of a structure; the rules say why for strata."""
    reasons: dict[str, list[str]] = {}
    for one in found:
        if one["stratum"] == ALL and one["p"] is None:
            reasons.setdefault(one["why_no_p"], []).append(one["structure"])
    texts = [f"No p for {', '.join(names)}: {why}." for why, names in reasons.items()]
    return [line for text in texts for line in (*wrapped(text), "")]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
