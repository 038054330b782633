"""Geometry: the size of an image after resizing, and the window of it that the crop keeps."""

import math
from dataclasses import dataclass

import numpy as np

from app.decoding.size import Size, area
from app.pixels import Pixels
from model.preprocessing import Preprocessing

_MAX_CROPPED_AWAY = 4
"""Maximum resized pixels for each one that the crop keeps."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Resize to `full`, keep the window of size `kept` at (`left`, `top`), and centre it in `output`."""

    full: Size
    kept: Size
    left: int
    top: int
    output: Size
    around: Size
    """Black columns on the left and rows on top, where the resized image is smaller than the crop."""

    @classmethod
    def of(cls, size: Size, preprocessing: Preprocessing) -> "Geometry":
        """Compute sizes as transformers' processors and timm's and torchvision's transforms do."""
        full = _resized(size, preprocessing.resize)
        output = full if preprocessing.crop is None else (preprocessing.crop[1], preprocessing.crop[0])
        kept = (min(full[0], output[0]), min(full[1], output[1]))
        left, top = (_margin(outer - inner, preprocessing.crop_rounding) for outer, inner in zip(full, kept, strict=True))
        round_around = math.ceil if preprocessing.crop_rounding == "down" else math.floor
        around = (round_around((output[0] - kept[0]) / 2), round_around((output[1] - kept[1]) / 2))
        return cls(full, kept, left, top, output, around)

    def source_box(self, size: Size, side: int) -> tuple[float, float, float, float]:
        """Return what part of the image the first `side` rows and columns of the output show.

        Args:
            size: (width, height) of the image.
            side: pixels of the output, from its top left corner.

        Returns:
            Left, top, right and bottom in pixels of the image; beyond its edges where the crop is larger than the image.
        """
        x_scale, y_scale = size[0] / self.full[0], size[1] / self.full[1]
        left, top = (start - around for start, around in zip((self.left, self.top), self.around, strict=True))
        return (left * x_scale, top * y_scale, (left + side) * x_scale, (top + side) * y_scale)

    @property
    def is_wasteful(self) -> bool:
        """True if the crop keeps little of the resized image: one that is a pixel wide becomes millions high."""
        return area(self.full) > _MAX_CROPPED_AWAY * area(self.kept)

    def crop(self, pixels: Pixels) -> Pixels:
        """(C, *full) -> (C, *output)."""
        return self.centre(pixels[:, self.top : self.top + self.kept[1], self.left : self.left + self.kept[0]])

    def centre(self, pixels: Pixels) -> Pixels:
        """(C, *kept) -> (C, *output), contiguous."""
        if self.kept == self.output:
            return np.ascontiguousarray(pixels)
        canvas = np.zeros((pixels.shape[0], self.output[1], self.output[0]), np.uint8)
        left, top = self.around
        canvas[:, top : top + self.kept[1], left : left + self.kept[0]] = pixels
        return canvas


def _margin(difference: int, rounding: str) -> int:
    """Return the pixels to cut off before the crop, of `difference` in all."""
    return difference // 2 if rounding == "down" else round(difference / 2)


def _resized(size: Size, resize: int | tuple[int, int] | None) -> Size:
    """Return the size of the whole image after resizing, rounded as transformers does."""
    match resize:
        case None:
            return size
        case (height, width):
            return (width, height)
        case edge:
            width, height = size
            return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)
