"""Backlog: the images that wait for a worker or are with one; the part that the process and the thread pool share."""

import asyncio
import contextvars
import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from app.decoding import Decoded, OnDecoded, Preprocessor
from app.decoding.pool.attempt import DecodingFault, attempt, reported
from app.decoding.pool.fair_queue import FairQueue, Turn, turn_of
from app.errors import Draining
from app.pixels import Pixels


@dataclass(eq=False, slots=True)
class PendingImage:
    """One image and the future that its request awaits."""

    encoded: bytes
    preprocessor: Preprocessor | None
    result: asyncio.Future[Decoded]
    on_decoded: OnDecoded | None = None
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    """Context of the request: its id is logged if the image ends a worker."""
    arrived_at: float = field(default_factory=time.perf_counter)
    begun_at: float = math.nan
    """Time at which the last worker that had it took it."""
    crashes: int = 0
    kills: int = 0


def uncounted(_: float) -> None:
    """Ignore how long a worker was busy."""


class Backlog:
    """Images in turn between requests, each settled once.

    Args:
        workers: images decoded at once.
        dispatch: called when an image was added.
        on_busy: called with the seconds that a worker had an image, whatever came of it.
    """

    def __init__(self, workers: int, dispatch: Callable[[], None], on_busy: Callable[[float], None] = uncounted) -> None:
        self._queue = FairQueue[PendingImage](workers)
        self._dispatch = dispatch
        self._on_busy = on_busy

    async def decode(
        self,
        image_bytes: bytes,
        request: Hashable,
        preprocessor: Preprocessor | None,
        on_decoded: OnDecoded | None = None,
    ) -> Decoded:
        """Queue an image and await its pixels, as `Decoder.decode`. Cancelling drops it if it is still queued."""
        image = PendingImage(image_bytes, preprocessor, asyncio.get_running_loop().create_future(), on_decoded)
        try:
            turn = attempt(turn_of, image, image_bytes, request)
            self._queue.put(turn)
            self._dispatch()
            try:
                return await image.result
            finally:
                self._queue.discard(turn)
        except DecodingFault as fault:
            raise reported(fault) from None

    def take(self) -> Turn[PendingImage] | None:
        """Take the image whose turn it is, if any; `settle` it or `put_back` later."""
        while (turn := self._queue.take()) is not None:
            if not turn.item.result.done():
                turn.item.begun_at = time.perf_counter()
                return turn
            self._queue.release(turn)  # cancelled, but its call has not run since
        return None

    def put_back(self, turn: Turn[PendingImage]) -> None:
        """Return an image that lost its worker to the front of the queue, unless it was cancelled."""
        self._on_busy(time.perf_counter() - turn.item.begun_at)
        if turn.item.result.done():
            self._queue.release(turn)
        else:
            self._queue.put_back(turn)

    def settle(self, turn: Turn[PendingImage], outcome: Pixels | BaseException) -> None:
        """Give the request of a taken image its pixels or its error, unless it was cancelled."""
        self._queue.release(turn)
        image, now = turn.item, time.perf_counter()
        self._on_busy(now - image.begun_at)
        if image.result.done():
            return
        if isinstance(outcome, BaseException):
            image.result.set_exception(outcome)
            return
        decoded = Decoded(outcome, image.begun_at - image.arrived_at, now - image.begun_at)
        try:
            if image.on_decoded is not None:
                image.on_decoded(decoded)
        except Exception as error:
            image.result.set_exception(error)
        else:
            image.result.set_result(decoded)

    def refuse(self, error: Exception) -> None:
        """Fail all queued images."""
        for turn in self._queue.drain():
            if not turn.item.result.done():
                turn.item.result.set_exception(error)


def draining() -> Draining:
    """Return the error of images that a closed decoder did not decode."""
    return Draining("The service is shutting down.", retry_after_s=1.0)
