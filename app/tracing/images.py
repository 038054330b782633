"""Spans of an image's way through the service, as the code that serves it sees them. Knows nothing of OpenTelemetry."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Protocol

OnDecoded = Callable[[float, float], None]
"""Function to call with the seconds that an image waited for a worker, and those that the worker took."""


class BatchTracer(Protocol):
    """Records a batch in which images ran."""

    def batch(self, images: "Sequence[ImageTrace]", size: int, padded_size: int) -> AbstractContextManager[None]:
        """Record the batch that runs inside the block, and the inference of each image, linked with each other.

        Args:
            images: those of the batch whose requests are recorded.
            size: number of all its images.
            padded_size: rows that the engine runs for them.
        """


class ImageTrace:
    """Spans of one image. This class records none; it is that of images whose requests are not recorded."""

    tracer: BatchTracer | None = None

    def decoding(self) -> AbstractContextManager[OnDecoded]:
        """Record the waiting and the decoding inside the block, which calls what it is given once the image is decoded."""
        return nullcontext(_ignore)

    def queued(self) -> AbstractContextManager[None]:
        """Record the time in the queue: from the start of the block to that of the first batch, or to an error without one."""
        return nullcontext()


NOT_RECORDED = ImageTrace()

_of_request: ContextVar[Callable[[], ImageTrace] | None] = ContextVar("image traces of the request", default=None)


def image_trace() -> ImageTrace:
    """Return the spans of another image of the request that this code runs for."""
    make = _of_request.get()
    return NOT_RECORDED if make is None else make()


@contextmanager
def recorded_images(make: Callable[[], ImageTrace]) -> Iterator[None]:
    """Record the images of the request that is handled inside the block."""
    token = _of_request.set(make)
    try:
        yield
    finally:
        _of_request.reset(token)


def batch_trace(images: Sequence[ImageTrace], padded_size: int) -> AbstractContextManager[None]:
    """Record the batch that runs inside the block, if the request of any of its images is recorded."""
    recorded = [image for image in images if image.tracer is not None]
    if not recorded or (tracer := recorded[0].tracer) is None:
        return nullcontext()
    return tracer.batch(recorded, len(images), padded_size)


def _ignore(wait_s: float, decode_s: float) -> None:
    """Take the times of an image that is not recorded."""
