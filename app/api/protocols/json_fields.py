"""Images, numbers and words in the JSON bodies of other protocols."""

from collections.abc import Sequence
from typing import Any

from app.api.dependencies import Accepted, Admitted
from app.api.payloads.base64_image import decode_images
from app.api.payloads.body import Image, empty_image
from app.api.payloads.images import max_values
from app.api.payloads.json_object import JsonString, not_an_object, read_json_value
from app.errors import InvalidParameter, MalformedRequest

_IMAGE_KEYS = ("b64", "image", "image_bytes", "content", "data", "bytes", "body")
"""Keys under which clients put an image, or an object with one."""

_DEPTH = 3


async def read_object(accepted: Accepted | Admitted) -> dict[str, Any]:
    """Read a JSON object with images and a few numbers, while it arrives.

    Raises:
        MalformedRequest, ImageTooLarge, UnsupportedImageFormat, QueueFull: see `read_json`.
        DeadlineExceeded, Draining: see `Service.uploading`.
    """
    content = await read_value(accepted)
    if not isinstance(content, dict):
        raise not_an_object()
    return content


async def read_value(accepted: Accepted | Admitted) -> Any:
    """Read any JSON value; as `read_object`."""
    limits = accepted.state.body_limits
    async with accepted.state.service.uploading(accepted.deadline):
        return await read_json_value(accepted.body, limits.max_request_bytes, max_values(limits.max_images), numbers=True)


async def decode_each(admitted: Admitted, values: Sequence[Any], named: str) -> list[Image]:
    """Decode a list of JSON values, each an image; one that is none gives its error instead.

    Raises:
        InvalidParameter: there are more than a request may have.
        MalformedRequest: there are none.
    """
    limits = admitted.state.body_limits
    if len(values) > limits.max_images:
        raise InvalidParameter(f"There are more than {limits.max_images} {named}s in one request; send fewer at once.")
    if not values:
        raise MalformedRequest(f"There is no {named}.")
    images = await admitted.state.slices.work(decode_images([image_string(value) for value in values], limits.max_image_bytes))
    return [empty_image() if image == b"" else image for image in images]


def image_string(value: Any) -> Any:
    """Return the base64 string of an image: a string, or an object that has one under a usual key, such as `{"b64": "..."}`.

    What is neither is returned as it is, and refused when it is decoded.
    """
    for _ in range(_DEPTH):
        if not isinstance(value, dict):
            break
        keys = [key for key in _IMAGE_KEYS if key in value]
        if len(keys) != 1:
            break
        value = value[keys[0]]
    return value


def as_list(value: Any, name: str) -> list[Any]:
    """Return a member that must be a list.

    Raises:
        MalformedRequest: it is something else.
    """
    if not isinstance(value, list):
        raise MalformedRequest(f"`{name}` must be a list.")
    return value


def as_object(value: Any, name: str) -> dict[str, Any]:
    """Return a member that must be an object; nothing, and null, is an empty one.

    Raises:
        MalformedRequest: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedRequest(f"`{name}` must be an object.")
    return value


def as_text(value: Any, name: str) -> str:
    """Return a member that must be a short string.

    Raises:
        MalformedRequest: it is something else.
    """
    if not isinstance(value, JsonString):
        raise MalformedRequest(f"`{name}` must be a string.")
    text = value.text(f"`{name}`")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise MalformedRequest(f"`{name}` is not valid Unicode.") from None
    return text


def as_count(value: Any, name: str, least: int = 1) -> int:
    """Return a member that must be a whole number; `3.0` is one, since some clients know only floats.

    Raises:
        InvalidParameter: it is something else, or less than `least`.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidParameter(f"`{name}` must be a whole number of at least {least}.")
    return value


def refuse_unknown(given: dict[str, Any], known: frozenset[str], where: str) -> None:
    """Raise if an object has members that are not known.

    Raises:
        InvalidParameter: it has.
    """
    if unknown := sorted(given.keys() - known):
        raise InvalidParameter(f"{where.capitalize()} {unknown[0][:128]!r} is not known; known are {', '.join(sorted(known))}.")
