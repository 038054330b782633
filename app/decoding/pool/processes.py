"""ProcessDecoder: a pool of worker processes that have limits and can be ended, so that a bad image harms no other.

It is not a pool of the standard library, because those unpickle in the service what their workers send (docs/decoding.md).

An image goes straight from the backlog to an idle worker, in one step of the event loop. `_discard` is the only way to lose
a worker and `_replace` the only way to a new one, so that workers and replacements are always as many as the pool's size.
"""

import asyncio
import contextvars
import signal
from collections.abc import Callable, Hashable
from typing import Literal

import structlog

from app.decoding import Decoded, OnDecoded, Preprocessor
from app.decoding.limits import check_length
from app.decoding.pool.attempt import DecodingFault
from app.decoding.pool.backlog import Backlog, PendingImage, draining, uncounted
from app.decoding.pool.fair_queue import Turn
from app.decoding.pool.job import Job
from app.decoding.pool.messages import FAULT, MAX_REPLY_BYTES
from app.decoding.pool.spawner import Spawner
from app.decoding.pool.worker import State, Worker
from app.decoding.pool.zygote import WorkerFailed, WorkerProcess, Zygote, ZygoteDied, describe_exit
from app.errors import NotReady, StartError, UndecodableImage

Reason = Literal["timeout", "crashed", "killed", "start"]
"""Reason for a restart: `killed` is SIGKILL from outside, as the kernel sends it when memory runs out, and `start` a death
before the first image."""

_MAX_CRASHES = 2
"""Workers that may crash on an image: a second one is tried, because the image before may have damaged the first."""

_MAX_KILLS = 5
"""Workers that may be killed with an image: it may be innocent, or the reason why memory ran out."""

_MAX_FAILURES = 8
"""Failures in a row after which an empty pool is not ready; with the backoff they take 2.5 s."""

_RETRY_AFTER_S = 5.0

_KILLED = (-signal.SIGKILL, None)
"""Exits that no decoder causes itself; unknown is that of a worker that ended with its zygote."""

_log = structlog.get_logger(__name__)


class ProcessDecoder:
    """Decodes in worker processes.

    Args:
        zygote: the process that workers are forked from; may still be starting.
        job: their work. An image that exceeds its time limit, counted from when it is begun, is refused.
        processes: images decoded at once.
        on_restart: called with the reason whenever a worker is replaced.
        on_busy: as of `Backlog`.
    """

    def __init__(
        self,
        zygote: Zygote,
        job: Job,
        *,
        processes: int,
        on_restart: Callable[[Reason], None],
        on_busy: Callable[[float], None] = uncounted,
    ) -> None:
        self._job = job
        self._processes = processes
        self._on_restart = on_restart
        self._closing = asyncio.Event()
        self._backlog = Backlog(processes, self._dispatch, on_busy)
        self._spawner = Spawner(zygote, job, self._closing, self._on_failed_start)
        self._workers: list[Worker] = []
        self._replacing: set[asyncio.Task[None]] = set()
        self._refusing = False

    def warm_up(self) -> None:
        zygote = self._spawner.zygote
        try:
            zygote.warm_up(self._job)
            while len(self._workers) < self._processes:
                self._workers.append(Worker(zygote.start_worker(self._job), self._job))
        except (ZygoteDied, WorkerFailed, OSError) as error:
            reason = str(error) or "it ended while it started"
            raise StartError(
                f"VIT_DECODE_ISOLATION: no decoding process can be started here: {reason}; "
                "give the service more memory, or take `thread`, which needs none"
            ) from None

    def start(self) -> None:
        for worker in self._workers:
            self._watch(worker)

    @property
    def why_not_ready(self) -> str | None:
        if self._workers:
            return None
        if self._spawner.backoff.failures >= _MAX_FAILURES:
            return "Decoding processes end before they have decoded an image; the log says how."
        return "The decoding processes are being started again." if self._spawner.zygote_died else None

    async def decode(
        self,
        image_bytes: bytes,
        request: Hashable = None,
        preprocessor: Preprocessor | None = None,
        on_decoded: OnDecoded | None = None,
    ) -> Decoded:
        check_length(image_bytes, self._job.max_image_bytes)
        if self._closing.is_set():
            raise draining()
        if (reason := self.why_not_ready) is not None:
            raise NotReady(reason, _RETRY_AFTER_S)
        return await self._backlog.decode(image_bytes, request, preprocessor, on_decoded)

    async def close(self) -> None:
        self._closing.set()
        for worker in self._workers:
            if (turn := worker.discard()) is not None:
                self._backlog.settle(turn, draining())
        self._workers.clear()
        self._backlog.refuse(draining())
        await self._spawner.close()
        await asyncio.gather(*self._replacing)

    def _dispatch(self) -> None:
        """Give idle workers the images whose turn it is."""
        while (worker := self._acquire()) is not None and (turn := self._backlog.take()) is not None:
            try:
                worker.begin(turn, self._on_timeout)
            except OSError:
                self._discard(worker, begun=False)

    def _acquire(self) -> Worker | None:
        return next((worker for worker in self._workers if worker.state is State.IDLE), None)

    def _on_readable(self, worker: Worker) -> None:
        """Take a worker's reply, or notice its end."""
        try:
            message = worker.process.connection.recv(MAX_REPLY_BYTES)
        except BlockingIOError:
            return
        except OSError:  # Linux resets a local connection that is closed with the request still unread
            self._discard(worker, begun=False)
        else:
            self._on_message(worker, message)
        self._dispatch()

    def _on_message(self, worker: Worker, message: bytes) -> None:
        if not message:
            self._discard(worker)
        elif (finished := worker.finish(message)) is None:
            self._discard(worker, "crashed")
        else:
            self._spawner.backoff.reset()
            self._backlog.settle(*finished)

    def _on_timeout(self, worker: Worker) -> None:
        self._discard(worker, "timeout")
        self._dispatch()

    # losing a worker, and starting another

    def _watch(self, worker: Worker) -> None:
        asyncio.get_running_loop().add_reader(worker.process.connection, self._on_readable, worker)

    def _discard(self, worker: Worker, reason: Reason | None = None, *, begun: bool = True) -> None:
        """Give a worker up and have it replaced, unless it is lost already.

        Args:
            reason: None if the process ended by itself; its exit status tells.
            begun: the worker may be lost because of its image.
        """
        if worker.state is State.LOST:
            return
        turn = worker.discard()
        self._workers.remove(worker)
        if turn is not None and not begun:
            self._backlog.put_back(turn)
            turn = None
        context = contextvars.Context() if turn is None else turn.item.context
        if turn is not None and reason == "timeout":
            self._backlog.settle(turn, UndecodableImage("The image takes too long to decode."))
            turn = None
        task = asyncio.create_task(self._replace(worker.process, reason, turn), name="replace a worker", context=context)
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, lost: WorkerProcess, reason: Reason | None, turn: Turn[PendingImage] | None) -> None:
        """Reap a process, decide on the image that it had, and start another one."""
        status = await self._spawner.reap(lost)
        our_fault = reason is None and status == FAULT
        reason = reason or ("killed" if status in _KILLED else "crashed")
        if turn is not None:
            self._retry(turn, reason, our_fault=our_fault)
        if self._closing.is_set():
            return
        self._on_restart(reason)
        _log.warning("decoder restarted", reason=reason, ended=describe_exit(status))
        if reason != "timeout":
            self._count_failure(pause=self._spawner.backoff.failures > 0)
        self._dispatch()
        if (process := await self._spawner.start()) is not None:
            self._add(process)
            self._dispatch()

    def _retry(self, turn: Turn[PendingImage], reason: Reason, *, our_fault: bool) -> None:
        """Return the image of a lost worker to the backlog, or fail it if too many workers were lost on it."""
        image = turn.item
        image.crashes += reason == "crashed"
        image.kills += reason == "killed"
        if self._closing.is_set():
            self._backlog.settle(turn, draining())
        elif image.crashes == _MAX_CRASHES and our_fault:
            self._backlog.settle(turn, DecodingFault(f"a worker ended with exit status {FAULT}"))
        elif image.crashes == _MAX_CRASHES:
            self._backlog.settle(turn, UndecodableImage("The image makes its decoder fail."))
        elif image.kills == _MAX_KILLS:
            error = NotReady("The decoder was killed, perhaps for want of memory; try again.", _RETRY_AFTER_S)
            self._backlog.settle(turn, error)
        else:
            self._backlog.put_back(turn)

    def _add(self, process: WorkerProcess) -> None:
        if self._refusing:
            _log.warning("a decoding process was started again", failures=self._spawner.backoff.failures)
        self._refusing = False
        worker = Worker(process, self._job)
        self._workers.append(worker)
        self._watch(worker)

    def _on_failed_start(self, error: Exception) -> None:
        self._on_restart("start")
        pause_s = self._count_failure()
        reason = str(error) or type(error).__name__
        _log.warning("a decoding process cannot be started; trying again", reason=reason, in_s=pause_s)

    def _count_failure(self, *, pause: bool = True) -> float:
        """Lengthen the backoff, and fail all queued images after too many failures. Returns the pause in seconds."""
        backoff = self._spawner.backoff
        pause_s = backoff.fail(pause=pause)
        if backoff.failures >= _MAX_FAILURES and (reason := self.why_not_ready) is not None:
            if not self._refusing:
                _log.error("not ready: decoding processes end before they have decoded an image", failures=backoff.failures)
            self._refusing = True
            self._backlog.refuse(NotReady(reason, _RETRY_AFTER_S))
        return pause_s
