"""The answers of the REST interface, as they stand in its OpenAPI document."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, Field

from kidseg.serve.job import Job, State

__all__ = ["API", "PROBLEMS", "Health", "JobList", "JobView", "Problem", "ResultFile", "view_of"]


API = "/api/v1"
"""Where the REST interface begins."""


class Problem(BaseModel):
    """Why a request was not fulfilled (RFC 9457)."""

    type: str = Field(examples=["urn:kidseg:problem:not-found"])
    title: str
    status: int
    code: str = Field(description="Stable name of the cause.", examples=["not-found"])
    detail: str = Field(description="The cause, in a sentence.")
    next_step: str = Field(description="What can be done about it.")


class JobProblem(BaseModel):
    """Why a job failed."""

    code: str
    cause: str
    next_step: str


class Warned(BaseModel):
    """A finding about a scan or its result."""

    code: str
    cause: str
    next_step: str
    severity: Literal["warning", "error"]


class ModelName(BaseModel):
    """The model that segmented a scan."""

    sha256: str
    method: str


class ResultFile(BaseModel):
    """A file of the results."""

    name: str
    format: str = Field(
        description="As in --formats; 'record', 'measures' and 'figure' for the others."
    )
    size: int = Field(description="Bytes.")
    href: str = Field(description="Where to download it.")


class PageLink(BaseModel):
    """Where a page can be opened without token, for a while."""

    href: str
    valid_s: float


class JobResult(BaseModel):
    """What was found in a scan."""

    model: ModelName
    labels: dict[str, str] = Field(description="{value: name} of the labels.")
    volumes_ml: dict[str, float] = Field(description="Volume of each region.")
    warnings: list[Warned]
    uncertainty: float = Field(description="About 1 minus the Dice that the model itself expects.")
    distance_sd: float = Field(description="From the training range, in standard deviations.")
    files: list[ResultFile]


class JobView(BaseModel):
    """A job."""

    id: str
    state: State
    stage: str = Field(description="read, segment, decide, write or measure, of a running job.")
    progress: float = Field(ge=0, le=1)
    ahead: int = Field(ge=0, description="Jobs that are run before it.")
    formats: list[str]
    created: float = Field(description="Seconds since 1970.")
    started: float | None
    ended: float | None
    expires: float | None = Field(description="When it is removed, if the disk has room.")
    result: JobResult | None
    error: JobProblem | None


class JobList(BaseModel):
    """Jobs of a client, the oldest first."""

    jobs: list[JobView]
    next: int | None = Field(description="Value of 'after' for the rest; null: there is none.")


class Health(BaseModel):
    """Whether the server works."""

    status: Literal["ok", "loading", "unusable"]
    version: str
    model: ModelName | None
    labels: dict[str, str]
    formats: list[str] = Field(description="Formats of labels that can be requested.")
    token_required: bool
    jobs: dict[str, int] = Field(description="{state: number of jobs}.")
    use: str


PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Not fulfilled: 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 507.",
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
        },
    }
}
"""Of every route."""


_PARAMETERS = (
    (r"--trust (sform|qform)", r"trust=\1"),
    (r"--trust\b", "trust"),
    (r"--series (?=\S)", "series="),
    (r"--repair\b", "repair=true"),
)


def as_parameters(step: str) -> str:
    """A next step with parameters of `POST /jobs` instead of options of `kidseg segment`."""
    for option, parameter in _PARAMETERS:
        step = re.sub(option, parameter, step)
    return step


def view_of(job: Job, ahead: int, files: list[ResultFile], keep_s: float) -> JobView:
    """A job as its client sees it."""
    result = None
    if job.result is not None:
        result = JobResult(
            **{name: job.result[name] for name in ("model", "labels", "volumes_ml")},
            warnings=[Warned(**warning) for warning in job.result["warnings"]],
            uncertainty=job.result["uncertainty"],
            distance_sd=job.result["distance_sd"],
            files=files,
        )
    error = None
    if job.error is not None:
        known = job.error.as_dict()
        known["next_step"] = as_parameters(known["next_step"])
        error = JobProblem(**{key: known[key] for key in ("code", "cause", "next_step")})
    return JobView(
        id=job.id,
        state=job.state,
        stage=job.stage,
        progress=job.progress,
        ahead=ahead,
        formats=list(job.request.formats),
        created=job.created,
        started=job.started,
        ended=job.ended,
        expires=None if job.ended is None else job.ended + keep_s,
        result=result,
        error=error,
    )
