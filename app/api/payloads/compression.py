"""Compressed bodies (RFC 9110, 8.4.1): gzip and deflate, inflated piece by piece, and deflated in steps."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence

from app.errors import MalformedRequest, UnsupportedMediaType
from app.http.time_slices import Steps

_PIECE_BYTES = 64 * 1024
"""Bytes inflated or deflated at once, which takes less than a millisecond."""

_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


async def inflated(chunks: AsyncIterator[bytes], codings: Sequence[str]) -> AsyncIterator[bytes]:
    """Yield a compressed body in pieces, between which the event loop runs. The caller bounds their sum.

    Raises:
        UnsupportedMediaType: it is compressed twice, or in another way than gzip or deflate.
        MalformedRequest: it is broken, ends early, or has something behind it.
    """
    if len(codings) > 1 or codings[0] not in _WINDOW:
        raise UnsupportedMediaType("The body may be compressed once, with gzip or deflate.")
    inflater = zlib.decompressobj(_WINDOW[codings[0]])
    async for chunk in chunks:
        rest = chunk
        while rest:
            try:
                piece = inflater.decompress(rest, _PIECE_BYTES)
            except zlib.error:
                raise MalformedRequest("The compressed body is broken.") from None
            if inflater.unused_data:
                raise MalformedRequest("The compressed body has something behind its end.")
            rest = inflater.unconsumed_tail
            if piece:
                yield piece
            await asyncio.sleep(0)
    while piece := inflater.decompress(b"", _PIECE_BYTES):
        yield piece
        await asyncio.sleep(0)
    if not inflater.eof:
        raise MalformedRequest("The compressed body ends early.")


def deflated(content: bytes, coding: str) -> Steps[bytes]:
    """Compress an answer with `gzip` or `deflate`."""
    deflater = zlib.compressobj(level=1, wbits=_WINDOW[coding])
    written = []
    for start in range(0, len(content), _PIECE_BYTES):
        written.append(deflater.compress(content[start : start + _PIECE_BYTES]))
        yield
    written.append(deflater.flush())
    return b"".join(written)
