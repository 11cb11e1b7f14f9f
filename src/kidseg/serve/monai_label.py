"""The protocol of MONAI Label, as its client and the plug-in of 3D Slicer speak it.

Source: MONAI Label 0.8.5, `monailabel.client.MONAILabelClient` and
`plugins/slicer/MONAILabel/MONAILabel.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response, StreamingResponse

from kidseg.io.atomic import link_or_copy
from kidseg.provenance import RESEARCH_USE
from kidseg.serve.answers import PROBLEMS
from kidseg.serve.incoming import Received, json_field, kept_scan
from kidseg.serve.job import ACTIVE, Job, new_id
from kidseg.serve.job import Request as Wanted
from kidseg.serve.job_results import file_answer, media_type
from kidseg.serve.learning import TUNES
from kidseg.serve.next_sample import STRATEGIES
from kidseg.serve.refusals import RefusedError, no_such, removed
from kidseg.serve.service import Service
from kidseg.serve.training_routes import MODEL, check_model, training_routes

__all__ = ["monai_routes"]

_TICK_S = 0.1
_BLOCK = 2**20
_FORMATS = {".nii.gz": "nii", ".nrrd": "nrrd", ".mha": "mha", ".seg.nrrd": "seg.nrrd"}
_STATUS = {"worker-killed": 503, "job-timeout": 504}
_FORM: dict[str, Any] = {
    "requestBody": {
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "params": {"type": "string", "description": "A JSON object."},
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            }
        }
    }
}
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The labels as a file 'image', and a JSON object 'params'.",
        "content": {"multipart/form-data": {"schema": {"type": "object"}}},
    }
}


def monai_routes(service: Service) -> APIRouter:
    """Information, inference, sessions, the next image, and training."""
    router = APIRouter(responses=PROBLEMS, tags=["MONAI Label"])

    @router.get("/info/", summary="The model, its labels, the images, the training")
    def info() -> dict[str, Any]:
        return _info(service)

    @router.post(
        "/infer/{model}",
        response_class=Response,
        responses=_ANSWER,
        openapi_extra=_FORM,
        summary="Segment an image, and wait for its labels",
    )
    async def infer(
        request: Request,
        model: str,
        image: Annotated[str, Query(max_length=256)] = "",
        session_id: Annotated[str, Query(max_length=64)] = "",
        output: Literal["all", "image", "json"] = "all",
    ) -> Response:
        check_model(model)
        owner = request.state.client
        await run_in_threadpool(service.jobs.check_room, owner)
        place = service.door.folder / new_id()
        async with service.door.received(request, place, optional=True) as received:
            scan, known = await run_in_threadpool(
                _scan, service, owner, received, place, image, session_id
            )
            params = json_field(received.fields.get("params"))
            ending = str(params.get("result_extension", ".nii.gz"))
            wanted = Wanted(
                scan=scan.name,
                formats=(_FORMATS.get(ending, "nii"),),
                stay=True,
                image=known,
            )
            job = await run_in_threadpool(service.queue, owner, "infer", scan, wanted)
            await run_in_threadpool(service.door.clear, place)
        return await _answer(service, await _awaited(service, request, job), output)

    _session_routes(service, router)
    training_routes(service, router)
    return router


def _session_routes(service: Service, router: APIRouter) -> None:
    """To keep an image for a while."""

    @router.put("/session/", openapi_extra=_FORM, summary="Keep an image for a while")
    async def create_session(request: Request) -> dict[str, Any]:
        place = service.door.folder / new_id()
        async with service.door.received(request, place) as received:
            scan = await run_in_threadpool(kept_scan, received, "files", "file")
            owner = request.state.client
            session = await run_in_threadpool(service.sessions.begin, owner, scan)
            await run_in_threadpool(service.door.clear, place)
        service.audit.write("session-begun", session=session.id)
        facts = {"name": session.id, "creation_ts": int(session.created)}
        return {"session_id": session.id, "session_info": facts}

    @router.get("/session/{session}", summary="A session")
    def get_session(request: Request, session: str) -> dict[str, Any]:
        found = service.sessions.get(session, request.state.client)
        return {
            "name": found.id,
            "creation_ts": int(found.created),
            "last_access_ts": int(found.used),
        }

    @router.delete("/session/{session}", summary="Remove a session and its image")
    def remove_session(request: Request, session: str) -> dict[str, Any]:
        found = service.sessions.get(session, request.state.client)
        service.sessions.end(found)
        service.audit.write("session-ended", session=found.id)
        return {"name": found.id}


def _scan(
    service: Service, owner: str, received: Received, place: Path, image: str, session: str
) -> tuple[Path, str | None]:
    """The scan to segment, in `place`, and the id of the image it is a copy of.

    Raises:
        RefusedError: 404; 415; 422 "no-scan".
    """
    known = None
    if session:
        source = service.sessions.get(session, owner).path
    elif received.file("file") is not None:
        return kept_scan(received, "file"), None
    elif image:
        found = service.images.get(image)
        source, known = found.path, found.id
    else:
        return kept_scan(received, "file"), None
    scan = place / f"scan{''.join(source.suffixes)}"
    try:
        link_or_copy(source, scan)  # the image can be removed meanwhile
    except FileNotFoundError:
        raise no_such("image") from None
    return scan, known


async def _awaited(service: Service, request: Request, job: Job) -> Job:
    """A job when it is done; cancelled if its client goes.

    Raises:
        RefusedError: the job failed, with its code; 409 "cancelled"; 400 "client-gone".
    """
    with service.watchers.following(job.id):
        while True:
            known = await run_in_threadpool(service.jobs.get, job.id)
            if known.state not in ACTIVE:
                break
            if await request.is_disconnected():
                await run_in_threadpool(service.cancel, job.id, "client-gone")
                raise RefusedError(
                    400,
                    "the client is gone",
                    code="client-gone",
                    next_step="Keep the connection open until the labels come.",
                )
            await asyncio.sleep(_TICK_S)
    service.watchers.release(job.id)
    if known.error is not None:
        status = _STATUS.get(known.error.code, 422)
        raise RefusedError(
            status, known.error.cause, code=known.error.code, next_step=known.error.next_step
        )
    if known.state != "done":
        raise RefusedError(
            409, "the job was cancelled", code="cancelled", next_step="Ask for the labels again."
        )
    return known


async def _answer(service: Service, job: Job, output: str) -> Response:
    assert job.result is not None
    file = service.jobs.results(job) / job.result["outputs"][0]
    if output == "image":
        return file_answer(file, file.name)
    params = {
        "label_names": {name: int(number) for number, name in job.result["labels"].items()},
        "volumes_ml": job.result["volumes_ml"],
        "warnings": [f"{each['code']}: {each['cause']}" for each in job.result["warnings"]],
        "uncertainty": job.result["uncertainty"],
        "model": job.result["model"],
        "job": job.id,
        "use": RESEARCH_USE,
    }
    if output == "json":
        return JSONResponse(params)
    boundary = secrets.token_hex(16)
    name = f"{job.id}{''.join(file.suffixes)}"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="params"\r\n'
        f"Content-Type: application/json\r\n\r\n{json.dumps(params)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        f"Content-Type: {media_type(name)}\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    try:
        opened = file.open("rb")
    except OSError:
        raise removed("job") from None  # it was removed meanwhile
    size = os.fstat(opened.fileno()).st_size

    async def parts() -> AsyncIterator[bytes]:
        with opened:
            yield head
            while block := await run_in_threadpool(opened.read, _BLOCK):
                yield block
        yield tail

    return StreamingResponse(
        parts(),
        media_type=f"multipart/form-data; boundary={boundary}",
        headers={"Content-Length": str(len(head) + size + len(tail))},
    )


def _info(service: Service) -> dict[str, Any]:
    labels: Mapping[int, str] = service.dispatcher.facts.get("labels", {})
    names = [labels[number] for number in sorted(labels)]
    last = service.learner.last
    stats: dict[str, Any] = {}
    if last is not None:
        best = last.after if last.taken else last.before
        stats = {"epoch": last.epoch, "total_epochs": max(1, last.epochs)}
        stats |= {"best_metric": best or 0.0, "stage": last.stage}
        if last.ended is not None:
            stats["total_time"] = round(last.ended - last.started)
    description = f"Kidneys and renal tumours in CT. {RESEARCH_USE}"
    return {
        "name": "kidseg",
        "description": description,
        "version": version("kidseg"),
        "labels": names,
        "models": {
            MODEL: {
                "type": "segmentation",
                "labels": {name: number for number, name in labels.items()},
                "dimension": 3,
                "description": description,
                "config": {"result_extension": list(_FORMATS)},
            }
        },
        "trainers": {
            MODEL: {
                "description": "Fine-tunes the current model on all final labels; of an"
                " ensemble, each member",
                "config": {"tune": list(TUNES)},
            }
        },
        "strategies": {name: {"description": text} for name, (text, _) in STRATEGIES.items()},
        "scoring": {},
        "train_stats": {MODEL: stats} if stats else {},
        "datastore": service.image_counts(),
    }
