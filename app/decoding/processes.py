"""Decode in processes that have limits and can be ended: a picture that hangs or crashes its decoder costs only itself.

A small pool of our own, because those of `multiprocessing`, `concurrent.futures` and pebble (5.2) unpickle in the service what
their workers send: a decoder that was taken over could run there what it likes. Here a reply is a number and a short text, and
pixels come through memory that the service made, whose size nobody can change. docs/decoding.md says more.

All of this class runs in the event loop; only making a process is left to a thread.
"""

import asyncio
import contextvars
import os
import signal
from collections import deque
from collections.abc import Callable
from typing import Literal

import numpy as np
import structlog

from app.decoding.forking import Child, Zygote, ZygoteDied
from app.decoding.protocol import MAX_REPLY_BYTES, REQUEST, read_reply
from app.decoding.zygote import Job
from app.errors import Draining, NotReady, StartError, UndecodableImage
from app.images import Pixels, check_length

Reason = Literal["timeout", "crashed"]

_TRIES = 2
"""A decoder may die of what the image before has left behind: each image gets a second one."""

_RETRY_S = 1.0
_RETRY_AFTER_S = 5.0

_log = structlog.get_logger(__name__)


class _Died(Exception):
    """The process that had the image has ended without an answer."""

    def __init__(self, *, begun: bool) -> None:
        self.begun = begun


class _Place:
    """One decoding process after another, and the image that it has now."""

    def __init__(self, child: Child, job: Job) -> None:
        self._job = job
        self.number = 0
        self.result: asyncio.Future[Pixels] | None = None
        self.overdue: asyncio.TimerHandle | None = None
        self.closed = False
        self._settle(child)

    def renew(self, zygote: Zygote) -> int:
        """Another process for this place; returns how the one before it ended. Blocks."""
        child, status = zygote.fork(self._job, self.child.pid)
        self._settle(child)
        if self.closed:  # meanwhile, by the event loop
            child.connection.close()
        return status

    def _settle(self, child: Child) -> None:
        self.child = child
        self.context = contextvars.Context()
        self._pixels = np.frombuffer(child.memory, np.uint8, offset=self._job.pixels_at).reshape(self._job.shape)

    def send(self, image_bytes: bytes) -> asyncio.Future[Pixels]:
        self.number = (self.number + 1) % 2**32
        self.child.memory[: len(image_bytes)] = image_bytes
        self.child.connection.send(REQUEST.pack(self.number, len(image_bytes)))
        self.result = asyncio.get_running_loop().create_future()
        self.context = contextvars.copy_context()  # whose image it is: the request's id, in the logs
        return self.result

    def pixels(self) -> Pixels:
        return self._pixels.copy()

    def finish(self) -> asyncio.Future[Pixels] | None:
        """Forget the image; returns what its caller waits for, if it still does."""
        if self.overdue is not None:
            self.overdue.cancel()
        result, self.result, self.overdue = self.result, None, None
        return None if result is None or result.done() else result


class ProcessDecoder:
    """Decodes in processes.

    Args:
        zygote: what they are forked from; may be starting still.
        job: what they do. An image that takes longer than its time limit, from when it is begun, is refused.
        processes: images decoded at once.
        on_restart: told why, whenever a process had to be replaced.
    """

    def __init__(self, zygote: Zygote, job: Job, *, processes: int, on_restart: Callable[[Reason], None]) -> None:
        self._zygote = zygote
        self._job = job
        self._processes = processes
        self._on_restart = on_restart
        self._places: list[_Place] = []
        self._idle: list[_Place] = []
        self._waiting: deque[asyncio.Future[_Place]] = deque()
        self._replacing: set[asyncio.Task[None]] = set()
        self._forking = asyncio.Lock()
        self._broken = False
        self._closed = False

    def warm_up(self) -> None:
        """Make all processes, ready to decode. Blocks, for a second or two.

        Raises:
            StartError: that is not possible.
        """
        try:
            self._zygote.warm_up(self._job)
            self._places = [_Place(self._zygote.fork(self._job)[0], self._job) for _ in range(self._processes)]
        except (ZygoteDied, OSError):
            raise StartError("VIT_DECODE_ISOLATION: no decoding process can be started here; `thread` needs none") from None

    def start(self) -> None:
        """See `Decoder`."""
        for place in self._places:
            self._open(place)

    @property
    def alive(self) -> bool:
        """See `Decoder`."""
        return not self._broken

    async def decode(self, image_bytes: bytes) -> Pixels:
        """See `Decoder`."""
        check_length(image_bytes, self._job.max_image_bytes)
        tries = 0
        while tries < _TRIES:
            result = await self._give(image_bytes)
            try:
                return await result
            except _Died as died:
                tries += died.begun
        raise UndecodableImage("The image makes its decoder fail.")

    async def _give(self, image_bytes: bytes) -> asyncio.Future[Pixels]:
        """Wait for a process that takes the image."""
        while True:
            place = await self._take()
            try:
                result = place.send(image_bytes)
            except OSError:  # it ended while nobody looked
                self._lose(place, "crashed")
                continue
            place.overdue = asyncio.get_running_loop().call_later(self._job.timeout_s, self._lose, place, "timeout")
            return result

    def close(self) -> None:
        """See `Decoder`."""
        self._closed = True
        for task in self._replacing:
            task.cancel()
        for place in self._places:
            place.closed = True
            self._abandon(place, _stopping())
        self._refuse_waiting(_stopping())
        self._zygote.close()

    async def _take(self) -> _Place:
        """The place of the next image: images get theirs in the order in which they came."""
        if self._closed:
            raise _stopping()
        if self._broken:
            raise _not_running()
        if self._idle:
            return self._idle.pop()
        turn: asyncio.Future[_Place] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(turn.result())  # it came in the same moment
            raise

    def _release(self, place: _Place) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(place)
                return
        self._idle.append(place)

    def _open(self, place: _Place) -> None:
        asyncio.get_running_loop().add_reader(place.child.connection, self._read, place)
        self._release(place)

    def _read(self, place: _Place) -> None:
        """A process has answered, or has ended."""
        try:
            message = place.child.connection.recv(MAX_REPLY_BYTES)
        except BlockingIOError:
            return
        except OSError:  # Linux resets a local connection whose other side closes and has not read everything
            self._lose(place, "crashed", begun=False)
            return
        reply = read_reply(message)
        if reply is None or reply.number != place.number or place.overdue is None:
            self._lose(place, "crashed")
        else:
            if (result := place.finish()) is not None:
                result.set_result(place.pixels()) if reply.error is None else result.set_exception(reply.error)
            place.context = contextvars.Context()
            self._release(place)

    def _lose(self, place: _Place, reason: Reason, *, begun: bool = True) -> None:
        """Give up a process, and have another one made for its place."""
        overdue = UndecodableImage("The image takes too long to decode.")
        self._abandon(place, overdue if reason == "timeout" else _Died(begun=begun))
        if self._closed:
            return
        task = asyncio.create_task(self._replace(place, reason), name="replace a decoder", context=place.context)
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    def _abandon(self, place: _Place, error: Exception) -> None:
        if place.child.connection.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(place.child.connection)
            place.child.connection.close()
        if place in self._idle:
            self._idle.remove(place)
        if (result := place.finish()) is not None:
            result.set_exception(error)

    async def _replace(self, place: _Place, reason: Reason) -> None:
        self._on_restart(reason)
        async with self._forking:
            status = await self._fork(place)
        _log.warning("decoder restarted", reason=reason, ended=_how_it_ended(status))
        self._open(place)

    async def _fork(self, place: _Place) -> int:
        """Make another process for a place, of another zygote if that one has ended too. Tried until it is possible."""
        while True:
            try:
                if self._broken:
                    self._zygote.close()
                    self._zygote = Zygote()
                    for each in self._places:
                        each.child.pid = 0  # they ended with theirs, and to this one the numbers mean nothing
                    await asyncio.to_thread(self._zygote.warm_up, self._job)
                status = await asyncio.to_thread(place.renew, self._zygote)
                self._broken = False
                return status
            except OSError:  # no descriptors or memory: the zygote and its other processes are well
                _log.error("a decoder cannot be started; trying again")
                await asyncio.sleep(_RETRY_S)
            except ZygoteDied:
                if self._broken:
                    await asyncio.sleep(_RETRY_S)
                _log.error("no decoder can be started; trying again")
                self._broken = True
                self._refuse_waiting(_not_running())

    def _refuse_waiting(self, error: Exception) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)


def _how_it_ended(status: int) -> str:
    if status < 0:
        return "unknown"
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit status {os.waitstatus_to_exitcode(status)}"


def _stopping() -> Draining:
    return Draining("The service is shutting down.", retry_after_s=1.0)


def _not_running() -> NotReady:
    return NotReady("The decoder is not running.", retry_after_s=_RETRY_AFTER_S)
