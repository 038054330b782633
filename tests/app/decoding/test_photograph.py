"""Whole photographs in pixels of a fixed shape."""

import numpy as np
import pytest
from PIL import Image

from app.decoding.photograph import (
    MAX_SIDE,
    SHAPE,
    SIZE_SHAPE,
    photograph_decoder,
    read_photograph,
    read_size,
    size_decoder,
)
from app.errors import ServiceError, UndecodableImage, UnsupportedImageFormat
from tests.app.decoding.decoders import as_pixels, decoder, oriented
from tests.support.models import encode, random_image

decode = photograph_decoder(decoder(max_pixels=11_000_000).decode_to_show)


def test_small_image_is_unchanged() -> None:
    image = random_image(0, 40, 36)
    pixels = decode(encode(image))
    assert pixels.shape == SHAPE
    photograph = read_photograph(pixels)
    assert photograph.size == (40, 36)
    np.testing.assert_array_equal(photograph.pixels, as_pixels(image))


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((768, 768), (768, 768)),
        ((1536, 768), (768, 384)),
        ((772, 2000), (296, 768)),
        ((4000, 4), (768, 1)),
        ((4, 4000), (1, 768)),
    ],
)
def test_large_image_is_scaled(size: tuple[int, int], shown: tuple[int, int]) -> None:
    photograph = read_photograph(decode(encode(random_image(1, *size))))
    assert photograph.size == size
    assert photograph.pixels.shape == (3, shown[1], shown[0])
    assert max(shown) == MAX_SIDE


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("size", [(3200, 1600), (1601, 3199), (3200, 3199)])
def test_large_jpeg_is_the_same(size: tuple[int, int], orientation: int) -> None:
    image = random_image(3, 48, 24).resize(size)
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    jpeg = encode(image, "JPEG", quality=95, exif=oriented(orientation))
    photograph = read_photograph(decode(jpeg))
    whole = decoder(max_pixels=11_000_000).decode_whole(jpeg)
    assert photograph.size == whole.size == (size if turns % 2 == 0 else size[::-1])
    scaled = whole.resize(photograph.pixels.shape[:0:-1], Image.Resampling.BICUBIC)
    difference = np.abs(photograph.pixels.astype(int) - as_pixels(scaled))
    assert difference.mean() < 2


def test_image_is_turned_upright() -> None:
    image = random_image(2, 40, 36)
    photograph = read_photograph(decode(encode(image, exif=oriented(6))))
    assert photograph.size == (36, 40)
    np.testing.assert_array_equal(photograph.pixels, np.rot90(as_pixels(image), 3, axes=(1, 2)))


@pytest.mark.parametrize(
    ("image_bytes", "error"), [(b"hello", UnsupportedImageFormat), (encode(random_image(0))[:200], UndecodableImage)]
)
def test_bad_image_is_refused(image_bytes: bytes, error: type[ServiceError]) -> None:
    with pytest.raises(error):
        decode(image_bytes)


@pytest.mark.parametrize("sizes", [(0, 0, 0, 0), (10, 10, 11, 10), (2000, 2000, 769, 10), (10, 10, 10, 0)])
def test_contradiction_is_refused(sizes: tuple[int, ...]) -> None:
    pixels = np.zeros(SHAPE, np.uint8)
    pixels[0, MAX_SIDE, :16] = np.frombuffer(np.array(sizes, "<u4").tobytes(), np.uint8)
    with pytest.raises(ValueError, match="contradict"):
        read_photograph(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_size_is_that_of_the_upright_image(image_format: str, orientation: int) -> None:
    image = encode(random_image(5, 40, 36), image_format, exif=oriented(orientation))
    formats = decoder(formats=frozenset({image_format.lower()}))
    pixels = size_decoder(formats.upright_size)(image)
    assert pixels.shape == SIZE_SHAPE
    assert read_size(pixels) == formats.decode_whole(image).size == formats.decode_to_show(image, 768)[1]


def test_size_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="no pixels"):
        read_size(np.zeros(SIZE_SHAPE, np.uint8))
