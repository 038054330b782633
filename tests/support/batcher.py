"""A `run` of batches that squares numbers and can be held up, and batchers that call it."""

import asyncio
from collections.abc import Sequence
from typing import Any

from app.serving.batch import BatchResult
from app.serving.batching import Batcher, BatchSlots


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
