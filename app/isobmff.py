"""The size that an AVIF or HEIC file gives for its pictures, read without a decoder.

ISO/IEC 14496-12, 4.2: a file is a row of boxes, each a length, a type of four letters and a content, which may be boxes again.
"""

import struct
from collections.abc import Iterator

from app.geometry import Size

_MAX_BOXES = 2000
"""A phone's photograph has about 150 where this looks."""

_MAX_DEPTH = 8

_BEFORE_BOXES = {"meta": 4, "iprp": 0, "ipco": 0, "moov": 0, "trak": 0, "mdia": 0, "minf": 0, "stbl": 0, "stsd": 8}
"""Boxes that hold those with a size, and the bytes in front of what they hold."""

_CODED = frozenset({"av01", "hvc1", "hev1"})
"""Entries of `stsd`, which describe the frames of a sequence."""

_MAX_BRANDS = 64


class TooManyBoxes(Exception):
    """The file has more boxes, or more within each other, than an honest picture has."""


def brands(file: bytes) -> list[bytes]:
    """What the first box says the file is, most important first; empty if it is another kind of file."""
    if file[4:8] != b"ftyp":
        return []
    end = min(len(file), int.from_bytes(file[:4], "big"), 16 + 4 * _MAX_BRANDS)
    return [file[8:12], *(file[at : at + 4] for at in range(16, end - 3, 4))]


def largest_size(file: bytes) -> Size | None:
    """Width and height of the largest picture, tile or frame that the file says it has; None where it says nothing.

    Raises:
        TooManyBoxes: it is not read to its end.
    """
    return max(_sizes(file), key=lambda size: size[0] * size[1], default=None)


def _sizes(file: bytes) -> Iterator[Size]:
    for kind, start, end in _boxes(file):
        match kind:
            case "ispe" if end - start >= 12:
                yield struct.unpack_from(">II", file, start + 4)
            case "tkhd" if end - start >= 84:
                width, height = struct.unpack_from(">II", file, start + (88 if file[start] == 1 and end - start >= 96 else 76))
                yield width >> 16, height >> 16  # 16.16
            case "clap" if end - start >= 16:
                width, width_parts, height, height_parts = struct.unpack_from(">IIII", file, start)
                if width_parts and height_parts:
                    yield _rounded_up(width, width_parts), _rounded_up(height, height_parts)
            case _ if kind in _CODED and end - start >= 28:
                yield struct.unpack_from(">HH", file, start + 24)


def _rounded_up(number: int, parts: int) -> int:
    """A fraction as the most pixels it may become: a cut that begins within a pixel keeps one more."""
    whole, rest = divmod(number, parts)
    return whole + 2 if rest else whole


def _boxes(file: bytes) -> Iterator[tuple[str, int, int]]:
    """Type, start and end of the content of every box that matters, wherever it is."""
    seen = 0
    waiting = [(0, len(file), 0)]
    while waiting:
        position, end, depth = waiting.pop()
        while end - position >= 8:
            if (seen := seen + 1) > _MAX_BOXES or depth > _MAX_DEPTH:
                raise TooManyBoxes
            length, kind = (
                int.from_bytes(file[position : position + 4], "big"),
                file[position + 4 : position + 8].decode("latin-1"),
            )
            content = position + 8
            if length == 1:
                length, content = int.from_bytes(file[position + 8 : position + 16], "big"), position + 16
            box_end = min(end, position + length) if length else end
            if box_end < content:  # shorter than its own header: no decoder goes on
                break
            yield kind, content, box_end
            if (before := _BEFORE_BOXES.get(kind)) is not None:
                waiting.append((content + before, box_end, depth + 1))
            position = box_end
