"""The one table: exception -> status code -> problem body (RFC 9457, https://www.rfc-editor.org/rfc/rfc9457)."""

import math
import random
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import errors
from app.api.schemas import Problem

_STATUS: dict[type[errors.ServiceError], int] = {
    errors.MalformedRequest: 400,
    errors.Unauthorized: 401,
    errors.RequestTooSlow: 408,
    errors.ImageTooLarge: 413,
    errors.UrlTooLong: 414,
    errors.UnsupportedImageFormat: 415,
    errors.UndecodableImage: 422,
    errors.InvalidParameter: 422,
    errors.RateLimited: 429,
    errors.QueueFull: 429,
    errors.HeaderTooLarge: 431,
    errors.InferenceFailed: 500,
    errors.InternalError: 500,
    errors.TooManyConnections: 503,
    errors.NotReady: 503,
    errors.Draining: 503,
    errors.DeadlineExceeded: 504,
}

INTERNAL_ERROR = "internal_error"
"""The code of an error that nobody foresaw."""

_FRAMEWORK_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 416: "range_not_satisfiable"}
"""Of what the framework refuses; not from the status's name, which changes with the version of Python."""

_MEDIA_TYPE = "application/problem+json"


def problem_of(error: errors.ServiceError) -> Problem:
    """The body that tells a caller of an error."""
    return _problem(_STATUS[type(error)], error.code, str(error))


def problem_response(error: errors.ServiceError) -> Response:
    """The answer that tells a caller of an error."""
    return _ProblemResponse(problem_of(error), problem_headers(error))


def last_resort() -> Response:
    """The answer to an error that nobody foresaw; what it was stands in the log alone."""
    return _ProblemResponse(_problem(500, INTERNAL_ERROR, "Something went wrong inside the service; it has been logged."))


def problem_responses(*kinds: type[errors.ServiceError]) -> dict[int | str, dict[str, Any]]:
    """What a route declares in OpenAPI of the errors it may answer with."""
    codes: dict[int, list[str]] = {}
    for kind in kinds:
        codes.setdefault(_STATUS[kind], []).append(f"`{kind.code}`")
    return {status: _described(names) for status, names in sorted(codes.items())}


def wire_problem_responses() -> dict[int | str, dict[str, Any]]:
    """What any route may be answered before it is reached, or when something breaks."""
    responses = problem_responses(
        errors.MalformedRequest, errors.RequestTooSlow, errors.UrlTooLong, errors.HeaderTooLarge, errors.TooManyConnections
    )
    return {**responses, 500: _described([f"`{INTERNAL_ERROR}`"])}


def install_problem_handlers(app: FastAPI) -> None:
    """Make the app answer every error, its own and the framework's, with a problem body."""

    @app.exception_handler(errors.ServiceError)
    async def service_error(request: Request, error: errors.ServiceError) -> Response:
        return problem_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid_parameter(request: Request, error: RequestValidationError) -> Response:
        faults = "; ".join(f"{part['loc'][-1]}: {part['msg']}" for part in error.errors())
        return problem_response(errors.InvalidParameter(f"{faults}."))

    @app.exception_handler(HTTPException)
    async def framework_error(request: Request, error: HTTPException) -> Response:
        details = {404: "There is nothing at this path", 405: "This path does not take this method"}
        hint = "; see /docs." if request.app.openapi_url else "."
        detail = details[error.status_code] + hint if error.status_code in details else ""
        headers = dict(error.headers or {})
        if headers.get("Allow") == "GET":
            headers["Allow"] = "GET, HEAD"  # every GET is answered without its body too, by a route of its own
        return _framework_response(error.status_code, detail, headers)

    @app.exception_handler(Exception)
    async def broken_middleware(request: Request, error: Exception) -> Response:
        return last_resort()


class ProblemsOnly:
    """ASGI middleware: says as a problem what the framework answers in plain text by itself.

    Starlette does so where it raises no exception that a handler could catch: for a browser's preflight that it refuses, and
    for a `Range` that it cannot serve.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, headers, text = 0, Headers(), b""

        async def send_problem(message: Message) -> None:
            nonlocal status, headers, text
            if message["type"] == "http.response.start" and _is_plain_error(message):
                status, headers = message["status"], Headers(raw=message["headers"])
            elif not status:
                await send(message)
            elif message["type"] == "http.response.body":
                text += message.get("body", b"")
                if not message.get("more_body", False):
                    kept = {name: value for name, value in headers.items() if name not in ("content-length", "content-type")}
                    await _framework_response(status, text.decode(), kept)(scope, receive, send)

        await self._app(scope, receive, send_problem)


def _is_plain_error(start: Message) -> bool:
    return start["status"] >= 400 and Headers(raw=start["headers"]).get("content-type", "").startswith("text/plain")


def _framework_response(status: int, detail: str, headers: dict[str, str]) -> Response:
    phrase = HTTPStatus(status).phrase
    code = _FRAMEWORK_CODES.get(status, phrase.lower().replace(" ", "_"))
    return _ProblemResponse(_problem(status, code, (detail or phrase).rstrip(".") + "."), headers)


def _described(codes: list[str]) -> dict[str, Any]:
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {"description": " or ".join(codes), "content": {_MEDIA_TYPE: schema}}


def _problem(status: int, code: str, detail: str) -> Problem:
    return Problem(
        type=f"urn:vit-serve:problem:{code}", title=HTTPStatus(status).phrase, status=status, detail=detail, code=code
    )


class _ProblemResponse(Response):
    """An answer that leaves its code in the request's state, for the log."""

    def __init__(self, problem: Problem, headers: dict[str, str] | None = None) -> None:
        super().__init__(problem.model_dump_json(), problem.status, headers, _MEDIA_TYPE)
        self._code = problem.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["problem_code"] = self._code
        await super().__call__(scope, receive, send)


def problem_headers(error: errors.ServiceError) -> dict[str, str]:
    """What a caller is told of an error outside the body."""
    match error:
        case errors.Unauthorized():
            return {"WWW-Authenticate": "Bearer"}
        case errors.ImageTooLarge():
            return {"Connection": "close"}  # more of the kind may be on its way
        case errors.RateLimited():
            return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}  # when the window ends, which is known
        case errors.Refused():
            # with jitter, so that those who were refused together do not come back together
            return {"Retry-After": str(max(1, math.ceil(error.retry_after_s * random.uniform(0.8, 1.2))))}
    return {}
