"""ThreadDecoder: refuses, survives and skips images as the process pool does."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from app.decoding import Preprocessor
from app.decoding.pool.threads import ThreadDecoder
from app.errors import InternalError, UndecodableImage


async def test_threads_preprocess_as_they_are_told() -> None:
    threads = ThreadDecoder(lambda _: np.zeros((3, 2, 2), np.uint8), threads=1)
    other = Preprocessor(lambda _: np.ones((3, 4, 4), np.uint8), (3, 4, 4))
    for value, preprocessor in enumerate([None, other]):
        pixels = (await threads.decode(b"", preprocessor=preprocessor)).pixels
        assert pixels.shape == ((3, 2, 2), (3, 4, 4))[value]
        assert (pixels == value).all()
    await threads.close()


async def test_closed_threads_refuse_what_waits() -> None:
    def fail(_: bytes) -> Any:
        raise KeyError

    threads = ThreadDecoder(fail, threads=1)
    calls = [asyncio.create_task(threads.decode(b"")) for _ in range(3)]
    await asyncio.sleep(0)
    await threads.close()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome).__name__ for outcome in outcomes] == ["InternalError", "Draining", "Draining"]


async def test_thread_that_cannot_start_fails_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = ThreadDecoder(lambda encoded: np.zeros((3, 2, 2), np.uint8), threads=1)
    submit = threads._threads.submit

    def scarce(*arguments: Any) -> Any:
        monkeypatch.setattr(threads._threads, "submit", submit)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads._threads, "submit", scarce)
    with pytest.raises(InternalError):
        await threads.decode(b"")
    for _ in range(3):
        assert not (await threads.decode(b"")).pixels.any()
    await threads.close()


async def test_cancelled_image_is_never_begun() -> None:
    begun = list[bytes]()

    def decode(encoded: bytes) -> Any:
        begun.append(encoded)
        return np.zeros((3, 2, 2), np.uint8)

    threads = ThreadDecoder(decode, threads=1)
    first, second, third = (asyncio.create_task(threads.decode(name)) for name in (b"first", b"second", b"third"))
    await asyncio.sleep(0)
    second.cancel()
    threads._free += 1  # a thread becomes free before the call has run its cancellation
    threads._dispatch()
    await asyncio.gather(first, third)
    await threads.close()
    assert begun == [b"first", b"third"]


async def test_waiting_and_decoding_are_told_apart() -> None:
    def decode(encoded: bytes) -> Any:
        time.sleep(0.05 if encoded == b"slow" else 0)
        return np.zeros((3, 2, 2), np.uint8)

    threads = ThreadDecoder(decode, threads=1)
    slow, quick = await asyncio.gather(threads.decode(b"slow"), threads.decode(b"quick"))
    await threads.close()
    assert slow.wait_s < slow.decode_s
    assert quick.decode_s < quick.wait_s


async def test_time_of_a_refused_image_counts() -> None:
    def decode(_: bytes) -> Any:
        raise UndecodableImage("no")

    busy = list[float]()
    threads = ThreadDecoder(decode, threads=1, on_busy=busy.append)
    outcomes = await asyncio.gather(*(threads.decode(b"") for _ in range(2)), return_exceptions=True)
    await threads.close()
    assert [type(outcome) for outcome in outcomes] == [UndecodableImage] * 2
    assert len(busy) == 2
    assert min(busy) > 0
