"""ImageDecoder: the pixels of Pillow and transformers for every kind of image, and a clear error for every bad one."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.MpoImagePlugin import MpoImageFile
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from app.decoding.headers import webp
from app.errors import ImageTooLarge, ServiceError, UndecodableImage, UnsupportedImageFormat
from model.preprocessing import Preprocessing, from_hugging_face
from tests.app.decoding.decoders import HALF, as_pixels, decoder, oriented, refused
from tests.support.models import encode, random_image

decode = decoder().decode


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: bytes, size: tuple[int, int], *, interlaced: bool = False, before: bytes = b"") -> bytes:
    """Make an 8-bit grey PNG of rows that begin with their filter, with the chunks `before` the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


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
def test_pixels_equal_pillows(image_format: str, options: dict[str, Any]) -> None:
    image_bytes = encode(random_image(0), image_format, **options)
    with Image.open(io.BytesIO(image_bytes)) as image:
        assert np.array_equal(decode(image_bytes), as_pixels(image))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_photo_stands_upright(orientation: int) -> None:
    upright = random_image(3)
    turn_back = [None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
                 Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_90, Image.Transpose.TRANSVERSE,
                 Image.Transpose.ROTATE_270][orientation - 1]  # fmt: skip
    stored = upright if turn_back is None else upright.transpose(turn_back)
    assert np.array_equal(decode(encode(stored, "PNG", exif=oriented(orientation))), as_pixels(upright))


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_unknown_orientation_is_ignored(orientation: int) -> None:
    turned = encode(random_image(4), "PNG", exif=oriented(orientation))
    assert np.array_equal(decode(turned), as_pixels(random_image(4)))


def test_transparency_becomes_white() -> None:
    image = Image.new("RGBA", (2, 1))
    image.putdata([(200, 100, 50, 255), (200, 100, 50, 0)])
    assert decode(encode(image)).transpose(1, 2, 0).tolist() == [[[200, 100, 50], [255, 255, 255]]]


def test_transparent_palette_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    pixels = decode(encode(image, "PNG", transparency=1))
    assert pixels.transpose(1, 2, 0).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize(
    "image_bytes",
    [
        pytest.param(encode(Image.fromarray(np.arange(0, 65_536, 64).astype(np.uint16).reshape(32, 32))), id="16-bit-grey"),
        pytest.param(encode(random_image(2).quantize(7), transparency=3), id="palette-with-transparency"),
        pytest.param(encode(random_image(3).convert("RGBA").rotate(30)), id="alpha"),
        pytest.param(encode(random_image(4).convert("CMYK"), "JPEG"), id="cmyk"),
        pytest.param(encode(random_image(1), "JPEG", exif=oriented(6)), id="turned"),
    ],
)
def test_training_sees_the_served_pixels(image_bytes: bytes) -> None:
    whole = decoder().decode_whole(image_bytes)
    assert whole.mode == "RGB"
    np.testing.assert_array_equal(as_pixels(whole), decode(image_bytes))


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 257, 256 * 128, 65_535]], np.uint16)
    assert decode(encode(Image.fromarray(levels))).tolist() == [[[0, 1, 128, 255]]] * 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = random_image(5).convert(mode)
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
    image = random_image(6, max(4, size[0]), max(4, size[1])).resize(size)
    reference = processor(**options, do_rescale=False, do_normalize=False, do_convert_rgb=True)
    expected = reference(image, return_tensors="np")["pixel_values"][0]
    preprocessing = from_hugging_face({"image_processor_type": processor.__name__, **options})

    pixels = decoder(preprocessing).decode(encode(image))

    assert pixels.shape == expected.shape
    thin = max(size) > 4 * min(size)  # resized in one step with the crop, which rounds in another order
    assert np.abs(pixels.astype(int) - expected.astype(int)).max() <= (1 if thin else 0)


def test_thin_image_is_cropped_before_resize() -> None:
    preprocessing = Preprocessing(256, (224, 224), "bicubic", HALF, HALF)  # resized as a whole: 256 x 16,776,960 pixels
    assert decoder(preprocessing).decode(encode(Image.new("L", (1, 65_535)))).shape == (3, 224, 224)


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
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"8BPS\0\1" + bytes(100),
        b"\0\0\1\0\1\0" + bytes(100),
        b"\0\0\0\x1cftypavif" + bytes(100),
        b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100),
        b"PK\3\4" + bytes(100),
    ],
)
def test_no_image_is_415(content: bytes) -> None:
    assert "send one of: bmp, gif, jpeg, png, webp" in refused(content, UnsupportedImageFormat)


def test_first_bytes_tell_a_polyglot() -> None:
    image_bytes = encode(random_image(0))
    archive = b"PK\3\4" + bytes(26)
    assert np.array_equal(decode(image_bytes + archive), decode(image_bytes))
    refused(archive + image_bytes, UnsupportedImageFormat)


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "GIF", "BMP"])
def test_format_is_never_opened_as_another(image_format: str) -> None:
    refused(b"\x89PNG\r\n\x1a\n" + encode(random_image(0), image_format), UndecodableImage)


def test_disabled_format_is_415() -> None:
    message = refused(encode(random_image(0), "GIF"), UnsupportedImageFormat, formats=frozenset({"jpeg"}))
    assert message.startswith("gif images are not enabled here; send one of: jpeg.")
    assert message.endswith("VIT_IMAGE_FORMATS=jpeg,gif.")


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_truncated_image_is_undecodable(image_format: str) -> None:
    image_bytes = encode(random_image(7, 200, 200), image_format)
    for share in (0.02, 0.5, 0.9):
        refused(image_bytes[: max(16, int(len(image_bytes) * share))], UndecodableImage)


def test_corrupt_image_is_undecodable() -> None:
    image_bytes = bytearray(encode(random_image(8)))
    start = image_bytes.index(b"IDAT") + 100
    image_bytes[start : start + 40] = bytes(40)
    refused(bytes(image_bytes), UndecodableImage)


def test_bytes_over_the_limit_are_413() -> None:
    image_bytes = encode(random_image(9))
    size = len(image_bytes)
    assert decoder(max_bytes=size).decode(image_bytes).shape == (3, 36, 40)
    assert f"{size} bytes; at most {size - 1}" in refused(image_bytes, ImageTooLarge, max_bytes=size - 1)


def test_pixels_over_the_limit_are_413() -> None:
    image_bytes = encode(random_image(9))
    assert decoder(max_pixels=36 * 40).decode(image_bytes).shape == (3, 36, 40)
    assert "40 x 36 pixels; at most 1439" in refused(image_bytes, ImageTooLarge, max_pixels=36 * 40 - 1)


def test_pixel_bomb_is_refused_by_header() -> None:
    assert "100000 x 100000" in refused(png(b"", (100_000, 100_000)), ImageTooLarge)


def with_scans(jpeg: bytes, more: int) -> bytes:
    """Repeat the last scan of a progressive JPEG."""
    last_scan = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last_scan:-2] * more + jpeg[-2:]


def test_scan_bomb_is_refused() -> None:
    bomb = with_scans(encode(random_image(10), "JPEG", progressive=True), 100)
    assert "more than 100 scans" in refused(bomb, UndecodableImage)


def test_large_image_may_have_fewer_scans() -> None:
    image_bytes = with_scans(encode(random_image(10), "JPEG", progressive=True), 30)
    assert decoder(max_pixels=2 * 40 * 36).decode(image_bytes).shape == (3, 36, 40)
    assert "40 scans, too many for its size" in refused(image_bytes, UndecodableImage, max_pixels=40 * 36)


def test_jpeg_behind_stray_bytes_is_refused() -> None:
    image_bytes = encode(random_image(10), "JPEG")
    assert np.array_equal(decode(image_bytes[:2] + b"\xff" * 1000 + image_bytes[2:]), decode(image_bytes))
    refused(image_bytes[:2] + b"\xff" * 100_000 + image_bytes[2:], UndecodableImage)


def test_one_pixel_wide_bomb_is_refused() -> None:
    assert "1 x 40000000 pixels" in refused(png(b"\0", (1, 40_000_000)), ImageTooLarge, max_pixels=50_000_000)


def test_webp_canvas_bomb_is_refused_by_header(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = {"save_all": True, "append_images": [random_image(2)], "lossless": True}
    webp = bytearray(encode(random_image(1), "WEBP", **frames))
    webp[24:30] = (16_382).to_bytes(3, "little") * 2
    monkeypatch.setattr(Image, "open", None)
    assert "16383 x 16383" in refused(bytes(webp), ImageTooLarge)


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": False}, {"lossless": True, "exact": True}])
def test_webp_size_equals_pillows(options: dict[str, Any]) -> None:
    assert webp.size(encode(random_image(1, 44, 36), "WEBP", **options)) == (44, 36)
    assert webp.size(encode(random_image(1, 44, 36).convert("RGBA"), "WEBP", **options)) == (44, 36)
    assert webp.size(b"RIFF\0\0\0\0WEBPVP8X") is None


def test_data_behind_a_jpeg_is_ignored() -> None:
    image_bytes = encode(random_image(10), "JPEG", progressive=True)
    motion_photo = image_bytes + b"\xff\xda" * 500
    assert np.array_equal(decode(motion_photo), decode(image_bytes))


GREY_ROWS = b"\0\x0a\x14" + b"\0\x1e\x28"
GREY_PIXELS = [[[10, 20], [30, 40]]] * 3


def test_png_profiles_are_not_unpacked() -> None:
    profile = chunk(b"iCCP", b"a profile\0\0" + zlib.compress(bytes(2_000_000)))  # more than Pillow accepts
    assert decode(png(GREY_ROWS, (2, 2), before=profile * 3)).tolist() == GREY_PIXELS


def test_png_text_bomb_is_refused() -> None:
    refused(png(GREY_ROWS, (2, 2), before=chunk(b"zTXt", b"a text\0\0" + zlib.compress(bytes(20_000_000)))), UndecodableImage)


def test_png_chunk_flood_is_refused() -> None:
    assert decode(png(GREY_ROWS, (2, 2), before=chunk(b"juNk", b"") * 100)).tolist() == GREY_PIXELS
    assert "more than 10000 chunks" in refused(png(GREY_ROWS, (2, 2), before=chunk(b"juNk", b"") * 10_000), UndecodableImage)


def test_interlaced_png_equals_a_plain_one() -> None:
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]  # Adam7
    rows = b"".join(b"\0" + row.tobytes() for top, left, y, x in passes for row in levels[top::y, left::x])
    assert decode(png(rows, (8, 8), interlaced=True)).tolist() == [levels.tolist()] * 3


def test_run_length_encoded_bmp() -> None:
    palette, runs = bytes([0, 0, 200, 0, 0, 100, 0, 0]), bytes([2, 0, 1, 1, 0, 0, 3, 1, 0, 1])  # from the bottom up, as BGR
    header = struct.pack("<IiiHHIIiiII", 40, 3, 2, 1, 8, 1, len(runs), 0, 0, 2, 0)
    bitmap = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 8) + header + palette + runs
    red, green = [200, 0, 0], [0, 100, 0]
    assert decode(bitmap).transpose(1, 2, 0).tolist() == [[green] * 3, [red, red, green]]


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "WEBP", "MPO"])
def test_animation_decodes_first_frame_only(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (random_image(seed).quantize(64).convert("RGB") for seed in (1, 2))
    options = {"lossless": True} if image_format == "WEBP" else {}
    animated = encode(first, image_format, save_all=True, append_images=[second], **options)
    with Image.open(io.BytesIO(encode(first, "JPEG" if image_format == "MPO" else "PNG"))) as still:
        expected = as_pixels(still)
    Image.init()
    for kind in {factory for factory, _ in Image.OPEN.values() if isinstance(factory, type)} | {MpoImageFile}:
        for name in ("seek", "n_frames", "is_animated"):
            if name in vars(kind):
                monkeypatch.setattr(kind, name, property(lambda _: pytest.fail("another frame was read")))
    assert np.array_equal(decode(animated), expected)


def without_adobe_marker(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big") :]


def adobe_transform(jpeg: bytes, transform: int) -> bytes:
    at = jpeg.index(b"Adobe") + 11
    return jpeg[:at] + bytes([transform]) + jpeg[at + 1 :]


@pytest.mark.parametrize("change", [lambda jpeg: jpeg, without_adobe_marker], ids=["with-adobe-marker", "without"])
def test_cmyk_jpeg_is_inverted(change: Callable[[bytes], bytes]) -> None:
    # Pillow, and so every library's processor, inverts with or without the marker
    cmyk = encode(Image.new("CMYK", (16, 16), (255, 102, 0, 51)), "JPEG", quality=100)
    assert close(change(cmyk), [0, 122, 204])  # (255 - ink) * (255 - black) / 255


def test_ycck_jpeg_becomes_rgb() -> None:
    stored = Image.new("CMYK", (16, 16), (255 - 150, 255 - 100, 255 - 180, 0))  # Y 150, Cb 100, Cr 180, no black
    ycck = adobe_transform(encode(stored, "JPEG", quality=100), 2)
    assert close(ycck, [255 - 223, 255 - 122, 255 - 100])  # ITU-R BT.601 gives the inks: 150 + 1.402 (180 - 128), ...


def close(image_bytes: bytes, colour: list[int]) -> bool:
    return bool((np.abs(decode(image_bytes).astype(int) - np.array(colour)[:, None, None]) <= 3).all())


def test_transparent_16_bit_grey_becomes_white() -> None:
    levels = Image.fromarray(np.array([[257, 65_535 - 257, 514]], np.uint16))
    assert decode(encode(levels, transparency=514)).tolist() == [[[1, 254, 255]]] * 3


def test_conversion_in_strips_has_no_seams() -> None:
    colours = random_image(12, 1200, 1000)
    image = colours.convert("RGBA")
    image.putalpha(random_image(13, 1200, 1000).convert("L"))
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = decoder(max_pixels=1_200_000).decode(encode(image, compress_level=1))
    assert np.array_equal(pixels, as_pixels(on_white))


@pytest.mark.parametrize(
    "directory",
    [
        struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8),  # points at itself
        struct.pack("<HHHII", 0xFFFF, 0x0112, 3, 0xFFFFFFFF, 8),  # more entries, and values, than bytes
        b"",
    ],
    ids=["loop", "too-many-entries", "empty"],
)
@pytest.mark.filterwarnings("ignore")
def test_broken_exif_is_ignored(directory: bytes) -> None:
    image_bytes = encode(random_image(4), "JPEG")
    exif = b"Exif\0\0II*\0\x08\0\0\0" + directory
    with_exif = image_bytes[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + image_bytes[2:]
    assert np.array_equal(decode(with_exif), decode(image_bytes))


@given(data=st.data(), image_format=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]))
@settings(max_examples=200, deadline=None)
def test_flipped_bytes_raise_service_errors_only(data: st.DataObject, image_format: str) -> None:
    image_bytes = bytearray(encode(random_image(11), image_format))
    for _ in range(data.draw(st.integers(1, 8))):
        image_bytes[data.draw(st.integers(0, len(image_bytes) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decode(bytes(image_bytes))
    except ServiceError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[0] == 3
