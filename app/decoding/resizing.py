"""Resizing of decoded JPEGs by torch, which the processes that decode import, and the service does not."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from app.decoding.size import Size
from app.pixels import Pixels


def resize(pixels: NDArray[np.uint8], full: Size, mode: str) -> Pixels:
    """Resize with antialiasing: (H, W, 3) -> (3, *full).

    Args:
        pixels: as libjpeg-turbo gives them.
        full: (width, height) of the result.
        mode: `bilinear` or `bicubic`.
    """
    torch.set_num_threads(1)  # holds for the calling thread, which is one of several that decode
    image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    resized: Pixels = F.interpolate(image, size=(full[1], full[0]), mode=mode, antialias=True)[0].numpy()
    return resized
