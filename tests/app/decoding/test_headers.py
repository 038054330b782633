"""Headers: the pixels that they state are those that Pillow decodes, whatever is damaged."""

import io
import random
import struct

import pytest
from PIL import Image

from app.decoding.formats import pillow_name
from app.decoding.headers import count_pixels
from app.decoding.headers.jpeg import count_scans
from app.decoding.headers.sniff import sniff_format
from app.decoding.pool.fair_queue import turn_of
from app.errors import UndecodableImage
from tests.support.models import encode, random_image

FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "MPO", "AVIF", pillow_name("heic"), "TIFF"]
HEADER_BYTES = {"AVIF": 320, "HEIF": 460, "TIFF": 200}
MORE_HEADER: dict[str, dict[str, object]] = {"GIF": {"comment": b"hello", "loop": 0}}


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_pillow(image_format: str, mode: str) -> None:
    width, height = (128, 64) if image_format == "HEIF" else (123, 45)  # its encoder pads to whole blocks
    assert count_pixels(encode(random_image(0, width, height).convert(mode), image_format)) == width * height


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"exif": b"Exif\0\0" + bytes(40_000), "icc_profile": bytes(300_000)}]
)
def test_pixels_of_jpeg_with_long_header(options: dict[str, object]) -> None:
    assert count_pixels(encode(random_image(0, 123, 45), "JPEG", **options)) == 123 * 45


@pytest.mark.parametrize("image_format", FORMATS)
def test_damaged_header_is_counted_or_unknown(image_format: str) -> None:
    rng, image = random.Random(0), encode(random_image(1), image_format)
    for length in range(min(len(image), 400)):
        count_pixels(image[:length])
    for _ in range(500):
        damaged = bytearray(image)
        for _ in range(8):
            damaged[rng.randrange(min(len(image), 200))] = rng.randrange(256)
        pixels = count_pixels(bytes(damaged))
        assert pixels is None or pixels >= 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("image_format", FORMATS)
def test_damage_hides_no_pixels_from_the_count(image_format: str) -> None:
    rng, image = random.Random(1), encode(random_image(1), image_format, **MORE_HEADER.get(image_format, {}))
    for _ in range(2000):
        damaged = bytearray(image)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(min(len(image), HEADER_BYTES.get(image_format, 60)))] = rng.choice(
                (0, 1, 2, 0x21, 0x2C, 0x3B, 0x80, rng.randrange(256))
            )
        pixels = count_pixels(bytes(damaged))
        try:
            with Image.open(io.BytesIO(damaged), formats=[image_format]) as opened:
                size = opened.size
        except Exception:  # never decoded, so that its size does not count
            continue
        assert pixels is None or pixels >= size[0] * size[1] or sniff_format(bytes(damaged)) is None


def test_gif_frame_larger_than_its_screen_counts() -> None:
    gif = bytearray(encode(Image.new("P", (700, 500)), "GIF"))
    gif[6:10] = struct.pack("<HH", 1, 1)
    assert Image.open(io.BytesIO(gif)).size == (700, 500)
    assert count_pixels(bytes(gif)) == 700 * 500


def test_gif_with_hidden_frame_is_heavy() -> None:
    gif = encode(Image.new("P", (70, 50)), "GIF", comment=b"a" * 255 * 200)
    assert count_pixels(gif) is None
    assert turn_of(0, gif, None).heavy


def test_any_prefix_of_gif_is_counted_or_unknown() -> None:
    gif = encode(Image.new("P", (70, 50)), "GIF", comment=b"a comment", loop=0)
    assert b"!" in gif
    for length in range(len(gif)):
        assert count_pixels(gif[:length]) in (0, 70 * 50, None)


def test_padding_of_jpeg_is_bounded_as_a_whole() -> None:
    padded = b"\xff\xd8" + (b"\xff" * 60_000 + b"\xe0\0\2") * 3 + encode(random_image(0), "JPEG")[2:]
    assert count_pixels(padded) == 0
    with pytest.raises(UndecodableImage):
        count_scans(padded)


def test_hidden_size_counts_as_heavy() -> None:
    jpeg = encode(random_image(0), "JPEG")
    hidden = jpeg[:2] + b"\xff\xfe\0\2" * 300 + jpeg[2:]  # comments before the size
    assert Image.open(io.BytesIO(hidden)).size == random_image(0).size
    assert count_pixels(hidden) is None
    assert turn_of(0, hidden, None).heavy
