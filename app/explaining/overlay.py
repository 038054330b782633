"""Overlay: the relevance of patches as colours over the photograph."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from app.explaining.question import Box, Overlay
from app.pixels import Pixels

_COLOURS = np.array([(13, 8, 135), (156, 23, 158), (237, 121, 83), (253, 202, 38), (240, 249, 33)], np.float32)
"""From little to much relevance, in equal steps: the colour map "plasma" of matplotlib (CC0), which grows evenly lighter."""

_LEAST_OPACITY = 0.3
"""Share of the opacity where relevance is least, so that the photograph is seen."""

_OUTSIDE = 0.35
"""Brightness of what the crop cut off, which the model has not seen."""


def draw_overlay(photograph: Pixels, relevance: NDArray[np.float32], overlay: Overlay, description: str) -> bytes:
    """Draw relevance over a photograph, as a PNG.

    Args:
        photograph: (3, h, w).
        relevance: (rows, columns); its least and its largest get the ends of the colours.
        overlay: the place and the opacity of the colours.
        description: text for the file.
    """
    height, width = photograph.shape[1:]
    shown = photograph.transpose(1, 2, 0).astype(np.float32)
    heat, seen = _stretched(_full_range(relevance), overlay.box, (width, height))
    position = heat * (len(_COLOURS) - 1)
    below = np.minimum(position.astype(int), len(_COLOURS) - 2)
    share = (position - below)[..., None]
    colours = _COLOURS[below] * (1 - share) + _COLOURS[below + 1] * share
    opacity = overlay.opacity * (_LEAST_OPACITY + (1 - _LEAST_OPACITY) * heat[..., None])
    blended = np.where(seen[..., None], shown * (1 - opacity) + colours * opacity, shown * _OUTSIDE)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("Description", description)
    file = io.BytesIO()
    Image.fromarray(blended.round().astype(np.uint8)).save(file, "PNG", pnginfo=text)
    return file.getvalue()


def _full_range(relevance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale relevance so that the least is 0 and the largest 1; all the same becomes 0."""
    least, largest = relevance.min(), relevance.max()
    scaled: NDArray[np.float32] = (relevance - least) / max(largest - least, np.finfo(np.float32).tiny)
    return scaled


def _stretched(
    relevance: NDArray[np.float32], box: Box, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return relevance for each pixel of the photograph, and which of them the patches cover: two (height, width)."""
    left, top, right, bottom = box
    columns = (np.arange(size[0]) + 0.5 - left) / (right - left)
    rows = (np.arange(size[1]) + 0.5 - top) / (bottom - top)
    inside_columns, inside_rows = (columns >= 0) & (columns < 1), (rows >= 0) & (rows < 1)
    by_row = _interpolated(relevance, rows)
    return _interpolated(by_row.T, columns).T, inside_rows[:, None] & inside_columns[None, :]


def _interpolated(values: NDArray[np.float32], places: NDArray[Any]) -> NDArray[np.float32]:
    """Interpolate along the first axis, linearly between the centres of its cells; `places` are shares of its length."""
    count = len(values)
    position = np.clip(places * count - 0.5, 0, count - 1)
    below = np.minimum(position.astype(int), max(0, count - 2))
    share = (position - below)[:, None].astype(np.float32)
    between: NDArray[np.float32] = values[below] * (1 - share) + values[np.minimum(below + 1, count - 1)] * share
    return between
