"""A job of a server: what is to be done with a scan, and how far it is."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kidseg.errors import Finding

__all__ = ["ACTIVE", "STATES", "Job", "Kind", "Request", "State", "new_id"]

State = Literal["queued", "running", "done", "failed", "cancelled"]
Kind = Literal["segment", "infer", "score"]

STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")
ACTIVE: tuple[State, ...] = ("queued", "running")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be done with a scan.

    Attributes:
        scan: name of its file in the folder of the job.
        formats: keys of `kidseg.io.label_formats.FORMATS`.
        figures: also draw the steps.
        options: fields of `kidseg.io.ReadOptions`.
        stay: cancel the job when its client is gone.
        image: id of the image in the data store of which the scan is a copy.
        person: fields of `kidseg.measure.person.Patient`, for the measures; None: nothing is
            measured.
    """

    scan: str
    formats: tuple[str, ...] = ("nii",)
    figures: bool = False
    options: Mapping[str, Any] | None = None
    stay: bool = False
    image: str | None = None
    person: Mapping[str, Any] | None = None

    def as_json(self) -> str:
        """As text, for the table."""
        return json.dumps(self.__dict__)

    @classmethod
    def from_json(cls, text: str) -> Request:
        """From the text in the table."""
        content = json.loads(text)
        return cls(**{**content, "formats": tuple(content["formats"])})


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as it is in the table.

    Attributes:
        number: in the order of creation.
        id: made by the server.
        owner: name of the client.
        kind: "segment" and "infer" for a client, "score" for the server itself.
        request: what to do.
        state: one of `STATES`.
        stage: of a running job, such as "segment".
        progress: 0 to 1.
        attempt: number of the last one, from 1; 0: none yet.
        wanted: False: to be cancelled.
        created: seconds since 1970.
        started: of the last attempt.
        ended: done, failed or cancelled.
        result: of a job that is done: the entry of `kidseg.segment.segment`, shortened.
        error: of a job that failed.
    """

    number: int
    id: str
    owner: str
    kind: Kind
    request: Request
    state: State
    stage: str
    progress: float
    attempt: int
    wanted: bool
    created: float
    started: float | None
    ended: float | None
    result: Mapping[str, Any] | None
    error: Finding | None


def new_id() -> str:
    """A name that nobody can guess."""
    return str(uuid.uuid4())
