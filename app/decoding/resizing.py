"""Resizing of decoded JPEGs with Pillow's filters, vectorised."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.decoding.size import Size
from app.pixels import Pixels

try:
    from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
except ImportError:  # it has no wheel for Linux on ARM
    _options = {}
else:
    _filters = {"bilinear": FilterType.bilinear, "bicubic": FilterType.catmull_rom}
    _options = {mode: ResizeOptions(ResizeAlg.convolution(kind), use_alpha=False) for mode, kind in _filters.items()}


def resize(pixels: NDArray[np.uint8], full: Size, mode: str) -> Pixels:
    """Resize with antialiasing: (H, W, 3) -> (3, *full), within 2 of 255 of Pillow's pixels.

    Args:
        pixels: as libjpeg-turbo gives them.
        full: (width, height) of the result.
        mode: `bilinear` or `bicubic`.
    """
    if not _options:
        return np.asarray(Image.fromarray(pixels).resize(full, Image.Resampling[mode.upper()])).transpose(2, 0, 1)
    height, width, _ = pixels.shape
    source = ImageData(width, height, PixelType.U8x3, pixels.tobytes())
    narrow, result = ImageData(full[0], height, PixelType.U8x3), ImageData(*full, PixelType.U8x3)
    resizer = Resizer()  # of this call alone: several threads may decode
    # rows first, as Pillow does: in one call it would be columns, and one pixel in six would be another
    resizer.resize(source, narrow, _options[mode])
    resizer.resize(narrow, result, _options[mode])
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(full[1], full[0], 3).transpose(2, 0, 1)
