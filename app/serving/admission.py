"""Admission: slots for images and a budget of bytes in flight, with a measured `Retry-After`."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.errors import QueueFull

ReserveBytes = Callable[[int], None]
"""Function to call with the size of each chunk of a body before keeping it; raises `QueueFull`."""

_RATE_WINDOW = 256
"""Maximum number of freed slots over which the rate is measured."""

_UNMEASURED_S = 1.0
"""Seconds to retry after while no slot was freed yet."""


class Admission:
    """Slots and bytes, shared by all requests.

    Args:
        max_images: maximum images accepted and not yet answered.
        max_bytes: maximum bytes of request bodies, from their arrival to the answer.
    """

    def __init__(self, *, max_images: int, max_bytes: float = math.inf) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._images = 0
        self._bytes = 0
        self._busy_since = 0.0
        self._freed: deque[float] = deque(maxlen=_RATE_WINDOW)  # times of the last freed slots of this busy period

    @property
    def images(self) -> int:
        """Images in flight."""
        return self._images

    @property
    def bytes(self) -> int:
        """Bytes in flight."""
        return self._bytes

    def check_room(self) -> None:
        """Raise if no slot is free.

        Raises:
            QueueFull: `max_images` are in flight.
        """
        if self._images >= self._max_images:
            raise QueueFull("Too many images are waiting.", retry_after_s=self._drain_time())

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold a slot while one image is decoded and classified.

        Raises:
            QueueFull: no slot is free.
        """
        self.check_room()
        if self._images == 0:
            self._busy_since = time.perf_counter()
            self._freed.clear()
        self._images += 1
        try:
            yield
        finally:
            self._images -= 1
            self._freed.append(time.perf_counter())

    @contextmanager
    def reserve_bytes(self) -> Iterator[ReserveBytes]:
        """Reserve the bytes of one request until the context ends.

        Yields a function that raises `QueueFull` if all requests together would exceed `max_bytes`.
        """
        reserved = 0

        def reserve(size: int) -> None:
            nonlocal reserved
            if self._bytes + size > self._max_bytes:
                raise QueueFull("Too many bytes are waiting.", retry_after_s=self._drain_time())
            self._bytes += size
            reserved += size

        try:
            yield reserve
        finally:
            self._bytes -= reserved

    def _drain_time(self) -> float:
        """Return the seconds until all images in flight are answered, at the rate of this busy period."""
        if not self._freed:
            return _UNMEASURED_S
        since = self._freed[0] if len(self._freed) == _RATE_WINDOW else self._busy_since
        return self._images * (time.perf_counter() - since) / len(self._freed)
