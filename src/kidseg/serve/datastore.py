"""The data store of the protocol of MONAI Label: images and their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, Response

from kidseg.serve.answers import PROBLEMS
from kidseg.serve.images import FINAL, Image
from kidseg.serve.incoming import json_field, kept_scan
from kidseg.serve.job import new_id
from kidseg.serve.job_results import FILE, file_answer
from kidseg.serve.refusals import no_such
from kidseg.serve.service import Service

__all__ = ["datastore_routes"]

Name = Annotated[str, Query(max_length=256)]
Tag = Annotated[str, Query(max_length=64)]


def _form(field: str) -> dict[str, Any]:
    properties = {"params": {"type": "string"}, field: {"type": "string", "format": "binary"}}
    schema = {"type": "object", "required": [field], "properties": properties}
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def datastore_routes(service: Service) -> APIRouter:
    """Images and labels, below /datastore."""
    router = APIRouter(prefix="/datastore", responses=PROBLEMS, tags=["MONAI Label"])
    _add_images(router, service)
    _add_labels(router, service)
    return router


def _add_images(router: APIRouter, service: Service) -> None:
    images = service.images

    @router.get("/", summary="All images and labels, or how many")
    def datastore(
        output: Literal["all", "stats", "train"] = "stats",
    ) -> dict[str, Any] | list[dict[str, Any]]:
        if output == "stats":
            return service.image_counts()
        if output == "train":
            learnable = [image for image in images.all() if FINAL in image.labels]
            return [{"image": service.public(i), "label": service.public(i)} for i in learnable]
        return {
            "name": "kidseg",
            "description": "Images of this server",
            "objects": {service.public(image): _object(image) for image in images.all()},
        }

    @router.put("/image", openapi_extra=_form("file"), summary="Add an image")
    @router.put("/", include_in_schema=False)
    async def add_image(request: Request, image: Name = "") -> dict[str, Any]:
        place = service.door.folder / new_id()
        async with service.door.received(request, place) as received:
            scan = await run_in_threadpool(kept_scan, received, "file")
            params = json_field(received.fields.get("params"))
            known = await run_in_threadpool(service.add_image, image or None, scan, params)
            await run_in_threadpool(service.door.clear, place)
        return {"image": known.name}

    @router.delete("/image", summary="Remove an image and its labels")
    @router.delete("/", include_in_schema=False)
    def remove_image(id: Name) -> dict[str, Any]:  # noqa: A002 - of the protocol
        known = images.get(id)
        images.remove(known)
        service.audit.write("image-removed", image=known.id)
        return {}

    @router.head("/image", response_class=Response, summary="Is there such an image?")
    def check_image(image: Name, check_sum: Annotated[str, Query(max_length=200)] = "") -> Response:
        known = images.get(image)
        if check_sum and check_sum.rpartition(":")[2] != known.sha256:
            raise no_such("image")
        return Response()

    @router.get("/image", response_class=FileResponse, responses=FILE, summary="Download an image")
    def download_image(image: Name) -> FileResponse:
        known = images.get(image)
        service.audit.write("image-sent", image=known.id)
        return _file(known.path, known.id)

    @router.get("/image/info", summary="What is said of an image")
    def image_info(image: Name) -> dict[str, Any]:
        return service.image_info(images.get(image))

    @router.put("/image/info", summary="Say something of an image")
    def describe_image(image: Name, info: Annotated[str, Form()] = "{}") -> dict[str, Any]:
        images.describe(images.get(image), json_field(info))
        return {}


def _add_labels(router: APIRouter, service: Service) -> None:
    images = service.images

    @router.put("/label", openapi_extra=_form("label"), summary="Save labels of an image")
    async def save_label(request: Request, image: Name, tag: Tag = FINAL) -> dict[str, Any]:
        place = service.door.folder / new_id()
        async with service.door.received(request, place) as received:
            known = await run_in_threadpool(images.get, image)
            labels = await run_in_threadpool(kept_scan, received, "label", "file")
            params = json_field(received.fields.get("params"))
            await run_in_threadpool(service.save_label, known, tag or FINAL, labels, params)
            await run_in_threadpool(service.door.clear, place)
        return {"image": image, "label": service.public(known)}

    @router.delete("/label", summary="Remove labels of an image")
    def remove_label(id: Name, tag: Tag) -> dict[str, Any]:  # noqa: A002 - of the protocol
        known = images.get(id)
        images.remove_label(known, tag)
        service.audit.write("label-removed", image=known.id)
        return {}

    @router.head("/label", response_class=Response, summary="Are there such labels?")
    def check_label(image: Name, tag: Tag) -> Response:
        _labels(images.get(image), tag)
        return Response()

    @router.get("/label", response_class=FileResponse, responses=FILE, summary="Download labels")
    def download_label(label: Name, tag: Tag) -> FileResponse:
        known = images.get(label)
        path = _labels(known, tag)
        service.audit.write("label-sent", image=known.id)
        return _file(path, known.id)

    @router.get("/label/info", summary="What is said of labels")
    def label_info(label: Name, tag: Tag) -> dict[str, Any]:
        known = images.get(label)
        _labels(known, tag)
        entry = known.labels[tag]
        return {"ts": int(entry.created), "params": dict(entry.info)}


def _labels(image: Image, tag: str) -> Path:
    if tag not in image.labels:
        raise no_such("label")
    return image.labels[tag].path


def _file(path: Path, name: str) -> FileResponse:
    return file_answer(path, f"{name}{''.join(path.suffixes)}")


def _object(image: Image) -> dict[str, Any]:
    labels = {
        tag: {
            "ext": "".join(entry.path.suffixes),
            "info": {"ts": int(entry.created), "params": dict(entry.info)},
        }
        for tag, entry in image.labels.items()
    }
    info = {**image.info, "ts": int(image.created), "checksum": f"SHA256:{image.sha256}"}
    return {"image": {"ext": "".join(image.path.suffixes), "info": info}, "labels": labels}
