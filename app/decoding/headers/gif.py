"""Size of a GIF (GIF89a specification)."""

from app.decoding.size import Size

_MAX_BLOCKS = 100
"""Maximum extensions before the first frame, and blocks of one; only a long comment or XMP has more."""

_MIN_BLOCKS = {b"\xfe": 0, b"\xff": 2, b"": 0}
"""Minimum blocks of a comment, an application's extension, and one that is cut off; the others have at least one."""


def size(gif: bytes) -> Size | None:
    """Walk to the first frame (section 20), which may be larger than the screen: Pillow then enlarges the screen."""
    palette = 3 << (gif[10] % 8 + 1) if gif[10:11] >= b"\x80" else 0
    position = 13 + palette
    for _ in range(_MAX_BLOCKS):
        match gif[position : position + 1]:
            case b",":
                left, top, width, height = (_number(gif, at) for at in range(position + 1, position + 9, 2))
                return max(_number(gif, 6), left + width), max(_number(gif, 8), top + height)
            case b"!":
                end = _extension_end(gif, position)
                if end is None:
                    return None
                position = end
            case b"" | b";":
                return 0, 0
            case _:
                position += 1
    return None


def _extension_end(gif: bytes, start: int) -> int | None:
    """Return where an extension ends; None if it is too long, or so short that decoders disagree on its end."""
    position = start + 2
    for blocks in range(_MAX_BLOCKS):
        length = gif[position : position + 1]
        if length in (b"", b"\0"):
            return position + 1 if blocks >= _MIN_BLOCKS.get(gif[start + 1 : start + 2], 1) else None
        position += 1 + length[0]
    return None


def _number(gif: bytes, at: int) -> int:
    return int.from_bytes(gif[at : at + 2], "little")
