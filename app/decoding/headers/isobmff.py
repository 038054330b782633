"""Boxes of an AVIF or HEIC: the sizes that they state, and the coded images that they hold.

ISO/IEC 14496-12, 4.2: a file is a row of boxes, each a length, a type of four letters and a content, which may be boxes again.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from app.decoding.size import Size, area

_MAX_BOXES = 2000
"""Maximum boxes that are walked; a phone's photograph has about 150 of them."""

_MAX_DEPTH = 8

_TRACK_BYTES = 1000
"""Bytes of a track in which its first frame has begun."""

_BEFORE_BOXES = {"meta": 4, "iprp": 0, "ipco": 0, "moov": 0, "trak": 0, "mdia": 0, "minf": 0, "stbl": 0, "stsd": 8, "iinf": 6}
"""Boxes that hold boxes, and the bytes before those."""

_SAMPLE_ENTRIES = frozenset({"av01", "hvc1", "hev1"})
"""Entries of `stsd`, which describe the frames of a sequence."""

_MAX_BRANDS = 64

_MAX_EXTENTS = 2000

_MAX_CODED = 300
"""Maximum coded items; a photograph of 48 million pixels has 192 tiles."""

_MAX_TRACKS = 20


class TooManyBoxes(Exception):
    """The file has more boxes, or more within each other, than a real image."""


def brands(file: bytes) -> list[bytes]:
    """Return the major brand and then the compatible ones; empty if the file does not begin with them."""
    if file[4:8] != b"ftyp":
        return []
    end = min(len(file), int.from_bytes(file[:4], "big"), 16 + 4 * _MAX_BRANDS)
    return [file[8:12], *(file[at : at + 4] for at in range(16, end - 3, 4))]


def largest_size(file: bytes) -> Size | None:
    """Return the largest size that a box states for an image, a tile or a frame; None if none does.

    Raises:
        TooManyBoxes: the file was not read to its end.
    """
    return max(_sizes(file), key=area, default=None)


def _sizes(file: bytes) -> Iterator[Size]:
    for kind, start, end in _boxes(file):
        match kind:
            case "ispe" if end - start >= 12:
                yield struct.unpack_from(">II", file, start + 4)
            case "tkhd" if end - start >= 84:
                width, height = struct.unpack_from(">II", file, start + (88 if file[start] == 1 and end - start >= 96 else 76))
                yield width >> 16, height >> 16  # 16.16 fixed point
            case "clap" if end - start >= 16:
                width, width_parts, height, height_parts = struct.unpack_from(">IIII", file, start)
                if width_parts and height_parts:
                    yield _rounded_up(width, width_parts), _rounded_up(height, height_parts)
            case _ if kind in _SAMPLE_ENTRIES and end - start >= 28:
                yield struct.unpack_from(">HH", file, start + 24)


def _rounded_up(numerator: int, denominator: int) -> int:
    """Return the most pixels that a fraction may become: a crop that begins within a pixel keeps one more."""
    whole, rest = divmod(numerator, denominator)
    return whole + 2 if rest else whole


@dataclass(frozen=True, slots=True)
class Coded:
    """Bytes that the decoder of an image is given."""

    items: list[bytes]
    tracks: list[bytes]
    """The beginnings of tracks."""
    configurations: list[bytes]
    """`hvcC` boxes, which an HEVC decoder is given first."""


def coded_images(file: bytes, coding: bytes) -> Coded | None:
    """Return the items with this coding, and tracks of any; None if the file does not plainly say where they are.

    Raises:
        TooManyBoxes: the file was not read to its end.
    """
    items: set[int] = set()
    extents: dict[int, list[_Extent]] = {}
    tracks: list[bytes] = []
    configurations: list[bytes] = []
    for kind, start, end in _boxes(file):
        if kind == "infe" and file[start : start + 1] in (b"\2", b"\3"):
            after = start + (6 if file[start] == 2 else 8)
            if file[after + 2 : after + 6] == coding:
                items.add(int.from_bytes(file[start + 4 : after], "big"))
        elif kind == "iloc":
            if extents or (found := _extents(file[start:end])) is None:
                return None
            extents = found
        elif kind in ("stco", "co64"):
            at = int.from_bytes(file[start + 8 : start + (12 if kind == "stco" else 16)], "big")
            tracks.append(file[at : at + _TRACK_BYTES])
        elif kind == "hvcC":
            configurations.append(file[start:end])
    if len(items) > _MAX_CODED or len(configurations) > _MAX_CODED or len(tracks) > _MAX_TRACKS:
        return None
    if not items <= extents.keys() or _length([extent for item in items for extent in extents[item]], file) > 2 * len(file):
        return None
    return Coded([b"".join(file[part.start : part.end] for part in extents[item]) for item in items], tracks, configurations)


class _Fields:
    """Reads integers one after another."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def read(self, length: int) -> int:
        self._at += length
        return int.from_bytes(self._content[self._at - length : self._at], "big")

    @property
    def ended(self) -> bool:
        return self._at > len(self._content)


class _Extent(NamedTuple):
    start: int
    end: int | None
    """None for the end of the file."""


def _length(extents: list[_Extent], file: bytes) -> int:
    return sum(max(0, min(len(file) if part.end is None else part.end, len(file)) - part.start) for part in extents)


def _extents(iloc: bytes) -> dict[int, list[_Extent]] | None:
    """Find each item that is in the file and not in a box (14496-12, 8.11.3); None if that is too much to read."""
    fields = _Fields(iloc)
    version = fields.read(4) >> 24
    sizes = fields.read(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version else 0
    number = 2 if version < 2 else 4
    found: dict[int, list[_Extent]] = {}
    total = 0
    for _ in range(fields.read(number)):
        item = fields.read(number)
        method = fields.read(2) & 15 if version else 0
        fields.read(2)
        base, count = fields.read(base_size), fields.read(2)
        total += max(1, count)
        if fields.ended or total > _MAX_EXTENTS or item in found:
            return None
        extents = []
        for _ in range(count):
            fields.read(index_size)
            at, length = base + fields.read(offset_size), fields.read(length_size)
            extents.append(_Extent(at, at + length if length else None))
        if method == 0:
            found[item] = extents
    return None if fields.ended else found


def _boxes(file: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield type, start and end of the content of every box, at any depth."""
    seen = 0
    waiting = [(0, len(file), 0)]
    while waiting:
        position, end, depth = waiting.pop()
        while end - position >= 8:
            if (seen := seen + 1) > _MAX_BOXES or depth > _MAX_DEPTH:
                raise TooManyBoxes
            length = int.from_bytes(file[position : position + 4], "big")
            kind = file[position + 4 : position + 8].decode("latin-1")
            content = position + 8
            if length == 1:
                length, content = int.from_bytes(file[position + 8 : position + 16], "big"), position + 16
            box_end = min(end, position + length) if length else end
            if box_end < content:  # shorter than its own header: no decoder goes on
                break
            yield kind, content, box_end
            if (before := _BEFORE_BOXES.get(kind)) is not None:
                if kind == "iinf":
                    before = 8 if file[content : content + 1] > b"\0" else 6
                waiting.append((content + before, box_end, depth + 1))
            position = box_end
