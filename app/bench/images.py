"""Images to send: those of a user, or generated ones of a usual size."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from app.errors import StartError

GENERATED = "16 generated JPEGs of 500 x 375 pixels"

_COUNT, _WIDTH, _HEIGHT = 16, 500, 375
_GRAIN = 8.0
"""Standard deviation of the noise, in steps of 255: without it, images decode faster than photographs."""

_MAX_BYTES = 128 * 2**20


def generate() -> list[bytes]:
    """Return JPEGs of soft colours with grain, about 100 KB each, identical in every run."""
    return [_jpeg(np.random.default_rng(seed)) for seed in range(_COUNT)]


def _jpeg(rng: np.random.Generator) -> bytes:
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC), np.float32)
    pixels = soft + rng.normal(0, _GRAIN, soft.shape).astype(np.float32)
    encoded = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


def read(files: Iterable[Path]) -> tuple[list[bytes], int]:
    """Return the bytes of the files that fit into 128 MiB together, and the number of those left out.

    A file that does not fit beside those before it is left out alone.

    Raises:
        OSError: a file cannot be read.
        StartError: not even one fits.
    """
    images: list[bytes] = []
    left, left_out = _MAX_BYTES, 0
    for file in files:
        if file.stat().st_size > left:
            left_out += 1
            continue
        images.append(file.read_bytes())
        left -= len(images[-1])
    if not images:
        raise StartError("there are no images in this folder, or each has more than 128 MiB")
    return images, left_out
