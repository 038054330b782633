"""The size of HEVC frames, read from the bits that a decoder reads: the container around them may say another.

ITU-T H.265, 7.3: a picture is a row of units; the sequence parameter sets among them have the size.
"""

from app.decoding.headers.bits import Bits, Frame, largest

_MAX_UNITS = 32
"""A tile of a phone's photograph is one; what is decoded before it has three or four."""

_SEQUENCE_PARAMETERS = 33

_MAX_PARAMETER_BYTES = 300
"""In which the size stands."""


def largest_in_configuration(record: bytes) -> Frame | None:
    """Read the largest size in a `hvcC` box (ISO/IEC 14496-15, 8.3.3), which is decoded before a picture; None without one."""
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


def largest_in_units(picture: bytes) -> tuple[Frame | None, bool]:
    """Read the largest size among the units of a picture, each behind its length of 4 bytes, and whether all were looked at."""
    units: list[bytes] = []
    position = 0
    while position + 4 < len(picture) and len(units) <= _MAX_UNITS:
        length = int.from_bytes(picture[position : position + 4], "big")
        units.append(picture[position + 4 : position + 4 + min(length, _MAX_PARAMETER_BYTES)])
        position += 4 + length
    return largest(_announced(units)), len(units) <= _MAX_UNITS


def _announced(units: list[bytes]) -> list[Frame]:
    return [_frame(unit[:_MAX_PARAMETER_BYTES]) for unit in units if unit and unit[0] >> 1 & 63 == _SEQUENCE_PARAMETERS]


def _frame(unit: bytes) -> Frame:
    bits = Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))  # 7.3.1.1: the 3 keeps apart what would look like a start
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
