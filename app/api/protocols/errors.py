"""Errors in the forms of other protocols."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from app.api.problems import ErrorResponse
from app.api.schemas import Problem

_STATUSES = (400, 401, 404, 405, 406, 408, 413, 414, 415, 422, 429, 431, 500, 501, 503, 504)


def status_of(problem: Problem) -> int:
    """Return the status of a problem in protocols that have no 422."""
    return 400 if problem.status == 422 else problem.status


def render_error(problem: Problem, headers: Mapping[str, str]) -> ErrorResponse:
    """Return `{"error": "..."}`, as v2, KServe v1 and TF Serving have it."""
    return ErrorResponse(problem, {"error": problem.detail}, status_of(problem), headers)


def declared(*members: str, **more: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI declaration of a protocol's errors: objects with these members of text, and `more` of other types."""
    types = dict.fromkeys(members, "string") | more
    properties = {member: {"type": kind} for member, kind in types.items()}
    schema = {"type": "object", "required": list(properties), "properties": properties}
    content = {"application/json": {"schema": schema}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in _STATUSES}


def json_body(example: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI declaration of a body in JSON, or of an image as it is."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {"application/json": {"schema": {"type": "object"}, "example": example}, "image/*": binary}
    return {"requestBody": {"required": True, "content": content}}
