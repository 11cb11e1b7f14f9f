"""Functions with a gradient of their own: here without."""

from __future__ import annotations

from typing import Any

__all__ = ["Function"]


class _Context:
    def save_for_backward(self, *_: Any) -> None:
        """Nothing is kept: there is no way back."""


class Function:
    """Computes its result, and no gradient."""

    @classmethod
    def apply(cls, *values: Any) -> Any:
        """The result of `forward` of the derived class."""
        return cls.forward(_Context(), *values)  # type: ignore[attr-defined]
