"""Measure kidneys and tumours in label volumes."""

from kidseg.measure.sides import Midline, Side, Sides, measure_sides

__all__ = ["Midline", "Side", "Sides", "measure_sides"]
