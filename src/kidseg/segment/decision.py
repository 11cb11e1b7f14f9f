"""Weights of a model's output probabilities before the decision, by the names of its outputs.

`kidseg.labels.Target` says what they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from kidseg.labels import LabelSchema, Target

__all__ = ["BACKGROUND", "output_names", "weighted"]

BACKGROUND = "background"
"""Name of the output for background, which no label has."""


def output_names(target: Target, schema: LabelSchema) -> tuple[str, ...]:
    """A name for each output: that of the label it writes; the first is "background", if any."""
    names = tuple(schema.names.get(label, f"label {label}") for label in target.writes)
    return (BACKGROUND, *names) if target.exclusive else names


def weighted(target: Target, schema: LabelSchema, decision: Mapping[str, float]) -> Target:
    """The target with the weights of a decision; outputs that it does not name have weight 1.

    If all are 1, it has none.

    Args:
        target: of a model.
        schema: its labels.
        decision: {output: weight}, as in the header of a model; see `output_names`.

    Raises:
        ValueError: an unknown output, or a weight that is not positive.
        TypeError: not numbers by name.
    """
    names = output_names(target, schema)
    if unknown := sorted(set(decision) - set(names)):
        raise ValueError(f"decision: no output {unknown}; there are {', '.join(names)}")
    weights = tuple(float(decision.get(name, 1.0)) for name in names)
    return replace(target, weights=() if set(weights) == {1.0} else weights)
