"""Bounds for what one round of the event loop takes: long work is done in short turns, and few requests begin in each."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]
"""Work that pauses wherever it may be interrupted, after a millisecond at the latest, and returns its result."""

_TURN_S = 0.001

_FIRST_TURNS_S = 0.005
"""What the first turns of all work that begins in one round may take together."""

_STARTS = 2
"""Requests that begin in one round; each takes about a millisecond until it waits for something."""


class Turns:
    """One line for all work that takes more than a turn, so that a crowd holds up the event loop no longer than one caller.

    A thread would not do: the interpreter gives up its lock between two of its own instructions, every 5 ms at the earliest,
    and within one (`json.loads` of 64 MB, say) not at all.
    """

    def __init__(self) -> None:
        self._line = asyncio.Lock()
        self._left_s = _FIRST_TURNS_S

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
        """Do the first turn at once, out of line, if this round has time for it.

        Returns:
            True if that was all; else `work` does the rest.
        """
        if self._left_s <= 0:
            return False
        if self._left_s == _FIRST_TURNS_S:
            asyncio.get_running_loop().call_soon(self._next_round)
        began = time.perf_counter()
        try:
            _take_turn(steps)
        except StopIteration:
            return True
        finally:
            self._left_s -= time.perf_counter() - began
        return False

    def _next_round(self) -> None:
        self._left_s = _FIRST_TURNS_S


def _take_turn(steps: Steps[T]) -> None:
    ends = time.perf_counter() + _TURN_S
    while time.perf_counter() < ends:
        next(steps)


class Starts:
    """Begins requests, at most a few in each round of the event loop, in the order in which they came.

    A crowd whose requests are all refused at once would otherwise hold up the loop for its number of requests.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._left = _STARTS

    def add(self, begin: Callable[[], None]) -> None:
        """Call `begin` now if this round has room, or in a later one."""
        if self._left == _STARTS:
            asyncio.get_running_loop().call_soon(self._next_round)
        if self._left and not self._waiting:
            self._left -= 1
            begin()
        else:
            self._waiting.append(begin)

    def _next_round(self) -> None:
        begin_now = [self._waiting.popleft() for _ in range(min(_STARTS, len(self._waiting)))]
        self._left = _STARTS - len(begin_now)
        if begin_now:
            asyncio.get_running_loop().call_soon(self._next_round)
        for begin in begin_now:
            begin()
