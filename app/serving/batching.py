"""Batcher: one queue in front of one worker. asyncio only; knows neither torch nor HTTP.

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
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from app.errors import DeadlineExceeded, Draining, EngineDead, InferenceFailed, NotReady, OutOfMemory

Item = TypeVar("Item")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[Result]):
    """Result of one item, with its seconds in the queue and in inference, and the size of its batch."""

    result: Result
    queue_s: float
    inference_s: float
    batch_size: int


@dataclass(eq=False, slots=True)
class _Job(Generic[Item, Result]):
    item: Item
    arrival: float
    """Time of `time.perf_counter`, for measurements."""
    deadline: float
    """Time of the event loop's clock, for decisions."""
    future: asyncio.Future[BatchResult[Result]]


class BatchSlots:
    """Bound on batches in flight on one device. Batchers that share it take turns."""

    def __init__(self, count: int) -> None:
        self.free = count
        self._waiters: list[asyncio.Event] = []

    def join(self, wake: asyncio.Event) -> None:
        """Register a batcher by the event that is set whenever a slot is freed."""
        self._waiters.append(wake)

    def take(self, wake: asyncio.Event) -> None:
        """Take a free slot; the other batchers are woken first next time."""
        self.free -= 1
        self._waiters.remove(wake)
        self._waiters.append(wake)

    def release(self) -> None:
        """Free a slot and wake all batchers, the one that took a slot longest ago first."""
        self.free += 1
        for wake in self._waiters:
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
        slots: batches in flight.
        max_queue_delay_s: time an incomplete batch waits for more items, from the arrival of its oldest.
        independent_streams: batches in flight do not wait for each other, as on the cores of a CPU: queued items are shared out
            among the free slots. Otherwise, as on a GPU, a batch takes all it can and the next is prepared behind it.
        inference_timeout_s: time after which a batch counts as hung, and the engine as dead.
        observe: context manager around each batch, called with its size.
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
        observe: Callable[[int], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._run = run
        self._max_batch_size = max_batch_size
        self._slots = slots
        self._max_queue_delay_s = max_queue_delay_s
        self._shares_slots = independent_streams and not max_queue_delay_s  # with a delay, batches are to be full
        self._inference_timeout_s = inference_timeout_s
        self._observe = observe
        self._queue: dict[_Job[Item, Result], None] = {}  # a dict: cancelled jobs leave from the middle
        self._in_flight: dict[int, Sequence[_Job[Item, Result]]] = {}
        self._changed = asyncio.Event()  # an item arrived or a slot was freed
        self._worker: asyncio.Task[None] | None = None
        self._stopped = False
        self._on_death: Callable[[], None] = lambda: None
        slots.join(self._changed)

    def start(self, on_death: Callable[[], None] = lambda: None) -> None:
        """Start the worker. Call it in the event loop that will submit.

        Args:
            on_death: called if the worker dies, after everything queued has failed.
        """
        self._on_death = on_death
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
        """True while submitted items are run."""
        return self._worker is not None and not self._worker.done()

    @property
    def max_batch_size(self) -> int:
        """Items in one batch; shrinks when a batch ran out of memory."""
        return self._max_batch_size

    @property
    def queued(self) -> int:
        """Items that wait for a batch."""
        return len(self._queue)

    async def submit(self, item: Item, deadline: float = math.inf) -> BatchResult[Result]:
        """Queue an item and await its result. Cancelling this call removes the item from the queue.

        Args:
            item: input of `run`.
            deadline: time of the event loop's clock after which the result is of no use.

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
        job = _Job[Item, Result](item, time.perf_counter(), deadline, asyncio.get_running_loop().create_future())
        self._queue[job] = None
        self._changed.set()
        try:
            async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                return await job.future
        except TimeoutError:
            raise _too_late() from None
        finally:
            self._queue.pop(job, None)

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as batches:  # an exception in one of them ends the worker
            for number in itertools.count():
                self._in_flight[number] = await self._collect()
                self._slots.take(self._changed)
                batches.create_task(self._process(number), name=f"batch {number}")

    async def _collect(self) -> Sequence[_Job[Item, Result]]:
        """Wait for items, a free slot and, where a delay is set, company; then take a batch from the queue."""
        while True:
            while not (self._queue and self._slots.free):
                await self._change()
            await self._gather()
            if self._slots.free and (batch := self._take()):
                return batch

    async def _gather(self) -> None:
        """Hold an incomplete batch open, counted from its oldest item's arrival."""
        while 0 < len(self._queue) < self._max_batch_size:
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

    def _take(self) -> Sequence[_Job[Item, Result]]:
        """Remove the oldest items that are still awaited from the queue."""
        size = next_batch_size(len(self._queue), self._max_batch_size, self._slots.free if self._shares_slots else 1)
        batch: list[_Job[Item, Result]] = []
        while self._queue and len(batch) < size:
            job = next(iter(self._queue))
            del self._queue[job]
            if _still_awaited(job):
                batch.append(job)
        return batch

    async def _process(self, number: int) -> None:
        """Run a batch; after a failure run its halves, so that in the end only the culprit fails."""
        pieces = [self._in_flight[number]]  # a stack: the next piece is the last
        while pieces:
            piece = pieces.pop()
            if len(piece) > self._max_batch_size:  # an earlier piece ran out of memory
                pieces.append(piece[self._max_batch_size :])
                piece = piece[: self._max_batch_size]
            if jobs := [job for job in piece if _still_awaited(job)]:
                pieces += reversed(await self._run_once(jobs))
        del self._in_flight[number]
        self._slots.release()

    async def _run_once(self, jobs: Sequence[_Job[Item, Result]]) -> list[Sequence[_Job[Item, Result]]]:
        """Run jobs as one batch and deliver their results, or return the pieces to try after a failure."""
        started = time.perf_counter()
        try:
            results = await self._run_in_time([job.item for job in jobs])
            if len(results) != len(jobs):
                raise RuntimeError(f"a batch of {len(jobs)} items gave {len(results)} results")
        except EngineDead:
            raise
        except Exception as error:
            return self._split(jobs, error)
        inference_s = time.perf_counter() - started
        for job, result in zip(jobs, results, strict=True):
            if not job.future.done():
                job.future.set_result(BatchResult(result, started - job.arrival, inference_s, len(jobs)))
        return []

    async def _run_in_time(self, items: Sequence[Item]) -> Sequence[Result]:
        timeout_s = None if self._inference_timeout_s == math.inf else self._inference_timeout_s
        try:
            async with asyncio.timeout(timeout_s) as limit:
                with self._observe(len(items)):
                    return await self._run(items)
        except TimeoutError as error:
            if not limit.expired():  # raised by `run` itself
                raise
            raise EngineDead(f"a batch of {len(items)} did not end within {timeout_s:g} s") from error

    def _split(self, jobs: Sequence[_Job[Item, Result]], error: Exception) -> list[Sequence[_Job[Item, Result]]]:
        """Return the halves of a failed batch; fail its job if there is only one."""
        if len(jobs) == 1:
            _log.error("the model failed on an image", exc_info=error)
            if not jobs[0].future.done():
                jobs[0].future.set_exception(InferenceFailed("The model failed on this image."))
            return []
        half = math.ceil(len(jobs) / 2)
        if isinstance(error, OutOfMemory):
            self._max_batch_size = min(self._max_batch_size, half)
            _log.warning("a batch of %d did not fit into memory; from now on at most %d", len(jobs), self._max_batch_size)
        return [jobs[:half], jobs[half:]]

    def _ended(self, worker: asyncio.Task[None]) -> None:
        """Fail everything queued or in flight when the worker stops or dies."""
        if worker.cancelled():
            error: Exception = _stopping()
        else:
            _log.critical("the inference worker died", exc_info=worker.exception())
            error = NotReady("The inference worker has died.", retry_after_s=5.0)
        for job in itertools.chain(*self._in_flight.values(), self._queue):
            if not job.future.done():
                job.future.set_exception(error)
        if not worker.cancelled():
            self._on_death()


def _still_awaited(job: _Job[Item, Result]) -> bool:
    """Return False if the job was cancelled or is late; fail a late one whose timer has not fired yet."""
    if not job.future.done() and job.deadline <= asyncio.get_running_loop().time():
        job.future.set_exception(_too_late())
    return not job.future.done()


def _stopping() -> Draining:
    return Draining("The service is shutting down.", retry_after_s=1.0)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("The deadline passed before the image was classified.")
