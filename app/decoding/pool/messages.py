"""Messages between the service, the zygote and the workers, in fixed formats: the service unpickles nothing.

A worker replies with the number of its image and 0, with the pixels in shared memory, or the kind and text of an error.
A compromised worker may send anything; `read_reply` accepts nothing else.
"""

import re
import struct
from dataclasses import dataclass

from app.decoding.pool.attempt import DecodingFault
from app.errors import ImageTooLarge, ServiceError, UndecodableImage, UnsupportedImageFormat

REQUEST = struct.Struct("<II")
"""Number of an image, and its length; its bytes are at the start of the shared memory. The pickled preprocessor follows."""

MAX_REQUEST_BYTES = 65_536

COMMAND = struct.Struct("<i")
"""Command to the zygote: reap the worker with this id or, if it is 0, fork one with the socket and memory that come along."""

ANSWER = struct.Struct("<i")
"""Answer of the zygote: the status of the reaped worker as of `os.waitpid`, or -1 if there is none; the id of the new worker,
or a negative errno."""

MAX_REPLY_BYTES = 512

FAULT = 1
"""Exit status of a worker that ends by an exception in its own code."""

_HEAD = struct.Struct("<IB")
_ERRORS: tuple[type[ServiceError], ...] = (ImageTooLarge, UnsupportedImageFormat, UndecodableImage)
_FAULT = len(_ERRORS) + 1
_FAULT_TEXT = re.compile(r"\w{1,80} at [\w.<>-]{1,80}:\d{1,9}", flags=re.ASCII)
"""Class and place of an exception: safe to log, even from a compromised worker."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Outcome of one image; without an error its pixels are in the shared memory."""

    number: int
    error: ServiceError | DecodingFault | None


def write_reply(reply: Reply) -> bytes:
    """Encode a reply in at most `MAX_REPLY_BYTES`."""
    if reply.error is None:
        return _HEAD.pack(reply.number, 0)
    kind = next((index for index, kind in enumerate(_ERRORS, start=1) if type(reply.error) is kind), _FAULT)
    return _HEAD.pack(reply.number, kind) + str(reply.error).encode()[: MAX_REPLY_BYTES - _HEAD.size]


def read_reply(message: bytes) -> Reply | None:
    """Decode a message of `write_reply`; None if it is anything else."""
    if len(message) < _HEAD.size:
        return None
    number, kind = _HEAD.unpack_from(message)
    if kind == 0:
        return Reply(number, None)
    text = message[_HEAD.size :].decode("ascii", errors="replace")
    if kind == _FAULT:
        return Reply(number, DecodingFault(text)) if _FAULT_TEXT.fullmatch(text) else None
    if kind > _FAULT or not (text.isascii() and text.isprintable()):
        return None
    return Reply(number, _ERRORS[kind - 1](text))
