"""ThreadDecoder: decodes in threads of this process; nothing to start or copy, but a decoder that crashes takes all with it."""

import asyncio
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from app.decoding import Decode
from app.decoding.pool.attempt import DecodingFault, attempt, reported
from app.decoding.pool.fair_queue import FairQueue, Turn, turn_of
from app.errors import Draining
from app.pixels import Pixels
from app.process.cpu import give_way


@dataclass(eq=False, slots=True)
class _Image:
    encoded: bytes
    result: asyncio.Future[Pixels]


class ThreadDecoder:
    """Decodes in threads, which nobody can end before they are done.

    Args:
        decode: what they do.
        threads: images decoded at once.
    """

    def __init__(self, decode: Decode, *, threads: int) -> None:
        self._decode = decode
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=give_way)
        self._free = threads
        self._queue = FairQueue[_Image](threads)
        self._closed = False

    @property
    def why_not_ready(self) -> str | None:
        """See `Decoder`; threads are always ready."""
        return None

    def start(self) -> None:
        """See `Decoder`; threads start when they are needed."""

    async def decode(self, image_bytes: bytes, request: Hashable = None) -> Pixels:
        """See `Decoder`."""
        if self._closed:
            raise _stopping()
        image = _Image(image_bytes, asyncio.get_running_loop().create_future())
        turn = turn_of(image, image_bytes, request)
        self._queue.put(turn)
        self._dispatch()
        try:
            return await image.result
        except DecodingFault as fault:
            raise reported(fault) from None
        finally:
            self._queue.discard(turn)

    async def close(self) -> None:
        """See `Decoder`. What is being decoded is decoded to its end."""
        self._closed = True
        for turn in self._queue.drain():
            if not turn.item.result.done():
                turn.item.result.set_exception(_stopping())
        self._threads.shutdown(wait=False)

    def _dispatch(self) -> None:
        """Give free threads the images whose turn it is."""
        while self._free and (turn := self._queue.take()) is not None:
            if turn.item.result.done():  # its caller has gone, and could not say so yet
                self._queue.release(turn)
            else:
                self._begin(turn)

    def _begin(self, turn: Turn[_Image]) -> None:
        try:
            decoded = asyncio.get_running_loop().run_in_executor(self._threads, attempt, self._decode, turn.item.encoded)
        except RuntimeError as error:  # no thread can be started
            self._queue.release(turn)
            turn.item.result.set_exception(DecodingFault(str(error)))
            return
        self._free -= 1
        decoded.add_done_callback(partial(self._finish, turn))

    def _finish(self, turn: Turn[_Image], decoded: asyncio.Future[Pixels]) -> None:
        self._free += 1
        self._queue.release(turn)
        error, result = decoded.exception(), turn.item.result
        if not result.done():  # its caller still waits
            result.set_result(decoded.result()) if error is None else result.set_exception(error)
        self._dispatch()


def _stopping() -> Draining:
    return Draining("The service is shutting down.", retry_after_s=1.0)
