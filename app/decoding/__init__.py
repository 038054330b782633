"""Where images are decoded: in worker processes that can be ended (`processes.py`), or in threads (`threads.py`)."""

from collections.abc import Callable, Hashable
from typing import Protocol

from app.pixels import Pixels

Decode = Callable[[bytes], Pixels]
"""One encoded image -> its pixels; blocks, and raises a `ServiceError` for what it refuses."""


class Decoder(Protocol):
    """Decodes several images at once, beside the event loop."""

    def start(self) -> None:
        """Begin; called in the event loop that will decode."""

    async def decode(self, image_bytes: bytes, request: Hashable = None) -> Pixels:
        """Decode one image when its turn comes. A call that is cancelled before its turn is never begun.

        Args:
            image_bytes: the encoded image.
            request: identity of the request that brought it: requests take turns. None is a request of its own.

        Raises:
            ImageTooLarge, UnsupportedImageFormat, UndecodableImage: see `ImageDecoder.decode`.
            InternalError: the service itself failed on this image.
            NotReady: no image can be decoded now.
            Draining: the decoder was closed, before or meanwhile.
        """

    @property
    def why_not_ready(self) -> str | None:
        """Reason why no image can be decoded now, in one sentence; None if one can."""

    async def close(self) -> None:
        """End all workers; whatever still waits fails with `Draining`."""
