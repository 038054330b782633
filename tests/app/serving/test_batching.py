"""Batcher with a `run` that squares numbers and can be held up."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import DeadlineExceeded, Draining, EngineDead, InferenceFailed, NotReady, OutOfMemory
from app.serving.batch import BatchResult
from app.serving.batching import Batcher, BatchSlots, next_batch_size


class Squares:
    """A `run` that squares its items, records its batches, and waits while its gate is closed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(items))
        self.begun.set()
        await self.gate.wait()
        return [item * item for item in items]


async def started(run: Any, **options: Any) -> Batcher[int, int]:
    slots = BatchSlots(options.pop("slots", 1))
    batcher = Batcher[int, int](run, **{"max_batch_size": 4, "slots": slots, **options})
    batcher.start()
    return batcher


def submit(batcher: Batcher[int, int], *items: int) -> list[asyncio.Task[BatchResult[int]]]:
    return [asyncio.create_task(batcher.submit(item)) for item in items]


async def results(tasks: list[asyncio.Task[BatchResult[int]]]) -> list[int]:
    return [batched.result for batched in await asyncio.gather(*tasks)]


async def while_busy(run: Squares, batcher: Batcher[int, int], *items: int) -> list[asyncio.Task[BatchResult[int]]]:
    """Submit items while a batch of the item 100 is held up."""
    run.gate.clear()
    run.begun.clear()
    first = submit(batcher, 100)
    await run.begun.wait()
    waiting = submit(batcher, *items)
    await turns(len(items) + 1)
    assert batcher.queued == len(items)
    return first + waiting


async def turns(count: int) -> None:
    """Let other tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_each_item_gets_its_own_result() -> None:
    batcher = await started(Squares())
    assert await results(submit(batcher, *range(50))) == [n * n for n in range(50)]
    await batcher.stop()


async def test_idle_worker_takes_one_item_at_once() -> None:
    run = Squares()
    batcher = await started(run)
    batched = await batcher.submit(3)
    assert (batched.result, batched.batch_size, run.batches) == (9, 1, [[3]])
    await batcher.stop()


async def test_next_batch_gathers_while_one_runs() -> None:
    run = Squares()
    batcher = await started(run)
    tasks = await while_busy(run, batcher, 1, 2, 3, 4, 5, 6)
    run.gate.set()
    assert await results(tasks) == [10_000, 1, 4, 9, 16, 25, 36]
    assert run.batches == [[100], [1, 2, 3, 4], [5, 6]]
    await batcher.stop()


async def test_independent_streams_share_the_queue() -> None:
    run = Squares()
    batcher = await started(run, slots=3, independent_streams=True)
    tasks = await while_busy(run, batcher)  # one of three is busy
    tasks += submit(batcher, 1, 2, 3, 4, 5)
    await turns(10)
    assert run.batches == [[100], [1, 2, 3], [4, 5]]
    tasks += submit(batcher, 6, 7)
    await turns(10)
    assert (batcher.queued, len(run.batches)) == (2, 3)  # all slots are taken
    run.gate.set()
    assert await results(tasks) == [10_000, 1, 4, 9, 16, 25, 36, 49]
    await batcher.stop()


async def test_delay_fills_batches_before_sharing() -> None:
    run = Squares()
    batcher = await started(run, slots=2, independent_streams=True, max_queue_delay_s=60)
    tasks = submit(batcher, 1, 2, 3, 4)
    await turns(10)
    assert run.batches == [[1, 2, 3, 4]]
    run.gate.set()
    assert await results(tasks) == [1, 4, 9, 16]
    await batcher.stop()


async def test_dependent_stream_takes_a_full_batch() -> None:
    run = Squares()
    batcher = await started(run, slots=3)
    tasks = await while_busy(run, batcher)
    tasks += submit(batcher, 1, 2, 3, 4, 5)
    await turns(10)
    assert run.batches == [[100], [1, 2, 3, 4], [5]]
    run.gate.set()
    assert await results(tasks) == [10_000, 1, 4, 9, 16, 25]
    await batcher.stop()


@pytest.mark.parametrize(("queued", "sharers", "size"), [(1, 1, 1), (4, 1, 4), (9, 1, 4), (5, 2, 3), (1, 3, 1), (100, 3, 4)])
def test_next_batch_size(queued: int, sharers: int, size: int) -> None:
    assert next_batch_size(queued, max_batch_size=4, sharers=sharers) == size


async def test_batchers_that_share_slots_take_turns() -> None:
    slots, batches = BatchSlots(1), list[int]()

    async def run(items: Sequence[int]) -> Sequence[int]:
        batches.append(items[0])
        await asyncio.sleep(0)
        return items

    first, second = (Batcher[int, int](run, max_batch_size=1, slots=slots) for _ in range(2))
    first.start()
    second.start()
    await asyncio.gather(*submit(first, 1, 1, 1, 1), *submit(second, 2, 2, 2, 2))
    assert sorted(batches) == [1] * 4 + [2] * 4
    assert all(before != after for before, after in pairwise(batches))
    assert slots.free == 1
    await first.stop()
    await second.stop()


async def test_batchers_take_turns_under_closed_loops() -> None:
    slots, batches = BatchSlots(1), list[str]()

    def squares(name: str) -> Any:
        async def run(items: Sequence[int]) -> Sequence[int]:
            batches.append(name)
            await asyncio.sleep(0)
            return list(items)

        return run

    async def client(batcher: Batcher[int, int]) -> None:
        for number in range(4):
            await batcher.submit(number)

    batchers = [Batcher[int, int](squares(name), max_batch_size=1, slots=slots) for name in "ab"]
    for batcher in batchers:
        batcher.start()
    await asyncio.gather(*(client(batcher) for batcher in batchers for _ in range(2)))
    assert all(batches[at : at + 3].count(name) < 3 for at in range(8) for name in "ab"), batches
    for batcher in batchers:
        await batcher.stop()


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


async def test_stopped_batcher_frees_its_shared_slots() -> None:
    run, slots = Squares(), BatchSlots(1)
    stopped, other = (Batcher[int, int](run, max_batch_size=1, slots=slots) for _ in range(2))
    stopped.start()
    other.start()
    tasks = await while_busy(run, stopped)
    waiting = submit(other, 3)
    await stopped.stop()
    run.gate.set()
    assert await results(waiting) == [9]
    with pytest.raises(Draining):
        await tasks[0]
    await other.stop()
    assert slots.free == 1


async def test_delay_holds_a_batch_until_full() -> None:
    run = Squares()
    batcher = await started(run, max_queue_delay_s=3600)
    tasks = submit(batcher, 1, 2, 3)
    await turns(5)
    assert (batcher.queued, run.batches) == (3, [])
    tasks += submit(batcher, 4)
    await results(tasks)
    assert run.batches == [[1, 2, 3, 4]]
    await batcher.stop()


async def test_delay_counts_from_the_oldest_item() -> None:
    run = Squares()
    batcher = await started(run, max_queue_delay_s=0.02)
    batched = await batcher.submit(3)
    assert run.batches == [[3]]
    assert batched.queue_s > 0.018  # a timer of uvloop may end up to a millisecond early
    await batcher.stop()


async def test_cancelled_item_leaves_the_queue() -> None:
    run = Squares()
    batcher = await started(run)
    first, one, two = await while_busy(run, batcher, 1, 2)
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    assert batcher.queued == 1
    run.gate.set()
    assert await results([first, two]) == [10_000, 4]
    assert run.batches == [[100], [2]]
    await batcher.stop()


async def test_cancelling_in_flight_spares_the_batch() -> None:
    run = Squares()
    batcher = await started(run)
    first, one, two = await while_busy(run, batcher, 1, 2)
    first.cancel()
    run.gate.set()
    assert await results([one, two]) == [1, 4]
    await batcher.stop()


async def test_late_item_fails_in_time_and_is_not_run() -> None:
    run = Squares()
    batcher = await started(run)
    first, second = await while_busy(run, batcher, 2)
    with pytest.raises(DeadlineExceeded):  # while the batch is still held up
        await batcher.submit(1, deadline=asyncio.get_running_loop().time() + 0.01)
    run.gate.set()
    await results([first, second])
    assert run.batches == [[100], [2]]
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


# Events in any order. A batch takes one iteration of the event loop, which "turn" provides.
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, 30)),  # an item; multiples of 7 fail every batch that they are in
        st.tuples(st.just("late"), st.integers(0, 30)),  # an item whose deadline has passed
        st.tuples(st.just("cancel"), st.integers(0, 30)),  # the n-th task so far, if there is one
        st.tuples(st.just("turn"), st.integers(1, 5)),
    ),
    max_size=60,
)


OPTIONS = st.fixed_dictionaries(
    {
        "max_batch_size": st.integers(1, 5),
        "max_queue_delay_s": st.sampled_from([0.0, 0.001]),
        "slots": st.integers(1, 3),
        "independent_streams": st.booleans(),
    }
)


@given(events=EVENTS, options=OPTIONS)
@settings(max_examples=150, deadline=None)
def test_every_item_gets_exactly_its_outcome(events: list[tuple[str, int]], options: dict[str, Any]) -> None:
    uvloop.run(live_through(events, options))


async def live_through(events: list[tuple[str, int]], options: dict[str, Any]) -> None:
    ran: list[int] = []
    under_way = 0

    async def run(items: Sequence[tuple[int, int]]) -> Sequence[int]:
        nonlocal under_way
        assert 1 <= len(items) <= options["max_batch_size"]
        under_way += 1
        assert under_way <= options["slots"]
        await asyncio.sleep(0)
        under_way -= 1
        if any(value % 7 == 0 for _, value in items):
            raise ValueError
        ran.extend(number for number, _ in items)
        return [value * value for _, value in items]

    batcher = Batcher[tuple[int, int], int](run, **{**options, "slots": BatchSlots(options["slots"])})
    batcher.start()
    tasks: list[tuple[str, int, asyncio.Task[BatchResult[int]]]] = []
    cancelled: set[int] = set()
    for event, value in events:
        match event:
            case "submit" | "late":
                deadline = asyncio.get_running_loop().time() + (60 if event == "submit" else -1)
                task = asyncio.create_task(batcher.submit((len(tasks), value), deadline))
                tasks.append((event, value, task))
            case "cancel" if value < len(tasks):
                if tasks[value][2].cancel():
                    cancelled.add(value)
            case "turn":
                await turns(value)
    outcomes = await asyncio.gather(*(task for _, _, task in tasks), return_exceptions=True)

    for number, ((event, value, _), outcome) in enumerate(zip(tasks, outcomes, strict=True)):
        check(outcome, event, value, times_run=ran.count(number), cancelled=number in cancelled)
    assert batcher.queued == 0
    assert batcher.alive
    await batcher.stop()


def check(outcome: object, event: str, value: int, *, times_run: int, cancelled: bool) -> None:
    match outcome:
        case BatchResult():
            assert (outcome.result, event, times_run) == (value * value, "submit", 1)
        case InferenceFailed():
            assert value % 7 == 0
        case DeadlineExceeded():
            assert (event, times_run) == ("late", 0)
        case _:
            assert isinstance(outcome, asyncio.CancelledError)
            assert cancelled
