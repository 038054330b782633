"""The picture: where the colours are, how strong they are, and what the file says."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from app.explaining.overlay import draw_overlay
from app.explaining.question import Box, Overlay

GREY = 120
DARKEST, BRIGHTEST = (13, 8, 135), (240, 249, 33)


def draw(
    relevance: list[list[float]], box: Box, size: tuple[int, int] = (80, 40), opacity: float = 1.0, grey: int = GREY
) -> NDArray[np.uint8]:
    """Return the picture (height, width, 3) over a grey photograph."""
    photograph = np.full((3, size[1], size[0]), grey, np.uint8)
    drawn = draw_overlay(photograph, np.array(relevance, np.float32), Overlay(size, box, opacity), "what it is")
    with Image.open(io.BytesIO(drawn)) as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", size, "RGB")
        return np.asarray(picture)


def test_brightest_colour_is_where_relevance_is() -> None:
    picture = draw([[0, 0, 0, 0], [0, 0, 1, 0]], (0, 0, 80, 40))
    brightness = picture.astype(int).sum(axis=2)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert 20 <= row < 40 and 40 <= column < 60
    np.testing.assert_allclose(picture[35, 49:51], [BRIGHTEST] * 2, atol=12)


def test_colours_grow_lighter_with_relevance() -> None:
    picture = draw([[0, 0.25, 0.5, 0.75, 1]], (0, 0, 80, 40))
    luminance = picture[20].astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(luminance[8:72]) > 0).mean() > 0.9
    assert luminance[72] - luminance[8] > 100


def test_outside_is_darkened_and_uncoloured() -> None:
    picture = draw([[0.0, 1.0], [1.0, 0.0]], (20, 10, 60, 30))
    outside = np.ones((40, 80), bool)
    outside[10:30, 20:60] = False
    assert (picture[outside] == round(GREY * 0.35)).all()
    assert (picture[~outside].std(axis=1) > 5).all()  # no grey is left inside


def test_box_beyond_the_edges_is_cut() -> None:
    whole, cut = draw([[0, 1], [0.5, 0]], (0, 0, 160, 80), size=(160, 80)), draw([[0, 1], [0.5, 0]], (-40, -20, 120, 60))
    np.testing.assert_array_equal(cut, whole[20:60, 40:120])


@pytest.mark.parametrize("opacity", [0.0, 0.5, 1.0])
def test_opacity_mixes_photograph_and_colours(opacity: float) -> None:
    picture = draw([[0.0, 1.0]], (0, 0, 80, 40), opacity=opacity)
    for column, colour, share in ((0, DARKEST, 0.3), (79, BRIGHTEST, 1.0)):
        expected = GREY * (1 - opacity * share) + np.array(colour) * opacity * share
        np.testing.assert_allclose(picture[20, column], expected, atol=1)


def test_equal_relevance_is_all_dark() -> None:
    for value in (0.0, 1.0):
        picture = draw([[value, value]], (0, 0, 80, 40))
        np.testing.assert_allclose(picture, np.broadcast_to(GREY * 0.7 + np.array(DARKEST) * 0.3, picture.shape), atol=1)


def test_one_patch_is_drawn() -> None:
    assert draw([[1.0]], (0, 0, 1, 1), size=(1, 1)).shape == (1, 1, 3)


def test_file_says_what_it_is() -> None:
    photograph = np.zeros((3, 4, 4), np.uint8)
    drawn = draw_overlay(photograph, np.eye(2, dtype=np.float32), Overlay((4, 4), (0, 0, 4, 4), 0.5), "relevance of café")
    with Image.open(io.BytesIO(drawn)) as picture:
        assert picture.info["Description"] == "relevance of café"
