"""FairQueue: images that wait for a worker, served in turn between requests. Knows neither clock nor event loop."""

from collections import Counter, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.decoding.headers import count_pixels
from app.decoding.headers.sniff import sniff_format

HEAVY_PIXELS = 16_000_000
"""Pixels from which an image counts as heavy: it takes half a second or more. A phone's photograph has 12 million."""

_HEAVY_JPEG_PIXELS = 3 * HEAVY_PIXELS
"""The same for JPEG, of which a pixel takes about a third of the time."""

Item = TypeVar("Item")


@dataclass(eq=False, slots=True)
class Turn(Generic[Item]):
    """One image in the queue."""

    item: Item
    request: Hashable
    """Identity of the request; its images share their turns."""
    heavy: bool


def turn_of(item: Item, image_bytes: bytes, request: Hashable) -> Turn[Item]:
    """Make the turn of an encoded image; without a request, it is a request of its own."""
    pixels = count_pixels(image_bytes)
    heavy_pixels = _HEAVY_JPEG_PIXELS if sniff_format(image_bytes) == "jpeg" else HEAVY_PIXELS
    return Turn(item, object() if request is None else request, heavy=pixels is None or pixels >= heavy_pixels)


class FairQueue(Generic[Item]):
    """Serves requests in turn, one image each, without head-of-line blocking.

    At most `workers` less one (at least one) images of one request are in progress, and as many heavy images, so that a small
    image of another request never waits behind them.

    Args:
        workers: images decoded at once.
    """

    def __init__(self, workers: int) -> None:
        self._share = max(1, workers - 1)
        self._waiting: dict[Hashable, deque[Turn[Item]]] = {}  # by request, in the order of their turns
        self._running: Counter[Hashable] = Counter()
        self._heavy_running = 0

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, turn: Turn[Item]) -> None:
        """Add an image, behind the others of its request."""
        self._waiting.setdefault(turn.request, deque()).append(turn)

    def put_back(self, turn: Turn[Item]) -> None:
        """Return an image that lost its worker to the front: it has waited already."""
        self.release(turn)
        others = self._waiting.pop(turn.request, deque())
        others.appendleft(turn)
        self._waiting = {turn.request: others, **self._waiting}

    def take(self) -> Turn[Item] | None:
        """Take the image whose turn it is; None if none may be decoded now. `release` it later."""
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
        """Count an image that was taken as no longer in progress."""
        self._running[turn.request] -= 1
        if not self._running[turn.request]:
            del self._running[turn.request]
        self._heavy_running -= turn.heavy

    def discard(self, turn: Turn[Item]) -> None:
        """Drop an image if it is still queued."""
        turns = self._waiting.get(turn.request)
        if turns is None or turn not in turns:
            return
        turns.remove(turn)
        if not turns:
            del self._waiting[turn.request]

    def drain(self) -> Iterator[Turn[Item]]:
        """Take out all queued images, in no order."""
        for turns in self._waiting.values():
            yield from turns
        self._waiting = {}

    def _may_run(self, turn: Turn[Item]) -> bool:
        light_enough = not turn.heavy or self._heavy_running < self._share
        return light_enough and self._running[turn.request] < self._share
