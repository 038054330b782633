"""A request's body, piece by piece, and never more of it than is allowed."""

from collections.abc import AsyncIterator, Callable

from fastapi import Request
from python_multipart.multipart import parse_options_header

from app.errors import ImageTooLarge, UnsupportedImageFormat

Hold = Callable[[int], None]
"""Called with the size of each piece of a body before it is kept. Raises `QueueFull`: all bodies together are too much."""


async def chunks(request: Request, max_bytes: int, hold: Hold) -> AsyncIterator[bytes]:
    """Stops at the first piece that is too much, or before the first if the header says so.

    Raises:
        ImageTooLarge: more than `max_bytes`.
        QueueFull: more than `hold` allows.
        UnsupportedImageFormat: the body is compressed.
    """
    if any(encoding.lower() != "identity" for encoding in request.headers.getlist("content-encoding")):
        raise UnsupportedImageFormat("Compressed request bodies are not taken; send it without Content-Encoding.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large(max_bytes)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise too_large(max_bytes)
        hold(len(chunk))
        yield chunk


def media_type(request: Request) -> bytes:
    media_type: bytes = parse_options_header(request.headers.get("content-type", ""))[0]
    return media_type.lower()


def too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(f"The body is larger than the {max_bytes} bytes that are allowed.")
