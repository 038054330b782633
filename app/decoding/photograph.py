"""Photographs: whole images, upright and small enough to show, or their sizes alone, in pixels of a fixed shape."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from app.decoding import Decode
from app.decoding.size import Size
from app.pixels import Pixels

MAX_SIDE = 768
"""Maximum pixels of a side."""

SHAPE = (3, MAX_SIDE + 1, MAX_SIDE)
"""(C, H, W) of what `photograph_decoder` returns: the photograph at the top left, and a row more with its sizes."""

_SIZES = struct.Struct("<4I")
"""Width and height of the image, and of the photograph."""

_SIZE = struct.Struct("<2I")

SIZE_SHAPE = (1, 1, _SIZE.size)
"""(C, H, W) of what `size_decoder` returns: the bytes of width and height."""


@dataclass(frozen=True, slots=True)
class Photograph:
    """An image that is shown."""

    size: Size
    """(width, height) of the uploaded image, upright."""
    pixels: Pixels
    """(3, h, w), scaled so that no side is longer than `MAX_SIDE`."""


def photograph_decoder(decode_to_show: Callable[[bytes, int], tuple[Image.Image, Size]]) -> Decode:
    """Return a function that decodes to `SHAPE`, given `ImageDecoder.decode_to_show`."""
    return partial(_decode, decode_to_show)


def size_decoder(upright_size: Callable[[bytes], Size]) -> Decode:
    """Return a function that decodes to `SIZE_SHAPE`, given `ImageDecoder.upright_size`."""
    return partial(_decode_size, upright_size)


def read_size(pixels: Pixels) -> Size:
    """Read what the function of `size_decoder` returned: (width, height) of the uploaded image, upright.

    Raises:
        ValueError: a side has no pixels.
    """
    width, height = _SIZE.unpack(pixels.tobytes())
    if not (width and height):
        raise ValueError("an image has no pixels")
    return width, height


def read_photograph(pixels: Pixels) -> Photograph:
    """Read what the function of `photograph_decoder` returned.

    Raises:
        ValueError: its sizes contradict its shape.
    """
    width, height, shown_width, shown_height = _SIZES.unpack(pixels[0, MAX_SIDE, : _SIZES.size].tobytes())
    if not (0 < shown_width <= min(width, MAX_SIDE) and 0 < shown_height <= min(height, MAX_SIDE)):
        raise ValueError("the sizes of a photograph contradict each other")
    return Photograph((width, height), pixels[:, :shown_height, :shown_width])


def _decode(decode_to_show: Callable[[bytes, int], tuple[Image.Image, Size]], image_bytes: bytes) -> Pixels:
    image, size = decode_to_show(image_bytes, MAX_SIDE)
    scale = min(1.0, MAX_SIDE / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    shown = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    pixels = np.zeros(SHAPE, np.uint8)
    pixels[:, :height, :width] = np.asarray(shown).transpose(2, 0, 1)
    pixels[0, MAX_SIDE, : _SIZES.size] = np.frombuffer(_SIZES.pack(*size, width, height), np.uint8)
    return pixels


def _decode_size(upright_size: Callable[[bytes], Size], image_bytes: bytes) -> Pixels:
    return np.frombuffer(_SIZE.pack(*upright_size(image_bytes)), np.uint8).reshape(SIZE_SHAPE)
