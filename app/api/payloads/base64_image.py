"""Decode base64 (RFC 4648) in JSON to the bytes of an image, in steps."""

import binascii
import io
from collections.abc import Sequence
from itertools import chain

from app.api.payloads.body import Image, image_too_large
from app.api.payloads.json_object import JsonString
from app.errors import MalformedRequest, ServiceError
from app.http.time_slices import Steps

_WHITESPACE = b" \t\r\n"


def decode_image(value: object, max_bytes: int) -> Steps[bytes]:
    """Decode a JSON value: base64, or a data: URI. The string is consumed, so that it and the image never add up.

    Raises:
        MalformedRequest: it is neither.
        ImageTooLarge: more than `max_bytes`.
    """
    if not isinstance(value, JsonString):
        raise MalformedRequest("An image in JSON must be a base64 string.")
    image, rest, ended = io.BytesIO(), b"", False
    blocks = value.take_blocks()
    for block in chain([_without_scheme(next(blocks))], blocks):
        characters = rest + block.translate(None, delete=_WHITESPACE)
        quads = len(characters) // 4 * 4
        if (ended and characters) or characters.count(b"=") > 2:
            raise _invalid()
        rest, ended = characters[quads:], characters[:quads].endswith(b"=")
        try:
            image.write(binascii.a2b_base64(characters[:quads], strict_mode=True))
        except binascii.Error as error:
            raise _invalid() from error
        if image.tell() > max_bytes:
            raise image_too_large(max_bytes)
        yield
    if rest:
        raise _invalid()
    return image.getvalue()


def decode_images(values: Sequence[object], max_bytes: int) -> Steps[list[Image]]:
    """Decode each value, in order; one that is not an image gives its error instead."""
    images: list[Image] = []
    for value in values:
        try:
            images.append((yield from decode_image(value, max_bytes)))
        except ServiceError as error:
            images.append(error)
    return images


def _without_scheme(head: bytes) -> bytes:
    if head.startswith((b"http://", b"https://")):
        raise MalformedRequest("A URL is never fetched; send the image itself, in base64.")
    if not head.startswith(b"data:"):
        return head
    _, comma, image = head.partition(b",")
    if not comma:
        raise _invalid()
    return image


def _invalid() -> MalformedRequest:
    return MalformedRequest("An image in JSON is not valid base64.")
