"""Photographs at common upload sizes, downscaled from large ones."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

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


def _views(photograph: Image.Image, width: int, views: Sequence[tuple[float, ...]]) -> Iterator[bytes]:
    for left, top, right, bottom in views:
        part = photograph.crop(
            (
                round(left * photograph.width),
                round(top * photograph.height),
                round(right * photograph.width),
                round(bottom * photograph.height),
            )
        )
        if max(part.size) >= width:
            part.thumbnail((width, width), Image.Resampling.LANCZOS, reducing_gap=None)
            yield _jpeg(part)


def _jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
