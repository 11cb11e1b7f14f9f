"""The web page, whose files are in the package."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from kidseg.serve.refusals import removed

__all__ = ["page_routes"]

_FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def page_routes() -> APIRouter:
    """The page and what it loads."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    def page() -> Response:
        return _file("index.html")

    @router.get("/page/{name}")
    def page_file(name: str) -> Response:
        return _file(name)

    return router


def _file(name: str) -> Response:
    if name not in _FILES:
        raise removed("file")
    content = (files("kidseg.serve") / "page" / name).read_bytes()
    return Response(content, media_type=_FILES[name])
