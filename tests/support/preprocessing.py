"""Exact pixels of one image by a preprocessing."""

from typing import Any

import numpy as np

from app.decoding.image import ImageDecoder
from model.preprocessing import Preprocessing
from tests.support.models import encode, random_image

IMAGE = random_image(1, 90, 72)


def our_pixels(preprocessing: Preprocessing) -> Any:
    decoder = ImageDecoder(preprocessing, formats=frozenset({"png"}), max_bytes=10**8, max_pixels=10**7, exact=True)
    mean, std = (np.array(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    return (decoder.decode(encode(IMAGE)) * preprocessing.scale - mean) / std
