"""TimeSlices: long work runs in slices, and the rest of the event loop between them."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from app.http.time_slices import Starts, Steps, TimeSlices


def steps(number: int, seen: Callable[[], None], result: str = "done") -> Steps[str]:
    """Use up a number of whole slices."""
    for _ in range(number):
        seen()
        time.sleep(0.002)
        yield
    return result


@asynccontextmanager
async def rounds() -> AsyncIterator[Callable[[], int]]:
    """Count the iterations of the event loop."""
    count = 0

    async def run() -> None:
        nonlocal count
        while True:
            count += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(run())
    yield lambda: count
    running.cancel()


async def test_slices_of_many_run_one_an_iteration() -> None:
    slices, seen = TimeSlices(), list[int]()
    async with rounds() as count:
        works = (slices.work(steps(5, lambda: seen.append(count()), f"{number}")) for number in range(8))
        assert await asyncio.gather(*works) == [f"{number}" for number in range(8)]
    assert len(seen) == 40
    assert len(set(seen)) == 40


async def test_short_work_does_not_wait_for_long() -> None:
    slices, order = TimeSlices(), list[str]()
    long = asyncio.create_task(slices.work(steps(50, lambda: order.append("long"))))
    await asyncio.sleep(0)
    assert await slices.work(steps(1, lambda: order.append("short"))) == "done"
    assert order.index("short") < 5
    await long


async def test_failed_work_blocks_no_other() -> None:
    def fails() -> Steps[None]:
        time.sleep(0.002)
        yield
        raise ZeroDivisionError

    slices = TimeSlices()
    failing = asyncio.create_task(slices.work(fails()))
    cancelled = [asyncio.create_task(slices.work(steps(1000, lambda: None))) for _ in range(3)]
    await asyncio.sleep(0)
    last = asyncio.create_task(slices.work(steps(3, lambda: None)))
    await asyncio.sleep(0)
    for task in cancelled:
        task.cancel()
    with pytest.raises(ZeroDivisionError):
        await failing
    assert await last == "done"


async def test_little_work_needs_one_slice() -> None:
    def work(number: int) -> Steps[None]:
        for _ in range(number):
            time.sleep(0.002)
            yield

    assert TimeSlices().start(work(0))
    assert not TimeSlices().start(work(5))


async def test_first_slices_share_an_iteration() -> None:
    slices, seen = TimeSlices(), list[int]()
    async with rounds() as count:
        await asyncio.sleep(0)
        works = [steps(2, lambda: seen.append(count())) for _ in range(20)]
        assert not any([slices.start(work) for work in works])  # type: ignore[arg-type]
        assert 1 <= len(seen) <= 3  # of 2 ms each
        await asyncio.gather(*(slices.work(work) for work in works))
    assert len(seen) == 40
    assert max(Counter(seen).values()) <= 4


async def test_few_requests_start_in_an_iteration() -> None:
    starts, begun = Starts(), list[tuple[int, int]]()
    async with rounds() as count:
        await asyncio.sleep(0)
        for number in range(9):
            starts.add(lambda number=number: begun.append((number, count())))  # type: ignore[misc]
        assert [number for number, _ in begun] == [0, 1]
        while len(begun) < 9:  # noqa: ASYNC110 - each sleep is an iteration
            await asyncio.sleep(0)
    assert [number for number, _ in begun] == list(range(9))
    assert max(Counter(turn for _, turn in begun).values()) == 2


async def test_requests_start_at_once_after_many() -> None:
    starts, begun = Starts(), list[int]()
    for number in range(5):
        starts.add(lambda number=number: begun.append(number))  # type: ignore[misc]
    for _ in range(5):
        await asyncio.sleep(0)
    starts.add(lambda: begun.append(5))
    assert begun == [0, 1, 2, 3, 4, 5]


async def test_turns_are_taken_one_in_each_iteration() -> None:
    slices, taken = TimeSlices(), 0

    async def work() -> None:
        nonlocal taken
        for _ in range(3):
            await slices.turn()
            taken += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(work())
        before = taken
        while taken < 60:
            await asyncio.sleep(0)
            assert taken - before <= 2
            before = taken
