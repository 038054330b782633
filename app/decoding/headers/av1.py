"""Size of AV1 frames as a decoder reads it from the bit stream: the container may state another.

AV1 Bitstream Specification, 5.3 to 5.5: an image is a row of units; one of them, the sequence header, has the largest size.
"""

from app.decoding.headers.bits import Bits, Frame, largest

_MAX_UNITS = 32
"""Maximum units of an image, which has three or four."""

_HEADER_BYTES = 200
"""Bytes of a unit that are read."""

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6


def largest_frame(units: bytes, *, only_first: bool = False) -> Frame | None:
    """Return the largest frame that is announced; None if none is, or there are too many units to read.

    Args:
        units: the coded image, or its beginning.
        only_first: only the first frame is decoded.
    """
    frames: list[Frame] = []
    position = 0
    for _ in range(_MAX_UNITS):
        if position >= len(units):
            return largest(frames)
        kind, content, position = _unit(units, position)
        if kind == _SEQUENCE_HEADER:
            frames.append(_announced(content))
        elif only_first and kind in (_FRAME_HEADER, _FRAME):
            return largest(frames)
    return None


def _unit(units: bytes, position: int) -> tuple[int, bytes, int]:
    """Return the kind of a unit, the first bytes of its content, and the position of the next unit."""
    header = units[position]
    position += 2 if header & 0b100 else 1  # with an extension
    length = len(units) - position
    if header & 0b10:
        length, position = _leb128(units, position)
    return header >> 3 & 0b1111, units[position : position + min(length, _HEADER_BYTES)], position + length


def _leb128(units: bytes, position: int) -> tuple[int, int]:
    number = 0
    for shift, byte in enumerate(units[position : position + 8]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number, position + shift + 1
    return number, position + 8


def _announced(header: bytes) -> Frame:
    bits = Bits(header)
    bits.read(4)  # profile and still_picture
    reduced = bool(bits.read(1))
    if reduced:  # a still image, whose frame states no size of its own
        bits.read(5)
    else:
        _skip_timing(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(width_bits) + 1, bits.read(height_bits) + 1
    # with more bits than these sizes need, a frame may state a larger one
    certain = reduced or (1 << width_bits) * (1 << height_bits) <= 4 * width * height
    return Frame((width, height), certain)


def _skip_timing(bits: Bits) -> None:
    """Skip the clock, the decoder model and the operating points (5.5.1)."""
    delay_bits = 0
    if bits.read(1):
        bits.read(64)
        if bits.read(1):
            bits.read_exponential()
        if bits.read(1):
            delay_bits = bits.read(5) + 1
            bits.read(42)
    display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if display_delay and bits.read(1):
            bits.read(4)
