"""Batcher whose batches fail, whose engine dies, or which is stopped."""

import asyncio
import gc
import weakref
from collections.abc import Sequence

import pytest

from app.errors import DeadlineExceeded, Draining, EngineDead, InferenceFailed, NotReady, OutOfMemory
from app.serving.batch import BatchResult
from app.serving.batching import Batcher, BatchSlots
from tests.support.batcher import Squares, results, started, submit, turns, while_busy


class Image:
    """Item that can be watched."""


async def never(items: Sequence[Image]) -> Sequence[int]:
    raise AssertionError


async def test_late_item_is_freed_at_once() -> None:
    batcher = Batcher[Image, int](never, max_batch_size=1, slots=BatchSlots(0))
    batcher.start()
    image = Image()
    freed = weakref.ref(image)
    gc.disable()  # which would free it later
    try:
        try:
            await batcher.submit(image, asyncio.get_running_loop().time() + 0.01)
        except DeadlineExceeded:
            del image
        await asyncio.sleep(0)  # the event loop holds what woke this task
        assert freed() is None
    finally:
        gc.enable()
    await batcher.stop()


async def test_batch_cancelled_from_outside_fails_its_items() -> None:
    async def cancelled(items: Sequence[int]) -> Sequence[int]:
        raise asyncio.CancelledError

    batcher = await started(cancelled)
    with pytest.raises(NotReady):
        await batcher.submit(1)
    assert batcher.alive
    await batcher.stop()


async def test_culprit_fails_alone() -> None:
    async def picky(items: Sequence[int]) -> Sequence[int]:
        if 13 in items:
            raise ValueError("13 is unlucky")
        return [item * item for item in items]

    batcher = await started(picky, max_batch_size=16)
    outcomes = await asyncio.gather(*submit(batcher, *range(10, 20)), return_exceptions=True)
    for item, outcome in zip(range(10, 20), outcomes, strict=True):
        if item == 13:
            assert isinstance(outcome, InferenceFailed)
            assert "unlucky" not in str(outcome)
        else:
            assert isinstance(outcome, BatchResult)
            assert outcome.result == item * item
    assert batcher.alive
    await batcher.stop()


async def test_missing_result_splits_the_batch() -> None:
    async def forgetful(items: Sequence[int]) -> Sequence[int]:
        return [item * item for item in items][: 1 if len(items) > 1 else None]

    batcher = await started(forgetful)
    assert await results(submit(batcher, 1, 2, 3, 4)) == [1, 4, 9, 16]  # alone, each gets its result
    await batcher.stop()


async def test_out_of_memory_halves_batches_for_good() -> None:
    sizes = []

    async def small(items: Sequence[int]) -> Sequence[int]:
        sizes.append(len(items))
        if len(items) > 3:
            raise OutOfMemory
        return [item * item for item in items]

    batcher = await started(small, max_batch_size=8)
    assert await results(submit(batcher, *range(8))) == [n * n for n in range(8)]
    assert batcher.max_batch_size == 2
    assert sizes == [8, 4, 2, 2, 2, 2]  # the second half is not tried in a size that was just found too large
    sizes.clear()
    await results(submit(batcher, *range(8)))
    assert sizes == [2, 2, 2, 2]
    await batcher.stop()


async def test_dead_engine_fails_the_queue_and_refuses() -> None:
    run = Squares()

    async def dies(items: Sequence[int]) -> Sequence[int]:
        await run(items)
        raise EngineDead("the device is gone")

    batcher = await started(dies)
    tasks = await while_busy(run, batcher, *range(6))
    run.gate.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NotReady] * 7
    assert not batcher.alive
    with pytest.raises(NotReady):
        await batcher.submit(1)


async def test_cancelled_item_is_not_retried() -> None:
    run = Squares()

    async def fails_together(items: Sequence[int]) -> Sequence[int]:
        squares = await run(items)
        if len(items) > 1:
            raise ValueError
        return squares

    batcher = await started(fails_together)
    tasks = await while_busy(run, batcher, 1, 2)
    run.gate.set()
    await tasks[0]
    run.gate.clear()
    await turns(3)
    assert run.batches == [[100], [1, 2]]
    tasks[2].cancel()
    await turns(1)
    run.gate.set()
    assert await results([tasks[1]]) == [1]
    assert run.batches == [[100], [1, 2], [1]]
    await batcher.stop()


async def test_inference_timeout_kills_the_worker() -> None:
    run, died = Squares(), asyncio.Event()
    run.gate.clear()
    batcher = Batcher[int, int](run, max_batch_size=1, slots=BatchSlots(1), inference_timeout_s=0.01)
    batcher.start(died.set)
    outcomes = await asyncio.gather(*submit(batcher, 1, 2, 3), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NotReady] * 3
    await died.wait()
    assert run.batches == [[1]]


async def test_timeout_raised_by_a_batch_is_a_failure() -> None:
    async def late(items: Sequence[int]) -> Sequence[int]:
        raise TimeoutError

    batcher = await started(late, inference_timeout_s=60)
    with pytest.raises(InferenceFailed):
        await batcher.submit(1)
    assert batcher.alive
    await batcher.stop()


async def test_stop_does_not_call_on_death() -> None:
    batcher = Batcher[int, int](Squares(), max_batch_size=1, slots=BatchSlots(1))
    batcher.start(lambda: pytest.fail("on_death was called"))
    await batcher.stop()


async def test_dead_engine_fails_all_batches_in_flight() -> None:
    run = Squares()

    async def dies(items: Sequence[int]) -> Sequence[int]:
        if items == [7]:
            raise EngineDead("the device is gone")
        return await run(items)

    batcher = await started(dies, slots=2)
    tasks = await while_busy(run, batcher)
    tasks += submit(batcher, 7)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NotReady] * 2
    assert not batcher.alive


async def test_stopped_batcher_raises_draining() -> None:
    batcher = await started(Squares())
    await batcher.stop()
    with pytest.raises(Draining):
        await batcher.submit(1)


async def test_stop_fails_remaining_items() -> None:
    run = Squares()
    batcher = await started(run)
    tasks = await while_busy(run, batcher, 1, 2)
    await batcher.stop()
    assert [type(outcome) for outcome in await asyncio.gather(*tasks, return_exceptions=True)] == [Draining] * 3


async def test_submit_before_start_is_refused() -> None:
    batcher = Batcher[int, int](Squares(), max_batch_size=1, slots=BatchSlots(1))
    with pytest.raises(NotReady):
        await batcher.submit(1)
