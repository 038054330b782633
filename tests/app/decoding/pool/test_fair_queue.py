"""FairQueue: requests take turns, and heavy images and large batches leave a decoder free."""

import itertools
import random

import pytest
from PIL import Image

from app.decoding.pool.fair_queue import HEAVY_PIXELS, FairQueue, Turn, turn_of
from tests.support.models import encode


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


def test_heavy_begins_above_phone_photos() -> None:
    assert not turn_of(0, encode(Image.new("1", (4000, 3000))), None).heavy
    large = Image.new("L", (4000, HEAVY_PIXELS // 4000))
    assert turn_of(0, encode(large), None).heavy
    assert not turn_of(0, encode(large, "JPEG"), None).heavy
