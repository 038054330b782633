"""Decoders for tests, and the pixels and errors that they should give."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from app.decoding.image import ImageDecoder
from app.errors import ServiceError
from app.pixels import Pixels
from model.preprocessing import Preprocessing

HALF = (0.5, 0.5, 0.5)
UNCHANGED = Preprocessing(None, None, "bicubic", HALF, HALF)
DEFAULT_FORMATS = frozenset({"jpeg", "png", "webp", "gif", "bmp"})


def decoder(preprocessing: Preprocessing = UNCHANGED, **options: Any) -> ImageDecoder:
    limits = {"formats": DEFAULT_FORMATS, "max_bytes": 10_000_000, "max_pixels": 1_000_000}
    return ImageDecoder(preprocessing, **{**limits, "exact": True, **options})


def refused(image_bytes: bytes, error: type[ServiceError], **options: Any) -> str:
    """Return the message of the error that an image is refused with."""
    with pytest.raises(error) as caught:
        decoder(**options).decode(image_bytes)
    assert "0x" not in str(caught.value)
    return str(caught.value)


def as_pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def oriented(orientation: int) -> Image.Exif:
    """Return EXIF data with this orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif
