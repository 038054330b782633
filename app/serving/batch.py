"""Execution of one batch: each job gets its own outcome, and only the culprit of a failure fails. asyncio only."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from app.errors import DeadlineExceeded, EngineDead, InferenceFailed, OutOfMemory

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
class Job(Generic[Item, Result]):
    """One item and the future that its request awaits."""

    item: Item
    arrival: float
    """Time of `time.perf_counter`, for measurements."""
    deadline: float
    """Time of the event loop's clock, for decisions."""
    future: asyncio.Future[BatchResult[Result]]
    origin: Any = None
    """What `observe` is told of the item."""

    def still_awaited(self) -> bool:
        """Return False if the job was cancelled or is late; fail a late one whose timer has not fired yet."""
        if not self.future.done() and self.deadline <= asyncio.get_running_loop().time():
            self.expire()
        return not self.future.done()

    def expire(self) -> None:
        """Give the job the error of one whose deadline passed, unless it has an outcome."""
        self.fail(DeadlineExceeded("The deadline passed before the image was classified."))

    def fail(self, error: Exception) -> None:
        """Give the job an error, unless it has an outcome."""
        if not self.future.done():
            self.future.set_exception(error)

    def forget(self) -> None:
        """Cancel the job if it has no outcome; one that nobody has looked at is then not logged as lost."""
        if not self.future.done():
            self.future.cancel()
        elif not self.future.cancelled():
            self.future.exception()


class BatchExecutor(Generic[Item, Result]):
    """Runs batches, splits those that fail, and remembers the size that fits into memory.

    Args:
        run: see `Batcher`.
        max_batch_size: items in one batch.
        timeout_s: time after which a batch counts as hung, and the engine as dead.
        observe: context manager around each batch, called with the origins of its items.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        max_batch_size: int,
        timeout_s: float,
        observe: Callable[[Sequence[Any]], AbstractContextManager[Any]],
    ) -> None:
        self.max_batch_size = max_batch_size
        self._run = run
        self._timeout_s = None if timeout_s == math.inf else timeout_s
        self._observe = observe

    async def execute(self, batch: Sequence[Job[Item, Result]]) -> None:
        """Run a batch; after a failure run its halves, so that in the end only the culprit fails.

        Raises:
            EngineDead: the engine cannot be used any more; jobs may be left without an outcome.
        """
        pieces = [batch]  # a stack: the next piece is the last
        while pieces:
            piece = pieces.pop()
            if len(piece) > self.max_batch_size:  # an earlier piece ran out of memory
                pieces.append(piece[self.max_batch_size :])
                piece = piece[: self.max_batch_size]
            if jobs := [job for job in piece if job.still_awaited()]:
                pieces += reversed(await self._run_once(jobs))

    async def _run_once(self, jobs: Sequence[Job[Item, Result]]) -> list[Sequence[Job[Item, Result]]]:
        """Run jobs as one batch and deliver their results, or return the pieces to try after a failure."""
        started = time.perf_counter()
        try:
            results = await self._run_in_time(jobs)
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

    async def _run_in_time(self, jobs: Sequence[Job[Item, Result]]) -> Sequence[Result]:
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                with self._observe([job.origin for job in jobs]):
                    return await self._run([job.item for job in jobs])
        except TimeoutError as error:
            if not limit.expired():  # raised by `run` itself
                raise
            raise EngineDead(f"a batch of {len(jobs)} did not end within {self._timeout_s:g} s") from error

    def _split(self, jobs: Sequence[Job[Item, Result]], error: Exception) -> list[Sequence[Job[Item, Result]]]:
        """Return the halves of a failed batch; fail its job if there is only one."""
        if len(jobs) == 1:
            _log.error("the model failed on an image", exc_info=error)
            jobs[0].fail(InferenceFailed("The model failed on this image."))
            return []
        half = math.ceil(len(jobs) / 2)
        if isinstance(error, OutOfMemory):
            self.max_batch_size = min(self.max_batch_size, half)
            _log.warning("a batch of %d did not fit into memory; from now on at most %d", len(jobs), self.max_batch_size)
        return [jobs[:half], jobs[half:]]
