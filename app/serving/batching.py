"""The batcher: one bounded queue in front of one worker. asyncio only; knows neither torch nor HTTP.

One in, one out: every image that is accepted gets exactly one outcome, its own. The batch is cut work-conserving: as long as
the worker may begin another run, it takes what waits at once; while it may not, the next batch gathers by itself.
"""

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import DeadlineExceeded, Draining, EngineDead, InferenceFailed, NotReady, OutOfMemory, QueueFull

Item = TypeVar("Item")
Result = TypeVar("Result")

_log = logging.getLogger(__name__)

_RATE_WINDOW = 256
"""Items whose leaving tells the rate of now."""


@dataclass(frozen=True, slots=True)
class Served(Generic[Result]):
    """A result, and what it took: seconds in the queue, seconds of the run, images in the same run."""

    result: Result
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(eq=False, slots=True)
class _Job(Generic[Item, Result]):
    item: Item
    arrival: float
    """Of `time.perf_counter`, for what is measured."""
    deadline: float
    """Of the event loop's clock, for what is decided."""
    future: asyncio.Future[Served[Result]]


class Batcher(Generic[Item, Result]):
    """Gathers single items into batches and hands each its own result.

    Args:
        run: takes the items of a batch and gives their results, in order and in number. It may raise `OutOfMemory` (the
            batch is split, and later ones stay smaller), `EngineDead` (nothing can be run any more), or anything else
            (the batch is split until only the culprit fails).
        max_batch_size: items in one run.
        max_inflight_images: items accepted and not yet answered.
        max_inflight_bytes: that requests hold while they arrive and until they are answered.
        max_queue_delay_s: how long an incomplete batch waits for more, from the arrival of its oldest item.
        max_runs: runs under way at once.
        side_by_side: runs do not wait for each other, as on the cores of a CPU: what waits is shared out among those that
            may begin. Otherwise, as on a GPU, a run takes all it can, and the next only gets ready behind it.
        max_run_s: a run that takes longer hangs, and with it the device: it counts as `EngineDead`.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch_size: int,
        max_inflight_images: int,
        max_inflight_bytes: float = math.inf,
        max_queue_delay_s: float = 0.0,
        max_runs: int = 1,
        side_by_side: bool = False,
        max_run_s: float = math.inf,
    ) -> None:
        self._run = run
        self._max_batch_size = max_batch_size
        self._max_queue_size = max_inflight_images
        self._max_queue_bytes = max_inflight_bytes
        self._max_queue_delay_s = max_queue_delay_s
        self._max_runs = max_runs
        self._side_by_side = side_by_side
        self._max_run_s = max_run_s
        self._accepted = 0
        self._held_bytes = 0
        self._waiting: dict[_Job[Item, Result], None] = {}  # a queue from whose middle one can leave
        self._running: dict[int, Sequence[_Job[Item, Result]]] = {}
        self._changed = asyncio.Event()  # something arrived, or a run has ended
        self._worker: asyncio.Task[None] | None = None
        self._stopped = False
        self._on_death: Callable[[], None] = lambda: None
        self._busy_since = 0.0
        self._left: deque[float] = deque(maxlen=_RATE_WINDOW)  # when the last ones left their places, while busy

    def start(self, on_death: Callable[[], None] = lambda: None) -> None:
        """Start the worker. To be called in the event loop that will submit.

        Args:
            on_death: called if the worker dies, when everything that waited has been told.
        """
        self._on_death = on_death
        self._worker = asyncio.create_task(self._work(), name="batcher")
        self._worker.add_done_callback(self._ended)

    async def stop(self) -> None:
        """End the worker; what still waits fails with `Draining`."""
        self._stopped = True
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])

    @property
    def alive(self) -> bool:
        """Whether anything that is submitted will be run."""
        return self._worker is not None and not self._worker.done()

    @property
    def max_batch_size(self) -> int:
        """Items in one run; falls when a batch did not fit into memory."""
        return self._max_batch_size

    @property
    def accepted(self) -> int:
        """Items accepted and not yet answered."""
        return self._accepted

    @property
    def waiting(self) -> int:
        """Items that wait for a run."""
        return len(self._waiting)

    @property
    def held_bytes(self) -> int:
        """Bytes that requests hold now."""
        return self._held_bytes

    def check_room(self) -> None:
        """Tell whether a place is free now.

        Raises:
            QueueFull: no place is free.
            NotReady: the worker is not running.
            Draining: the batcher was stopped.
        """
        self._check_alive()
        if self._accepted >= self._max_queue_size:
            raise QueueFull("Too many images are waiting.", retry_after_s=self._drain_time())

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the `max_inflight_images` places, so that a full queue refuses before any work is done on an item.

        Raises:
            QueueFull, NotReady, Draining: see `check_room`.
        """
        self.check_room()
        if self._accepted == 0:
            self._busy_since = time.perf_counter()
            self._left.clear()
        self._accepted += 1
        try:
            yield
        finally:
            self._accepted -= 1
            self._left.append(time.perf_counter())

    @contextmanager
    def bytes_held(self) -> Iterator[Callable[[int], None]]:
        """Account for the bytes of one request: gives a function to be called with the size of each piece before it is kept.

        Raises:
            QueueFull: from that function; all requests together would hold more than `max_inflight_bytes`.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self._held_bytes + size > self._max_queue_bytes:
                raise QueueFull("Too many bytes are waiting.", retry_after_s=self._drain_time())
            self._held_bytes += size
            held += size

        try:
            yield hold
        finally:
            self._held_bytes -= held

    async def submit(self, item: Item, deadline: float = math.inf) -> Served[Result]:
        """Wait for the item's turn and its result. Cancelling this call takes the item out of the queue.

        Args:
            item: what `run` takes.
            deadline: time of the event loop's clock after which the result is of no use.

        Raises:
            DeadlineExceeded: the deadline passed first.
            InferenceFailed: the run failed on this very item.
            NotReady: the worker is not running, or died meanwhile.
            Draining: the batcher was stopped, before or meanwhile.
        """
        self._check_alive()
        job = _Job[Item, Result](item, time.perf_counter(), deadline, asyncio.get_running_loop().create_future())
        self._waiting[job] = None
        self._changed.set()
        try:
            async with asyncio.timeout_at(None if deadline == math.inf else deadline):
                return await job.future
        except TimeoutError:
            raise _too_late() from None
        finally:
            self._waiting.pop(job, None)

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as runs:  # one that dies takes the worker with it
            for number in itertools.count():
                self._running[number] = await self._collect()
                runs.create_task(self._run_one(number), name=f"run {number}")

    async def _run_one(self, number: int) -> None:
        await self._deliver(self._running[number])
        del self._running[number]
        self._changed.set()

    async def _collect(self) -> Sequence[_Job[Item, Result]]:
        """Wait until there is something to run and a run may begin, and for company as the settings say; then cut a batch."""
        while True:
            while not self._waiting or len(self._running) >= self._max_runs:
                await self._change()
            await self._gather()
            if batch := self._cut():
                return batch

    async def _gather(self) -> None:
        """Hold an incomplete batch open, counted from its oldest item's arrival."""
        while 0 < len(self._waiting) < self._max_batch_size:
            oldest = next(iter(self._waiting))
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

    def _cut(self) -> Sequence[_Job[Item, Result]]:
        """Take the oldest items that still have a use, and leave to other runs that may begin now their share."""
        shared = self._side_by_side and not self._max_queue_delay_s  # who waits for full batches gets them
        sharers = self._max_runs - len(self._running) if shared else 1
        size = min(self._max_batch_size, math.ceil(len(self._waiting) / sharers))
        batch: list[_Job[Item, Result]] = []
        while self._waiting and len(batch) < size:
            job = next(iter(self._waiting))
            del self._waiting[job]
            if _is_wanted(job):
                batch.append(job)
        return batch

    async def _deliver(self, jobs: Sequence[_Job[Item, Result]]) -> None:
        """Run a batch and hand out its results; if it fails, its halves, so that at last only the culprit fails."""
        started = time.perf_counter()
        try:
            results = await self._run_in_time([job.item for job in jobs])
            if len(results) != len(jobs):
                raise RuntimeError(f"a run of {len(jobs)} items gave {len(results)} results")
        except EngineDead:
            raise
        except Exception as error:
            await self._split(jobs, error)
        else:
            run_s = time.perf_counter() - started
            for job, result in zip(jobs, results, strict=True):
                if not job.future.done():
                    job.future.set_result(Served(result, started - job.arrival, run_s, len(jobs)))

    async def _run_in_time(self, items: Sequence[Item]) -> Sequence[Result]:
        try:
            async with asyncio.timeout(None if self._max_run_s == math.inf else self._max_run_s) as limit:
                return await self._run(items)
        except TimeoutError as error:
            if not limit.expired():  # the run's own
                raise
            raise EngineDead(f"a run of {len(items)} did not end within {self._max_run_s:g} s") from error

    async def _split(self, jobs: Sequence[_Job[Item, Result]], error: Exception) -> None:
        if len(jobs) == 1:
            _log.error("the model failed on an image", exc_info=error)
            if not jobs[0].future.done():
                jobs[0].future.set_exception(InferenceFailed("The model failed on this image."))
            return
        half = math.ceil(len(jobs) / 2)
        if isinstance(error, OutOfMemory):
            self._max_batch_size = min(self._max_batch_size, half)
            _log.warning("a batch of %d did not fit into memory; from now on at most %d", len(jobs), self._max_batch_size)
        rest = deque(jobs)
        while rest:  # whose turn comes when the first piece did not fit either is cut smaller from the start
            piece = [rest.popleft() for _ in range(min(half, self._max_batch_size, len(rest)))]
            if wanted := [job for job in piece if _is_wanted(job)]:
                await self._deliver(wanted)

    def _check_alive(self) -> None:
        if self._stopped:
            raise _stopping()
        if not self.alive:
            raise NotReady("The inference worker is not running.", retry_after_s=5.0)

    def _drain_time(self) -> float:
        """Seconds until all that is accepted now will have left, at the rate at which places were left since it is busy."""
        since = self._left[0] if len(self._left) == _RATE_WINDOW else self._busy_since
        elapsed = time.perf_counter() - since
        return self._accepted * elapsed / len(self._left) if self._left else 1.0

    def _ended(self, worker: asyncio.Task[None]) -> None:
        """The worker has stopped or died: nobody who waits may wait for ever."""
        if worker.cancelled():
            error: Exception = _stopping()
        else:
            _log.critical("the inference worker died", exc_info=worker.exception())
            error = NotReady("The inference worker has died.", retry_after_s=5.0)
        for job in itertools.chain(*self._running.values(), self._waiting):
            if not job.future.done():
                job.future.set_exception(error)
        if not worker.cancelled():
            self._on_death()


def _is_wanted(job: _Job[Item, Result]) -> bool:
    """Whether somebody still awaits the job in time; one that is late is told so here, if its timer has not yet."""
    if not job.future.done() and job.deadline <= asyncio.get_running_loop().time():
        job.future.set_exception(_too_late())
    return not job.future.done()


def _stopping() -> Draining:
    return Draining("The service is shutting down.", retry_after_s=1.0)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("The deadline passed before the image was classified.")
