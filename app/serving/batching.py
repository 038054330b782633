"""Batcher: one queue in front of the slots of a device. asyncio only; knows neither torch nor HTTP.

Every submitted item gets exactly one outcome, its own. Batching is work-conserving: while a batch slot is free, queued items
are taken at once; while none is, the next batch gathers in the queue.
"""

import asyncio
import contextvars
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic

from app.errors import Draining, NotReady
from app.serving.batch import BatchExecutor, BatchResult, Item, Job, Result

Wake = Callable[[], None]

_log = logging.getLogger(__name__)


class BatchSlots:
    """Bound on batches in flight on one device. Batchers that share it take turns."""

    def __init__(self, count: int) -> None:
        self.free = count
        self.in_flight = 0
        """Batches that hold a slot."""
        self._wakes: list[Wake] = []  # the batcher that took a slot longest ago comes first

    def join(self, wake: Wake) -> None:
        """Register a batcher by the function that is called whenever a slot is freed."""
        self._wakes.append(wake)

    def leave(self, wake: Wake) -> None:
        """Forget a batcher that has stopped."""
        self._wakes.remove(wake)

    def take(self, wake: Wake) -> None:
        """Take a free slot; the other batchers are woken first next time."""
        self.free, self.in_flight = self.free - 1, self.in_flight + 1
        self._wakes.remove(wake)
        self._wakes.append(wake)

    def release(self) -> None:
        """Free a slot and wake all batchers."""
        self.free, self.in_flight = self.free + 1, self.in_flight - 1
        for wake in self._wakes:
            wake()


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
        self._in_flight: dict[asyncio.Task[None], Sequence[Job[Item, Result]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gone: asyncio.Future[Any]
        self._context = contextvars.Context()
        self._waking = False
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = self._dead = False
        self._on_death: Callable[[], None] = lambda: None

    def start(self, on_death: Callable[[], None] = lambda: None) -> None:
        """Start to run batches. Call it in the event loop that will submit.

        Args:
            on_death: called if the engine dies, after everything queued has failed.
        """
        self._on_death = on_death
        self._loop = asyncio.get_running_loop()
        self._gone = self._loop.create_future()
        self._gone.cancel()
        self._slots.join(self._wake)

    async def stop(self) -> None:
        """Stop; everything queued or in flight fails with `Draining`."""
        if self.alive:
            self._slots.leave(self._wake)
        self._stopped = True
        if batches := self._give_up(_stopping):
            await asyncio.wait(batches)

    @property
    def alive(self) -> bool:
        """True from the start until it is stopped or its engine dies."""
        return self._loop is not None and not (self._stopped or self._dead)

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
            NotReady: the batcher is not running, or its engine died meanwhile.
            Draining: the batcher was stopped, before or meanwhile.
        """
        return await self.result(self.put(item, deadline, origin))

    def put(self, item: Item, deadline: float = math.inf, origin: Any = None) -> Job[Item, Result]:
        """Queue an item, as `submit` does, without waiting; then call `result`, or `drop` if nobody waits for it any more.

        Raises:
            NotReady, Draining: as of `submit`.
        """
        if self._stopped:
            raise _stopping()
        if self._loop is None or self._dead:
            raise NotReady("The inference worker is not running.", retry_after_s=5.0)
        job = Job[Item, Result](item, time.perf_counter(), deadline, self._loop.create_future(), origin)
        self._queue[job] = None
        self._wake()
        return job

    async def result(self, job: Job[Item, Result]) -> BatchResult[Result]:
        """Await the result of a job, as `submit` does."""
        late = None if job.deadline == math.inf else asyncio.get_running_loop().call_at(job.deadline, job.expire)
        try:
            return await job.future
        except Exception:
            # the error's traceback holds the job, and the job the error: until a garbage collection, with the request's image
            job.future = self._gone
            raise
        finally:
            if late is not None:
                late.cancel()
            self.drop(job)

    def drop(self, job: Job[Item, Result]) -> None:
        """Forget a job, unless its batch is in flight, where its result is thrown away."""
        self._queue.pop(job, None)
        job.forget()

    def _wake(self) -> None:
        """Have the queue looked at in the next iteration of the event loop: what arrives in this one shares a batch."""
        if self._queue and self._slots.free and not self._waking and self._loop is not None:
            self._waking = True
            # not in the context of the request that happens to be the first: a batch logs nothing of a request
            self._loop.call_soon(self._dispatch, context=self._context)

    def _dispatch(self) -> None:
        """Start as many batches as there are slots and items."""
        self._waking = False
        while self.alive and self._slots.free and self._is_due():
            if batch := self._take():
                self._begin(batch)

    def _is_due(self) -> bool:
        """Return True if a batch can be taken now. An incomplete one is held open, counted from its oldest item's arrival."""
        if not self._queue or self._loop is None:
            return False
        if not self._max_queue_delay_s or len(self._queue) >= self.max_batch_size:
            return True
        oldest = next(iter(self._queue))
        wait_s = oldest.arrival + self._max_queue_delay_s - time.perf_counter()
        if wait_s > 0:
            self._cancel_timer()
            self._timer = self._loop.call_later(wait_s, self._wake)
        return wait_s <= 0

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

    def _begin(self, batch: Sequence[Job[Item, Result]]) -> None:
        self._slots.take(self._wake)
        task = asyncio.create_task(self._executor.execute(batch), name="batch")
        self._in_flight[task] = batch
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        batch = self._in_flight.pop(task)
        self._slots.release()
        if not task.cancelled() and (error := task.exception()) is None:
            return
        for job in batch:
            job.fail(_died())
        if task.cancelled():
            return
        if self.alive:
            self._slots.leave(self._wake)
            self._dead = True
            _log.critical("the inference worker died", exc_info=error)
            self._give_up(_died)
            self._on_death()

    def _give_up(self, error: Callable[[], Exception]) -> Sequence[asyncio.Task[None]]:
        """Fail everything queued or in flight; returns the batches in flight, cancelled."""
        self._cancel_timer()
        for job in itertools.chain(*self._in_flight.values(), self._queue):
            job.fail(error())  # one for each: a traceback keeps all that raise it alive
        self._queue.clear()
        batches = list(self._in_flight)
        for task in batches:
            task.cancel()
        return batches

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _stopping() -> Draining:
    return Draining("The service is shutting down.", retry_after_s=1.0)


def _died() -> NotReady:
    return NotReady("The inference worker has died.", retry_after_s=5.0)
