"""The REST interface: jobs, their progress and results."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response, StreamingResponse

from kidseg.io.label_formats import FORMATS, check_formats
from kidseg.provenance import RESEARCH_USE
from kidseg.serve.answers import (
    PROBLEMS,
    Health,
    JobList,
    JobView,
    ModelName,
    ResultFile,
    view_of,
)
from kidseg.serve.incoming import kept_scan
from kidseg.serve.job import ACTIVE, Job, new_id
from kidseg.serve.job import Request as Wanted
from kidseg.serve.refusals import RefusedError, no_such
from kidseg.serve.service import Service

__all__ = ["API", "FILE", "media_type", "rest_routes"]

API = "/api/v1"
_TICK_S = 0.2
_HEARTBEAT_TICKS = 50
_RECORD = "result.json"
_MEDIA = {
    ".json": "application/json",
    ".gz": "application/gzip",
    ".dcm": "application/dicom",
    ".png": "image/png",
    ".stl": "model/stl",
    ".obj": "model/obj",
    ".glb": "model/gltf-binary",
    ".html": "text/html",
}
# A report brings its own scripts, and a policy for them; here it is kept apart from the server.
_VIEWED = {
    "Content-Security-Policy": "sandbox allow-scripts allow-downloads; connect-src 'none';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}
_BINARY: Any = {"schema": {"type": "string", "format": "binary"}}
FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": dict.fromkeys(("application/octet-stream", *_MEDIA.values()), _BINARY),
    }
}
"""The answer of a route that sends a file, for the OpenAPI document."""

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
            "application/octet-stream": _BINARY,
            "application/zip": _BINARY,
            "application/gzip": _BINARY,
        },
    }
}


def rest_routes(service: Service) -> APIRouter:
    """The routes of jobs, below `API`."""
    router = APIRouter(prefix=API, responses=PROBLEMS)

    @router.get("/health", response_model=Health, summary="Does the server work?")
    def health() -> Health:
        return _health(service)

    @router.post(
        "/jobs",
        status_code=201,
        response_model=JobView,
        openapi_extra=_UPLOAD,
        summary="Upload a scan to be segmented",
    )
    async def create_job(
        request: Request,
        response: Response,
        formats: Annotated[
            str, Query(max_length=200, description="Formats of the labels, with commas between.")
        ] = "nii",
        figures: Annotated[bool, Query(description="Also draw the steps.")] = False,
        series: Annotated[
            str | None, Query(max_length=100, description="DICOM series: number, 3.2, or UID.")
        ] = None,
        repair: Annotated[bool, Query(description="Fix DICOM geometry where safe.")] = False,
        trust: Annotated[
            Literal["sform", "qform"] | None,
            Query(description="NIfTI transform to use if they differ."),
        ] = None,
        stay: Annotated[
            bool, Query(description="Cancel the job when no client follows its events any more.")
        ] = False,
    ) -> JobView:
        chosen = tuple(dict.fromkeys(formats.split(",")))
        check_formats(chosen)
        owner = request.state.client
        await run_in_threadpool(service.jobs.check_room, owner)
        place = service.door.folder / new_id()
        async with service.door.received(request, place) as received:
            scan = await run_in_threadpool(kept_scan, received, "file", "scan")
            wanted = Wanted(
                scan=scan.name,
                formats=chosen,
                figures=figures,
                options={"series": series, "repair": repair, "trust": trust},
                stay=stay,
            )
            job = await run_in_threadpool(service.queue, owner, "segment", scan, wanted)
            place.rmdir()
        response.headers["Location"] = f"{API}/jobs/{job.id}"
        return await run_in_threadpool(_view, service, job)

    @router.get("/jobs", response_model=JobList, summary="Your jobs")
    def list_jobs(
        request: Request,
        after: Annotated[int, Query(ge=0, le=2**62, description="See 'next'.")] = 0,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> JobList:
        jobs = service.jobs.of_owner(request.state.client, after=after, limit=limit)
        more = jobs[-1].number if len(jobs) == limit else None
        return JobList(jobs=[_view(service, job) for job in jobs], next=more)

    @router.get("/jobs/{job}", response_model=JobView, summary="A job")
    def get_job(request: Request, job: UUID) -> JobView:
        return _view(service, service.jobs.get(str(job), request.state.client))

    @router.delete("/jobs/{job}", status_code=204, summary="Cancel or remove a job")
    def delete_job(request: Request, job: UUID) -> None:
        known = service.jobs.get(str(job), request.state.client)
        if known.state in ACTIVE:
            service.cancel(known.id)
        else:
            service.jobs.remove(known)
            service.audit.write("job-removed", job=known.id)

    @router.post("/jobs/{job}/cancel", response_model=JobView, summary="Cancel a job")
    def cancel_job(request: Request, job: UUID) -> JobView:
        known = service.jobs.get(str(job), request.state.client)
        service.cancel(known.id)
        return _view(service, service.jobs.get(known.id))

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

    @router.get("/jobs/{job}/results", response_model=list[ResultFile], summary="Files of a job")
    def list_results(request: Request, job: UUID) -> list[ResultFile]:
        return _files(service, _done(service, str(job), request.state.client))

    @router.get(
        "/jobs/{job}/results/{name}",
        response_class=FileResponse,
        responses=FILE,
        summary="Download a file of a job",
    )
    def get_result(
        request: Request,
        job: UUID,
        name: str,
        view: Annotated[bool, Query(description="Show a page, instead of saving it.")] = False,
    ) -> FileResponse:
        known = _done(service, str(job), request.state.client)
        if name not in [file.name for file in _files(service, known)]:
            raise no_such("file")
        path = service.jobs.results(known) / name
        service.audit.write("result-sent", job=known.id, client=request.state.client)
        if view and media_type(name) == "text/html":
            return FileResponse(path, media_type="text/html; charset=utf-8", headers=_VIEWED)
        return FileResponse(path, media_type=media_type(name), filename=name)

    return router


def media_type(name: str) -> str:
    """The media type of a file with this name."""
    return _MEDIA.get(Path(name).suffix.lower(), "application/octet-stream")


async def _events(service: Service, job: str) -> AsyncIterator[str]:
    """Each change of a job, until it has ended."""
    last, ticks = "", 0
    with service.watchers.following(job):
        while service.dispatcher.is_alive:
            try:
                view = await run_in_threadpool(_current, service, job)
            except RefusedError:  # it was removed
                return
            text = view.model_dump_json()
            if text != last:
                yield f"event: job\ndata: {text}\n\n"
            elif ticks % _HEARTBEAT_TICKS == 0:
                yield ": still here\n\n"
            if view.state not in ACTIVE:
                service.watchers.release(job)
                return
            last, ticks = text, ticks + 1
            await asyncio.sleep(_TICK_S)


def _current(service: Service, job: str) -> JobView:
    return _view(service, service.jobs.get(job))


def _view(service: Service, job: Job) -> JobView:
    files = _files(service, job) if job.state == "done" else []
    return view_of(job, service.jobs.ahead(job), files, service.serving.limits.keep_s)


def _done(service: Service, job: str, owner: str) -> Job:
    """A job with results.

    Raises:
        RefusedError: 404; 409 "not-done".
    """
    known = service.jobs.get(job, owner)
    if known.state != "done":
        raise RefusedError(
            409,
            f"the job is {known.state}, so it has no results",
            code="not-done",
            next_step="Follow its events until it is done."
            if known.state in ACTIVE
            else "Create a new job.",
        )
    return known


def _files(service: Service, job: Job) -> list[ResultFile]:
    """The files of a job that is done."""
    assert job.result is not None
    folder = service.jobs.results(job)
    found = []
    for name in (*job.result["outputs"], _RECORD):
        path = folder / name
        if path.is_file():
            href = f"{API}/jobs/{job.id}/results/{name}"
            size = path.stat().st_size
            found.append(ResultFile(name=name, format=_format(name, job), size=size, href=href))
    return found


def _format(name: str, job: Job) -> str:
    """The format of a file, by its ending."""
    if name == _RECORD:
        return "record"
    for kind in job.request.formats:
        ending = re.escape(FORMATS[kind].ending).replace(r"\{label\}", ".+")
        if re.fullmatch(f"scan{ending}", name):
            return kind
    return "figure"


def _health(service: Service) -> Health:
    facts, problem = service.dispatcher.facts, service.dispatcher.problem
    installed = [
        kind
        for kind, known in FORMATS.items()
        if all(find_spec(package) is not None for package in known.packages)
    ]
    state: Literal["ok", "loading", "unusable"] = "ok" if facts else "loading"
    return Health(
        status="unusable" if problem is not None else state,
        version=version("kidseg"),
        model=ModelName(sha256=facts["sha256"], method=facts["method"]) if facts else None,
        labels={str(number): name for number, name in facts.get("labels", {}).items()},
        formats=installed,
        token_required=bool(service.serving.tokens),
        jobs=service.jobs.counts(),
        use=RESEARCH_USE,
    )
