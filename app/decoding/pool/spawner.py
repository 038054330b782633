"""Spawner: starts and reaps worker processes in threads, with backoff, and replaces its zygote when that dies."""

import asyncio
from collections.abc import Callable

import structlog

from app.decoding.pool.job import Job
from app.decoding.pool.zygote import WorkerProcess, Zygote, ZygoteDied
from app.process.backoff import Backoff

_log = structlog.get_logger(__name__)


class Spawner:
    """Starts and reaps worker processes, one at a time. All workers share the pauses; the first death in a row costs none.

    Args:
        zygote: the process that they are forked from.
        job: their work.
        closing: set when the pool is closed: nothing more is started.
        on_failure: called with the error of each failed start; lengthens the backoff.
    """

    def __init__(self, zygote: Zygote, job: Job, closing: asyncio.Event, on_failure: Callable[[Exception], None]) -> None:
        self.zygote = zygote
        self.zygote_died = False
        self.backoff = Backoff()
        self._job = job
        self._closing = closing
        self._on_failure = on_failure
        self._lock = asyncio.Lock()

    async def start(self) -> WorkerProcess | None:
        """Start a process, again and again with backoff until that works; None if the pool is closed meanwhile."""
        while not self._closing.is_set():
            await self._pause()
            async with self._lock:
                if self._closing.is_set() or self.backoff.remaining_s:
                    continue  # the start of another worker has failed meanwhile
                try:
                    process = await self._start_once()
                except Exception as error:  # of whatever kind: the pool must not stay a worker short
                    self.zygote_died |= isinstance(error, ZygoteDied)
                    if not self._closing.is_set():
                        self._on_failure(error)
                    continue
            if self._closing.is_set():
                process.connection.close()
                return None
            return process
        return None

    async def reap(self, process: WorkerProcess) -> int | None:
        """Kill a process if it still runs; see `Zygote.reap`. None if it was reaped with its zygote."""
        async with self._lock:
            try:
                return await asyncio.to_thread(process.zygote.reap, process)
            except ZygoteDied:
                self.zygote_died |= process.zygote is self.zygote
            except Exception as error:  # no thread can be started, say; the worker must be replaced all the same
                _log.warning("exit status of a worker unknown", reason=str(error) or type(error).__name__)
            return None

    async def close(self) -> None:
        """End the zygote and all its workers."""
        await asyncio.to_thread(self.zygote.close)

    async def _start_once(self) -> WorkerProcess:
        if self.zygote_died:
            await self._replace_zygote()
        return await asyncio.to_thread(self.zygote.start_worker, self._job)

    async def _replace_zygote(self) -> None:
        await self.close()
        if self._closing.is_set():
            raise ZygoteDied
        self.zygote = await asyncio.to_thread(Zygote, self.zygote.module)
        if self._closing.is_set():
            await self.close()
            raise ZygoteDied
        await asyncio.to_thread(self.zygote.warm_up, self._job)
        self.zygote_died = False

    async def _pause(self) -> None:
        """Wait until the backoff is over or the pool is closed."""
        try:
            async with asyncio.timeout(self.backoff.remaining_s):
                await self._closing.wait()
        except TimeoutError:
            pass
