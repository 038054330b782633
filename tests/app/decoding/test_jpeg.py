"""The fast way from a JPEG to pixels, compared with the exact one."""

from typing import Any

import numpy as np
import pytest

from app.decoding.jpeg import decode_jpeg
from app.errors import UndecodableImage
from app.pixels import Pixels
from model.preprocessing import Interpolation, Preprocessing
from tests.app.decoding.decoders import HALF, decoder, oriented
from tests.support.models import encode, random_image


def preprocessing(
    resize: int | tuple[int, int] | None, crop: tuple[int, int] | None, interpolation: Interpolation = "bicubic"
) -> Preprocessing:
    return Preprocessing(resize, crop, interpolation, HALF, HALF)


def decode(image_bytes: bytes, how: Preprocessing, *, exact: bool, scaled: bool = False) -> Pixels:
    return decoder(how, max_pixels=10**7, exact=exact, scaled=scaled).decode(image_bytes)


def differences(image_bytes: bytes, how: Preprocessing) -> Pixels:
    fast, exact = (decode(image_bytes, how, exact=exact).astype(np.int16) for exact in (False, True))
    assert fast.shape == exact.shape
    return np.abs(fast - exact)


def jpeg(width: int, height: int, mode: str = "RGB", **options: Any) -> bytes:
    return encode(random_image(1, width, height).convert(mode), "JPEG", **{"quality": 90, **options})


@pytest.mark.parametrize(
    "how",
    [
        preprocessing((84, 84), None, "bilinear"),
        preprocessing(96, (84, 84)),
        preprocessing(96, (84, 84), "bilinear"),
        preprocessing(60, (84, 84)),
        preprocessing(None, (50, 50)),
        preprocessing(None, None),
    ],
    ids=lambda how: how.describe().partition(", mean")[0],
)
@pytest.mark.parametrize(("width", "height"), [(100, 100), (163, 131), (131, 163), (84, 84), (40, 48)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_fast_pixels_are_two_steps_away(how: Preprocessing, width: int, height: int, mode: str) -> None:
    assert differences(jpeg(width, height, mode), how).max() <= 2


@pytest.mark.parametrize(
    "options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"quality": 20}, {"keep_rgb": True}]
)
def test_every_jpeg_encoding_is_two_steps_away(options: dict[str, Any]) -> None:
    assert differences(jpeg(150, 120, **options), preprocessing(96, (84, 84))).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", [preprocessing(96, (84, 84)), preprocessing((70, 90), None), preprocessing(60, (80, 80))])
def test_turned_photo_stands_upright(orientation: int, how: Preprocessing) -> None:
    assert differences(jpeg(163, 131, exif=oriented(orientation)), how).max() <= 2


def test_large_image_is_two_steps_away() -> None:
    assert differences(jpeg(1600, 1200), preprocessing(96, (84, 84))).max() <= 2


def test_scaled_decoding_differs_a_little() -> None:
    image_bytes, how = jpeg(1600, 1200), preprocessing(96, (84, 84))
    whole, scaled = (decode(image_bytes, how, exact=False, scaled=scaled).astype(np.int16) for scaled in (False, True))
    assert 0 < np.abs(scaled - whole).mean() < 1


@pytest.mark.parametrize(("width", "height"), [(767, 767), (1600, 760)])
def test_scaled_decoding_keeps_enough_detail(width: int, height: int) -> None:
    image_bytes, how = jpeg(width, height), preprocessing((96, 96), None)
    whole, scaled = (decode(image_bytes, how, exact=False, scaled=scaled) for scaled in (False, True))
    assert (scaled == whole).all()


@pytest.mark.parametrize(
    ("image_bytes", "how"),
    [
        (jpeg(100, 80), preprocessing((50, 50), None, "lanczos")),
        (jpeg(4, 900), preprocessing(96, (84, 84))),
        (jpeg(100, 80, "CMYK"), preprocessing((50, 50), None)),
    ],
    ids=["other-filter", "thin", "cmyk"],
)
def test_jpeg_left_to_pillow_is_exact(image_bytes: bytes, how: Preprocessing) -> None:
    assert not differences(image_bytes, how).any()


def test_damaged_jpeg_is_left_to_pillow() -> None:
    sound, how = jpeg(200, 150), preprocessing((50, 50), None)
    trailing_junk = sound + b"junk" * 100
    assert differences(trailing_junk, how).max() <= 2
    with pytest.raises(UndecodableImage):
        decode(sound[: len(sound) // 2], how, exact=False)


def test_disputed_jpeg_header_is_left_to_pillow() -> None:
    sound = jpeg(200, 150)
    assert decode_jpeg(sound, (201, 150), 1, preprocessing((50, 50), None), scaled=False) is None
