"""FairQueue: the images that wait for a decoder, served in turn between requests. Knows neither clock nor event loop."""

from collections import Counter, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.decoding.headers import count_pixels
from app.decoding.headers.sniff import sniff_format

HEAVY_PIXELS = 16_000_000
"""Images from here on take a decoder for half a second or more; photographs of phones have 12 million pixels."""

_HEAVY_JPEG_PIXELS = 3 * HEAVY_PIXELS
"""A pixel of a JPEG takes about a third of the time of one of a PNG."""

Item = TypeVar("Item")


@dataclass(eq=False, slots=True)
class Turn(Generic[Item]):
    """One image's place in the queue."""

    item: Item
    request: Hashable
    """Images of the same request share their turns."""
    heavy: bool


def turn_of(item: Item, image_bytes: bytes, request: Hashable) -> Turn[Item]:
    """Make the turn of an encoded image; without a request it is one of its own."""
    pixels = count_pixels(image_bytes)
    heavy_pixels = _HEAVY_JPEG_PIXELS if sniff_format(image_bytes) == "jpeg" else HEAVY_PIXELS
    return Turn(item, object() if request is None else request, heavy=pixels is None or pixels >= heavy_pixels)


class FairQueue(Generic[Item]):
    """Serves requests in turn, one image each, and keeps one decoder free of whatever would hold all of them.

    Neither the images of one request nor all heavy images together ever have more than `decoders` less one (at least one) in
    progress, so that a small image of somebody else never waits behind them.

    Args:
        decoders: images decoded at once.
    """

    def __init__(self, decoders: int) -> None:
        self._share = max(1, decoders - 1)
        self._waiting: dict[Hashable, deque[Turn[Item]]] = {}  # by request, the next one to be served first
        self._running: Counter[Hashable] = Counter()
        self._heavy_running = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, turn: Turn[Item]) -> None:
        """Add an image behind the others of its request."""
        self._waiting.setdefault(turn.request, deque()).append(turn)

    def put_back(self, turn: Turn[Item]) -> None:
        """Return an image whose decoder was lost to the front: it has waited already."""
        self.release(turn)
        others = self._waiting.pop(turn.request, deque())
        others.appendleft(turn)
        self._waiting = {turn.request: others, **self._waiting}

    def take(self) -> Turn[Item] | None:
        """Take the image whose turn it is; None if nothing waits that may be decoded now. `release` it later."""
        for request, turns in self._waiting.items():
            if self._may_run(turns[0]):
                turn = turns.popleft()
                del self._waiting[request]
                if turns:
                    self._waiting[request] = turns  # behind the other requests
                self._running[request] += 1
                self._heavy_running += turn.heavy
                return turn
        return None

    def release(self, turn: Turn[Item]) -> None:
        """Give back the share of an image that was taken and is no longer being decoded."""
        self._running[turn.request] -= 1
        if not self._running[turn.request]:
            del self._running[turn.request]
        self._heavy_running -= turn.heavy

    def discard(self, turn: Turn[Item]) -> None:
        """Drop an image if it still waits."""
        turns = self._waiting.get(turn.request)
        if turns is None or turn not in turns:
            return
        turns.remove(turn)
        if not turns:
            del self._waiting[turn.request]

    def drain(self) -> Iterator[Turn[Item]]:
        """Take out all that waits, in no order; for a queue that is given up."""
        for turns in self._waiting.values():
            yield from turns
        self._waiting = {}

    def _may_run(self, turn: Turn[Item]) -> bool:
        light_enough = not turn.heavy or self._heavy_running < self._share
        return light_enough and self._running[turn.request] < self._share
