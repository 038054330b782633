"""Body: the media type of a request's body, and its bytes chunk by chunk, up to a limit."""

import io
from collections.abc import AsyncIterator

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from app.api.payloads.compression import inflated
from app.errors import ImageTooLarge, MalformedRequest, ServiceError, UnsupportedImageFormat
from app.http.numbers import whole_number
from app.http.time_slices import TimeSlices
from app.serving.admission import ReserveBytes

Image = bytes | ServiceError
"""An encoded image, or the error that stands in its place."""

_MAX_CONTENT_TYPE_BYTES = 1024
"""Maximum length of a Content-Type: its parameters are parsed in Python, and each costs a microsecond."""


class Body:
    """The body of one request.

    Args:
        request: the request.
        reserve_bytes: accounts for its bytes.
        slices: runs work that takes more than a slice, such as parsing.

    Raises:
        MalformedRequest: the Content-Type is too long, or there are two.
    """

    def __init__(self, request: Request, reserve_bytes: ReserveBytes, slices: TimeSlices) -> None:
        self._request = request
        self._reserve_bytes = reserve_bytes
        self.slices = slices
        self._may_be_compressed = False
        self.media_type, self.parameters = _content_type(request.headers)

    def allow_compression(self) -> None:
        """Take bodies with `Content-Encoding: gzip` or `deflate` too; all limits are on what they inflate to."""
        self._may_be_compressed = True

    async def chunks(self, max_bytes: int) -> AsyncIterator[bytes]:
        """Yield the body chunk by chunk, once. A declared length over the limit is refused before the first chunk.

        Raises:
            ImageTooLarge: more than `max_bytes`.
            MalformedRequest: the declared length is not a number, or a compressed body is broken.
            QueueFull: more than `reserve_bytes` allows.
            UnsupportedImageFormat: the body is compressed, and may not be.
            UnsupportedEncoding: it is compressed in another way.
        """
        codings = _codings(self._request.headers)
        if codings and not self._may_be_compressed:
            raise UnsupportedImageFormat("Compressed request bodies are not taken; send it without Content-Encoding.")
        if (_declared_length(self._request.headers) or 0) > max_bytes:
            raise too_large(max_bytes)
        received = 0
        async for chunk in inflated(self._arriving(), codings, self.slices) if codings else self._arriving():
            received += len(chunk)
            if received > max_bytes:
                raise too_large(max_bytes)
            self._reserve_bytes(len(chunk))
            yield chunk

    async def _arriving(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._request.receive()
            if message["type"] != "http.request":
                raise ClientDisconnect
            if chunk := message.get("body", b""):
                yield chunk
            more = message.get("more_body", False)

    async def read(self, max_bytes: int) -> bytes:
        """Return the whole body. Raises as `chunks` does."""
        whole = io.BytesIO()  # getvalue does not copy
        async for chunk in self.chunks(max_bytes):
            whole.write(chunk)
        return whole.getvalue()


def too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"The body is larger than the {max_bytes} bytes that are allowed.")


def empty_image() -> MalformedRequest:
    return MalformedRequest("The image is empty.")


def image_too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"The image has more than the {max_bytes} bytes that are allowed.")


def _content_type(headers: Headers) -> tuple[bytes, dict[bytes, bytes]]:
    """Return the media type in lower case, and its parameters."""
    sent = headers.getlist("content-type")
    if len(sent) > 1:
        raise MalformedRequest("The request has more than one Content-Type.")
    if sent and len(sent[0]) > _MAX_CONTENT_TYPE_BYTES:
        raise MalformedRequest(f"The Content-Type is longer than {_MAX_CONTENT_TYPE_BYTES} bytes.")
    media_type, parameters = parse_options_header(sent[0] if sent else "")
    return media_type.lower(), parameters


def _codings(headers: Headers) -> list[str]:
    """Return the codings that compress the body, in the order of their application."""
    named = (coding.strip().lower() for value in headers.getlist("content-encoding") for coding in value.split(","))
    return [coding for coding in named if coding != "identity"]


def _declared_length(headers: Headers) -> int | None:
    declared = headers.get("content-length")
    length = None if declared is None else whole_number(declared)
    if declared is not None and length is None:
        raise MalformedRequest("The Content-Length is not a number.")
    return length
