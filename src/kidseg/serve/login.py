"""The login of MONAI Label, whose password is the token."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs

from fastapi import APIRouter, Request

from kidseg.serve.answers import PROBLEMS
from kidseg.serve.refusals import RefusedError
from kidseg.serve.service import Service
from kidseg.serve.training_routes import MODEL

__all__ = ["auth_routes"]

_LOGIN_BYTES, _LOGIN_FIELDS = 10_000, 20


def auth_routes(service: Service, named: Any) -> APIRouter:
    """The login of MONAI Label, whose password is the token.

    Args:
        service: with the tokens.
        named: (token, address) -> name of the client; see `Guard.named`.
    """
    router = APIRouter(prefix="/auth", responses=PROBLEMS, tags=["MONAI Label"])

    @router.get("/", summary="Is a token required?")
    def enabled() -> dict[str, Any]:
        return {"enabled": bool(service.serving.tokens), "client_id": MODEL, "realm": MODEL}

    @router.post("/token", openapi_extra=_LOGIN, summary="A token for the password, which is it")
    async def token(request: Request) -> dict[str, Any]:
        password = await _password(request)
        if service.serving.tokens:
            named(password, request.client.host if request.client else "")
        return {"access_token": password, "token_type": "bearer"}

    @router.get("/token/valid", summary="Is this token valid?")
    def valid(request: Request) -> dict[str, Any]:
        return {"username": request.state.client}

    return router


_LOGIN: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "required": ["password"],
                    "properties": {"password": {"type": "string"}},
                }
            }
        },
    }
}


async def _password(request: Request) -> str:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LOGIN_BYTES:
            raise RefusedError(
                413, "the login is too long", code="too-large", next_step="Send the token alone."
            )
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=_LOGIN_FIELDS)
    except ValueError:
        raise RefusedError(
            422,
            f"a login has at most {_LOGIN_FIELDS} fields",
            code="bad-form",
            next_step="Send the password, which is the token.",
        ) from None
    return fields.get("password", [""])[0]
