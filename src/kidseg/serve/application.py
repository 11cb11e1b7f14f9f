"""The web application: all routes behind the guard, and every error as a problem document."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from kidseg.errors import KidsegError, quoted
from kidseg.provenance import RESEARCH_USE
from kidseg.serve.answers import API, Problem
from kidseg.serve.datastore import datastore_routes
from kidseg.serve.guard import App, Guard, server_fault
from kidseg.serve.head_requests import HeadRequests
from kidseg.serve.login import auth_routes
from kidseg.serve.monai_label import monai_routes
from kidseg.serve.page_files import page_routes
from kidseg.serve.refusals import PROBLEM_TYPE, RefusedError, headers_of, problem_of
from kidseg.serve.rest import rest_routes
from kidseg.serve.service import Service

__all__ = ["create_app"]

_TITLE = "kidseg: kidneys and renal tumours in CT"


def create_app(service: Service) -> App:
    """The application of a service, to be run by an ASGI server."""
    app = FastAPI(
        title=_TITLE,
        version=version("kidseg"),
        description=RESEARCH_USE,
        openapi_url=f"{API}/openapi.json",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.include_router(rest_routes(service))
    app.include_router(monai_routes(service))
    app.include_router(datastore_routes(service))
    app.include_router(page_routes())
    app.add_exception_handler(KidsegError, _known_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _fault)
    _document(app, token=bool(service.serving.tokens))
    guard = Guard(cast(App, HeadRequests(app)), service.serving, service.audit, service.tickets)
    app.include_router(auth_routes(service, guard.named))
    return guard


def _document(app: FastAPI, *, token: bool) -> None:
    """Complete the OpenAPI document: the problems, and the token."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            components = found.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            schemas["Problem"] = Problem.model_json_schema()
            if token:
                components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
                found["security"] = [{"token": []}]
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _answer(error: KidsegError) -> Response:
    problem = problem_of(error)
    return JSONResponse(
        problem, problem["status"], headers=dict(headers_of(error)), media_type=PROBLEM_TYPE
    )


def _known_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, KidsegError)
    return _answer(error)


def _invalid(request: Request, error: Exception) -> Response:
    """A parameter that is not as the OpenAPI document says."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    return _answer(
        RefusedError(
            422,
            f"{quoted(where)}: {first['msg']}",
            code="invalid-request",
            next_step=f"See {API}/openapi.json.",
        )
    )


def _http_error(request: Request, error: Exception) -> Response:
    """An error of the framework: no such route, or no such method."""
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, RefusedError):  # while the body was received
        return _answer(error.__cause__)
    codes = {404: "not-found", 405: "wrong-method"}
    answer = _answer(
        RefusedError(
            error.status_code,
            str(error.detail),
            code=codes.get(error.status_code, "bad-request"),
            next_step=f"See {API}/openapi.json.",
        )
    )
    answer.headers.update(error.headers or {})
    return answer


def _fault(request: Request, error: Exception) -> Response:
    """A fault of the program, which the guard logs."""
    return _answer(server_fault())


def _gone(request: Request, error: Exception) -> Response:
    """The client is gone; nobody reads this."""
    return Response(status_code=499)
