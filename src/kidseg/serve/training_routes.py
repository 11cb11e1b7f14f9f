"""Which image to label next, and training on the labels, as the protocol of MONAI Label has it."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from kidseg.serve.learning import USUAL
from kidseg.serve.next_sample import STRATEGIES
from kidseg.serve.refusals import RefusedError, no_such
from kidseg.serve.service import Service
from kidseg.serve.training_state import Learning

__all__ = ["MODEL", "check_model", "training_routes"]

MODEL = "kidseg"
"""Name of the only model and trainer."""

_TICK_S = 0.1


def training_routes(service: Service, router: APIRouter) -> None:
    """Add the routes of the next image and of training."""

    @router.post("/activelearning/{strategy}", summary="The image to label next")
    def next_sample(
        request: Request,
        strategy: str,
        params: Annotated[dict[str, Any] | None, Body()] = None,
    ) -> dict[str, Any]:
        if strategy not in STRATEGIES:
            raise no_such("strategy")
        return service.next_sample(strategy)

    @router.post("/train/{model}", summary="Train on the final labels, in the background")
    @router.post("/train/", include_in_schema=False)
    def train(
        model: str = MODEL, params: Annotated[dict[str, Any] | None, Body()] = None
    ) -> dict[str, Any]:
        check_model(model)
        tune = (params or {}).get("tune") or USUAL
        if not isinstance(tune, str) or len(tune) > 1000:
            raise RefusedError(
                422, "tune is not a text", code="invalid-request", next_step="Send 'decoder'."
            )
        return _training(service.learner.start(tune))

    @router.get("/train/", summary="The training, or 404 if there is none")
    def training_status(
        check_if_running: bool = False,
        all: bool = False,  # noqa: A002 - of the protocol
    ) -> dict[str, Any] | list[dict[str, Any]]:
        last = service.learner.last
        if last is None or (check_if_running and not service.learner.is_running):
            raise no_such("training")
        return [_training(last)] if all else _training(last)

    @router.delete("/train/", summary="Stop the training")
    async def stop_training() -> dict[str, Any]:
        learner = service.learner
        if (asked := learner.ask_to_stop()) is None:
            raise no_such("training")
        while (ended := learner.as_ended(asked.id)) is None:
            await asyncio.sleep(_TICK_S)  # without holding a thread
        return _training(ended)


def check_model(model: str) -> None:
    """Raise RefusedError (404) if this is not the name of the model."""
    if model != MODEL:
        raise no_such("model")


def _training(learning: Learning) -> dict[str, Any]:
    """A training, as the protocol tells it."""

    def moment(seconds: float) -> str:
        return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")

    error = learning.error
    return {
        "id": learning.id,
        "status": learning.state,
        "start_ts": moment(learning.started),
        "end_ts": None if learning.ended is None else moment(learning.ended),
        "request": {"model": MODEL},
        "details": [*learning.lines, *([str(error)] if error else [])] or [learning.stage],
        "result": None if learning.after is None else _told(learning),
        "stage": learning.stage,
        "epoch": learning.epoch,
        "total_epochs": learning.epochs,
        "member": learning.member,
        "members": learning.members,
        "error": None if error is None else error.as_dict(),
        "dice": {"before": learning.before, "after": learning.after},
        "new_model": learning.taken,
        "calibration": list(learning.calibration),
    }


def _told(learning: Learning) -> str:
    kept = "is now the current one" if learning.taken else "is not better, and not used"
    told = f"Dice {learning.before:.3f} before, {learning.after:.3f} after: the model {kept}."
    return " ".join([told, *(learning.calibration if learning.taken else ())])
