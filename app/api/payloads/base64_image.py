"""base64 (RFC 4648) in JSON -> the bytes of an image, in steps."""

import binascii
import io
from collections.abc import Sequence
from itertools import chain

from app.api.payloads.body import Image, image_too_large
from app.api.payloads.json_object import JsonString
from app.errors import MalformedRequest, ServiceError
from app.http.turns import Steps

_BLANKS = b" \t\r\n"


def image_of(value: object, max_bytes: int) -> Steps[bytes]:
    """The image that a value in JSON is: base64, or a data: URI.

    Raises:
        MalformedRequest: it is none.
        ImageTooLarge: more than `max_bytes`.
    """
    if not isinstance(value, JsonString):
        raise MalformedRequest("An image in JSON must be a base64 string.")
    image, rest, ended = io.BytesIO(), b"", False
    blocks = value.blocks()
    for block in chain([_without_scheme(next(blocks))], blocks):
        characters = rest + block.translate(None, delete=_BLANKS)
        whole = len(characters) // 4 * 4
        if (ended and characters) or characters.count(b"=") > 2:
            raise _not_base64()
        rest, ended = characters[whole:], characters[:whole].endswith(b"=")
        try:
            image.write(binascii.a2b_base64(characters[:whole], strict_mode=True))
        except binascii.Error as error:
            raise _not_base64() from error
        if image.tell() > max_bytes:
            raise image_too_large(max_bytes)
        yield
    if rest:
        raise _not_base64()
    return image.getvalue()


def images_of(values: Sequence[object], max_bytes: int) -> Steps[list[Image]]:
    """The images that the values are, in order; in the place of one that is none, the error."""
    images: list[Image] = []
    for value in values:
        try:
            images.append((yield from image_of(value, max_bytes)))
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
        raise _not_base64()
    return image


def _not_base64() -> MalformedRequest:
    return MalformedRequest("An image in JSON is not valid base64.")
