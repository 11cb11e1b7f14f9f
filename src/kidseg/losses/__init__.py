"""Loss functions in two and three dimensions.

Networks return logits (n, channels, *size). A `Target` defines their channels: exclusive classes
with background first (softmax), or regions that may overlap (sigmoid). `labels` are (n, *size)
integers: the labels of the dataset, or without a target the classes. Every loss is a scalar,
computed in at least float32; lower is better.
"""

from kidseg.losses.level_losses import (
    Supervision,
    coarsened,
    level_weights,
    restored,
    restored_segmentation_loss,
    segmentation_loss,
)
from kidseg.losses.loss_terms import (
    MIN_PROBABILITY,
    SMOOTH,
    Over,
    crop_loss,
    cross_entropy,
    encode,
    probabilities,
    soft_dice,
    weighted_cross_entropy,
)

__all__ = [
    "MIN_PROBABILITY",
    "SMOOTH",
    "Over",
    "Supervision",
    "coarsened",
    "crop_loss",
    "cross_entropy",
    "encode",
    "level_weights",
    "probabilities",
    "restored",
    "restored_segmentation_loss",
    "segmentation_loss",
    "soft_dice",
    "weighted_cross_entropy",
]
