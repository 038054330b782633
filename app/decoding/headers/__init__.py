"""Facts that are read from an encoded image before anything is decoded: its format, its size, its scans and chunks.

Pillow reads headers in Python, byte by byte, and unpacks every colour profile; these walks are short and bounded in steps.
One file for each format; none of them needs a decoder.
"""

from collections.abc import Callable

from app.decoding.headers import bmp, gif, heif, jpeg, png, tiff, webp
from app.decoding.headers.sniff import sniff_format
from app.decoding.size import Size, area

_SIZE: dict[str, Callable[[bytes], Size | None]] = {
    "jpeg": jpeg.size,
    "png": png.size,
    "webp": webp.size,
    "gif": gif.size,
    "bmp": bmp.size,
    "avif": heif.certain_size,
    "heic": heif.certain_size,
    "tiff": tiff.size,
}


def count_pixels(image_bytes: bytes) -> int | None:
    """Return width times height by the header alone, in a few microseconds.

    A decoder may read a broken header differently: good for sharing out work, not for a limit.

    Returns:
        The pixels; 0 for bytes that no decoder takes for an image, None where the size is not at its usual place.
    """
    image_format = sniff_format(image_bytes)
    if image_format not in _SIZE:
        return 0
    size = _SIZE[image_format](image_bytes)
    return None if size is None else area(size)
