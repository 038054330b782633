"""Compressed bodies (RFC 9110, 8.4.1): gzip and deflate, inflated piece by piece, and deflated in steps."""

import zlib
from collections.abc import AsyncIterator, Sequence

from app.errors import MalformedRequest, UnsupportedEncoding
from app.http.time_slices import Steps, TimeSlices

_PIECE_BYTES = 64 * 1024
"""Bytes inflated or deflated at once, which takes less than a millisecond."""

_WINDOW = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


async def inflated(chunks: AsyncIterator[bytes], codings: Sequence[str], slices: TimeSlices) -> AsyncIterator[bytes]:
    """Yield a compressed body in pieces, one in each iteration of the event loop. The caller bounds their sum.

    Raises:
        UnsupportedEncoding: it is compressed twice, or in another way than gzip or deflate.
        MalformedRequest: it is broken, ends early, or has something behind it.
    """
    if len(codings) > 1 or codings[0] not in _WINDOW:
        raise UnsupportedEncoding("The body may be compressed once, with gzip or deflate.")
    inflater = zlib.decompressobj(_WINDOW[codings[0]])
    async for chunk in chunks:
        rest = chunk
        while rest:
            piece, rest = _inflated(inflater, rest)
            if piece:
                yield piece
            await slices.turn()
    while (piece := _inflated(inflater, b"")[0]) and not inflater.eof:
        yield piece
        await slices.turn()
    if piece:
        yield piece
    if not inflater.eof:
        raise MalformedRequest("The compressed body ends early.")


def _inflated(inflater: "zlib._Decompress", data: bytes) -> tuple[bytes, bytes]:
    """Return a piece, and the data that are not read yet."""
    try:
        piece = inflater.decompress(data, _PIECE_BYTES)
    except zlib.error:
        raise MalformedRequest("The compressed body is broken.") from None
    if inflater.unused_data:
        raise MalformedRequest("The compressed body has something behind its end.")
    return piece, inflater.unconsumed_tail


def deflated(content: bytes, coding: str) -> Steps[bytes]:
    """Compress an answer with `gzip` or `deflate`."""
    deflater = zlib.compressobj(level=1, wbits=_WINDOW[coding])
    written = []
    for start in range(0, len(content), _PIECE_BYTES):
        written.append(deflater.compress(content[start : start + _PIECE_BYTES]))
        yield
    written.append(deflater.flush())
    return b"".join(written)
