"""The process that segments the scans of a server, apart from the one that answers requests.

It keeps the model loaded, and runs one job after the other. Whatever happens in it, such as a
crash of a decoder or a lack of memory, ends this process and fails one job.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kidseg.errors import Finding, KidsegError, converted
from kidseg.io import ReadOptions
from kidseg.io.atomic import write_json
from kidseg.measure.measuring import Request as MeasureRequest
from kidseg.measure.person import Patient
from kidseg.records import parsed
from kidseg.segment import load_predictor, segment
from kidseg.segment.index import RESULT
from kidseg.segment.predictor import Predictor
from kidseg.serve.job import Request
from kidseg.serve.job_measures import measured, without_name
from kidseg.serve.served_model import check_channels
from kidseg.workers import end_with_parent

__all__ = ["STAGES", "run_scans", "uncertainty_of"]

STAGES: Mapping[str, tuple[float, float]] = {
    "read": (0.0, 0.05),
    "segment": (0.05, 0.75),
    "decide": (0.75, 0.85),
    "write": (0.85, 0.9),
    "measure": (0.9, 1.0),
}
"""What is done with a scan, in order, and the progress at its begin and its end."""

_FACTS = ("sha256", "outputs", "formats", "labels", "volumes_ml", "sides", "warnings", "seconds")
_PAUSE_S = 0.5
"""Between two messages about the same stage."""

Send = Callable[[str, Any], None]


@dataclass(eq=False)
class _Stages:
    """Tells how far a scan is: at the begin of each stage, and now and then within it.

    Attributes:
        send: called with ("stage", (stage, progress)).
    """

    send: Send
    _stage: str = ""
    _sent: float = 0.0

    def __call__(self, stage: str, done: float = 0.0) -> None:
        """A fraction of a stage is done; 1: the next one begins."""
        names = list(STAGES)
        if done >= 1:
            stage, done = names[names.index(stage) + 1], 0.0
        now = time.monotonic()
        if stage != self._stage or now - self._sent >= _PAUSE_S:
            self._stage, self._sent = stage, now
            begin, end = STAGES[stage]
            self.send("stage", (stage, round(begin + (end - begin) * done, 4)))


def run_scans(connection: Connection, model: Path, device: str) -> None:
    """Load a model, and segment scans as they come, until the connection ends.

    Sends ("ready", facts of the model) or ("unusable", finding); for each task any number of
    ("stage", (name, progress)), then ("done", result) or ("failed", finding). A task is (folder of
    the job, number of the attempt, request as JSON).
    """
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _sacrifice()
    warnings.simplefilter("ignore")  # they are in the results, and may name patients
    logging.disable(logging.CRITICAL)

    def send(kind: str, content: Any) -> None:
        connection.send((kind, content))

    try:
        predictor = load_predictor(model, device)
        check_channels(len(predictor.method.plan.channels), predictor.path)
    except Exception as error:
        send("unusable", _finding(error))
        return
    send(
        "ready",
        {
            "sha256": predictor.sha256,
            "method": predictor.method.name,
            "device": str(predictor.method.device.torch),
            "labels": dict(predictor.schema.names),
            "channels": len(predictor.method.plan.channels),
        },
    )
    while True:
        try:
            folder, attempt, text = connection.recv()
        except EOFError:
            return
        try:
            result = _segmented(predictor, folder, attempt, Request.from_json(text), send)
            send("done", result)
        except Exception as error:
            send("failed", _finding(error))


def _segmented(
    predictor: Predictor, folder: Path, attempt: int, request: Request, send: Send
) -> dict[str, Any]:
    """Segment the scan of a job; what is told of the result."""
    # Paths in results and errors are relative: they tell nothing of the server.
    os.chdir(folder)
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    tempfile.tempdir = str(temporary)
    options = dict(request.options or {})
    if (spacing := options.get("spacing_mm")) is not None:
        options["spacing_mm"] = tuple(spacing)
    stages, scan, out = _Stages(send), Path(request.scan), Path(f"results-{attempt}")
    reading = ReadOptions(**options)
    stages("read")
    (entry,) = segment(
        [scan],
        replace(predictor, on_progress=stages),
        out,
        formats=request.formats,
        figures=request.figures,
        options=reading,
    )
    _without_places(out / RESULT)
    found = {name: entry[name] for name in _FACTS if name in entry}
    if request.person is not None:
        stages("measure")
        person = Patient(**request.person)
        wanted = MeasureRequest(ct=scan, person=person, options=reading)
        found |= measured(out, entry, wanted)
    return {
        **found,
        "model": {key: entry["model"][key] for key in ("sha256", "method")},
        "uncertainty": round(uncertainty_of(entry["review"]), 6),
        "distance_sd": round(_distance_sd(entry["training_range"]), 6),
    }


def _without_places(record: Path) -> None:
    """Leave out of a record where the server keeps its model, and what its machine is called."""
    content = parsed(record.read_bytes())
    for entry in content["scans"]:
        model = entry["model"]
        entry["host"] = without_name(entry["host"])
        model["path"] = Path(model["path"]).name
        model.pop("paths", None)
    write_json(record, content, overwrite=True)


def uncertainty_of(review: Mapping[str, Any]) -> float:
    """How uncertain labels are: about 1 minus the Dice that the model itself expects.

    With D the volume that is expected to be wrong, by the probabilities, and V the volume as
    labelled, both added up over all structures, it is D / (2 V + D): 1 minus the Dice of V and what
    is right, if what is wrong was missed. 1 if nothing was found.

    Args:
        review: of the labels; see `kidseg.segment.review.Review.facts`.
    """
    structures = review["structures"].values()
    doubtful_ml = math.fsum(each["doubtful_ml"] for each in structures)
    volume_ml = math.fsum(each["volume_ml"] for each in structures)
    return doubtful_ml / (2 * volume_ml + doubtful_ml) if volume_ml > 0 else 1.0


def _distance_sd(training_range: Mapping[str, Any]) -> float:
    """The distance from the training range in the figure that is farthest from it."""
    known = [figure["distance_sd"] for figure in training_range["figures"].values()]
    return float(max((away for away in known if away is not None), default=0.0))


def _finding(error: Exception) -> dict[str, str]:
    """Any exception as plain data."""
    known = error if isinstance(error, KidsegError) else converted(error)
    if known is not None:
        return known.as_finding().as_dict()
    return Finding(
        code="scan-failed",
        path="",
        cause=f"it could not be segmented ({type(error).__name__})",
        next_step="Check it with 'kidseg check'. If it is sound, please report this error.",
        severity="error",
    ).as_dict()


def _sacrifice() -> None:
    """If memory runs out, let the system end this process rather than another one.

    Source: proc(5), /proc/pid/oom_score_adj.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")
