"""What is answered to a request that is not fulfilled: a problem document with a status.

Source: RFC 9457, "Problem Details for HTTP APIs".
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from kidseg.errors import KidsegError

__all__ = ["PROBLEM_TYPE", "RefusedError", "headers_of", "no_such", "problem_of", "removed"]

PROBLEM_TYPE = "application/problem+json"


class RefusedError(KidsegError):
    """A request is refused.

    Args:
        status: of the answer.
        cause: the problem in one sentence.
        code: stable kebab-case name of the cause.
        next_step: what the client can do about it.
        retry_after_s: seconds after which the same request may succeed; None: it will not.
    """

    exit_code = 2

    def __init__(
        self,
        status: int,
        cause: str,
        *,
        code: str,
        next_step: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(cause, code=code, next_step=next_step)
        self.status = status
        self.retry_after_s = retry_after_s


def no_such(what: str, next_step: str = "Check its name, or its id.") -> RefusedError:
    """The refusal 404: there is none, it was removed, or it is another client's."""
    return RefusedError(
        HTTPStatus.NOT_FOUND,
        f"there is no such {what}, or no longer",
        code="not-found",
        next_step=next_step,
    )


def removed(what: str) -> RefusedError:
    """The refusal 404 of something that the server removes after a while."""
    return no_such(what, "Check its id; results are removed after a while.")


def problem_of(error: KidsegError) -> dict[str, Any]:
    """The problem document of an error; without paths of the server."""
    status = error.status if isinstance(error, RefusedError) else error.http_status
    return {
        "type": f"urn:kidseg:problem:{error.code or 'unknown'}",
        "title": HTTPStatus(status).phrase,
        "status": int(status),
        "code": error.code or "unknown",
        "detail": error.cause,
        "next_step": error.next_step,
    }


def headers_of(error: KidsegError) -> Mapping[str, str]:
    """Headers of the answer: when to try again, and how to authenticate."""
    if not isinstance(error, RefusedError):
        return {}
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers
