"""Whether a model can segment scans that arrive one file, or one series, at a time."""

from __future__ import annotations

from pathlib import Path

from kidseg.errors import ModelError
from kidseg.header import read_header

__all__ = ["check_channels", "check_served"]


def check_served(model: Path) -> None:
    """Check the header of a model file.

    Raises:
        ModelError: see `read_header`, `check_channels`.
    """
    try:
        count = len(read_header(model)["plan"]["channels"])
    except (KeyError, TypeError) as error:
        raise ModelError(
            "the header does not say which scans the model reads",
            path=model,
            code="damaged-model",
            next_step="Train it again, or restore the file from a copy.",
        ) from error
    check_channels(count, model)


def check_channels(count: int, model: Path) -> None:
    """Raise ModelError "several-channels" if the model does not read scans of one channel."""
    if count != 1:
        raise ModelError(
            f"the model reads scans of {count} channels, and one channel arrives at a time",
            path=model,
            code="several-channels",
            next_step="Choose a model with one channel, or use 'kidseg segment'.",
        )
