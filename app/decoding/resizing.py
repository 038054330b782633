"""Resizing of decoded JPEGs with Pillow's filters, vectorised."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.decoding.size import Size
from app.pixels import Pixels

try:
    from cykooz_resizer import FilterType, ResizeAlg, ResizeOptions, Resizer
except ModuleNotFoundError:  # it has no wheel for Linux on ARM
    _options = {}
else:
    _filters = {"bilinear": FilterType.bilinear, "bicubic": FilterType.catmull_rom}
    _options = {mode: ResizeOptions(ResizeAlg.convolution(kind)) for mode, kind in _filters.items()}

is_vectorised = bool(_options)
"""False where Pillow itself resizes, which takes three to eight times as long."""

_FOUR_CHANNELS = "CMYK"
"""Mode of four channels that are resized alike; of an alpha channel the others would depend."""


def resize(pixels: NDArray[np.uint8], full: Size, mode: str) -> Pixels:
    """Resize with antialiasing: (H, W, 4) -> (3, *full), within 2 of 255 of Pillow's pixels.

    Args:
        pixels: RGBX, contiguous, as libjpeg-turbo gives them. Pillow's images have such pixels, so that none is copied.
        full: (width, height) of the result.
        mode: `bilinear` or `bicubic`.
    """
    height, width, _ = pixels.shape
    image = Image.frombuffer(_FOUR_CHANNELS, (width, height), pixels, "raw", _FOUR_CHANNELS, 0, 1)
    resized = _resized(image, full, mode) if _options else image.resize(full, Image.Resampling[mode.upper()])
    return np.asarray(resized)[:, :, :3].transpose(2, 0, 1)


def _resized(image: Image.Image, full: Size, mode: str) -> Image.Image:
    """Resize rows first, as Pillow does: in one call it would be columns, and one sample in six would be another."""
    resizer = Resizer()  # of this call alone: several threads may decode
    for size in ((full[0], image.height), full):
        resized = Image.new(_FOUR_CHANNELS, size, None)
        resizer.resize_pil(image, resized, _options[mode])
        image = resized
    return image
