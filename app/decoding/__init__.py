"""Decoding: encoded images to pixels, in worker processes (`pool/processes.py`) or threads (`pool/threads.py`)."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from app.decoding.preprocessor import Decode, Preprocessor
from app.pixels import Pixels

__all__ = ["Decode", "Decoded", "Decoder", "OnDecoded", "Preprocessor"]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels of one image, with the seconds that it waited for a worker and those that the worker took."""

    pixels: Pixels
    wait_s: float
    """Includes the time with workers that were lost."""
    decode_s: float


OnDecoded = Callable[[Decoded], None]
"""Function that takes an image as soon as its worker replies; an error that it raises is the image's outcome."""


class Decoder(Protocol):
    """Decodes several images at once, beside the event loop."""

    def warm_up(self) -> None:
        """Start workers, each proven by an image. Blocks, for half a second.

        Raises:
            StartError: they cannot be started.
        """

    def start(self) -> None:
        """Start decoding, in the running event loop."""

    async def decode(
        self,
        image_bytes: bytes,
        request: Hashable = None,
        preprocessor: Preprocessor | None = None,
        on_decoded: OnDecoded | None = None,
    ) -> Decoded:
        """Decode one image when its turn comes. A call that is cancelled before its turn costs nothing.

        Args:
            image_bytes: the encoded image.
            request: identity of the request that brought it: requests take turns. None is a request of its own.
            preprocessor: what to decode to. Default: the decoder's own.
            on_decoded: called with the result as soon as the worker replies, one iteration of the event loop before this call
                returns it.

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
