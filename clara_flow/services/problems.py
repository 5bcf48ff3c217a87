"""Errors as HTTP answers: the ONE mapping of our error tree to problem details (RFC 7807), for every router."""

from __future__ import annotations

import http
import logging
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from clara_flow.errors import (
    ClaraFlowError,
    Conflict,
    InputError,
    InvalidTransition,
    NotFound,
    PlatformError,
    ResourcesNeverFit,
    SettingsError,
    StaleOwner,
    StorageError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI, Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class NotAcceptable(InputError):
    """There is nothing in a form that the client takes."""


class Unprocessable(InputError):
    """The body is of the right form, and what it asks for cannot be done."""


# The first that fits: special cases stand before general ones.
STATUS_OF: Sequence[tuple[type[ClaraFlowError], int, str]] = (
    (NotFound, 404, "Not found"),
    (Conflict, 409, "Conflict"),
    (NotAcceptable, 406, "Not acceptable"),
    (Unprocessable, 422, "The request cannot be used"),
    (InputError, 400, "The request cannot be used"),
    (SettingsError, 400, "A setting cannot be used"),
    (ResourcesNeverFit, 422, "More is asked for than there is"),
    (StaleOwner, 409, "Somebody else does this by now"),
    (StorageError, 507, "No room"),
    (PlatformError, 503, "Not available now"),
    (InvalidTransition, 409, "Its state forbids that"),
    (ClaraFlowError, 500, "Internal error"),
)


def status_of(error: ClaraFlowError) -> tuple[int, str]:
    """HTTP status and title of an error."""
    return next((status, title) for kind, status, title in STATUS_OF if isinstance(error, kind))


def problem_response(
    error: ClaraFlowError | str,
    *,
    status: int | None = None,
    title: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer for an error, or for a sentence with `status`: problem JSON with `title`, `status` and `detail`.

    status, title       instead of those that the error's class has.
    """
    usual_status, usual_title = status_of(error) if isinstance(error, ClaraFlowError) else (500, "")
    status = status or usual_status
    if title is None:
        title = usual_title or http.HTTPStatus(status).phrase
    content: dict[str, Any] = {"type": "about:blank", "title": title, "status": status, "detail": str(error)}
    return JSONResponse(content, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of `app`, foreseen or not, such an answer. A body of the wrong shape is answered with 400."""
    app.add_exception_handler(ClaraFlowError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(DataError, _on_data)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_middleware(Unforeseen)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, ClaraFlowError)  # noqa: S101  for the type checker
    return problem_response(error)


async def _on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Names the fields, never their values: they may be patients'."""
    del request
    assert isinstance(error, RequestValidationError)  # noqa: S101  for the type checker
    lines = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
    return problem_response("; ".join(lines), status=400, title="The request cannot be used")


async def _on_data(request: Request, error: Exception) -> JSONResponse:
    """A text with a NUL, say, which no column can hold."""
    del request, error
    return problem_response("a value in it can stand in no record", status=400, title="The request cannot be used")


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    del request
    assert isinstance(error, HTTPException)  # noqa: S101  for the type checker
    return problem_response(str(error.detail), status=error.status_code, headers=error.headers)


class Unforeseen:
    """Middleware: an error that nobody foresaw is logged by its kind and place, and answered with 500.

    Its text stays out of the log and of the answer: it may quote what was sent.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on."""
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, sending)
        except Exception as error:  # noqa: BLE001  whatever it is
            places = "".join(traceback.format_tb(error.__traceback__)[-5:])
            log.error("%s while a request was answered:\n%s", type(error).__name__, places)
            if scope["type"] != "http" or started:
                raise ConnectionError("the answer was broken off") from None
            await problem_response("This is a fault of ours; the gateway's log says more.", status=500)(
                scope, receive, send
            )
