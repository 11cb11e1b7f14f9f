"""Training: `train` trains a method on a data set and writes a model file; `fit` trains a stage."""

from kidseg.train.loop import Fitted, Run, fit
from kidseg.train.material import make_store
from kidseg.train.preview import planned_setup, preview
from kidseg.train.run import train
from kidseg.train.setup import Setup

__all__ = [
    "Fitted",
    "Run",
    "Setup",
    "fit",
    "make_store",
    "planned_setup",
    "preview",
    "train",
]
