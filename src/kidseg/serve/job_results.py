"""The results of jobs: how a job is shown, its files, and the routes that send them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from kidseg.io.label_formats import FORMATS
from kidseg.serve.answers import API, JobView, PageLink, ResultFile, view_of
from kidseg.serve.job import ACTIVE, Job
from kidseg.serve.job_measures import ENDING
from kidseg.serve.refusals import RefusedError, removed
from kidseg.serve.service import Service

__all__ = ["BINARY", "FILE", "file_answer", "media_type", "result_routes", "view"]

MEASURES = "measures"
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
BINARY: Any = {"schema": {"type": "string", "format": "binary"}}
FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": dict.fromkeys(("application/octet-stream", *_MEDIA.values()), BINARY),
    }
}
"""The answer of a route that sends a file, for the OpenAPI document."""


def result_routes(service: Service, router: APIRouter) -> None:
    """Add the routes of the files of a job."""

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
        ticket: Annotated[str, Query(max_length=100, description="Of a link to a page.")] = "",
    ) -> FileResponse:
        # Without a client: the guard let a ticket in, which a client got for this very address.
        known = _with_file(service, str(job), request.state.client, name)
        service.audit.write("result-sent", job=known.id, client=request.state.client)
        path = service.jobs.results(known) / name
        if view and media_type(name) == "text/html":
            return file_answer(path, None, "text/html; charset=utf-8", _VIEWED)
        return file_answer(path, name)

    _link_route(service, router)

    @router.get(
        "/jobs/{job}/measures",
        response_model=dict[str, Any],
        summary="What was measured, as 'kidseg measure --json' says it",
    )
    def get_measures(request: Request, job: UUID) -> FileResponse:
        known = _done(service, str(job), request.state.client)
        for file in _files(service, known):
            if file.format == MEASURES:
                service.audit.write("result-sent", job=known.id, client=request.state.client)
                return file_answer(service.jobs.results(known) / file.name, None)
        raise RefusedError(
            404,
            "nothing was measured: a warning of the job says why",
            code="not-measured",
            next_step="Download the labels, and run 'kidseg measure' on them.",
        )


def _link_route(service: Service, router: APIRouter) -> None:
    @router.post(
        "/jobs/{job}/results/{name}/link",
        response_model=PageLink,
        summary="Link to a page that a browser opens without token",
    )
    def link_page(request: Request, job: UUID, name: str) -> PageLink:
        known = _with_file(service, str(job), request.state.client, name)
        if media_type(name) != "text/html":
            raise removed("page")
        query = f"view=true&ticket={secrets.token_urlsafe(32)}"
        href = f"{API}/jobs/{known.id}/results/{name}?{query}"
        service.tickets.give(href)
        service.audit.write("page-linked", job=known.id, client=request.state.client)
        return PageLink(href=href, valid_s=service.tickets.valid_s)


def file_answer(
    path: Path,
    name: str | None,
    media: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> FileResponse:
    """A file as an answer.

    Args:
        path: of the file.
        name: under which it is saved; None: it is shown.
        media: its type; None: by its ending.
        headers: further ones.

    Raises:
        RefusedError: 404: it was removed meanwhile.
    """
    try:
        facts = path.stat()
    except OSError:
        raise removed("file") from None
    return FileResponse(
        path,
        stat_result=facts,
        filename=name,
        media_type=media or media_type(path.name),
        headers=headers,
    )


def media_type(name: str) -> str:
    """The media type of a file with this name."""
    return _MEDIA.get(Path(name).suffix.lower(), "application/octet-stream")


def view(service: Service, job: Job) -> JobView:
    """A job as its client sees it."""
    files = _files(service, job) if job.state == "done" else []
    return view_of(job, service.jobs.ahead(job), files, service.serving.limits.keep_s)


def _done(service: Service, job: str, owner: str | None) -> Job:
    """A job of this client (None: of any) with results.

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


def _with_file(service: Service, job: str, owner: str | None, name: str) -> Job:
    """A job that has this file.

    Raises:
        RefusedError: see `_done`; 404: there is no such file.
    """
    known = _done(service, job, owner)
    if name not in [file.name for file in _files(service, known)]:
        raise removed("file")
    return known


def _files(service: Service, job: Job) -> list[ResultFile]:
    """The files of a job that is done; without those that were removed meanwhile."""
    assert job.result is not None
    folder = service.jobs.results(job)
    found = []
    for name in (*job.result["outputs"], _RECORD):
        try:
            size = (folder / name).stat().st_size
        except OSError:
            continue
        href = f"{API}/jobs/{job.id}/results/{name}"
        found.append(ResultFile(name=name, format=_format(name, job), size=size, href=href))
    return found


def _format(name: str, job: Job) -> str:
    """The format of a file, by its ending."""
    if name == _RECORD:
        return "record"
    if name.endswith(ENDING):
        return MEASURES
    for kind in job.request.formats:
        ending = re.escape(FORMATS[kind].ending).replace(r"\{label\}", ".+")
        if re.fullmatch(f"scan{ending}", name):
            return kind
    return "figure"
