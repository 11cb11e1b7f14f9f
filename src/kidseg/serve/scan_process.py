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
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kidseg.errors import Finding, KidsegError, ModelError, converted
from kidseg.geometry import Grid, Volume
from kidseg.io import ReadOptions
from kidseg.pipeline import Region, Watch
from kidseg.segment import load_predictor, segment
from kidseg.segment.clock import Clock
from kidseg.segment.predictor import Found, Predictor, Segmentation
from kidseg.segment.removal import Decided
from kidseg.serve.job import Request
from kidseg.workers import end_with_parent

__all__ = ["STAGES", "run_scans", "uncertainty_of"]

STAGES: Mapping[str, float] = {"read": 0.05, "segment": 0.2, "decide": 0.75, "write": 0.9}
"""What is done with a scan, in order, and the progress at the begin of each."""

_FACTS = ("sha256", "outputs", "formats", "labels", "volumes_ml", "sides", "warnings", "seconds")

Send = Callable[[str, Any], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Watched(Predictor):
    """A predictor that says what it does, and how certain it was."""

    begin: Callable[[str], None]
    figures: dict[str, float] = field(default_factory=dict)

    def find(self, scan: Volume, name: str = "scan", clock: Clock | None = None) -> Found:
        self.begin("segment")
        return super().find(scan, name, clock)

    def decide(
        self,
        found: Found,
        scan: Grid,
        clock: Clock | None = None,
        watch: Watch | None = None,
    ) -> Decided:
        self.begin("decide")
        return super().decide(found, scan, clock, watch)

    def __call__(self, scan: Volume, name: str = "scan") -> Segmentation:
        result = super().__call__(scan, name)
        self.begin("write")
        self.figures["uncertainty"] = uncertainty_of(result.progress.found)
        known = result.facts["training_range"]["figures"].values()
        away = [figure["distance_sd"] for figure in known if figure["distance_sd"] is not None]
        self.figures["distance_sd"] = max(away, default=0.0)
        return result


def run_scans(connection: Connection, model: Path, device: str) -> None:
    """Load a model, and segment scans as they come, until the connection ends.

    Sends ("ready", facts of the model) or ("unusable", finding); for each task any number of
    ("stage", name), then ("done", result) or ("failed", finding). A task is (folder of the job,
    number of the attempt, request as JSON).
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
        _check_channels(predictor)
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


def _check_channels(predictor: Predictor) -> None:
    channels = len(predictor.method.plan.channels)
    if channels != 1:
        raise ModelError(
            f"the model reads scans of {channels} channels, and an upload has one",
            path=predictor.path,
            code="several-channels",
            next_step="Serve a model with one channel, or use 'kidseg segment'.",
        )


def _segmented(
    predictor: Predictor, folder: Path, attempt: int, request: Request, send: Send
) -> dict[str, Any]:
    """Segment the scan of a job; what is told of the result."""
    # Paths in results and errors are relative: they tell nothing of the server.
    os.chdir(folder)
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    tempfile.tempdir = str(temporary)
    known = {f.name: getattr(predictor, f.name) for f in fields(Predictor)}
    watched = _Watched(**known, begin=lambda stage: send("stage", stage))
    options = dict(request.options or {})
    if (spacing := options.get("spacing_mm")) is not None:
        options["spacing_mm"] = tuple(spacing)
    entries = segment(
        [Path(request.scan)],
        watched,
        Path(f"results-{attempt}"),
        formats=request.formats,
        figures=request.figures,
        options=ReadOptions(**options),
    )
    entry = entries[0]
    return {
        **{name: entry[name] for name in _FACTS if name in entry},
        "model": {key: entry["model"][key] for key in ("sha256", "method")},
        **{name: round(value, 6) for name, value in watched.figures.items()},
    }


def uncertainty_of(regions: Sequence[Region]) -> float:
    """How uncertain the foreground of a result is: 1 minus the Dice that its model expects.

    With p the probability that a voxel is not background, and y whether it is decided so, that is
    1 - 2 sum(p y) / sum(p + y): 0 where p is 0 or 1 everywhere. 1 if nothing was found.

    Args:
        regions: of the last step, with probabilities (channels, slices, rows, columns).
    """
    overlap = total = 0.0
    for region in regions:
        if region.found is None or region.target is None:
            continue
        data = region.found.data.float()
        inside = 1.0 - data[0] if region.target.exclusive else data.amax(0)
        decided = inside > 0.5
        overlap += 2.0 * float(inside[decided].sum())
        total += float(inside.sum()) + float(decided.sum())
    return 1.0 - overlap / total if total > 0 and math.isfinite(total) else 1.0


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
