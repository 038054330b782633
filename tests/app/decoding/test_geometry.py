"""The part of an image that the model's input shows, compared with where decoded pixels come from."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from app.decoding.geometry import Geometry
from model.preprocessing import Preprocessing
from tests.app.decoding.decoders import HALF, decoder
from tests.support.models import encode

HOW = {
    "shortest edge, crop": Preprocessing(40, (32, 32), "bicubic", HALF, HALF),
    "shortest edge, crop of the whole edge": Preprocessing(32, (32, 32), "bilinear", HALF, HALF),
    "stretched": Preprocessing((32, 32), None, "bicubic", HALF, HALF),
    "stretched, crop": Preprocessing((48, 40), (32, 32), "bilinear", HALF, HALF),
    "crop larger than the image": Preprocessing(24, (33, 33), "bicubic", HALF, HALF),
    "crop alone": Preprocessing(None, (32, 32), "bicubic", HALF, HALF),
}

every_way = pytest.mark.parametrize("how", HOW)


@every_way
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(20, 160), st.integers(20, 160), st.floats(0, 1), st.floats(0, 1))
def test_bright_spot_is_where_the_box_says(how: str, width: int, height: int, across: float, down: float) -> None:
    preprocessing = HOW[how]
    geometry = Geometry.of((width, height), preprocessing)
    side = geometry.output[0]
    left, top, right, bottom = geometry.source_box((width, height), side)
    x_scale, y_scale = (right - left) / side, (bottom - top) / side
    radius = (math.ceil(x_scale * 1.5), math.ceil(y_scale * 1.5))
    shown = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    margin = (radius[0] + 3 * max(1, x_scale), radius[1] + 3 * max(1, y_scale))  # room for the filter
    room = (shown[2] - shown[0] - 2 * margin[0], shown[3] - shown[1] - 2 * margin[1])
    assume(min(room) >= 0)
    x, y = round(shown[0] + margin[0] + across * room[0]), round(shown[1] + margin[1] + down * room[1])
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y - radius[1] : y + radius[1], x - radius[0] : x + radius[0]] = 255

    seen = decoder(preprocessing).decode(encode(Image.fromarray(pixels)))[0].astype(float)
    total = seen.sum()
    column, row = seen.sum(axis=0) @ (np.arange(side) + 0.5) / total, seen.sum(axis=1) @ (np.arange(side) + 0.5) / total
    assert left + column * x_scale == pytest.approx(x, abs=0.3 * max(1, x_scale))
    assert top + row * y_scale == pytest.approx(y, abs=0.3 * max(1, y_scale))


@pytest.mark.parametrize(
    ("how", "size", "side", "box"),
    [
        ("stretched", (64, 96), 32, (0, 0, 64, 96)),
        ("stretched", (64, 96), 28, (0, 0, 56, 84)),  # a border without a whole patch
        ("shortest edge, crop", (80, 80), 32, (8, 8, 72, 72)),
        ("shortest edge, crop", (160, 80), 32, (48, 8, 112, 72)),
        ("shortest edge, crop of the whole edge", (64, 128), 32, (0, 32, 64, 96)),
        ("crop alone", (100, 32), 32, (34, 0, 66, 32)),
        ("crop alone", (16, 64), 32, (-8, 16, 24, 48)),
    ],
)
def test_box_of_the_first_pixels(how: str, size: tuple[int, int], side: int, box: tuple[float, ...]) -> None:
    assert Geometry.of(size, HOW[how]).source_box(size, side) == pytest.approx(box)
