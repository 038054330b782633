"""Where pictures are decoded: in processes that can be ended (`processes.py`), or in threads (`threads.py`)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the zygote imports this file, before it is ready for what takes a second
    from app.images import Pixels

Decode = Callable[[bytes], "Pixels"]
"""One encoded image -> its pixels; blocks, and raises a `ServiceError` for what it refuses."""


class Decoder(Protocol):
    """Decodes several images at once, beside the event loop."""

    def start(self) -> None:
        """Begin; to be called in the event loop that will decode."""

    async def decode(self, image_bytes: bytes) -> "Pixels":
        """Wait for a free place, and decode there. A call that is cancelled before its turn is never begun.

        Raises:
            ImageTooLarge, UnsupportedImageFormat, UndecodableImage: as `ImageDecoder.decode`.
            NotReady: nothing can be decoded now.
            Draining: the decoder was closed, before or meanwhile.
        """

    @property
    def alive(self) -> bool:
        """Whether anything can be decoded."""

    def close(self) -> None:
        """End it; whatever still waits fails with `Draining`."""
