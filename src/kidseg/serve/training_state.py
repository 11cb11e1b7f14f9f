"""What is known of a training on the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kidseg.errors import Finding

__all__ = ["Learning", "State"]

State = Literal["RUNNING", "DONE", "ERROR", "STOPPED"]


@dataclass(frozen=True, kw_only=True)
class Learning:
    """A training, as it is now.

    Attributes:
        id: made by the server.
        state: one of `State`.
        started: seconds since 1970.
        ended: seconds since 1970.
        stage: what is done.
        epoch: of the stage.
        epochs: of the stage.
        member: of the ensemble that is trained, counted from 1.
        members: of it; 1: no ensemble.
        before: mean Dice of the current model on the kept images.
        after: of the new one.
        taken: the new model is the current one.
        calibration: what became of the calibration of the current model, in the new one.
        error: why it failed.
        lines: the last lines of the log.
    """

    id: str
    state: State
    started: float
    ended: float | None = None
    stage: str = "data"
    epoch: int = 0
    epochs: int = 0
    member: int = 1
    members: int = 1
    before: float | None = None
    after: float | None = None
    taken: bool = False
    calibration: tuple[str, ...] = ()
    error: Finding | None = None
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For people: how it ended, without a name of anything that clients gave."""
        if self.state == "STOPPED":
            return "the training was stopped; the model stays"
        if self.error is not None:
            return f"the training failed ({self.error.code}); the model stays"
        scores = f"mean Dice {self.before:.3f} before and {self.after:.3f} after"
        return (
            f"the training is done: {scores} on the images that are kept out;"
            f" {'the new model is used' if self.taken else 'the model stays'}"
        )
