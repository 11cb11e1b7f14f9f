"""Which image to label next."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from kidseg.serve.images import FINAL, Image

__all__ = ["STRATEGIES", "choose_next"]


def _first(images: Sequence[Image]) -> Image:
    return images[0]


def _random(images: Sequence[Image]) -> Image:
    return random.choice(images)


def _most_uncertain(images: Sequence[Image]) -> Image:
    known = [image for image in images if image.uncertainty is not None]
    return max(known or images[:1], key=lambda image: image.uncertainty or 0.0)


def _farthest(images: Sequence[Image]) -> Image:
    known = [image for image in images if image.distance_sd is not None]
    return max(known or images[:1], key=lambda image: image.distance_sd or 0.0)


STRATEGIES: Mapping[str, tuple[str, Callable[[Sequence[Image]], Image]]] = {
    "most_uncertain": ("The image on whose labels the model is least certain", _most_uncertain),
    "farthest": ("The image that differs most from the training", _farthest),
    "first": ("The image that was added first", _first),
    "random": ("Any image", _random),
}
"""{name: (what it chooses, choice among images that are not labelled)}. Images that the model has
not seen yet are chosen last, the oldest first."""


def choose_next(strategy: str, images: Sequence[Image]) -> Image | None:
    """The image to label next; None if all are labelled.

    Args:
        strategy: one of `STRATEGIES`.
        images: the oldest first.
    """
    left = [image for image in images if FINAL not in image.labels]
    return STRATEGIES[strategy][1](left) if left else None
