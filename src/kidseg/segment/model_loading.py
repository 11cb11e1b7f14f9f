"""Load model files to segment with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kidseg.header import ONLY_IN, OnlyIn, decision_of
from kidseg.labels import LabelSchema
from kidseg.members import combined, members_of, uncovered
from kidseg.methods import Method
from kidseg.methods.nnunet_networks import NnUnet
from kidseg.model_file import find_model
from kidseg.segment.adaptation import PRIOR_SLICES, Adapt, checked_adapt, checked_prior
from kidseg.segment.intervals import Calibrated
from kidseg.segment.predictor import Predictor
from kidseg.segment.trained_method import damaged_if_invalid, load_method

__all__ = ["load_predictor"]


def load_predictor(
    model: str | Path | Sequence[str | Path] | None = None,
    device: str = "auto",
    adapt: Adapt | None = None,
) -> Predictor:
    """Load the method of a model file, or of several as an ensemble.

    Args:
        model: a model file or run folder; "starter" or None for the starter; see `find_model`.
            Several are averaged; see `kidseg.members.combined`.
        device: see `choose_device`.
        adapt: what is adapted to each scan; None: what the model file says, or nothing.

    Raises:
        ModelError: see `find_model` and `load_model`; "damaged-model": the content does not match
            the header.
        UsageError, ResourceError: see `find_model`, `combined` and `choose_device`.
    """
    named = [model] if model is None or isinstance(model, str | Path) else list(model)
    paths = tuple(find_model(each) for each in named)
    path, file = paths[0], combined(paths)
    with damaged_if_invalid(path):
        usual = checked_adapt(file.header.get("adapt", "none"))
        wanted = adapt or usual
        prior_slices = checked_prior(file.header.get("adapt_prior_slices", PRIOR_SLICES))
        schema = LabelSchema.from_dict(file.header["labels"])
        decision = decision_of(file.header, path)
        intervals = Calibrated.from_header(file.header)
        members = members_of(file)
        headers = [each.header for each in members]
        if (scans := uncovered(headers)) is not None:
            raise ValueError(f"no member counts in {scans}")
        methods = [
            load_method(each.header, each.parts, path, device, wanted, decision) for each in members
        ]
        only_in: tuple[OnlyIn | None, ...] = ()
        if len(headers) > 1 and any(header.get(ONLY_IN) for header in headers):
            only_in = tuple(header.get(ONLY_IN) for header in headers)
        method, *others = methods if only_in else _merged(methods)
        if any(other.target != method.target for other in others):
            raise ValueError("its members have different outputs")
    return Predictor(
        method=method,
        schema=schema,
        sha256=file.sha256,
        path=path,
        training_ranges=(
            file.header.get("training_range"),
            *(header.get("training_range") for header in headers[1:]),
        ),
        adapt=wanted,
        prior_slices=prior_slices,
        decision=decision,
        decided_for=usual if decision else None,
        others=tuple(others),
        only_in=only_in,
        members=tuple(str(header["method"]) for header in headers),
        paths=paths,
        intervals=intervals,
    )


def _merged(methods: list[Method]) -> list[Method]:
    """The members of an ensemble; folds of one model of nnU-Net as one method."""
    first, *others = methods
    merged = first.merged(others) if others and isinstance(first, NnUnet) else None
    return methods if merged is None else [merged]
