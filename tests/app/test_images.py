"""Decoding: right pixels for every kind of picture, against Pillow and transformers, and a clear no to every bad one."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from app.errors import ImageTooLarge, ServiceError, UndecodableImage, UnsupportedImageFormat
from app.images import ImageDecoder, Pixels
from model.preprocessing import Preprocessing, from_hugging_face
from tests.support import encode, random_picture

FORMATS = frozenset({"jpeg", "png", "webp", "gif", "bmp"})
HALF = (0.5, 0.5, 0.5)


def decoder(preprocessing: Preprocessing | None = None, **limits: Any) -> ImageDecoder:
    return ImageDecoder(
        preprocessing or Preprocessing(None, None, "bicubic", HALF, HALF),
        **{"formats": FORMATS, "max_bytes": 10_000_000, "max_pixels": 1_000_000, "exact": True, **limits},
    )


def decode(image_bytes: bytes) -> Pixels:
    return decoder().decode(image_bytes)


def as_pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        pytest.param("JPEG", {"quality": 90}, id="jpeg"),
        pytest.param("JPEG", {"progressive": True}, id="progressive-jpeg"),
        pytest.param("PNG", {}, id="png"),
        pytest.param("WEBP", {"lossless": True}, id="webp"),
        pytest.param("GIF", {}, id="gif"),
        pytest.param("BMP", {}, id="bmp"),
    ],
)
def test_every_format_gives_the_pixels_that_pillow_gives(image_format: str, options: dict[str, Any]) -> None:
    image_bytes = encode(random_picture(0), image_format, **options)
    with Image.open(io.BytesIO(image_bytes)) as image:
        assert np.array_equal(decode(image_bytes), as_pixels(image))


def test_only_the_first_frame_counts() -> None:
    first, second = random_picture(1), random_picture(2)
    animated = encode(first, "WEBP", save_all=True, append_images=[second], lossless=True)
    assert np.array_equal(decode(animated), as_pixels(first))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_stands_upright(orientation: int) -> None:
    upright = random_picture(3)
    turn_back = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
                 Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE,
                 Image.Transpose.ROTATE_270][orientation - 1]  # fmt: skip
    stored = upright if turn_back is None else upright.transpose(turn_back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encode(stored, "PNG", exif=exif)), as_pixels(upright))


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_an_orientation_that_means_nothing_changes_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decode(encode(random_picture(4), "PNG", exif=exif)), as_pixels(random_picture(4)))


def test_transparency_becomes_white() -> None:
    image = Image.new("RGBA", (2, 1))
    image.putdata([(200, 100, 50, 255), (200, 100, 50, 0)])
    assert decode(encode(image)).transpose(1, 2, 0).tolist() == [[[200, 100, 50], [255, 255, 255]]]


def test_a_palette_with_a_transparent_colour_becomes_white_there() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    pixels = decode(encode(image, "PNG", transparency=1))
    assert pixels.transpose(1, 2, 0).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_grey_of_sixteen_bits_is_scaled_and_not_clipped() -> None:
    levels = np.array([[0, 257, 256 * 128, 65_535]], np.uint16)
    assert decode(encode(Image.fromarray(levels))).tolist() == [[[0, 1, 128, 255]]] * 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = random_picture(5).convert(mode)
    image_bytes = encode(image, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    with Image.open(io.BytesIO(image_bytes)) as stored:
        assert np.array_equal(decode(image_bytes), as_pixels(stored))


PROCESSORS = [
    pytest.param(ViTImageProcessorPil, {"size": {"height": 32, "width": 32}}, id="vit"),
    pytest.param(ViTImageProcessorPil, {"size": {"height": 48, "width": 32}, "resample": 3}, id="vit-not-square"),
    pytest.param(BitImageProcessorPil, {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}, id="bit"),
    pytest.param(
        BitImageProcessorPil, {"size": {"shortest_edge": 20}, "crop_size": {"height": 28, "width": 28}}, id="bit-pads"
    ),
    pytest.param(BitImageProcessorPil, {"do_resize": False, "crop_size": {"height": 31, "width": 28}}, id="bit-crops-only"),
]


@pytest.mark.parametrize(("processor", "options"), PROCESSORS)
@pytest.mark.parametrize("size", [(640, 480), (333, 500), (29, 31), (16, 90), (1, 1), (300, 7)], ids=str)
def test_pixels_equal_those_of_transformers(processor: Any, options: dict[str, Any], size: tuple[int, int]) -> None:
    image = random_picture(6, max(4, size[0]), max(4, size[1])).resize(size)
    reference = processor(**options, do_rescale=False, do_normalize=False, do_convert_rgb=True)
    expected = reference(image, return_tensors="np")["pixel_values"][0]
    preprocessing = from_hugging_face({"image_processor_type": processor.__name__, **options})

    pixels = decoder(preprocessing).decode(encode(image))

    assert pixels.shape == expected.shape
    thin = max(size) > 4 * min(size)  # resized in one step with the crop, which rounds in another order
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= (1 if thin else 0)


def test_a_thin_picture_is_not_blown_up() -> None:
    preprocessing = Preprocessing(256, (224, 224), "bicubic", HALF, HALF)  # 256 x 256,000,000 pixels, all at once
    assert decoder(preprocessing).decode(encode(Image.new("L", (1, 1_000_000)))).shape == (3, 224, 224)


def bad(image_bytes: bytes, error: type[ServiceError], **limits: Any) -> str:
    with pytest.raises(error) as caught:
        decoder(**limits).decode(image_bytes)
    assert "0x" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"%PDF-1.7",
        b"<svg/>",
        b"II*\0" + b"\0" * 100,
        b"\xff\xd8",
        b"RIFF1234WAVE",
        b"BMW is a car, not a bitmap",
    ],
)
def test_what_is_no_image_is_told_so(content: bytes) -> None:
    assert "send one of: bmp, gif, jpeg, png, webp" in bad(content, UnsupportedImageFormat)


def test_a_format_that_is_not_enabled_is_told_so() -> None:
    message = bad(encode(random_picture(0), "GIF"), UnsupportedImageFormat, formats=frozenset({"jpeg"}))
    assert message == "gif images are not enabled; send one of: jpeg."


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_truncated_picture_is_undecodable(image_format: str) -> None:
    image_bytes = encode(random_picture(7, 200, 200), image_format)
    for share in (0.02, 0.5, 0.9):
        bad(image_bytes[: max(16, int(len(image_bytes) * share))], UndecodableImage)


def test_a_corrupt_picture_is_undecodable() -> None:
    image_bytes = bytearray(encode(random_picture(8)))
    start = image_bytes.index(b"IDAT") + 100
    image_bytes[start : start + 40] = bytes(40)
    bad(bytes(image_bytes), UndecodableImage)


def test_too_many_bytes_are_refused() -> None:
    image_bytes = encode(random_picture(9))
    size = len(image_bytes)
    assert decoder(max_bytes=size).decode(image_bytes).shape == (3, 36, 40)
    assert f"{size} bytes; at most {size - 1}" in bad(image_bytes, ImageTooLarge, max_bytes=size - 1)


def test_too_many_pixels_are_refused() -> None:
    image_bytes = encode(random_picture(9))
    assert decoder(max_pixels=36 * 40).decode(image_bytes).shape == (3, 36, 40)
    assert "40 x 36 pixels; at most 1439" in bad(image_bytes, ImageTooLarge, max_pixels=36 * 40 - 1)


def test_a_pixel_bomb_is_refused_by_its_header_alone() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    assert "100000 x 100000" in bad(png, ImageTooLarge)


def test_a_scan_bomb_is_refused() -> None:
    image_bytes = encode(random_picture(10), "JPEG", progressive=True)
    first_scan = image_bytes.rindex(b"\xff\xda")
    bomb = image_bytes[:-2] + image_bytes[first_scan:-2] * 100 + image_bytes[-2:]
    assert "more than 100 scans" in bad(bomb, UndecodableImage)


def test_what_follows_a_jpeg_is_nobodys_business() -> None:
    image_bytes = encode(random_picture(10), "JPEG", progressive=True)
    motion_photo = image_bytes + b"\xff\xda" * 500
    assert np.array_equal(decode(motion_photo), decode(image_bytes))


@given(data=st.data(), image_format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]))
@settings(max_examples=200, deadline=None)
def test_flipped_bytes_never_raise_anything_but_our_own_errors(data: st.DataObject, image_format: str) -> None:
    image_bytes = bytearray(encode(random_picture(11), image_format))
    for _ in range(data.draw(st.integers(1, 8))):
        image_bytes[data.draw(st.integers(0, len(image_bytes) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(image_bytes))
    except ServiceError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[0] == 3
