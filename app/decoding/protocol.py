"""What the service and its decoding processes say to each other: fixed formats, nothing that is unpickled.

A request is the number of the image and its length, a reply that number and an outcome: 0, with pixels in shared memory, or
which error and its text. A process whose decoder was taken over may reply anything: `read_reply` believes nothing else.
"""

import struct
from dataclasses import dataclass

from app.errors import ImageTooLarge, ServiceError, UndecodableImage, UnsupportedImageFormat

REQUEST = struct.Struct("<II")
"""Number and length of an image; its bytes are at the beginning of the shared memory."""

FORK = struct.Struct("<i")
"""Asks for another process; the one with this id, if it is not 0, is ended first. With its socket and its memory."""

FORKED = struct.Struct("<ii")
"""Id of the new process, and how the one before it ended: a status as of `os.waitpid`, or -1 if there was none."""

MAX_REPLY_BYTES = 512

_HEAD = struct.Struct("<IB")
_ERRORS: tuple[type[ServiceError], ...] = (ImageTooLarge, UnsupportedImageFormat, UndecodableImage)


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of an image: no error means that its pixels are there."""

    number: int
    error: ServiceError | None


def write_reply(reply: Reply) -> bytes:
    """At most `MAX_REPLY_BYTES`."""
    if reply.error is None:
        return _HEAD.pack(reply.number, 0)
    kind = next((index for index, kind in enumerate(_ERRORS, start=1) if type(reply.error) is kind), len(_ERRORS))
    return _HEAD.pack(reply.number, kind) + str(reply.error).encode()[: MAX_REPLY_BYTES - _HEAD.size]


def read_reply(message: bytes) -> Reply | None:
    """What `write_reply` wrote, or None if it was not that."""
    if len(message) < _HEAD.size:
        return None
    number, kind = _HEAD.unpack_from(message)
    if kind == 0:
        return Reply(number, None)
    text = message[_HEAD.size :].decode("ascii", errors="replace")
    if kind > len(_ERRORS) or not (text.isascii() and text.isprintable()):
        return None
    return Reply(number, _ERRORS[kind - 1](text))
