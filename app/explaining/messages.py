"""Messages between the service and the process that explains: a JSON object, then arrays and files as bytes.

Both sides are ours and no client's bytes are parsed here: pixels have left the sandbox of the decoders.
"""

import asyncio
import json
import struct
from typing import Any, BinaryIO

_HEAD = struct.Struct("<I")
"""Number of bytes that follow as one part."""

_PARTS = 3
"""Parts of each message: the JSON object, and two that may be empty."""


Message = tuple[dict[str, Any], bytes, bytes]
"""Fields, and the further parts, which may be empty."""


def pack(fields: dict[str, Any], *parts: bytes) -> bytes:
    """Return a message of fields and up to two further parts."""
    padded = (json.dumps(fields).encode(), *parts, *[b""] * (_PARTS - 1 - len(parts)))
    return b"".join(_HEAD.pack(len(part)) + part for part in padded)


def read(stream: BinaryIO) -> Message | None:
    """Read a message; None at the end of the stream."""
    parts = []
    for _ in range(_PARTS):
        head = stream.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        parts.append(stream.read(*_HEAD.unpack(head)))
    return json.loads(parts[0]), parts[1], parts[2]


async def receive(stream: asyncio.StreamReader) -> Message:
    """Read a message.

    Raises:
        asyncio.IncompleteReadError: the stream ended.
    """
    parts = [await stream.readexactly(*_HEAD.unpack(await stream.readexactly(_HEAD.size))) for _ in range(_PARTS)]
    return json.loads(parts[0]), parts[1], parts[2]
