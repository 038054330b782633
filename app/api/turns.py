"""Turns: long work is done on the event loop in short turns, one in each round of the loop, whoever asks for it."""

import asyncio
import time
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work that pauses wherever it may be interrupted, after a millisecond at the latest, and returns its result."""

_TURN_S = 0.001


class Turns:
    """One line for all work that takes more than a turn, so that a crowd holds up the event loop no longer than one caller.

    A thread would not do: the interpreter gives up its lock between two of its own instructions, every 5 ms at the earliest,
    and within one (`json.loads` of 64 MB, say) not at all.
    """

    def __init__(self) -> None:
        self._line = asyncio.Lock()

    async def work(self, steps: Steps[T]) -> T:
        """Do the work, and return its result. Cancelling this call ends it between two steps."""
        while True:
            async with self._line:
                try:
                    _take_turn(steps)
                except StopIteration as done:
                    result: T = done.value
                    return result
                await asyncio.sleep(0)  # everybody else has a turn, before the next in line here

    def start(self, steps: Steps[None]) -> bool:
        """Do the first turn at once, out of line. Returns True if that was all; else `work` does the rest."""
        try:
            _take_turn(steps)
        except StopIteration:
            return True
        return False


def _take_turn(steps: Steps[T]) -> None:
    ends = time.perf_counter() + _TURN_S
    while time.perf_counter() < ends:
        next(steps)
