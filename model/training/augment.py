"""Augmentation: random crops, flips, colours and sharpness of a training image."""

import random

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor


def random_view(image: Image.Image, size: int, rng: random.Random) -> Tensor:
    """Crop, flip, recolour and sharpen or blur at random: an RGB image -> (3, size, size) uint8."""
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=_random_box(*image.size, rng))
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhancer(image).enhance(rng.uniform(0.7, 1.3))
    if rng.random() < 0.5:  # small training images are soft, downscaled photographs are sharp
        image = ImageEnhance.Sharpness(image).enhance(rng.uniform(0.0, 4.0))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (H, W, C) -> (C, H, W)


def _random_box(width: int, height: int, rng: random.Random) -> tuple[float, float, float, float]:
    """Return a crop of 35 to 100 % of the area with a ratio of 3:4 to 4:3 (Szegedy et al., https://arxiv.org/abs/1409.4842)."""
    area = width * height * rng.uniform(0.35, 1.0)
    ratio = rng.uniform(0.75, 4 / 3)
    crop_width, crop_height = min(width, (area * ratio) ** 0.5), min(height, (area / ratio) ** 0.5)
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    return left, top, left + crop_width, top + crop_height
