"""Declarations of other protocols' errors and bodies, as OpenAPI shows them."""

from http import HTTPStatus
from typing import Any

_STATUSES = (400, 401, 404, 405, 406, 408, 413, 414, 415, 422, 429, 431, 500, 501, 503, 504)


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
