"""Problems: exception -> status and code (one table) -> problem body (RFC 9457, https://www.rfc-editor.org/rfc/rfc9457)."""

import math
import random
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from app import errors
from app.api.schemas import Problem
from app.api.wire import Wires

_STATUS: dict[type[errors.ServiceError], int] = {
    errors.MalformedRequest: 400,
    errors.Unauthorized: 401,
    errors.ModelNotFound: 404,
    errors.NotAcceptable: 406,
    errors.RequestTooSlow: 408,
    errors.ImageTooLarge: 413,
    errors.UrlTooLong: 414,
    errors.UnsupportedImageFormat: 415,
    errors.UnsupportedMediaType: 415,
    errors.UndecodableImage: 422,
    errors.InvalidParameter: 422,
    errors.LoadFailed: 422,
    errors.RateLimited: 429,
    errors.QueueFull: 429,
    errors.HeaderTooLarge: 431,
    errors.InferenceFailed: 500,
    errors.InternalError: 500,
    errors.NoClasses: 501,
    errors.NoFeatures: 501,
    errors.NoExplanation: 501,
    errors.NotSupported: 501,
    errors.TooManyConnections: 503,
    errors.NotReady: 503,
    errors.Draining: 503,
    errors.DeadlineExceeded: 504,
    errors.InsufficientMemory: 507,
}

IMAGE_ERRORS = (
    errors.MalformedRequest,
    errors.Unauthorized,
    errors.ModelNotFound,
    errors.ImageTooLarge,
    errors.UnsupportedImageFormat,
    errors.UndecodableImage,
    errors.InvalidParameter,
    errors.RateLimited,
    errors.QueueFull,
    errors.InferenceFailed,
    errors.InternalError,
    errors.NotReady,
    errors.Draining,
    errors.DeadlineExceeded,
)
"""Errors of every route that takes images."""

_FRAMEWORK_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 416: "range_not_satisfiable"}
"""Codes of the framework's refusals; HTTPStatus names them differently from one Python version to the next."""

_MEDIA_TYPE = "application/problem+json"


def problem_of(error: errors.ServiceError) -> Problem:
    """Return the body that describes an error."""
    return _problem(_status(type(error)), error.code, str(error))


def internal_error() -> Problem:
    """Return the body of an unexpected error; its details are in the log alone."""
    return _problem(500, errors.InternalError.code, "Something went wrong inside the service; it has been logged.")


def framework_problem(status: int, detail: str) -> Problem:
    """Return the body of a refusal by the framework."""
    phrase = HTTPStatus(status).phrase
    code = _FRAMEWORK_CODES.get(status, phrase.lower().replace(" ", "_"))
    return _problem(status, code, (detail or phrase).rstrip(".") + ".")


def problem_headers(error: errors.ServiceError) -> dict[str, str]:
    """Return the headers that go with an error."""
    match error:
        case errors.Unauthorized():
            return {"WWW-Authenticate": "Bearer"}
        case errors.UnsupportedEncoding():
            return {"Accept-Encoding": "gzip, deflate"}
        case errors.ImageTooLarge():
            return {"Connection": "close"}  # more of the kind may be on its way
        case errors.RateLimited():
            return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}  # the end of the window, which is known
        case errors.Refused():
            # with jitter, so that clients that were refused together do not come back together
            return {"Retry-After": str(max(1, math.ceil(error.retry_after_s * random.uniform(0.8, 1.2))))}
    return {}


def retry_headers(outcomes: Sequence[object]) -> dict[str, str] | None:
    """Return the headers of an answer in which some images were refused for now: the longest `Retry-After`."""
    refusals = [outcome for outcome in outcomes if isinstance(outcome, errors.Refused)]
    return problem_headers(max(refusals, key=lambda refusal: refusal.retry_after_s)) if refusals else None


def render_problem(problem: Problem, headers: Mapping[str, str]) -> Response:
    """Return a problem as a response, the native wire's way."""
    return ErrorResponse(problem, problem.model_dump(), problem.status, headers, _MEDIA_TYPE)


def render_unread(problem: Problem, headers: Mapping[str, str]) -> Response:
    """Return a problem whose request could not be read, so its protocol is unknown: with `error` for those that have it."""
    return ErrorResponse(problem, {**problem.model_dump(), "error": problem.detail}, problem.status, headers, _MEDIA_TYPE)


def problem_responses(*kinds: type[errors.ServiceError]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI declaration of the errors that a route may answer with."""
    codes: dict[int, list[str]] = {}
    for kind in kinds:
        codes.setdefault(_status(kind), []).append(f"`{kind.code}`")
    return {status: _described(names) for status, names in sorted(codes.items())}


def common_problem_responses() -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI declaration of the errors that any route may answer with."""
    responses = problem_responses(
        errors.MalformedRequest, errors.RequestTooSlow, errors.UrlTooLong, errors.HeaderTooLarge, errors.TooManyConnections
    )
    return {**responses, 500: _described([f"`{errors.InternalError.code}`"])}


def response_to(error: errors.ServiceError | RequestValidationError, path: str, wires: Wires) -> Response:
    """Return the response to an error of a request, as the wire of its path renders it."""
    if isinstance(error, RequestValidationError):
        faults = "; ".join(f"{part['loc'][-1]}: {part['msg']}" for part in error.errors())
        error = errors.InvalidParameter(f"{faults}.")
    return wires.render(path, problem_of(error), problem_headers(error))


def install_problem_handlers(app: FastAPI, wires: Wires) -> None:
    """Make the application answer every error, its own and the framework's, as its wire renders it."""

    @app.exception_handler(errors.ServiceError)
    @app.exception_handler(RequestValidationError)
    async def refused(request: Request, error: errors.ServiceError | RequestValidationError) -> Response:
        return response_to(error, request.url.path, wires)

    @app.exception_handler(HTTPException)
    async def framework_error(request: Request, error: HTTPException) -> Response:
        details = {404: "There is nothing at this path", 405: "This path does not take this method"}
        hint = "; see /docs." if request.app.openapi_url else "."
        detail = details[error.status_code] + hint if error.status_code in details else ""
        return wires.render(request.url.path, framework_problem(error.status_code, detail), error.headers or {})

    @app.exception_handler(Exception)
    async def broken_middleware(request: Request, error: Exception) -> Response:
        return wires.render(request.url.path, internal_error(), {})


def _status(kind: type[errors.ServiceError]) -> int:
    return next(_STATUS[base] for base in kind.__mro__ if base in _STATUS)


def _described(codes: list[str]) -> dict[str, Any]:
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {"description": " or ".join(codes), "content": {_MEDIA_TYPE: schema}}


def _problem(status: int, code: str, detail: str) -> Problem:
    return Problem(
        type=f"urn:vit-serve:problem:{code}", title=HTTPStatus(status).phrase, status=status, detail=detail, code=code
    )


class ErrorResponse(Response):
    """Response to an error in a protocol's own form. It leaves the problem's code in the request's state, for the log."""

    def __init__(
        self,
        problem: Problem,
        content: Any,
        status: int,
        headers: Mapping[str, str],
        media_type: str = "application/json",
    ) -> None:
        super().__init__(to_json(content), status, headers, media_type)
        self._code = problem.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["problem_code"] = self._code
        await super().__call__(scope, receive, send)
