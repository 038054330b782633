"""FairQueue: requests take turns, and heavy images and large batches leave a decoder free."""

import io
import itertools
import random
import struct
from collections import deque

import pytest
from PIL import Image

from app.decoding.formats import pillow_name
from app.decoding.headers import count_pixels
from app.decoding.headers.jpeg import count_scans
from app.decoding.headers.sniff import sniff_format
from app.decoding.limits import check_work
from app.decoding.pool.fair_queue import HEAVY_PIXELS, FairQueue, Turn, turn_of
from app.errors import ImageTooLarge, UndecodableImage
from tests.support.models import encode, random_picture


def turns(request: str, count: int, *, heavy: bool = False) -> list[Turn[str]]:
    return [Turn(f"{request}{number}", request, heavy) for number in range(count)]


def queue_of(*waiting: list[Turn[str]], workers: int) -> FairQueue[str]:
    queue = FairQueue[str](workers)
    for turn in itertools.chain(*waiting):
        queue.put(turn)
    return queue


def take_all(queue: FairQueue[str]) -> list[str]:
    taken = []
    while (turn := queue.take()) is not None:
        taken.append(turn.item)
        queue.release(turn)
    return taken


def test_requests_take_turns() -> None:
    queue = queue_of(turns("a", 3), turns("b", 2), turns("c", 1), workers=2)
    assert take_all(queue) == ["a0", "b0", "c0", "a1", "b1", "a2"]


def test_batch_leaves_one_decoder_free() -> None:
    queue = queue_of(turns("a", 9), workers=4)
    assert [turn.item for turn in iter(queue.take, None)] == ["a0", "a1", "a2"]
    queue.put(*turns("b", 1))
    assert (queue.take() or Turn("", "", False)).item == "b0"


@pytest.mark.parametrize("workers", [1, 2])
def test_batch_gets_one_decoder_at_least(workers: int) -> None:
    queue = queue_of(turns("a", 9), workers=workers)
    assert [turn.item for turn in iter(queue.take, None)] == ["a0"]


def test_heavy_images_leave_one_decoder_free() -> None:
    queue = queue_of(*(turns(name, 1, heavy=True) for name in "abcd"), turns("light", 1), workers=3)
    assert [turn.item for turn in iter(queue.take, None)] == ["a0", "b0", "light0"]


def test_released_share_is_free_again() -> None:
    queue = queue_of(turns("a", 2, heavy=True), workers=2)
    first = queue.take()
    assert first is not None
    assert queue.take() is None
    queue.release(first)
    assert queue.take() is not None


def test_put_back_goes_first() -> None:
    queue = queue_of(turns("a", 2), turns("b", 1), workers=2)
    lost = queue.take()
    assert lost is not None
    queue.put_back(lost)
    assert take_all(queue) == ["a0", "b0", "a1"]


def test_discarded_image_is_never_taken() -> None:
    gone, *others = turns("a", 3)
    queue = queue_of([gone, *others], workers=1)
    queue.discard(gone)
    queue.discard(gone)
    assert take_all(queue) == ["a1", "a2"]
    assert len(queue) == 0


def test_random_order_loses_and_doubles_nothing() -> None:
    rng = random.Random(0)
    for _ in range(200):
        queue, expected = FairQueue[int](rng.randint(1, 5)), set(range(40))
        for number in expected:
            queue.put(Turn(number, rng.randrange(5), rng.random() < 0.3))
        done, running = list[int](), list[Turn[int]]()
        while len(done) < 40:
            turn = queue.take()
            if turn is not None:
                running.append(turn)
            if running and (turn is None or rng.random() < 0.5):
                ended = running.pop(rng.randrange(len(running)))
                if rng.random() < 0.2:
                    queue.put_back(ended)
                else:
                    queue.release(ended)
                    done.append(ended.item)
        assert sorted(done) == sorted(expected)
        assert not queue._running and not queue._heavy_running and not len(queue)


FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "MPO", "AVIF", pillow_name("heic"), "TIFF"]
HEADER_BYTES = {"AVIF": 320, "HEIF": 460, "TIFF": 200}
MORE_HEADER: dict[str, dict[str, object]] = {"GIF": {"comment": b"hello", "loop": 0}}


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_pillow(image_format: str, mode: str) -> None:
    width, height = (128, 64) if image_format == "HEIF" else (123, 45)  # its encoder pads to whole blocks
    assert count_pixels(encode(random_picture(0, width, height).convert(mode), image_format)) == width * height


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"exif": b"Exif\0\0" + bytes(40_000), "icc_profile": bytes(300_000)}]
)
def test_pixels_of_jpeg_with_long_header(options: dict[str, object]) -> None:
    assert count_pixels(encode(random_picture(0, 123, 45), "JPEG", **options)) == 123 * 45


@pytest.mark.parametrize("image_format", FORMATS)
def test_damaged_header_is_counted_or_unknown(image_format: str) -> None:
    rng, image = random.Random(0), encode(random_picture(1), image_format)
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
    rng, image = random.Random(1), encode(random_picture(1), image_format, **MORE_HEADER.get(image_format, {}))
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
    padded = b"\xff\xd8" + (b"\xff" * 60_000 + b"\xe0\0\2") * 3 + encode(random_picture(0), "JPEG")[2:]
    assert count_pixels(padded) == 0
    with pytest.raises(UndecodableImage):
        count_scans(padded)


def test_hidden_size_counts_as_heavy() -> None:
    jpeg = encode(random_picture(0), "JPEG")
    hidden = jpeg[:2] + b"\xff\xfe\0\2" * 300 + jpeg[2:]  # comments before the size
    assert Image.open(io.BytesIO(hidden)).size == random_picture(0).size
    assert count_pixels(hidden) is None
    assert turn_of(0, hidden, None).heavy


def test_heavy_begins_above_phone_photos() -> None:
    assert not turn_of(0, encode(Image.new("1", (4000, 3000))), None).heavy
    large = Image.new("L", (4000, HEAVY_PIXELS // 4000))
    assert turn_of(0, encode(large), None).heavy
    assert not turn_of(0, encode(large, "JPEG"), None).heavy


def test_request_over_its_pixels_is_refused() -> None:
    image = encode(random_picture(0, 100, 100))
    deque(check_work([image] * 4, max_image_pixels=10_000, max_request_pixels=40_000))
    with pytest.raises(ImageTooLarge, match="50000 pixels together; at most 40000"):
        deque(check_work([image] * 5, max_image_pixels=10_000, max_request_pixels=40_000))


def test_image_too_large_alone_costs_no_work() -> None:
    deque(check_work([encode(random_picture(0, 100, 100))] * 9, max_image_pixels=9_999, max_request_pixels=9_999))
