"""Measure kidneys and tumours in label volumes."""

from kidseg.measure.midline import Midline
from kidseg.measure.sides import Side, Sides, measure_sides

__all__ = ["Midline", "Side", "Sides", "measure_sides"]
