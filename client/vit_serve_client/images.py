"""Images in any of the forms that the client takes, read to the bytes of an image file."""

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

from vit_serve_client.errors import BadImage, TooLarge, VitError

SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"])
"""Suffixes of the files in a folder that are sent, in any case."""

MAX_FILE_BYTES = 64 * 2**20
"""Largest file that is read. It is the largest body that the service takes unless it is told otherwise."""


@runtime_checkable
class Readable(Protocol):
    """Binary file, opened for reading."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes."""


@runtime_checkable
class Savable(Protocol):
    """Image of Pillow, or of anything that saves and converts as Pillow's does."""

    def save(self, fp: Any, format: str | None = None, **options: Any) -> None:
        """Write the image to a file."""

    def convert(self, mode: str | None = None) -> Any:
        """Return the image in another colour mode."""


Image: TypeAlias = bytes | bytearray | memoryview | str | os.PathLike[str] | Readable | Savable
"""Bytes of an image file, its path, the open file, or an image of Pillow."""


def image_bytes(image: Image) -> bytes:
    """Return the bytes of an image file. An image of Pillow becomes a PNG of its pixels as they are, without EXIF.

    Raises:
        OSError: the file cannot be read.
        TooLarge: the file is larger than any that the service takes.
        TypeError: this is not an image in any of the forms.
    """
    match image:
        case bytes():
            return image
        case bytearray() | memoryview():
            return bytes(image)
        case str() | os.PathLike():
            with open(image, "rb") as file:
                return _bounded(file)
    if isinstance(image, Savable):
        return _png(image)
    if isinstance(image, Readable):
        return _bounded(image)
    raise TypeError(f"An image is bytes, a path, a binary file or an image of Pillow, not {type(image).__name__}.")


def readable_bytes(image: Image) -> bytes | VitError:
    """Return the bytes of an image file, or the error where it cannot be read. A pipe is not waited for."""
    try:
        if isinstance(image, str | os.PathLike) and not stat.S_ISREG(os.stat(image).st_mode):
            return BadImage("The file is not a regular one.")
        return image_bytes(image)
    except VitError as error:
        return error
    except OSError as error:
        return BadImage(f"The file cannot be read: {error.strerror or error}.")


def images_below(folder: Path) -> Iterator[Path]:
    """Yield the image files below a folder, in order, and the folders that cannot be listed. Links to folders are left out."""
    unlisted: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=lambda error: unlisted.append(Path(error.filename))):
        yield from unlisted
        unlisted.clear()
        folders.sort()
        yield from (Path(place, name) for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES)
    yield from unlisted


def _bounded(file: Readable) -> bytes:
    data = file.read(MAX_FILE_BYTES + 1)
    if not isinstance(data, bytes):
        raise TypeError("The file must be opened in binary mode.")
    if len(data) > MAX_FILE_BYTES:
        raise TooLarge(f"The file has more than {MAX_FILE_BYTES} bytes.")
    return data


def _png(image: Savable) -> bytes:
    file = io.BytesIO()
    try:
        image.save(file, "PNG", compress_level=1)
    except OSError:  # PNG has no such colour mode
        file = io.BytesIO()
        image.convert("RGB").save(file, "PNG", compress_level=1)
    return file.getvalue()
