"""Worker: a small state machine around one worker process.

    IDLE ◄──► BUSY         IDLE: waits for an image
      │        │           BUSY: decodes one
      └► LOST ◄┘           LOST: given up for good; the pool starts another worker in its place

The pool owns its workers and changes their state in the event loop alone. LOST is final, so that a callback that comes late
(a timer, a readable socket) changes nothing, and a process is lost once.
"""

import asyncio
from collections.abc import Callable
from enum import Enum, auto

from app.decoding.pool.backlog import PendingImage
from app.decoding.pool.fair_queue import Turn
from app.decoding.pool.job import Job
from app.decoding.pool.messages import REQUEST, read_reply
from app.decoding.pool.zygote import WorkerProcess
from app.pixels import Pixels

_NUMBERS = 2**32


class State(Enum):
    """State of a worker."""

    IDLE = auto()
    BUSY = auto()
    LOST = auto()


class Worker:
    """One worker process and the image that it decodes.

    Args:
        process: a process that has decoded its probe.
        job: the work that it was forked for.
    """

    def __init__(self, process: WorkerProcess, job: Job) -> None:
        self.process = process
        self.state = State.IDLE
        self.turn: Turn[PendingImage] | None = None
        self._job = job
        self._number = 0
        self._timeout: asyncio.TimerHandle | None = None

    def begin(self, turn: Turn[PendingImage], on_timeout: Callable[["Worker"], None]) -> None:
        """Send an image to the process: IDLE to BUSY.

        Raises:
            OSError: the process ended while it was idle.
        """
        encoded, preprocessor = turn.item.encoded, turn.item.preprocessor or self._job.preprocessor
        self.state, self.turn = State.BUSY, turn
        self._number = (self._number + 1) % _NUMBERS
        self.process.memory[: len(encoded)] = encoded
        self.process.connection.send(REQUEST.pack(self._number, len(encoded)) + preprocessor.pickled)
        self._timeout = asyncio.get_running_loop().call_later(self._job.timeout_s, on_timeout, self)

    def finish(self, message: bytes) -> tuple[Turn[PendingImage], Pixels | Exception] | None:
        """Take the reply to the image: BUSY to IDLE.

        Returns:
            The image with its outcome; None if the message is anything but the reply to it.
        """
        reply = read_reply(message)
        if reply is None or self.turn is None or reply.number != self._number:
            return None
        turn = self.turn
        self._release(State.IDLE)
        if reply.error is not None:
            return turn, reply.error
        preprocessor = turn.item.preprocessor or self._job.preprocessor
        return turn, self._job.pixels_in(self.process.memory, preprocessor).copy()  # the next image overwrites them

    def discard(self) -> Turn[PendingImage] | None:
        """Give up the process, and return the image that it had: IDLE or BUSY to LOST."""
        asyncio.get_running_loop().remove_reader(self.process.connection)
        self.process.connection.close()
        turn = self.turn
        self._release(State.LOST)
        return turn

    def _release(self, state: State) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
        self.state, self.turn, self._timeout = state, None, None
