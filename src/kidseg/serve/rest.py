"""The REST interface: jobs and their progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from kidseg.errors import KidsegError
from kidseg.extras import is_installed
from kidseg.io.label_formats import FORMATS, check_formats
from kidseg.measure.person import Patient, Sex
from kidseg.provenance import RESEARCH_USE
from kidseg.report.templates import check_pages
from kidseg.serve.answers import API, PROBLEMS, Health, JobList, JobView, ModelName
from kidseg.serve.incoming import kept_scan
from kidseg.serve.job import ACTIVE, new_id
from kidseg.serve.job import Request as Wanted
from kidseg.serve.job_measures import VOLUMES
from kidseg.serve.job_results import BINARY, result_routes, view
from kidseg.serve.refusals import RefusedError
from kidseg.serve.service import Service

__all__ = ["rest_routes"]

_TICK_S = 0.2
_HEARTBEAT_TICKS = 50
_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"const": "job"},
        "data": {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": "#/components/schemas/JobView"},
        },
    },
}
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One scan: a NIfTI, NRRD or MetaImage file, or a zip of a DICOM series.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
            "application/octet-stream": BINARY,
            "application/zip": BINARY,
            "application/gzip": BINARY,
        },
    }
}


class Wishes(BaseModel):
    """What is to be done with a scan, and what is known of the patient."""

    model_config = ConfigDict(extra="forbid")

    formats: str = Field(
        "nii", max_length=200, description="Formats of the labels, with commas between."
    )
    figures: bool = Field(False, description="Also draw the steps.")
    series: str | None = Field(
        None, max_length=100, description="DICOM series: number, 3.2, or UID."
    )
    repair: bool = Field(False, description="Fix DICOM geometry where safe.")
    trust: Literal["sform", "qform"] | None = Field(
        None, description="NIfTI transform to use if they differ."
    )
    stay: bool = Field(
        False, description="Cancel the job when no client follows its events any more."
    )
    height_cm: float | None = Field(None, description="Of the patient, for the measures.")
    weight_kg: float | None = Field(None, description="Of the patient, for the measures.")
    age_years: float | None = Field(None, description="Of the patient, for the measures.")
    sex: Sex | None = Field(None, description="Of the patient, for the measures.")

    def wanted(self, scan: str) -> Wanted:
        """The request of a job whose scan has this name.

        Labels are also written as NIfTI if no format is one that can be measured.

        Raises:
            UsageError: see `check_formats`, `check_pages`, `Patient`.
            ModelError: see `check_pages`.
        """
        chosen = tuple(dict.fromkeys(self.formats.split(",")))
        check_formats(chosen)
        check_pages(chosen)
        person = {name: getattr(self, name) for name in Patient.__dataclass_fields__}
        Patient(**person)
        return Wanted(
            scan=scan,
            formats=chosen if set(chosen) & set(VOLUMES) else ("nii", *chosen),
            figures=self.figures,
            options={"series": self.series, "repair": self.repair, "trust": self.trust},
            stay=self.stay,
            person=person,
        )


def rest_routes(service: Service) -> APIRouter:
    """The routes of jobs, below `API`."""
    router = APIRouter(prefix=API, responses=PROBLEMS)

    @router.get("/health", response_model=Health, summary="Does the server work?")
    def health() -> Health:
        return _health(service)

    _upload_route(service, router)
    _job_routes(service, router)
    _event_route(service, router)
    result_routes(service, router)
    return router


def _upload_route(service: Service, router: APIRouter) -> None:
    @router.post(
        "/jobs",
        status_code=201,
        response_model=JobView,
        openapi_extra=_UPLOAD,
        summary="Upload a scan to be segmented",
    )
    async def create_job(
        request: Request, response: Response, wishes: Annotated[Wishes, Query()]
    ) -> JobView:
        wishes.wanted("")
        owner = request.state.client
        await run_in_threadpool(service.jobs.check_room, owner)
        place = service.door.folder / new_id()
        async with service.door.received(request, place) as received:
            scan = await run_in_threadpool(kept_scan, received, "file", "scan")
            wanted = wishes.wanted(scan.name)
            job = await run_in_threadpool(service.queue, owner, "segment", scan, wanted)
            await run_in_threadpool(service.door.clear, place)
        response.headers["Location"] = f"{API}/jobs/{job.id}"
        return await run_in_threadpool(view, service, job)


def _job_routes(service: Service, router: APIRouter) -> None:
    """To list, see, remove and cancel jobs."""

    @router.get("/jobs", response_model=JobList, summary="Your jobs")
    def list_jobs(
        request: Request,
        after: Annotated[int, Query(ge=0, le=2**62, description="See 'next'.")] = 0,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> JobList:
        jobs = service.jobs.of_owner(request.state.client, after=after, limit=limit)
        more = jobs[-1].number if len(jobs) == limit else None
        return JobList(jobs=[view(service, job) for job in jobs], next=more)

    @router.get("/jobs/{job}", response_model=JobView, summary="A job")
    def get_job(request: Request, job: UUID) -> JobView:
        return view(service, service.jobs.get(str(job), request.state.client))

    @router.delete("/jobs/{job}", status_code=204, summary="Cancel or remove a job")
    def delete_job(request: Request, job: UUID) -> None:
        known = service.jobs.get(str(job), request.state.client)
        if known.state in ACTIVE:
            service.cancel(known.id)
        elif service.jobs.remove(known):
            service.audit.write("job-removed", job=known.id)

    @router.post("/jobs/{job}/cancel", response_model=JobView, summary="Cancel a job")
    def cancel_job(request: Request, job: UUID) -> JobView:
        known = service.jobs.get(str(job), request.state.client)
        service.cancel(known.id)
        return view(service, service.jobs.get(known.id))


def _event_route(service: Service, router: APIRouter) -> None:
    @router.get(
        "/jobs/{job}/events",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "Server-sent events 'job', with a job each; ends with the job.",
                "content": {"text/event-stream": {"schema": _EVENT}},
            }
        },
        summary="Follow a job",
    )
    async def follow_job(request: Request, job: UUID) -> StreamingResponse:
        owner = request.state.client
        known = await run_in_threadpool(service.jobs.get, str(job), owner)
        return StreamingResponse(_events(service, known.id), media_type="text/event-stream")


async def _events(service: Service, job: str) -> AsyncIterator[str]:
    """Each change of a job, until it has ended."""
    last, ticks = "", 0
    with service.watchers.following(job):
        while service.dispatcher.is_alive:
            try:
                seen = await run_in_threadpool(_current, service, job)
            except RefusedError:  # it was removed
                return
            text = seen.model_dump_json()
            if text != last:
                yield f"event: job\ndata: {text}\n\n"
            elif ticks % _HEARTBEAT_TICKS == 0:
                yield ": still here\n\n"
            if seen.state not in ACTIVE:
                service.watchers.release(job)
                return
            last, ticks = text, ticks + 1
            await asyncio.sleep(_TICK_S)


def _current(service: Service, job: str) -> JobView:
    return view(service, service.jobs.get(job))


def _is_offered(kind: str) -> bool:
    """Is all installed that this format needs?"""
    try:
        check_pages([kind])
    except KidsegError:
        return False
    return all(map(is_installed, FORMATS[kind].packages))


def _health(service: Service) -> Health:
    facts, problem = service.dispatcher.facts, service.dispatcher.problem
    state: Literal["ok", "loading", "unusable"] = "ok" if facts else "loading"
    return Health(
        status="unusable" if problem is not None else state,
        version=version("kidseg"),
        model=ModelName(sha256=facts["sha256"], method=facts["method"]) if facts else None,
        labels={str(number): name for number, name in facts.get("labels", {}).items()},
        formats=[kind for kind in FORMATS if _is_offered(kind)],
        token_required=bool(service.serving.tokens),
        jobs=service.jobs.counts(),
        use=RESEARCH_USE,
    )
