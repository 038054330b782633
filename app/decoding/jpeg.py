"""The fast way from a JPEG to pixels, which leaves what it cannot do to Pillow.

libjpeg-turbo decodes without Pillow's copies, and `resizing.py` resizes with the same filters, vectorised. With `scaled`, the
inverse DCT gives large images at 1/2, 1/4 or 1/8 of their size for a fraction of the work.
"""

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from app.decoding.geometry import Geometry
from app.decoding.resizing import resize
from app.decoding.size import Size
from app.pixels import Pixels
from model.preprocessing import Preprocessing

_SCALES = (8, 4, 2)

_MIN_OVERSAMPLING = 4
"""Minimum ratio of a scaled-down side to the resized one: less would lose sharpness that the filter still sees."""


def decode_jpeg(jpeg: bytes, stored: Size, orientation: int, preprocessing: Preprocessing, *, scaled: bool) -> Pixels | None:
    """Decode, turn upright, resize and crop: (3, H, W) uint8; None if Pillow has to.

    Args:
        jpeg: grey or with three colours.
        stored: its size by its header, before it is turned.
        orientation: EXIF's, 1 to 8.
        preprocessing: resize, crop and interpolation.
        scaled: decode at a fraction of the size where enough is left for resizing: faster, with other pixels.
    """
    if preprocessing.interpolation not in ("bilinear", "bicubic"):
        return None
    geometry = Geometry.of(stored if orientation < 5 else (stored[1], stored[0]), preprocessing)
    if geometry.is_wasteful:
        return None
    full = geometry.full if orientation < 5 else (geometry.full[1], geometry.full[0])
    pixels = _decode(jpeg, stored, _scale(stored, full) if scaled else 1)
    if pixels is None:
        return None
    return geometry.crop(_upright(resize(pixels, full, preprocessing.interpolation), orientation))


def _scale(stored: Size, full: Size) -> int:
    """Return by how much an image of size `stored` may be decoded smaller if it is to be resized to `full`."""
    spare = min(stored[0] / full[0], stored[1] / full[1]) / _MIN_OVERSAMPLING
    return next((scale for scale in _SCALES if spare >= scale), 1)


def _decode(jpeg: bytes, stored: Size, scale: int) -> NDArray[np.uint8] | None:
    """JPEG -> RGBX (H, W, 4) uint8, at 1/`scale` of its size; None if it is damaged or of another size: Pillow decides then."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
        if (width, height) != stored:
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            jpeg, "RGBX", min_height=-(-height // scale), min_width=-(-width // scale)
        )
    except ValueError:
        return None
    return pixels


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn (C, H, W) upright (EXIF 2.32, tag 274)."""
    if orientation >= 5:
        pixels = pixels.transpose(0, 2, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, :, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[:, ::-1]
    return pixels
