"""What is known of the patient besides the labels, and the surface of the body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kidseg.errors import UsageError
from kidseg.measure.quantity import Quantity

__all__ = ["Patient", "Sex"]

Sex = Literal["female", "male"]

_RANGES = {"height_cm": (20.0, 250.0), "weight_kg": (0.3, 400.0), "age_years": (0.0, 130.0)}
# Weight for height, kg / m2: preterm infants have 6, the heaviest adults about 90.
_MASS_INDEX = (4.0, 100.0)
# Half the last digit that is usually written down.
_ROUNDING = {"height_cm": 0.5, "weight_kg": 0.05}


@dataclass(frozen=True, kw_only=True)
class Patient:
    """The patient at the time of the scan; None where it is not known.

    Raises:
        UsageError: "implausible-patient": a value, or a weight for a height, outside of what people
            are, such as pounds, inches or a misplaced decimal point.
    """

    height_cm: float | None = None
    weight_kg: float | None = None
    age_years: float | None = None
    sex: Sex | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                what, unit = name.split("_")
                raise UsageError(
                    f"{what} {value:g} {unit} is not within {low:g} to {high:g} {unit}",
                    code="implausible-patient",
                    next_step="Give the height in cm, the weight in kg, the age in years.",
                )

        if self.height_cm is None or self.weight_kg is None:
            return
        index = self.weight_kg / (self.height_cm / 100) ** 2
        if not _MASS_INDEX[0] <= index <= _MASS_INDEX[1]:
            raise UsageError(
                f"a weight of {self.weight_kg:g} kg at a height of {self.height_cm:g} cm is not"
                f" plausible: {index:.3g} kg per m2",
                code="implausible-patient",
                next_step="Give the height in cm, the weight in kg.",
            )

    @property
    def body_surface(self) -> Quantity | None:
        """The surface of the body; None unless height and weight are known.

        Source: sqrt(height in cm x weight in kg / 3600) m2; Mosteller, N Engl J Med 317 (1987)
        1098.
        """
        if self.height_cm is None or self.weight_kg is None:
            return None
        dh, dw = _ROUNDING["height_cm"], _ROUNDING["weight_kg"]
        value, low, high = (
            ((self.height_cm + sign * dh) * (self.weight_kg + sign * dw) / 3600) ** 0.5
            for sign in (0, -1, 1)
        )
        return Quantity(
            name="body surface",
            value=value,
            unit="m2",
            low=low,
            high=high,
            interval="height and weight rounded",
            note="Mosteller 1987: sqrt(cm x kg / 3600)",
        )
