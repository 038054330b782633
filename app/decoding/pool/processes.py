"""ProcessDecoder: decodes in worker processes that have limits and can be ended, so that an image costs only itself.

A small pool of our own, because those of `multiprocessing`, `concurrent.futures` and pebble (5.2) unpickle in the service what
their workers send: a decoder that was taken over could run there what it likes. Here a reply is a number and a short text, and
pixels come through memory that the service made, whose size nobody can change. docs/decoding.md says more.

Each worker is a small state machine, and the event loop alone changes its state:

    starting ──► idle ◄──► busy          starting: has no process; one task is making it
        ▲          │         │           idle:     has a process and no image
        └──────────┴─────────┘ lost      busy:     has both

An image goes straight from the queue to an idle worker, in one step of the event loop: nothing is ever between two states. A
process is lost once, because the one that a callback speaks of has to be the one that the worker has.
"""

import asyncio
import contextvars
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import structlog
from numpy.typing import NDArray

from app.decoding.image import check_length
from app.decoding.pool.attempt import DecodingFault, reported
from app.decoding.pool.fair_queue import FairQueue, Turn, turn_of
from app.decoding.pool.messages import MAX_REPLY_BYTES, REQUEST, read_reply
from app.decoding.pool.zygote import Child, WorkerFailed, Zygote, ZygoteDied, how_it_ended
from app.decoding.pool.zygote_main import FAULT_STATUS, Job
from app.errors import Draining, NotReady, StartError, UndecodableImage
from app.pixels import Pixels

Reason = Literal["timeout", "crashed", "killed", "start"]
"""Why a process was replaced; `killed` is by a signal from outside, as the kernel sends it where memory runs out, and `start`
before it decoded anything."""

REASONS: tuple[Reason, ...] = ("timeout", "crashed", "killed", "start")

_MAX_CRASHES = 2
"""A worker may crash because of what the image before has left behind: each image gets a second one."""

_MAX_KILLS = 5
"""An image that had nothing to do with it deserves a few more; but it may be what the memory ran out for."""

_MAX_FAILURES = 8
"""Failed starts and deaths without a decoded image in between, which takes 2.5 s; then the decoder is not ready until a start
succeeds."""

_BACKOFF_S = (0.02, 5.0)
"""Pause after the first such failure, which doubles with each further one, and its bound. A first death costs none."""

_RETRY_AFTER_S = 5.0

_FROM_OUTSIDE = ("SIGKILL", "unknown")
"""No decoder ends by itself in these ways; nobody knows of those that ended with their zygote."""

_BY_OUR_FAULT = f"exit status {FAULT_STATUS}"

_log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class _Image:
    encoded: bytes
    result: asyncio.Future[Pixels]
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    """The caller's: its request's id stands in the log if the image ends a worker."""
    crashes: int = 0
    kills: int = 0

    def fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)


@dataclass(eq=False, slots=True)
class _Worker:
    """One process after another, and the image that it has now."""

    child: Child | None
    pixels: NDArray[np.uint8] | None = None
    turn: Turn[_Image] | None = None
    number: int = 0
    overdue: asyncio.TimerHandle | None = None

    def give_up(self) -> Turn[_Image] | None:
        """Let go of the process, and of the image that it had."""
        assert self.child is not None
        asyncio.get_running_loop().remove_reader(self.child.connection)
        self.child.connection.close()
        self.child = self.pixels = None
        return self.finish()

    def finish(self) -> Turn[_Image] | None:
        """Let go of the image."""
        if self.overdue is not None:
            self.overdue.cancel()
        turn, self.turn, self.overdue = self.turn, None, None
        return turn


class ProcessDecoder:
    """Decodes in processes.

    Args:
        zygote: what they are forked from; may be starting still.
        job: what they do. An image that takes longer than its time limit, from when it is begun, is refused.
        processes: images decoded at once.
        on_restart: called with the reason whenever a process had to be replaced.
    """

    def __init__(self, zygote: Zygote, job: Job, *, processes: int, on_restart: Callable[[Reason], None]) -> None:
        self._zygote = zygote
        self._job = job
        self._on_restart = on_restart
        self._workers = [_Worker(None) for _ in range(processes)]
        self._idle: list[_Worker] = []
        self._queue = FairQueue[_Image](processes)
        self._replacing: set[asyncio.Task[None]] = set()
        self._forking = asyncio.Lock()  # one thread at a time talks to the zygote
        self._zygote_died = False
        self._failures = 0  # without a decoded image in between
        self._pause_until = 0.0
        self._refusing = False  # after too many of them
        self._closing = asyncio.Event()

    def warm_up(self) -> None:
        """Make all processes, each proven by an image that it decoded. Blocks, for a second or two.

        Raises:
            StartError: that is not possible.
        """
        try:
            self._zygote.warm_up(self._job)
            for worker in self._workers:
                worker.child = self._zygote.start_worker(self._job)
        except (ZygoteDied, WorkerFailed, OSError) as error:
            reason = str(error) or "it ended while it started"
            raise StartError(
                f"VIT_DECODE_ISOLATION: no decoding process can be started here: {reason}; "
                "give the service more memory, or take `thread`, which needs none"
            ) from None

    def start(self) -> None:
        """See `Decoder`."""
        for worker in self._workers:
            assert worker.child is not None
            self._open(worker, worker.child)

    @property
    def why_not_ready(self) -> str | None:
        """See `Decoder`."""
        if any(worker.child is not None for worker in self._workers):
            return None
        if self._failures >= _MAX_FAILURES:
            return "Decoding processes end before they have decoded an image; the log says how."
        return "The decoding processes are being started again." if self._zygote_died else None

    async def decode(self, image_bytes: bytes, request: Hashable = None) -> Pixels:
        """See `Decoder`."""
        check_length(image_bytes, self._job.max_image_bytes)
        if self._closing.is_set():
            raise _stopping()
        if (reason := self.why_not_ready) is not None:
            raise NotReady(reason, _RETRY_AFTER_S)
        image = _Image(image_bytes, asyncio.get_running_loop().create_future())
        turn = turn_of(image, image_bytes, request)
        self._queue.put(turn)
        self._dispatch()
        try:
            return await image.result
        except DecodingFault as fault:
            raise reported(fault) from None
        finally:
            self._queue.discard(turn)

    async def close(self) -> None:
        """See `Decoder`."""
        self._closing.set()
        for worker in self._workers:
            if worker.child is not None and (turn := worker.give_up()) is not None:
                self._end_turn(turn, _stopping())
        self._idle.clear()
        self._refuse_waiting(_stopping())
        await asyncio.to_thread(self._zygote.close)
        await asyncio.gather(*self._replacing)

    # from the queue to a worker and back

    def _dispatch(self) -> None:
        """Give idle workers the images whose turn it is."""
        while self._idle and (turn := self._queue.take()) is not None:
            if turn.item.result.done():  # its caller has gone, and could not say so yet
                self._queue.release(turn)
            else:
                self._begin(self._idle.pop(), turn)

    def _begin(self, worker: _Worker, turn: Turn[_Image]) -> None:
        child, encoded = worker.child, turn.item.encoded
        assert child is not None
        worker.turn = turn
        worker.number = (worker.number + 1) % 2**32
        try:
            child.memory[: len(encoded)] = encoded
            child.connection.send(REQUEST.pack(worker.number, len(encoded)))
        except OSError:  # it ended while it was idle
            self._lose(worker, child, "ended", begun=False)
            return
        worker.overdue = asyncio.get_running_loop().call_later(self._job.timeout_s, self._on_overdue, worker, child)

    def _on_readable(self, worker: _Worker, child: Child) -> None:
        """Take a worker's reply, or notice that it has ended."""
        try:
            message = child.connection.recv(MAX_REPLY_BYTES)
        except BlockingIOError:
            return
        except OSError:  # Linux resets a local connection whose other side closes and has not read everything
            self._lose(worker, child, "ended", begun=False)
        else:
            self._on_reply(worker, child, message)
        self._dispatch()

    def _on_reply(self, worker: _Worker, child: Child, message: bytes) -> None:
        if not message:
            self._lose(worker, child, "ended")
            return
        reply = read_reply(message)
        if reply is None or reply.number != worker.number or worker.turn is None:
            self._lose(worker, child, "crashed")
            return
        turn = worker.finish()
        assert turn is not None and worker.pixels is not None
        self._queue.release(turn)
        self._idle.append(worker)
        self._count_success()
        if reply.error is not None:
            turn.item.fail(reply.error)
        elif not turn.item.result.done():  # its caller still waits
            turn.item.result.set_result(worker.pixels.copy())

    def _on_overdue(self, worker: _Worker, child: Child) -> None:
        self._lose(worker, child, "timeout")
        self._dispatch()

    # losing a process, and making another

    def _open(self, worker: _Worker, child: Child) -> None:
        """Make a worker idle that has a process."""
        worker.child = child
        worker.pixels = np.frombuffer(child.memory, np.uint8, offset=self._job.pixels_at).reshape(self._job.shape)
        asyncio.get_running_loop().add_reader(child.connection, self._on_readable, worker, child)
        self._idle.append(worker)

    def _lose(self, worker: _Worker, child: Child, reason: Reason | Literal["ended"], *, begun: bool = True) -> None:
        """Give a process up and have it replaced, unless that has happened already.

        Args:
            reason: `ended` if the process did so without being asked; its exit status tells why.
            begun: the image that it had may be why it is lost.
        """
        if worker.child is not child:
            return
        turn = worker.give_up()
        if worker in self._idle:
            self._idle.remove(worker)
        if turn is not None and not begun:
            self._give_back(turn)
            turn = None
        context = contextvars.Context() if turn is None else turn.item.context
        if turn is not None and reason == "timeout":
            self._end_turn(turn, UndecodableImage("The image takes too long to decode."))
            turn = None
        task = asyncio.create_task(self._replace(worker, child, reason, turn), name="replace a decoder", context=context)
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(
        self, worker: _Worker, child: Child, reason: Reason | Literal["ended"], turn: Turn[_Image] | None
    ) -> None:
        """See how a process ended, decide on the image that it had, and make another one."""
        ended = how_it_ended(await self._end(child))
        our_fault = reason == "ended" and ended == _BY_OUR_FAULT
        if reason == "ended":
            reason = "killed" if ended in _FROM_OUTSIDE else "crashed"
        if turn is not None:
            self._try_again(turn, reason, our_fault)
        if self._closing.is_set():
            return
        self._on_restart(reason)
        _log.warning("decoder restarted", reason=reason, ended=ended)
        if reason != "timeout":
            self._count_failure(pause=self._failures > 0)
        self._dispatch()
        if (replacement := await self._start_until_it_works()) is not None:
            self._open(worker, replacement)
            self._dispatch()

    async def _end(self, child: Child) -> int:
        async with self._forking:
            try:
                return await asyncio.to_thread(child.zygote.end, child)
            except ZygoteDied:
                self._zygote_died |= child.zygote is self._zygote
                return -1  # its workers ended with it
            except Exception as error:  # no thread can be started, say; the worker must be replaced all the same
                _log.warning("how a decoding process ended cannot be told", reason=str(error) or type(error).__name__)
                return -1

    def _try_again(self, turn: Turn[_Image], reason: Reason, our_fault: bool) -> None:
        """Give the image of a worker that ended to another one, unless too many have ended on it."""
        image = turn.item
        image.crashes += reason == "crashed"
        image.kills += reason == "killed"
        if self._closing.is_set():
            self._end_turn(turn, _stopping())
        elif image.crashes == _MAX_CRASHES and our_fault:
            self._end_turn(turn, DecodingFault(f"a worker ended with {_BY_OUR_FAULT}"))
        elif image.crashes == _MAX_CRASHES:
            self._end_turn(turn, UndecodableImage("The image makes its decoder fail."))
        elif image.kills == _MAX_KILLS:
            self._end_turn(turn, NotReady("The decoder was killed, perhaps for want of memory; try again.", _RETRY_AFTER_S))
        else:
            self._give_back(turn)

    def _give_back(self, turn: Turn[_Image]) -> None:
        """Return an image to the queue, unless its caller has gone."""
        if turn.item.result.done():
            self._queue.release(turn)
        else:
            self._queue.put_back(turn)

    def _end_turn(self, turn: Turn[_Image], error: Exception) -> None:
        self._queue.release(turn)
        turn.item.fail(error)

    async def _start_until_it_works(self) -> Child | None:
        """Make a process, with exponential backoff while that fails; None if the decoder is closed meanwhile."""
        while not self._closing.is_set():
            await self._pause()
            async with self._forking:
                if self._closing.is_set() or time.monotonic() < self._pause_until:
                    continue  # another worker's start has failed meanwhile
                try:
                    child = await self._start()
                except Exception as error:  # whatever it is, the worker must not stay without a process
                    self._count_failed_start(error)
                    continue
            if self._closing.is_set():
                child.connection.close()
                return None
            if self._refusing:
                _log.warning("a decoding process was started again", failures=self._failures)
            self._refusing = False
            return child
        return None

    async def _start(self) -> Child:
        if self._zygote_died:
            await asyncio.to_thread(self._zygote.close)
            if self._closing.is_set():
                raise ZygoteDied
            self._zygote = await asyncio.to_thread(Zygote, self._zygote.module)
            if self._closing.is_set():
                await asyncio.to_thread(self._zygote.close)
                raise ZygoteDied
            await asyncio.to_thread(self._zygote.warm_up, self._job)
            self._zygote_died = False
        return await asyncio.to_thread(self._zygote.start_worker, self._job)

    async def _pause(self) -> None:
        """Wait until the backoff is over, or the decoder is closed."""
        try:
            async with asyncio.timeout(max(0.0, self._pause_until - time.monotonic())):
                await self._closing.wait()
        except TimeoutError:
            pass

    def _count_success(self) -> None:
        """Forget the failures: a process has decoded a client's image, or found what is wrong with it."""
        self._failures, self._pause_until = 0, 0.0

    def _count_failed_start(self, error: Exception) -> None:
        if self._closing.is_set():
            return
        self._zygote_died |= isinstance(error, ZygoteDied)
        self._on_restart("start")
        reason = str(error) or type(error).__name__
        _log.warning("a decoding process cannot be started; trying again", reason=reason, in_s=self._count_failure())

    def _count_failure(self, *, pause: bool = True) -> float:
        """Lengthen the pause before the next start, in seconds; refuse what waits if there were too many failures."""
        first, bound = _BACKOFF_S
        pause_s = min(bound, first * 2**self._failures) if pause else 0.0
        self._failures += 1
        self._pause_until = max(self._pause_until, time.monotonic() + pause_s)
        if self._failures >= _MAX_FAILURES and (why := self.why_not_ready) is not None:
            if not self._refusing:
                _log.error("not ready: decoding processes end before they have decoded an image", failures=self._failures)
            self._refusing = True
            self._refuse_waiting(NotReady(why, _RETRY_AFTER_S))
        return pause_s

    def _refuse_waiting(self, error: Exception) -> None:
        for turn in self._queue.drain():
            turn.item.fail(error)


def _stopping() -> Draining:
    return Draining("The service is shutting down.", retry_after_s=1.0)
