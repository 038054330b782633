"""Decode in threads of this process: nothing to start and nothing to copy, but a decoder that crashes takes all with it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from app.cpus import give_way
from app.decoding import Decode
from app.errors import Draining
from app.images import Pixels


class ThreadDecoder:
    """Decodes in threads, which nobody can end before they are done.

    Args:
        decode: what they do.
        threads: images decoded at once.
    """

    def __init__(self, decode: Decode, *, threads: int) -> None:
        self._decode = decode
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=give_way)

    alive = True

    def start(self) -> None:
        """Threads start when they are needed."""

    async def decode(self, image_bytes: bytes) -> Pixels:
        """See `Decoder`."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, image_bytes)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # nobody cancelled this call: its turn to be decoded was, when the decoder was closed
            raise Draining("The service is shutting down.", retry_after_s=1.0) from None

    def close(self) -> None:
        """See `Decoder`. What is being decoded is decoded to its end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
