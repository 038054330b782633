"""Limits that are checked on encoded images, without decoding them and without Pillow."""

from collections.abc import Generator, Iterable

from app.decoding.headers import count_pixels
from app.errors import ImageTooLarge


def check_length(image_bytes: bytes, max_bytes: int) -> None:
    """Raise if an encoded image has more bytes than are allowed.

    Raises:
        ImageTooLarge: it has.
    """
    if len(image_bytes) > max_bytes:
        raise ImageTooLarge(f"The image has {len(image_bytes)} bytes; at most {max_bytes} are allowed.")


def check_work(images: Iterable[bytes], max_image_pixels: int, max_request_pixels: int) -> Generator[None, None, None]:
    """Raise if the images of a request have more pixels together than can be decoded in time, by their headers alone.

    Yields after each image, because a header may take milliseconds. An image that is too large by itself does not count, as
    it is refused before it costs anything; one of unknown size counts as the largest that is allowed.

    Raises:
        ImageTooLarge: they have.
    """
    pixels = 0
    for image in images:
        counted = _count_pixels(image)
        pixels += max_image_pixels if counted is None else counted if counted <= max_image_pixels else 0
        yield
    if pixels > max_request_pixels:
        raise ImageTooLarge(
            f"The images have {pixels} pixels together; at most {max_request_pixels} are allowed in one request: send fewer."
        )


def _count_pixels(image_bytes: bytes) -> int | None:
    try:
        return count_pixels(image_bytes)
    except Exception:  # a fault of ours, which decoding reports for this image alone
        return None
