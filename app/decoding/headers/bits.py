"""Bit fields of coded frames, and the sizes that are read from them."""

from collections.abc import Iterable
from typing import NamedTuple

from app.decoding.size import Size, area


class Frame(NamedTuple):
    """The largest size that is announced for a frame."""

    size: Size
    certain: bool
    """No frame can be larger."""


def largest(frames: Iterable[Frame]) -> Frame | None:
    """Return the largest of the sizes, certain if they all are; None if there are none."""
    found = list(frames)
    if not found:
        return None
    return Frame(max((frame.size for frame in found), key=area), all(frame.certain for frame in found))


class Bits:
    """Reads bits, the highest of each byte first; zeros behind the end."""

    def __init__(self, content: bytes) -> None:
        self._number = int.from_bytes(content, "big")
        self._left = 8 * len(content)

    def read(self, count: int) -> int:
        """Return the next bits as a number."""
        self._left -= count
        shifted = self._number >> self._left if self._left >= 0 else self._number << -self._left
        return shifted & ((1 << count) - 1)

    def read_exponential(self) -> int:
        """Return the next number in Exp-Golomb code: zeros, a one, and as many bits as there were zeros."""
        zeros = 0
        while not self.read(1):
            if (zeros := zeros + 1) == 32:
                return (1 << 32) - 1
        return (1 << zeros) - 1 + self.read(zeros)
