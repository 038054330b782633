"""Photographs at common upload sizes, downscaled from large ones."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

WIDTHS = (300, 500, 1024, 2048, 4000)
"""Pixels of the longer side: from a thumbnail to the 12 megapixels of a phone."""

_QUALITY = 92
_VIEWS = ((0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.75, 0.75), (0.25, 0.25, 1.0, 1.0), (0.125, 0.0, 0.875, 0.75))
"""Parts of a photograph: left, top, right and bottom as shares of it."""


def sized(folder: Path, width: int, views: int = len(_VIEWS)) -> Iterator[bytes]:
    """Yield JPEGs of this width: `views` parts of each file that is large enough."""
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in (".jpg", ".jpeg", ".png"):
            with Image.open(file) as image:
                yield from _views(image.convert("RGB"), width, _VIEWS[:views])


def random_parts(folder: Path, count: int, longer_side: int = 500) -> list[bytes]:
    """Return JPEGs of `count` parts of all photographs, each a half to all of its sides, the same at every call."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    random = np.random.default_rng(0)
    parts: list[bytes] = []
    for index, file in enumerate(files):
        with Image.open(file) as image:
            photograph = image.convert("RGB")
        for _ in range(count * (index + 1) // len(files) - count * index // len(files)):
            share = random.uniform(0.5, 1)
            left, top = random.uniform(0, 1 - share, 2)
            parts += _views(photograph, longer_side, [(left, top, left + share, top + share)], smaller=True)
    return parts


def _views(
    photograph: Image.Image, width: int, views: Sequence[tuple[float, ...]], *, smaller: bool = False
) -> Iterator[bytes]:
    for left, top, right, bottom in views:
        part = photograph.crop(
            (
                round(left * photograph.width),
                round(top * photograph.height),
                round(right * photograph.width),
                round(bottom * photograph.height),
            )
        )
        if smaller or max(part.size) >= width:
            part.thumbnail((width, width), Image.Resampling.LANCZOS, reducing_gap=None)
            yield _jpeg(part)


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
