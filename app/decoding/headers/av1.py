"""The size that AV1 frames may have, read from the bits that a decoder reads: the container around them may say another.

AV1 Bitstream Specification, 5.3 to 5.5: a picture is a row of units; one of them, the sequence header, has the largest size.
"""

from app.decoding.headers.bits import Bits, Frame, largest

_MAX_UNITS = 32
"""A picture has three, or four."""

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6


def largest_frame(units: bytes, *, only_first: bool = False) -> Frame | None:
    """Read what is announced of the largest frame; None if nothing is, or it is too much to read.

    Args:
        units: the coded picture, or what begins with it.
        only_first: nothing behind the first frame is decoded.
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
    """Kind of a unit, the first bytes of its content, and where the next one begins."""
    header = units[position]
    position += 2 if header & 0b100 else 1  # with an extension
    length = len(units) - position
    if header & 0b10:
        length, position = _leb128(units, position)
    return header >> 3 & 0b1111, units[position : position + min(length, 200)], position + length


def _leb128(units: bytes, position: int) -> tuple[int, int]:
    number = 0
    for shift, byte in enumerate(units[position : position + 8]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return number, position + shift + 1
    return number, position + 8


def _announced(header: bytes) -> Frame:
    bits = Bits(header)
    bits.read(4)  # profile, and whether it is a still picture
    short = bool(bits.read(1))
    if short:  # of a still picture, whose frame says nothing of its size
        bits.read(5)
    else:
        _skip_timing(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    width, height = bits.read(width_bits) + 1, bits.read(height_bits) + 1
    # with more bits than these sizes need, a frame may say that it is larger
    certain = short or (1 << width_bits) * (1 << height_bits) <= 4 * width * height
    return Frame((width, height), certain)


def _skip_timing(bits: Bits) -> None:
    """5.5.1: the clock, the model of the decoder's buffers, and the operating points."""
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
