"""Size of HEVC frames as a decoder reads it from the bit stream: the container may state another.

ITU-T H.265, 7.3: an image is a row of units; the sequence parameter sets among them have the size.
"""

from app.decoding.headers.bits import Bits, Frame, largest

_MAX_UNITS = 32
"""Maximum units of an image; a tile of a photograph is one, and a configuration has three or four."""

_SEQUENCE_PARAMETER_SET = 33

_MAX_PARAMETER_BYTES = 300
"""Bytes of a parameter set that are read: the size is among them."""


def largest_in_configuration(record: bytes) -> Frame | None:
    """Return the largest frame in a `hvcC` box (ISO/IEC 14496-15, 8.3.3), which is decoded first; None if there is none."""
    units: list[bytes] = []
    position = 23
    for _ in range(record[22] if len(record) > 22 else 0):
        number = int.from_bytes(record[position + 1 : position + 3], "big")
        position += 3
        for _ in range(number):
            length = int.from_bytes(record[position : position + 2], "big")
            units.append(record[position + 2 : position + 2 + length])
            position += 2 + length
            if position > len(record) or len(units) > _MAX_UNITS:
                return None
    return largest(_announced(units))


def largest_in_units(image: bytes) -> tuple[Frame | None, bool]:
    """Return the largest frame among the units of an image, each behind its length of 4 bytes, and True if all were read."""
    units: list[bytes] = []
    position = 0
    while position + 4 < len(image) and len(units) <= _MAX_UNITS:
        length = int.from_bytes(image[position : position + 4], "big")
        units.append(image[position + 4 : position + 4 + min(length, _MAX_PARAMETER_BYTES)])
        position += 4 + length
    return largest(_announced(units)), len(units) <= _MAX_UNITS


def _announced(units: list[bytes]) -> list[Frame]:
    return [_frame(unit[:_MAX_PARAMETER_BYTES]) for unit in units if unit and unit[0] >> 1 & 63 == _SEQUENCE_PARAMETER_SET]


def _frame(unit: bytes) -> Frame:
    bits = Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))  # emulation prevention (7.3.1.1)
    bits.read(4)
    layers = bits.read(3)
    bits.read(1 + 96)
    present = [(bits.read(1), bits.read(1)) for _ in range(layers)]
    bits.read(2 * (8 - layers) if layers else 0)
    for profile, level in present:
        bits.read(88 * profile + 8 * level)
    bits.read_exponential()
    if bits.read_exponential() == 3:
        bits.read(1)
    return Frame((bits.read_exponential(), bits.read_exponential()), True)
