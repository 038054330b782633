"""Batcher with a `run` that squares numbers and can be held up."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import DeadlineExceeded, Draining, InferenceFailed
from app.serving.batch import BatchResult
from app.serving.batching import Batcher, BatchSlots, next_batch_size
from tests.support.batcher import Squares, results, started, submit, turns, while_busy


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
