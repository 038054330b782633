"""The one table: exception -> status code -> problem body (RFC 9457, https://www.rfc-editor.org/rfc/rfc9457)."""

import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from app import errors
from app.api.schemas import Problem

_TABLE: dict[type[errors.ServiceError], tuple[int, str]] = {
    errors.MalformedRequest: (400, "malformed_request"),
    errors.Unauthorized: (401, "unauthorized"),
    errors.ImageTooLarge: (413, "image_too_large"),
    errors.UnsupportedImageFormat: (415, "unsupported_image_format"),
    errors.UndecodableImage: (422, "undecodable_image"),
    errors.InvalidParameter: (422, "invalid_parameter"),
    errors.QueueFull: (429, "queue_full"),
    errors.InferenceFailed: (500, "inference_failed"),
    errors.NotReady: (503, "not_ready"),
    errors.Draining: (503, "draining"),
    errors.DeadlineExceeded: (504, "deadline_exceeded"),
}

_MEDIA_TYPE = "application/problem+json"


def problem_of(error: errors.ServiceError) -> Problem:
    """The body that tells a caller of an error."""
    status, code = _TABLE[type(error)]
    return _problem(status, code, str(error))


def last_resort() -> Response:
    """The answer to an error that nobody foresaw; what it was stands in the log alone."""
    return _response(_problem(500, "internal_error", "Something went wrong inside the service; it has been logged."))


def problem_responses(*kinds: type[errors.ServiceError]) -> dict[int | str, dict[str, Any]]:
    """What a route declares in OpenAPI of the errors it may answer with."""
    codes: dict[int, list[str]] = {}
    for kind in kinds:
        status, code = _TABLE[kind]
        codes.setdefault(status, []).append(f"`{code}`")
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": " or ".join(names), "content": {_MEDIA_TYPE: schema}} for status, names in sorted(codes.items())
    }


def install_problem_handlers(app: FastAPI) -> None:
    """Make the app answer every error, its own and the framework's, with a problem body."""

    @app.exception_handler(errors.ServiceError)
    async def service_error(request: Request, error: errors.ServiceError) -> Response:
        return _response(problem_of(error), _headers(error))

    @app.exception_handler(RequestValidationError)
    async def invalid_parameter(request: Request, error: RequestValidationError) -> Response:
        faults = "; ".join(f"{part['loc'][-1]}: {part['msg']}" for part in error.errors())
        return _response(_problem(422, "invalid_parameter", f"{faults}."))

    @app.exception_handler(HTTPException)
    async def framework_error(request: Request, error: HTTPException) -> Response:
        phrase = HTTPStatus(error.status_code).phrase
        details = {
            404: "There is nothing at this path; see /docs.",
            405: "This path does not take this method; see /docs.",
        }
        detail = details.get(error.status_code, f"{phrase}.")
        problem = _problem(error.status_code, phrase.lower().replace(" ", "_"), detail)
        return _response(problem, dict(error.headers or {}))


def _problem(status: int, code: str, detail: str) -> Problem:
    return Problem(
        type=f"urn:vit-serve:problem:{code}", title=HTTPStatus(status).phrase, status=status, detail=detail, code=code
    )


def _response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    return Response(problem.model_dump_json(), problem.status, headers, _MEDIA_TYPE)


def _headers(error: errors.ServiceError) -> dict[str, str]:
    match error:
        case errors.Unauthorized():
            return {"WWW-Authenticate": "Bearer"}
        case errors.Refused():
            return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return {}
