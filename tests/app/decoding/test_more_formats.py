"""Formats that are off by default: their pixels where they are enabled, and a clear error where they are not."""

import asyncio
import io
import random
import resource
import struct
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image

from app.decoding import Preprocessor
from app.decoding.formats import check_decoders, pillow_name
from app.decoding.headers import av1, count_pixels, isobmff
from app.decoding.headers.sniff import sniff_format
from app.decoding.image import ImageDecoder
from app.decoding.pool.processes import ProcessDecoder
from app.decoding.pool.select import image_decoder, make_decoder
from app.decoding.pool.zygote_main import _warm_up
from app.decoding.samples import SAMPLES
from app.errors import ImageTooLarge, ServiceError, StartError, UndecodableImage, UnsupportedImageFormat
from app.metrics import Metrics
from app.settings import Settings
from model.preprocessing import Preprocessing
from tests.app.decoding import decoders
from tests.app.decoding.decoders import DEFAULT_FORMATS, HALF, as_pixels, oriented
from tests.support.models import encode, random_image

MORE = ["avif", "heic", "tiff"]
PILLOW = {image_format: pillow_name(image_format) for image_format in MORE}


ALL = DEFAULT_FORMATS | set(MORE)

decoder = partial(decoders.decoder, formats=ALL)
refused = partial(decoders.refused, formats=ALL)
decode = decoder().decode


def sample(image_format: str, seed: int = 1) -> bytes:
    return encode(random_image(seed, 120, 80), PILLOW[image_format])


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


@pytest.mark.parametrize("image_format", MORE)
def test_optional_format_equals_pillow(image_format: str) -> None:
    for image_bytes in (sample(image_format), SAMPLES[image_format]):
        with Image.open(io.BytesIO(image_bytes)) as image:
            assert np.array_equal(decode(image_bytes), as_pixels(image))


@pytest.mark.parametrize("image_format", MORE)
def test_disabled_format_says_how_to_enable_it(image_format: str) -> None:
    message = refused(sample(image_format), UnsupportedImageFormat, formats=frozenset({"jpeg"}))
    assert message.startswith(f"{image_format} images are not enabled here; send one of: jpeg.")
    assert f"VIT_IMAGE_FORMATS=jpeg,{image_format}" in message


@pytest.mark.parametrize(
    ("first_bytes", "name"),
    [
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 images"),
        (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000 images"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL images"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL images"),
        (b"II+\0\x08\0\0\0", "BigTIFF images"),
        (b"MM\0+\0\x08\0\0", "BigTIFF images"),
        (b"%PDF-1.7\n", "PDF documents"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG drawings"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<svg>", "SVG drawings"),
    ],
)
def test_undecoded_format_is_named(first_bytes: bytes, name: str) -> None:
    message = refused(first_bytes + bytes(100), UnsupportedImageFormat)
    assert message.startswith(f"{name} are not decoded here; send one of: avif, bmp, ")


@pytest.mark.parametrize(
    ("brands", "image_format"),
    [
        (b"avif\0\0\0\0", "avif"),
        (b"avis\0\0\0\0avif", "avif"),
        (b"mif1\0\0\0\0miafavif", "avif"),
        (b"heic\0\0\0\0mif1heic", "heic"),
        (b"heix\0\0\0\0", "heic"),
        (b"hevc\0\0\0\0msf1", "heic"),
        (b"msf1\0\0\0\0miafheic", "heic"),
        (b"mif1\0\0\0\0miaf", None),
        (b"isom\0\0\0\0avif", None),
        (b"mp42\0\0\0\0isom", None),
        (b"mif1\0\0\0\0" + b"miaf" * 200 + b"avif", None),
    ],
)
def test_brands_tell_the_format(brands: bytes, image_format: str | None) -> None:
    assert sniff_format(box(b"ftyp", brands)) == image_format


@pytest.mark.parametrize("image_format", MORE)
def test_transparency_becomes_white(image_format: str) -> None:
    image = random_image(3).convert("RGBA")
    image.putalpha(0)
    assert (decode(encode(image, PILLOW[image_format])) >= 254).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", MORE)
def test_turned_photo_is_turned_once(image_format: str, orientation: int) -> None:
    exif = oriented(orientation)
    stored = random_image(4, 64, 40).convert("L").convert("RGB")  # without chroma, which is stored at half the size
    turned = encode(stored, PILLOW[image_format], exif=exif.tobytes(), quality=100)
    assert (b"irot" in turned or b"imir" in turned) == (orientation > 1 and image_format != "tiff")
    pixels = decode(turned)
    assert pixels.shape == ((3, 64, 40) if orientation >= 5 else (3, 40, 64))
    assert np.abs(pixels.astype(int) - as_pixels(_turned(stored, orientation))).mean() < 6


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    levels = np.asarray(image.convert("RGB"))
    upright = [
        levels, levels[:, ::-1], levels[::-1, ::-1], levels[::-1], levels.transpose(1, 0, 2), np.rot90(levels, -1),
        np.rot90(levels, 2).transpose(1, 0, 2), np.rot90(levels),
    ][orientation - 1]  # fmt: skip
    return Image.fromarray(np.ascontiguousarray(upright))


def test_orientation_in_xmp_is_ignored() -> None:
    text = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert decode(encode(random_image(4, 64, 40), "AVIF", xmp=text)).shape == (3, 40, 64)


def test_avif_sequence_decodes_first_frame() -> None:
    frames = {"save_all": True, "append_images": [random_image(2)], "quality": 100}
    sequence = encode(random_image(1), "AVIF", **frames)
    with Image.open(io.BytesIO(sequence)) as image:
        assert getattr(image, "n_frames", 1) == 2
    first, second = (np.abs(decode(sequence).astype(int) - as_pixels(random_image(seed))).mean() for seed in (1, 2))
    assert first < 10 < second


@pytest.mark.parametrize("image_format", MORE)
def test_too_many_pixels_are_refused_by_header(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image_bytes = sample(image_format)
    assert decoder(max_pixels=120 * 80).decode(image_bytes).shape == (3, 80, 120)
    monkeypatch.setattr(Image, "open", None)
    assert "120 x 80 pixels; at most 9599" in refused(image_bytes, ImageTooLarge, max_pixels=120 * 80 - 1)


def test_largest_stated_size_counts() -> None:
    def size(width: int, height: int) -> bytes:
        return box(b"ispe", struct.pack(">III", 0, width, height))

    def meta(*sizes: bytes) -> bytes:
        return box(b"meta", bytes(4) + box(b"iprp", box(b"ipco", b"".join(sizes))))

    track = box(b"trak", box(b"tkhd", bytes(76) + struct.pack(">II", 300 << 16, 200 << 16)))
    assert isobmff.largest_size(meta(size(10, 20), size(7, 9))) == (10, 20)
    assert isobmff.largest_size(meta(size(10, 20)) + meta(size(30, 20))) == (30, 20)
    assert isobmff.largest_size(meta(size(10, 20)) + box(b"moov", track)) == (300, 200)
    assert isobmff.largest_size(b"\0\0\0\1mdat" + struct.pack(">Q", 20) + bytes(4) + meta(size(10, 20))) == (10, 20)
    assert isobmff.largest_size(box(b"free", b"")) is None


def test_tiled_heic_decodes_its_primary_image() -> None:
    photo = random_image(1, 300, 200).convert("L").convert("RGB")
    alone = encode(photo, "HEIF", quality=90)
    tiled = encode(photo, "HEIF", quality=90, tile_size=64, thumbnails=[64])
    with_another_first = encode(random_image(2, 64, 64), "HEIF", save_all=True, append_images=[photo], primary_index=1)
    for image_bytes in (alone, tiled, with_another_first):
        assert 300 * 200 <= (count_pixels(image_bytes) or 0) <= 320 * 256  # encoders pad to whole blocks and tiles
        assert np.abs(decode(image_bytes).astype(int) - as_pixels(photo)).mean() < 6


def test_avif_frame_beyond_its_container_counts() -> None:
    for options in ({}, {"save_all": True, "append_images": [random_image(2, 400, 300)]}):
        image_bytes = bytearray(encode(random_image(1, 400, 300), "AVIF", **options))
        for kind, at, size in ((b"ispe", 8, ">II"), (b"tkhd", 92, ">II"), (b"av01", 28, ">HH")):
            start = -1
            while (start := image_bytes.find(kind, start + 1)) >= 0:
                if image_bytes[start + at : start + at + struct.calcsize(size)] == struct.pack(size, *stored(kind, 400, 300)):
                    struct.pack_into(size, image_bytes, start + at, *stored(kind, 40, 30))
        assert isobmff.largest_size(bytes(image_bytes)) == (40, 30)
        assert count_pixels(bytes(image_bytes)) == 400 * 300
        assert "400 x 300 pixels" in refused(bytes(image_bytes), ImageTooLarge, max_pixels=400 * 300 - 1)


@pytest.mark.parametrize("options", [{}, {"tile_size": 256}])
def test_heic_frame_beyond_its_container_counts(options: dict[str, Any]) -> None:
    image_bytes = bytearray(encode(random_image(1, 512, 512), "HEIF", **options))
    start = -1
    while (start := image_bytes.find(b"ispe", start + 1)) >= 0:
        image_bytes[start + 8 : start + 16] = struct.pack(">II", 40, 30)
    assert isobmff.largest_size(bytes(image_bytes)) == (40, 30)
    side = options.get("tile_size", 512)
    assert count_pixels(bytes(image_bytes)) == side * side
    assert f"{side} x {side} pixels" in refused(bytes(image_bytes), ImageTooLarge, max_pixels=side * side - 1)


def stored(kind: bytes, width: int, height: int) -> tuple[int, int]:
    return (width << 16, height << 16) if kind == b"tkhd" else (width, height)


def test_av1_size_that_may_grow_is_uncertain() -> None:
    def sequence(width_bits: int, width: int) -> bytes:
        bits = f"000{1:b}{0:b}" + "0" + "0" + "0" * 5 + "0" * 12 + "0" * 5
        bits += f"{width_bits - 1:04b}{6 - 1:04b}{width - 1:0{width_bits}b}{63:06b}"
        content = int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
        return b"\x12\0\x0a" + bytes([len(content)]) + content

    assert av1.largest_frame(sequence(6, 64)) == ((64, 64), True)
    assert av1.largest_frame(sequence(16, 64)) == ((64, 64), False)
    assert av1.largest_frame(sequence(6, 64) + sequence(8, 256)) == ((256, 64), True)
    assert av1.largest_frame(b"\x12\0") is None
    assert av1.largest_frame(b"\x12\0" * 1000) is None


def test_10_bits_become_8() -> None:
    levels = np.asarray(random_image(1, 64, 64).convert("L"))
    deep = pillow_heif.from_bytes("L;10", (64, 64), (levels.astype("<u2") << 2).tobytes())
    file = io.BytesIO()
    deep.save(file, format="HEIF", quality=90)
    assert np.abs(decode(file.getvalue()).astype(int) - levels).mean() < 3


def test_heic_without_decoder_is_start_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.decoding.formats.find_spec", lambda _: None)
    check_decoders(DEFAULT_FORMATS | {"avif"})
    with pytest.raises(
        StartError, match=r"VIT_IMAGE_FORMATS has heic, which needs pillow-heif: pip install 'vit-serve\[heif\]'"
    ):
        check_decoders({"heic"})


def test_box_flood_is_refused() -> None:
    start = SAMPLES["avif"][:32]
    deep = b""
    for _ in range(20):
        deep = box(b"iprp", deep)
    for flood in (box(b"free", b"") * 3000, deep):
        with pytest.raises(isobmff.TooManyBoxes):
            isobmff.largest_size(start + flood)
        refused(start + flood, UndecodableImage)


def damaged(image_bytes: bytes, number: int) -> Iterator[bytes]:
    """Yield images cut off at many lengths, and with bytes changed, mostly in the header; the same ones each time."""
    generator = random.Random(number)
    for at in range(number // 2):
        yield image_bytes[: 12 + (len(image_bytes) - 12) * at // (number // 2)]
    for _ in range(number):
        mutant = bytearray(image_bytes)
        for _ in range(generator.randint(1, 6)):
            end = len(mutant) if generator.random() < 0.5 else min(len(mutant), 400)
            mutant[generator.randrange(12, end)] = generator.choice((0, 1, 0x7F, 0xFF, generator.randrange(256)))
        yield bytes(mutant)


def outcomes(image_bytes: bytes, number: int) -> Counter[str]:
    seen: Counter[str] = Counter()
    for mutant in damaged(image_bytes, number):
        try:
            seen[str(decode(mutant).dtype)] += 1
        except ServiceError as error:
            seen[error.code] += 1
    return seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("image_format", MORE)
def test_damaged_files_raise_service_errors_only(image_format: str) -> None:
    seen = outcomes(sample(image_format), 400)
    assert seen.total() == 600
    assert set(seen) <= {"uint8", "undecodable_image", "image_too_large", "unsupported_image_format"}
    assert seen["undecodable_image"] > 200


@pytest.mark.parametrize("image_format", MORE)
def test_truncated_file_is_undecodable(image_format: str) -> None:
    image_bytes = sample(image_format)
    for share in (0.2, 0.5, 0.9):
        refused(image_bytes[: int(len(image_bytes) * share)], UndecodableImage)


@pytest.mark.parametrize("image_format", MORE)
async def test_workers_decode_within_their_limits(image_format: str, tmp_path: Path) -> None:
    given = {"image_formats": image_format, "decode_isolation": "process", "decode_workers": 1, "cache_dir": tmp_path}
    settings = Settings.model_validate(given)
    preprocessing = Preprocessing((32, 32), None, "bicubic", HALF, HALF)
    metrics = Metrics()
    workers = make_decoder(settings, metrics)
    assert isinstance(workers, ProcessDecoder)
    await asyncio.to_thread(workers.warm_up)
    to_input = Preprocessor(image_decoder(settings, preprocessing).decode, (3, 32, 32))
    workers.start()
    (worker,) = workers._workers
    processes, _ = resource.prlimit(worker.process.pid, resource.RLIMIT_NPROC)
    assert (processes == 0) == (image_format != "heic")  # HEIC's decoder needs a thread
    try:
        alone = ImageDecoder(preprocessing, formats=settings.image_formats, max_bytes=10**7, max_pixels=10**6, exact=True)
        assert np.array_equal(
            (await workers.decode(sample(image_format), preprocessor=to_input)).pixels, alone.decode(sample(image_format))
        )
        for mutant in list(damaged(sample(image_format), 60)):
            try:
                await workers.decode(mutant, preprocessor=to_input)
            except ServiceError as error:
                assert error.code in {"undecodable_image", "image_too_large", "unsupported_image_format"}
        assert np.array_equal(
            (await workers.decode(sample(image_format), preprocessor=to_input)).pixels, alone.decode(sample(image_format))
        )
    finally:
        await workers.close()
    assert not [sample for family in metrics.decoder_restarts.collect() for sample in family.samples if sample.value]


@pytest.mark.parametrize("image_format", ["avif", "tiff"])
def test_warm_decoders_start_no_threads(image_format: str) -> None:
    image_bytes = encode(random_image(1, 1200, 800), PILLOW[image_format])
    _warm_up(decoder().decode)
    with Image.open(io.BytesIO(image_bytes)) as image:
        before = len(list(Path("/proc/self/task").iterdir()))
        image.load()
        assert len(list(Path("/proc/self/task").iterdir())) == before


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr", "RGBA", "P", "1"])
def test_tiff_equals_pillow(mode: str, compression: str) -> None:
    if compression == "jpeg" and mode in ("RGBA", "P", "1"):
        return  # TIFF has no such JPEG
    image_bytes = encode(random_image(1, 120, 80).convert(mode), "TIFF", compression=compression)
    with Image.open(io.BytesIO(image_bytes)) as image:
        assert np.array_equal(decode(image_bytes), as_pixels(image))


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_is_scaled(order: str) -> None:
    levels = np.array([[0, 257, 256 * 128, 65_535]], np.uint16)
    assert decode(tiff(levels.astype(f"{order}u2").tobytes(), 4, 1, order, {258: 16})).tolist() == [[[0, 1, 128, 255]]] * 3


def tiff(strip: bytes, width: int, height: int, order: str = "<", more: dict[int, int] | None = None) -> bytes:
    """Make a grey TIFF of one strip behind the header; `more` tags replace the usual ones."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(strip), **(more or {})}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(strip))
    return head + strip + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("tags", "sentence"),
    [
        ({259: 4}, "compressed otherwise than"),
        ({259: 50_001}, "compressed otherwise than"),
        ({339: 3}, "samples that are not whole numbers"),
        ({339: 2}, "samples that are not whole numbers"),
        ({258: 32}, "samples of other than 1, 2, 4, 8 or 16 bits"),
        ({258: 12}, "samples of other than 1, 2, 4, 8 or 16 bits"),
        ({262: 8}, "colours other than"),
        ({258: 16, 262: 0}, "colours other than"),
    ],
)
def test_odd_tiff_is_refused_by_name(tags: dict[int, int], sentence: str) -> None:
    assert decode(tiff(bytes(range(12)), 4, 3)).shape == (3, 3, 4)
    assert sentence in refused(tiff(bytes(48), 4, 3, more=tags), UndecodableImage)


def test_float_tiff_is_refused() -> None:
    assert "not whole numbers" in refused(encode(random_image(1).convert("F"), "TIFF"), UndecodableImage)
    assert "not whole numbers" in refused(encode(random_image(1).convert("I"), "TIFF"), UndecodableImage)


def test_tiff_decodes_first_page() -> None:
    pages = encode(random_image(1), "TIFF", save_all=True, append_images=[random_image(2)])
    assert np.array_equal(decode(pages), as_pixels(random_image(1)))


def test_tile_beyond_its_tiff_counts() -> None:
    with_tiles = tiff(bytes(12), 4, 3, more={322: 3000, 323: 2000, 324: 8, 325: 12})
    assert count_pixels(with_tiles) == 6_000_000
    assert "3000 x 2000" in refused(with_tiles, ImageTooLarge)


def test_tiff_tag_and_strip_floods_are_refused() -> None:
    whole = tiff(bytes(range(12)), 4, 3)
    directory = 8 + 12
    repeated = struct.pack("<HHII", 37_500, 7, len(whole), 0) * 500
    number = int.from_bytes(whole[directory : directory + 2], "little")
    flood = whole[:directory] + struct.pack("<H", number + 500) + whole[directory + 2 : -4] + repeated + bytes(4)
    assert "more tags" in refused(flood, UndecodableImage)
    strips = bytearray(whole)
    at = whole.index(struct.pack("<HH", 273, 4)) + 4
    strips[at : at + 4] = struct.pack("<I", 1_000_000)
    refused(bytes(strips), UndecodableImage)
    assert "strips" in refused(bytes(strips) + bytes(4_000_000), UndecodableImage)
