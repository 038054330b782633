"""Parts that the headers of coded frames have in common: fields of any number of bits, and a size to be read from them."""

from collections.abc import Iterable
from typing import NamedTuple

from app.decoding.geometry import Size


class Frame(NamedTuple):
    """The largest size that is announced, and whether no frame can have a larger one."""

    size: Size
    certain: bool


def largest(frames: Iterable[Frame]) -> Frame | None:
    """Return the largest of the sizes, certain if they all are; None if there are none."""
    found = list(frames)
    if not found:
        return None
    size = max((frame.size for frame in found), key=lambda size: size[0] * size[1])
    return Frame(size, all(frame.certain for frame in found))


class Bits:
    """Reads bits, the highest of each byte first; behind the end they are 0."""

    def __init__(self, content: bytes) -> None:
        self._number = int.from_bytes(content, "big")
        self._left = 8 * len(content)

    def read(self, count: int) -> int:
        """Return the next bits as a number."""
        self._left -= count
        shifted = self._number >> self._left if self._left >= 0 else self._number << -self._left
        return shifted & ((1 << count) - 1)

    def read_exponential(self) -> int:
        """Return the next number in Exp-Golomb code: as many zeros as bits come behind the 1 that ends them."""
        zeros = 0
        while not self.read(1):
            if (zeros := zeros + 1) == 32:
                return (1 << 32) - 1
        return (1 << zeros) - 1 + self.read(zeros)
