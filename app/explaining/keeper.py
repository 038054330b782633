"""ProcessKeeper: starts the process that explains when it is needed, and asks it one question at a time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from app.errors import Draining, InferenceFailed, InternalError, NotReady
from app.explaining.messages import Message
from app.explaining.process import CannotLoad
from app.explaining.question import Question
from app.process.backoff import Backoff

_START_S, _RUN_S = 300.0, 120.0
"""Seconds that loading the model and one explanation may take, at the lowest priority beside a busy service; then the process
is ended."""

_IDLE_S = 600.0
"""Seconds without a question after which the process is ended, so that its memory is free."""

_LONGEST_WAIT_S, _LOOK_S = 1.0, 0.02
"""Seconds that an explanation waits for a moment without other images, and between two looks for one."""

_DRAINING = ("The service is shutting down.", 1.0)
"""Message and seconds to retry after."""

_FAILED = "The image could not be explained; what happened has been logged."

_log = structlog.get_logger(__name__)


class Process(Protocol):
    """A process as the keeper needs it; see `ExplainingProcess`."""

    @property
    def ended(self) -> bool:
        """True if it is known to have ended."""

    async def ask(self, question: Question, pixels: bytes, photograph: bytes) -> Message:
        """See `ExplainingProcess.ask`."""

    def kill(self) -> None:
        """End it."""


class Turn:
    """Turn to explain, which keepers share: one question at a time, and one process, that of the model asked last."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._last: ProcessKeeper | None = None

    async def take(self, keeper: "ProcessKeeper") -> None:
        """Wait for the turn, and end the process of another model."""
        await self._lock.acquire()
        if self._last is not None and self._last is not keeper:
            self._last.end()
        self._last = keeper

    def leave(self) -> None:
        """Leave the turn to the next question."""
        self._lock.release()


class ProcessKeeper:
    """One process, or none while nothing was asked for a while.

    Args:
        start: starts a process and waits until it is ready.
        on_loss: called when a process was lost or could not be started.
        is_busy: tells whether the service has other work now. Each question waits a second at most until it has none: the
            lowest priority leaves it the cores, but not the caches.
        turn: shared by the keepers of all models of a service.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[Process]],
        on_loss: Callable[[], None],
        is_busy: Callable[[], bool] = lambda: False,
        turn: Turn | None = None,
    ) -> None:
        self._start = start
        self._on_loss = on_loss
        self._is_busy = is_busy
        self._turn = turn or Turn()
        self._process: Process | None = None
        self._run: asyncio.Task[Message] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._backoff = Backoff()
        self._closed = False

    async def ask(self, question: Question, pixels: bytes, photograph: bytes) -> Message:
        """Ask when the questions before are answered. A call that is cancelled before its turn costs nothing.

        Raises:
            NotReady: the process cannot be started now.
            InferenceFailed: the model's outputs for this image are not finite.
            InternalError: it failed on this image; what happened was logged.
            Draining: the keeper was closed, before or meanwhile.
        """
        await self._turn.take(self)
        try:
            await self._wait_for_a_lull()
        except BaseException:
            self._turn.leave()
            raise
        # a task of its own: the answer must be read even if the client has gone, or the next would get it
        self._run = run = asyncio.create_task(self._ask(question, pixels, photograph), name="explanation")
        run.add_done_callback(self._end_turn)
        try:
            return await asyncio.shield(run)
        except asyncio.CancelledError:
            if run.cancelled():
                raise Draining(*_DRAINING) from None
            raise

    def close(self) -> None:
        """End the process; whatever is asked or waits fails with `Draining`."""
        self._closed = True
        if self._run is not None:
            self._run.cancel()
        self.end()

    async def _wait_for_a_lull(self) -> None:
        give_up_at = time.monotonic() + _LONGEST_WAIT_S
        while self._is_busy() and not self._closed and time.monotonic() < give_up_at:  # noqa: ASYNC110 - load sets no Event
            await asyncio.sleep(_LOOK_S)

    async def _ask(self, question: Question, pixels: bytes, photograph: bytes) -> Message:
        if self._closed:
            raise Draining(*_DRAINING)
        if self._idle is not None:
            self._idle.cancel()
        if self._process is not None and self._process.ended:
            self._lose("the process that explains ended while it was idle", EOFError("it closed its socket"), pause=False)
        process = self._process or await self._started()
        try:
            async with asyncio.timeout(_RUN_S):
                message = await process.ask(question, pixels, photograph)
        except (OSError, EOFError, TimeoutError) as error:
            self._lose("the process that explains was lost", error)
            raise InternalError(_FAILED) from None
        self._backoff.reset()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self.end)
        return _checked(message)

    async def _started(self) -> Process:
        if remaining_s := self._backoff.remaining_s:
            raise NotReady("Explanations are not available: their process has ended, and is started again.", remaining_s)
        began = time.monotonic()
        try:
            async with asyncio.timeout(_START_S):
                self._process = process = await self._start()
        except (OSError, EOFError, TimeoutError, CannotLoad) as error:
            pause_s = self._lose("the process that explains cannot be started", error)
            raise NotReady("Explanations are not available: their process cannot be started.", pause_s) from None
        _log.info("ready to explain", seconds=round(time.monotonic() - began, 1), failures=self._backoff.failures)
        return process

    def _lose(self, event: str, error: Exception, *, pause: bool = True) -> float:
        """End the process after a failure. Returns the seconds until it may be started again."""
        self.end()
        self._on_loss()
        pause_s = self._backoff.fail(pause=pause)
        _log.warning(event, reason=str(error) or type(error).__name__, in_s=pause_s)
        return pause_s

    def end(self) -> None:
        """End the process; the next question starts another."""
        if self._idle is not None:
            self._idle.cancel()
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _end_turn(self, run: asyncio.Task[Message]) -> None:
        self._turn.leave()
        if not run.cancelled():
            run.exception()  # retrieved: its caller may have gone


def _checked(message: Message) -> Message:
    """Return an answer, or raise what it reports."""
    fields = message[0]
    if "error" in fields:
        _log.error("an image could not be explained through a fault of the service, please report it: %s", fields["error"])
        raise InternalError(_FAILED)
    if "failed" in fields:
        raise InferenceFailed(fields["failed"])
    return message
