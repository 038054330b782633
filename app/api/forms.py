"""A request's body -> the encoded images in it, in any of the forms that are taken."""

import asyncio
import binascii
import json
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from app.api.body import Hold, chunks, media_type
from app.api.multipart import read_multipart
from app.errors import InvalidParameter, MalformedRequest

_SINGLE_NAMES = frozenset({b"image", b"file", b"data"})
_BATCH_NAMES = frozenset({b"images", *_SINGLE_NAMES})

_FRAMING_BYTES = 64 * 1024
"""What part headers, JSON punctuation and other fields may take beside the image."""

_OTHER_VALUES = 64
"""Values in a JSON body that are no images and are passed over."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What a body may hold."""

    max_image_bytes: int
    max_request_bytes: int
    """Of a request with several images."""
    max_images: int
    """In a request with several images."""


async def read_image(request: Request, limits: BodyLimits, hold: Hold) -> bytes:
    """The one image of `POST /predict`: multipart, raw, or base64 in JSON.

    Raises:
        MalformedRequest: a broken body, or not exactly one image in it.
        ImageTooLarge: more bytes than allowed; the rest of the body is not read.
        UnsupportedImageFormat: the body is compressed.
        QueueFull: by `hold`.
    """
    match media_type(request):
        case b"multipart/form-data":
            # a second image is enough to see that there are too many
            bound = limits.max_image_bytes + _FRAMING_BYTES
            images = await read_multipart(request, hold, _SINGLE_NAMES, bound, limits.max_image_bytes, max_images=2)
        case b"application/json":
            bound = _base64_length(limits.max_image_bytes) + _FRAMING_BYTES
            content = await _read_json(request, hold, bound, max_images=1)
            images = await asyncio.to_thread(_from_base64, [content["image"]]) if "image" in content else []
        case _:
            body = b"".join([chunk async for chunk in chunks(request, limits.max_image_bytes, hold)])
            images = [body] if body else []
    if not images:
        raise MalformedRequest("There is no image: send it as multipart part `image`, as the raw body, or as base64 in JSON.")
    if len(images) > 1:
        raise MalformedRequest("There is more than one image; send several to /predict/batch.")
    return _not_empty(images)[0]


async def read_images(request: Request, limits: BodyLimits, hold: Hold) -> list[bytes]:
    """The images of `POST /predict/batch`, in the order sent: multipart parts `images`, or base64 in JSON.

    Raises:
        MalformedRequest: a broken body, or no image in it.
        ImageTooLarge: more bytes than allowed in all; the rest of the body is not read.
        InvalidParameter: more images than allowed.
        UnsupportedImageFormat: the body is compressed.
        QueueFull: by `hold`.
    """
    match media_type(request):
        case b"multipart/form-data":
            images = await read_multipart(request, hold, _BATCH_NAMES, limits.max_request_bytes, None, limits.max_images + 1)
        case b"application/json":
            encoded = (await _read_json(request, hold, limits.max_request_bytes, limits.max_images)).get("images", [])
            if not isinstance(encoded, list):
                raise MalformedRequest("`images` must be a list of base64 strings.")
            images = await asyncio.to_thread(_from_base64, encoded[: limits.max_images + 1])
        case _:
            raise MalformedRequest("Send the images as multipart parts `images`, or as JSON with a list `images`.")
    if not images:
        raise MalformedRequest("There are no images: send them as multipart parts `images`, or as base64 in JSON.")
    if len(images) > limits.max_images:
        raise InvalidParameter(f"There are more than {limits.max_images} images in one request; send fewer at once.")
    return images


async def _read_json(request: Request, hold: Hold, max_bytes: int, max_images: int) -> dict[str, Any]:
    body = b"".join([chunk async for chunk in chunks(request, max_bytes, hold)])
    # millions of tiny values would stop the event loop for seconds; base64 has none of these characters
    if sum(body.count(character) for character in (b"[", b"{", b",")) > _OTHER_VALUES + 8 * max_images:
        raise MalformedRequest("The JSON body holds far more than images.")
    try:
        content = await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest("The body is not valid JSON.") from error
    if not isinstance(content, dict):
        raise MalformedRequest("The JSON body must be an object.")
    return content


def _from_base64(texts: list[Any]) -> list[bytes]:
    return [_one_from_base64(text) for text in texts]


def _one_from_base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise MalformedRequest("An image in JSON must be a base64 string.")
    if text.startswith(("http://", "https://")):
        raise MalformedRequest("A URL is never fetched; send the image itself, in base64.")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return binascii.a2b_base64(text.encode("ascii").translate(None, delete=b" \t\r\n"), strict_mode=True)
    except ValueError as error:  # binascii.Error is one, and so is text that is not ASCII
        raise MalformedRequest("An image in JSON is not valid base64.") from error


def _not_empty(images: list[bytes]) -> list[bytes]:
    if not all(images):
        raise MalformedRequest("The image is empty.")
    return images


def _base64_length(size: int) -> int:
    """Of an encoded image, with room for line breaks and escaped slashes."""
    return (size + 2) // 3 * 4 * 17 // 16
