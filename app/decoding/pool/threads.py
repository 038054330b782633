"""ThreadDecoder: decodes in threads of the service; nothing to start or copy, but a decoder that crashes takes all with it."""

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from app.decoding import Decode, Decoded, OnDecoded, Preprocessor
from app.decoding.pool.attempt import DecodingFault, attempt
from app.decoding.pool.backlog import Backlog, PendingImage, draining, uncounted
from app.decoding.pool.fair_queue import Turn
from app.pixels import Pixels
from app.process.cpu import lower_priority


class ThreadDecoder:
    """Decodes in threads, which cannot be ended early.

    Args:
        decode: function that decodes an image which comes without a preprocessor.
        threads: images decoded at once.
        on_busy: as of `Backlog`.
    """

    def __init__(self, decode: Decode, *, threads: int, on_busy: Callable[[float], None] = uncounted) -> None:
        self._decode = decode
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=lower_priority)
        self._free = threads
        self._backlog = Backlog(threads, self._dispatch, on_busy)
        self._closed = False

    @property
    def why_not_ready(self) -> str | None:
        """See `Decoder`; threads are always ready."""
        return None

    def warm_up(self) -> None:
        """See `Decoder`; there is nothing to start."""

    def start(self) -> None:
        """See `Decoder`; threads start when they are needed."""

    async def decode(
        self,
        image_bytes: bytes,
        request: Hashable = None,
        preprocessor: Preprocessor | None = None,
        on_decoded: OnDecoded | None = None,
    ) -> Decoded:
        """See `Decoder`."""
        if self._closed:
            raise draining()
        return await self._backlog.decode(image_bytes, request, preprocessor, on_decoded)

    async def close(self) -> None:
        """See `Decoder`. Images that are being decoded are finished."""
        self._closed = True
        self._backlog.refuse(draining())
        self._threads.shutdown(wait=False)

    def _dispatch(self) -> None:
        """Give free threads the images whose turn it is."""
        while self._free and (turn := self._backlog.take()) is not None:
            self._begin(turn)

    def _begin(self, turn: Turn[PendingImage]) -> None:
        image = turn.item
        decode = self._decode if image.preprocessor is None else image.preprocessor.run
        try:
            decoded = asyncio.get_running_loop().run_in_executor(self._threads, attempt, decode, image.encoded)
        except RuntimeError as error:  # no thread can be started
            self._backlog.settle(turn, DecodingFault(str(error)))
            return
        self._free -= 1
        decoded.add_done_callback(partial(self._finish, turn))

    def _finish(self, turn: Turn[PendingImage], decoded: asyncio.Future[Pixels]) -> None:
        self._free += 1
        self._backlog.settle(turn, decoded.exception() or decoded.result())
        self._dispatch()
