"""Batcher: one queue and one worker. asyncio only; knows neither torch nor HTTP.

Every submitted item gets exactly one outcome, its own. Batching is work-conserving: while a batch slot is free, queued items
are taken at once; while none is, the next batch gathers in the queue.
"""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic

from app.errors import Draining, NotReady
from app.serving.batch import BatchExecutor, BatchResult, Item, Job, Result, too_late

_log = logging.getLogger(__name__)


class BatchSlots:
    """Bound on batches in flight on one device. Batchers that share it take turns."""

    def __init__(self, count: int) -> None:
        self.free = count
        self._wakes: list[asyncio.Event] = []  # the batcher that took a slot longest ago comes first

    def join(self, wake: asyncio.Event) -> None:
        """Register a batcher by the event that is set whenever a slot is freed."""
        self._wakes.append(wake)

    def leave(self, wake: asyncio.Event) -> None:
        """Forget a batcher that has stopped."""
        self._wakes.remove(wake)

    def take(self, wake: asyncio.Event) -> None:
        """Take a free slot; the other batchers are woken first next time."""
        self.free -= 1
        self._wakes.remove(wake)
        self._wakes.append(wake)

    def release(self) -> None:
        """Free a slot and wake all batchers."""
        self.free += 1
        for wake in self._wakes:
            wake.set()


def next_batch_size(queued: int, max_batch_size: int, sharers: int) -> int:
    """Return how many queued items the next batch takes, if `sharers` batches can start now and share the queue."""
    return min(max_batch_size, math.ceil(queued / sharers))


class Batcher(Generic[Item, Result]):
    """Gathers single items into batches and hands each its own result.

    Args:
        run: takes the items of a batch and returns their results, in order and number. It may raise `OutOfMemory` (the batch
            is split, and later ones stay smaller), `EngineDead` (the batcher stops), or anything else (the batch is split
            until only the culprit fails).
        max_batch_size: items in one batch.
        slots: bound on batches in flight.
        max_queue_delay_s: time an incomplete batch waits for more items, from the arrival of its oldest.
        independent_streams: batches in flight do not wait for each other, as on the cores of a CPU: queued items are shared out
            among the free slots. Otherwise, as on a GPU, a batch takes all it can and the next is prepared behind it.
        inference_timeout_s: time after which a batch counts as hung, and the engine as dead.
        observe: context manager around each batch, called with the origins of its items, as `submit` was given them.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch_size: int,
        slots: BatchSlots,
        max_queue_delay_s: float = 0.0,
        independent_streams: bool = False,
        inference_timeout_s: float = math.inf,
        observe: Callable[[Sequence[Any]], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._executor = BatchExecutor[Item, Result](run, max_batch_size, inference_timeout_s, observe)
        self._slots = slots
        self._max_queue_delay_s = max_queue_delay_s
        self._shares_queue = independent_streams and not max_queue_delay_s  # a delay asks for full batches
        self._queue: dict[Job[Item, Result], None] = {}  # ordered, and cancelled jobs leave from the middle
        self._in_flight: dict[int, Sequence[Job[Item, Result]]] = {}
        self._changed = asyncio.Event()  # an item arrived or a slot was freed
        self._worker: asyncio.Task[None] | None = None
        self._stopped = False
        self._on_death: Callable[[], None] = lambda: None

    def start(self, on_death: Callable[[], None] = lambda: None) -> None:
        """Start the worker. Call it in the event loop that will submit.

        Args:
            on_death: called if the worker dies, after everything queued has failed.
        """
        self._on_death = on_death
        self._slots.join(self._changed)
        self._worker = asyncio.create_task(self._work(), name="batcher")
        self._worker.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Stop the worker; everything queued or in flight fails with `Draining`."""
        self._stopped = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])

    @property
    def alive(self) -> bool:
        """True while the worker runs."""
        return self._worker is not None and not self._worker.done()

    @property
    def max_batch_size(self) -> int:
        """Items in one batch; shrinks when a batch runs out of memory."""
        return self._executor.max_batch_size

    @property
    def queued(self) -> int:
        """Items that wait for a batch."""
        return len(self._queue)

    async def submit(self, item: Item, deadline: float = math.inf, origin: Any = None) -> BatchResult[Result]:
        """Queue an item and await its result. Cancelling this call removes the item from the queue.

        Args:
            item: input of `run`.
            deadline: time of the event loop's clock after which the result is of no use.
            origin: what `observe` is told of the item.

        Raises:
            DeadlineExceeded: the deadline passed first.
            InferenceFailed: the batch failed on this very item.
            NotReady: the worker is not running, or died meanwhile.
            Draining: the batcher was stopped, before or meanwhile.
        """
        if self._stopped:
            raise _stopping()
        if not self.alive:
            raise NotReady("The inference worker is not running.", retry_after_s=5.0)
        job = Job[Item, Result](item, time.perf_counter(), deadline, asyncio.get_running_loop().create_future(), origin)
        self._queue[job] = None
        self._changed.set()
        try:
            async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                return await job.future
        except TimeoutError:
            raise too_late() from None
        finally:
            self._queue.pop(job, None)

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as batches:  # an exception in one of them ends the worker
            for number in itertools.count():
                self._in_flight[number] = await self._collect()
                self._slots.take(self._changed)
                batch = batches.create_task(self._process(number), name=f"batch {number}")
                batch.add_done_callback(lambda _: self._slots.release())

    async def _collect(self) -> Sequence[Job[Item, Result]]:
        """Wait for items, a free slot and the queue delay; then take a batch from the queue."""
        while True:
            while not (self._queue and self._slots.free):
                await self._change()
            await self._gather()
            if self._slots.free and (batch := self._take()):
                return batch

    async def _gather(self) -> None:
        """Hold an incomplete batch open, counted from its oldest item's arrival."""
        while 0 < len(self._queue) < self.max_batch_size:
            oldest = next(iter(self._queue))
            wait_s = oldest.arrival + self._max_queue_delay_s - time.perf_counter()
            if wait_s <= 0:
                return
            try:
                async with asyncio.timeout(wait_s):
                    await self._change()
            except TimeoutError:
                return

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _take(self) -> Sequence[Job[Item, Result]]:
        """Remove the oldest items that are still awaited from the queue."""
        size = next_batch_size(len(self._queue), self.max_batch_size, self._slots.free if self._shares_queue else 1)
        batch: list[Job[Item, Result]] = []
        while self._queue and len(batch) < size:
            job = next(iter(self._queue))
            del self._queue[job]
            if job.still_awaited():
                batch.append(job)
        return batch

    async def _process(self, number: int) -> None:
        await self._executor.execute(self._in_flight[number])
        del self._in_flight[number]

    def _ended(self, worker: asyncio.Task[None]) -> None:
        """Fail everything queued or in flight when the worker stops or dies."""
        self._slots.leave(self._changed)
        if worker.cancelled():
            error: Exception = _stopping()
        else:
            _log.critical("the inference worker died", exc_info=worker.exception())
            error = NotReady("The inference worker has died.", retry_after_s=5.0)
        for job in itertools.chain(*self._in_flight.values(), self._queue):
            job.fail(error)
        if not worker.cancelled():
            self._on_death()


def _stopping() -> Draining:
    return Draining("The service is shutting down.", retry_after_s=1.0)
