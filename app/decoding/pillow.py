"""Pillow on untrusted bytes: open, load, turn upright, and convert to RGB.

Its own calls alone may turn an exception into "truncated or corrupt" (`_pillow_errors`); an exception in our code passes.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from app.decoding.formats import pillow_name
from app.errors import ImageTooLarge, UndecodableImage

Image.MAX_IMAGE_PIXELS = None  # the service's own limit is checked before decoding; Pillow's would only warn
warnings.filterwarnings("ignore", module=r"PIL\.")  # about defects of a client's image

_STRIP_PIXELS = 1 << 20
"""Pixels that are converted at once, so that no step of a conversion holds a second copy of a large image."""

_EXIF_ORIENTATION = 0x0112

_TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Turns that make a stored image stand upright, by orientation (EXIF 2.32, tag 274)."""

_STRAIGHT_ALPHA = {"RGBa": "RGBA", "La": "LA"}
"""Modes whose colours are stored multiplied by their alpha, and the modes without that."""

_TIFF_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"})
"""Modes of a TIFF whose levels have a fixed meaning."""


def open_image(image_bytes: bytes, image_format: str) -> Image.Image:
    """Open an image as this format and no other.

    Raises:
        UndecodableImage: it cannot be opened, or is a TIFF of a mode that is not decoded.
    """
    name = pillow_name(image_format)  # may fail by a broken installation, which is not the image's fault
    with _pillow_errors():
        image: Image.Image = Image.open(io.BytesIO(image_bytes), formats=[name])
    if image_format == "avif":
        image.info.pop("xmp", None)  # only the container's own turns count (ISO/IEC 23008-12, 6.5.10)
    return image


def check_tiff_mode(image: Image.Image) -> None:
    """Raise if the levels of an opened TIFF have no fixed meaning.

    Raises:
        UndecodableImage: they have none.
    """
    if image.mode not in _TIFF_MODES:
        raise UndecodableImage("The TIFF has samples of a kind that is not decoded.")


def upright_rgb(image: Image.Image) -> Image.Image:
    """Load an opened image, turn it upright, and convert it to RGB.

    Raises:
        UndecodableImage: it is truncated or corrupt.
    """
    with _pillow_errors():
        image.load()  # before the metadata: PNG's getexif loads too, and its error would pass for broken EXIF
    return _to_rgb(_upright(image))


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8; 1 is upright."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # broken metadata says nothing about the pixels
        return 1
    return value if isinstance(value, int) and value in _TURN_UPRIGHT else 1


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Turn any exception of Pillow into a sentence for the client; to be put around its calls alone."""
    try:
        yield
    except MemoryError:
        raise ImageTooLarge("The image does not fit into memory.") from None
    except Exception as error:
        raise UndecodableImage("The image is truncated or corrupt.") from error


def _upright(image: Image.Image) -> Image.Image:
    method = _TURN_UPRIGHT.get(orientation(image))
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: transparency becomes white, and 16-bit grey is scaled to 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    converted = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        converted.paste(_strip_to_rgb(strip), (0, top))
    return converted


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    transparent = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint32)
        grey = ((levels + 128) // 257).astype(np.uint8)
        if transparent is not None:
            grey[levels == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in _STRAIGHT_ALPHA:
        image = _convert(image, _STRAIGHT_ALPHA[image.mode])
    if "A" in image.getbands() or transparent is not None:
        image = _convert(image, "RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return _convert(image, "RGB")


def _convert(image: Image.Image, mode: str) -> Image.Image:
    with _pillow_errors():  # Pillow reads a palette and its transparency only here
        return image.convert(mode)
