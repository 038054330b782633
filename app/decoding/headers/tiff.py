"""Tags of a TIFF: the size of its first image, and which of the many kinds of TIFF are decoded.

TIFF 6.0, 2: a directory has entries of 12 bytes: a tag, a type, a count, and the values or their offset.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from app.decoding.size import Size, area
from app.errors import UndecodableImage

_MAX_ENTRIES = 1000
"""Maximum entries of a directory; cameras and scanners write 20 to 60."""

_MAX_STRIPS = 200_000
"""Maximum strips or tiles: strips of one row for three planes of the highest image."""

_NUMBERS = {1: (1, "B"), 3: (2, "H"), 4: (4, "I")}
"""Bytes and struct code of the types that sizes and kinds have: BYTE, SHORT, LONG."""

_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes of a value, for each type that Pillow reads."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIPS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _SAMPLE_FORMAT = 273, 322, 323, 324, 339

_MAX_VALUES = 8
"""Maximum values of a tag that has one for each sample of a pixel."""

_COMPRESSIONS = frozenset({1, 5, 7, 8, 32_773, 32_946})
"""None, LZW, JPEG, Deflate, PackBits, Deflate by its older number."""

_COLOURS = frozenset({0, 1, 2, 3, 5, 6})
"""White is 0, black is 0, RGB, palette, CMYK, YCbCr."""


@dataclass(frozen=True, slots=True)
class _Entry:
    tag: int
    kind: int
    count: int
    values: bytes


def size(tiff: bytes) -> Size | None:
    """Return the size of the first image, or of its tiles if those are larger; None where it is not plainly stated."""
    entries = list(_entries(tiff))
    image, tile = _largest(tiff, entries, _WIDTH, _HEIGHT), _largest(tiff, entries, _TILE_WIDTH, _TILE_HEIGHT)
    if image is None or not any(entry.tag in (_TILE_WIDTH, _TILE_HEIGHT) for entry in entries):
        return image
    return None if tile is None else max(image, tile, key=area)


def check_kind(tiff: bytes) -> None:
    """Raise if the first image is of a kind that is not decoded.

    Raises:
        UndecodableImage: it is, or its directory has more than that of a real image.
    """
    entries = list(_entries(tiff))
    if len(entries) > _MAX_ENTRIES or sum(_length(entry) for entry in entries) > 2 * len(tiff):
        raise UndecodableImage("The TIFF has more tags than a real image has.")
    if any(entry.tag in (_STRIPS, _TILES) and entry.count > _MAX_STRIPS for entry in entries):
        raise UndecodableImage(f"The TIFF has more than {_MAX_STRIPS} strips or tiles.")
    bits, colours = _numbers(tiff, entries, _BITS, 1), _numbers(tiff, entries, _PHOTOMETRIC, 0)
    if not _numbers(tiff, entries, _COMPRESSION, 1) <= _COMPRESSIONS:
        raise UndecodableImage("The TIFF is compressed otherwise than with LZW, Deflate, PackBits or JPEG.")
    if not _numbers(tiff, entries, _SAMPLE_FORMAT, 1) <= {1}:
        raise UndecodableImage("The TIFF has samples that are not whole numbers from 0 upwards.")
    if not bits <= {1, 2, 4, 8, 16} or len(bits) > 1:
        raise UndecodableImage("The TIFF has samples of other than 1, 2, 4, 8 or 16 bits.")
    if not colours <= _COLOURS or (bits == {16} and 0 in colours):  # which Pillow would not invert
        raise UndecodableImage("The TIFF has colours other than grey, RGB, a palette, CMYK or YCbCr.")


def _entries(tiff: bytes) -> Iterator[_Entry]:
    """Yield the entries of the first directory, even if it is cut off, as Pillow takes it then, too."""
    order = _order(tiff)
    start = int.from_bytes(tiff[4:8], "little" if order == "<" else "big")
    if len(tiff) < start + 2:
        return
    (number,) = struct.unpack_from(f"{order}H", tiff, start)
    for at in range(start + 2, min(start + 2 + 12 * min(number, _MAX_ENTRIES + 1), len(tiff) - 11), 12):
        yield _Entry(*struct.unpack_from(f"{order}HHI4s", tiff, at))


def _order(tiff: bytes) -> str:
    return "<" if tiff.startswith(b"II") else ">"


def _length(entry: _Entry) -> int:
    return entry.count * _BYTES.get(entry.kind, 0)


def _largest(tiff: bytes, entries: list[_Entry], width: int, height: int) -> Size | None:
    """Return the largest values of these two tags; None if one is missing or not a single number."""
    found: dict[int, int] = {}
    for entry in entries:
        if entry.tag not in (width, height):
            continue
        if entry.kind not in _NUMBERS or entry.count != 1:
            return None
        found[entry.tag] = max(found.get(entry.tag, 0), *_values(tiff, entry))
    return (found[width], found[height]) if len(found) == 2 else None


def _numbers(tiff: bytes, entries: list[_Entry], tag: int, default: int) -> set[int]:
    """Return all numbers that entries of a tag have; -1 for other values."""
    found = {value for entry in entries if entry.tag == tag for value in _values(tiff, entry)}
    return found or {default}


def _values(tiff: bytes, entry: _Entry) -> tuple[int, ...]:
    if entry.kind not in _NUMBERS or not 0 < entry.count <= _MAX_VALUES:
        return (-1,)
    each, code = _NUMBERS[entry.kind]
    order = _order(tiff)
    values = entry.values
    if entry.count * each > 4:
        (start,) = struct.unpack(f"{order}I", values)
        values = tiff[start : start + entry.count * each]
    if len(values) < entry.count * each:
        return (-1,)
    return struct.unpack_from(f"{order}{entry.count}{code}", values)
