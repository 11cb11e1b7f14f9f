"""Measure kidneys and tumours in label volumes."""

from kidseg.measure.midline import Midline, side_of_component
from kidseg.measure.sides import Side, Sides, measure_sides

__all__ = ["Midline", "Side", "Sides", "measure_sides", "side_of_component"]
